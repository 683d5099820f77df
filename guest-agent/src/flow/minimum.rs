//! The least that the user accepts, and what becomes of a snapshot that is worth less.
//!
//! To keep it anyway is asked of nobody: the host is told that a crash-consistent one will do, so it keeps
//! whatever comes, also when the same request is repeated; what came is compared here, at the end. All
//! that is tried for stays the same. A required hook still ends the request: it says what its application
//! needs, the option what the user takes.

use protocol::evidence::HookEvidence;
use protocol::{Consistency, ErrorCode, SnapshotRecord, WireError};

use super::Options;

/// What becomes of a snapshot that is worth less than the minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// It is not kept.
    Remove,
    /// It is kept, and says what it is worth.
    Keep,
}

impl Options {
    /// With what the flow goes on.
    pub(super) fn accepted(&self) -> Consistency {
        match self.otherwise {
            Otherwise::Remove => self.minimum,
            Otherwise::Keep => Consistency::Crash,
        }
    }

    /// Why there is no snapshot without this hook.
    pub(super) fn hook_failed(&self, hook: &HookEvidence) -> WireError {
        let (why, hint) = match self.accepted() {
            Consistency::Application => {
                ("so application consistency can't be reached", "accept --consistency filesystem")
            }
            Consistency::Filesystem | Consistency::Crash => {
                ("and nothing is taken without it", "let it say best-effort instead of required")
            }
        };
        WireError::new(ErrorCode::HookFailed, format!("the hook {} {}, {why}", hook.name, hook.outcome))
            .hint(format!("its output is in the log; or {hint}"))
    }
}

/// Whether a snapshot that was kept is what was asked for.
///
/// # Errors
/// When it is worth less.
pub fn reached(record: &SnapshotRecord, minimum: Consistency) -> Result<(), WireError> {
    if record.consistency >= minimum {
        return Ok(());
    }
    Err(WireError::new(
        ErrorCode::ConsistencyNotReached,
        format!(
            "the snapshot {} is only {}-consistent: {}",
            record.id, record.consistency, record.consistency_reason
        ),
    )
    .hint("it was kept, as --keep-anyway says"))
}
