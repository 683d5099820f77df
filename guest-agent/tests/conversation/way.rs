//! The way of a snapshot when all goes well, and where less was asked for.

use std::process::Command;
use std::time::Duration;

use guest_agent::flow::{Outcome, Told};
use guest_agent::freeze::FreezeLock;
use protocol::agent::AgentPhase;
use protocol::evidence::{Freeze, HookOutcome};
use protocol::message::{DiskInfo, Planned, Progress, Reply};
use protocol::record::State;
use protocol::{Consistency, ErrorCode, SnapshotId, VmUuid};
use uuid::Uuid;

use super::host::{Host, Talk, record};
use super::stage::{Stage, is_frozen};

const LEASE: Duration = Duration::from_secs(60);
const PROGRESS: Progress = Progress { done_bytes: 5, total_bytes: 10 };

#[test]
fn everything_slow_comes_before_the_freeze_and_the_cut_comes_while_it_is_held() {
    let stage = Stage::set();
    stage.hook("10-db", "exit 0");
    let path = stage.fs.path();
    let host = Host::start(vec![Box::new(move |talk: &mut Talk| {
        talk.greet();
        let prepare = talk.prepare();
        assert!(!is_frozen(&path), "nothing is frozen while the host makes ready");
        assert_eq!(prepare.disks[0].serial.as_str(), "data");
        assert_eq!(prepare.mounts[0].path.as_str(), path.to_str().unwrap());
        let id = SnapshotId::derive(VmUuid::from_uuid(Uuid::from_u128(1)), prepare.request);
        talk.send(&Reply::Prepared(protocol::message::Prepared {
            ticket: super::host::TICKET,
            id,
            lease_ms: 60_000,
        }));
        let cut = talk.cut();
        assert!(is_frozen(&path), "the cut is asked for while frozen");
        assert!(cut.within_us > 1_000_000 && cut.within_us <= 30_000_000, "{cut:?}");
        talk.cut_done();
        let conclude = talk.conclude();
        assert!(!is_frozen(&path), "it is thawed before anything else is said");
        assert_eq!(conclude.evidence.freeze, Freeze::Held);
        assert!(conclude.evidence.file_systems[0].was_held());
        assert_eq!(conclude.evidence.hooks[0].outcome, HookOutcome::Exited(0));
        let timing = conclude.timing;
        assert!(timing.stall_us >= timing.freeze_us + timing.cut_us, "{timing:?}");
        assert!(conclude.wait);
        talk.send(&Reply::Progress(PROGRESS));
        talk.send(&Reply::Snapshot(record(&prepare, State::Ready, Consistency::Application)));
        talk.say_nothing();
    })]);
    let mut told = Vec::new();
    let outcome = stage.create_telling(host.address(), &mut |what| told.push(what)).unwrap();
    let Outcome::Snapshot(snapshot) = outcome else { panic!("{outcome:?}") };
    assert_eq!(snapshot.request, stage.options.request);
    assert_eq!(stage.hook_calls(), ["10-db pre-freeze", "10-db post-thaw"]);
    let phase = |phase| told.iter().position(|what| *what == Told::Phase(phase)).expect("a phase");
    assert!(phase(AgentPhase::Frozen) < phase(AgentPhase::Settling), "{told:?}");
    assert_eq!(told.last(), Some(&Told::Progress(PROGRESS)));
    host.done();
    stage.writes();
}

#[test]
fn a_dry_run_freezes_nothing_whatever_the_host_answers() {
    let mut stage = Stage::set();
    stage.options.dry_run = true;
    let planned = Planned {
        id: SnapshotId::from_uuid(Uuid::from_u128(9)),
        disks: vec![DiskInfo {
            serial: "data".parse().unwrap(),
            driver: "qemu".parse().unwrap(),
            size_bytes: None,
            problem: "".parse().unwrap(),
        }]
        .try_into()
        .unwrap(),
    };
    let answer = planned.clone();
    let host = Host::start(vec![
        Box::new(move |talk: &mut Talk| {
            talk.greet();
            assert!(talk.prepare().dry_run);
            talk.send(&Reply::Planned(answer));
            talk.say_nothing();
        }),
        Box::new(|talk: &mut Talk| {
            talk.prepared(LEASE);
            talk.say_nothing();
        }),
    ]);
    let outcome = stage.create(host.address()).unwrap();
    let Outcome::Planned { planned: got, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(got, planned);
    // A host that takes the dry run for a wish must not be believed.
    let error = stage.create(host.address()).unwrap_err();
    assert_eq!(error.code, ErrorCode::Malformed, "{error}");
    host.done();
}

#[test]
fn somebody_elses_freeze_is_respected_and_ends_the_request_before_the_cut() {
    let stage = Stage::set();
    assert!(Command::new("fsfreeze").arg("-f").arg(stage.fs.path()).status().unwrap().success());
    let host = Host::start(vec![Box::new(|talk: &mut Talk| {
        talk.prepared(LEASE);
        talk.aborted();
    })]);
    let error = stage.create(host.address()).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFreezable);
    assert!(error.message.as_str().contains("frozen already"), "{error}");
    assert!(is_frozen(&stage.fs.path()), "theirs stays frozen");
    host.done();
}

