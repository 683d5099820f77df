//! What most stories begin with: a machine with an ext4 data disk, an application that writes to it,
//! and the service.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::hostsnapd::{self, Hostsnapd, Machine};
use harness::loopfs::{self, Kind, LoopFs};
use harness::records;
use harness::vm::{Plan, Vm, blank_image};
use harness::wait::wait_until;
use serde_json::Value;

const DISK_MIB: u64 = 128;
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// A machine, its store, and the service.
pub(crate) struct Stage {
    pub(crate) vm: Vm,
    pub(crate) service: Hostsnapd,
    pub(crate) store: LoopFs,
    driver: &'static str,
}

impl Stage {
    /// One machine with these disks, on an XFS store by the driver reflink. A serial that ends so has a qcow2 image.
    pub(crate) fn set(name: &str, serials: &[&str]) -> Self {
        Self::planned(Plan::new(name), "reflink", serials, "")
    }

    /// As `set`, by this driver.
    pub(crate) fn by(driver: &'static str, name: &str, serials: &[&str]) -> Self {
        Self::planned(Plan::new(name), driver, serials, "")
    }

    /// As `by`, with more of the machine and more lines of its `[[vm]]`.
    pub(crate) fn planned(plan: Plan, driver: &'static str, serials: &[&str], more: &str) -> Self {
        Self::sized(plan, driver, serials, more, DISK_MIB)
    }

    /// As `planned`, with disks of this size.
    pub(crate) fn sized(
        plan: Plan,
        driver: &'static str,
        serials: &[&str],
        more: &str,
        disk_mib: u64,
    ) -> Self {
        let kind = match driver {
            "reflink" => Kind::Xfs,
            "btrfs" => Kind::Btrfs,
            _ => Kind::Ext4,
        };
        let store = LoopFs::new(kind, 1024.max(4 * disk_mib));
        let images: Vec<_> = serials
            .iter()
            .map(|serial| match serial.ends_with(".qcow2") {
                true => blank_image(&store.path(), serial, disk_mib),
                false => blank_image(&store.path(), &format!("{serial}.img"), disk_mib),
            })
            .collect();
        let plan = images.iter().zip(serials).fold(plan, |plan, (image, serial)| plan.disk(image, serial));
        let vm = plan.boot();
        let disks = serials.iter().zip(&images).map(|(serial, image)| (*serial, image.as_path())).collect();
        let machine = Machine { vm: &vm, name: "app", disks, more };
        let service = Hostsnapd::start(&hostsnapd::config(driver, &store.path(), &[machine]));
        Self { vm, service, store, driver }
    }

    /// Makes an ext4 file system on a device and mounts it.
    pub(crate) fn mount(&self, device: &str, at: &str) {
        self.vm.guest.sh(&format!("mkfs.ext4 -q {device} && mkdir -p {at} && mount {device} {at}"));
    }

    /// Takes a snapshot from inside the guest.
    #[track_caller]
    pub(crate) fn create(&self, arguments: &str) -> Value {
        self.vm.guest.json(&format!("hostsnap --json create {arguments}"))
    }

    /// The image of a disk in a snapshot.
    pub(crate) fn image(&self, snapshot: &Value, serial: &str) -> PathBuf {
        let id = snapshot["id"].as_str().expect("an id");
        let file = match self.driver {
            "btrfs" => format!("disk-{serial}"),
            _ => format!("{serial}.img"),
        };
        self.store.path().join(".hostsnap").join(self.vm.uuid()).join(id).join(file)
    }

    /// Whether a snapshot that is not whole yet holds a copy of this disk.
    pub(crate) fn was_cut(&self, serial: &str) -> bool {
        let folder = self.store.path().join(".hostsnap").join(self.vm.uuid());
        self.on_storage().iter().any(|name| {
            let image = folder.join(name).join(format!("{serial}.img"));
            name.ends_with(".partial")
                && std::fs::metadata(image).is_ok_and(|meta| meta.len() == DISK_MIB << 20)
        })
    }

    /// What the storage holds of snapshots, whole or not.
    pub(crate) fn on_storage(&self) -> Vec<String> {
        let folder = self.store.path().join(".hostsnap").join(self.vm.uuid());
        let Ok(read) = std::fs::read_dir(folder) else { return Vec::new() };
        read.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// The application.
pub(crate) struct Writer<'a> {
    vm: &'a Vm,
    status: String,
}

impl<'a> Writer<'a> {
    /// Starts it, writing to this file in the guest.
    pub(crate) fn start(vm: &'a Vm, file: &str) -> Self {
        let status = format!("/run/status-{}", file.replace('/', "-"));
        vm.guest.spawn(&format!("exec app-writer run {file} {status}"));
        let writer = Self { vm, status };
        wait_until("the application writes", LIMIT, || writer.acknowledged() > 10);
        writer
    }

    /// Starts one that writes each record to the first file, then to the second.
    pub(crate) fn start_pair(vm: &'a Vm, first: &str, second: &str) -> Self {
        let status = "/run/status-pair".to_owned();
        vm.guest.spawn(&format!("exec app-writer pair {first} {second} {status}"));
        let writer = Self { vm, status };
        wait_until("the application writes", LIMIT, || writer.acknowledged() > 10);
        writer
    }

    /// How many records were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        let text = self.vm.guest.run(&format!("cat {}", self.status)).stdout;
        text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Waits until it has written more.
    pub(crate) fn goes_on(&self) {
        let before = self.acknowledged();
        wait_until("the application goes on", LIMIT, || self.acknowledged() > before);
    }
}

/// Mounts an image read-only on the host and counts the records in a file of it. The file system
/// must need no recovery.
pub(crate) fn records_in(image: &Path, file: &str) -> u64 {
    let header = loopfs::run(Command::new("dumpe2fs").arg("-h").arg(image));
    assert!(!header.contains("needs_recovery"), "the journal was not empty:\n{header}");
    count_records(image, file)
}

/// As `records_in`, of a crash-consistent image: its journal is replayed first, in a copy.
pub(crate) fn records_after_recovery(image: &Path, file: &str) -> u64 {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("copy");
    std::fs::copy(image, &copy).expect("a copy");
    // 1: errors were corrected (e2fsck(8)); replaying the journal is no error, or that one.
    let checked = Command::new("e2fsck").arg("-fy").arg(&copy).output().expect("e2fsck");
    assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
    count_records(&copy, file)
}

fn count_records(image: &Path, file: &str) -> u64 {
    loopfs::run(Command::new("e2fsck").arg("-fn").arg(image));
    let folder = tempfile::tempdir().expect("a folder");
    loopfs::run(Command::new("mount").args(["-o", "ro,loop,noload"]).arg(image).arg(folder.path()));
    let counted = records::verify(&folder.path().join(file));
    loopfs::run(Command::new("umount").arg(folder.path()));
    counted.expect("the records")
}
