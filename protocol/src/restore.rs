//! Going back to a snapshot: what a guest asks for, and what the host would do or has done.

use serde::{Deserialize, Serialize};

use crate::BoundedVec;
use crate::ids::{RequestId, SnapshotId};
use crate::message::DiskRequest;
use crate::record::UnixMillis;
use crate::text::{DiskSerial, Name};

/// Give disks the bytes that they had in a snapshot.
///
/// Whoever asks for more than a rehearsal gives its word that nothing in the machine uses the disks until the
/// answer is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// Repeating it tells what became of it, and does nothing twice.
    pub request: RequestId,
    /// The snapshot.
    pub id: SnapshotId,
    /// Which of its disks, as they are now; at least one.
    pub disks: BoundedVec<DiskRequest, 64>,
    /// Whether what they hold now is kept as a snapshot first.
    pub safety: Safety,
    /// Whether their partition table and file systems must be those of the snapshot.
    pub layout: Layout,
    /// Check everything, change nothing.
    pub dry_run: bool,
}

/// Whether what is about to be overwritten is kept as a snapshot first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Safety {
    /// A snapshot of it is taken first; without one nothing is overwritten.
    Snapshot,
    /// It is lost.
    None,
}

/// Whether a disk may have been partitioned or formatted anew since its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// It must be as in the snapshot.
    Same,
    /// It may be another.
    Any,
}

/// What a restore does, or has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The snapshot.
    pub id: SnapshotId,
    /// When it was cut: what was written since is overwritten.
    pub created_at: UnixMillis,
    /// The disks that are overwritten. All other snapshots stay.
    pub disks: BoundedVec<RestoredDisk, 64>,
    /// The snapshot that keeps what they held before; for a rehearsal the one that would be taken.
    pub safety: Option<SnapshotId>,
}

/// A disk that is overwritten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredDisk {
    /// Its serial in the host's configuration, whole.
    pub serial: DiskSerial,
    /// Which driver does it.
    pub driver: Name,
    /// Its size in bytes.
    pub size_bytes: u64,
}
