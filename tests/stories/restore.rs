//! Going back: a machine lets go of its disk, has its old bytes, and uses it again; from inside, and from the host when it is
//! stopped.

use std::fs;
use std::process::Command;

use harness::loopfs;
use harness::vm::Plan;
use harness::wait::wait_until;
use protocol::{RequestId, SnapshotId};
use serde_json::{Value, json};

use super::stage::{LIMIT, Stage};

/// A machine whose disk `data` is mounted at /data, with options, and a part of it at /part.
fn scene(driver: &'static str, name: &str, serials: &[&str]) -> Stage {
    let stage = Stage::planned(Plan::new(name), driver, serials, "");
    stage.mount("/dev/vda", "/data");
    sh(
        &stage,
        "mkdir -p /data/sub /part && mount -o remount,nosuid,noatime /data && mount -o bind /data/sub /part",
    );
    stage
}

fn sh(stage: &Stage, script: &str) -> String {
    stage.vm.guest.sh(script).trim().to_owned()
}

/// A snapshot of a file that holds this word; its identifier.
fn snapshot_of(stage: &Stage, word: &str) -> String {
    sh(stage, &format!("echo {word} > /data/word; echo {word} > /data/sub/word"));
    stage.create("/data")["id"].as_str().expect("an id").to_owned()
}

#[track_caller]
fn word_is(stage: &Stage, word: &str) {
    assert_eq!(sh(stage, "cat /data/word /part/word"), format!("{word}\n{word}"));
}

#[track_caller]
fn restore(stage: &Stage, arguments: &str) -> Value {
    stage.vm.guest.json(&format!("hostsnap --json restore {arguments}"))
}

/// What it says of why not.
#[track_caller]
fn refused(stage: &Stage, arguments: &str) -> String {
    let output = stage.vm.guest.run(&format!("hostsnap restore {arguments}"));
    assert_eq!(output.status, 6, "{arguments}: {}{}", output.stdout, output.stderr);
    output.stderr
}

#[test]
fn a_machine_goes_back_to_a_snapshot_and_forwards_again_and_nothing_half_done_is_ever_mounted() {
    let mut stage = scene("reflink", "restore", &["data", "parts"]);
    let old = snapshot_of(&stage, "old");
    sh(&stage, "echo new > /data/word; echo new > /data/sub/word; touch /data/later; sync");

    what_is_in_the_way_is_named_and_nothing_happens(&stage, &old);

    let done = restore(&stage, &format!("{old} /data --remount"));
    word_is(&stage, "old");
    sh(&stage, "! test -e /data/later && grep ' /data ' /proc/mounts | grep noatime | grep nosuid");
    assert_eq!(done["mounted"].as_array().map(Vec::len), Some(2), "{done}");
    assert_eq!(done["notes"].as_array().map(Vec::len), Some(0), "{done}");
    let kept = done["safety"].as_str().expect("it is kept").to_owned();
    let shown = stage.vm.guest.json(&format!("hostsnap --json show {kept}"));
    assert_eq!(shown["labels"]["hostsnap/before-restore-of"], old, "{shown}");

    restore(&stage, &format!("{kept} data --remount --no-safety"));
    word_is(&stage, "new");

    the_host_is_killed_in_the_middle(&stage, &old);
    a_partitioned_disk_has_its_old_partitions(&stage);

    // From the host: not while it runs, and then its disk is the snapshot's, byte for byte.
    let running = stage.service.admin(&["restore", "app", &old, "data"]);
    assert_eq!(running.status.code(), Some(6), "{running:?}");
    stage.vm.kill();
    let mut said = running;
    wait_until("the host sees that it is stopped", LIMIT, || {
        said = stage.service.admin(&["restore", "app", &kept, "data", "--json"]);
        is_over_with_it(&said)
    });
    let done: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
    assert_eq!(done["disks"][0]["disk"], "data", "{done}");
    let snapshot = stage.image(&serde_json::json!({ "id": kept }), "data");
    assert!(fs::read(stage.store.path().join("data.img")).unwrap() == fs::read(snapshot).unwrap());
}

fn what_is_in_the_way_is_named_and_nothing_happens(stage: &Stage, old: &str) {
    let said = refused(stage, old);
    assert!(said.contains("/data (ext4) is mounted") && said.contains("--remount"), "{said}");
    let sleeper = stage.vm.guest.spawn("cd /data && exec sleep 1000");
    wait_until("somebody is in it", LIMIT, || {
        stage.vm.guest.run("ls -l /proc/[0-9]*/cwd | grep -q ' /data$'").status == 0
    });
    let said = refused(stage, &format!("{old} --remount"));
    assert!(said.contains("sleep (pid ") && said.contains("is in /data"), "{said}");
    let preview = restore(stage, &format!("{old} --preview"));
    let kinds: Vec<_> = preview["in_the_way"].as_array().unwrap().iter().map(|one| &one["kind"]).collect();
    assert_eq!(kinds, ["mount", "mount", "process"], "{preview}");
    word_is(stage, "new");
    sh(stage, "kill $(pidof sleep)");
    let _ = sleeper.wait();
    let snapshots = stage.vm.guest.json("hostsnap --json list");
    assert_eq!(snapshots.as_array().map(Vec::len), Some(1), "nothing was kept for nothing: {snapshots}");
}

