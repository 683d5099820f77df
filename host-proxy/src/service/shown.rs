//! A disk of a snapshot, made readable on this host, by whichever store has it: it may be in one that the configuration
//! no longer gives to its disk.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;

use protocol::DiskSerial;

use crate::drivers::{DriverError, Exposed, Format, Kind, Owner};
use crate::world::Store;

/// What was kept of a disk is less than the disk.
#[derive(Debug, thiserror::Error)]
#[error("it has {is_bytes} bytes, and the disk had {was_bytes}: the snapshot is damaged")]
pub(super) struct TooShort {
    is_bytes: u64,
    was_bytes: u64,
}

pub(super) fn expose<'a>(
    stores: &'a [Arc<Store>],
    owner: Owner,
    disk: &DiskSerial,
) -> Result<(&'a Arc<Store>, Exposed), DriverError> {
    for store in stores {
        let Some(ability) = store.driver.exposes() else { continue };
        match ability.expose(owner, disk) {
            Ok(exposed) => return Ok((store, exposed)),
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let able = stores.iter().any(|store| store.driver.exposes().is_some());
    let kind = if able { Kind::NotFound } else { Kind::Unsupported };
    Err(DriverError::new(kind, format!("show the disk {disk} of {}", owner.snapshot)))
}

pub(super) fn conceal(stores: &[Arc<Store>], owner: Owner, disk: &DiskSerial) -> Result<(), DriverError> {
    for ability in stores.iter().filter_map(|store| store.driver.exposes()) {
        match ability.conceal(owner, disk) {
            // A store that is not there now, another one most likely, shows nothing.
            Err(error) if error.kind == Kind::NotFound => {}
            concealed => concealed?,
        }
    }
    Ok(())
}

/// Who reads it would take what is missing for a disk that was always as small.
pub(super) fn refuse_what_is_too_short(exposed: &Exposed, was_bytes: u64) -> Result<(), DriverError> {
    let Exposed::Path { path, format: Format::Raw } = exposed else { return Ok(()) };
    let doing = || format!("measure {}", path.display());
    let measured = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
    let is_bytes = measured.map_err(|error| DriverError::io(doing(), error))?;
    if is_bytes >= was_bytes {
        return Ok(());
    }
    let too_short = TooShort { is_bytes, was_bytes };
    Err(DriverError { source: Some(Box::new(too_short)), ..DriverError::new(Kind::Failed, doing()) })
}
