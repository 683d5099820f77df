//! What a snapshot is, as both sides show it.

use serde::{Deserialize, Serialize};

use crate::BoundedVec;
use crate::evidence::{Consistency, CutEvidence, Evidence};
use crate::ids::{RequestId, SnapshotId, VmUuid};
use crate::text::{DiskSerial, Handle, Labels, Line, MountPath, Name, Note};

/// A moment: milliseconds since 1970-01-01T00:00:00Z, by the host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

/// Everything that is known of one snapshot: the catalog's row, the manifest on the storage and the
/// answer to the guest are all this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its identifier.
    pub id: SnapshotId,
    /// The virtual machine that it belongs to, for good.
    pub vm_uuid: VmUuid,
    /// That machine's name in the host's configuration when it was taken.
    pub vm: Name,
    /// The request that it answers.
    pub request: RequestId,
    /// When the cut was made.
    pub created_at: UnixMillis,
    /// What it may claim.
    pub consistency: Consistency,
    /// Why that and not more.
    pub consistency_reason: Line,
    /// The least that the user accepts: what is worth less is not kept.
    pub minimum: Consistency,
    /// Whether it can be used.
    pub state: State,
    /// What the user attached.
    pub labels: Labels,
    /// What the user remarked.
    pub note: Note,
    /// The file systems on its disks.
    pub mounts: BoundedVec<MountRecord, 64>,
    /// Its disks, all of one instant.
    pub disks: BoundedVec<DiskRecord, 64>,
    /// How long each step took.
    pub timing: Timing,
    /// When it may be removed without asking; `None` is never.
    pub expires_at: Option<UnixMillis>,
    /// Until when nobody may delete it.
    pub locked_until: Option<UnixMillis>,
    /// What the guest saw; `None` where it never concluded.
    pub evidence: Option<Evidence>,
    /// What the host saw of the cut.
    pub cut: CutEvidence,
}

/// Whether a snapshot can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// It was cut; the storage is still making it durable.
    Settling,
    /// Durable and whole.
    Ready,
    /// The storage lost it before it was whole; nothing can be read from it.
    Failed,
}

impl State {
    /// The word that users read.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Settling => "settling",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

/// A file system that is on the snapshot's disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Where it was mounted.
    pub path: MountPath,
    /// Its kind, as in `/proc/self/mountinfo`.
    pub fs_type: Name,
}

/// One disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The disk, by the serial in the host's configuration.
    pub serial: DiskSerial,
    /// The driver that cut it.
    pub driver: Name,
    /// What the storage calls this disk's snapshot.
    pub handle: Handle,
    /// The disk's size, in bytes.
    pub size_bytes: u64,
}

/// How long each step took, in microseconds, on the clock of the side that did it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// From `Prepare` sent to `Prepared` received (guest).
    pub prepare_us: u64,
    /// All pre-freeze hooks (guest).
    pub hooks_us: u64,
    /// `syncfs` before the freeze (guest).
    pub flush_us: u64,
    /// From the first FIFREEZE to the last one's end (guest).
    pub freeze_us: u64,
    /// From `Cut` sent to `CutDone` received (guest).
    pub cut_us: u64,
    /// From the first FITHAW to the last one's end (guest).
    pub thaw_us: u64,
    /// From the first FIFREEZE to the last FITHAW: how long an application could not write (guest).
    pub stall_us: u64,
    /// From the cut's end until the snapshot was durable and whole (host).
    pub settle_us: u64,
}
