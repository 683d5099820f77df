//! A host: one machine with a disk in each of two stores, the service over them, and power that can be
//! cut. The file systems of state and stores lie in files of one outer file system, which clones a
//! file at one instant: a clone holds what was given to the disk and nothing that was still in memory.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::loopfs::{Kind, LoopFs, run};
use harness::wait::wait_until;
use protocol::PORT;
use serde_json::Value;

use super::guest::{Guest, hello};
use super::served::Folder;
use super::tracer::{Before, Fault, Traced};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
pub(crate) const IMAGE_BYTES: u64 = 1 << 20;

/// A file system on a disk of the host.
pub(crate) struct Disk {
    image: PathBuf,
    pub(crate) mount: PathBuf,
    kind: Kind,
}

impl Disk {
    fn new(shelf: &Path, kind: Kind, mib: u64) -> Self {
        let at = |suffix: &str| shelf.join(format!("{}{suffix}", kind.as_str()));
        let disk = Self { image: at(".img"), mount: at(""), kind };
        fs::File::create(&disk.image).unwrap().set_len(mib << 20).unwrap();
        let mkfs: &[&str] = match kind {
            Kind::Btrfs => &["mkfs.btrfs", "-q"],
            _ => &["mkfs.xfs", "-q"],
        };
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&disk.image));
        fs::create_dir(&disk.mount).unwrap();
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("mount")
            .args(["-t", self.kind.as_str(), "-o", "loop"])
            .args([&self.image, &self.mount]));
    }

    fn unmount(&self) {
        run(Command::new("umount").arg(&self.mount));
    }

    /// What the disk holds now, to be found after a power cut.
    fn hold(&self) {
        let held = fs::File::create(self.held()).unwrap();
        rustix::fs::ioctl_ficlone(&held, fs::File::open(&self.image).unwrap()).unwrap();
    }

    fn held(&self) -> PathBuf {
        self.image.with_extension("held")
    }

    /// What was held is on the disk again, and nothing else.
    fn lose_power(&self) {
        self.unmount();
        fs::rename(self.held(), &self.image).unwrap();
        self.mount();
    }
}

/// What holds the disks at an instant.
pub(crate) struct Power(Vec<Disk>);

impl Power {
    pub(crate) fn cut(&self) {
        self.0.iter().for_each(Disk::hold);
    }
}

pub(crate) struct Host {
    pub(crate) service: Option<Traced>,
    pub(crate) disks: [Disk; 2],
    pub(crate) folder: Folder,
    _shelf: LoopFs,
}

impl Host {
    pub(crate) fn new() -> Self {
        let shelf = LoopFs::in_memory(Kind::Xfs, 1200);
        let disks = [Disk::new(&shelf.path(), Kind::Xfs, 320), Disk::new(&shelf.path(), Kind::Btrfs, 256)];
        let folder = Folder::new("hsc-");
        let host = Self { service: None, disks, folder, _shelf: shelf };
        for image in host.images() {
            fs::write(image, vec![0; usize::try_from(IMAGE_BYTES).unwrap()]).unwrap();
        }
        let [files, tree] = host.disks.each_ref().map(|disk| disk.mount.display());
        let [one, two] = host.images().map(|image| image.display().to_string());
        let text = format!(
            "[service]\nlisten_vsock = false\nstate_dir = \"{files}/state\"\ncontrol_socket = \"{}\"\n\
             [[store]]\nname = \"files\"\ndriver = \"reflink\"\npath = \"{files}\"\nmin_free = \"1MiB\"\n\
             [[store]]\nname = \"tree\"\ndriver = \"btrfs\"\npath = \"{tree}\"\nmin_free = \"1MiB\"\n\
             [[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"{}\"\n\
             [vm.quota]\nsnapshots = 1000\nper_hour = 1000000\n\
             [[vm.disk]]\nserial = \"one\"\nstore = \"files\"\npath = \"{one}\"\nformat = \"raw\"\n\
             [[vm.disk]]\nserial = \"two\"\nstore = \"tree\"\npath = \"{two}\"\nformat = \"raw\"\n",
            host.folder.at("control").display(),
            host.folder.at("vsock").display(),
        );
        fs::write(host.folder.at("hostsnapd.toml"), text).unwrap();
        host
    }

