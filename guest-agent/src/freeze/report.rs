//! What became of a freeze, read from the shared page when all is over. Nothing here touches the
//! file systems: it is arithmetic and judgement.

use std::path::PathBuf;

use rustix::io::Errno;

use super::Target;
use super::shared::{End, Shared};
use super::slot::RawCall;

/// What became of a freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `Ok` if every file system was frozen, and each thaw, before the deadline, found it still
    /// frozen; else why not.
    pub held: Result<(), NotHeld>,
    /// Each file system, in the order of the freeze.
    pub file_systems: Vec<Outcome>,
    /// From the first FIFREEZE's start to the last one's end, in microseconds.
    pub freeze_us: u64,
    /// From the first FITHAW's start to the last one's end, in microseconds.
    pub thaw_us: u64,
    /// From the first FIFREEZE's start to the last FITHAW's end, in microseconds.
    pub stall_us: u64,
}

/// What became of one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Which.
    pub target: Target,
    /// FIFREEZE, if it was called and came back.
    pub freeze: Option<Call>,
    /// FITHAW, if it was called and came back.
    pub thaw: Option<Call>,
}

/// One system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Microseconds since the first FIFREEZE began.
    pub at_us: u64,
    /// In microseconds.
    pub took_us: u64,
    /// 0, or why it failed.
    pub errno: i32,
}

