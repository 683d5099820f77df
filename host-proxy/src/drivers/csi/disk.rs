//! One disk of one whole snapshot, as this host has noted it.

use protocol::DiskSerial;

use super::Store;
use super::entry::{Cut, Entry, Made, Member};
use crate::drivers::folder::Place as Where;
use crate::drivers::{DriverError, Kind, Owner};

/// A disk that was cut.
pub(super) struct Disk {
    pub(super) entry: Entry,
    /// Its place in the plan.
    pub(super) index: usize,
    pub(super) made: Made,
}

impl Disk {
    pub(super) fn find(store: &Store, owner: Owner, serial: &DiskSerial) -> Result<Self, DriverError> {
        let absent =
            || DriverError::new(Kind::NotFound, format!("find the disk {serial} of {}", owner.snapshot));
        let Where::Whole(folder) = store.folder.place(owner) else { return Err(absent()) };
        let (Some(entry), Some(cut)) = (Entry::read(&folder)?, Cut::read(&folder)?) else {
            return Err(absent());
        };
        let index = entry.volumes.iter().position(|member| member.serial == *serial).ok_or_else(absent)?;
        let made = cut.snapshots.get(index).ok_or_else(absent)?.clone();
        Ok(Self { entry, index, made })
    }

    /// Its volume, as it was then.
    pub(super) fn member(&self) -> &Member {
        &self.entry.volumes[self.index]
    }
}
