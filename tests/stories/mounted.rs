//! A snapshot looked into by the guest that it is of, through everything: the guest's `mount`, `ls`, `cp` and `umount`,
//! the host's service, QEMU's hot plug. After each, nothing is left of it: no disk, no block node, no clone, no attachment.

use std::collections::BTreeSet;
use std::fs;

use harness::initramfs::Tools;
use harness::monitor::Monitor;
use harness::vm::Plan;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::stage::Stage;

/// Where the file systems are mounted; each on the disk of this serial.
const ALL: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// A machine with three file systems and a snapshot of them, in which each `file` says "before".
struct Scene {
    stage: Stage,
    monitor: Monitor,
    nodes_before: BTreeSet<String>,
    id: String,
}

impl Scene {
    fn set(plan: Plan, driver: &'static str) -> Self {
        let plan = plan.memory_mib(768).tools([Tools::Xfs, Tools::Btrfs]);
        let stage = Stage::planned(plan, driver, &ALL, "");
        let guest = &stage.vm.guest;
        guest.sh("mkfs.ext4 -q /dev/vda; TEST_DIR=x TEST_DEV=x QA_CHECK_FS=x mkfs.xfs -q /dev/vdb; mkfs.btrfs -q /dev/vdc");
        for (fs, device) in ALL.iter().zip(["vda", "vdb", "vdc"]) {
            guest.sh(&format!(
                "mkdir -p /{fs} && mount -t {fs} /dev/{device} /{fs} && echo before > /{fs}/file && \
                 dd if=/dev/urandom of=/{fs}/random bs=1M count=8 2>/dev/null"
            ));
        }
        let monitor = Monitor::at(&stage.vm.second_monitor());
        let id = stage.create("/ext4 /xfs /btrfs")["id"].as_str().expect("an id").to_owned();
        let mut scene = Self { stage, monitor, nodes_before: BTreeSet::new(), id };
        scene.nodes_before = scene.nodes();
        scene.sh("for fs in ext4 xfs btrfs; do echo after > /$fs/file; done; sync; mkdir -p /mnt");
        scene
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        self.stage.vm.guest.sh(script)
    }

    /// The block nodes that QEMU has.
    fn nodes(&self) -> BTreeSet<String> {
        let nodes = self.monitor.ask("query-named-block-nodes", json!({ "flat": true }));
        let name = |node: &Value| node["node-name"].as_str().expect("a name").to_owned();
        nodes.as_array().expect("a list").iter().map(name).collect()
    }

    /// In the guest, in QEMU, on the storage, in the catalog; and the originals are as they were.
    #[track_caller]
    fn nothing_is_left(&self, of: &str) {
        let left = "cat /sys/block/*/serial /sys/block/*/device/model 2>/dev/null | grep -i hs- ; \
                    grep -l hostsnap /sys/block/*/device/model /sys/block/dm-*/dm/name 2>/dev/null; \
                    ls /run/hostsnap/mounts | grep -v lock; grep ' /mnt' /proc/self/mountinfo";
        assert_eq!(self.stage.vm.guest.run(left).stdout, "", "{of}");
        assert_eq!(self.nodes(), self.nodes_before, "{of}");
        assert_eq!(self.monitor.ask("query-fdsets", json!({})), json!([]), "{of}");
        let clones = self.stage.store.path().join(".hostsnap/clones");
        assert_eq!(fs::read_dir(clones).map_or(0, Iterator::count), 0, "{of}");
        let listed = self.stage.vm.guest.json("hostsnap --json list");
        assert!(listed.as_array().unwrap().iter().all(|one| one["attached"] == json!([])), "{of}: {listed}");
        let reconciled = self.stage.service.json(&["reconcile"]);
        assert_eq!(reconciled["detached"], json!([]), "{of}: {reconciled}");
        for fs in ALL {
            self.sh(&format!("test $(cat /{fs}/file) = after && echo after > /{fs}/file"));
        }
        self.sh("sync");
    }

    fn mount(&self, fs: &str, more: &str) -> Value {
        self.stage.vm.guest.json(&format!("hostsnap --json mount {} /mnt --path /{fs} {more}", self.id))
    }

