//! A Debian with snapshots of its disks attached is booted again: what fstab names by UUID, by label or by a volume's name
//! are the originals, although every copy has the same names in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use harness::assets;
use harness::hostsnapd::{self, Hostsnapd, Machine};
use harness::initramfs::Tools;
use harness::loopfs::{Kind, LoopFs};
use harness::monitor::Monitor;
use harness::vm::{Plan, Vm, blank_image};
use serde_json::{Value, json};

/// The disks by serial, each with the file system at the path of the same name.
const DISKS: [&str; 4] = ["data", "xfs", "bt", "lv"];
const RULE: &str = "10-hostsnap.rules";

struct Scene {
    vm: Vm,
    service: Hostsnapd,
    _store: LoopFs,
}

impl Scene {
    /// As docs/guide/use.md says: the rule is installed, and lvm leaves alone what it names.
    fn set() -> Self {
        let store = LoopFs::new(Kind::Xfs, 1280);
        let images: Vec<PathBuf> = DISKS.iter().map(|name| blank_image(&store.path(), name, 128)).collect();
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
        let mut plan = Plan::debian("next-boot").slots(2).takes_scsi();
        for (file, name) in [
            (packaging.join("udev").join(RULE), RULE),
            (packaging.join("initramfs-tools/hostsnap"), "hostsnap-hook"),
            (assets::hook_functions(), "hook-functions"),
        ] {
            plan = plan.file(&file, &format!("/usr/bin/{name}"));
        }
        for (image, serial) in images.iter().zip(DISKS) {
            plan = plan.disk(image, serial);
        }
        let vm = plan.tools([Tools::Xfs, Tools::Btrfs, Tools::DeviceMapper]).boot();
        let disks = DISKS.into_iter().zip(images.iter().map(PathBuf::as_path)).collect();
        let machine = Machine { vm: &vm, name: "app", disks, more: "" };
        let service = Hostsnapd::start(&hostsnapd::config("reflink", &store.path(), &[machine]));
        vm.guest.sh(&format!(
            "install -m 0644 /usr/bin/{RULE} /usr/lib/udev/rules.d/ && udevadm control --reload && \
             sed -i 's,^devices {{,devices {{\\nglobal_filter = [ \"r|/dev/disk/hostsnap/|\" ],' /etc/lvm/lvm.conf && \
             grep -q '^global_filter' /etc/lvm/lvm.conf"
        ));
        vm.guest.sh("mkfs.ext4 -q /dev/vda; mkfs.btrfs -q /dev/vdc; \
             TEST_DIR=x TEST_DEV=x QA_CHECK_FS=x mkfs.xfs -q -L copied /dev/vdb; \
             pvcreate -q /dev/vdd && vgcreate -q vg0 /dev/vdd && lvcreate -q -y -l100%FREE -n lv vg0 && \
             mkfs.ext4 -q /dev/vg0/lv; udevadm settle; mkdir -p /data /xfs /bt /lv /mnt; \
             { echo UUID=$(blkid -o value -s UUID /dev/vda) /data ext4 defaults 0 2; \
               echo LABEL=copied /xfs xfs defaults 0 2; \
               echo UUID=$(blkid -o value -s UUID /dev/vdc) /bt btrfs defaults 0 0; \
               echo /dev/vg0/lv /lv ext4 defaults 0 2; } >> /etc/fstab; systemctl daemon-reload && mount -a");
        vm.guest.sh("for at in data xfs bt lv; do echo before > /$at/file; done");
        Self { vm, service, _store: store }
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        self.vm.guest.sh(script)
    }

    /// Each of the machine's own file systems is on the disk that it was on, and can be written to.
    #[track_caller]
    fn the_originals_are_mounted(&self) {
        for at in DISKS {
            assert_eq!(self.sh(&format!("cat /{at}/file")), "after\n", "{at}");
            let serial = self.sh(&format!(
                "d=$(readlink -f $(findmnt -no SOURCE /{at})); d=${{d#/dev/}}; \
                 for under in /sys/class/block/$d/slaves/*; do test -e $under && d=${{under##*/}}; done; \
                 cat /sys/class/block/$d/serial"
            ));
            assert_eq!(serial.trim(), at, "/{at} is on another disk");
            self.sh(&format!("echo after > /{at}/file && sync -f /{at}"));
        }
    }

    /// No name of the system's leads to a copy, and lvm knows of none.
    #[track_caller]
    fn no_name_leads_to(&self, copies: &BTreeSet<String>) {
        self.sh("udevadm settle");
        let links = self
            .sh("for link in /dev/disk/by-uuid/* /dev/disk/by-label/* /dev/disk/by-id/lvm-pv-*; do \
                             test -e $link && readlink -f $link; done; true");
        let named: BTreeSet<_> = links.lines().map(str::to_owned).collect();
        assert!(named.is_disjoint(copies), "{named:?} and the copies {copies:?}");
        let volumes =
            self.vm.guest.run("pvs --noheadings -o pv_name,vg_name 2>&1; vgs --noheadings -o vg_name 2>&1");
        assert!(!volumes.stdout.to_lowercase().contains("duplicate"), "{}", volumes.stdout);
        assert!(copies.iter().all(|copy| !volumes.stdout.contains(copy)), "{}", volumes.stdout);
    }

