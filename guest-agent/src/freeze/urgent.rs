//! Before all else that wants the processor, while applications wait: whoever freezes and thaws is
//! scheduled in real time (sched(7), SCHED_FIFO). Else a thaw would queue behind the writers that
//! it is to release, and behind whatever loads the machine.
//!
//! Where that is not permitted (a container, `RestrictRealtime=`) it is the highest niceness, and
//! where that is not either, nothing: the thaw comes all the same, only later.

use std::thread;
use std::time::Duration;

use nix::libc;
use rustix::process::{getpriority_process, setpriority_process};

/// The lowest of real time: above everything that is not.
const PRIORITY: libc::c_int = 1;

/// Enough to write a record; more than a moment on a machine with one processor only.
const BREATH: Duration = Duration::from_millis(3);

/// As the calling thread was before it became urgent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    policy: libc::c_int,
    parameter: libc::sched_param,
    nice: i32,
}

/// Makes the calling thread urgent, and those that it starts.
pub(super) fn begin() -> Before {
    let mut parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread (sched_setscheduler(2)); the pointer is to a value on the stack.
    // Neither rustix nor nix has these calls.
    let policy = unsafe {
        libc::sched_getparam(0, &raw mut parameter);
        libc::sched_getscheduler(0)
    };
    let before = Before { policy, parameter, nice: getpriority_process(None).unwrap_or(0) };
    if !set(libc::SCHED_FIFO, libc::sched_param { sched_priority: PRIORITY }) {
        let _ = setpriority_process(None, -20);
    }
    before
}

impl Before {
    /// The calling thread is as it was.
    pub(super) fn restore(self) {
        set(self.policy, self.parameter);
        let _ = setpriority_process(None, self.nice);
    }
}

/// For those who waited for us so far, so that their next wait is another one. Where nothing is frozen, what
/// we do can wait.
pub(super) fn let_others_write() {
    thread::sleep(BREATH);
}

/// Behind everything else: what is left to do concerns nobody.
pub(super) fn end() {
    set(libc::SCHED_OTHER, libc::sched_param { sched_priority: 0 });
    let _ = setpriority_process(None, 19);
}

fn set(policy: libc::c_int, parameter: libc::sched_param) -> bool {
    // SAFETY: as above.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn a_thread_is_urgent_or_at_least_not_nice_and_then_as_it_was() {
        let (was, nice) = (policy(), getpriority_process(None).unwrap());
        let before = begin();
        assert!(policy() == libc::SCHED_FIFO || getpriority_process(None).unwrap() <= nice);
        before.restore();
        assert_eq!((policy(), getpriority_process(None).unwrap()), (was, nice));
    }
}
