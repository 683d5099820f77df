//! Ceph: images of one RBD pool. The cut is one call for each image, on an image that is open already; all images of
//! a set are cut side by side. Several hosts may share the pool.
//!
//! | module | idea |
//! |---|---|
//! | `ffi` | librados and librbd, loaded when they are needed: all unsafe code |
//! | `meta` | the metadata of an image |
//! | `entry` | what we write there: how far a snapshot is, its manifest |
//! | `worker` | who works on it, when several hosts share the pool |
//! | `set` | the images of a snapshot, from prepared to whole |
//! | `inventory` | looking through all images |
//! | `remove` | removing a snapshot, whatever its state |
//! | `changes` | what changed between two snapshots |
//! | `restore` | an image that goes back to a snapshot |
//! | `room` | what is free in the pool |

#[doc(hidden)]
pub mod bare;
mod changes;
mod entry;
mod ffi;
mod inventory;
mod meta;
mod remove;
mod restore;
mod room;
mod set;
mod worker;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use protocol::DiskSerial;
use serde_json::json;

use self::entry::{Entry, Stage, key, stage};
use self::ffi::cluster::Pool;
use self::ffi::image::{For, Image};
use self::set::{Member, Set};
use self::worker::Worker;
use super::common::manifest_text;
use super::{
    Changes, Deleted, Driver, DriverError, Expose, Exposed, Extent, Format, Found, Kind, Others, Owner, Plan,
    Progress, Ready, Recovered, Restore, Source, Volume, VolumeFacts, VolumeSnapshot,
};

/// Where the images are, and as whom to reach them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The pool.
    pub pool: String,
    /// A namespace in it.
    pub namespace: Option<String>,
    /// Ceph's configuration: the monitors, the keyring.
    pub conf: PathBuf,
    /// The user, without `client.`.
    pub user: String,
    /// How long one answer of the cluster is waited for.
    pub timeout: Duration,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the pool {}", self.pool)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "/{namespace}")?;
        }
        write!(f, " of {}", self.conf.display())
    }
}

/// Snapshots of RBD images.
pub struct Rbd {
    place: Place,
    /// Connected at the first call; again after the cluster shut it out.
    pool: Mutex<Option<Arc<Pool>>>,
}

impl Rbd {
    /// A store in this pool. The cluster need not be there yet; Ceph's libraries must.
    pub fn new(place: Place) -> Result<Self, DriverError> {
        ffi::api()?;
        Ok(Self { place, pool: Mutex::new(None) })
    }

    /// Does something in the pool.
    fn within<T>(&self, call: impl FnOnce(&Arc<Pool>) -> Result<T, DriverError>) -> Result<T, DriverError> {
        let mut kept = self.pool.lock().expect("no holder of this lock panics");
        let pool = match &*kept {
            Some(pool) => Arc::clone(pool),
            None => Arc::clone(kept.insert(Pool::open(&self.place)?)),
        };
        drop(kept);
        let result = call(&pool);
        // A client that was shut out stays out: the next call connects anew.
        if result.as_ref().is_err_and(ffi::was_shut_out) {
            self.pool.lock().expect("no holder of this lock panics").take();
        }
        result
    }
}

fn image_name(volume: &Volume) -> Result<&str, DriverError> {
    let refuse = |why: String| Err(DriverError::new(Kind::Unsupported, why));
    match (&volume.source, volume.format) {
        (Source::Volume(name), Format::Raw) => Ok(name),
        (Source::Volume(name), format) => {
            refuse(format!("snapshot the image {name}: only raw disks are kept in a pool, not {format:?}"))
        }
        (Source::Path(path) | Source::Published { path, .. }, _) => {
            refuse(format!("use {}: this driver takes images of a pool, by their name", path.display()))
        }
    }
}

/// An image's identifier; what is of the old format has none.
fn image_id(image: &Image, name: &str) -> Result<String, DriverError> {
    image.id().map_err(|error| DriverError {
        kind: Kind::Unsupported,
        doing: format!(
            "snapshot the image {name}: it has the old format 1; rbd migration prepare, execute, commit"
        ),
        ..error
    })
}

