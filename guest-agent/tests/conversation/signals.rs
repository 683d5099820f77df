//! ^C and the stop of the service while something is quiesced.

use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use protocol::Consistency;
use protocol::evidence::{Freeze, HookOutcome};
use protocol::message::Reply;
use protocol::record::State;

use super::host::{Host, Talk, record};
use super::stage::{Stage, is_frozen};

const LEASE: Duration = Duration::from_secs(60);

static ENDED_BY: AtomicI32 = AtomicI32::new(0);

extern "C" fn end(signal: i32) {
    ENDED_BY.store(signal, SeqCst);
}

/// Stands for the end of the process, which a test must survive.
fn note_the_end() {
    ENDED_BY.store(0, SeqCst);
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler only stores into an atomic.
    unsafe { sigaction(Signal::SIGTERM, &action) }.unwrap();
}

#[test]
fn a_stop_before_the_cut_gives_up_releases_what_was_quiesced_and_then_ends() {
    let stage = Stage::set();
    note_the_end();
    stage.hook("10-db", "test $1 = post-thaw || kill -TERM $PPID");
    let path = stage.fs.path();
    let host = Host::start(vec![Box::new(move |talk: &mut Talk| {
        talk.prepared(LEASE);
        assert_eq!(ENDED_BY.load(SeqCst), 0, "it ends when all is released, not before");
        talk.aborted();
        assert!(!is_frozen(&path));
    })]);
    let error = stage.create(host.address()).unwrap_err();
    assert!(error.message.as_str().contains("SIGTERM"), "{error}");
    assert_eq!(stage.hook_calls(), ["10-db pre-freeze", "10-db freeze-failed", "10-db post-thaw"]);
    assert_eq!(ENDED_BY.load(SeqCst), Signal::SIGTERM as i32);
    host.done();
}

#[test]
fn a_stop_during_the_cut_still_concludes_so_that_the_record_is_true() {
    let stage = Stage::set();
    note_the_end();
    let host = Host::start(vec![Box::new(|talk: &mut Talk| {
        let prepare = talk.prepared(LEASE);
        talk.cut();
        raise(Signal::SIGTERM).unwrap();
        talk.cut_done();
        let conclude = talk.conclude();
        assert_eq!(conclude.evidence.freeze, Freeze::Held);
        assert!(!conclude.wait, "whoever was stopped does not wait");
        talk.send(&Reply::Snapshot(record(&prepare, State::Settling, Consistency::Filesystem)));
        talk.say_nothing();
    })]);
    assert!(stage.create(host.address()).is_ok());
    assert_eq!(ENDED_BY.load(SeqCst), Signal::SIGTERM as i32);
    host.done();
    stage.writes();
}

/// With a signal mask instead of handlers, a hook's `timeout` could not have ended anything: programs
/// inherit the mask.
#[test]
fn a_hook_hears_the_signals_that_the_flow_holds_back() {
    let stage = Stage::set();
    stage.hook("10-db", "test $1 = post-thaw || kill -TERM $$; exit 0");
    let host = Host::start(vec![Box::new(|talk: &mut Talk| {
        let prepare = talk.prepared(LEASE);
        talk.cut();
        talk.cut_done();
        let hooks = talk.conclude().evidence.hooks;
        assert_eq!(hooks[0].outcome, HookOutcome::Signalled(Signal::SIGTERM as i32));
        talk.send(&Reply::Snapshot(record(&prepare, State::Ready, Consistency::Filesystem)));
        talk.say_nothing();
    })]);
    assert!(stage.create(host.address()).is_ok());
    host.done();
}
