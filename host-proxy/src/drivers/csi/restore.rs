//! A volume given back the bytes of a snapshot, in place: CSI has no call for it. So the snapshot is shown, both are read, and
//! what differs is written to the volume where it is published on this host.

use std::path::Path;

use super::disk::Disk;
use super::{Csi, Store, show, volume_id};
use crate::drivers::restore::differing::{Pair, can_be_written};
use crate::drivers::restore::{concealed, same_size};
use crate::drivers::{DriverError, Kind, Others, Owner, Progress, Restore, Volume};

impl Restore for Csi {
    fn can_restore(&self, owner: Owner, volume: &Volume, others: Others) -> Result<(), DriverError> {
        self.size_of_both(owner, volume)?;
        can_be_written(volume, others)
    }

    fn restore(
        &self,
        owner: Owner,
        volume: &Volume,
        others: Others,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        let size_bytes = self.size_of_both(owner, volume)?;
        let shown = show::show(&self.store, owner, &volume.serial).map_err(untouched)?;
        let written = write_what_differs(&shown, size_bytes, volume, others, progress);
        concealed(self, owner, volume, written)
    }
}

impl Csi {
    fn size_of_both(&self, owner: Owner, volume: &Volume) -> Result<u64, DriverError> {
        let disk = Disk::find(&self.store, owner, &volume.serial)?;
        let (was, id) = (disk.member(), volume_id(volume)?);
        if was.volume != id {
            let more = format!(", {}", was.volume);
            return Err(DriverError::not_restored(volume, "the snapshot is of another volume", &more));
        }
        same_size(volume, was.size_bytes, Store::size_bytes(volume)?)?;
        Ok(was.size_bytes)
    }
}

/// Whatever keeps a snapshot from being shown, nothing was touched: it can be tried again, and nobody is to believe that the volume
/// holds half of it.
fn untouched(error: DriverError) -> DriverError {
    match error.kind {
        Kind::Busy | Kind::NoSpace | Kind::NotFound | Kind::Unsupported => error,
        _ => DriverError { kind: Kind::Busy, ..error },
    }
}

fn write_what_differs(
    shown: &Path,
    size_bytes: u64,
    volume: &Volume,
    others: Others,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DriverError> {
    // Storage may round up what it makes of a snapshot.
    let pair = Pair::open_first(shown, size_bytes, volume, others)?;
    let differing = pair.differing(&pair.whole(), progress)?;
    pair.write(&differing, progress)
}
