//! Whatever stands between a path and its disks, the right disks are found: on a real kernel, by a dry
//! run, which sends everything and freezes nothing.

use harness::initramfs::Tools;
use harness::vm::{Bus, Plan, blank_image};
use serde_json::Value;

use super::stage::Stage;

/// The serials of the disks that a snapshot of this path would take, and what would be frozen.
#[track_caller]
fn planned(stage: &Stage, path: &str) -> (Vec<String>, Vec<String>) {
    let plan = stage.vm.guest.json(&format!("hostsnap --json create {path} --dry-run"));
    let texts = |list: &Value, field: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one[field].as_str().unwrap().to_owned()).collect()
    };
    let mut disks = texts(&plan["disks"], "disk");
    disks.sort_unstable();
    (disks, texts(&plan["freeze_order"], "mount_point"))
}

#[test]
fn every_layout_leads_to_its_disks() {
    let plan = Plan::new("layouts").memory_mib(768).tools([Tools::DeviceMapper, Tools::Md, Tools::Btrfs]);
    let serials = ["part", "luks", "md0", "md1", "bt0", "bt1", "plain"];
    let stage = Stage::planned(plan, "reflink", &serials, "");
    let guest = &stage.vm.guest;

    // A partition.
    guest.sh("printf 'n\\np\\n1\\n\\n\\nw\\n' | fdisk /dev/vda >/dev/null; sleep 1; mkfs.ext4 -q /dev/vda1 && mkdir -p /part && mount /dev/vda1 /part");
    assert_eq!(planned(&stage, "/part"), (vec!["part".into()], vec!["/part".into()]));

    // A volume of LVM on LUKS.
    guest.sh("echo secret > /run/key; \
         cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vdb /run/key && \
         cryptsetup open --key-file /run/key /dev/vdb secret && \
         lvm pvcreate -q /dev/mapper/secret && lvm vgcreate -q inner /dev/mapper/secret && \
         lvm lvcreate -q -y -Zn -l100%FREE -n lv inner && lvm vgmknodes; \
         mkfs.ext4 -q /dev/mapper/inner-lv && mkdir -p /luks && mount /dev/mapper/inner-lv /luks");
    assert_eq!(planned(&stage, "/luks"), (vec!["luks".into()], vec!["/luks".into()]));

    // A mirror.
    guest
        .sh("mdadm --create /dev/md0 --run --level=1 --raid-devices=2 /dev/vdc /dev/vdd >/dev/null 2>&1 && \
         mkfs.ext4 -q /dev/md0 && mkdir -p /md && mount /dev/md0 /md");
    assert_eq!(planned(&stage, "/md"), (vec!["md0".into(), "md1".into()], vec!["/md".into()]));

    // btrfs over two devices, and a subvolume of it elsewhere.
    guest.sh(
        "mkfs.btrfs -q /dev/vde /dev/vdf && btrfs device scan >/dev/null; mkdir -p /bt /sub && mount /dev/vde /bt && \
         btrfs subvolume create /bt/s >/dev/null && mount -o subvol=s /dev/vde /sub",
    );
    for path in ["/bt", "/sub"] {
        assert_eq!(planned(&stage, path), (vec!["bt0".into(), "bt1".into()], vec!["/bt".into()]), "{path}");
    }

    // A bind mount, a bind-mounted file, and a file system in a file.
    guest.sh(
        "mkfs.ext4 -q /dev/vdg && mkdir -p /plain /bound && mount /dev/vdg /plain && mkdir /plain/d && \
         mount -o bind /plain/d /bound && touch /plain/f /run/f && mount -o bind /plain/f /run/f && \
         truncate -s 32M /plain/image && mkfs.ext4 -q /plain/image && mkdir -p /inner && \
         mount -o loop /plain/image /inner",
    );
    for path in ["/plain", "/bound", "/run/f"] {
        let (disks, frozen) = planned(&stage, path);
        assert_eq!(disks, ["plain"], "{path}");
        assert_eq!(frozen, ["/inner", "/plain"], "{path}: the inner file system comes first");
    }
    assert_eq!(planned(&stage, "/inner").0, ["plain"]);

    // What has no disk of its own says where it is.
    guest.sh("mkdir -p /plain/up /plain/work /over && \
         mount -t overlay overlay -o lowerdir=/etc,upperdir=/plain/up,workdir=/plain/work /over");
    let told = guest.run("hostsnap create /over --dry-run");
    assert_eq!(told.status, 2, "{}", told.stderr);
    assert!(told.stderr.contains("upper directory"), "{}", told.stderr);

    let capture = guest.json("hostsnap disks --capture");
    // What the table tests of `guest-agent/src/topology` read was made here.
    let kept = serde_json::to_string_pretty(&capture).unwrap();
    std::fs::write(harness::assets::root().join("logs/layouts/capture.json"), kept).unwrap();
    assert_eq!(capture["btrfs"][0]["devices"].as_array().map(Vec::len), Some(2));
}

#[test]
fn disks_are_known_by_their_serial_on_every_bus() {
    let folder = tempfile::tempdir().unwrap();
    let image = |name: &str| blank_image(folder.path(), name, 64);
    let vm = Plan::new("buses")
        .disk(&image("a"), "on-virtio-blk")
        .disk_on(&image("b"), "on-virtio-scsi", Bus::VirtioScsi)
        .disk_on(&image("c"), "on-nvme", Bus::Nvme)
        // virtio-blk shows the guest 20 bytes of a serial (kubevirt/csi-driver#368).
        .disk(&image("d"), "pvc-7286dfe6-7c44-40")
        .boot();
    let capture = vm.guest.json("hostsnap disks --capture");
    let serial_of = |name: &str| {
        let devices = capture["devices"].as_array().unwrap();
        devices.iter().find(|one| one["name"] == name).map(|one| one["serial"].clone()).unwrap_or_default()
    };
    assert_eq!(serial_of("vda"), "on-virtio-blk");
    assert_eq!(serial_of("sda"), "on-virtio-scsi");
    assert_eq!(serial_of("nvme0n1"), "on-nvme");
    assert_eq!(serial_of("vdb"), "pvc-7286dfe6-7c44-40");
}
