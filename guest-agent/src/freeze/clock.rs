//! The one clock of a freeze, and its deadline as something to poll.
//!
//! `CLOCK_BOOTTIME` goes on while the machine is suspended, as a lease does; both processes read the
//! same. A poll's own time limit stands still meanwhile, so the deadline is a timer.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

const NS_PER_S: u64 = 1_000_000_000;

/// Now, in nanoseconds since the machine started.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * NS_PER_S + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// A timer that is not set. Once it has fired it stays readable: nobody reads it, all poll it.
pub(super) fn timer() -> rustix::io::Result<OwnedFd> {
    timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
}

/// Sets it to fire at this time.
pub(super) fn set(timer: impl AsFd, at_ns: u64) -> rustix::io::Result<()> {
    // All zeros would mean never.
    let at = timespec(Duration::from_nanos(at_ns.max(1)));
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &once).map(|_| ())
}

/// As the kernel takes it.
pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
