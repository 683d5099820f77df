//! OpenZFS for the guests: Debian's own sources (`contrib`) as modules of the very kernel that they boot,
//! built on this machine in a root of their own, and Debian's programs. Kept beside the kernel; a
//! machine that can't have it says why, and the tests that need it count as skipped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian;

/// What builds it, and what is built. Not Debian's essential packages: nothing is configured in there.
const PACKAGES: &[&str] = &[
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "file",
    "findutils",
    "gawk",
    "gcc",
    "grep",
    "kmod",
    "libelf1",
    "make",
    "perl",
    "sed",
    "tar",
    "zfs-dkms",
    "zfsutils-linux",
];
/// The programs that a guest needs, and what udev needs to name the volumes.
const PROGRAMS: &[&str] = &["sbin/zfs", "sbin/zpool", "lib/udev/zvol_id", "lib/udev/rules.d/60-zvol.rules"];
/// What of their libraries a Debian does not have without them.
const LIBRARIES: &[&str] = &["libzfs", "libnvpair.", "libuutil.", "libtirpc."];
/// Changed with what is done below, so that it is made anew.
const EDITION: u32 = 1;
/// Run in the root. Without debugging information it takes half the time. Where the headers come with a `vmlinux` it is for
/// type information (BTF) alone, which wants one more program and is of no use here.
const BUILD: &str = "\
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin KCFLAGS=-g0
ln -sf gcc /usr/bin/cc
ln -sf gawk /usr/bin/awk
rm -f /usr/src/linux-headers-$1/vmlinux
cd /usr/src/zfs-*
./configure --disable-dependency-tracking --prefix=/usr --with-config=kernel \\
    --with-linux=\"$(echo /usr/src/linux-headers-*-common)\" --with-linux-obj=/usr/src/linux-headers-$1
make -j\"$(nproc)\"
";

/// Makes modules and programs, unless they are there. `vm` is `target/vm`, where the kernel is already.
pub(crate) fn make(vm: &Path) -> Result<()> {
    let folder = vm.join("zfs");
    let version = fs::read_to_string(vm.join("kernel/modules/version")).context("find the guests' kernel")?;
    let source = debian::source().context("find the mirror in apt's sources")?;
    let key = format!("{EDITION} {version} {source}");
    let modules = vm.join("kernel/modules/updates");
    if modules.exists() && fs::read_to_string(folder.join("key")).is_ok_and(|kept| kept == key) {
        return Ok(());
    }
    println!("building OpenZFS for the guests (some minutes, once)");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let root = folder.join("root");
    bootstrap(&source, &root).context("fetch OpenZFS from Debian's contrib")?;
    headers(&version, &folder).context("fetch the headers of the guests' kernel")?;
    build(&version, &root, &folder.join("build.log"))?;
    keep_modules(&version, &root, &vm.join("kernel/modules"))?;
    keep_programs(&root, &folder.join("programs"))?;
    fs::remove_dir_all(&root)?;
    fs::write(folder.join("key"), key)?;
    Ok(())
}

/// Unpacks the packages, without installing them: nothing is to be built by itself.
fn bootstrap(source: &str, root: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=extract", "--format=directory"]);
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    command.arg("--aptopt=Acquire::Languages \"none\"");
    command.arg(format!("--include={}", PACKAGES.join(",")));
    run(command.arg("").arg(root).arg(format!("{source} contrib")))
}

/// The headers come from where the kernel came from: security updates have a version of their own.
fn headers(version: &str, folder: &Path) -> Result<()> {
    let package = format!("linux-headers-{version}");
    let output = Command::new("apt-cache").args(["depends", &package]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let wanted = |name: &&str| name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-");
    // `unpack` puts them into `root` below the folder.
    debian::unpack(&package, folder)?;
    depends.filter(wanted).try_for_each(|name| debian::unpack(name, folder))
}

fn build(version: &str, root: &Path, log: &Path) -> Result<()> {
    fs::write(root.join("build.sh"), BUILD)?;
    // Mounted for this alone: nothing of it is left on this machine.
    let script = "mount -t proc proc \"$0/proc\" && mount --bind /dev \"$0/dev\" && exec chroot \"$0\" sh /build.sh \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(root).arg(version.trim());
    let output = File::create(log)?;
    command.stdout(output.try_clone()?).stderr(output);
    run(&mut command).with_context(|| format!("build OpenZFS, see {}", log.display()))
}

fn keep_modules(version: &str, root: &Path, modules: &Path) -> Result<()> {
    let updates = modules.join("updates");
    let _ = fs::remove_dir_all(&updates);
    let new = modules.join("updates.new");
    let _ = fs::remove_dir_all(&new);
    fs::create_dir_all(&new)?;
    let source = only(root, "usr/src", "zfs-")?;
    // Up to 2.1 each in a folder of its own, then all in one.
    let made = source.join("module");
    let folders = fs::read_dir(&made)?.flatten().map(|entry| entry.path()).chain([made.clone()]);
    let built: Vec<PathBuf> = folders
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ko"))
        .collect();
    ensure!(built.iter().any(|path| path.ends_with("zfs.ko")), "OpenZFS was built, and there is no zfs.ko");
    for module in built {
        let name = module.file_name().expect("a file has a name");
        run(Command::new("strip").arg("-g").arg("-o").arg(new.join(name)).arg(&module))?;
    }
    fs::rename(new, updates)?;
    // depmod wants the folders of an installed kernel.
    let scratch = root.join("depmod/lib/modules");
    fs::create_dir_all(&scratch)?;
    std::os::unix::fs::symlink(modules.canonicalize()?, scratch.join(version.trim()))?;
    run(Command::new("depmod").arg("-b").arg(root.join("depmod")).arg(version.trim()))
}

/// Copies what a guest needs to where it is in a Debian.
fn keep_programs(root: &Path, programs: &Path) -> Result<()> {
    let keep = |file: &Path| -> Result<()> {
        let to = programs.join(file.strip_prefix(root)?);
        fs::create_dir_all(to.parent().expect("it is below the folder"))?;
        fs::copy(file, &to).with_context(|| format!("keep {}", file.display()))?;
        Ok(())
    };
    for program in PROGRAMS {
        // Newer ones are below /usr.
        let place =
            [root.join(program), root.join("usr").join(program)].into_iter().find(|path| path.exists());
        keep(&place.with_context(|| format!("find {program} of zfsutils-linux"))?)?;
    }
    let triple = concat!(env!("XTASK_ARCH"), "-linux-gnu");
    for folder in ["lib", "usr/lib"].map(|lib| root.join(lib).join(triple)) {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if LIBRARIES.iter().any(|library| name.starts_with(library)) && name.contains(".so.") {
                keep(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// The one entry of a folder that begins so.
fn only(root: &Path, folder: &str, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(root.join(folder))?.flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .with_context(|| format!("find {prefix}* in {folder}"))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("run {program}"))?;
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}
