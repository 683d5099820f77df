//! Guests and services that end in the middle, and clients that come side by side. After each message
//! the host knows what to do without being told: what was not cut is gone, what was cut and concluded
//! is kept, and what was cut and not concluded is worth a crash, kept only where that was accepted.

use harness::wait::wait_until;
use protocol::message::{Reply, Request};
use protocol::{BootId, Consistency, ErrorCode, RequestId};
use rustix::process::Signal;

use super::guest::hello;
use super::stage::{Guest, LIMIT, Stage, conclude, cut, id_of, request};

/// After which message it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum After {
    Connecting,
    Hello,
    Prepare,
    Cut,
    Conclude,
}

use After::{Conclude, Connecting, Cut, Hello, Prepare};

const ALL: [After; 5] = [Connecting, Hello, Prepare, Cut, Conclude];

/// A guest that has come so far, and has heard the answers.
fn guest_after(stage: &Stage, after: After, asked: &protocol::message::Prepare) -> Guest {
    if after == Connecting {
        return stage.connect();
    }
    let mut guest = stage.greeted();
    if after >= Prepare {
        let ticket = guest.prepare(asked).unwrap().ticket;
        if after >= Cut {
            guest.asks(&cut(ticket)).unwrap();
        }
        if after == Conclude {
            guest.asks(&conclude(ticket)).unwrap();
        }
    }
    guest
}

/// What must be there when nobody was heard of again.
fn expected(after: After, minimum: Consistency) -> Option<&'static str> {
    match after {
        Conclude => Some("filesystem"),
        Cut if minimum == Consistency::Crash => Some("crash"),
        _ => None,
    }
}

#[track_caller]
fn must_be_decided(stage: &Stage, what: &str, expected: Option<&str>) {
    wait_until(what, LIMIT, || {
        let list = stage.admin(&["list", "--json"]).json();
        let told = list[0]["consistency"].as_str().filter(|_| list[0]["state"] == "ready");
        let whole = stage.on_storage().iter().all(|name| !name.contains('.'));
        told == expected && whole && stage.on_storage().len() == usize::from(expected.is_some())
    });
}

/// The same request again: it is answered once, whatever came of it before.
#[track_caller]
fn must_be_answered(stage: &Stage, what: &str, asked: &protocol::message::Prepare, before: Option<&str>) {
    let mut answer = stage.take(asked);
    wait_until("who was there before has let go", LIMIT, || {
        let is_busy = answer.as_ref().is_err_and(|error| error.code == ErrorCode::Busy);
        if is_busy {
            answer = stage.take(asked);
        }
        !is_busy
    });
    let record = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(record.id.to_string(), id_of(asked), "{what}");
    assert_eq!(record.consistency.as_str(), before.unwrap_or("filesystem"), "{what}");
    assert_eq!(stage.on_storage(), [id_of(asked)], "{what}");
    assert_eq!(stage.admin(&["reconcile"]).out, "the catalog and the storage agree\n", "{what}");
    assert_eq!(stage.admin(&["delete", "latest"]).code, 0, "{what}");
}

#[test]
fn a_connection_that_is_cut_after_any_message_leaves_nothing_half_done() {
    let stage = Stage::set();
    for minimum in [Consistency::Crash, Consistency::Filesystem] {
        for after in ALL {
            for torn in [false, true] {
                let what = format!("cut off after {after:?}, torn: {torn}, at least {minimum}");
                let asked = request(minimum);
                let mut guest = guest_after(&stage, after, &asked);
                if torn {
                    guest.sends_half_a_message();
                }
                drop(guest);
                must_be_decided(&stage, &what, expected(after, minimum));
                must_be_answered(&stage, &what, &asked, expected(after, minimum));
            }
        }
    }
}

#[test]
fn a_service_that_is_killed_after_any_message_knows_afterwards_what_it_has() {
    let mut stage = Stage::set();
    for minimum in [Consistency::Crash, Consistency::Filesystem] {
        for after in ALL {
            let what = format!("killed after {after:?}, at least {minimum}");
            let asked = request(minimum);
            let mut guest = guest_after(&stage, after, &asked);
            stage.kill();
            assert_eq!(guest.hears(), None, "{what}: the guest learns that it is gone");
            stage.start();
            must_be_decided(&stage, &what, expected(after, minimum));
            must_be_answered(&stage, &what, &asked, expected(after, minimum));
        }
    }
}

