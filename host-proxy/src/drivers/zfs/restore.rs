//! A volume given back the bytes of a snapshot of it, in place: all of both is read, and what differs is written.
//!
//! `zfs rollback` would be quicker and is not used: it drops every newer snapshot, the one of what the volume holds now among
//! them, takes a whole dataset back with all its images, and a zvol's readers must have closed it.

use std::path::Path;

use super::inventory::Held;
use super::volume::Place;
use super::{Zfs, dataset, inventory};
use crate::drivers::restore::differing::{self, Pair, can_be_written};
use crate::drivers::restore::same_size;
use crate::drivers::{DriverError, Extent, Kind, Others, Owner, Progress, Restore, Volume};

/// ZFS writes whole records; this is an image's, unless somebody set another (zfsprops(7), "recordsize"), in bytes.
const RECORD_BYTES: u64 = 128 << 10;

impl Restore for Zfs {
    fn can_restore(&self, owner: Owner, volume: &Volume, others: Others) -> Result<(), DriverError> {
        self.place_of_same_size(&inventory::one(&self.store, owner)?, owner, volume)?;
        can_be_written(volume, others)?;
        self.store.pool_is_well()
    }

    fn restore(
        &self,
        owner: Owner,
        volume: &Volume,
        others: Others,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        let held = inventory::one(&self.store, owner)?;
        let place = self.place_of_same_size(&held, owner, volume)?;
        let shown = self.shown(&held, owner, &volume.serial)?;
        let written = self.write_what_differs(&place, &shown.path, volume, others, progress);
        // Should it stay, it harms nobody: who deletes the snapshot removes it.
        if let Some(Err(error)) = shown.clone.map(|clone| self.remove_clone_soon(&clone)) {
            tracing::warn!("after a restore: {}", crate::service::chain(&error));
        }
        written
    }
}

impl Zfs {
    fn place_of_same_size(&self, held: &Held, owner: Owner, volume: &Volume) -> Result<Place, DriverError> {
        let (_, part) = held.whole_part(&volume.serial).ok_or_else(|| {
            let doing = format!("find the disk {} of {}", volume.serial, owner.snapshot);
            DriverError::new(Kind::NotFound, doing)
        })?;
        let place = self.place(volume)?;
        same_size(volume, part.size_bytes, place.size_bytes(volume)?)?;
        Ok(place)
    }

    fn write_what_differs(
        &self,
        place: &Place,
        shown: &Path,
        volume: &Volume,
        others: Others,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        let pair = Pair::open(shown, volume, others)?;
        let differing = pair.differing(&pair.whole(), progress)?;
        self.has_room(&place.dataset, &differing)?;
        pair.write(&differing, progress)
    }

    /// A snapshot keeps what is overwritten, so that all that is written takes room.
    fn has_room(&self, name: &str, differing: &[Extent]) -> Result<(), DriverError> {
        let datasets = self.store.datasets(&[name])?;
        let (needed, free) =
            (differing::room(differing, RECORD_BYTES), dataset(&datasets, name)?.writable_bytes());
        if needed <= free {
            return Ok(());
        }
        let why = format!(
            "restore a volume of {name}: up to {needed} bytes are written, and {free} are free; delete snapshots, or \
             see what takes room: zfs list -o space {name}"
        );
        Err(DriverError::new(Kind::NoSpace, why))
    }
}
