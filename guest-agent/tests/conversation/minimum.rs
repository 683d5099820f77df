//! The least that the user accepts: what hooks say of it, and what is kept anyway.

use std::time::Duration;

use guest_agent::flow::{Otherwise, Outcome, reached};
use protocol::evidence::{Freeze, HookOutcome};
use protocol::message::{Conclude, Reply};
use protocol::record::State;
use protocol::{Consistency, ErrorCode};

use super::host::{Host, Script, Talk, record};
use super::stage::{Stage, is_frozen};

const LEASE: Duration = Duration::from_secs(60);

/// A host that takes the snapshot and judges it so, by what the guest concludes.
fn judges(judge: impl Fn(&Conclude) -> Consistency + Send + 'static) -> Script {
    Box::new(move |talk: &mut Talk| {
        let prepare = talk.prepared(LEASE);
        talk.cut();
        talk.cut_done();
        let consistency = judge(&talk.conclude());
        talk.send(&Reply::Snapshot(record(&prepare, State::Ready, consistency)));
        talk.say_nothing();
    })
}

fn aborts() -> Script {
    Box::new(|talk: &mut Talk| {
        talk.prepared(LEASE);
        talk.aborted();
    })
}

#[test]
fn a_required_hook_that_fails_ends_the_request_before_the_freeze_whatever_the_minimum() {
    let mut stage = Stage::set();
    stage.hook("10-db", "# hostsnap: required\ntest $1 = post-thaw");
    let host = Host::start(vec![aborts(), aborts()]);
    for otherwise in [Otherwise::Remove, Otherwise::Keep] {
        stage.options.minimum = Consistency::Crash;
        stage.options.otherwise = otherwise;
        let error = stage.create(host.address()).unwrap_err();
        assert_eq!((error.code, error.code.exit_code()), (ErrorCode::HookFailed, 7), "{error}");
        assert!(error.message.as_str().contains("10-db exited with 1"), "{error}");
        assert!(error.hint.as_str().contains("best-effort"), "{error}");
    }
    host.done();
}

#[test]
fn a_lock_that_was_lost_before_its_release_is_in_the_evidence() {
    // A hook that holds a lock learns only afterwards that it was not held through the cut.
    let stage = Stage::set();
    stage.hook("10-db", "test $1 = pre-freeze");
    let host = Host::start(vec![judges(|conclude| {
        assert_eq!(conclude.evidence.freeze, Freeze::Held);
        assert_eq!(conclude.evidence.hooks[0].outcome, HookOutcome::Exited(1));
        Consistency::Filesystem
    })]);
    assert!(stage.create(host.address()).is_ok());
    assert_eq!(stage.hook_calls(), ["10-db pre-freeze", "10-db post-thaw"]);
    host.done();
}

#[test]
fn what_is_worth_less_is_kept_anyway_where_the_user_says_so() {
    let mut stage = Stage::set();
    stage.options.minimum = Consistency::Application;
    stage.options.otherwise = Otherwise::Keep;
    stage.hook("10-db", "test $1 = post-thaw");
    let host = Host::start(vec![
        Box::new(|talk: &mut Talk| {
            let prepare = talk.prepared(LEASE);
            assert_eq!(prepare.minimum, Consistency::Crash, "the host is not to remove it");
            talk.cut();
            talk.cut_done();
            assert_eq!(talk.conclude().evidence.hooks[0].outcome, HookOutcome::Exited(1));
            talk.send(&Reply::Snapshot(record(&prepare, State::Ready, Consistency::Filesystem)));
            talk.say_nothing();
        }),
        // The same request again gives the same snapshot, and the same judgement.
        Box::new(|talk: &mut Talk| {
            talk.existing(State::Ready, Consistency::Filesystem);
            talk.say_nothing();
        }),
    ]);
    for _ in 0..2 {
        let Outcome::Snapshot(kept) = stage.create(host.address()).unwrap() else { panic!("no snapshot") };
        let less = reached(&kept, stage.options.minimum).unwrap_err();
        assert_eq!((less.code, less.code.exit_code()), (ErrorCode::ConsistencyNotReached, 7));
        assert!(less.message.as_str().contains("filesystem-consistent"), "{less}");
        assert!(reached(&kept, Consistency::Filesystem).is_ok());
    }
    host.done();
}

#[test]
fn a_freeze_that_fails_goes_on_as_a_crash_where_it_is_kept_anyway() {
    let mut stage = Stage::set();
    stage.options.otherwise = Otherwise::Keep;
    stage.hook("10-db", "exit 0");
    harness::loopfs::run(std::process::Command::new("fsfreeze").arg("-f").arg(stage.fs.path()));
    let host = Host::start(vec![judges(|conclude| {
        assert!(matches!(&conclude.evidence.freeze, Freeze::NotHeld(why) if why.as_str().contains("frozen")));
        Consistency::Crash
    })]);
    let Outcome::Snapshot(kept) = stage.create(host.address()).unwrap() else { panic!("no snapshot") };
    assert_eq!(kept.consistency, Consistency::Crash);
    assert!(reached(&kept, stage.options.minimum).is_err());
    assert_eq!(stage.hook_calls(), ["10-db pre-freeze", "10-db freeze-failed", "10-db post-thaw"]);
    assert!(is_frozen(&stage.fs.path()), "it stays as somebody else froze it");
    harness::loopfs::run(std::process::Command::new("fsfreeze").arg("-u").arg(stage.fs.path()));
    host.done();
}

#[test]
fn without_hooks_application_consistency_is_tried_for_only_where_less_is_kept() {
    let mut stage = Stage::set();
    stage.options.minimum = Consistency::Application;
    stage.options.otherwise = Otherwise::Keep;
    let host = Host::start(vec![judges(|_| Consistency::Filesystem)]);
    let Outcome::Snapshot(kept) = stage.create(host.address()).unwrap() else { panic!("no snapshot") };
    assert!(reached(&kept, Consistency::Application).is_err());
    host.done();
}

#[test]
fn hooks_that_may_take_long_are_given_a_lease_that_is_long_enough() {
    let stage = Stage::set();
    stage.hook("10-db", "# hostsnap: timeout=4m\nexit 0");
    let host = Host::start(vec![Box::new(|talk: &mut Talk| {
        let prepare = talk.prepared(LEASE);
        assert_eq!(prepare.lease_ms, (30 + 30 + 240) * 1000, "freeze, flush, hooks");
        talk.cut();
        talk.cut_done();
        talk.conclude();
        talk.send(&Reply::Snapshot(record(&prepare, State::Ready, Consistency::Application)));
        talk.say_nothing();
    })]);
    assert!(stage.create(host.address()).is_ok());
    host.done();
}
