//! A snapshot without the guest: the machine stands still while its disks are cut, and goes on whatever happens.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use harness::loopfs::run;
use harness::wait::wait_until;
use rustix::process::Signal;

use super::stage::{LIMIT, Stage};
use super::tracer::{Before, Fault};

#[test]
fn disks_that_are_cut_one_after_another_are_of_one_instant_because_the_machine_stands_still() {
    let stage = Stage::new(&["data", "log"]);
    let events = stage.events();
    let snapshot = stage.cut_alone();
    assert_eq!(events.until_now(), ["STOP", "RESUME"]);
    assert_eq!(stage.status(), "running");
    assert_eq!(snapshot["consistency"], "crash");
    assert_eq!(snapshot["state"], "ready");
    let reason = snapshot["consistency_reason"].as_str().unwrap();
    assert!(reason.starts_with("no freeze was asked for; the machine was paused for"), "{reason}");
    assert!(reason.ends_with("makes one instant of all its disks"), "{reason}");

    let asked_too_much = stage.served.admin(&["create", "db1", "--no-agent", "--consistency", "filesystem"]);
    let said = String::from_utf8_lossy(&asked_too_much.stderr).into_owned();
    assert!(!asked_too_much.status.success() && said.contains("--consistency crash"), "{said}");
}

#[test]
fn a_machine_with_one_disk_is_not_paused() {
    let stage = Stage::new(&["data"]);
    let events = stage.events();
    let snapshot = stage.cut_alone();
    assert_eq!(events.until_now(), [""; 0]);
    assert_eq!(snapshot["consistency_reason"], "no freeze was asked for");
}

#[test]
fn a_machine_that_somebody_else_paused_stays_paused() {
    let mut stage = Stage::new(&["data", "log"]);
    stage.ask("stop");
    let events = stage.events();
    let snapshot = stage.cut_alone();
    assert_eq!(events.until_now(), [""; 0]);
    assert_eq!(stage.status(), "paused");
    let reason = snapshot["consistency_reason"].as_str().unwrap();
    assert!(reason.contains("somebody else had paused the machine"), "{reason}");

    stage.served.kill();
    stage.served.start();
    assert_eq!(stage.status(), "paused", "a service that starts lets go on only what it paused");
}

#[test]
fn a_machine_that_does_not_answer_is_not_cut_and_is_not_paused_later() {
    let stage = Stage::new(&["data", "log"]);
    stage.qemu.signal(Signal::STOP);
    let output = stage.served.admin(&["create", "db1", "--no-agent"]);
    stage.qemu.signal(Signal::CONT);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("nothing was cut"), "{said}");
    assert_eq!(stage.on_storage(), 0);
    assert_eq!(stage.status(), "running");
}

/// Nothing that is written to it ends, until it is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn file_system(at: &Path) -> Self {
        run(Command::new("fsfreeze").arg("-f").arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.0));
    }
}

#[test]
fn a_storage_that_hangs_in_the_cut_does_not_hold_the_machine() {
    let stage = Stage::new(&["data", "log"]);
    let (frozen, store) = (Arc::new(Mutex::new(None)), stage.store());
    let events = stage.events();
    let freezer = Arc::clone(&frozen);
    let freeze = move || *freezer.lock().unwrap() = Some(Frozen::file_system(&store));
    stage.served.traced().arm(Before::Having(&["clone into ", "_.partial/"]), Fault::After(Box::new(freeze)));
    let output = std::thread::scope(|scope| {
        let create = scope.spawn(|| stage.served.admin(&["create", "db1", "--no-agent"]));
        wait_until("the storage hangs", LIMIT, || frozen.lock().unwrap().is_some());
        assert_eq!(stage.status(), "paused");
        wait_until("the machine goes on all the same", LIMIT, || stage.status() == "running");
        assert!(!create.is_finished());
        drop(frozen.lock().unwrap().take());
        create.join().unwrap()
    });
    // The second disk is no longer begun: the two would not be of one instant.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert_eq!(events.until_now(), ["STOP", "RESUME"]);
    assert_eq!(stage.on_storage(), 0);
    assert_eq!(stage.cut_alone()["state"], "ready");
}

#[test]
fn killed_before_any_call_the_service_lets_the_machine_go_on_when_it_is_back() {
    let mut stage = Stage::new(&["data", "log"]);
    let mut struck = BTreeSet::new();
    let mut was_paused = 0;
    for n in 1.. {
        stage.served.traced().arm(Before::Nth(n), Fault::Kill(Box::new(|| ())));
        let output = stage.served.admin(&["create", "db1", "--no-agent"]);
        let (call, _) = stage.served.traced().disarm();
        let Some(call) = call else {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            break;
        };
        stage.served.kill();
        was_paused += usize::from(stage.status() == "paused");
        stage.served.start();
        assert_eq!(stage.status(), "running", "killed before call {n}, {call}");
        let reconciled = stage.served.admin(&["reconcile"]);
        let said = String::from_utf8_lossy(&reconciled.stdout);
        assert_eq!(said, "the catalog and the storage agree\n", "killed before call {n}, {call}");
        struck.insert(call);
    }
    println!("killed before {} different calls, {was_paused} times while it was paused", struck.len());
    assert!(was_paused > 0, "{struck:#?}");
    assert_eq!(stage.cut_alone()["state"], "ready");
}