    pub(crate) fn images(&self) -> [PathBuf; 2] {
        [self.disks[0].mount.join("one.img"), self.disks[1].mount.join("two.img")]
    }

    /// Both disks are filled with this byte, as their guest would.
    pub(crate) fn write(&self, byte: u8) {
        for image in self.images() {
            let file = fs::File::options().write(true).open(image).unwrap();
            file.write_all_at(&vec![byte; usize::try_from(IMAGE_BYTES).unwrap()], 0).unwrap();
            file.sync_all().unwrap();
        }
    }

    /// The power of this host, to be cut from elsewhere.
    pub(crate) fn power(&self) -> Power {
        Power(
            self.disks
                .iter()
                .map(|disk| Disk { image: disk.image.clone(), mount: disk.mount.clone(), kind: disk.kind })
                .collect(),
        )
    }

    /// Starts the service, and waits until it is up or has ended. Whether it is up.
    pub(crate) fn start(&mut self, fault: Option<(Before, Fault)>) -> bool {
        self.service = Some(Traced::start(self.folder.serve(), &self.folder.at("log"), fault));
        let mut up = false;
        wait_until("hostsnapd is up, or has ended", LIMIT, || {
            up = self.answers();
            up || self.service().has_ended()
        });
        up
    }

    /// Starts it, with nothing that happens to it.
    #[track_caller]
    pub(crate) fn must_start(&mut self) {
        assert!(self.start(None), "it ended: {}", self.folder.printed());
    }

    pub(crate) fn service(&self) -> &Traced {
        self.service.as_ref().expect("it was started")
    }

    fn answers(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.guests_socket()).is_ok()
            && self.folder.admin(&["vms"]).status.success()
    }

    pub(crate) fn kill(&mut self) {
        self.service.take().expect("it was started").kill();
    }

    pub(crate) fn catalog(&self) -> PathBuf {
        self.disks[0].mount.join("state/catalog.sqlite")
    }

    /// The catalog's file is gone, and what SQLite keeps beside it.
    pub(crate) fn lose_catalog(&self) {
        for beside in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(self.catalog().with_extension(format!("sqlite{beside}")));
        }
        assert!(!self.catalog().exists());
    }

    /// The disks are as they were when the power was cut.
    pub(crate) fn lose_power(&mut self) {
        self.kill();
        self.disks.iter().for_each(Disk::lose_power);
    }

    fn guests_socket(&self) -> PathBuf {
        self.folder.at(&format!("vsock_{PORT}"))
    }

    /// A conversation that was begun; `None` where the host is gone.
    pub(crate) fn greeted(&self) -> Option<Guest> {
        let mut guest = Guest::connect(&self.guests_socket());
        guest.send(&hello(None));
        guest.hears().map(|_| guest)
    }

    /// All snapshots that the service tells of.
    #[track_caller]
    pub(crate) fn listed(&self) -> Vec<Value> {
        let output = self.folder.admin(&["list", "--json"]);
        assert!(
            output.status.success(),
            "{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.folder.printed()
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What one store holds of snapshots, whole or not, by name.
    pub(crate) fn held_in(&self, store: usize) -> Vec<String> {
        let Ok(read) = fs::read_dir(self.disks[store].mount.join(".hostsnap").join(UUID)) else {
            return Vec::new();
        };
        let mut names: Vec<_> =
            read.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Whether a snapshot holds two disks full of this byte.
    pub(crate) fn restores(&self, id: &str, byte: u8) -> bool {
        let of = |store: usize, path: &str| {
            self.disks[store].mount.join(".hostsnap").join(UUID).join(id).join(path)
        };
        let expected = vec![byte; usize::try_from(IMAGE_BYTES).unwrap()];
        [of(0, "one.img"), of(1, "tree/two.img")]
            .iter()
            .all(|path| fs::read(path).is_ok_and(|read| read == expected))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.service.take());
        for disk in &self.disks {
            let _ = Command::new("umount").arg("-l").arg(&disk.mount).status();
        }
    }
}
