//! Real storage for the contract: image files on XFS and btrfs, and a QEMU that has disks but runs
//! no guest.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use harness::loopfs::{self, Kind, LoopFs};
use harness::process::{Process, paused_qemu};
use host_proxy::drivers::{
    Driver, Exposed, Format, Owner, Source, Volume, btrfs::Btrfs, qemu::Qemu, reflink::Reflink,
};
use host_proxy::vmm::qmp::Qmp;
use protocol::DiskSerial;
use serde_json::json;

pub(crate) const DISK_BYTES: u64 = 8 << 20;

/// Where a driver is tried.
pub(crate) trait Bench {
    /// A fresh instance, as after a restart.
    fn driver(&self) -> Box<dyn Driver>;
    /// Its disks.
    fn volumes(&self) -> Vec<Volume>;
    /// A disk that there is not.
    fn absent(&self) -> Source;
    /// Puts things into the store that are not ours, however much they look so.
    fn leave_foreign(&self) -> Box<dyn Foreign + '_>;
    /// Where a snapshot can be read: as the driver shows it, or, where it has no such ability, as the storage does.
    fn show(&self, owner: Owner, volume: &DiskSerial) -> Exposed {
        self.driver().expose().expect("it can show").expose(owner, volume).unwrap()
    }
    /// What stands there: its first byte, and its size.
    fn read(&self, exposed: &Exposed) -> (u8, u64) {
        let mut file = File::open(path_of(exposed)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        (byte[0], file.seek(SeekFrom::End(0)).unwrap())
    }
    /// Uses a snapshot, as long as what is returned lives.
    fn hold(&self, exposed: &Exposed) -> Box<dyn Held + '_> {
        Box::new(LoopDevice::on(path_of(exposed)))
    }
    /// Writes this byte at the beginning of a disk, as its guest would. Fails if that hangs: I/O must not be left suspended.
    fn write(&self, volume: &Volume, byte: u8);
    /// As `write`, so many bytes from there on: for drivers that tell what changed.
    fn write_at(&self, volume: &Volume, byte: u8, offset: u64, len: usize) {
        write_within(volume.path().unwrap(), byte, offset, len, WRITE_LIMIT);
    }
    /// All bytes of a snapshot.
    fn bytes(&self, exposed: &Exposed) -> Vec<u8> {
        fs::read(path_of(exposed)).unwrap()
    }
    /// Makes a disk larger or smaller, to a multiple of 4 MiB.
    fn resize(&self, volume: &Volume, bytes: u64) {
        File::options().write(true).open(volume.path().unwrap()).unwrap().set_len(bytes).unwrap();
    }
    /// As `driver`, with nothing between: its progress is told while it goes on.
    fn unwatched(&self) -> Box<dyn Driver> {
        self.driver()
    }
    /// Takes the power from the storage and gives it back; `false` where that can't be done, since a drive, not the driver,
    /// keeps what was acknowledged.
    fn lose_power(&self) -> bool {
        false
    }
    /// Leaves no room in the store, as long as what is returned lives; `None` where the store shares
    /// what it snapshots, so that it has no such limit of its own.
    fn fill(&self) -> Option<Box<dyn Filler + '_>>;
}

/// What is not ours in a store; gone when dropped.
pub(crate) trait Foreign {
    /// It must be as it was.
    fn is_untouched(&self);
}

/// How long a guest's write may take, on a busy machine.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// Writes to a file or device, and does not hang with it.
#[track_caller]
pub(crate) fn write_within(path: &Path, byte: u8, offset: u64, len: usize, limit: Duration) {
    let (done, waiting) = mpsc::channel();
    let owned = path.to_owned();
    std::thread::spawn(move || {
        let written = File::options().write(true).open(owned).and_then(|file| {
            file.write_all_at(&vec![byte; len], offset)?;
            file.sync_all()
        });
        let _ = done.send(written);
    });
    match waiting.recv_timeout(limit) {
        Ok(written) => written.unwrap(),
        Err(_) => panic!("a write to {} hangs: I/O was left suspended", path.display()),
    }
}