impl Driver for Rbd {
    fn name(&self) -> &'static str {
        "rbd"
    }

    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        let name = image_name(volume)?;
        self.within(|pool| {
            let image = Image::by_name(pool, name, For::Cutting)?;
            image_id(&image, name)?;
            Ok(VolumeFacts { size_bytes: image.size_bytes()? })
        })
    }

    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
        let name = image_name(volume)?;
        self.within(|pool| Image::by_name(pool, name, For::Reading)?.head(len))
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        self.within(|pool| room::free_bytes(pool, &self.place.pool))
    }

    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError> {
        self.within(|pool| {
            room::refuse_if_full(pool, &self.place.pool)?;
            let images = open_all(pool, plan, deadline)?;
            let set: Vec<String> = images.iter().map(|(id, ..)| id.clone()).collect();
            let worker = Worker::this_process(pool.client());
            let mut members = Vec::with_capacity(images.len());
            for (id, image, snapshot) in images {
                let entry = Entry::new(plan.owner, &set, &id, &snapshot, worker.clone(), &plan.manifest)?;
                let written = meta::set(pool, &id, &key(plan.owner.snapshot), &entry.text());
                members.push(Member { image, entry });
                if let Err(error) = written {
                    let begun = Set::new(Arc::clone(pool), plan.owner, members)?;
                    return Err(error.after_undo(Ready::abandon(Box::new(begun))));
                }
            }
            Ok(Box::new(Set::new(Arc::clone(pool), plan.owner, members)?) as Box<dyn Ready>)
        })
    }

    fn list(&self) -> Result<Vec<Found>, DriverError> {
        self.within(inventory::list)
    }

    fn recover(&self, owner: Owner, _: &[Volume]) -> Result<Recovered, DriverError> {
        self.within(|pool| {
            let entries = inventory::find(pool, owner)?;
            match stage(&entries) {
                Stage::Absent => return Ok(Recovered::Nothing),
                Stage::Whole => return Ok(Recovered::Whole),
                Stage::Deleting => {}
                Stage::Prepared => {
                    refuse_if_another_works(pool, owner, &entries)?;
                    if let Some(members) = if_all_are_cut(pool, owner, &entries)? {
                        return Ok(Recovered::Cut(Box::new(Set::new(Arc::clone(pool), owner, members)?)));
                    }
                    remove::after_pending_cuts(pool, owner, &entries)?;
                }
            }
            remove::all(pool, owner, &entries).map(|()| Recovered::Nothing)
        })
    }

    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        self.within(|pool| {
            let entries = inventory::find(pool, owner)?;
            match stage(&entries) {
                Stage::Absent => return Ok(Deleted::WasAbsent),
                Stage::Deleting => {}
                Stage::Whole => remove::refuse_if_used(pool, owner, &entries)?,
                Stage::Prepared => {
                    refuse_if_another_works(pool, owner, &entries)?;
                    remove::after_pending_cuts(pool, owner, &entries)?;
                }
            }
            remove::all(pool, owner, &entries).map(|()| Deleted::Gone)
        })
    }

    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        let manifest = manifest_text(manifest)?;
        self.within(|pool| {
            let entries = inventory::find(pool, owner)?;
            if stage(&entries) != Stage::Whole {
                let doing = format!("find the snapshot {}", owner.snapshot);
                return Err(DriverError::new(Kind::NotFound, doing));
            }
            // The first one last: it decides.
            for mut entry in entries.into_iter().rev() {
                // Open, so that nobody removes the image while its header is written.
                let Some(_open) = remove::open(pool, &entry, For::Cutting)? else { continue };
                entry.manifest.clone_from(&manifest);
                meta::set(pool, &entry.image, &key(owner.snapshot), &entry.text())?;
            }
            Ok(())
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn expose(&self) -> Option<&dyn Expose> {
        Some(self)
    }

    fn changes(&self) -> Option<&dyn Changes> {
        Some(self)
    }

    fn restore(&self) -> Option<&dyn Restore> {
        Some(self)
    }

    fn limits(&self) -> &'static str {
        "images of one pool, of the format 2; a snapshot shares what does not change"
    }
}

