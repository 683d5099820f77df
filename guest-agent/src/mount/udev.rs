//! The rule that keeps udev, systemd, udisks, LVM, md and btrfs from taking a copy for its original:
//! `packaging/udev/10-hostsnap.rules`. Where it is not installed it is put into `/run`, which lasts until the next
//! boot; a boot with a snapshot attached needs the installed one.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const NAME: &str = "10-hostsnap.rules";
const RULE: &str = include_str!("../../../packaging/udev/10-hostsnap.rules");
/// Where udev looks (udev(7)).
const FOLDERS: [&str; 5] = [
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];
const RUN: &str = "/run/udev/rules.d";

/// How this machine keeps copies and originals apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// There is no udev that could take the one for the other.
    NotNeeded,
    /// Installed for good.
    Installed,
    /// Not installed: what is in force, if anything, ends with this boot.
    Missing,
}

/// How it is now.
pub fn rule() -> Rule {
    if !Path::new("/run/udev/control").exists() {
        return Rule::NotNeeded;
    }
    let lasting = FOLDERS.iter().filter(|folder| **folder != RUN);
    match lasting.map(|folder| Path::new(folder).join(NAME)).any(|rule| rule.exists()) {
        true => Rule::Installed,
        false => Rule::Missing,
    }
}

/// What a user should know about it, after a disk was attached.
pub fn note() -> Option<String> {
    let note =
        "the udev rule of hostsnap is not installed: unmount and detach before this machine is booted again";
    (rule() == Rule::Missing).then(|| note.to_owned())
}

/// Sees to it that the rule is in force before a disk appears. A machine without udev needs none.
pub fn guard() {
    if rule() != Rule::Missing || Path::new(RUN).join(NAME).exists() {
        return;
    }
    let put = fs::create_dir_all(RUN).and_then(|()| fs::write(Path::new(RUN).join(NAME), RULE));
    // udev looks for changed rules by itself, but not more often than every three seconds.
    let told = Command::new("udevadm").args(["control", "--reload"]).stderr(Stdio::null()).status();
    if let Err(error) = put.and(told.map(drop)) {
        tracing::warn!("the rule {NAME} could not be put into {RUN}: {error}");
    }
}
