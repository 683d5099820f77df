//! Real storage for the contract: thin volumes in a pool that lies on a loop device. The kernel must
//! have a device mapper: `harness::within`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::loopfs::run;
use host_proxy::drivers::lvm_thin::{LvmThin, Watermarks};
use host_proxy::drivers::{Driver, Source, Volume};

use crate::bench::{Bench, DISK_BYTES, Filler, Foreign, volume};

/// A volume group of its own, with a pool of 256 MiB and two disks in it.
pub(crate) struct ThinVolumes {
    _folder: tempfile::TempDir,
    device: String,
    vg: String,
    volumes: Vec<Volume>,
}

pub(crate) fn lvm(arguments: &[&str]) -> String {
    run(Command::new("lvm").args(arguments).env("LVM_SUPPRESS_FD_WARNINGS", "1"))
}

impl ThinVolumes {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("pv");
        File::create(&image).unwrap().set_len(400 << 20).unwrap();
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image)).trim().to_owned();
        let vg = format!("hostsnap-test-{}", std::process::id());
        lvm(&["vgcreate", "-q", &vg, &device]);
        lvm(&["lvcreate", "-q", "--type", "thin-pool", "-L", "256M", "-n", "thin", &vg]);
        let mut bench = Self { _folder: folder, device, vg, volumes: Vec::new() };
        for (name, serial) in [("one", "one"), ("two", "../two")] {
            let path = bench.make(name, DISK_BYTES);
            bench.volumes.push(volume(&path, serial, None));
        }
        bench
    }

    /// The pool's name.
    pub(crate) fn pool(&self) -> String {
        self.lv("thin")
    }

    /// A volume's or snapshot's full name.
    pub(crate) fn lv(&self, name: &str) -> String {
        format!("{}/{name}", self.vg)
    }

    /// Makes a thin volume; its device.
    pub(crate) fn make(&self, name: &str, bytes: u64) -> PathBuf {
        lvm(&["lvcreate", "-q", "--thin", "-V", &format!("{bytes}b"), "-n", name, &self.pool()]);
        Path::new("/dev").join(&self.vg).join(name)
    }

    /// What one column says of one volume.
    pub(crate) fn ask(&self, name: &str, column: &str) -> String {
        lvm(&["lvs", "--noheadings", "-o", column, &self.lv(name)]).trim().to_owned()
    }

    /// The names of all volumes, in lvm's order.
    pub(crate) fn names(&self) -> Vec<String> {
        let told = lvm(&["lvs", "--noheadings", "-o", "lv_name", &self.vg]);
        told.split_whitespace().map(str::to_owned).collect()
    }

    /// The volume group's name.
    pub(crate) fn vg(&self) -> &str {
        &self.vg
    }
}

impl Drop for ThinVolumes {
    fn drop(&mut self) {
        let _ = Command::new("vgremove").args(["-q", "-f", &self.vg]).output();
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

impl Bench for ThinVolumes {
    fn driver(&self) -> Box<dyn Driver> {
        Box::new(LvmThin::new(self.pool().parse().unwrap(), Watermarks::default()).unwrap())
    }

    fn volumes(&self) -> Vec<Volume> {
        self.volumes.clone()
    }

    fn absent(&self) -> Source {
        Source::Path(Path::new("/dev").join(&self.vg).join("absent"))
    }

    fn write(&self, volume: &Volume, byte: u8) {
        self.write_at(volume, byte, 0, 1 << 20);
    }

    fn resize(&self, volume: &Volume, bytes: u64) {
        let path = volume.path().unwrap().to_str().unwrap();
        lvm(&["lvresize", "-q", "--yes", "--force", "-L", &format!("{bytes}b"), path]);
    }

    fn leave_foreign(&self) -> Box<dyn Foreign + '_> {
        let id = "00000000-0000-4000-8000-00000000f0e1";
        let names = ["notes".to_owned(), format!("hostsnap.{id}.0"), format!("hostsnap.{id}")];
        for name in &names {
            self.make(name, 4 << 20);
        }
        // Somebody tagged it, but not as we do.
        lvm(&["lvchange", "-q", "--addtag", "hostsnap", &self.lv(&names[1])]);
        Box::new(ForeignVolumes { bench: self, names })
    }

    fn fill(&self) -> Option<Box<dyn Filler + '_>> {
        let path = self.make("filler", 256 << 20);
        let file = File::options().write(true).open(path).unwrap();
        let block = vec![1; 4 << 20];
        for at in 0..60 {
            file.write_all_at(&block, at * (4 << 20)).unwrap();
        }
        file.sync_all().unwrap();
        Some(Box::new(FillingVolume(self)))
    }
}

struct ForeignVolumes<'a> {
    bench: &'a ThinVolumes,
    names: [String; 3],
}

impl Foreign for ForeignVolumes<'_> {
    fn is_untouched(&self) {
        for name in &self.names {
            assert_eq!(self.bench.ask(name, "lv_active"), "active", "{name}");
        }
    }
}

impl Drop for ForeignVolumes<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("lvremove").args(["-q", "-f", &self.bench.lv(name)]).output();
        }
    }
}

struct FillingVolume<'a>(&'a ThinVolumes);

impl Filler for FillingVolume<'_> {}

impl Drop for FillingVolume<'_> {
    fn drop(&mut self) {
        let _ = Command::new("lvremove").args(["-q", "-f", &self.0.lv("filler")]).output();
    }
}
