//! A machine with the same file on two disks of one store, a third disk to copy to, and a snapshot of the first.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::assets;
use harness::hostsnapd::{self, Hostsnapd, Machine};
use harness::loopfs::{Kind, LoopFs};
use harness::vm::{Plan, Vm, blank_image};
use rustix::fs::{Advice, fadvise};

use crate::Driver;
use crate::figures::What;

/// busybox has one of its own, with another buffer.
const CP: &str = "/usr/bin/plain-cp";
/// How much is changed before the disk goes back, in MiB.
const CHANGED_MIB: u64 = 16;
const DISKS: [&str; 3] = ["data", "twin", "target"];

/// How much is compared: an emulated machine takes longer for it than for the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    All,
    TheChanged,
}

impl Compared {
    /// All at the first time, and then what was changed.
    pub(crate) const fn at(run: usize) -> Self {
        if run == 0 { Self::All } else { Self::TheChanged }
    }
}

/// Everything that a measurement needs.
pub(crate) struct Scene {
    vm: Vm,
    id: String,
    /// What the file is read from: the twin's image, and what the snapshot is in.
    images: [PathBuf; 2],
    /// A copy of the snapshot, to be overwritten by it.
    scratch: PathBuf,
    // Dropped in this order: the service, then what it uses.
    _service: Hostsnapd,
    _store: LoopFs,
}

impl Scene {
    /// Boots it, writes the files and takes the snapshot.
    pub(crate) fn set(driver: Driver, mib: u64, parent: &Path) -> Result<Self> {
        let kind = match driver {
            Driver::Reflink => Kind::Xfs,
            Driver::Btrfs => Kind::Btrfs,
            Driver::Qemu => Kind::Ext4,
        };
        // A file system needs some room for itself.
        let disk_mib = mib + mib / 8 + 64;
        let store = LoopFs::within(parent, kind, 512 + 5 * disk_mib + disk_mib / 2);
        let images = DISKS.map(|name| blank_image(&store.path(), &format!("{name}.img"), disk_mib));
        let mut plan = Plan::new(&format!("use-{}", driver.as_str()))
            .memory_mib(1024)
            .slots(1)
            .file(&assets::asset("release/hostsnap"), "/usr/bin/hostsnap")
            .program(Path::new("/bin/cp"), CP);
        for (image, serial) in images.iter().zip(DISKS) {
            plan = plan.disk(image, serial);
        }
        let vm = plan.boot();
        let disks = DISKS.into_iter().zip(images.iter().map(PathBuf::as_path)).collect();
        let machine = Machine { vm: &vm, name: "app", disks, more: "" };
        let config = hostsnapd::config(driver.as_str(), &store.path(), &[machine]);
        let service = Hostsnapd::start_program(assets::asset("release/hostsnapd"), &config);
        for (device, at) in ["vda", "vdb", "vdc"].into_iter().zip(DISKS) {
            vm.guest
                .sh(&format!("mkfs.ext4 -q /dev/{device} && mkdir -p /{at} && mount /dev/{device} /{at}"));
        }
        let write = format!(
            "dd if=/dev/urandom of=/data/file bs=1M count={mib} 2>/dev/null && cp /data/file /twin/file && sync && \
             mkdir -p /mnt"
        );
        let written = vm.guest.spawn(&write).wait_within(Duration::from_secs(1800));
        anyhow::ensure!(written.status == 0, "{write}: {}", written.stderr);
        let id = vm.guest.json("hostsnap --json create /data")["id"].as_str().context("an id")?.to_owned();
        let file = if driver == Driver::Btrfs { "disk-data" } else { "data.img" };
        let snapshot = store.path().join(".hostsnap").join(vm.uuid()).join(&id).join(file);
        let [_, twin, _] = images;
        let scratch = store.path().join("scratch.img");
        let images = [twin, snapshot];
        Ok(Self { vm, id, images, scratch, _service: service, _store: store })
    }

    /// Does it; how long it took.
    pub(crate) fn runs(&self, what: What) -> Duration {
        let id = &self.id;
        let command = match what {
            What::Empty => "true".to_owned(),
            What::Attach => format!(
                "hostsnap attach {id} >/dev/null && for disk in /sys/block/vd*; do \
                 grep -q ^hs- $disk/serial && head -c 4096 /dev/${{disk##*/}} >/dev/null; done; true"
            ),
            What::Detach => format!("hostsnap detach {id}"),
            What::Mount => format!("hostsnap mount {id} /mnt --path /data"),
            What::Umount => "hostsnap umount /mnt".to_owned(),
            What::PlainCp => format!("{CP} /twin/file /target/file && sync"),
            What::OurCp => format!("hostsnap cp {id}:/data/file /target/file && sync"),
            What::OurRestore => format!("hostsnap restore {id} data --no-safety --remount"),
            What::BareRestore => unreachable!("the host does that"),
        };
        let begun = Instant::now();
        let output = self.vm.guest.spawn(&command).wait_within(Duration::from_secs(1800));
        let took = begun.elapsed();
        assert_eq!(output.status, 0, "{command}: {}", output.stderr);
        took
    }

    /// Neither the guest nor its host has anything of the file in memory, and no copy is there.
    pub(crate) fn forget_what_was_read(&self) -> Result<()> {
        self.vm.guest.sh("rm -f /target/file && sync && echo 3 > /proc/sys/vm/drop_caches");
        for image in &self.images {
            let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }

    /// A copy that is fast and wrong is none.
    pub(crate) fn copy_is_right(&self, compared: Compared) {
        self.are_the_same("/target/file /data/file", compared);
    }

    fn are_the_same(&self, files: &str, compared: Compared) {
        let bytes = match compared {
            Compared::All => String::new(),
            Compared::TheChanged => format!("-n {}", CHANGED_MIB << 20),
        };
        let same =
            self.vm.guest.spawn(&format!("cmp {bytes} {files}")).wait_within(Duration::from_secs(1800));
        assert_eq!(same.status, 0, "{files}: {}", same.stderr);
    }

    /// The disk, and the image that the host overwrites, are not as in the snapshot, in as many places.
    pub(crate) fn change_the_disk(&self) -> Result<()> {
        let change = format!(
            "dd if=/dev/zero of=/data/file bs=1M count={CHANGED_MIB} conv=notrunc 2>/dev/null && sync"
        );
        self.vm.guest.sh(&change);
        let scratch = File::options().write(true).create(true).truncate(false).open(&self.scratch)?;
        for mib in 0..CHANGED_MIB {
            scratch.write_all_at(&[0x5a; 1 << 20], mib << 20)?;
        }
        scratch.sync_all().context("sync the image to overwrite")
    }

    /// The storage's own way: the image becomes the snapshot's, durably.
    pub(crate) fn overwrite(&self) -> Result<Duration> {
        let begun = Instant::now();
        let mut from = File::open(&self.images[1])?;
        let mut to = File::options().read(true).write(true).open(&self.scratch)?;
        if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
            std::io::copy(&mut from, &mut to)?;
        }
        to.sync_all()?;
        Ok(begun.elapsed())
    }

    /// As [`Self::copy_is_right`].
    pub(crate) fn restore_is_right(&self, what: What, compared: Compared) {
        if what == What::OurRestore {
            return self.are_the_same("/data/file /twin/file", compared);
        }
        let same = Command::new("cmp").arg(&self.scratch).arg(&self.images[1]).status();
        assert!(same.is_ok_and(|status| status.success()), "{what:?}: it is not what the snapshot holds");
    }
}
