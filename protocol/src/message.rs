//! Every request of a guest and every reply of the host.
//!
//! A conversation is one `Hello`, then requests, each answered by exactly one final reply; before
//! the final reply to `Conclude` any number of `Progress` may come. Variants are only appended; a
//! changed struct is a new variant; `Hello` never changes.

use serde::{Deserialize, Serialize};

use crate::BoundedVec;
use crate::attach::{Attach, Attachment, DetachOutcome, MAX_ATTACHED};
use crate::error::WireError;
use crate::evidence::{Consistency, Evidence};
use crate::fingerprint::Fingerprint;
use crate::ids::{BootId, RequestId, SnapshotId, Ticket, VmUuid};
use crate::record::{MountRecord, SnapshotRecord, State, Timing};
use crate::restore::{Restore, RestorePlan};
use crate::text::{DiskSerial, Labels, Line, Name, Note, SnapshotRef};

/// What a guest says to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Always first, and frozen for ever.
    Hello(Hello),
    /// Is anybody there?
    Ping(u64),
    /// Which disks does the host know for this virtual machine?
    Disks,
    /// Check and ready everything for a cut, without cutting.
    Prepare(Prepare),
    /// Cut now.
    Cut(Cut),
    /// The guest has thawed: here is what it saw.
    Conclude(Conclude),
    /// The guest gave up before the cut.
    Abort(Ticket),
    /// The snapshots of this virtual machine.
    List(List),
    /// One snapshot of this virtual machine.
    Get(SnapshotRef),
    /// Remove one snapshot of this virtual machine, by its whole identifier.
    Delete(SnapshotId),
    /// What can the storage of each disk of this virtual machine do, and how full is it?
    Abilities,
    /// Attach disks of one snapshot of this virtual machine to it, by its whole identifier. A repeat
    /// gives what is attached already.
    Attach(Attach),
    /// Take back what is attached of this snapshot.
    Detach(SnapshotId),
    /// What is attached, of all snapshots?
    Attachments,
    /// Give disks of this virtual machine the bytes that they had in one of its snapshots.
    Restore(Restore),
}

/// What the host answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Hello`; frozen for ever.
    Hello(Welcome),
    /// To `Ping`, with its number.
    Pong(u64),
    /// To `Disks`.
    Disks(BoundedVec<DiskInfo, 64>),
    /// To `Prepare`: the cut may be asked for.
    Prepared(Prepared),
    /// To `Prepare` with `dry_run`: what would be done.
    Planned(Planned),
    /// To `Prepare` of a request id that was already answered: that snapshot.
    Existing(Box<SnapshotRecord>),
    /// To `Cut`. Holds nothing to allocate: the guest is frozen while it reads this.
    CutDone(CutDone),
    /// To `Conclude`, any number of times, before the final reply.
    Progress(Progress),
    /// To `Conclude` and `Get`.
    Snapshot(Box<SnapshotRecord>),
    /// To `Abort`.
    Aborted,
    /// To `List`.
    Snapshots(Page),
    /// To `Delete`.
    Deleted(DeleteOutcome),
    /// To anything.
    Error(WireError),
    /// To `Abilities`.
    Abilities(BoundedVec<DiskAbilities, 64>),
    /// To `Attach`: the disks that were asked for; to `Attachments`: all that are attached.
    Attached(BoundedVec<Attachment, MAX_ATTACHED>),
    /// To `Detach`.
    Detached(DetachOutcome),
    /// To `Restore` with `dry_run`: what would be done.
    RestorePlanned(RestorePlan),
    /// To `Restore`, after any number of `Progress`: what was done.
    Restored(RestorePlan),
}

/// The protocol versions that one side speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl VersionRange {
    /// The newest version that both sides speak.
    pub fn agree(self, other: Self) -> Option<u16> {
        let version = self.max.min(other.max);
        (version >= self.min.max(other.min)).then_some(version)
    }
}

/// Who speaks. The host believes none of it: it is for the log, to notice a mistaken CID, and to end what
/// an earlier boot of the same guest had begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the agent speaks.
    pub versions: VersionRange,
    /// The agent's own version, such as `0.1.0`.
    pub agent_version: Name,
    /// This boot of the guest, where it could be read.
    pub boot_id: Option<BootId>,
    /// The virtual machine's UUID by its SMBIOS, where it could be read.
    pub vm_uuid: Option<VmUuid>,
}

/// The host's side of `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak from now on.
    pub version: u16,
    /// The version of `hostsnapd`.
    pub host_version: Name,
    /// What the host calls this virtual machine.
    pub vm: Name,
}

