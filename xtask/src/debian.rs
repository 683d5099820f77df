//! Debian's and Ubuntu's packages. As root they are installed; else the one line to run is printed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// What tests and demo use. `busybox-static` and below run inside the guests.
const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "qemu-utils",
    "kmod",
    "zstd",
    "util-linux",
    "e2fsprogs",
    "xfsprogs",
    "btrfs-progs",
    "g++",
    "busybox-static",
    "lvm2",
    "dmsetup",
    "thin-provisioning-tools",
    "cryptsetup-bin",
    "mdadm",
    "python3",
    "mmdebstrap",
    "shellcheck",
    "ceph-mon",
    "ceph-mgr",
    "ceph-osd",
    "ceph-common",
    "librbd1",
    "qemu-block-extra",
    "libnbd-bin",
    "restic",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
];

/// What does not come with its like from one suite: here QEMU's utilities may be newer than what
/// the enabled suites have, and all of QEMU must be of one version.
const BACKPORTS_LIST: &str = "/etc/apt/sources.list.d/hostsnap-backports.sources";

/// Installs what is missing.
pub(crate) fn install() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if !is_root() {
        bail!("packages are missing; run this and try again:\n\n    sudo {line}\n");
    }
    println!("installing packages: {}", missing.join(" "));
    apt(&["update"])?;
    if install_now(&[], &missing).is_err() {
        // As on a machine whose qemu-utils came from backports, while apt lists only the release: it
        // would be removed.
        let backports = add_backports()?;
        apt(&["update"])?;
        let of_qemu = |package: &&&str| package.starts_with("qemu-");
        let qemu: Vec<_> = PACKAGES.iter().filter(of_qemu).copied().collect();
        let others: Vec<_> = missing.iter().filter(|package| !of_qemu(package)).copied().collect();
        // With the suite as the target release also what QEMU needs comes from there; with `package/suite` apt may leave that
        // at the release's versions, and give up.
        install_now(&["--target-release", &backports], &qemu).context("install QEMU from backports")?;
        install_now(&[], &others).context("install the packages, beside QEMU from backports")?;
    }
    let missing = self::missing();
    ensure!(missing.is_empty(), "apt-get installed the packages, and these are still missing: {missing:?}");
    Ok(())
}

fn missing() -> Vec<&'static str> {
    PACKAGES.iter().copied().filter(|package| !is_installed(package)).collect()
}

/// Never at the cost of a package that is there.
fn install_now(options: &[&str], packages: &[&str]) -> Result<()> {
    let install = ["install", "--yes", "--no-install-recommends", "--no-remove"];
    apt(&[&install, options, packages].concat())
}

fn is_installed(package: &str) -> bool {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    output.is_ok_and(|output| output.stdout == b"installed")
}

fn is_root() -> bool {
    // The owner of a process's own folder in /proc is its effective user (proc(5)).
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn apt(arguments: &[impl AsRef<str>]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    let status = Command::new("apt-get")
        // Somebody else may be installing: unattended-upgrades on a machine that was just started.
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(&arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(std::process::Stdio::null())
        .status()
        .context("run apt-get: this set-up knows Debian and Ubuntu only")?;
    ensure!(status.success(), "apt-get {}: {status}", arguments.join(" "));
    Ok(())
}

/// The release's backports, from the mirror and with the key of the release itself; the suite's name.
fn add_backports() -> Result<String> {
    let release = os_release("VERSION_CODENAME").context("find out the release: /etc/os-release")?;
    let (mirror, key) = mirror().context("find the mirror in apt's sources")?;
    let signed = key.map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
    let suite = format!("{release}-backports");
    let text = format!("Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n{signed}");
    fs::write(BACKPORTS_LIST, text).with_context(|| format!("write {BACKPORTS_LIST}"))?;
    Ok(suite)
}

fn os_release(key: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

/// The release that this machine is, as a line of apt's sources.
pub(crate) fn source() -> Option<String> {
    let release = os_release("VERSION_CODENAME")?;
    let (mirror, key) = mirror()?;
    let signed = key.map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
    // Ubuntu keeps databases in `universe`.
    let components = if os_release("ID")? == "ubuntu" { "main universe" } else { "main" };
    Some(format!("deb {signed}{mirror} {release} {components}"))
}

/// The first mirror of this distribution that apt uses, and the key file that signs it.
fn mirror() -> Option<(String, Option<String>)> {
    let distribution = os_release("ID")?;
    let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let files = folder.map(|entry| entry.path()).chain([Path::new("/etc/apt/sources.list").to_owned()]);
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
        };
        if file.extension().is_some_and(|extension| extension == "sources")
            && text.contains(&distribution)
            && let Some(mirror) = field("URIs:")
        {
            return Some((mirror, field("Signed-By:")));
        }
        let line = text.lines().find(|line| line.starts_with("deb ") && line.contains(&distribution));
        if let Some(mirror) = line.and_then(|line| line.split_whitespace().find(|word| word.contains("://")))
        {
            return Some((mirror.to_owned(), None));
        }
    }
    None
}

/// Fetches a package into a folder and unpacks it there, without installing it.
pub(crate) fn unpack(package: &str, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    with_fresh_lists(|| download(package, folder))?;
    let file = fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("find the package {package} that was fetched"))?;
    let status = Command::new("dpkg-deb").arg("-x").arg(&file).arg(folder.join("root")).status()?;
    ensure!(status.success(), "dpkg-deb -x {}: {status}", file.display());
    fs::remove_file(&file)?;
    Ok(())
}

fn download(package: &str, folder: &Path) -> Result<()> {
    let status = Command::new("apt-get")
        // apt's own user can't write into our folder, and root's apt warns of it each time.
        .args(["-o", "APT::Sandbox::User=root", "download", package])
        .current_dir(folder)
        .stdout(std::process::Stdio::null())
        .status()?;
    ensure!(status.success(), "apt-get download {package}: {status}");
    Ok(())
}

/// What fails with apt's lists as they are may be for their age, or since there are none.
fn with_fresh_lists<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    attempt().or_else(|error| {
        if !is_root() {
            return Err(error.context("if apt's lists are old: sudo apt-get update, and try again"));
        }
        apt(&["update"])?;
        attempt()
    })
}

/// The package that holds the newest kernel for virtual machines.
pub(crate) fn kernel_package() -> Result<String> {
    with_fresh_lists(newest_kernel)
}

fn newest_kernel() -> Result<String> {
    for meta in ["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64"] {
        let output = Command::new("apt-cache").args(["depends", meta]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        if let Some(version) = package {
            return Ok(format!("linux-image-{version}"));
        }
    }
    bail!("apt knows no kernel package")
}
