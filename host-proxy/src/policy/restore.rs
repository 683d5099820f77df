//! Who may go back to which snapshot: a machine to its own whole ones.

use protocol::record::{DiskRecord, SnapshotRecord};
use protocol::restore::Restore as Wanted;
use protocol::{DiskSerial, ErrorCode, WireError};

use super::attach::{chosen, whole};
use super::{Allowed, Asker, may, not_found};
use crate::config::{Verb, Vm};

/// These disks of this machine may be given the bytes that they have in this snapshot of it.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The machine.
    pub vm: Vm,
    /// Its snapshot.
    pub record: SnapshotRecord,
    /// The snapshot's disks that were asked for; at least one.
    pub disks: Vec<DiskRecord>,
}

/// Decides on going back to a snapshot.
pub fn restore(
    asker: Asker,
    vm: &Vm,
    record: &SnapshotRecord,
    wanted: &Wanted,
) -> Result<Allowed<Restore>, WireError> {
    // A neighbour's snapshot does not exist: the answer must not tell whether it does.
    if record.vm_uuid != vm.uuid {
        return Err(not_found(&record.id.to_string()));
    }
    may(asker, vm, Verb::Restore)?;
    whole(record)?;
    if wanted.disks.is_empty() {
        return Err(WireError::new(ErrorCode::BadRequest, "the request names no disk"));
    }
    let serials: Vec<DiskSerial> = wanted.disks.iter().map(|disk| disk.serial.clone()).collect();
    let disks = chosen(record, &serials)?.into_iter().map(|(_, disk)| disk).collect();
    Ok(Allowed(Restore { vm: vm.clone(), record: record.clone(), disks }))
}
