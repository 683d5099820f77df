//! From the initramfs to a whole Debian on a disk. What the harness needs in there travels along:
//! the programs are copied, and this one becomes a service that lives in memory (`/run`), so that it
//! answers even while the disk is frozen.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use harness::serial::{DEBIAN_ROOT, FOR_DEBIAN};

/// How systemd calls us.
pub(super) const SERVICE_ARGUMENT: &str = "serve";

const ROOT: &str = "/debian";
const UNIT: &str = "\
[Unit]
Description=What the tests' harness asks
DefaultDependencies=no
After=multi-user.target

[Service]
ExecStart=/run/guest-init serve
OOMScoreAdjust=-1000
KillMode=process
";

/// The serial of the disk that holds it, if the harness wants one.
pub(super) fn wanted() -> anyhow::Result<Option<String>> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(DEBIAN_ROOT)?.strip_prefix('='));
    Ok(value.map(str::to_owned))
}

/// Mounts it and becomes its systemd.
pub(super) fn hand_over(serial: &str) -> anyhow::Result<()> {
    let device = loop {
        match find(serial)? {
            Some(device) => break device,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    fs::create_dir_all(ROOT)?;
    busybox(&["mount", "-t", "ext4", &device.to_string_lossy(), ROOT])?;
    let programs = fs::read_dir("/usr/bin").context("list the harness' programs")?;
    for program in programs.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
        fs::copy(program.path(), Path::new(ROOT).join("usr/bin").join(program.file_name()))?;
    }
    if Path::new(FOR_DEBIAN).exists() {
        add(Path::new(FOR_DEBIAN), Path::new(ROOT)).context("copy what the Debian lacks")?;
    }
    fs::copy("/init", "/run/guest-init")?;
    let units = Path::new("/run/systemd/system");
    fs::create_dir_all(units.join("multi-user.target.wants"))?;
    fs::write(units.join("harness.service"), UNIT)?;
    symlink("../harness.service", units.join("multi-user.target.wants/harness.service"))?;
    for folder in ["proc", "sys", "dev", "run"] {
        busybox(&["mount", "--move", &format!("/{folder}"), &format!("{ROOT}/{folder}")])?;
    }
    let error = Command::new("/bin/busybox").args(["switch_root", ROOT, "/sbin/init"]).exec();
    Err(error).context("start systemd")
}

/// Copies files to where they are not yet.
fn add(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let (path, place) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            add(&path, &place)?;
        } else if !place.exists() {
            fs::copy(path, place)?;
        }
    }
    Ok(())
}

fn find(serial: &str) -> anyhow::Result<Option<PathBuf>> {
    for disk in fs::read_dir("/sys/block")?.flatten() {
        let known = fs::read_to_string(disk.path().join("serial")).unwrap_or_default();
        if known.trim() == serial {
            return Ok(Some(Path::new("/dev").join(disk.file_name())));
        }
    }
    Ok(None)
}

fn busybox(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("/bin/busybox").args(arguments).status()?;
    if !status.success() {
        bail!("{}: {status}", arguments.join(" "));
    }
    Ok(())
}
