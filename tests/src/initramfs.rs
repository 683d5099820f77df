//! The guests' root file system: an initramfs of busybox, `guest-init`, modules, and programs copied
//! from this machine with the libraries that they need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cpio::newc;

use crate::assets;
use crate::serial::FOR_DEBIAN;

/// What a guest can do besides the basics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tools {
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// The device mapper: LVM, LUKS.
    DeviceMapper,
    /// md.
    Md,
    /// AF_VSOCK within the guest.
    VsockLoopback,
    /// ZFS, as `cargo xtask setup` built it.
    Zfs,
    /// To be a host itself: QEMU, vhost-vsock.
    Host,
    /// To serve disks over NBD: QEMU's programs for images, for a Debian.
    Nbd,
}

impl Tools {
    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Xfs => &["/sbin/mkfs.xfs"],
            Self::Btrfs => &["/bin/mkfs.btrfs", "/bin/btrfs"],
            Self::DeviceMapper => &["/sbin/lvm", "/sbin/dmsetup", "/sbin/cryptsetup", "/usr/sbin/thin_delta"],
            Self::Md => &["/sbin/mdadm"],
            Self::VsockLoopback | Self::Zfs | Self::Nbd => &[],
            Self::Host => &["/usr/bin/qemu-system-x86_64"],
        }
    }

    const fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Xfs => &["xfs"],
            Self::Btrfs => &["btrfs"],
            Self::DeviceMapper => &[
                "dm-mod",
                "dm-thin-pool",
                "dm-snapshot",
                "dm-crypt",
                "xts",
                "ecb",
                "aes_generic",
                "sha256_generic",
            ],
            Self::Md => &["md-mod", "raid1", "raid0"],
            Self::VsockLoopback => &["vsock_loopback"],
            Self::Zfs => &["zfs"],
            Self::Host => &["vhost_vsock", "kvm_amd", "kvm_intel"],
            Self::Nbd => &[],
        }
    }
}

const BASE_PROGRAMS: &[&str] = &[
    "/sbin/mkfs.ext4",
    "/sbin/blkid",
    "/bin/lsblk",
    "/sbin/fsfreeze",
    "/bin/mount",
    "/bin/umount",
    "/sbin/losetup",
];
const BASE_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "nvme",
    "ext4",
    "loop",
    "overlay",
    "vmw_vsock_virtio_transport",
];

/// Nobody but lvm makes the nodes of its volumes there; newer ones (2.03.31) trust that somebody does.
const WITHOUT_UDEV: &[u8] = b"activation { verify_udev_operations = 1 }\n";

/// An initramfs, made once for each set of tools and kept with the assets.
pub fn of(
    tools: &BTreeSet<Tools>,
    extra: &[(PathBuf, String)],
    more_programs: &[(PathBuf, String)],
) -> io::Result<PathBuf> {
    let mut entries = Entries::default();
    entries.add_file(&which("busybox")?, "/bin/busybox")?;
    entries.add_link("busybox", "/bin/sh");
    entries.add_file(&assets::guest_program("guest-init"), "/init")?;
    for name in ["hostsnap", "app-writer"] {
        entries.add_file(&assets::guest_program(name), &format!("/usr/bin/{name}"))?;
    }
    let programs = BASE_PROGRAMS.iter().chain(tools.iter().flat_map(|tools| tools.programs()));
    for program in programs {
        let path = which(Path::new(program).file_name().and_then(|name| name.to_str()).expect("a name"))?;
        entries.add_program(&path, program)?;
    }
    if tools.contains(&Tools::DeviceMapper) {
        entries.0.insert("/etc/lvm/lvm.conf".to_owned(), Entry::Text(WITHOUT_UDEV.into()));
    }
    if tools.contains(&Tools::Host) {
        for folder in ["/usr/share/qemu", "/usr/share/seabios"] {
            entries.add_firmware(Path::new(folder))?;
        }
    }
    if tools.contains(&Tools::Zfs) {
        let programs = assets::zfs();
        entries.add_tree(&programs, &programs)?;
    }
    if tools.contains(&Tools::Nbd) {
        for program in ["qemu-img", "qemu-io", "qemu-storage-daemon"] {
            entries.add_program_for_debian(&which(program)?)?;
        }
    }
    let modules: Vec<&str> =
        BASE_MODULES.iter().chain(tools.iter().flat_map(|tools| tools.modules())).copied().collect();
    entries.add_modules(&modules)?;
    for (from, to) in extra {
        entries.add_file(from, to)?;
    }
    for (from, to) in more_programs {
        entries.add_program(from, to)?;
    }
    entries.write()
}

fn which(program: &str) -> io::Result<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
        .ok_or_else(|| io::Error::other(format!("{program} is missing: run `cargo xtask setup`")))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Entry {
    File(PathBuf),
    Text(Vec<u8>),
    Link(String),
}

#[derive(Default)]
struct Entries(BTreeMap<String, Entry>);

impl Entries {
    fn add_file(&mut self, from: &Path, to: &str) -> io::Result<()> {
        self.0.insert(to.to_owned(), Entry::File(from.canonicalize()?));
        Ok(())
    }

    fn add_link(&mut self, to: &str, at: &str) {
        self.0.insert(at.to_owned(), Entry::Link(to.to_owned()));
    }

