//! What changed between two snapshots: `rbd_diff_iterate2`, as `rbd diff` calls it. The cluster knows which objects, and parts
//! of them, were written between; no data is read.

use std::sync::Arc;

use protocol::DiskSerial;

use super::ffi::cluster::Pool;
use super::inventory;
use crate::drivers::extents::{self, Extent};
use crate::drivers::{DriverError, Kind, Owner};

/// What of `to` may not be as in `from`.
pub(super) fn between(
    pool: &Arc<Pool>,
    from: Owner,
    to: Owner,
    volume: &DiskSerial,
) -> Result<Vec<Extent>, DriverError> {
    let find = |owner: Owner| {
        inventory::whole(pool, owner, volume)?.ok_or_else(|| {
            DriverError::new(Kind::NotFound, format!("find the disk {volume} of {}", owner.snapshot))
        })
    };
    let ((from_image, from), (to_image, to)) = (find(from)?, find(to)?);
    if from_image.id()? != to_image.id()? {
        return Err(DriverError::new(
            Kind::Unsupported,
            format!("compare the snapshots of {volume}: they are of two images"),
        ));
    }
    let (from_bytes, to_bytes) = (from_image.size_at(from.id)?, to_image.size_at(to.id)?);
    // The cluster counts from the older one on; what changed is the same both ways.
    let mut changed = match from.id <= to.id {
        true => to_image.changed_since(&from.name, to_bytes)?,
        false => from_image.changed_since(&to.name, from_bytes)?,
    };
    changed.push(Extent::between(from_bytes.min(to_bytes), to_bytes));
    Ok(extents::in_order(changed, to_bytes))
}
