//! What the storage knows of a restore, beside its snapshot, so that a lost catalog loses no restore: that it was begun,
//! before the first byte is changed; that it is done, before anybody is told. The catalog's row is older than a note of it
//! and outlives it, so a note of which there is no row is of a catalog that was lost, or is an older one.

use std::sync::Arc;

use protocol::{DiskSerial, RequestId, SnapshotId, SnapshotRecord, WireError};
use serde::{Deserialize, Serialize};

use super::super::manifest::{Manifest, ManifestError, read_part};
use super::super::reconcile::{Report, STORE_LIMIT};
use super::super::{Service, errors};
use crate::catalog::Restoring as Row;
use crate::drivers::{DriverError, Found, Kind, Others, Owner};
use crate::this_host;
use crate::world::Store;

/// A restore, as a snapshot's manifest has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::service) struct Noted {
    request: RequestId,
    disks: Vec<DiskSerial>,
    safety: Option<SnapshotId>,
    /// No machine had the disks open when it was begun.
    of_stopped: bool,
    is_done: bool,
    /// Which host's service began it. Where several use a store, the others leave it alone.
    host: String,
}

/// How far a restore is, as far as its note tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Begun,
    Done,
    /// Nothing was changed after all.
    Never,
}

impl Noted {
    fn new(row: &Row, host: String, is_done: bool) -> Self {
        let Row { request, safety, disks, .. } = row.clone();
        Self { request, disks, safety, of_stopped: row.others == Others::Nobody, is_done, host }
    }

    fn into_row(self, owner: Owner) -> Row {
        let Self { request, disks, safety, of_stopped, is_done, .. } = self;
        let others = if of_stopped { Others::Nobody } else { Others::Machine };
        Row { vm: owner.vm, request, snapshot: owner.snapshot, disks, safety, others, is_done }
    }
}

/// The notes of a manifest, with this one as it is now. What was done before is not kept: its answer is long told.
fn with(notes: &[Noted], now: Noted, stage: Stage) -> Vec<Noted> {
    let request = now.request;
    let others = notes.iter().filter(|one| one.request != request && !one.is_done);
    others.cloned().chain((stage != Stage::Never).then_some(now)).collect()
}

impl Service {
    /// Writes it down beside the snapshot, in these stores. It has no limit, as the restore itself has none: what came late
    /// would be a note of which there is no row.
    pub(super) async fn write_note(
        &self,
        row: &Row,
        record: &SnapshotRecord,
        stores: &[Arc<Store>],
        stage: Stage,
    ) -> Result<(), WireError> {
        for store in stores {
            let (store, record) = (Arc::clone(store), record.clone());
            let now = Noted::new(row, self.host(), stage == Stage::Done);
            let written = self.workers.to_its_end(move || put(&store, record, now, stage)).await;
            let doing = "write down how far the restore is, beside its snapshot";
            written.map_err(|error| errors::of_driver(&self.name_of(row.vm), doing, &error))?;
        }
        Ok(())
    }

    /// Two services of one machine have two state folders.
    fn host(&self) -> String {
        format!("{} {}", this_host::name(), self.world().config.service.state_dir.display())
    }

    /// Enters the restores of a snapshot that the catalog does not know, and that is claimed.
    pub(in crate::service) async fn enter_restores_of_unknown(
        &self,
        record: &SnapshotRecord,
        parts: &[(Arc<Store>, Found)],
    ) -> Result<(), WireError> {
        let (notes, id) = (self.own_notes(parts), record.id);
        if notes.is_empty() || self.catalog(move |catalog| catalog.get(id)).await?.is_some() {
            return Ok(());
        }
        self.enter(record, notes).await
    }

    /// Enters what was begun from a known snapshot, which is claimed, and the catalog does not know: it is an older one.
    pub(in crate::service) async fn believe_restores(
        &self,
        record: &SnapshotRecord,
        parts: &[(Arc<Store>, Found)],
        report: &mut Report,
    ) {
        if let Err(problem) = self.believe_begun(record, parts).await {
            report.problems.push(format!("{}: {problem}", record.id));
        }
    }

    async fn believe_begun(
        &self,
        record: &SnapshotRecord,
        parts: &[(Arc<Store>, Found)],
    ) -> Result<(), String> {
        if self.begun_and_unknown(record, parts).await.map_err(told)?.is_empty() {
            return Ok(());
        }
        // What was listed before the claim may be over by now.
        let mut again = Vec::new();
        for (store, found) in parts {
            let (listed, owner) = (Arc::clone(store), found.owner);
            let find = move || listed.driver.find(owner);
            let now = self.workers.bounded("read the manifest again", STORE_LIMIT, find, drop).await;
            again.extend(now.map_err(|error| errors::chain(&error))?.map(|now| (Arc::clone(store), now)));
        }
        let notes = self.begun_and_unknown(record, &again).await.map_err(told)?;
        self.enter(record, notes).await.map_err(told)
    }

