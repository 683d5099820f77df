//! A host that refuses, is silent or talks nonsense at each step: a clear error in time, nothing
//! left frozen.

use std::time::Duration;

use guest_agent::flow::Outcome;
use protocol::evidence::Freeze;
use protocol::message::{CutDone, Reply, Request};
use protocol::record::State;
use protocol::{Consistency, ErrorCode, Ticket, WireError};
use uuid::Uuid;

use super::host::{Host, Script, Talk, record};
use super::stage::{Stage, is_frozen};

const LEASE: Duration = Duration::from_secs(60);

#[test]
fn a_fault_before_the_cut_ends_in_its_exit_code_and_freezes_nothing() {
    let stage = Stage::set();
    let refuse = |code| Reply::Error(WireError::new(code, "no"));
    let table: Vec<(&str, Script, u8)> = vec![
        ("hangs up at once", Box::new(|_| ()), 3),
        (
            "is silent at Hello",
            Box::new(|talk| {
                assert!(matches!(talk.receive(), Request::Hello(_)));
                talk.say_nothing();
            }),
            9,
        ),
        (
            "answers Hello with a frame of 4 GiB",
            Box::new(|talk| {
                talk.receive();
                talk.send_bytes(&[0xff; 4]);
                talk.say_nothing();
            }),
            1,
        ),
        (
            "answers Hello with bytes of no message",
            Box::new(|talk| {
                talk.receive();
                talk.send_bytes(&[2, 0, 0, 0, 0xfa, 0xfa]);
                talk.say_nothing();
            }),
            1,
        ),
        (
            "answers Hello with another answer",
            Box::new(|talk| {
                talk.receive();
                talk.send(&Reply::Pong(1));
                talk.say_nothing();
            }),
            1,
        ),
        (
            "speaks another version",
            Box::new(move |talk| {
                talk.receive();
                talk.send(&refuse(ErrorCode::UnsupportedVersion));
                talk.say_nothing();
            }),
            3,
        ),
        (
            "refuses",
            Box::new(move |talk| {
                talk.greet();
                talk.prepare();
                talk.send(&refuse(ErrorCode::Refused));
                talk.say_nothing();
            }),
            4,
        ),
        (
            "is busy, and was not lost before",
            Box::new(move |talk| {
                talk.greet();
                talk.prepare();
                talk.send(&refuse(ErrorCode::Busy));
                talk.say_nothing();
            }),
            6,
        ),
        (
            "is silent at Prepare",
            Box::new(|talk| {
                talk.greet();
                talk.prepare();
                talk.say_nothing();
            }),
            9,
        ),
        (
            "answers Prepare with CutDone",
            Box::new(|talk| {
                talk.greet();
                talk.prepare();
                talk.cut_done();
                talk.say_nothing();
            }),
            1,
        ),
        (
            "grants no time",
            Box::new(|talk| {
                talk.prepared(Duration::ZERO);
                talk.aborted();
            }),
            9,
        ),
    ];
    for (what, script, exit_code) in table {
        let host = Host::start(vec![script]);
        let error = stage.create(host.address()).unwrap_err();
        assert_eq!(error.code.exit_code(), exit_code, "the host {what}: {error}");
        assert!(!error.message.as_str().is_empty());
        assert!(!is_frozen(&stage.fs.path()), "the host {what}");
        host.done();
    }
}

#[test]
fn nobody_listening_is_said_at_once() {
    let stage = Stage::set();
    let address = "unix:/nonexistent/host".parse().unwrap();
    let error = stage.create(address).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
    assert!(error.message.as_str().contains("unix:/nonexistent/host"), "{error}");
}

#[test]
fn a_lease_that_the_hooks_use_up_is_not_frozen_into() {
    let stage = Stage::set();
    stage.hook("10-slow", "sleep 0.3");
    let host = Host::start(vec![Box::new(|talk: &mut Talk| {
        talk.prepared(Duration::from_millis(100));
        talk.aborted();
    })]);
    let error = stage.create(host.address()).unwrap_err();
    assert_eq!(error.code, ErrorCode::LeaseExpired);
    assert!(error.message.as_str().contains("100 ms"), "{error}");
    assert_eq!(stage.hook_calls(), ["10-slow pre-freeze", "10-slow freeze-failed", "10-slow post-thaw"]);
    host.done();
}