/// Ready everything for a cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Repeating it gives the same snapshot.
    pub request: RequestId,
    /// The disks to cut, all at one instant where the storage can. At least one.
    pub disks: BoundedVec<DiskRequest, 64>,
    /// The file systems on them.
    pub mounts: BoundedVec<MountRecord, 64>,
    /// What the user attached.
    pub labels: Labels,
    /// What the user remarked.
    pub note: Note,
    /// The least that the user accepts.
    pub minimum: Consistency,
    /// For how long to keep it, in seconds; `None` is until it is deleted.
    pub keep_for_s: Option<u64>,
    /// How long after `Prepared` the cut will be asked for at the latest, in milliseconds. The host
    /// may grant less.
    pub lease_ms: u32,
    /// Check everything, ready nothing.
    pub dry_run: bool,
}

/// One disk, as the guest knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// Its serial, as the guest reads it: possibly cut to 20 bytes.
    pub serial: DiskSerial,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What its first bytes say it is.
    pub fingerprint: Fingerprint,
}

/// The cut may be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// To be shown with `Cut`, `Conclude` and `Abort`.
    pub ticket: Ticket,
    /// What the snapshot will be called.
    pub id: SnapshotId,
    /// For how long the ticket is good, in milliseconds from now.
    pub lease_ms: u32,
}

/// What a dry run found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// What the snapshot would be called.
    pub id: SnapshotId,
    /// What would be cut, by which driver.
    pub disks: BoundedVec<DiskInfo, 64>,
}

/// Cut now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// From `Prepared`.
    pub ticket: Ticket,
    /// How much of the freeze is left, in microseconds: a cut that takes longer can't be better
    /// than crash-consistent.
    pub within_us: u64,
}

/// The storage has cut every disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutDone {
    /// From `Cut`.
    pub ticket: Ticket,
    /// How long the storage took, in microseconds.
    pub took_us: u64,
}

/// The guest writes again; what it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conclude {
    /// From `Prepared`.
    pub ticket: Ticket,
    /// What the guest saw.
    pub evidence: Evidence,
    /// How long each step took; `settle_us` is the host's to fill in.
    pub timing: Timing,
    /// Whether to answer only when the snapshot is durable and whole.
    pub wait: bool,
}

/// How far the storage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// Which snapshots, from where on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Only those that have all these labels.
    pub labels: Labels,
    /// Only those that hold this disk.
    pub disk: Option<DiskSerial>,
    /// Only those in this state.
    pub state: Option<State>,
    /// Where the last page ended.
    pub after: Option<SnapshotId>,
    /// At most so many; the host may give fewer a page.
    pub limit: u16,
}

/// Some snapshots, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The snapshots.
    pub snapshots: BoundedVec<SnapshotRecord, 256>,
    /// Ask again with this as `after`; `None` is the end.
    pub next: Option<SnapshotId>,
}

/// A disk that the host knows for this virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Its serial in the host's configuration, whole.
    pub serial: DiskSerial,
    /// Which driver cuts it.
    pub driver: Name,
    /// Its size in bytes, where the host could read it.
    pub size_bytes: Option<u64>,
    /// Empty, or why a snapshot of it would fail now.
    pub problem: Line,
}

/// What a disk's storage can do besides taking, listing and deleting snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAbilities {
    /// The disk.
    pub serial: DiskSerial,
    /// A word for each ability, such as `set-atomic`. Words that are not known say nothing.
    pub abilities: BoundedVec<Name, 16>,
    /// What the disk must be, and what a snapshot of it takes: one sentence for people.
    pub limits: Line,
    /// Room for snapshots, in bytes, where the storage says it.
    pub free_bytes: Option<u64>,
    /// Below so much room no snapshot is begun, in bytes.
    pub floor_bytes: u64,
}

/// What became of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeleteOutcome {
    /// It was there and is gone.
    Gone,
    /// It was not there.
    WasAbsent,
}

#[cfg(test)]
mod tests {
    use super::VersionRange;

    #[test]
    fn two_ranges_agree_on_the_newest_common_version_or_on_none() {
        let range = |min, max| VersionRange { min, max };
        for (a, b, agreed) in [
            (range(1, 1), range(1, 1), Some(1)),
            (range(1, 3), range(2, 5), Some(3)),
            (range(2, 5), range(1, 3), Some(3)),
            (range(1, 2), range(3, 4), None),
            (range(4, 4), range(1, 3), None),
        ] {
            assert_eq!(a.agree(b), agreed, "{a:?} {b:?}");
        }
    }
}
