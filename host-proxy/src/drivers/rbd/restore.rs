//! An image that goes back to one of its snapshots, by `rbd_snap_rollback_with_progress`: each object is told to be what
//! it was, so that what has not changed since costs little. Snapshots newer than it stay.
//!
//! librbd refuses it while somebody else holds the image's exclusive lock, as a QEMU does that has written (`Operations.cc`,
//! `snap_rollback`). So the lock is asked for first. QEMU's librbd gives it, and before that it writes back and forgets
//! all that it caches (`exclusive_lock/PreReleaseRequest.cc`). It takes the lock again at the guest's next write, and with it
//! the object map as it is then.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use super::ffi::cluster::Pool;
use super::ffi::image::{For, Image, Snapshot};
use super::inventory;
use crate::drivers::restore::same_size;
use crate::drivers::{DriverError, Kind, Others, Owner, Progress, Volume};

/// The image, the same as it was at its snapshot, and the size of both.
struct Pair {
    image: Image,
    then: Image,
    snapshot: Snapshot,
    size_bytes: u64,
}

/// Finds both and proves that they fit.
fn pair(pool: &Arc<Pool>, owner: Owner, volume: &Volume, what: For) -> Result<Pair, DriverError> {
    let name = super::image_name(volume)?;
    let (then, snapshot) = inventory::whole(pool, owner, &volume.serial)?.ok_or_else(|| {
        DriverError::new(Kind::NotFound, format!("find the disk {} of {}", volume.serial, owner.snapshot))
    })?;
    let image = Image::by_name(pool, name, what)?;
    let refuse = |told, more: &str| Err(DriverError::not_restored(volume, told, more));
    if image.id()? != then.id()? {
        return refuse("the snapshot is of another image", "");
    }
    let size_bytes = then.size_at(snapshot.id)?;
    same_size(volume, size_bytes, image.size_bytes()?)?;
    if !image.has_exclusive_lock()? {
        let more = format!("; rbd feature enable {name} exclusive-lock");
        return refuse("its image has no lock by which others are kept off it", &more);
    }
    Ok(Pair { image, then, snapshot, size_bytes })
}

/// Proves that it would work.
pub(super) fn can(
    pool: &Arc<Pool>,
    owner: Owner,
    volume: &Volume,
    others: Others,
) -> Result<(), DriverError> {
    let Pair { image, .. } = pair(pool, owner, volume, For::Reading)?;
    match others {
        Others::Machine => Ok(()),
        Others::Nobody => refuse_if_watched(pool, &image, volume),
    }
}

/// The first bytes of the snapshot.
pub(super) fn head(
    pool: &Arc<Pool>,
    owner: Owner,
    volume: &Volume,
    len: usize,
) -> Result<Vec<u8>, DriverError> {
    pair(pool, owner, volume, For::Reading)?.then.head(len)
}

/// Goes back. The lock is given up when the image is closed.
pub(super) fn roll_back(
    pool: &Arc<Pool>,
    owner: Owner,
    volume: &Volume,
    others: Others,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DriverError> {
    let Pair { image, snapshot, size_bytes: total_bytes, .. } = pair(pool, owner, volume, For::Cutting)?;
    if others == Others::Nobody {
        // Before the lock is taken: a machine that runs keeps it.
        refuse_if_watched(pool, &image, volume)?;
    }
    image.lock()?;
    if others == Others::Nobody {
        // One that was started meanwhile.
        refuse_if_watched(pool, &image, volume)?;
    }
    progress(Progress { done_bytes: 0, total_bytes });
    let (tell, told) = mpsc::channel();
    let mut furthest = None;
    let rolled_back = thread::scope(|scope| {
        // librbd tells of it on threads of its own.
        let rolling = scope.spawn(|| image.roll_back(&snapshot.name, tell));
        for (objects, of) in told {
            let done_bytes = Progress::share(total_bytes, objects, of).max(furthest.unwrap_or(0));
            furthest = Some(done_bytes);
            progress(Progress { done_bytes, total_bytes });
        }
        rolling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    rolled_back.map_err(|error| match error.kind {
        // These say that nothing was touched; some of it is.
        Kind::Busy | Kind::NoSpace | Kind::NotFound | Kind::Unsupported if furthest.is_some() => {
            DriverError { kind: Kind::Failed, ..error }
        }
        _ => error,
    })?;
    progress(Progress { done_bytes: total_bytes, total_bytes });
    Ok(())
}

/// Whoever has an image open for more than reading watches it.
fn refuse_if_watched(pool: &Pool, image: &Image, volume: &Volume) -> Result<(), DriverError> {
    match image.watchers()?.iter().find(|client| **client != pool.client()) {
        None => Ok(()),
        Some(client) => Err(DriverError::new(
            Kind::Busy,
            format!(
                "restore the image {}: client.{client} has it open, such as a machine that runs; rbd status {} shows where",
                volume.source, volume.source
            ),
        )),
    }
}
