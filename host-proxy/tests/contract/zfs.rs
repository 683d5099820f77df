//! Real storage for the contract: a pool on a loop device, in it a zvol and a dataset that holds an image.
//! The kernel must have ZFS: `harness::within`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use harness::loopfs::run;
use harness::wait::wait_until;
use host_proxy::drivers::zfs::Zfs;
use host_proxy::drivers::{Driver, Source, Volume};

use crate::bench::{Bench, DISK_BYTES, Filler, Foreign, volume};

/// A pool of its own, of 256 MiB, mounted; the store is its dataset `vms`.
pub(crate) struct Tank {
    folder: tempfile::TempDir,
    device: String,
    /// Commands that take its device away.
    undo: Vec<Vec<String>>,
    pool: String,
    volumes: Vec<Volume>,
}

const POOL_BYTES: u64 = 256 << 20;

/// A loop device on a file in a folder.
fn pool_device() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("pool");
    File::create(&image).unwrap().set_len(POOL_BYTES).unwrap();
    let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image)).trim().to_owned();
    (folder, device)
}

pub(crate) fn zfs(arguments: &[&str]) -> String {
    run(Command::new("zfs").args(arguments))
}

pub(crate) fn zpool(arguments: &[&str]) -> String {
    run(Command::new("zpool").args(arguments))
}

impl Tank {
    pub(crate) fn new() -> Self {
        let (folder, device) = pool_device();
        Self::on(folder, device.clone(), vec![vec!["losetup".to_owned(), "-d".to_owned(), device]])
    }

    /// On a device whose table can be changed: its name.
    pub(crate) fn on_the_device_mapper() -> (Self, String) {
        let (folder, device) = pool_device();
        let name = "hostsnap-test-pool".to_owned();
        let sectors = POOL_BYTES / 512;
        let table = format!("0 {sectors} linear {device} 0");
        run(Command::new("dmsetup").args(["create", &name, "--table", &table]));
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let undo = vec![words(&["dmsetup", "remove", "--force", &name]), words(&["losetup", "-d", &device])];
        (Self::on(folder, format!("/dev/mapper/{name}"), undo), name)
    }

    fn on(folder: tempfile::TempDir, device: String, undo: Vec<Vec<String>>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pool = format!("tank{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let at = format!("mountpoint={}", folder.path().join("tank").display());
        zpool(&["create", "-O", &at, "-O", "compression=off", &pool, &device]);
        let mut bench = Self { folder, device, undo, pool, volumes: Vec::new() };
        zfs(&["create", &bench.store()]);
        zfs(&["create", &bench.at("images")]);
        let zvol = bench.make("one", DISK_BYTES);
        let image = bench.mount_point("images").join("two.img");
        File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
        bench.volumes = vec![volume(&zvol, "one", None), volume(&image, "../two", None)];
        bench
    }

    /// Exports the pool and imports it anew.
    pub(crate) fn import_again(&self, options: &[&str]) {
        zpool(&["export", &self.pool]);
        zpool(&[&["import", "-d", &self.device][..], options, &[&self.pool]].concat());
        for volume in &self.volumes {
            let path = volume.path().unwrap();
            wait_until("the volume is there", Duration::from_secs(60), || path.exists());
        }
    }

    pub(crate) fn pool(&self) -> &str {
        &self.pool
    }

    /// The store's dataset.
    pub(crate) fn store(&self) -> String {
        format!("{}/vms", self.pool)
    }

    /// A dataset in the store.
    pub(crate) fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.store())
    }

    pub(crate) fn mount_point(&self, name: &str) -> PathBuf {
        self.folder.path().join("tank/vms").join(name)
    }

    /// Makes a sparse zvol in the store; its device.
    pub(crate) fn make(&self, name: &str, bytes: u64) -> PathBuf {
        zfs(&["create", "-s", "-V", &bytes.to_string(), &self.at(name)]);
        let path = Path::new("/dev/zvol").join(self.at(name));
        wait_until("udev names the volume", Duration::from_secs(60), || path.exists());
        path
    }

    /// The names of all snapshots, clones and volumes.
    pub(crate) fn names(&self) -> Vec<String> {
        let told = zfs(&["list", "-H", "-r", "-t", "all", "-o", "name", &self.pool]);
        told.lines().map(str::to_owned).collect()
    }

    /// The names of properties of ours that the store's dataset has.
    pub(crate) fn notes(&self) -> String {
        let told = zfs(&["get", "-H", "-s", "local", "-o", "property", "all", &self.store()]);
        told.lines().filter(|name| name.starts_with("hostsnap:")).collect()
    }
}

