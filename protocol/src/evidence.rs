//! What was proved while a snapshot was taken, and what may be claimed from it.
//!
//! A record never claims more than was proved: [`judge`] is the only place that decides, and both
//! sides call it. The guest shows the evidence, the host adds its own about the cut.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::BoundedVec;
use crate::text::{Line, MountPath, Name};

/// What a restored disk is good for; ordered from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Consistency {
    /// As after a power cut: file systems replay their journals, applications recover.
    Crash,
    /// Frozen, and the freeze was held through the cut: file systems need no recovery.
    Filesystem,
    /// As `Filesystem`, and every application was quiesced by its hook.
    Application,
}

impl Consistency {
    /// The word that users write and read.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Filesystem => "filesystem",
            Self::Application => "application",
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Consistency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Crash, Self::Filesystem, Self::Application]
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a consistency; use crash, filesystem or application"))
    }
}

/// What the guest saw of its own quiesce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// How the freeze as a whole went.
    pub freeze: Freeze,
    /// One entry for each file system on the disks, in the order of the freeze.
    pub file_systems: BoundedVec<FileSystemEvidence, 64>,
    /// One entry for each hook that was started, in that order.
    pub hooks: BoundedVec<HookEvidence, 64>,
}

/// How the freeze as a whole went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Freeze {
    /// Nothing was frozen: the user asked for no more than crash consistency.
    NotAsked,
    /// There was no agent in the guest that could freeze.
    NoAgent,
    /// Every file system on the disks was frozen before the cut was asked for, and every thaw after
    /// the answer found it still frozen, before the deadline.
    Held,
    /// It was not held from before the cut until after it; why.
    NotHeld(Line),
}

/// The freeze and the thaw of one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemEvidence {
    /// Where it is mounted.
    pub mount_point: MountPath,
    /// Its kind, as in `/proc/self/mountinfo`.
    pub fs_type: Name,
    /// FIFREEZE, if it was tried.
    pub freeze: Option<CallEvidence>,
    /// FITHAW, if it was tried.
    pub thaw: Option<CallEvidence>,
}

/// One system call: when it began, how long it took, how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallEvidence {
    /// Microseconds since the first FIFREEZE of this request began.
    pub at_us: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// 0, or the `errno` that it failed with.
    pub errno: i32,
}

/// One hook's run before the freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookEvidence {
    /// The hook's file name.
    pub name: Name,
    /// How it ended.
    pub outcome: HookOutcome,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// How a hook ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookOutcome {
    /// It exited with this code; 0 is success.
    Exited(i32),
    /// A signal ended it.
    Signalled(i32),
    /// It ran into its time limit and was killed.
    TimedOut,
    /// It could not be started.
    NotStarted,
}

/// What the host saw of the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CutEvidence {
    /// It ended within the time that the guest's `Cut` allowed.
    InTime {
        /// How long it took, in microseconds.
        took_us: u64,
    },
    /// It ended later; the guest may have been writing again.
    Late {
        /// How long it took, in microseconds.
        took_us: u64,
        /// What was allowed, in microseconds.
        allowed_us: u64,
    },
    /// The host can't know: it was restarted, or the guest never concluded.
    Unknown,
}

/// What may be claimed, and why not more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The most that was proved.
    pub consistency: Consistency,
    /// One sentence for people.
    pub reason: Line,
}

