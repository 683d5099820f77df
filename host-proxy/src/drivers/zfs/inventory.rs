//! What of ours is in a store: found by names and records.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{DiskSerial, SnapshotId};

use super::names;
use super::record::{Part, Properties, Record};
use super::report::Snapshot;
use super::tool::Store;
use crate::drivers::{DriverError, Found, Kind, Owner};

/// How often a list is begun anew because one of it was gone when it was looked at.
const TRIES: usize = 5;

/// One snapshot of a set, as far as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    /// What was prepared.
    pub(super) intent: Option<Record>,
    /// The properties of the store's dataset that say so, or what is left of them.
    pub(super) notes: Vec<String>,
    /// What the cut or sealing wrote.
    pub(super) record: Option<Record>,
    /// The snapshot on which sealing wrote it.
    pub(super) sealed_on: Option<String>,
    /// Its snapshots.
    pub(super) snapshots: Vec<Snapshot>,
}

impl Held {
    /// Whether it was sealed, and nothing of it is missing.
    pub(super) fn is_whole(&self) -> bool {
        let is_there = |guid: Option<u64>| guid.is_some_and(|guid| self.by_guid(guid).is_some());
        self.record.as_ref().is_some_and(|record| record.parts.iter().all(|part| is_there(part.cut)))
    }

    /// What it has of a volume, and its place in the set; only if it is whole.
    pub(super) fn whole_part(&self, volume: &DiskSerial) -> Option<(usize, &Part)> {
        let record = self.record.as_ref().filter(|_| self.is_whole())?;
        record.parts.iter().enumerate().find(|(_, part)| part.serial == *volume)
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.notes.is_empty() && self.snapshots.is_empty()
    }

    /// The snapshot of this GUID.
    pub(super) fn by_guid(&self, guid: u64) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.guid == guid)
    }

    /// The names of its snapshots.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect()
    }

    fn add(&mut self, snapshot: Snapshot, record: Record) {
        if record.is_sealed() && self.sealed_on.is_none() {
            self.sealed_on = Some(snapshot.name.clone());
        }
        self.snapshots.push(snapshot);
        // Sealing writes one of them anew.
        if self.record.as_ref().is_none_or(|known| !known.is_sealed()) {
            self.record = Some(record);
        }
    }
}

/// Everything of ours.
pub(super) fn all(store: &Store) -> Result<BTreeMap<Owner, Held>, DriverError> {
    let (mut held, notes) = of(store, |_| true)?;
    for (_, notes, record) in notes {
        if let Some(record) = record {
            let one = held.entry(record.owner()).or_default();
            (one.intent, one.notes) = (Some(record), notes);
        }
    }
    Ok(held)
}

/// One snapshot of ours. What is left of its notes is its own, whether they can be read or not.
pub(super) fn one(store: &Store, owner: Owner) -> Result<Held, DriverError> {
    let (mut held, notes) = of(store, |id| id == owner.snapshot)?;
    let mut one = held.remove(&owner).unwrap_or_default();
    for (_, notes, record) in notes {
        if record.as_ref().is_none_or(|record| record.owner() == owner) {
            (one.intent, one.notes) = (record, notes);
        }
    }
    Ok(one)
}

type Notes = Vec<(SnapshotId, Vec<String>, Option<Record>)>;

fn of(
    store: &Store,
    wanted: impl Fn(SnapshotId) -> bool,
) -> Result<(BTreeMap<Owner, Held>, Notes), DriverError> {
    let mut tries = 0..TRIES;
    loop {
        let names = store.snapshot_names()?;
        let ours = |name: &&String| names::parse_snapshot(name).is_some_and(|(_, id)| wanted(id));
        let names: Vec<&str> = names.iter().filter(ours).map(String::as_str).collect();
        match details(store, &names) {
            // One of them was removed since.
            Err(error) if error.kind == Kind::NotFound && tries.next().is_some() => {}
            Err(error) => return Err(error),
            Ok((held, mut notes)) => {
                notes.retain(|(id, ..)| wanted(*id));
                return Ok((held, notes));
            }
        }
    }
}

fn details(store: &Store, names: &[&str]) -> Result<(BTreeMap<Owner, Held>, Notes), DriverError> {
    let snapshots = store.snapshots(names)?;
    let place = store.dataset.as_str();
    let properties = store.properties(&[names, &[place]].concat())?;
    let notes = properties.get(place).map(Record::on_store_of).unwrap_or_default();
    Ok((gather(snapshots, &properties), notes))
}

/// Joins snapshots with their records: what has none is not ours.
fn gather(snapshots: Vec<Snapshot>, properties: &BTreeMap<String, Properties>) -> BTreeMap<Owner, Held> {
    let mut held: BTreeMap<Owner, Held> = BTreeMap::new();
    for snapshot in snapshots {
        let record = names::parse_snapshot(&snapshot.name)
            .and_then(|(_, id)| Record::of_snapshot(id, properties.get(&snapshot.name)?));
        if let Some(record) = record {
            held.entry(record.owner()).or_default().add(snapshot, record);
        }
    }
    held
}

/// As the service knows it.
pub(super) fn found(owner: Owner, held: &Held) -> Found {
    let record = held.record.as_ref().or(held.intent.as_ref());
    Found {
        owner,
        whole: held.is_whole(),
        manifest: record.map(|record| record.manifest.clone().into_bytes()),
    }
}