    async fn begun_and_unknown(
        &self,
        record: &SnapshotRecord,
        parts: &[(Arc<Store>, Found)],
    ) -> Result<Vec<Noted>, WireError> {
        let mut unknown = Vec::new();
        for note in self.own_notes(parts).into_iter().filter(|note| !note.is_done) {
            let (vm, request) = (record.vm_uuid, note.request);
            if self.catalog(move |catalog| catalog.restore(vm, request)).await?.is_none() {
                unknown.push(note);
            }
        }
        Ok(unknown)
    }

    async fn enter(&self, record: &SnapshotRecord, notes: Vec<Noted>) -> Result<(), WireError> {
        let owner = Owner { vm: record.vm_uuid, snapshot: record.id };
        for note in notes {
            if !note.is_done {
                tracing::warn!(
                    vm = %record.vm,
                    "a restore of the snapshot {} was begun and is not finished; the catalog had lost it", record.id
                );
            }
            let row = note.into_row(owner);
            self.catalog(move |catalog| catalog.enter_restore(&row)).await?;
        }
        Ok(())
    }

    /// Those of this host, each once. One that is not done in one of its stores is not done.
    fn own_notes(&self, parts: &[(Arc<Store>, Found)]) -> Vec<Noted> {
        let mut all: Vec<Noted> = Vec::new();
        let here = self.host();
        for (store, found) in parts {
            let notes = read_part(found).map(|manifest| manifest.restores).unwrap_or_default();
            for note in notes.into_iter().filter(|note| !store.driver.is_shared() || note.host == here) {
                match all.iter_mut().find(|one| one.request == note.request) {
                    Some(one) => one.is_done &= note.is_done,
                    None => all.push(note),
                }
            }
        }
        all
    }
}

fn told(error: WireError) -> String {
    error.message.to_string()
}

/// Writes a note into one store, if it does not stand there already.
fn put(store: &Store, record: SnapshotRecord, now: Noted, stage: Stage) -> Result<(), DriverError> {
    let owner = Owner { vm: record.vm_uuid, snapshot: record.id };
    let Some(found) = store.driver.find(owner)?.filter(|found| found.whole) else {
        // With the snapshot went its notes.
        return match stage {
            Stage::Begun => {
                Err(DriverError::new(Kind::NotFound, format!("find the snapshot {}", owner.snapshot)))
            }
            Stage::Done | Stage::Never => Ok(()),
        };
    };
    let read = found.manifest.as_ref().map(|bytes| Manifest::read(bytes, owner));
    let mut manifest = match read {
        Some(Ok(manifest)) => manifest,
        // It is damaged, and what it said is in the catalog.
        None | Some(Err(ManifestError::Parse(_))) => Manifest::new(record, 0),
        Some(Err(error)) => {
            let doing = format!("read the manifest of {}", owner.snapshot);
            return Err(DriverError {
                source: Some(Box::new(error)),
                ..DriverError::new(Kind::Failed, doing)
            });
        }
    };
    let notes = with(&manifest.restores, now, stage);
    if notes == manifest.restores {
        return Ok(());
    }
    manifest.restores = notes;
    store.driver.rewrite(owner, &manifest.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(request: RequestId, is_done: bool) -> Noted {
        let disks = vec!["data".parse().unwrap()];
        Noted { request, disks, safety: None, of_stopped: true, is_done, host: "here".to_owned() }
    }

    #[test]
    fn a_note_says_how_far_its_restore_is_and_only_what_is_not_done_is_kept_beside_it() {
        let [one, two] = [RequestId::random(), RequestId::random()];
        let begun = with(&[], noted(one, false), Stage::Begun);
        assert_eq!(begun, [noted(one, false)]);
        assert_eq!(
            with(&begun, noted(one, false), Stage::Begun),
            begun,
            "once more, and nothing is to be written"
        );
        assert_eq!(with(&begun, noted(one, false), Stage::Never), []);
        let done = with(&begun, noted(one, true), Stage::Done);
        assert_eq!(done, [noted(one, true)]);
        assert_eq!(with(&done, noted(two, false), Stage::Begun), [noted(two, false)]);
        assert_eq!(with(&begun, noted(two, false), Stage::Begun), [noted(one, false), noted(two, false)]);
        let owner = Owner {
            vm: "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01".parse().unwrap(),
            snapshot: "00000000-0000-0000-0000-0000000000aa".parse().unwrap(),
        };
        let row = noted(one, true).into_row(owner);
        assert_eq!(Noted::new(&row, "here".to_owned(), true), noted(one, true));
    }
}
