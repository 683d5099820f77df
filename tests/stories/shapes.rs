//! Disks of other shapes than one file system on one disk.

use harness::initramfs::Tools;
use harness::vm::Plan;

use super::stage::{Stage, Writer, records_in};

#[test]
fn two_disks_of_one_request_are_cut_at_one_instant() {
    // An application that writes a record to the first disk, then to the second: in no instant has
    // the second more than the first, nor the first more than one ahead.
    let stage = Stage::by("qemu", "two-disks", &["first", "second"]);
    stage.mount("/dev/vda", "/first");
    stage.mount("/dev/vdb", "/second");
    let writer = Writer::start_pair(&stage.vm, "/first/records", "/second/records");
    let before = writer.acknowledged();
    let snapshot = stage.create("/first /second");
    assert_eq!(snapshot["disks"].as_array().map(Vec::len), Some(2));
    let first = records_in(&stage.image(&snapshot, "first"), "records");
    let second = records_in(&stage.image(&snapshot, "second"), "records");
    assert!(second >= before, "{second} ≥ {before}");
    assert!(first == second || first == second + 1, "not of one instant: {first} and {second}");
}

#[test]
fn a_volume_over_two_disks_takes_both_and_leaves_the_third_alone() {
    let plan = Plan::new("lvm").tools([Tools::DeviceMapper]);
    let stage = Stage::planned(plan, "reflink", &["one", "two", "other"], "");
    stage.mount("/dev/vdc", "/other");
    stage.vm.guest.sh("lvm pvcreate -q /dev/vda /dev/vdb && lvm vgcreate -q vg /dev/vda /dev/vdb && \
         lvm lvcreate -q -y -Zn -i2 -l100%FREE -n lv vg && lvm vgmknodes; \
         mkfs.ext4 -q /dev/mapper/vg-lv && mkdir -p /data && mount /dev/mapper/vg-lv /data");
    let writer = Writer::start(&stage.vm, "/data/records");
    let snapshot = stage.create("/data");
    let mut disks: Vec<_> =
        snapshot["disks"].as_array().unwrap().iter().map(|disk| disk["disk"].as_str().unwrap()).collect();
    disks.sort_unstable();
    assert_eq!(disks, ["one", "two"]);
    assert_eq!(snapshot["mounts"].as_array().map(Vec::len), Some(1), "{snapshot}");
    assert_eq!(snapshot["mounts"][0]["path"], "/data");
    assert_eq!(snapshot["consistency"], "filesystem");
    writer.goes_on();
}

#[test]
fn what_is_on_no_disk_is_named_before_anything_is_frozen() {
    let stage = Stage::set("no-disk", &["data"]);
    stage.mount("/dev/vda", "/data");
    for (path, words, status) in
        [("/run", "tmpfs", 2), ("/nowhere", "No such file", 2), ("/data /run", "tmpfs", 2)]
    {
        let output = stage.vm.guest.run(&format!("hostsnap create {path}"));
        assert_eq!(output.status, status, "{path}: {}", output.stderr);
        assert!(output.stderr.contains(words), "{path}: {}", output.stderr);
    }
    assert!(stage.on_storage().is_empty());
    let planned = stage.vm.guest.json("hostsnap --json create /data --dry-run");
    assert_eq!(planned["freeze_order"][0]["mount_point"], "/data");
    assert!(stage.on_storage().is_empty(), "a dry run takes nothing");
}
