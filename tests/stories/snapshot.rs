//! The main job.

use super::stage::{Stage, Writer, records_in};

#[test]
fn by_reflink_a_snapshot_under_load_holds_every_acknowledged_record() {
    holds_every_acknowledged_record(&Stage::by("reflink", "load-reflink", &["data"]));
}

#[test]
fn by_btrfs_a_snapshot_under_load_holds_every_acknowledged_record() {
    holds_every_acknowledged_record(&Stage::by("btrfs", "load-btrfs", &["data"]));
}

#[test]
fn by_qemu_a_snapshot_under_load_holds_every_acknowledged_record() {
    holds_every_acknowledged_record(&Stage::by("qemu", "load-qemu", &["data"]));
}

fn holds_every_acknowledged_record(stage: &Stage) {
    stage.mount("/dev/vda", "/data");
    let writer = Writer::start(&stage.vm, "/data/records");

    let before = writer.acknowledged();
    let snapshot = stage.create("/data --label why=test");
    let after = writer.acknowledged();

    assert_eq!(snapshot["consistency"], "filesystem", "{snapshot}");
    assert_eq!(snapshot["state"], "ready");
    let held = records_in(&stage.image(&snapshot, "data"), "records");
    assert!(held >= before && held <= after + 1, "{before} ≤ {held} ≤ {after}");
    writer.goes_on();

    let listed = stage.vm.guest.json("hostsnap --json list");
    assert_eq!(listed[0]["id"], snapshot["id"]);
    assert_eq!(stage.service.json(&["list"])[0]["id"], snapshot["id"]);
    assert_eq!(stage.vm.guest.json("hostsnap --json show latest")["labels"]["why"], "test");
}
