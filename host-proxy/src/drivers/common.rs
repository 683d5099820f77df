//! What several drivers do alike.

use super::{Continue, DriverError, Kind, Progress, VolumeSnapshot};
use crate::exec::ExecError;
use crate::vmm::qmp::QmpError;

/// Settles by one piece of work that can't tell how far it is.
pub(super) fn settle_at_once(
    volumes: &[VolumeSnapshot],
    progress: &mut dyn FnMut(Progress) -> Continue,
    doing: &str,
    work: impl FnOnce() -> Result<(), DriverError>,
) -> Result<(), DriverError> {
    let total_bytes = volumes.iter().map(|volume| volume.size_bytes).sum();
    if progress(Progress { done_bytes: 0, total_bytes }) == Continue::No {
        return Err(DriverError::new(Kind::Cancelled, doing));
    }
    work()?;
    progress(Progress { done_bytes: total_bytes, total_bytes });
    Ok(())
}

/// A tool that failed. One that has one exit status for all failures says in words what was wrong: `kind_of`
/// understands them.
pub(super) fn tool_failed(
    doing: impl Into<String>,
    error: ExecError,
    kind_of: impl FnOnce(&str) -> Kind,
) -> DriverError {
    let kind = match &error {
        ExecError::Missing(_) => Kind::Unsupported,
        ExecError::TimedOut { .. } | ExecError::Stuck { .. } => Kind::DeadlinePassed,
        ExecError::Failed { stderr, .. } => kind_of(stderr),
        ExecError::Io { .. } => Kind::Failed,
    };
    DriverError { source: Some(Box::new(error)), ..DriverError::new(kind, doing) }
}

/// A manifest is JSON; where the storage keeps text, it is kept as that.
pub(super) fn manifest_text(manifest: &[u8]) -> Result<String, DriverError> {
    String::from_utf8(manifest.to_vec()).map_err(|error| DriverError {
        source: Some(Box::new(error)),
        ..DriverError::new(Kind::Failed, "store a manifest that is no text")
    })
}

/// What kind of failure QEMU's is.
impl From<&QmpError> for Kind {
    fn from(error: &QmpError) -> Self {
        match error {
            QmpError::InUse => Self::Busy,
            QmpError::TimedOut { .. } => Self::DeadlinePassed,
            QmpError::Connect(_) => Self::Unreachable,
            QmpError::Io(_) | QmpError::Malformed(_) | QmpError::Refused { .. } => Self::Failed,
        }
    }
}
