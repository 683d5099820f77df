//! Removing a snapshot, in an order that a crash can't spoil: the first image's entry says that it is being removed;
//! then the others lose theirs, and the first last.

use std::sync::Arc;

use super::entry::{Entry, State, key};
use super::ffi::cluster::Pool;
use super::ffi::image::{For, Image};
use super::{ffi, meta};
use crate::drivers::{DriverError, Kind, Owner};

/// Removes the snapshots and entries of these images. What is gone already is fine.
pub(super) fn all(pool: &Arc<Pool>, owner: Owner, entries: &[Entry]) -> Result<(), DriverError> {
    let (first, others): (Vec<&Entry>, Vec<&Entry>) =
        entries.iter().partition(|entry| entry.set.first() == Some(&entry.image));
    for entry in first.iter().filter(|entry| entry.state != State::Deleting) {
        // Open, so that nobody removes the image while its header is written.
        if let Some(_open) = open(pool, entry, For::Cutting)? {
            let mut deleting = (*entry).clone();
            deleting.state = State::Deleting;
            meta::set(pool, &entry.image, &key(owner.snapshot), &deleting.text())?;
        }
    }
    others.into_iter().chain(first).try_for_each(|entry| one(pool, owner, entry))
}

fn one(pool: &Arc<Pool>, owner: Owner, entry: &Entry) -> Result<(), DriverError> {
    let Some(image) = open(pool, entry, For::Cutting)? else { return Ok(()) };
    if let Some(ours) = image.snapshots()?.iter().find(|snapshot| entry.is_of(owner, snapshot)) {
        image.remove_snapshot(&ours.name)?;
    }
    meta::remove(pool, &entry.image, &key(owner.snapshot))
}

/// Waits for a cut that a process which is gone asked for, and that the owner of an image's exclusive lock, a QEMU
/// say, may still be making: it does one snapshot after another (Ceph `librbd/Operations.cc`, `start_op`), so the
/// same one, asked for again, comes back when the first is there or never will be.
pub(super) fn after_pending_cuts(
    pool: &Arc<Pool>,
    owner: Owner,
    entries: &[Entry],
) -> Result<(), DriverError> {
    let name = ffi::text(&key(owner.snapshot))?;
    for entry in entries {
        let Some(image) = open(pool, entry, For::Cutting)? else { continue };
        match image.snapshot(&name) {
            // Busy: nobody can make one, so nobody is making one.
            Err(error) if !matches!(error.kind, Kind::Exists | Kind::Busy) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses while something needs the snapshot: a clone, or somebody who protected it. Who only reads it
/// can't be seen.
pub(super) fn refuse_if_used(pool: &Arc<Pool>, owner: Owner, entries: &[Entry]) -> Result<(), DriverError> {
    for entry in entries {
        let Some(image) = open(pool, entry, For::Reading)? else { continue };
        let snapshots = image.snapshots()?;
        let Some(ours) = snapshots.iter().find(|snapshot| entry.is_of(owner, snapshot)) else { continue };
        let busy = |why: String| DriverError::new(Kind::Busy, format!("remove {}: {why}", entry.handle));
        if image.is_protected(&ours.name)? {
            return Err(busy("it is protected; rbd snap unprotect, if nobody needs it".to_owned()));
        }
        if let Some(clone) = image.a_clone_of(ours.id)? {
            return Err(busy(format!("{clone} is a clone of it; rbd flatten makes that independent")));
        }
    }
    Ok(())
}

/// The image of an entry, if it is still there.
pub(super) fn open(pool: &Arc<Pool>, entry: &Entry, what: For) -> Result<Option<Image>, DriverError> {
    match Image::by_id(pool, &entry.image, what) {
        Ok(image) => Ok(Some(image)),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