/// The guest holds the disk, asks again when the host is back, and mounts only then.
fn the_host_is_killed_in_the_middle(stage: &Stage, old: &str) {
    let before = stage.on_storage().len();
    let running = stage.vm.guest.spawn(&format!("hostsnap --json restore {old} /data --remount"));
    wait_until("what the disk holds is being kept", LIMIT, || stage.on_storage().len() > before);
    stage.service.restart();
    let output = running.wait();
    assert_eq!(output.status, 0, "{}\n{}", output.stderr, stage.service.printed());
    word_is(stage, "old");
    assert_eq!(stage.service.json(&["reconcile"])["problems"], serde_json::json!([]));
}

fn a_partitioned_disk_has_its_old_partitions(stage: &Stage) {
    let fdisk = |script: &str| format!("printf '{script}' | fdisk /dev/vdb >/dev/null");
    sh(stage, &fdisk("n\\np\\n1\\n\\n+32M\\nw\\n"));
    sh(
        stage,
        "blockdev --rereadpt /dev/vdb; mkfs.ext4 -q /dev/vdb1 && mkdir -p /p && mount /dev/vdb1 /p && echo old > /p/word",
    );
    let id = stage.create("/p")["id"].as_str().unwrap().to_owned();
    sh(stage, "echo new > /p/word; umount /p");
    // A second partition, as the table has it: from 64 MiB on, 32 MiB.
    let entry = "\\000\\000\\000\\000\\203\\000\\000\\000\\000\\000\\002\\000\\000\\000\\001\\000";
    sh(stage, &format!("printf '{entry}' | dd of=/dev/vdb bs=1 seek=462 conv=notrunc,fsync 2>/dev/null"));
    sh(stage, "blockdev --rereadpt /dev/vdb; grep -q vdb2 /proc/partitions && mount /dev/vdb1 /p");
    restore(stage, &format!("{id} /p --remount"));
    assert_eq!(sh(stage, "cat /p/word"), "old");
    sh(stage, "! grep -q vdb2 /proc/partitions");
    // Made anew as a whole it is another disk.
    sh(stage, "umount /p; mkfs.ext4 -q -F /dev/vdb; blockdev --rereadpt /dev/vdb");
    let other = stage.vm.guest.run(&format!("hostsnap restore {id}"));
    assert_eq!(other.status, 4, "{}", other.stderr);
    assert!(other.stderr.contains("--changed-layout"), "{}", other.stderr);
    restore(stage, &format!("{id} parts --changed-layout"));
    assert_eq!(sh(stage, "mount /dev/vdb1 /p && cat /p/word && umount /p"), "old");
}

/// The vsock device of a machine that was killed outlives it by a moment.
fn is_over_with_it(asked: &std::process::Output) -> bool {
    let is_busy = asked.status.code() == Some(6);
    let words =
        [&asked.stdout, &asked.stderr].map(|said| String::from_utf8_lossy(said).into_owned()).concat();
    assert!(!is_busy || words.contains("app is running"), "{words}");
    !is_busy
}

#[test]
fn by_qemu_a_machine_goes_back_to_a_snapshot() {
    let mut stage = scene("qemu", "restore-qemu", &["data", "cow.qcow2"]);
    stage.mount("/dev/vdb", "/cow");
    let write = |word: &str| {
        sh(&stage, &format!("for file in data data/sub cow; do echo {word} > /$file/word; done"))
    };
    write("old");
    let old = stage.create("/data /cow")["id"].as_str().expect("an id").to_owned();
    write("new");
    let disks = stage.vm.guest.json("hostsnap --json disks");
    let can = |disk: &Value| disk["abilities"].as_array().is_some_and(|all| all.contains(&json!("restore")));
    assert_eq!(
        disks.as_array().map(|disks| disks.iter().filter(|disk| can(disk)).count()),
        Some(2),
        "{disks}"
    );
    restore(&stage, &format!("{old} --remount"));
    word_is(&stage, "old");
    assert_eq!(sh(&stage, "cat /cow/word"), "old");
    // What is written from then on is in the image: QEMU has it below the disk again.
    write("later");
    let later = stage.create("/cow")["id"].as_str().expect("an id").to_owned();
    let absent = SnapshotId::from_uuid(*RequestId::random().as_uuid());
    assert_eq!(stage.vm.guest.run(&format!("hostsnap restore {absent}")).status, 5);
    restore(&stage, &format!("{later} --remount"));
    assert_eq!(sh(&stage, "cat /cow/word"), "later");

    stage.vm.kill();
    let mut said = None;
    wait_until("the host sees that it is stopped", LIMIT, || {
        let output = stage.service.admin(&["restore", "app", &old, "--no-safety"]);
        is_over_with_it(&output).then(|| said = Some(output)).is_some()
    });
    let said = said.expect("it was asked");
    assert!(said.status.success(), "{said:?}\n{}", stage.service.printed());
    let (data, cow) =
        (stage.image(&json!({ "id": old }), "data"), stage.image(&json!({ "id": old }), "cow%2eqcow2"));
    assert!(fs::read(stage.store.path().join("data.img")).unwrap() == fs::read(data).unwrap());
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "raw", "-F", "qcow2"]).arg(cow).arg(stage.store.path().join("cow.qcow2"));
    loopfs::run(&mut compare);
}