impl Drop for Tank {
    fn drop(&mut self) {
        let _ = Command::new("zpool").args(["destroy", "-f", &self.pool]).output();
        for words in &self.undo {
            let _ = Command::new(&words[0]).args(&words[1..]).output();
        }
    }
}

impl Bench for Tank {
    fn driver(&self) -> Box<dyn Driver> {
        Box::new(Zfs::new(self.store().parse().unwrap()).unwrap())
    }

    fn volumes(&self) -> Vec<Volume> {
        self.volumes.clone()
    }

    fn absent(&self) -> Source {
        Source::Path(Path::new("/dev/zvol").join(self.at("absent")))
    }

    fn write(&self, volume: &Volume, byte: u8) {
        let file = File::options().write(true).open(volume.path().unwrap()).unwrap();
        file.write_all_at(&[byte; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
    }

    fn resize(&self, volume: &Volume, bytes: u64) {
        let path = volume.path().unwrap();
        match path.strip_prefix("/dev/zvol") {
            Ok(name) => drop(zfs(&["set", &format!("volsize={bytes}"), name.to_str().unwrap()])),
            Err(_) => File::options().write(true).open(path).unwrap().set_len(bytes).unwrap(),
        }
    }

    fn leave_foreign(&self) -> Box<dyn Foreign + '_> {
        let id = "00000000-0000-4000-8000-00000000f0e1";
        let one = self.at("one");
        let names =
            [format!("{one}@notes"), format!("{one}@hostsnap.{id}"), format!("{one}@hostsnap.{id}.0")];
        for name in &names {
            zfs(&["snapshot", name]);
        }
        zfs(&["create", &self.at(&format!("hostsnap.{id}"))]);
        // Somebody set it on the dataset: all snapshots of it show it.
        zfs(&["set", "hostsnap:record.0=1:{}", &one]);
        zfs(&["set", "hostsnap:vm=3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01", &names[1]]);
        Box::new(Foreigners { bench: self, names, dataset: self.at(&format!("hostsnap.{id}")) })
    }

    fn fill(&self) -> Option<Box<dyn Filler + '_>> {
        let path = self.folder.path().join("tank/filler");
        let file = File::create(&path).unwrap();
        let block = vec![1; 1 << 20];
        let mut at = 0;
        while file.write_all_at(&block, at).is_ok() {
            at += 1 << 20;
        }
        assert!(at > 100 << 20, "the pool is full");
        let _ = file.sync_all();
        zpool(&["sync", &self.pool]);
        Some(Box::new(Filling { path, pool: &self.pool }))
    }
}

struct Foreigners<'a> {
    bench: &'a Tank,
    names: [String; 3],
    dataset: String,
}

impl Foreign for Foreigners<'_> {
    fn is_untouched(&self) {
        let names = self.bench.names();
        for name in self.names.iter().chain([&self.dataset]) {
            assert!(names.contains(name), "{name} is gone: {names:?}");
        }
    }
}

impl Drop for Foreigners<'_> {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.dataset]) {
            let _ = Command::new("zfs").args(["destroy", name]).output();
        }
        let _ = Command::new("zfs").args(["inherit", "hostsnap:record.0", &self.bench.at("one")]).output();
    }
}

struct Filling<'a> {
    path: PathBuf,
    pool: &'a str,
}

impl Filler for Filling<'_> {}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        // In a full pool a file can be truncated, not always removed (zfs(4), "spa_slop_shift").
        let _ = File::options().write(true).open(&self.path).and_then(|file| file.set_len(0));
        let _ = fs::remove_file(&self.path);
        let _ = Command::new("zpool").args(["sync", self.pool]).output();
    }
}