fn path_of(exposed: &Exposed) -> &Path {
    let Exposed::Path { path, .. } = exposed else { panic!("{exposed:?} is no path") };
    path
}

/// What uses a snapshot; gone when dropped.
pub(crate) trait Held {}

/// A loop device that reads it.
pub(crate) struct LoopDevice(String);

impl LoopDevice {
    pub(crate) fn on(path: &Path) -> Self {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--read-only"]).arg(path);
        Self(loopfs::run(&mut losetup))
    }
}

impl Held for LoopDevice {}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        loopfs::run(Command::new("losetup").arg("-d").arg(self.0.trim()));
    }
}

/// What takes all room; gone when dropped.
pub(crate) trait Filler {}

/// A file that takes all room.
struct FillingFile(PathBuf);

impl Filler for FillingFile {}

impl Drop for FillingFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A file beside our folder, and a folder in it.
pub(crate) struct ForeignFiles {
    beside: PathBuf,
    inside: PathBuf,
}

impl ForeignFiles {
    pub(crate) fn leave(store: &Path) -> Box<dyn Foreign> {
        let made = Self { beside: store.join("somebody-elses"), inside: store.join(".hostsnap/lost+found") };
        fs::write(&made.beside, b"file").unwrap();
        fs::create_dir(&made.inside).unwrap();
        Box::new(made)
    }
}

impl Foreign for ForeignFiles {
    fn is_untouched(&self) {
        assert_eq!(fs::read(&self.beside).unwrap(), b"file");
        assert!(self.inside.is_dir());
    }
}

impl Drop for ForeignFiles {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.beside);
        let _ = fs::remove_dir(&self.inside);
    }
}

pub(crate) fn volume(path: &Path, serial: &str, qmp: Option<PathBuf>) -> Volume {
    Volume {
        serial: serial.parse().unwrap(),
        source: Source::Path(path.to_owned()),
        format: Format::Raw,
        qmp,
    }
}

fn image(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(format!("{name}.img"));
    let file = File::create(&path).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    path
}

/// Image files.
pub(crate) struct Files {
    fs: LoopFs,
    make: fn(PathBuf) -> Box<dyn Driver>,
    volumes: Vec<Volume>,
    /// How long a write may take.
    pub(crate) patience: Duration,
}

impl Files {
    pub(crate) fn reflink() -> Self {
        Self::on(Kind::Xfs, |path| Box::new(Reflink::new(path).unwrap()))
    }

    pub(crate) fn btrfs() -> Self {
        Self::on(Kind::Btrfs, |path| Box::new(Btrfs::new(path).unwrap()))
    }

    /// The store's folder, where the images are too.
    pub(crate) fn folder(&self) -> PathBuf {
        self.fs.path()
    }

    fn on(kind: Kind, make: fn(PathBuf) -> Box<dyn Driver>) -> Self {
        let fs = LoopFs::in_memory(kind, 400);
        let volumes = ["one", "../two"]
            .iter()
            .enumerate()
            .map(|(n, serial)| volume(&image(&fs.path(), &format!("disk{n}")), serial, None));
        let volumes = volumes.collect();
        Self { fs, make, volumes, patience: WRITE_LIMIT }
    }
}

impl Bench for Files {
    fn driver(&self) -> Box<dyn Driver> {
        (self.make)(self.fs.path())
    }

    fn volumes(&self) -> Vec<Volume> {
        self.volumes.clone()
    }

    fn absent(&self) -> Source {
        Source::Path(self.folder().join("absent.img"))
    }