    fn findings(&self) -> Value {
        let output = self.vm.guest.run("hostsnap --json doctor");
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

fn paths(attached: &Value) -> impl Iterator<Item = String> {
    let disks = attached["disks"].as_array().expect("disks");
    disks.iter().map(|disk| disk["path"].as_str().expect("a path").to_owned())
}

fn warns_of_the_rule(findings: &Value) -> bool {
    let all = findings.as_array().expect("findings");
    all.iter().any(|finding| finding["id"] == "udev-rule" && finding["status"] == "warn")
}

#[test]
fn a_boot_with_snapshots_attached_mounts_the_originals_and_the_copies_are_still_known() {
    let mut scene = Scene::set();
    let snapshot = scene.vm.guest.json("hostsnap --json create /data /xfs /bt /lv");
    let id = snapshot["id"].as_str().expect("an id").to_owned();
    scene.sh("for at in data xfs bt lv; do echo after > /$at/file; done; sync");
    let monitor = Monitor::at(&scene.vm.second_monitor());
    let count = || monitor.ask("query-named-block-nodes", json!({ "flat": true })).as_array().map(Vec::len);
    let before = count();

    // Two read-only by PCIe, two as clones by SCSI.
    let first = scene.vm.guest.json(&format!("hostsnap --json attach {id} data lv"));
    let second = scene.vm.guest.json(&format!("hostsnap --json attach {id} xfs bt --writable"));
    scene.no_name_leads_to(&paths(&first).chain(paths(&second)).collect());
    scene.the_originals_are_mounted();
    assert!(!warns_of_the_rule(&scene.findings()), "the rule is installed");

    scene.vm.reboot();
    assert_eq!(scene.sh("systemctl list-units --failed --type=mount,swap --no-legend"), "");
    scene.the_originals_are_mounted();
    let listed = scene.vm.guest.json("hostsnap --json list");
    assert_eq!(listed[0]["attached"].as_array().map(Vec::len), Some(4), "{listed}");
    let first = scene.vm.guest.json(&format!("hostsnap --json attach {id} data lv"));
    let second = scene.vm.guest.json(&format!("hostsnap --json attach {id} xfs bt --writable"));
    scene.no_name_leads_to(&paths(&first).chain(paths(&second)).collect());
    let planned = scene.vm.guest.json("hostsnap --json create /data /lv --dry-run");
    assert_eq!(planned["disks"].as_array().map(Vec::len), Some(2), "{planned}");
    scene.sh(&format!("hostsnap detach {id}"));

    // Under a live udev, the two that take the most hands: each gets another name or another UUID.
    for at in ["bt", "lv"] {
        scene.sh(&format!("hostsnap mount {id} /mnt --path /{at}"));
        assert_eq!(scene.sh("cat /mnt/file"), "before\n", "{at}");
        scene.sh("hostsnap umount /mnt");
    }
    scene.the_originals_are_mounted();
    assert_eq!(count(), before);
    assert_eq!(scene.service.json(&["reconcile"])["detached"], json!([]));

    the_hook_takes_the_rule_into_an_initramfs(&scene);
    without_the_rule_it_is_said(&scene, &id);
}

/// With what initramfs-tools give to a hook; no initramfs is made of it, which takes emulation a minute.
fn the_hook_takes_the_rule_into_an_initramfs(scene: &Scene) {
    scene.sh(&format!(
        "install -D -m 0644 /usr/bin/hook-functions /usr/share/initramfs-tools/hook-functions && \
         install -D -m 0755 /usr/bin/hostsnap-hook /etc/initramfs-tools/hooks/hostsnap && \
         mkdir /tmp/initramfs && test $(/etc/initramfs-tools/hooks/hostsnap prereqs) = udev && \
         for again in 1 2; do DESTDIR=/tmp/initramfs verbose=n /etc/initramfs-tools/hooks/hostsnap || exit 1; done; \
         cmp /tmp/initramfs/usr/lib/udev/rules.d/{RULE} /usr/bin/{RULE}"
    ));
}

/// What lasts until the next boot is put in force before a disk appears, and the rest is told.
fn without_the_rule_it_is_said(scene: &Scene, id: &str) {
    scene.sh(&format!("rm /usr/lib/udev/rules.d/{RULE} && udevadm control --reload"));
    assert!(!warns_of_the_rule(&scene.findings()), "nothing is attached");
    let attached = scene.vm.guest.run(&format!("hostsnap --json attach {id} data"));
    assert_eq!(attached.status, 0, "{attached:?}");
    assert!(attached.stderr.contains("udev rule of hostsnap is not installed"), "{attached:?}");
    let told: Value = serde_json::from_str(&attached.stdout).unwrap();
    scene.no_name_leads_to(&paths(&told).collect());
    assert!(warns_of_the_rule(&scene.findings()), "{}", scene.findings());
    scene.sh(&format!("hostsnap detach {id}"));
    scene.the_originals_are_mounted();
}