impl Restore for Rbd {
    fn can_restore(&self, owner: Owner, volume: &Volume, others: Others) -> Result<(), DriverError> {
        self.within(|pool| restore::can(pool, owner, volume, others))
    }

    fn head_then(&self, owner: Owner, volume: &Volume, len: usize) -> Result<Option<Vec<u8>>, DriverError> {
        self.within(|pool| restore::head(pool, owner, volume, len).map(Some))
    }

    fn restore(
        &self,
        owner: Owner,
        volume: &Volume,
        others: Others,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        self.within(|pool| {
            // What the snapshots need of what is there now is kept.
            room::refuse_if_full(pool, &self.place.pool)?;
            restore::roll_back(pool, owner, volume, others, progress)
        })
    }
}

impl Changes for Rbd {
    fn changes(&self, from: Owner, to: Owner, volume: &DiskSerial) -> Result<Vec<Extent>, DriverError> {
        self.within(|pool| changes::between(pool, from, to, volume))
    }
}

impl Expose for Rbd {
    fn expose(&self, owner: Owner, volume: &DiskSerial) -> Result<Exposed, DriverError> {
        self.within(|pool| {
            let absent =
                || DriverError::new(Kind::NotFound, format!("show the disk {volume} of {}", owner.snapshot));
            let (image, ours) = inventory::whole(pool, owner, volume)?.ok_or_else(absent)?;
            let mut node = json!({
                "driver": "rbd",
                "pool": self.place.pool,
                "image": image.name()?,
                "snapshot": ours.name,
                "conf": self.place.conf,
                "user": self.place.user,
                "read-only": true,
            });
            if let Some(namespace) = &self.place.namespace {
                node["namespace"] = json!(namespace);
            }
            Ok(Exposed::Node(node))
        })
    }
}

type Opened = (String, Image, VolumeSnapshot);

/// Opens the images of a plan; nothing is written.
fn open_all(pool: &Arc<Pool>, plan: &Plan, deadline: Instant) -> Result<Vec<Opened>, DriverError> {
    let key = key(plan.owner.snapshot);
    let mut opened = Vec::with_capacity(plan.volumes.len());
    for volume in &plan.volumes {
        if Instant::now() >= deadline {
            return Err(DriverError::new(Kind::DeadlinePassed, "open the images"));
        }
        let name = image_name(volume)?;
        let image = Image::by_name(pool, name, For::Cutting)?;
        let id = image_id(&image, name)?;
        let is_there = meta::get(pool, &id, &key)?.is_some()
            || image.snapshots()?.iter().any(|snapshot| snapshot.name == key);
        if is_there {
            return Err(DriverError::new(Kind::Exists, format!("begin the snapshot {name}@{key}")));
        }
        let snapshot = VolumeSnapshot {
            serial: volume.serial.clone(),
            handle: format!("{name}@{key}"),
            size_bytes: image.size_bytes()?,
        };
        opened.push((id, image, snapshot));
    }
    Ok(opened)
}

fn refuse_if_another_works(pool: &Arc<Pool>, owner: Owner, entries: &[Entry]) -> Result<(), DriverError> {
    for entry in entries {
        if entry.worker.is_another_at_work(pool, &entry.image)? {
            return Err(entry.worker.busy(format!("pick up the snapshot {}", owner.snapshot)));
        }
    }
    Ok(())
}

/// The set, if each of its images has its snapshot.
fn if_all_are_cut(
    pool: &Arc<Pool>,
    owner: Owner,
    entries: &[Entry],
) -> Result<Option<Vec<Member>>, DriverError> {
    let mut members = Vec::with_capacity(entries.len());
    for entry in entries {
        let image = match Image::by_id(pool, &entry.image, For::Cutting) {
            Ok(image) => image,
            Err(error) if error.kind == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !image.snapshots()?.iter().any(|snapshot| entry.is_of(owner, snapshot)) {
            return Ok(None);
        }
        members.push(Member { image, entry: entry.clone() });
    }
    let complete = entries.first().is_some_and(|first| first.set.len() == members.len());
    Ok(complete.then_some(members))
}