    fn leave_foreign(&self) -> Box<dyn Foreign + '_> {
        ForeignFiles::leave(&self.folder())
    }

    fn write(&self, volume: &Volume, byte: u8) {
        self.write_at(volume, byte, 0, 1 << 20);
    }

    fn write_at(&self, volume: &Volume, byte: u8, offset: u64, len: usize) {
        write_within(volume.path().unwrap(), byte, offset, len, self.patience);
    }

    fn lose_power(&self) -> bool {
        self.fs.lose_power();
        true
    }

    fn fill(&self) -> Option<Box<dyn Filler + '_>> {
        None
    }
}

/// QEMU with two disks, stopped before its first instruction.
pub(crate) struct PausedQemu {
    process: Process,
    folder: tempfile::TempDir,
    store: LoopFs,
    volumes: Vec<Volume>,
    /// The second monitor: writes as a guest would.
    hand: Mutex<Qmp>,
}

impl PausedQemu {
    pub(crate) fn start() -> Self {
        Self::with_disks(&["one", "two"])
    }

    /// As `start`, with disks of these serials.
    pub(crate) fn with_disks(serials: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("hsq-").tempdir_in("/tmp").unwrap();
        let store = LoopFs::new(Kind::Ext4, 64);
        let at = |name: &str| folder.path().join(name);
        let mut command = paused_qemu();
        for name in ["qmp", "hand"] {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", at(name).display()));
        }
        let mut volumes = Vec::new();
        for serial in serials {
            let path = image(folder.path(), serial);
            command.arg("-blockdev").arg(format!(
                "driver=raw,node-name={serial},file.driver=file,file.filename={}",
                path.display()
            ));
            command
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive={serial},serial={serial},id=dev-{serial}"));
            volumes.push(volume(&path, serial, Some(at("qmp"))));
        }
        let mut process = Process::start(&mut command, &at("log"));
        harness::wait::wait_until("QEMU's monitors", Duration::from_secs(60), || {
            process.must_live();
            ["qmp", "hand"].iter().all(|name| std::os::unix::net::UnixStream::connect(at(name)).is_ok())
        });
        let hand = Mutex::new(Qmp::connect(&at("hand"), Duration::from_secs(20)).unwrap());
        Self { process, store, volumes, hand, folder }
    }

    /// Nobody finds the monitor any more; whoever is connected still is.
    pub(crate) fn hide_monitor(&self) {
        fs::rename(self.folder.path().join("qmp"), self.folder.path().join("hidden")).unwrap();
    }

    pub(crate) fn show_monitor(&self) {
        fs::rename(self.folder.path().join("hidden"), self.folder.path().join("qmp")).unwrap();
    }

    pub(crate) fn fill_to_the_last_block(&self) -> harness::loopfs::Filler {
        self.store.fill()
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
        let _ = fs::remove_file(self.folder.path().join("qmp"));
    }
}

impl Bench for PausedQemu {
    fn driver(&self) -> Box<dyn Driver> {
        Box::new(Qemu::new(self.store.path()).unwrap())
    }

    fn volumes(&self) -> Vec<Volume> {
        self.volumes.clone()
    }

    fn absent(&self) -> Source {
        Source::Path(self.store.path().join("absent.img"))
    }

    fn leave_foreign(&self) -> Box<dyn Foreign + '_> {
        ForeignFiles::leave(&self.store.path())
    }

    fn write(&self, volume: &Volume, byte: u8) {
        let device = format!("/machine/peripheral/dev-{}/virtio-backend", volume.serial);
        let line = format!("qemu-io -d {device} \"write -P {byte} 0 1M\"");
        let arguments = json!({ "command-line": line });
        let mut hand = self.hand.lock().unwrap();
        let said = hand.execute("human-monitor-command", arguments, Duration::from_secs(20)).unwrap();
        assert_eq!(said, "", "QEMU complains");
    }

    fn fill(&self) -> Option<Box<dyn Filler + '_>> {
        let path = self.store.path().join("filler");
        let file = File::create(&path).unwrap();
        let room = self.driver().free_bytes().unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, room.saturating_sub(4 << 20))
            .unwrap();
        Some(Box::new(FillingFile(path)))
    }
}