#[test]
fn a_host_that_refuses_the_cut_leaves_nothing_frozen() {
    let stage = Stage::set();
    let host = Host::start(vec![Box::new(|talk: &mut Talk| {
        talk.prepared(LEASE);
        talk.cut();
        talk.send(&Reply::Error(WireError::new(ErrorCode::StorageFailed, "the disk is gone")));
        talk.say_nothing();
    })]);
    let error = stage.create(host.address()).unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::StorageFailed, "the disk is gone"));
    host.done();
    stage.writes();
}

#[test]
fn a_cut_that_comes_after_the_deadline_is_concluded_as_not_held() {
    let mut stage = Stage::set();
    stage.options.freeze_timeout = Duration::from_millis(300);
    stage.around.limits.late_cut = Duration::from_secs(60);
    let path = stage.fs.path();
    let host = Host::start(vec![Box::new(move |talk: &mut Talk| {
        talk.prepared(LEASE);
        assert!(talk.cut().within_us <= 300_000);
        harness::wait::wait_until("the guest thaws", Duration::from_secs(60), || !is_frozen(&path));
        talk.cut_done();
        let Freeze::NotHeld(why) = talk.conclude().evidence.freeze else { panic!("claims to have held") };
        assert!(!why.as_str().is_empty());
        talk.send(&Reply::Error(WireError::new(ErrorCode::ConsistencyNotReached, "only crash")));
        talk.say_nothing();
    })]);
    let error = stage.create(host.address()).unwrap_err();
    assert_eq!(error.code.exit_code(), 7, "{error}");
    host.done();
    stage.writes();
}

#[test]
fn an_answer_under_anothers_ticket_is_not_believed() {
    let stage = Stage::set();
    let host = Host::start(vec![
        Box::new(|talk: &mut Talk| {
            talk.prepared(LEASE);
            talk.cut();
            talk.send(&Reply::CutDone(CutDone { ticket: Ticket::from_uuid(Uuid::from_u128(8)), took_us: 1 }));
            talk.say_nothing();
        }),
        Box::new(|talk: &mut Talk| {
            talk.existing(State::Ready, Consistency::Filesystem);
            talk.say_nothing();
        }),
    ]);
    assert!(matches!(stage.create(host.address()), Ok(Outcome::Snapshot(_))));
    host.done();
}

#[test]
fn what_the_host_did_not_keep_is_an_error_with_its_reason() {
    let stage = Stage::set();
    let host = Host::start(vec![Box::new(|talk: &mut Talk| {
        talk.prepared(LEASE);
        talk.cut();
        talk.cut_done();
        talk.conclude();
        talk.send(&Reply::Error(WireError::new(ErrorCode::NoSpace, "no room")));
        talk.say_nothing();
    })]);
    assert_eq!(stage.create(host.address()).unwrap_err().code.exit_code(), 8);
    host.done();
}

#[test]
fn a_request_that_was_answered_before_gives_that_snapshot_and_freezes_nothing() {
    let stage = Stage::set();
    let host = Host::start(vec![
        Box::new(|talk: &mut Talk| {
            let prepare = talk.existing(State::Settling, Consistency::Filesystem);
            for state in [State::Settling, State::Ready] {
                assert!(matches!(talk.receive(), Request::Get(_)));
                talk.send(&Reply::Snapshot(record(&prepare, state, Consistency::Filesystem)));
            }
            talk.say_nothing();
        }),
        Box::new(|talk: &mut Talk| {
            talk.existing(State::Ready, Consistency::Crash);
            talk.say_nothing();
        }),
        Box::new(|talk: &mut Talk| {
            talk.existing(State::Failed, Consistency::Filesystem);
            talk.say_nothing();
        }),
    ]);
    let Outcome::Snapshot(snapshot) = stage.create(host.address()).unwrap() else { panic!("no snapshot") };
    assert_eq!(snapshot.state, State::Ready);

    let less = stage.create(host.address()).unwrap_err();
    assert_eq!(less.code.exit_code(), 7);
    assert!(less.message.as_str().contains(&snapshot.id.to_string()), "{less}");
    assert_eq!(stage.create(host.address()).unwrap_err().code.exit_code(), 8);
    host.done();
}
