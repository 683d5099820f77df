//! A qcow2 image is given back the bytes of a snapshot, in place. A QEMU that has it open caches its tables, so only that
//! QEMU may write to it then (`cover`); where nobody has it open, `qemu-img` does (`offline`). One that is begun by the first
//! and left in the middle, since QEMU ended, is finished by the second.

use std::path::Path;

use protocol::SnapshotId;

use super::cover::{Image, Outcome};
use super::offline;
use crate::drivers::folder::Folder;
use crate::drivers::{DriverError, Kind, Others, Progress, Volume};
use crate::vmm::disk::CoverName;

/// Proves, without changing anything, that [`restore`] would work.
pub(super) fn can_restore(
    id: SnapshotId,
    snapshot: &Path,
    volume: &Volume,
    others: Others,
) -> Result<(), DriverError> {
    // Also of a machine that runs: QEMU may end in the middle.
    offline::fits(snapshot, volume)?;
    if others == Others::Nobody {
        return offline::open(volume).map(drop);
    }
    let Some(image) = in_a_machine(volume)? else { return Ok(()) };
    match image.reach()? {
        Some(mut qmp) => image.can_be_covered(&mut qmp, &CoverName::new(id, &volume.serial)),
        None => Ok(()),
    }
}

/// Gives the image these bytes.
pub(super) fn restore(
    folder: &Folder,
    id: SnapshotId,
    snapshot: &Path,
    volume: &Volume,
    others: Others,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DriverError> {
    let image = if others == Others::Machine { in_a_machine(volume)? } else { None };
    // One way after the other may do it: what is told never goes back.
    let mut most = 0;
    let mut progress = |now: Progress| {
        most = most.max(now.done_bytes);
        progress(Progress { done_bytes: most, ..now });
    };
    let Some(image) = image else { return offline::restore(snapshot, volume, &mut progress) };
    offline::fits(snapshot, volume)?;
    let name = CoverName::new(id, &volume.serial);
    let scratch = folder.root().join(name.as_str());
    match image.restore(snapshot, &name, &scratch, &mut progress)? {
        Outcome::Restored => Ok(()),
        Outcome::NoQemu => offline::restore(snapshot, volume, &mut progress),
        Outcome::QemuEnded => offline::restore(snapshot, volume, &mut progress)
            .map_err(|error| DriverError { kind: Kind::Failed, ..error }),
    }
}

/// The image as a machine has it whose monitor is known.
fn in_a_machine(volume: &Volume) -> Result<Option<Image<'_>>, DriverError> {
    let Some(monitor) = volume.qmp.as_deref() else { return Ok(None) };
    Ok(Some(Image { monitor, volume, path: volume.path()? }))
}
