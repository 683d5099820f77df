//! A host that is lost after it was asked. Only repeating the request tells what became of it: a
//! snapshot is never acknowledged and lost, nor there without anybody's knowledge.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use guest_agent::flow::{Outcome, Told};
use protocol::message::Reply;
use protocol::record::State;
use protocol::{Consistency, ErrorCode, SnapshotId, WireError};

use super::host::{Host, Script, TICKET, Talk, record};
use super::stage::{Stage, is_frozen};

const LEASE: Duration = Duration::from_secs(60);

fn lost_at_the_cut() -> Script {
    Box::new(|talk| {
        talk.prepared(LEASE);
        talk.cut();
    })
}

#[test]
fn lost_between_cut_and_answer_it_thaws_at_once_and_asks_again_for_the_same_request() {
    let stage = Stage::set();
    let request = stage.options.request;
    let path = stage.fs.path();
    let host = Host::start(vec![
        lost_at_the_cut(),
        Box::new(move |talk: &mut Talk| {
            assert!(!is_frozen(&path), "it is thawed before anything is asked again");
            let prepare = talk.existing(State::Ready, Consistency::Filesystem);
            assert_eq!(prepare.request, request);
            talk.say_nothing();
        }),
    ]);
    let mut retries = 0;
    let outcome =
        stage.create_telling(host.address(), &mut |told| retries += usize::from(told == Told::Retrying));
    let Outcome::Snapshot(snapshot) = outcome.unwrap() else { panic!("no snapshot") };
    assert_eq!((snapshot.request, retries), (request, 1));
    host.done();
    stage.writes();
}

/// Nobody listening while hostsnapd was restarted ended the retries at the first refused
/// connection, and the user never learned of the snapshot.
#[test]
fn a_host_that_is_being_restarted_is_waited_for() {
    let stage = Stage::set();
    let host = Host::restarting(
        lost_at_the_cut(),
        vec![
            Box::new(|talk: &mut Talk| {
                talk.greet();
                talk.prepare();
                talk.send(&Reply::Error(WireError::new(ErrorCode::Busy, "this request is being worked on")));
                talk.say_nothing();
            }),
            Box::new(|talk: &mut Talk| {
                talk.existing(State::Ready, Consistency::Filesystem);
                talk.say_nothing();
            }),
        ],
    );
    assert!(matches!(stage.create(host.address()), Ok(Outcome::Snapshot(_))));
    host.done();
}

#[test]
fn a_host_that_never_answers_the_cut_is_asked_again_too() {
    let mut stage = Stage::set();
    stage.options.freeze_timeout = Duration::from_millis(200);
    let host = Host::start(vec![
        Box::new(|talk: &mut Talk| {
            talk.prepared(LEASE);
            talk.cut();
            talk.say_nothing();
        }),
        Box::new(|talk: &mut Talk| {
            talk.existing(State::Ready, Consistency::Crash);
            talk.say_nothing();
        }),
    ]);
    // The host kept it as what it is; the user wanted more.
    assert_eq!(stage.create(host.address()).unwrap_err().code, ErrorCode::ConsistencyNotReached);
    host.done();
    stage.writes();
}

#[test]
fn lost_at_the_conclusion_it_asks_again() {
    let stage = Stage::set();
    let host = Host::start(vec![
        Box::new(|talk: &mut Talk| {
            talk.prepared(LEASE);
            talk.cut();
            talk.cut_done();
            talk.conclude();
        }),
        Box::new(|talk: &mut Talk| {
            talk.existing(State::Ready, Consistency::Filesystem);
            talk.say_nothing();
        }),
    ]);
    assert!(stage.create(host.address()).is_ok());
    host.done();
}

#[test]
fn where_nothing_was_cut_it_is_taken_anew() {
    let stage = Stage::set();
    let host = Host::start(vec![
        lost_at_the_cut(),
        Box::new(|talk: &mut Talk| {
            let prepare = talk.prepared(LEASE);
            talk.cut();
            talk.cut_done();
            talk.conclude();
            talk.send(&Reply::Snapshot(record(&prepare, State::Ready, Consistency::Filesystem)));
            talk.say_nothing();
        }),
    ]);
    assert!(stage.create(host.address()).is_ok());
    host.done();
}

#[test]
fn a_host_that_dies_at_every_cut_does_not_freeze_the_machine_for_ever() {
    let stage = Stage::set();
    let cuts = Arc::new(AtomicUsize::new(0));
    let dying = || -> Script {
        let cuts = Arc::clone(&cuts);
        Box::new(move |talk| {
            talk.prepared(LEASE);
            talk.cut();
            cuts.fetch_add(1, SeqCst);
        })
    };
    let host = Host::start(vec![dying(), dying(), dying()]);
    let error = stage.create(host.address()).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
    let request = stage.options.request.to_string();
    assert!(error.hint.as_str().contains(&request), "it can be repeated later: {error}");
    assert_eq!(cuts.load(SeqCst), 3);
    host.done();
    stage.writes();
}

#[test]
fn a_host_that_stays_away_is_given_up_after_a_while() {
    let mut stage = Stage::set();
    stage.around.limits.lost = Duration::from_millis(300);
    let host = Host::restarting(lost_at_the_cut(), Vec::new());
    let error = stage.create(host.address()).unwrap_err();
    assert_eq!(error.code.exit_code(), 3, "{error}");
    host.done();
    stage.writes();
}

const ID: SnapshotId = SnapshotId::from_uuid(uuid::Uuid::from_u128(9));

/// What the host does before it is gone for good.
fn until(step: usize) -> Script {
    Box::new(move |talk| {
        let steps: [&dyn Fn(&mut Talk); 6] = [
            &|talk| talk.greet(),
            &|talk| drop(talk.prepare()),
            &|talk| talk.grant(ID, LEASE),
            &|talk| assert_eq!(talk.cut().ticket, TICKET),
            &|talk| talk.cut_done(),
            &|talk| drop(talk.conclude()),
        ];
        steps.iter().take(step).for_each(|next| next(talk));
    })
}

#[test]
fn after_whichever_message_the_host_is_gone_it_is_said_with_what_to_do_and_nothing_is_frozen() {
    let mut stage = Stage::set();
    stage.around.limits.lost = Duration::from_millis(300);
    stage.hook("10-db", "exit 0");
    for step in 0..=6 {
        let host = Host::restarting(until(step), Vec::new());
        let error = stage.create(host.address()).unwrap_err();
        assert_eq!(error.code.exit_code(), 3, "gone after {step} messages: {error}");
        // Before it was asked for anything there is nothing to learn by repeating it.
        let names_the_request = error.hint.as_str().contains(&stage.options.request.to_string());
        assert_eq!(names_the_request, step >= 1, "gone after {step} messages: {error}");
        assert!(!error.hint.as_str().is_empty(), "gone after {step} messages: {error}");
        assert!(!is_frozen(&stage.fs.path()), "gone after {step} messages");
        stage.writes();
        host.done();
    }
    let calls = stage.hook_calls();
    let [quiesced, released] =
        ["10-db pre-freeze", "10-db post-thaw"].map(|call| calls.iter().filter(|one| *one == call).count());
    assert!(quiesced > 0 && quiesced == released, "{calls:?}");
}
