//! One set of volumes: prepared, cut, sealed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::record::Record;
use super::tool::Store;
use super::{core, names, remove};
use crate::drivers::common::settle_at_once;
use crate::drivers::{Continue, CutSet, DriverError, Kind, Owner, Progress, Ready, VolumeSnapshot};

/// What the kernel may take longer than the guest waits: it can't be called back.
const GRACE: Duration = Duration::from_secs(10);

/// The volumes of one snapshot.
pub(super) struct Set {
    pub(super) store: Store,
    pub(super) record: Record,
    /// The dataset of each volume by its name, in the order of the parts.
    pub(super) datasets: Vec<String>,
    /// The properties of the store's dataset that say that it was prepared.
    notes: Vec<String>,
    volumes: Vec<VolumeSnapshot>,
}

impl Set {
    pub(super) fn new(store: Store, record: Record, datasets: Vec<String>, notes: Vec<String>) -> Self {
        Self { volumes: record.volumes(), store, record, datasets, notes }
    }

    pub(super) fn owner(&self) -> Owner {
        self.record.owner()
    }

    /// The names of its snapshots, each once: a dataset may hold several images.
    pub(super) fn names(&self) -> Result<BTreeSet<String>, DriverError> {
        let id = self.owner().snapshot;
        let name = |dataset: &String| {
            names::snapshot(dataset, id).ok_or_else(|| {
                DriverError::new(
                    Kind::Unsupported,
                    format!("snapshot {dataset}: its name is too long for one"),
                )
            })
        };
        self.datasets.iter().map(name).collect()
    }

    fn remove(&self) -> Result<(), DriverError> {
        remove::remove(&self.store, self.owner()).map(drop)
    }

    /// The GUID of each volume's snapshot. Another volume may have got the name since it was prepared.
    fn verify(&self) -> Result<Vec<u64>, DriverError> {
        let datasets: BTreeSet<&str> = self.datasets.iter().map(String::as_str).collect();
        let datasets = self.store.datasets(&datasets.into_iter().collect::<Vec<_>>())?;
        let names = self.names()?;
        let snapshots = self.store.snapshots(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let id = self.owner().snapshot;
        let guid = |(name, part): (&String, &super::record::Part)| {
            if !datasets.iter().any(|one| one.name == *name && one.guid == part.dataset) {
                let why =
                    format!("look at what was cut: {name} is another volume than the one that was prepared");
                return Err(DriverError::new(Kind::Failed, why));
            }
            let wanted = names::snapshot(name, id);
            snapshots.iter().find(|one| Some(&one.name) == wanted.as_ref()).map(|one| one.guid).ok_or_else(
                || DriverError::new(Kind::NotFound, format!("look at what was cut: {name} has no snapshot")),
            )
        };
        self.datasets.iter().zip(&self.record.parts).map(guid).collect()
    }
}

/// Ready to be cut.
pub(super) struct Prepared {
    pub(super) set: Set,
    pub(super) cut: core::Cut,
}

impl Ready for Prepared {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.set.volumes
    }

    fn cut(self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        let Self { set, cut } = *self;
        let left = deadline.saturating_duration_since(Instant::now());
        let made = if left.is_zero() {
            Err(DriverError::new(Kind::DeadlinePassed, "make the snapshots"))
        } else {
            cut.make(left + GRACE)
        };
        match made {
            Ok(()) => Ok(Box::new(Cut { set })),
            Err(error) => Err(error.after_undo(set.remove())),
        }
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.set.remove()
    }
}

/// Cut; the kernel has written it down.
pub(super) struct Cut {
    pub(super) set: Set,
}

impl CutSet for Cut {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.set.volumes
    }

    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        settle_at_once(&self.set.volumes, progress, "look at what was cut", || self.set.verify().map(drop))
    }

    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        let Self { mut set } = *self;
        let guids = set.verify()?;
        // Held before it is whole: what is whole is held.
        let names = set.names()?;
        core::hold(&names)?;
        for (part, guid) in set.record.parts.iter_mut().zip(guids) {
            part.cut = Some(guid);
        }
        set.record.set_manifest(manifest)?;
        let first = names.first().expect("a set has a volume");
        set.store.set(first, &set.record.on_snapshot()?)?;
        // The notes of what was prepared are of no use any more.
        set.notes.iter().try_for_each(|name| set.store.unset(name))
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.set.remove()
    }
}