    /// A program and, by the dynamic linker's own word, its libraries.
    fn add_program(&mut self, from: &Path, to: &str) -> io::Result<()> {
        self.add_file(from, to)?;
        let listed = Command::new("ldd").arg(from).output()?;
        for word in
            String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            let place = word.trim_end_matches(':');
            self.add_file(Path::new(place), place)?;
        }
        Ok(())
    }

    /// A program and its libraries for a whole Debian of this machine's release, which may lack some of them.
    fn add_program_for_debian(&mut self, program: &Path) -> io::Result<()> {
        let mut needed = Self::default();
        needed.add_program(program, &program.to_string_lossy())?;
        for (place, entry) in needed.0 {
            self.0.insert(format!("{FOR_DEBIAN}{place}"), entry);
        }
        Ok(())
    }

    /// Files for a whole Debian: at the same place there, unless it has them.
    fn add_tree(&mut self, root: &Path, folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                self.add_tree(root, &path)?;
            } else {
                let inside = path.strip_prefix(root).expect("it is below");
                self.add_file(&path, &format!("{FOR_DEBIAN}/{}", inside.display()))?;
            }
        }
        Ok(())
    }

    fn add_firmware(&mut self, folder: &Path) -> io::Result<()> {
        const WANTED: [&str; 6] = [
            "bios-256k.bin",
            "kvmvapic.bin",
            "linuxboot_dma.bin",
            "linuxboot.bin",
            "vgabios-stdvga.bin",
            "bios.bin",
        ];
        for name in WANTED {
            let path = folder.join(name);
            if path.exists() {
                self.add_file(&path, &path.to_string_lossy())?;
            }
        }
        Ok(())
    }

    /// Modules with all that they need.
    fn add_modules(&mut self, wanted: &[&str]) -> io::Result<()> {
        let folder = assets::modules();
        let version = fs::read_to_string(folder.join("version"))?.trim().to_owned();
        let depends = fs::read_to_string(folder.join("modules.dep"))?;
        let by_name: BTreeMap<String, (&str, Vec<&str>)> = depends
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| (module_name(path), (path, needs.split_whitespace().collect())))
            .collect();
        let builtin = fs::read_to_string(folder.join("modules.builtin"))?;
        let is_builtin = |name: &str| builtin.lines().any(|line| module_name(line) == name);
        let mut list = String::new();
        for name in wanted {
            let plain = name.replace('-', "_");
            if is_builtin(&plain) {
                continue;
            }
            let (path, needs) = by_name
                .get(&plain)
                .ok_or_else(|| io::Error::other(format!("the kernel {version} has no module {name}")))?;
            for file in std::iter::once(path).chain(needs) {
                self.add_file(&folder.join(file), &format!("/lib/modules/{version}/{file}"))?;
            }
            list += &format!("{plain}\n");
        }
        for table in ["modules.dep", "modules.alias", "modules.symbols", "modules.builtin", "modules.softdep"]
        {
            if folder.join(table).exists() {
                self.add_file(&folder.join(table), &format!("/lib/modules/{version}/{table}"))?;
            }
        }
        self.0.insert("/modules.list".to_owned(), Entry::Text(list.into_bytes()));
        Ok(())
    }

    /// The archive is named by what is in it, so that it is made once.
    fn write(self) -> io::Result<PathBuf> {
        let mut hasher = crc32fast::Hasher::new();
        for (name, entry) in &self.0 {
            hasher.update(format!("{name}{entry:?}").as_bytes());
            if let Entry::File(path) = entry {
                let meta = fs::metadata(path)?;
                hasher.update(format!("{}{}{}", meta.len(), meta.mtime(), meta.mtime_nsec()).as_bytes());
            }
        }
        let folder = assets::root().join("initramfs");
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{:08x}.cpio", hasher.finalize()));
        if path.exists() {
            return Ok(path);
        }
        let new = tempfile::NamedTempFile::new_in(&folder)?;
        let mut archive = BufWriter::new(new.as_file().try_clone()?);
        let mut folders = BTreeSet::new();
        for (name, entry) in &self.0 {
            for parent in Path::new(name).ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
                let parent = parent.to_string_lossy().trim_start_matches('/').to_owned();
                if !parent.is_empty() && folders.insert(parent.clone()) {
                    newc::Builder::new(&parent).mode(0o40_755).write(&mut archive, 0).finish()?;
                }
            }
            entry.write(name.trim_start_matches('/'), &mut archive)?;
        }
        newc::trailer(&mut archive)?;
        archive.flush()?;
        drop(archive);
        new.persist(&path)?;
        Ok(path)
    }
}

impl Entry {
    fn write(&self, name: &str, archive: &mut impl Write) -> io::Result<()> {
        let builder = newc::Builder::new(name);
        let length = |len: usize| u32::try_from(len).map_err(|_| io::Error::other("a file is too large"));
        match self {
            Self::File(path) => {
                let mode = fs::metadata(path)?.mode() & 0o777;
                let size = length(usize::try_from(fs::metadata(path)?.len()).unwrap_or(usize::MAX))?;
                let mut writer = builder.mode(0o100_000 | mode | 0o444).write(archive, size);
                io::copy(&mut File::open(path)?, &mut writer)?;
                writer.finish()?;
            }
            Self::Text(text) => {
                let mut writer = builder.mode(0o100_644).write(archive, length(text.len())?);
                writer.write_all(text)?;
                writer.finish()?;
            }
            Self::Link(to) => {
                let mut writer = builder.mode(0o120_777).write(archive, length(to.len())?);
                writer.write_all(to.as_bytes())?;
                writer.finish()?;
            }
        }
        Ok(())
    }
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}
