//! What must be there. Each part is made once, kept under `target/vm`, and made anew when its
//! sources change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::{debian, debian_guest, zfs};

/// The vsock device that needs nothing of the host's kernel.
const VHOST_DEVICE_VSOCK: &str = "0.3.0";

/// The project's root folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the project").to_owned()
}

/// Where everything is kept.
pub(crate) fn folder() -> PathBuf {
    root().join("target/vm")
}

/// Whether the guests have ZFS.
pub(crate) enum Zfs {
    /// They do.
    Ready,
    /// It can't be had here; why.
    Absent(anyhow::Error),
}

impl Zfs {
    /// Tells what can't be tested.
    pub(crate) fn say(&self) {
        if let Self::Absent(error) = self {
            println!("skipped: the tests of ZFS, which can't be had here: {error:#}");
        }
    }
}

/// What the tests need: everything, a whole Debian as a guest, and ZFS if it can be had.
pub(crate) fn for_tests() -> Result<Zfs> {
    debian::install()?;
    fs::create_dir_all(folder())?;
    kernel().context("fetch the guests' kernel")?;
    // Each waits now and then, for the network or for one process: they are made beside each other.
    thread::scope(|scope| {
        let zfs = scope.spawn(|| zfs::make(&folder()));
        let debian = scope.spawn(|| {
            debian_guest::make(&folder().join("debian")).context("make a Debian for the guests")?;
            initramfs_tools().context("fetch initramfs-tools, unpacked and not installed")
        });
        vsock_device().context("build the vsock device")?;
        static_programs().context("build the guests' programs")?;
        // With the features that they will have when the tests are run: nothing is built twice.
        cargo(&["test", "--quiet", "--workspace", "--no-run"], &[])
            .context("build hostsnapd and the tests")?;
        debian.join().expect("it does not panic")?;
        Ok(match zfs.join().expect("it does not panic") {
            Ok(()) => Zfs::Ready,
            Err(error) => Zfs::Absent(error),
        })
    })
}

/// What demo and benchmarks need.
pub(crate) fn all() -> Result<()> {
    debian::install()?;
    fs::create_dir_all(folder())?;
    kernel().context("fetch the guests' kernel")?;
    vsock_device().context("build the vsock device")?;
    static_programs().context("build the guests' programs")?;
    cargo(&["build", "--quiet", "-p", "host-proxy", "-p", "guest-agent", "-p", "tests"], &[])
        .context("build hostsnapd")
}

/// Runs cargo in the project's root.
pub(crate) fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "cargo {}: {status}", arguments.join(" "));
    Ok(())
}

fn kernel() -> Result<()> {
    let place = folder().join("kernel");
    if place.join("vmlinuz").exists() {
        return Ok(());
    }
    println!("fetching the guests' kernel");
    let _ = fs::remove_dir_all(&place);
    let package = debian::kernel_package()?;
    debian::unpack(&package, &place)?;
    // Ubuntu keeps the modules in packages of their own.
    if let Some(version) = package.strip_prefix("linux-image-").filter(|_| modules_in(&place).is_none()) {
        debian::unpack(&format!("linux-modules-{version}"), &place)?;
    }
    // depmod wants them where they always were.
    let root = place.join("root");
    let modules = root.join("lib/modules");
    if !modules.exists() {
        fs::create_dir_all(root.join("lib"))?;
        fs::rename(modules_in(&place).context("find the kernel's modules")?, &modules)?;
    }
    let version = only_entry(&modules)?;
    let status = Command::new("depmod").arg("-b").arg(&root).arg(&version).status()?;
    ensure!(status.success(), "depmod: {status}");
    fs::rename(modules.join(&version), place.join("modules"))?;
    fs::write(place.join("modules/version"), &version)?;
    fs::rename(place.join("root/boot").join(format!("vmlinuz-{version}")), place.join("vmlinuz"))?;
    fs::remove_dir_all(place.join("root"))?;
    Ok(())
}

/// Newer packages have all of `/lib` below `/usr`.
fn modules_in(kernel: &Path) -> Option<PathBuf> {
    ["root/lib/modules", "root/usr/lib/modules"]
        .map(|folder| kernel.join(folder))
        .into_iter()
        .find(|place| place.exists())
}

fn only_entry(folder: &Path) -> Result<String> {
    let mut entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let entry = entries.next().with_context(|| format!("{} is empty", folder.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

fn vsock_device() -> Result<()> {
    let tools = folder().join("tools");
    if tools.join("bin/vhost-device-vsock").exists() {
        return Ok(());
    }
    println!("building vhost-device-vsock (about a minute, once)");
    let tools = tools.to_string_lossy().into_owned();
    let target = folder().join("tools-target").to_string_lossy().into_owned();
    let version = VHOST_DEVICE_VSOCK;
    let arguments =
        ["install", "--quiet", "vhost-device-vsock", "--version", version, "--locked", "--root", &tools];
    cargo(&arguments, &[("CARGO_TARGET_DIR", &target)])?;
    fs::remove_dir_all(target)?;
    Ok(())
}

/// What the hook in `packaging/initramfs-tools` is called by.
fn initramfs_tools() -> Result<()> {
    let place = folder().join("initramfs-tools");
    match place.join("root/usr/share/initramfs-tools/hook-functions").exists() {
        true => Ok(()),
        false => debian::unpack("initramfs-tools-core", &place),
    }
}

/// Static programs for the guests.
fn static_programs() -> Result<()> {
    // Of the same packages both times, so that what they need is built once.
    let ours = ["-p", "guest-agent", "-p", "host-proxy", "-p", "tests"];
    // It can be stopped after each step of its flow; the tests' only.
    let rehearsal = [&ours[..], &["--features", "guest-agent/rehearsal", "--bin", "hostsnap"]].concat();
    keep(&build_static("guest", &rehearsal)?.join("hostsnap"), "hostsnap-rehearsal")?;
    let built = build_static("guest", &[&ours[..], &["--bins"]].concat())?;
    for program in ["hostsnap", "hostsnapd", "guest-init", "app-writer", "vsock-probe", "stall-probe"] {
        keep(&built.join(program), program)?;
    }
    Ok(())
}

/// One that has not changed keeps its time, and so do the initramfs' that hold it.
fn keep(built: &Path, name: &str) -> Result<()> {
    let place = folder().join("static");
    fs::create_dir_all(&place)?;
    let kept = place.join(name);
    if fs::read(built)? != fs::read(&kept).unwrap_or_default() {
        fs::copy(built, &kept).with_context(|| format!("keep {name}"))?;
    }
    Ok(())
}

/// Builds programs that need no library of the machine that they run on; the folder where they are.
pub(crate) fn build_static(profile: &str, what: &[&str]) -> Result<PathBuf> {
    let target = folder().join("static-target");
    let target_text = target.to_string_lossy().into_owned();
    let triple = concat!(env!("XTASK_ARCH"), "-unknown-linux-gnu");
    let options = ["build", "--quiet", "--profile", profile, "--target", triple];
    let environment =
        [("CARGO_TARGET_DIR", target_text.as_str()), ("RUSTFLAGS", "-C target-feature=+crt-static")];
    cargo(&[&options, what].concat(), &environment)?;
    Ok(target.join(triple).join(profile))
}

/// Man pages and completions, from the command lines themselves.
pub(crate) fn generate_docs() -> Result<()> {
    // The test that compares them writes them where it is told to: no program carries code for it.
    cargo(&["test", "--quiet", "-p", "host-proxy", "--test", "packaging"], &[("HOSTSNAP_BLESS", "1")])
}
