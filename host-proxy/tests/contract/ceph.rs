//! Images in a pool of a real Ceph cluster, written to by a client of its own, as a QEMU does.

use std::process::Command;
use std::time::Duration;

use harness::ceph::{Ceph, POOL, USER};
use harness::loopfs::run;
use harness::wait::wait_until;
use host_proxy::drivers::rbd::{Place, Rbd};
use host_proxy::drivers::{Driver, Exposed, Format, Source, Volume};

use super::DISK_BYTES;
use super::bench::{Bench, Filler, Foreign, Held};

/// A pool with two images.
pub(crate) struct Pool {
    pub(crate) ceph: Ceph,
}

/// The images, by the serials of the disks.
const IMAGES: [(&str, &str); 2] = [("one", "db1-one"), ("../two", "db1-two")];

impl Pool {
    pub(crate) fn start() -> Self {
        Self::on(Ceph::start())
    }

    pub(crate) fn on(ceph: Ceph) -> Self {
        for (_, image) in IMAGES {
            ceph.rbd(&["create", image, "--size", &format!("{DISK_BYTES}B")]);
        }
        Self { ceph }
    }

    /// As the guide says, but that stalls are noticed soon.
    pub(crate) fn place(&self) -> Place {
        Place {
            pool: POOL.to_owned(),
            namespace: None,
            conf: self.ceph.conf(),
            user: USER.to_owned(),
            timeout: Duration::from_secs(3),
        }
    }
}

pub(crate) fn volume(image: &str, serial: &str) -> Volume {
    Volume {
        serial: serial.parse().unwrap(),
        source: Source::Volume(image.to_owned()),
        format: Format::Raw,
        qmp: None,
    }
}

impl Bench for Pool {
    fn driver(&self) -> Box<dyn Driver> {
        Box::new(Rbd::new(Place { timeout: Duration::from_secs(15), ..self.place() }).unwrap())
    }

    fn volumes(&self) -> Vec<Volume> {
        IMAGES.iter().map(|(serial, image)| volume(image, serial)).collect()
    }

    fn absent(&self) -> Source {
        Source::Volume("absent".to_owned())
    }

    fn leave_foreign(&self) -> Box<dyn Foreign + '_> {
        ForeignImages::leave(&self.ceph)
    }

    /// By QEMU, which is who would open it.
    fn read(&self, exposed: &Exposed) -> (u8, u64) {
        let Exposed::Node(node) = exposed else { panic!("{exposed:?} is no node") };
        let name = format!("json:{node}");
        let info = run(Command::new("qemu-img").args(["info", "--output=json", &name]));
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let dump = run(Command::new("qemu-io").args(["-r", "-c", "read -v 0 512", &name]));
        let byte =
            dump.lines().find_map(|line| line.strip_prefix("00000000:")).unwrap_or_else(|| panic!("{dump}"));
        (
            u8::from_str_radix(byte.trim().split(' ').next().unwrap(), 16).unwrap(),
            info["virtual-size"].as_u64().unwrap(),
        )
    }

    fn hold(&self, exposed: &Exposed) -> Box<dyn Held + '_> {
        let Exposed::Node(node) = exposed else { panic!("{exposed:?} is no node") };
        let parent =
            format!("{POOL}/{}@{}", node["image"].as_str().unwrap(), node["snapshot"].as_str().unwrap());
        self.ceph.rbd(&["clone", "--rbd-default-clone-format", "2", &parent, &format!("{POOL}/clone")]);
        Box::new(Clone(&self.ceph))
    }

    fn bytes(&self, exposed: &Exposed) -> Vec<u8> {
        let Exposed::Node(node) = exposed else { panic!("{exposed:?} is no node") };
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let name = format!("json:{node}");
        run(Command::new("qemu-img").args(["convert", "-O", "raw", &name]).arg(scratch.path()));
        std::fs::read(scratch.path()).unwrap()
    }

    fn write(&self, volume: &Volume, byte: u8) {
        self.write_at(volume, byte, 0, 1 << 20);
    }

    fn write_at(&self, volume: &Volume, byte: u8, offset: u64, len: usize) {
        let image = volume.source.to_string();
        let node = format!(
            "json:{{\"driver\":\"rbd\",\"pool\":\"{POOL}\",\"image\":\"{image}\",\"conf\":\"{}\",\"user\":\"{USER}\"}}",
            self.ceph.conf().display()
        );
        run(Command::new("qemu-io").args([
            "-c",
            &format!("write -P {byte} {offset} {len}"),
            "-c",
            "flush",
            &node,
        ]));
    }

    fn resize(&self, volume: &Volume, bytes: u64) {
        let image = volume.source.to_string();
        self.ceph.rbd(&["resize", "--no-progress", "--allow-shrink", "--size", &format!("{bytes}B"), &image]);
    }

    fn fill(&self) -> Option<Box<dyn Filler + '_>> {
        self.ceph.ceph(&["osd", "pool", "set-quota", POOL, "max_bytes", "1"]);
        // The monitor looks at quotas only every few seconds.
        wait_until("the pool is full", QUOTA_LIMIT, || self.ceph.is_full());
        Some(Box::new(Quota(&self.ceph)))
    }
}

