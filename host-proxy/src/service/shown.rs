//! A disk of a snapshot, made readable on this host, by whichever store has it: it may be in one that the configuration
//! no longer gives to its disk.

use std::sync::Arc;

use protocol::DiskSerial;

use crate::drivers::{DriverError, Exposed, Kind, Owner};
use crate::world::Store;

pub(super) fn expose<'a>(
    stores: &'a [Arc<Store>],
    owner: Owner,
    disk: &DiskSerial,
) -> Result<(&'a Arc<Store>, Exposed), DriverError> {
    for store in stores {
        let Some(ability) = store.driver.expose() else { continue };
        match ability.expose(owner, disk) {
            Ok(exposed) => return Ok((store, exposed)),
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let able = stores.iter().any(|store| store.driver.expose().is_some());
    let kind = if able { Kind::NotFound } else { Kind::Unsupported };
    Err(DriverError::new(kind, format!("show the disk {disk} of {}", owner.snapshot)))
}

pub(super) fn conceal(stores: &[Arc<Store>], owner: Owner, disk: &DiskSerial) -> Result<(), DriverError> {
    for ability in stores.iter().filter_map(|store| store.driver.expose()) {
        match ability.conceal(owner, disk) {
            // A store that is not there now, another one most likely, shows nothing.
            Err(error) if error.kind == Kind::NotFound => {}
            concealed => concealed?,
        }
    }
    Ok(())
}
