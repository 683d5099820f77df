//! A QEMU that runs no guest and has one disk, a qcow2 image with another below it, in the ways that a disk can be given to
//! QEMU.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use harness::loopfs::run;
use harness::process::{Process, paused_qemu};
use host_proxy::drivers::{Driver, Exposed, Format, Owner, Source, Volume, qemu::Qemu};
use host_proxy::vmm::qmp::Qmp;
use serde_json::{Value, json};

use super::super::{DISK_BYTES, owner, plan, settle, soon};

const LIMIT: Duration = Duration::from_secs(20);
/// What is no path where a protocol, an option or another argument is expected.
const NAME: &str = "json: a disk,1=x.qcow2";

/// How the disk is given to QEMU.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    Blockdev,
    Drive,
    Scsi,
    IoThread,
    ReadOnly,
}

pub(crate) struct Machine {
    process: Option<Process>,
    folder: tempfile::TempDir,
    pub(crate) volume: Volume,
    device: &'static str,
    hand: Mutex<Option<Qmp>>,
}

pub(crate) fn qemu_img(arguments: &[&str]) -> String {
    run(Command::new("qemu-img").args(arguments))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

impl Machine {
    /// It runs. Its image has an internal snapshot too.
    pub(crate) fn start(shape: Shape) -> Self {
        let folder = tempfile::Builder::new().prefix("hsq-").tempdir_in("/tmp").unwrap();
        let image = folder.path().join(NAME);
        Self::start_with(shape, folder, image)
    }

    /// As `start`, with its image in this folder.
    pub(crate) fn start_in(shape: Shape, images: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("hsq-").tempdir_in("/tmp").unwrap();
        Self::start_with(shape, folder, images.join(NAME))
    }

    fn start_with(shape: Shape, folder: tempfile::TempDir, image: PathBuf) -> Self {
        let base = folder.path().join("base.qcow2");
        let size = DISK_BYTES.to_string();
        fs::create_dir(folder.path().join("store")).unwrap();
        qemu_img(&["create", "-q", "-f", "qcow2", text(&base), &size]);
        run(Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -P 5 0 8M", text(&base)]));
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&base), text(&image)]);
        qemu_img(&["snapshot", "-c", "kept", text(&image)]);
        let volume = Volume {
            serial: "one".parse().unwrap(),
            source: Source::Path(image),
            format: Format::Qcow2,
            qmp: Some(folder.path().join("qmp")),
        };
        let device = match shape {
            Shape::Scsi => "/machine/peripheral/dev",
            _ => "/machine/peripheral/dev/virtio-backend",
        };
        let mut machine = Self { process: None, folder, volume, device, hand: Mutex::new(None) };
        machine.boot(shape);
        machine
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn image(&self) -> &Path {
        self.volume.path().unwrap()
    }

    pub(crate) fn boot(&mut self, shape: Shape) {
        let mut command = paused_qemu();
        for name in ["qmp", "hand"] {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", self.at(name).display()));
        }
        match shape {
            Shape::Drive => {
                let file = text(self.image()).replace(',', ",,");
                command.arg("-drive").arg(format!("if=none,id=one,format=qcow2,file={file}"));
            }
            _ => {
                let file = json!({ "driver": "file", "filename": self.image() });
                let is_read_only = matches!(shape, Shape::ReadOnly);
                let node =
                    json!({ "driver": "qcow2", "node-name": "one", "read-only": is_read_only, "file": file });
                command.arg("-blockdev").arg(node.to_string());
            }
        }
        match shape {
            Shape::Scsi => command.args(["-device", "virtio-scsi-pci,id=scsi"]),
            Shape::IoThread => command.args(["-object", "iothread,id=io"]),
            Shape::Blockdev | Shape::Drive | Shape::ReadOnly => &mut command,
        };
        let device = match shape {
            Shape::Scsi => "scsi-hd,drive=one,serial=one,id=dev",
            Shape::IoThread => "virtio-blk-pci,drive=one,serial=one,id=dev,iothread=io",
            Shape::Blockdev | Shape::Drive | Shape::ReadOnly => "virtio-blk-pci,drive=one,serial=one,id=dev",
        };
        command.args(["-device", device]);
        let mut process = Process::start(&mut command, &self.at("log"));
        harness::wait::wait_until("QEMU's monitors", Duration::from_secs(60), || {
            process.must_live();
            ["qmp", "hand"].iter().all(|name| std::os::unix::net::UnixStream::connect(self.at(name)).is_ok())
        });
        *self.hand.lock().unwrap() = Some(Qmp::connect(&self.at("hand"), LIMIT).unwrap());
        self.process = Some(process);
    }

    /// It is gone, as by a kill.
    pub(crate) fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
        *self.hand.lock().unwrap() = None;
        for name in ["qmp", "hand"] {
            let _ = fs::remove_file(self.at(name));
        }
    }

    #[track_caller]
    pub(crate) fn ask(&self, command: &str, arguments: Value) -> Value {
        let mut hand = self.hand.lock().unwrap();
        hand.as_mut().expect("it runs").execute(command, arguments, LIMIT).unwrap()
    }

    /// Writes, as its guest would, and flushes.
    #[track_caller]
    pub(crate) fn write(&self, byte: u8, offset: u64, len: usize) {
        for command in [&format!("write -P {byte} {offset} {len}"), "flush"] {
            let line = format!("qemu-io -d {} \"{command}\"", self.device);
            let said = self.ask("human-monitor-command", json!({ "command-line": line }));
            assert_eq!(said, "", "QEMU complains");
        }
    }

    pub(crate) fn driver(&self) -> Box<dyn Driver> {
        Box::new(Qemu::new(self.at("store")).unwrap())
    }

    /// Its disk, by its own monitor.
    pub(crate) fn direct(&self) -> Volume {
        Volume { qmp: Some(self.at("qmp")), ..self.volume.clone() }
    }

    /// Whether something else than its image is below its device.
    pub(crate) fn is_covered(&self) -> bool {
        let blocks = self.ask("query-block", json!({}));
        let nodes =
            blocks.as_array().unwrap().iter().filter_map(|block| block["inserted"]["node-name"].as_str());
        nodes.into_iter().any(|name| name.starts_with("hr"))
    }

    pub(crate) fn take(&self) -> Owner {
        let owner = owner();
        let mut cut =
            self.driver().prepare(&plan(owner, &[self.direct()]), soon()).unwrap().cut(soon()).unwrap();
        settle(&mut *cut).unwrap();
        cut.seal(b"final").unwrap();
        owner
    }

    pub(crate) fn snapshot(&self, owner: Owner) -> PathBuf {
        let exposed = self.driver().expose().unwrap().expose(owner, &self.volume.serial).unwrap();
        let Exposed::Path { path, format: Format::Raw } = exposed else {
            panic!("no raw image: {exposed:?}")
        };
        path
    }

    /// All bytes that its guest would read.
    pub(crate) fn reads(&self) -> Vec<u8> {
        let owner = self.take();
        let bytes = fs::read(self.snapshot(owner)).unwrap();
        self.driver().delete(owner).unwrap();
        bytes
    }

    /// Nothing of a restore is left in QEMU or in the store.
    #[track_caller]
    pub(crate) fn has_nothing_left(&self) {
        assert_eq!(self.ask("query-jobs", json!({})), json!([]));
        let nodes = self.ask("query-named-block-nodes", json!({ "flat": true }));
        let nodes: Vec<_> =
            nodes.as_array().unwrap().iter().map(|node| node["node-name"].as_str().unwrap()).collect();
        assert_eq!(nodes.iter().filter(|name| name.starts_with("hr")).count(), 0, "{nodes:?}");
        // A QEMU whose guest is paused closes no descriptors.
        self.ask("cont", json!({}));
        drop(Qmp::connect(&self.at("qmp"), LIMIT).unwrap());
        harness::wait::wait_until("no descriptors are left", LIMIT, || {
            self.ask("query-fdsets", json!({})) == json!([])
        });
        self.ask("stop", json!({}));
        let names = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names(self.at("store/.hostsnap")).collect();
        assert_eq!(left, [owner().vm.to_string().as_str()]);
    }

    /// The image, which nobody has open, holds these bytes; and is whole, and the same file, with all that is in it.
    #[track_caller]
    pub(crate) fn holds(&self, bytes: &[u8], inode: u64) {
        let raw = self.at("expected");
        fs::write(&raw, bytes).unwrap();
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(self.image())]);
        qemu_img(&["check", "-q", "-r", "leaks", text(self.image())]);
        assert_eq!(fs::metadata(self.image()).unwrap().ino(), inode);
        let info = qemu_img(&["info", text(self.image())]);
        assert!(info.contains("base.qcow2") && info.contains(" kept "), "{info}");
    }
}
