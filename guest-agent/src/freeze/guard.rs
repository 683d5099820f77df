//! The flow's side of a freeze: what is armed ([`arm`]), what is frozen, and a thread that watches the keeper as
//! the keeper watches the flow ([`watch`]).
//!
//! The flow thaws by itself, which saves the stall a change of process; the keeper helps when there
//! are several file systems, and does all of it when the flow can't. From [`Armed::freeze`] to
//! [`Frozen::thaw`] nothing here allocates, opens, logs or prints, which a test proves.

mod arm;
mod watch;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use super::channel::{self, hear, is_gone, is_readable, say, wait};
use super::clock::{self, now_ns, timespec};
use super::expedite::Expedite;
use super::report::{Report, report};
use super::shared::{End, Shared};
use super::slot::Side;
use super::{Target, urgent};
pub(super) use arm::arm;

/// How long the flow waits for what the keeper is thawing, before it reports without it.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// How long the end of the keeper is waited for when all is done; it takes about a millisecond.
const PARTING_LIMIT: Duration = Duration::from_millis(100);
/// How long a keeper with nothing left to do may take to end. Then it is killed: one that is stopped
/// would keep the lock for ever.
const KEEPER_END_LIMIT: Duration = Duration::from_millis(500);

/// The keeper is ready; nothing is frozen. Dropping it ends the keeper.
pub struct Armed {
    guard: Arc<Guard>,
    targets: Vec<Target>,
    budget: Duration,
    keeper_pid: u32,
    watcher: Option<JoinHandle<()>>,
    /// How urgent the thread was that freezes now.
    before: Option<urgent::Before>,
}

/// Everything is frozen. Dropping it thaws.
pub struct Frozen(Armed);

/// What the flow's threads share.
pub(super) struct Guard {
    shared: Shared,
    channel: OwnedFd,
    /// Readable from the deadline on.
    timer: OwnedFd,
    /// Readable when the flow is done.
    done: OwnedFd,
    mounts: Vec<File>,
    expedite: Option<Expedite>,
    finished: AtomicBool,
    parted: AtomicBool,
    /// It is free when this and the keeper's are closed.
    lock: OwnedFd,
}

impl Armed {
    /// The keeper's process.
    pub fn keeper_pid(&self) -> u32 {
        self.keeper_pid
    }

    /// Freezes everything, in order; returns at the deadline at the latest.
    ///
    /// # Errors
    /// When not everything is frozen: the report says why. What had been frozen is thawed again; a
    /// FIFREEZE that has not come back is thawed by the keeper when it does.
    pub fn freeze(mut self) -> Result<Frozen, Report> {
        // They waited for the processor while the keeper started.
        urgent::let_others_write();
        self.before = Some(urgent::begin());
        let guard = &self.guard;
        let budget_ns = u64::try_from(self.budget.as_nanos()).unwrap_or(u64::MAX);
        let deadline_ns = now_ns().saturating_add(budget_ns);
        // Longer than the kernel can count is as good as never; the timer is the keeper's as well.
        if clock::set(&guard.timer, deadline_ns).is_err() || !guard.shared.begin(deadline_ns) {
            guard.finish(End::KeeperGone);
            return Err(self.report());
        }
        say(&guard.channel, channel::FREEZE);
        let why = guard.wait_until_frozen();
        if guard.shared.is_frozen() {
            return Ok(Frozen(self));
        }
        guard.finish(why);
        Err(self.report())
    }

    fn calm_down(&mut self) {
        if let Some(before) = self.before.take() {
            before.restore();
        }
    }

    fn report(&self) -> Report {
        report(&self.targets, &self.guard.shared)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.guard.finish(End::Dropped);
        self.calm_down();
        // A keeper whose FIFREEZE has not come back is left to itself. Else it is not left behind, and the
        // mount points, which both have open, are not busy for whoever unmounts one next.
        let limit = match self.guard.shared.is_in_fifreeze() {
            true => PARTING_LIMIT,
            false => KEEPER_END_LIMIT + PARTING_LIMIT,
        };
        if self.guard.keeper_ends_within(limit)
            && let Some(watcher) = self.watcher.take()
        {
            let _ = watcher.join();
        }
    }
}

impl Frozen {
    /// What is left until the deadline; nothing, if the freeze has ended.
    pub fn remaining(&self) -> Duration {
        let shared = &self.0.guard.shared;
        let left_ns = if shared.is_frozen() { shared.deadline_ns().saturating_sub(now_ns()) } else { 0 };
        Duration::from_nanos(left_ns)
    }

    /// The keeper's process.
    pub fn keeper_pid(&self) -> u32 {
        self.0.keeper_pid
    }

    /// Thaws everything, in reverse, and says how it went.
    pub fn thaw(mut self) -> Report {
        self.0.guard.release();
        self.0.calm_down();
        // They waited for the thaw; the keeper's end and the report can wait.
        urgent::let_others_write();
        self.0.guard.part();
        self.0.report()
    }
}

impl Guard {
    /// Why it is not frozen, if it is not.
    fn wait_until_frozen(&self) -> End {
        let mut fds = [PollFd::new(&self.channel, PollFlags::IN), PollFd::new(&self.timer, PollFlags::IN)];
        wait(&mut fds, None);
        if is_readable(&fds[1]) {
            return End::Deadline;
        }
        match hear(&self.channel, &mut [0]) {
            Some(_) => End::Failed,
            None => End::KeeperGone,
        }
    }

    fn release(&self) {
        self.shared.release();
        self.thaw();
    }

    /// Thaws, in the middle of whatever the flow is doing.
    pub(super) fn give_up(&self) {
        self.finish(End::Dropped);
    }

    fn finish(&self, why: End) {
        self.shared.end(why);
        self.thaw();
        self.part();
    }

    fn thaw(&self) {
        if self.finished.swap(true, SeqCst) {
            return;
        }
        if self.mounts.len() > 1 {
            // It begins at once: a thaw waits for the disk, and two can wait at the same time.
            say(&self.channel, channel::END);
        }
        self.shared.thaw_all(&self.mounts, Side::Flow);
        let limit_ns = now_ns().saturating_add(u64::try_from(SETTLE_LIMIT.as_nanos()).unwrap_or(u64::MAX));
        while !self.shared.is_settled() && now_ns() < limit_ns {
            if self.keeper_ends_within(Duration::from_millis(1)) {
                self.shared.take_over_from_dead_keeper(&self.mounts);
            }
        }
    }

    /// Nothing is frozen any more: the keeper and the watcher may end. Should this never be called, the keeper
    /// does the same at the flow's end.
    fn part(&self) {
        if self.parted.swap(true, SeqCst) {
            return;
        }
        if let Some(expedite) = &self.expedite {
            expedite.off();
        }
        say(&self.channel, channel::END);
        let _ = rustix::io::write(&self.done, &1_u64.to_ne_bytes());
    }

    fn keeper_ends_within(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.channel, PollFlags::empty())];
        wait(&mut fds, Some(timespec(limit))) && is_gone(&fds[0])
    }
}
