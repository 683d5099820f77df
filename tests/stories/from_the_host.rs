//! What the administrator does from the host.

use std::process::Command;

use harness::loopfs;
use harness::wait::wait_until;
use rustix::process::Signal;

use super::stage::{LIMIT, Stage, Writer, records_in};

#[test]
fn the_host_asks_the_guests_daemon_and_it_runs_its_own_flow() {
    let stage = Stage::set("from-host", &["data"]);
    stage.mount("/dev/vda", "/data");
    let writer = Writer::start(&stage.vm, "/data/records");

    let alone = stage.service.admin(&["create", "app"]);
    assert_eq!(alone.status.code(), Some(3), "{}", String::from_utf8_lossy(&alone.stderr));
    let crash = stage.service.json(&["create", "app", "--consistency", "crash"]);
    assert_eq!(crash["consistency"], "crash");
    assert!(crash["consistency_reason"].as_str().unwrap().contains("no agent"), "{crash}");

    stage.vm.guest.spawn("exec hostsnap daemon");
    wait_until("the daemon answers", LIMIT, || stage.service.admin(&["ping", "app"]).status.success());
    let before = writer.acknowledged();
    let snapshot = stage.service.json(&["create", "app", "/data", "--label", "by=host"]);
    assert_eq!(snapshot["consistency"], "filesystem", "{snapshot}");
    assert_eq!(snapshot["labels"]["by"], "host");
    assert!(records_in(&stage.image(&snapshot, "data"), "records") >= before);
    writer.goes_on();
}

#[test]
fn a_reload_takes_a_new_configuration_and_a_wrong_one_changes_nothing() {
    let stage = Stage::set("reload", &["data"]);
    stage.mount("/dev/vda", "/data");
    let config = std::fs::read_to_string(stage.service.config()).unwrap();
    let create = || stage.vm.guest.run("hostsnap create /data").status;
    assert_eq!(create(), 0);

    std::fs::write(stage.service.config(), config.replace("[[vm]]", "[[vm]]\nallow = [\"list\"]")).unwrap();
    stage.service.signal(Signal::HUP);
    wait_until("the new configuration is in force", LIMIT, || create() == 4);

    std::fs::write(stage.service.config(), "no toml at all").unwrap();
    stage.service.signal(Signal::HUP);
    wait_until("the mistake is in the log", LIMIT, || stage.service.printed().contains("stays as it was"));
    assert_eq!(create(), 4);

    std::fs::write(stage.service.config(), config).unwrap();
    stage.service.signal(Signal::HUP);
    wait_until("the old configuration is in force", LIMIT, || create() == 0);
}

#[test]
fn what_the_catalog_lost_is_found_on_the_storage() {
    let stage = Stage::set("lost-catalog", &["data"]);
    stage.mount("/dev/vda", "/data");
    let snapshot = stage.create("/data --note 'kept on the storage'");
    let state = stage.service.config().with_file_name("catalog.sqlite");
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", state.display()));
    }
    stage.service.restart();
    let found = stage.vm.guest.json("hostsnap --json show latest");
    assert_eq!(found, snapshot);

    // And what the storage lost is not promised any longer.
    std::fs::remove_dir_all(stage.image(&snapshot, "data").parent().unwrap()).unwrap();
    let report = stage.service.json(&["reconcile"]);
    assert_eq!(report["lost"][0], snapshot["id"]);
    assert_eq!(stage.vm.guest.json("hostsnap --json show latest")["state"], "failed");
}

#[test]
fn the_doctor_says_what_is_wrong() {
    let stage = Stage::set("doctor", &["data"]);
    stage.mount("/dev/vda", "/data");
    let findings = stage.vm.guest.json("hostsnap --json doctor");
    let failed = |findings: &serde_json::Value| {
        findings.as_array().unwrap().iter().filter(|one| one["status"] == "fail").count()
    };
    assert_eq!(failed(&findings), 0, "{findings}");

    let output = stage.vm.guest.run("hostsnap --json --host vsock:2:988 doctor");
    assert_eq!(output.status, 3, "{}", output.stderr);
    let findings: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    let host = findings.as_array().unwrap().iter().find(|one| one["id"] == "host").unwrap();
    assert_eq!(host["status"], "fail");
    assert!(!host["remedy"].as_str().unwrap().is_empty());
}

#[test]
fn a_snapshot_that_is_in_use_is_not_deleted_and_stays_in_the_list() {
    let stage = Stage::set("in-use", &["data"]);
    stage.mount("/dev/vda", "/data");
    let snapshot = stage.create("/data");
    let folder = tempfile::tempdir().unwrap();
    let image = stage.image(&snapshot, "data");
    loopfs::run(Command::new("mount").args(["-o", "ro,loop,noload"]).arg(&image).arg(folder.path()));
    let output = stage.vm.guest.run("hostsnap delete --yes latest");
    assert_eq!(output.status, 6, "{}", output.stderr);
    assert_eq!(stage.vm.guest.json("hostsnap --json list")[0]["id"], snapshot["id"]);
    loopfs::run(Command::new("umount").arg(folder.path()));
    stage.vm.guest.sh("hostsnap delete --yes latest");
    assert!(stage.on_storage().is_empty());
}