/// Decides what a snapshot may claim.
pub fn judge(evidence: &Evidence, cut: CutEvidence) -> Verdict {
    let crash = |reason: &str| Verdict { consistency: Consistency::Crash, reason: Line::lossy(reason) };
    let filesystem =
        |reason: &str| Verdict { consistency: Consistency::Filesystem, reason: Line::lossy(reason) };
    match cut {
        CutEvidence::InTime { .. } => {}
        CutEvidence::Late { took_us, allowed_us } => {
            return crash(&format!(
                "the cut took {} ms, longer than the {} ms left of the lease: the guest may have been writing again",
                took_us / 1000,
                allowed_us / 1000
            ));
        }
        CutEvidence::Unknown => {
            return crash("nobody confirmed that the freeze was held through the cut");
        }
    }
    match &evidence.freeze {
        Freeze::NotAsked => return crash("no freeze was asked for"),
        Freeze::NoAgent => return crash("no agent in the guest: nothing was frozen"),
        Freeze::NotHeld(why) => {
            return crash(&format!("the freeze was not held through the cut: {}", why.as_str()));
        }
        Freeze::Held => {}
    }
    // `Held` is a claim; the calls are its proof.
    if let Some(fs) = evidence.file_systems.iter().find(|fs| !fs.was_held()) {
        return crash(&format!("{} was not frozen from before the cut until after it", fs.mount_point));
    }
    if evidence.hooks.is_empty() {
        return filesystem("all file systems were frozen through the cut; no hook quiesced an application");
    }
    match evidence.hooks.iter().find(|hook| hook.outcome != HookOutcome::Exited(0)) {
        Some(hook) => filesystem(&format!(
            "all file systems were frozen through the cut, but the hook {} {}",
            hook.name, hook.outcome
        )),
        None => Verdict {
            consistency: Consistency::Application,
            reason: Line::lossy("all hooks succeeded and all file systems were frozen through the cut"),
        },
    }
}

impl FileSystemEvidence {
    /// Whether both the freeze and the thaw succeeded: a thaw of what is not frozen fails with
    /// EINVAL (Linux `fs/super.c`, `thaw_super`).
    pub fn was_held(&self) -> bool {
        let ok = |call: Option<CallEvidence>| call.is_some_and(|call| call.errno == 0);
        ok(self.freeze) && ok(self.thaw)
    }
}

impl fmt::Display for HookOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(0) => f.write_str("succeeded"),
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Signalled(signal) => write!(f, "was ended by signal {signal}"),
            Self::TimedOut => f.write_str("ran into its time limit"),
            Self::NotStarted => f.write_str("could not be started"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_TIME: CutEvidence = CutEvidence::InTime { took_us: 900 };

    fn call(errno: i32) -> Option<CallEvidence> {
        Some(CallEvidence { at_us: 0, took_us: 10, errno })
    }

    fn evidence(thaw_errno: i32, hooks: &[HookOutcome]) -> Evidence {
        let fs = FileSystemEvidence {
            mount_point: "/data".parse().unwrap(),
            fs_type: "ext4".parse().unwrap(),
            freeze: call(0),
            thaw: call(thaw_errno),
        };
        let hook = |outcome: &HookOutcome| HookEvidence {
            name: "10-db".parse().unwrap(),
            outcome: *outcome,
            took_ms: 3,
        };
        Evidence {
            freeze: Freeze::Held,
            file_systems: vec![fs].try_into().unwrap(),
            hooks: hooks.iter().map(hook).collect::<Vec<_>>().try_into().unwrap(),
        }
    }

    #[test]
    fn what_was_proved_decides_what_is_claimed() {
        let ok = HookOutcome::Exited(0);
        let late = CutEvidence::Late { took_us: 2, allowed_us: 1 };
        let einval = 22;
        let table = [
            (evidence(0, &[ok]), IN_TIME, Consistency::Application),
            (evidence(0, &[]), IN_TIME, Consistency::Filesystem),
            (evidence(0, &[ok, HookOutcome::Exited(1)]), IN_TIME, Consistency::Filesystem),
            (evidence(0, &[HookOutcome::TimedOut]), IN_TIME, Consistency::Filesystem),
            (evidence(einval, &[ok]), IN_TIME, Consistency::Crash),
            (evidence(0, &[ok]), late, Consistency::Crash),
            (evidence(0, &[ok]), CutEvidence::Unknown, Consistency::Crash),
            (Evidence { freeze: Freeze::NoAgent, ..evidence(0, &[ok]) }, IN_TIME, Consistency::Crash),
        ];
        for (evidence, cut, expected) in table {
            let verdict = judge(&evidence, cut);
            assert_eq!(verdict.consistency, expected, "{evidence:?} {cut:?}: {verdict:?}");
            assert!(!verdict.reason.as_str().is_empty());
        }
    }
}