/// A clone of a snapshot.
struct Clone<'a>(&'a Ceph);

impl Held for Clone<'_> {}

impl Drop for Clone<'_> {
    fn drop(&mut self) {
        self.0.rbd(&["rm", "--no-progress", "clone"]);
    }
}

/// How long the monitor may take to notice.
const QUOTA_LIMIT: Duration = Duration::from_secs(60);

/// A quota that the pool is over.
struct Quota<'a>(&'a Ceph);

impl Filler for Quota<'_> {}

impl Drop for Quota<'_> {
    fn drop(&mut self) {
        self.0.ceph(&["osd", "pool", "set-quota", POOL, "max_bytes", "0"]);
        wait_until("the pool is full no more", QUOTA_LIMIT, || !self.0.is_full());
    }
}

/// A snapshot named as ours are, of another image; a snapshot of our image that another tool made; and a copy of our
/// metadata, as a clone has it.
struct ForeignImages<'a>(&'a Ceph);

const FOREIGN: &str = "foreign@hostsnap.00000000-0000-0000-0000-0000000000aa";

impl<'a> ForeignImages<'a> {
    fn leave(ceph: &'a Ceph) -> Box<dyn Foreign + 'a> {
        ceph.rbd(&["create", "foreign", "--size", "8M"]);
        ceph.rbd(&["snap", "create", "--no-progress", FOREIGN]);
        ceph.rbd(&["snap", "create", "--no-progress", "db1-one@by-hand"]);
        let ours = ceph.rbd(&["image-meta", "list", "db1-one", "--format", "json"]);
        let ours: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&ours).unwrap();
        let (key, text) = ours.iter().find(|(key, _)| key.starts_with("hostsnap.")).unwrap();
        ceph.rbd(&["image-meta", "set", "foreign", key, text.as_str().unwrap()]);
        ceph.rbd(&["image-meta", "set", "db1-one", "hostsnap.notes", "by hand"]);
        Box::new(Self(ceph))
    }
}

impl Foreign for ForeignImages<'_> {
    fn is_untouched(&self) {
        assert_eq!(self.0.snapshots("db1-one"), ["by-hand"]);
        assert_eq!(self.0.snapshots("foreign").len(), 1);
        assert_eq!(self.0.rbd(&["image-meta", "get", "db1-one", "hostsnap.notes"]).trim(), "by hand");
        assert!(self.0.rbd(&["image-meta", "list", "foreign"]).contains("hostsnap."));
    }
}

impl Drop for ForeignImages<'_> {
    fn drop(&mut self) {
        self.0.rbd(&["image-meta", "remove", "db1-one", "hostsnap.notes"]);
        self.0.rbd(&["snap", "rm", "--no-progress", "db1-one@by-hand"]);
        self.0.rbd(&["snap", "rm", "--no-progress", FOREIGN]);
        self.0.rbd(&["rm", "--no-progress", "foreign"]);
    }
}
