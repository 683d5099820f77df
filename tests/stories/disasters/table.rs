//! What can happen, after which step, and what must come of it. Only words; the doing is `cell`'s.

use std::time::Duration;

/// The default of `--freeze-timeout`.
const DEFAULT_LEASE: Duration = Duration::from_secs(10);
/// Where the deadline itself is what ends the freeze.
const SHORT_LEASE: Duration = Duration::from_secs(2);

/// A step of the flow that has just been done, as the rehearsal names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Resolved,
    Connected,
    Prepared,
    Quiesced,
    Flushed,
    Armed,
    Frozen,
    CutSent,
    CutDone,
    Thawed,
    Concluded,
}

impl Step {
    pub(crate) const ALL: [Self; 11] = [
        Self::Resolved,
        Self::Connected,
        Self::Prepared,
        Self::Quiesced,
        Self::Flushed,
        Self::Armed,
        Self::Frozen,
        Self::CutSent,
        Self::CutDone,
        Self::Thawed,
        Self::Concluded,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Resolved => "resolved",
            Self::Connected => "connected",
            Self::Prepared => "prepared",
            Self::Quiesced => "quiesced",
            Self::Flushed => "flushed",
            Self::Armed => "armed",
            Self::Frozen => "frozen",
            Self::CutSent => "cut-sent",
            Self::CutDone => "cut-done",
            Self::Thawed => "thawed",
            Self::Concluded => "concluded",
        }
    }

    /// Whether everything is frozen after it.
    pub(crate) fn is_frozen(self) -> bool {
        matches!(self, Self::Frozen | Self::CutSent | Self::CutDone)
    }
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disaster {
    /// SIGKILL of the command.
    Killed,
    /// SIGSTOP of the command, until applications write again.
    Stopped,
    /// SIGTERM of the command.
    Terminated,
    /// A bug of the command.
    Panics,
    /// It eats all memory of its control group.
    OutOfMemory,
    /// SIGKILL of the thaw keeper.
    KeeperKilled,
    /// SIGSTOP of the thaw keeper.
    KeeperStopped,
    /// SIGKILL of hostsnapd, which is started again.
    HostKilled,
    /// SIGSTOP of hostsnapd, for longer than the freeze may last.
    HostStalls,
    /// The same, for a minute.
    HostIsAway,
    /// The vsock connection breaks off, and there is none for a moment.
    LinkCut,
    /// The flow takes longer than the host's lease.
    LeasePasses,
}

impl Disaster {
    /// The last one needs another configuration of the host.
    pub(crate) const ALL: [Self; 12] = [
        Self::Killed,
        Self::Stopped,
        Self::Terminated,
        Self::Panics,
        Self::OutOfMemory,
        Self::KeeperKilled,
        Self::KeeperStopped,
        Self::HostKilled,
        Self::HostStalls,
        Self::HostIsAway,
        Self::LinkCut,
        Self::LeasePasses,
    ];

    /// For how long the guest may be frozen.
    pub(crate) const fn lease(self) -> Duration {
        match self {
            Self::Stopped | Self::KeeperStopped | Self::HostStalls | Self::LeasePasses => SHORT_LEASE,
            _ => DEFAULT_LEASE,
        }
    }

    /// How long an application may wait. What is noticed at once does not take until the deadline.
    pub(crate) fn longest_wait(self) -> Duration {
        match self {
            Self::HostIsAway => DEFAULT_LEASE + Duration::from_secs(1),
            _ if self.lease() == SHORT_LEASE => SHORT_LEASE + Duration::from_secs(1),
            _ => DEFAULT_LEASE / 2,
        }
    }

    /// Whether somebody is left who calls `post-thaw`.
    pub(crate) const fn releases(self) -> bool {
        !matches!(self, Self::Killed | Self::OutOfMemory)
    }
}

/// What must come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    /// One of these exit codes.
    pub(crate) codes: &'static [i32],
    /// What stands on stderr.
    pub(crate) word: &'static str,
    /// What the host keeps: nothing, or a snapshot that was frozen through its cut.
    pub(crate) kept: Kept,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Nothing,
    Frozen,
    /// By the exit code: only where it is 0.
    IfDone,
}

const DONE: Expected = Expected { codes: &[0], word: "", kept: Kept::Frozen };
/// The freeze was not held through the cut, or the command can't know.
const NOT_HELD: Expected =
    Expected { codes: &[7], word: "the deadline of the freeze passed", kept: Kept::Nothing };
/// So late that the cut is not even asked for.
const TOO_LATE: Expected =
    Expected { codes: &[9], word: "the deadline of the freeze passed", kept: Kept::Nothing };

/// What must come of a disaster after a step; `None` where it can't come.
pub(crate) fn expected(disaster: Disaster, step: Step) -> Option<Expected> {
    let dies = |codes, word, keeps: bool| Expected {
        codes,
        word,
        kept: if keeps { Kept::Frozen } else { Kept::Nothing },
    };
    Some(match disaster {
        // Whoever has asked the host to conclude has a snapshot.
        Disaster::Killed | Disaster::OutOfMemory => dies(&[137], "", step >= Step::Concluded),
        Disaster::Panics => dies(&[1], "this is a bug of hostsnap", step >= Step::Concluded),
        // From the freeze on it is too late to give up, and early enough to conclude.
        Disaster::Terminated => dies(&[143], "", step >= Step::Armed),
        Disaster::Stopped => match step {
            Step::Frozen => TOO_LATE,
            Step::CutSent | Step::CutDone => NOT_HELD,
            _ => DONE,
        },
        Disaster::KeeperKilled => match step {
            Step::Armed | Step::Frozen => dies(&[6], "the thaw keeper was killed", false),
            step if step.is_frozen() => dies(&[7], "the thaw keeper was killed", false),
            _ => return None,
        },
        Disaster::KeeperStopped => match step {
            Step::Armed => TOO_LATE,
            step if step.is_frozen() => DONE,
            _ => return None,
        },
        Disaster::HostKilled => DONE,
        // The command gives up before the host is back.
        Disaster::HostIsAway if step == Step::Resolved => dies(&[9], "no answer in time", false),
        Disaster::HostStalls | Disaster::HostIsAway => match step {
            Step::Prepared | Step::Quiesced | Step::Flushed | Step::Armed | Step::Frozen => NOT_HELD,
            // It may have answered already; or it stopped in the middle of the cut, and says that this took too long.
            Step::CutSent => Expected { codes: &[0, 7, 9], word: "", kept: Kept::IfDone },
            _ => DONE,
        },
        Disaster::LinkCut => match step {
            // A host that was never there is not waited for. A vsock device may not tell that it is gone.
            Step::Resolved => dies(&[3, 9], "host", false),
            _ => DONE,
        },
        Disaster::LeasePasses => match step {
            Step::Prepared | Step::Quiesced | Step::Flushed => {
                dies(&[9], "hooks and flushing took longer than", false)
            }
            Step::Armed => dies(&[9], "the lease ended before the cut", false),
            Step::Frozen => TOO_LATE,
            Step::CutSent | Step::CutDone => NOT_HELD,
            _ => DONE,
        },
    })
}
