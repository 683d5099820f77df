//! Who may attach what to which machine: a machine's own whole snapshots, to itself.

use protocol::attach::{Access, Attach as Wanted};
use protocol::record::{DiskRecord, SnapshotRecord, State};
use protocol::{DiskSerial, ErrorCode, SnapshotId, VmUuid, WireError};

use super::{Allowed, Asker, may, not_found, within_bytes};
use crate::catalog::Usage;
use crate::config::{Verb, Vm};

/// These disks of this snapshot may be attached to this machine.
#[derive(Debug, Clone)]
pub struct Attach {
    /// The machine.
    pub vm: Vm,
    /// Its snapshot.
    pub record: SnapshotRecord,
    /// Its disks, each with its place in the record.
    pub disks: Vec<(usize, DiskRecord)>,
    /// Whether they may be written to.
    pub access: Access,
}

/// What is attached of this snapshot to this machine may be taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detach {
    /// The machine.
    pub vm: VmUuid,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

/// Decides on a guest's wish to have a snapshot attached. Room for clones is another question:
/// [`clones`].
pub fn attach(vm: &Vm, record: &SnapshotRecord, wanted: &Wanted) -> Result<Allowed<Attach>, WireError> {
    // A neighbour's snapshot does not exist: the answer must not tell whether it does.
    if record.vm_uuid != vm.uuid {
        return Err(not_found(&record.id.to_string()));
    }
    may(Asker::Guest, vm, Verb::Attach)?;
    whole(record)?;
    let disks = chosen(record, &wanted.disks)?;
    Ok(Allowed(Attach { vm: vm.clone(), record: record.clone(), disks, access: wanted.access }))
}

/// What is not whole can't be used.
pub(super) fn whole(record: &SnapshotRecord) -> Result<(), WireError> {
    match record.state {
        State::Ready => Ok(()),
        State::Settling => {
            Err(WireError::new(ErrorCode::Busy, format!("the snapshot {} is still settling", record.id))
                .hint("try again when hostsnap list shows it as ready"))
        }
        State::Failed => Err(WireError::new(
            ErrorCode::StorageFailed,
            format!("the host's storage no longer has the snapshot {}", record.id),
        )
        .hint("hostsnap list shows those that are ready")),
    }
}

/// These disks of the snapshot, each with its place in the record; none is all.
pub(super) fn chosen(
    record: &SnapshotRecord,
    wanted: &[DiskSerial],
) -> Result<Vec<(usize, DiskRecord)>, WireError> {
    let all = || record.disks.iter().cloned().enumerate();
    for serial in wanted {
        if !record.disks.iter().any(|disk| disk.serial.same_disk(serial)) {
            let there: Vec<_> = record.disks.iter().map(|disk| disk.serial.as_str()).collect();
            return Err(WireError::new(
                ErrorCode::UnknownDisk,
                format!("the snapshot {} has no disk {serial}; it has: {}", record.id, there.join(", ")),
            )
            .hint(format!("hostsnap show {} tells more of it", record.id)));
        }
    }
    let is_wanted = |disk: &DiskRecord| wanted.iter().any(|serial| disk.serial.same_disk(serial));
    Ok(all().filter(|(_, disk)| wanted.is_empty() || is_wanted(disk)).collect())
}

/// Decides on so many bytes of new clones: they may grow to the size of their disks, and count as
/// snapshots do.
pub fn clones(vm: &Vm, asked_bytes: u64, usage: &Usage) -> Result<(), WireError> {
    if asked_bytes == 0 { Ok(()) } else { within_bytes(vm, asked_bytes, usage) }
}

/// A guest gives back what it has attached. That needs no verb: it may have been taken away since.
pub fn detach(vm: &Vm, snapshot: SnapshotId) -> Allowed<Detach> {
    Allowed(Detach { vm: vm.uuid, snapshot })
}

/// The administrator takes out what is attached of a snapshot.
pub fn detach_as_admin(record: &SnapshotRecord) -> Allowed<Detach> {
    Allowed(Detach { vm: record.vm_uuid, snapshot: record.id })
}