    /// Each file system, mounted, listed and copied from.
    fn is_looked_into(&self) {
        let id = &self.id;
        for fs in ALL {
            let told = self.mount(fs, "");
            assert_eq!(told["fstype"], fs, "{told}");
            assert_eq!(self.sh("cat /mnt/file"), "before\n", "{fs}");
            assert_ne!(self.stage.vm.guest.run("touch /mnt/mine").status, 0, "{fs} is read-only");
            self.sh("hostsnap umount /mnt");
            self.nothing_is_left(&format!("{fs} was mounted"));

            assert_eq!(
                self.sh(&format!("hostsnap ls {id}:/{fs} | grep -v lost+found")),
                "file\nrandom\n",
                "{fs}"
            );
            self.sh(&format!(
                "hostsnap cp {id}:/{fs}/random {id}:/{fs}/file /tmp && cmp /tmp/random /{fs}/random && \
                 test $(cat /tmp/file) = before && rm /tmp/random /tmp/file"
            ));
            self.nothing_is_left(&format!("{fs} was copied from"));
        }
    }

    fn is_written_to_as_a_clone(&self) {
        for fs in ALL {
            self.mount(fs, "--writable");
            self.sh("echo mine > /mnt/file && sync && test $(cat /mnt/file) = mine");
            self.sh("hostsnap umount /mnt");
            self.nothing_is_left(&format!("a clone of {fs} was mounted"));
        }
        self.mount("ext4", "");
        assert_eq!(self.sh("cat /mnt/file"), "before\n", "the snapshot is as it was");
        self.sh("hostsnap umount /mnt");
    }
}

#[test]
fn a_snapshot_is_mounted_listed_and_copied_from_by_hot_plug_and_nothing_is_left() {
    let mut scene = Scene::set(Plan::new("mounted").slots(1), "reflink");
    scene.is_looked_into();
    scene.is_written_to_as_a_clone();
    whoever_is_killed(&scene);
    a_reset_leaves_it_attached(&mut scene);
}

/// The same where no PCIe port is free: the disk is one of SCSI's, which shows its serial and what it is elsewhere.
#[test]
fn by_qemu_a_snapshot_is_mounted_listed_and_copied_from_by_virtio_scsi() {
    let scene = Scene::set(Plan::new("mounted-scsi").takes_scsi(), "qemu");
    let attached = scene.stage.vm.guest.json(&format!("hostsnap --json attach {} ext4", scene.id));
    let disk = &attached["disks"][0];
    let name = disk["path"].as_str().unwrap().strip_prefix("/dev/").unwrap();
    assert!(name.starts_with("sd"), "{attached}");
    let shown = |page: &str| scene.sh(&format!("cat /sys/block/{name}/device/{page} | tr -d '\\000'"));
    assert_eq!(shown("model").trim(), "hostsnap", "the udev rule knows it by that");
    for page in ["vpd_pg80", "vpd_pg83"] {
        assert!(shown(page).contains(disk["serial"].as_str().unwrap()), "{page}");
    }
    scene.sh(&format!("hostsnap detach {}", scene.id));
    scene.nothing_is_left("it was attached");
    let disks = scene.stage.vm.guest.json("hostsnap --json disks");
    let can =
        |disk: &Value| disk["abilities"].as_array().is_some_and(|words| words.contains(&json!("attach")));
    assert!(disks.as_array().unwrap().iter().all(can), "{disks}");
    scene.is_looked_into();
}

/// The command in the middle of its copy, and the host's service while a snapshot is mounted.
fn whoever_is_killed(scene: &Scene) {
    for after in ["0.1", "0.4", "0.8"] {
        scene
            .stage
            .vm
            .guest
            .run(&format!("timeout -s KILL {after} hostsnap cp {}:/btrfs/random /tmp", scene.id));
        scene.sh("hostsnap umount --all");
        scene.nothing_is_left(&format!("killed after {after} s"));
    }
    scene.mount("btrfs", "");
    scene.stage.service.signal(Signal::KILL);
    scene.stage.service.restart();
    assert_eq!(scene.sh("cat /mnt/file"), "before\n", "what is mounted stays");
    scene.sh("hostsnap umount /mnt");
    scene.nothing_is_left("the service was killed meanwhile");
}

/// A mount ends with its boot; the disk is there still, known, used again, and taken out.
fn a_reset_leaves_it_attached(scene: &mut Scene) {
    scene.mount("xfs", "");
    scene.stage.vm.reset();
    scene.sh("for d in ext4:vda xfs:vdb btrfs:vdc; do fs=${d%:*}; \
              mkdir -p /$fs /mnt && mount -t $fs /dev/${d#*:} /$fs || exit 1; done");
    let listed = scene.stage.vm.guest.json("hostsnap --json list");
    assert_eq!(listed[0]["attached"].as_array().map(Vec::len), Some(1), "{listed}");
    scene.mount("xfs", "");
    assert_eq!(scene.sh("cat /mnt/file /xfs/file"), "before\nafter\n");
    scene.sh(&format!("hostsnap umount /mnt && hostsnap detach {}", scene.id));
    scene.nothing_is_left("it was reset while a snapshot was mounted");
}
