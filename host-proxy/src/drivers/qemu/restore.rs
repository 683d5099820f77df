//! A qcow2 image is given back the bytes of a snapshot, in place. A QEMU that has it open caches its tables, so nobody else
//! may write to it meanwhile: `offline` is for an image that nobody has open.

use std::path::Path;

use super::offline;
use crate::drivers::{DriverError, Kind, Others, Progress, Volume};
use crate::vmm::qmp::Qmp;

/// Proves, without changing anything, that [`restore`] would work.
pub(super) fn can_restore(snapshot: &Path, volume: &Volume) -> Result<(), DriverError> {
    offline::fits(snapshot, volume)?;
    if is_running(volume)? { Err(running(volume)) } else { Ok(()) }
}

/// Gives the image these bytes.
pub(super) fn restore(
    snapshot: &Path,
    volume: &Volume,
    others: Others,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DriverError> {
    if others == Others::Machine && is_running(volume)? {
        return Err(running(volume));
    }
    offline::restore(snapshot, volume, progress)
}

fn is_running(volume: &Volume) -> Result<bool, DriverError> {
    let Some(monitor) = &volume.qmp else { return Ok(false) };
    match Qmp::connect(monitor, super::LIMIT) {
        Err(error) if error.is_gone() => Ok(false),
        Err(error) => Err(super::of_qmp(format!("talk to QEMU at {}", monitor.display()), error)),
        Ok(_) => Ok(true),
    }
}

fn running(volume: &Volume) -> DriverError {
    let text = format!("restore {}: a running QEMU caches the tables of a qcow2 image", volume.source);
    DriverError::new(Kind::Unsupported, text)
}
