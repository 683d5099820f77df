//! Looking through all images of a pool, several at a time: an answer of the cluster takes about as long as
//! a message there and back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use protocol::DiskSerial;

use super::entry::{Entry, PREFIX, Stage, State, key, stage};
use super::ffi::cluster::{ImageName, Pool};
use super::ffi::image::{For, Image, Snapshot};
use super::meta;
use crate::drivers::{DriverError, Found, Kind, Owner};

/// How many images are looked at at once.
const AT_ONCE: usize = 8;

/// Every snapshot of ours, but those that another host is making just now.
pub(super) fn list(pool: &Arc<Pool>) -> Result<Vec<Found>, DriverError> {
    let mut sets: BTreeMap<Owner, Vec<Part>> = BTreeMap::new();
    for part in over_all(pool, |image| parts_of(pool, image))? {
        sets.entry(part.owner).or_default().push(part);
    }
    let mut found = Vec::with_capacity(sets.len());
    for (owner, parts) in sets {
        let stage = stage(parts.iter().map(|part| &part.entry));
        let entry = &parts.iter().min_by_key(|part| part.place()).expect("a set has parts").entry;
        if stage == Stage::Prepared && entry.worker.is_another_at_work(pool, &entry.image)? {
            continue;
        }
        let complete = parts.len() == entry.set.len() && parts.iter().all(|part| part.is_cut);
        let manifest = Some(entry.manifest.clone().into_bytes());
        found.push(Found { owner, whole: stage == Stage::Whole && complete, manifest });
    }
    Ok(found)
}

/// The entries of one snapshot, in the order of its plan.
pub(super) fn find(pool: &Arc<Pool>, owner: Owner) -> Result<Vec<Entry>, DriverError> {
    let key = key(owner.snapshot);
    let mut entries = over_all(pool, |image| {
        let text = meta::get(pool, &image.id, &key)?;
        let entry = text.and_then(|text| Entry::parse(&image.id, &key, &text));
        Ok(entry.filter(|(whose, _)| *whose == owner).map(|(_, entry)| entry).into_iter().collect())
    })?;
    entries.sort_by_key(|entry| entry.set.iter().position(|image| *image == entry.image));
    Ok(entries)
}

/// The image and the snapshot of it that a snapshot of ours has of this volume, if it is whole.
pub(super) fn whole(
    pool: &Arc<Pool>,
    owner: Owner,
    volume: &DiskSerial,
) -> Result<Option<(Image, Snapshot)>, DriverError> {
    let entries = find(pool, owner)?;
    let entry = entries.iter().find(|entry| entry.serial == *volume);
    let Some(entry) = entry.filter(|_| stage(&entries) == Stage::Whole) else { return Ok(None) };
    let image = Image::by_id(pool, &entry.image, For::Reading)?;
    let ours = image.snapshots()?.into_iter().find(|snapshot| entry.is_of(owner, snapshot));
    Ok(ours.map(|ours| (image, ours)))
}

/// One image's part of a snapshot.
struct Part {
    owner: Owner,
    entry: Entry,
    is_cut: bool,
}

impl Part {
    fn place(&self) -> Option<usize> {
        self.entry.set.iter().position(|image| *image == self.entry.image)
    }
}

fn parts_of(pool: &Arc<Pool>, image: &ImageName) -> Result<Vec<Part>, DriverError> {
    let texts = meta::list(pool, &image.id, PREFIX)?;
    let entries: Vec<_> = texts.iter().filter_map(|(key, text)| Entry::parse(&image.id, key, text)).collect();
    if entries.iter().all(|(_, entry)| entry.state != State::Whole) {
        return Ok(entries.into_iter().map(|(owner, entry)| Part { owner, entry, is_cut: false }).collect());
    }
    let snapshots = match Image::by_id(pool, &image.id, For::Reading) {
        Ok(open) => open.snapshots()?,
        Err(error) if error.kind == Kind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let part = |(owner, entry): (Owner, Entry)| {
        let is_cut = snapshots.iter().any(|snapshot| entry.is_of(owner, snapshot));
        Part { owner, entry, is_cut }
    };
    Ok(entries.into_iter().map(part).collect())
}

/// What `look` finds in each image of the pool.
fn over_all<T: Send>(
    pool: &Arc<Pool>,
    look: impl Fn(&ImageName) -> Result<Vec<T>, DriverError> + Sync,
) -> Result<Vec<T>, DriverError> {
    let images = pool.images()?;
    let next = AtomicUsize::new(0);
    let (images, next, look) = (&images, &next, &look);
    thread::scope(|scope| {
        let looking = (0..AT_ONCE.min(images.len())).map(|_| {
            scope.spawn(move || {
                let mut found = Vec::new();
                while let Some(image) = images.get(next.fetch_add(1, Relaxed)) {
                    found.extend(look(image)?);
                }
                Ok(found)
            })
        });
        let looking: Vec<_> = looking.collect();
        let mut all = Vec::new();
        for one in looking {
            all.extend(one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}
