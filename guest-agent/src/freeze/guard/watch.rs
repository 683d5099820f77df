//! The thread that watches the keeper, as the keeper watches the flow.

use std::process::Child;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use super::super::channel::{is_gone, is_readable, wait};
use super::super::clock::timespec;
use super::super::lock::nothing_to_put_right;
use super::super::shared::End;
use super::super::slot::Side;
use super::{Guard, KEEPER_END_LIMIT};

/// How often the watcher looks at a deadline that nobody has noticed.
const CLAIM_INTERVAL: Duration = Duration::from_millis(100);

impl Guard {
    /// The watcher's thread: thaws when the keeper is dead, and at the deadline if nobody else does.
    /// Ends with the keeper.
    pub(super) fn watch(&self, mut keeper: Child) {
        let mut fds = [
            // Only for its end: what comes from it is the flow's to read.
            PollFd::new(&self.channel, PollFlags::empty()),
            PollFd::new(&self.done, PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
        ];
        wait(&mut fds, None);
        if is_readable(&fds[2]) {
            self.shared.end(End::Deadline);
            self.shared.thaw_all(&self.mounts, Side::Flow);
        }
        while !is_gone(&fds[0]) && !is_readable(&fds[1]) {
            wait(&mut fds[..2], Some(timespec(CLAIM_INTERVAL)));
            if self.shared.is_long_over() {
                self.shared.take_over_claims(&self.mounts, Side::Keeper, Side::Flow);
            }
        }
        while !is_gone(&fds[0]) {
            let ended = wait(&mut fds[..1], Some(timespec(KEEPER_END_LIMIT)));
            if !ended && self.shared.is_settled() && !self.shared.is_in_fifreeze() {
                // Stopped, or it hangs; nothing depends on it any more.
                let _ = keeper.kill();
            }
        }
        self.shared.end(End::KeeperGone);
        self.shared.take_over_from_dead_keeper(&self.mounts);
        if let Some(expedite) = &self.expedite {
            expedite.off();
        }
        nothing_to_put_right(&self.lock);
        let _ = keeper.wait();
    }
}
