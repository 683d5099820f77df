//! Volumes of the tests' own CSI plugin: files on XFS, and snapshots that are clones of them.

mod faults;
mod hostpath;
pub(crate) mod server;
mod shown;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use harness::loopfs::{Kind, LoopFs};
use host_proxy::drivers::csi::{Csi, Place};
use host_proxy::drivers::{Driver, Exposed, Format, Owner, Source, Volume};
use protocol::DiskSerial;

use self::server::{Offers, Server};
use super::DISK_BYTES;
use super::bench::{Bench, Filler, Foreign, ForeignFiles, Held, LoopDevice};

/// A plugin with two volumes.
pub(crate) struct Array {
    pub(crate) server: Server,
    pub(crate) timeout: Duration,
    fs: LoopFs,
}

/// The volumes, by the serials of the disks.
const VOLUMES: [(&str, &str); 2] = [("one", "vol-1"), ("../two", "vol-2")];

impl Array {
    pub(crate) fn start(offers: Offers) -> Self {
        let fs = LoopFs::new(Kind::Xfs, 400);
        let at = |name: &str| fs.path().join(name);
        fs::create_dir(at("store")).unwrap();
        let server = Server::start(&at("csi.sock"), &fs.path(), offers);
        for (_, volume) in VOLUMES.iter().chain(&[("", "vol-other")]) {
            File::create(at(volume)).unwrap().set_len(DISK_BYTES).unwrap();
            server.state().volumes.insert((*volume).to_owned(), at(volume));
        }
        Self { server, timeout: Duration::from_secs(20), fs }
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            endpoint: self.server.socket.clone(),
            node_endpoint: None,
            folder: self.folder(),
            parameters: BTreeMap::new(),
            volume_parameters: BTreeMap::new(),
            secrets_file: None,
            timeout: self.timeout,
            group_snapshots: true,
        }
    }

    /// Where the driver keeps what CSI has no place for.
    pub(crate) fn folder(&self) -> PathBuf {
        self.fs.path().join("store")
    }

    /// How many snapshots the storage has.
    pub(crate) fn count(&self) -> usize {
        self.server.state().snapshots.len()
    }

    /// How many volumes it has made of snapshots.
    pub(crate) fn made(&self) -> usize {
        self.server.state().made.len()
    }
}

impl Bench for Array {
    fn driver(&self) -> Box<dyn Driver> {
        Box::new(Csi::new(self.place()).unwrap())
    }

    fn volumes(&self) -> Vec<Volume> {
        let volume = |(serial, id): &(&str, &str)| Volume {
            serial: serial.parse().unwrap(),
            source: Source::Published { volume: (*id).to_owned(), path: self.fs.path().join(id) },
            format: Format::Raw,
            qmp: None,
        };
        VOLUMES.iter().map(volume).collect()
    }

    fn absent(&self) -> Source {
        // A device that is there, and a volume that is not.
        Source::Published { volume: "absent".to_owned(), path: self.fs.path().join("vol-1") }
    }

    fn leave_foreign(&self) -> Box<dyn Foreign + '_> {
        let mut state = self.server.state();
        for (name, volume) in STRANGERS {
            state.strange(name, volume);
        }
        Box::new(Strangers { array: self, files: ForeignFiles::leave(&self.folder()) })
    }

    fn show(&self, owner: Owner, serial: &DiskSerial) -> Exposed {
        if let Some(able) = self.driver().expose() {
            return able.expose(owner, serial).unwrap();
        }
        let (_, volume) = VOLUMES.iter().find(|(one, _)| *one == serial.as_str()).unwrap();
        let kept = self.server.find(&format!("hostsnap-{}", owner.snapshot), volume).unwrap();
        Exposed::Path { path: kept.file, format: Format::Raw }
    }

    fn hold(&self, exposed: &Exposed) -> Box<dyn Held + '_> {
        let Exposed::Path { path, .. } = exposed else { panic!("{exposed:?}") };
        let mut state = self.server.state();
        let Some(id) = state.snapshots.iter().find(|one| one.file == *path).map(|one| one.id.clone()) else {
            return Box::new(LoopDevice::on(path));
        };
        state.in_use.insert(id.clone());
        Box::new(InUse(self, id))
    }

    fn write(&self, volume: &Volume, byte: u8) {
        let file = File::options().write(true).open(volume.path().unwrap()).unwrap();
        file.write_all_at(&[byte; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
    }

    fn fill(&self) -> Option<Box<dyn Filler + '_>> {
        self.server.state().is_full = true;
        Some(Box::new(Full(self)))
    }
}

/// Snapshots that others asked for, named as ours are.
const STRANGERS: [(&str, &str); 3] = [
    ("hostsnap-00000000-0000-0000-0000-0000000000aa-1", "vol-other"),
    ("hostsnap-00000000-0000-0000-0000-0000000000aa-2", "vol-1"),
    ("nightly", "vol-1"),
];

struct Strangers<'a> {
    array: &'a Array,
    files: Box<dyn Foreign>,
}

impl Foreign for Strangers<'_> {
    fn is_untouched(&self) {
        self.files.is_untouched();
        for (name, volume) in STRANGERS {
            assert!(self.array.server.find(name, volume).is_some(), "{name}");
        }
    }
}

impl Drop for Strangers<'_> {
    fn drop(&mut self) {
        self.array.server.state().forget(|one| STRANGERS.iter().any(|(name, _)| *name == one.name));
    }
}

struct InUse<'a>(&'a Array, String);

impl Held for InUse<'_> {}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.server.state().in_use.remove(&self.1);
    }
}

struct Full<'a>(&'a Array);

impl Filler for Full<'_> {}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        self.0.server.state().is_full = false;
    }
}
