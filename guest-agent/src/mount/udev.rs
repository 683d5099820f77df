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

/// Whether the rule is installed for good, and so is there at the next boot too.
pub(super) fn is_installed() -> bool {
    FOLDERS.iter().filter(|folder| **folder != RUN).any(|folder| Path::new(folder).join(NAME).exists())
}

/// Sees to it that the rule is in force before a disk appears. A machine without udev needs none.
pub fn guard() {
    let has_udev = Path::new("/run/udev/control").exists();
    if !has_udev || FOLDERS.iter().any(|folder| Path::new(folder).join(NAME).exists()) {
        return;
    }
    let put = fs::create_dir_all(RUN).and_then(|()| fs::write(Path::new(RUN).join(NAME), RULE));
    // udev looks for changed rules by itself, but not more often than every three seconds.
    let told = Command::new("udevadm").args(["control", "--reload"]).stderr(Stdio::null()).status();
    if let Err(error) = put.and(told.map(drop)) {
        tracing::warn!("the rule {NAME} could not be put into {RUN}: {error}");
    }
}
