//! ^C, and the stop of a service, while something is quiesced: noted instead of ending the process
//! at once. The flow looks at its next step, releases what it holds, tells the host, and then ends
//! by the same signal. Every step has a limit, so it does end. Thawing does not depend on this: the
//! thaw keeper sees to it even after SIGKILL.
//!
//! Handlers, not a signal mask: programs inherit a mask, and a hook's `timeout` or `systemctl`
//! would no longer hear SIGTERM.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The signal that came; 0 is none.
static NOTED: AtomicI32 = AtomicI32::new(0);
/// Handlers belong to the process, so what stood before is kept by the first and restored by the last.
static HELD: Mutex<Held> = Mutex::new(Held { by: 0, before: Vec::new() });

struct Held {
    by: usize,
    before: Vec<(Signal, SigAction)>,
}

/// As long as one of these lives, SIGINT, SIGTERM and SIGHUP are only noted. When the last is
/// dropped, the one that came takes effect.
pub(crate) struct Patience(());

extern "C" fn note(signal: i32) {
    NOTED.store(signal, SeqCst);
}

impl Patience {
    pub(crate) fn new() -> Self {
        let mut held = HELD.lock().expect("no holder of this lock panics");
        held.by += 1;
        if held.by == 1 {
            let noting = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
            for signal in SIGNALS {
                // SAFETY: the handler stores into an atomic, which is async-signal-safe
                // (signal-safety(7)), and stays valid: it is a function. std has no signals.
                match unsafe { sigaction(signal, &noting) } {
                    // nohup(1) ignores SIGHUP, and means it.
                    Ok(before) if matches!(before.handler(), SigHandler::SigIgn) => restore(signal, &before),
                    Ok(before) => held.before.push((signal, before)),
                    // Then it ends the process at once, and the thaw keeper does the rest.
                    Err(_) => {}
                }
            }
        }
        Self(())
    }

    /// The signal that came meanwhile.
    pub(crate) fn stopped_by(&self) -> Option<Signal> {
        Signal::try_from(NOTED.load(SeqCst)).ok()
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        let mut held = HELD.lock().expect("no holder of this lock panics");
        held.by -= 1;
        if held.by > 0 {
            return;
        }
        held.before.drain(..).for_each(|(signal, before)| restore(signal, &before));
        drop(held);
        if let Ok(signal) = Signal::try_from(NOTED.swap(0, SeqCst)) {
            let _ = raise(signal);
        }
    }
}

fn restore(signal: Signal, action: &SigAction) {
    // SAFETY: the kernel gave us this action: it was in force before, and is as sound as it was.
    let _ = unsafe { sigaction(signal, action) };
}

#[cfg(test)]
mod tests {
    use super::*;

    static OUTER: AtomicI32 = AtomicI32::new(0);

    extern "C" fn outer(signal: i32) {
        OUTER.store(signal, SeqCst);
    }

    #[test]
    fn a_signal_waits_for_the_last_holder_and_then_takes_effect() {
        let action = SigAction::new(SigHandler::Handler(outer), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler stores into an atomic.
        unsafe { sigaction(Signal::SIGTERM, &action) }.unwrap();
        let first = Patience::new();
        let second = Patience::new();
        assert_eq!(first.stopped_by(), None);
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(second.stopped_by(), Some(Signal::SIGTERM));
        drop(first);
        assert_eq!(OUTER.load(SeqCst), 0, "the second still holds");
        drop(second);
        assert_eq!(OUTER.load(SeqCst), Signal::SIGTERM as i32);
        assert_eq!(Patience::new().stopped_by(), None, "it took effect once");
    }
}