#[test]
fn a_service_that_is_stopped_lets_what_was_begun_end() {
    let stage = Stage::set();
    let asked = request(Consistency::Filesystem);
    let mut guest = stage.greeted();
    let ticket = guest.prepare(&asked).unwrap().ticket;
    stage.signal(Signal::TERM);
    wait_until("it stops", LIMIT, || stage.printed().contains("stopping"));
    guest.asks(&cut(ticket)).unwrap();
    guest.asks(&conclude(ticket)).unwrap();
    assert_eq!(stage.on_storage(), [id_of(&asked)]);
}

/// Over vsock a guest that was reset says nothing to its open conversations: the host held what they
/// had begun, with QEMU the monitor too, until the lease was over.
#[test]
fn a_guest_that_was_started_anew_ends_its_earlier_conversations_at_once() {
    let stage = Stage::set();
    let boots = [1, 2].map(|n| Some(BootId::from_uuid(uuid::Uuid::from_u128(n))));
    for minimum in [Consistency::Crash, Consistency::Filesystem] {
        for after in [Hello, Prepare, Cut] {
            let what = format!("reset after {after:?}, at least {minimum}");
            let asked = request(minimum);
            let mut before = stage.greeted_by(boots[0]);
            if after >= Prepare {
                let ticket = before.prepare(&asked).unwrap().ticket;
                if after == Cut {
                    before.asks(&cut(ticket)).unwrap();
                }
            }
            let mut again = stage.greeted_by(boots[1]);
            assert_eq!(before.hears(), None, "{what}: it ends");
            must_be_decided(&stage, &what, expected(after, minimum));
            assert_eq!(again.ask(&Request::Ping(1)), Reply::Pong(1));
            must_be_answered(&stage, &what, &asked, expected(after, minimum));
        }
    }
    // One boot may well have several.
    let [mut first, mut second] = [stage.greeted_by(boots[0]), stage.greeted_by(boots[0])];
    for guest in [&mut first, &mut second] {
        assert_eq!(guest.ask(&Request::Ping(1)), Reply::Pong(1));
    }
}

#[test]
fn two_clients_at_the_same_time_get_two_snapshots_or_one_of_them_is_told_to_wait() {
    let stage = Stage::set();
    let asked = request(Consistency::Filesystem);
    let [mut first, mut second] = [stage.greeted(), stage.greeted()];
    let ticket = first.prepare(&asked).unwrap().ticket;

    let busy = second.prepare(&asked).unwrap_err();
    assert_eq!((busy.code, busy.code.exit_code()), (ErrorCode::Busy, 6), "{busy}");
    assert!(busy.hint.as_str().contains("repeat"), "{busy}");
    let foreign = second.asks(&cut(ticket)).unwrap_err();
    assert_eq!(foreign.code, ErrorCode::OutOfOrder, "another's ticket: {foreign}");
    let other = protocol::message::Prepare { request: RequestId::random(), ..asked.clone() };
    let own = second.take(&other).unwrap();

    first.asks(&cut(ticket)).unwrap();
    first.asks(&conclude(ticket)).unwrap();
    assert_eq!(second.take(&asked).unwrap().id.to_string(), id_of(&asked), "the same, not a second one");
    assert_eq!(stage.listed(), [id_of(&asked), own.id.to_string()]);
}

#[test]
fn a_connection_too_many_is_turned_away_and_the_others_go_on() {
    let stage = Stage::set();
    let mut guests: Vec<_> = (0..8).map(|_| stage.greeted()).collect();
    let Some(Reply::Error(error)) = stage.connect().hears() else { panic!("it was let in") };
    assert_eq!((error.code, error.code.exit_code()), (ErrorCode::TooManySessions, 6), "{error}");
    assert!(!error.hint.as_str().is_empty());
    for guest in &mut guests {
        assert_eq!(guest.ask(&Request::Ping(1)), Reply::Pong(1));
    }
    guests.pop();
    wait_until("there is room again", LIMIT, || stage.connect().let_in());
}

/// The disasters' matrix lost a snapshot so: a host that was away for a minute after the cut came back, found that the guest
/// had been silent for as long as it may be, and did not look what it had said meanwhile.
#[test]
fn what_a_guest_said_while_the_service_itself_was_stopped_is_heard() {
    let stage = Stage::set();
    let mut guests: Vec<_> = (0..6).map(|_| stage.connect()).collect();
    // Accepted in their order: whoever was before this one is being listened to.
    drop(stage.greeted());
    stage.signal(Signal::STOP);
    for guest in &mut guests {
        guest.send(&hello(None));
    }
    // Longer than a guest may be silent after it has connected.
    std::thread::sleep(std::time::Duration::from_millis(5500));
    stage.signal(Signal::CONT);
    for guest in &mut guests {
        assert!(matches!(guest.hears(), Some(Reply::Hello(_))));
    }
}
