//! What was seen on the way, and its form for the host.

use protocol::evidence::{CallEvidence, FileSystemEvidence, Freeze, HookEvidence};
use protocol::record::Timing;
use protocol::text::{Line, MountPath, Name};
use protocol::{BoundedVec, Evidence};

use crate::freeze::{Call, Outcome};

/// What was seen so far.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) freeze: Freeze,
    pub(super) file_systems: Vec<Outcome>,
    pub(super) hooks: Vec<HookEvidence>,
    pub(super) timing: Timing,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            freeze: Freeze::NotAsked,
            file_systems: Vec::new(),
            hooks: Vec::new(),
            timing: Timing::default(),
        }
    }
}

pub(super) fn not_held(why: &str) -> Freeze {
    Freeze::NotHeld(Line::lossy(why))
}

impl Seen {
    pub(super) fn into_evidence(self) -> Evidence {
        let file_systems: Vec<_> = self.file_systems.iter().map(of_file_system).collect();
        // More than 64 are refused before the freeze; of more hooks the first are told.
        let hooks: Vec<_> = self.hooks.into_iter().take(64).collect();
        Evidence {
            freeze: self.freeze,
            file_systems: file_systems.try_into().unwrap_or_else(|_| BoundedVec::empty()),
            hooks: hooks.try_into().unwrap_or_else(|_| BoundedVec::empty()),
        }
    }
}

fn of_file_system(outcome: &Outcome) -> FileSystemEvidence {
    FileSystemEvidence {
        mount_point: MountPath::lossy(&outcome.target.mount_point.to_string_lossy()),
        fs_type: fs_name(&outcome.target.fs_type),
        freeze: outcome.freeze.map(of_call),
        thaw: outcome.thaw.map(of_call),
    }
}

/// A kind of file system as a name; FUSE's have dots, which are allowed.
pub(super) fn fs_name(fs_type: &str) -> Name {
    fs_type.parse().unwrap_or_else(|_| "unknown".parse().expect("a valid name"))
}

fn of_call(call: Call) -> CallEvidence {
    CallEvidence { at_us: call.at_us, took_us: call.took_us, errno: call.errno }
}