#[test]
fn with_crash_as_the_minimum_what_could_not_be_frozen_is_cut_all_the_same_and_said() {
    let mut stage = Stage::set();
    stage.options.minimum = Consistency::Crash;
    assert!(Command::new("fsfreeze").arg("-f").arg(stage.fs.path()).status().unwrap().success());
    let host = Host::start(vec![Box::new(|talk: &mut Talk| {
        let prepare = talk.prepared(LEASE);
        talk.cut();
        talk.cut_done();
        let evidence = talk.conclude().evidence;
        let Freeze::NotHeld(why) = &evidence.freeze else { panic!("{evidence:?}") };
        assert!(why.as_str().contains("frozen already"), "{why}");
        assert_eq!(evidence.file_systems[0].freeze.unwrap().errno, 16, "EBUSY is evidence");
        talk.send(&Reply::Snapshot(record(&prepare, State::Ready, Consistency::Crash)));
        talk.say_nothing();
    })]);
    assert!(matches!(stage.create(host.address()), Ok(Outcome::Snapshot(_))));
    host.done();
}

#[test]
fn a_disk_that_something_else_writes_to_is_not_passed_off_as_frozen() {
    let mut stage = Stage::set();
    // In use, but by nothing that is mounted as far as the flow was told.
    stage.target.disks[0].0.name = stage.loop_device();
    stage.target.file_systems.clear();
    let host = Host::start(vec![
        Box::new(|talk: &mut Talk| {
            talk.prepared(LEASE);
            talk.aborted();
        }),
        Box::new(|talk: &mut Talk| {
            let prepare = talk.prepared(LEASE);
            talk.cut();
            talk.cut_done();
            let freeze = talk.conclude().evidence.freeze;
            assert!(matches!(freeze, Freeze::NotHeld(_)), "{freeze:?}");
            talk.send(&Reply::Snapshot(record(&prepare, State::Ready, Consistency::Crash)));
            talk.say_nothing();
        }),
    ]);
    let error = stage.create(host.address()).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFreezable);
    assert!(error.message.as_str().contains(&stage.loop_device()), "{error}");
    stage.options.minimum = Consistency::Crash;
    assert!(stage.create(host.address()).is_ok());
    host.done();
}

#[test]
fn application_consistency_without_hooks_is_refused_before_anything_is_sent() {
    let mut stage = Stage::set();
    stage.options.minimum = Consistency::Application;
    let host = Host::start(Vec::new());
    let error = stage.create(host.address()).unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert!(error.hint.as_str().contains("--consistency filesystem"), "{error}");
    host.done();
}

#[test]
fn a_failed_hook_ends_the_request_only_where_application_consistency_was_asked_for() {
    let mut stage = Stage::set();
    stage.hook("10-db", "test $1 = post-thaw");
    stage.options.minimum = Consistency::Application;
    let host = Host::start(vec![
        Box::new(|talk: &mut Talk| {
            talk.prepared(LEASE);
            talk.aborted();
        }),
        Box::new(|talk: &mut Talk| {
            let prepare = talk.prepared(LEASE);
            talk.cut();
            talk.cut_done();
            let evidence = talk.conclude().evidence;
            assert_eq!(evidence.freeze, Freeze::Held);
            assert_eq!(evidence.hooks[0].outcome, HookOutcome::Exited(1));
            talk.send(&Reply::Snapshot(record(&prepare, State::Ready, Consistency::Filesystem)));
            talk.say_nothing();
        }),
    ]);
    assert_eq!(stage.create(host.address()).unwrap_err().code, ErrorCode::HookFailed);
    stage.options.minimum = Consistency::Filesystem;
    assert!(stage.create(host.address()).is_ok());
    // Released both times, whatever came of it.
    assert_eq!(stage.hook_calls(), ["10-db pre-freeze", "10-db freeze-failed", "10-db post-thaw"].repeat(2));
    host.done();
}

#[test]
fn a_second_snapshot_of_this_machine_waits_before_it_asks_anything() {
    let mut stage = Stage::set();
    let first = FreezeLock::take(&stage.around.run, stage.around.lock_limit).unwrap();
    stage.around.lock_limit = Duration::from_millis(50);
    let nobody = Host::start(Vec::new());
    let error = stage.create(nobody.address()).unwrap_err();
    assert_eq!(error.code, ErrorCode::Busy);
    assert!(error.message.as_str().contains("another snapshot"), "{error}");
    nobody.done();

    drop(first);
    let host = Host::start(vec![Box::new(|talk: &mut Talk| {
        talk.existing(State::Ready, Consistency::Filesystem);
        talk.say_nothing();
    })]);
    assert!(stage.create(host.address()).is_ok());
    host.done();
}