/// Why a freeze was not held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHeld {
    /// EBUSY. Never thawed by us.
    #[error("{} was frozen already, by somebody else; it was not touched", .0.display())]
    AlreadyFrozen(PathBuf),
    /// EOPNOTSUPP: tmpfs, overlay, network file systems.
    #[error("{} is {fs_type}, which can't be frozen", mount_point.display())]
    NotFreezable {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Its kind.
        fs_type: String,
    },
    /// EPERM: FIFREEZE needs CAP_SYS_ADMIN.
    #[error("{} may only be frozen by root", .0.display())]
    NotPermitted(PathBuf),
    /// FIFREEZE failed otherwise, with an I/O error for example.
    #[error("{} could not be frozen: {errno}", mount_point.display())]
    NotFrozen {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// The deadline came while file systems were being frozen.
    #[error("the deadline of the freeze passed while {} was being frozen", .0.display())]
    DeadlineWhileFreezing(PathBuf),
    /// The deadline came while everything was frozen.
    #[error("the deadline of the freeze passed, and everything was thawed")]
    Deadline,
    /// FITHAW failed with EINVAL: it was not frozen any more.
    #[error("{} had been thawed by somebody else", .0.display())]
    ThawedBySomebodyElse(PathBuf),
    /// FITHAW failed otherwise.
    #[error("{} could not be thawed: {errno}", mount_point.display())]
    NotThawed {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// FITHAW has not come back yet.
    #[error("the thaw of {} has not come back yet", .0.display())]
    StillThawing(PathBuf),
    /// The keeper died, so everything was thawed at once.
    #[error("the thaw keeper was killed, and everything was thawed")]
    KeeperDied,
    /// `hostsnap thaw` was called.
    #[error("everything was thawed by `hostsnap thaw`")]
    Emergency,
    /// The freeze was given up by us.
    #[error("the freeze was given up")]
    GivenUp,
}

/// The report of what the page says.
pub(super) fn report(targets: &[Target], shared: &Shared) -> Report {
    let calls: Vec<_> = shared
        .slots()
        .iter()
        .take(targets.len())
        .map(|slot| (slot.freeze_call(), slot.thaw_call()))
        .collect();
    let unfinished = shared.slots().iter().position(|slot| slot.is_in_fifreeze());
    summarise(targets, &calls, unfinished, shared.ended().unwrap_or(End::Dropped))
}

/// `unfinished` is the file system whose FIFREEZE has not come back.
fn summarise(
    targets: &[Target],
    calls: &[(Option<RawCall>, Option<RawCall>)],
    unfinished: Option<usize>,
    end: End,
) -> Report {
    let start_ns = calls.iter().filter_map(|(freeze, _)| *freeze).map(|call| call.at_ns).min().unwrap_or(0);
    let relative = |call: RawCall| Call {
        at_us: call.at_ns.saturating_sub(start_ns) / 1000,
        took_us: call.took_ns / 1000,
        errno: call.errno,
    };
    let file_systems: Vec<Outcome> = targets
        .iter()
        .zip(calls)
        .map(|(target, (freeze, thaw))| Outcome {
            target: target.clone(),
            freeze: freeze.map(relative),
            thaw: thaw.map(relative),
        })
        .collect();
    let ends = |call: Call| call.at_us + call.took_us;
    let freeze_us = file_systems.iter().filter_map(|fs| fs.freeze).map(ends).max().unwrap_or(0);
    let thaws = || file_systems.iter().filter_map(|fs| fs.thaw);
    let thaw_began_us = thaws().map(|call| call.at_us).min().unwrap_or(0);
    let thaw_ended_us = thaws().map(ends).max().unwrap_or(0);
    let stuck = unfinished.and_then(|n| targets.get(n));
    Report {
        held: why_not_held(&file_systems, stuck, end).map_or(Ok(()), Err),
        freeze_us,
        thaw_us: thaw_ended_us.saturating_sub(thaw_began_us),
        stall_us: thaw_ended_us.max(freeze_us),
        file_systems,
    }
}

fn why_not_held(file_systems: &[Outcome], stuck: Option<&Target>, end: End) -> Option<NotHeld> {
    match end {
        End::Released => file_systems.iter().find_map(thaw_failure),
        End::Failed => Some(file_systems.iter().find_map(freeze_failure).unwrap_or(NotHeld::GivenUp)),
        End::Deadline => {
            let late =
                stuck.or_else(|| file_systems.iter().find(|fs| fs.freeze.is_none()).map(|fs| &fs.target));
            Some(late.map_or(NotHeld::Deadline, |target| {
                NotHeld::DeadlineWhileFreezing(target.mount_point.clone())
            }))
        }
        End::KeeperGone => Some(NotHeld::KeeperDied),
        End::Emergency => Some(NotHeld::Emergency),
        End::Dropped | End::FlowGone => Some(NotHeld::GivenUp),
    }
}

fn freeze_failure(fs: &Outcome) -> Option<NotHeld> {
    let mount_point = fs.target.mount_point.clone();
    let errno = fs.freeze.map(|call| call.errno).filter(|errno| *errno != 0)?;
    Some(match Errno::from_raw_os_error(errno) {
        Errno::BUSY => NotHeld::AlreadyFrozen(mount_point),
        Errno::OPNOTSUPP | Errno::NOTTY => {
            NotHeld::NotFreezable { mount_point, fs_type: fs.target.fs_type.clone() }
        }
        Errno::PERM => NotHeld::NotPermitted(mount_point),
        errno => NotHeld::NotFrozen { mount_point, errno },
    })
}

fn thaw_failure(fs: &Outcome) -> Option<NotHeld> {
    let mount_point = fs.target.mount_point.clone();
    let Some(thaw) = fs.thaw else { return Some(NotHeld::StillThawing(mount_point)) };
    match thaw.errno {
        0 => None,
        errno => Some(match Errno::from_raw_os_error(errno) {
            Errno::INVAL => NotHeld::ThawedBySomebodyElse(mount_point),
            errno => NotHeld::NotThawed { mount_point, errno },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str) -> Target {
        Target { mount_point: name.into(), fs_type: "ext4".to_owned(), mount_id: None, rank: 0 }
    }

    fn call(at_us: u64, took_us: u64, errno: i32) -> Option<RawCall> {
        Some(RawCall { at_ns: 7_000_000 + at_us * 1000, took_ns: took_us * 1000, errno })
    }

    const INVAL: i32 = 22;
    const BUSY: i32 = 16;

    #[test]
    fn times_are_counted_from_the_first_freeze() {
        let calls = [(call(0, 10, 0), call(40, 5, 0)), (call(10, 20, 0), call(35, 4, 0))];
        let report = summarise(&[target("/a"), target("/b")], &calls, None, End::Released);
        assert_eq!((report.freeze_us, report.thaw_us, report.stall_us), (30, 10, 45));
        assert_eq!(report.held, Ok(()));
        assert_eq!(report.file_systems[1].freeze, Some(Call { at_us: 10, took_us: 20, errno: 0 }));
    }

    #[test]
    fn only_the_good_end_with_good_thaws_was_held() {
        let a = || PathBuf::from("/a");
        let b = || PathBuf::from("/b");
        let fine = (call(0, 1, 0), call(2, 1, 0));
        let table = [
            (fine, End::Released, None, None),
            (
                (call(0, 1, 0), call(2, 1, INVAL)),
                End::Released,
                None,
                Some(NotHeld::ThawedBySomebodyElse(b())),
            ),
            ((call(0, 1, 0), None), End::Released, None, Some(NotHeld::StillThawing(b()))),
            ((call(0, 1, BUSY), None), End::Failed, None, Some(NotHeld::AlreadyFrozen(b()))),
            (fine, End::Deadline, None, Some(NotHeld::Deadline)),
            ((None, None), End::Deadline, Some(1), Some(NotHeld::DeadlineWhileFreezing(b()))),
            ((None, None), End::Deadline, None, Some(NotHeld::DeadlineWhileFreezing(b()))),
            (fine, End::KeeperGone, None, Some(NotHeld::KeeperDied)),
            (fine, End::Emergency, None, Some(NotHeld::Emergency)),
            (fine, End::Dropped, None, Some(NotHeld::GivenUp)),
        ];
        for (second, end, unfinished, expected) in table {
            let targets = [Target { mount_point: a(), ..target("") }, target("/b")];
            let report = summarise(&targets, &[fine, second], unfinished, end);
            assert_eq!(report.held.err(), expected, "{end:?}");
        }
    }
}
