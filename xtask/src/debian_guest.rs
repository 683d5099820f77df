//! A whole Debian (or Ubuntu, where this machine is one) for the stories that need systemd or real
//! databases: mmdebstrap makes it once, of this machine's own release and mirror, without network in the guest.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian;

/// What is in it besides the essential packages.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "udev",
    "procps",
    "e2fsprogs",
    "xfsprogs",
    "btrfs-progs",
    "lvm2",
    "cryptsetup-bin",
    "qemu-guest-agent",
    "postgresql",
    "mariadb-server",
    "redis-server",
];
/// What a test starts when it wants it.
const NOT_AT_BOOT: &[&str] =
    &["postgresql.service", "mariadb.service", "redis-server.service", "qemu-guest-agent.service"];
/// What a machine that lives for a minute does not need: emulation is slow.
const NEVER: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "lvm2-monitor.service",
    "serial-getty@ttyS0.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
];
/// Nobody reads them there.
const LEFT_OUT: &[&str] =
    &["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*"];
/// Changed with what is done below, so that the image is made anew.
const EDITION: u32 = 1;
const SIZE: &str = "2G";

/// Makes `root.img` in this folder, unless it is there.
pub(crate) fn make(folder: &Path) -> Result<()> {
    let source = debian::source().context("find the mirror in apt's sources")?;
    let key = format!("{EDITION} {source} {}", PACKAGES.join(" "));
    let (image, kept_key) = (folder.join("root.img"), folder.join("key"));
    if image.exists() && fs::read_to_string(&kept_key).is_ok_and(|kept| kept == key) {
        return Ok(());
    }
    println!("making a Debian for the guests (a few minutes, once)");
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    let root = folder.join("root");
    bootstrap(&source, &root)?;
    tame(&root)?;
    let new = folder.join("new.img");
    run(Command::new("mkfs.ext4").args(["-q", "-L", "debian", "-d"]).arg(&root).arg(&new).arg(SIZE))?;
    fs::remove_dir_all(&root)?;
    fs::rename(new, image)?;
    fs::write(kept_key, key)?;
    Ok(())
}

fn bootstrap(source: &str, root: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=apt", "--format=directory"]);
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    command.arg("--aptopt=Acquire::Languages \"none\"");
    for pattern in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    command.arg(format!("--include={}", PACKAGES.join(",")));
    // The suite's name is in the source already.
    run(command.arg("").arg(root).arg(source))
}

/// A machine that boots at once and does nothing by itself.
fn tame(root: &Path) -> Result<()> {
    let mut disable = Command::new("chroot");
    // Newer ones warn that nothing is mounted in there, which they do not need for this.
    disable
        .arg(root)
        .args(["systemctl", "--quiet", "disable"])
        .args(NOT_AT_BOOT)
        .env("SYSTEMD_LOG_LEVEL", "err");
    run(&mut disable)?;
    for unit in NEVER {
        let mask = root.join("etc/systemd/system").join(unit);
        let _ = fs::remove_file(&mask);
        symlink("/dev/null", mask)?;
    }
    // Without one systemd takes the boot for the first, and enables everything.
    fs::write(root.join("etc/machine-id"), "5f0b6f3e8f0c4c6e9a5500000000deb1\n")?;
    fs::write(root.join("etc/hostname"), "debian\n")?;
    for lists in ["var/lib/apt/lists", "var/cache/apt"] {
        fs::remove_dir_all(root.join(lists))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("run {program}"))?;
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}
