//! The catalog against the storage: at start, once a minute for what is unfinished, and on command.
//!
//! After it, every snapshot on the storage that we made is in the catalog, every one in the catalog
//! is on the storage or marked as failed, and nothing is left half done. It believes the storage; a
//! store that can't be listed proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::evidence::CutEvidence;
use protocol::record::State;
use protocol::text::Line;
use protocol::{Consistency, SnapshotId, SnapshotRecord, WireError};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::create::digest_of_record;
use super::in_flight::Claim;
use super::lock::lock_of;
use super::manifest::Manifest;
use super::operation::{Common, Part, name_disks, tell_if_cut_apart};
use super::{Service, errors, settle};
use crate::catalog::{Begun, Entry, Phase};
use crate::drivers::{CutSet, Found, Owner, Recovered, Volume};
use crate::world::{Store, World};

/// How long a store may take to list or recover.
pub(super) const STORE_LIMIT: Duration = Duration::from_secs(120);

/// What was found and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// On the storage, unknown to the catalog: entered.
    pub adopted: Vec<SnapshotId>,
    /// Cut before a stop of the service, finished now.
    pub resumed: Vec<SnapshotId>,
    /// Begun before a stop and never cut, or half deleted: nothing is left of it.
    pub cleaned: Vec<SnapshotId>,
    /// In the catalog, gone from the storage: marked as failed.
    pub lost: Vec<SnapshotId>,
    /// In a store that other hosts use too, and removed by one of them: no longer in the catalog.
    #[serde(default)]
    pub removed: Vec<SnapshotId>,
    /// No longer attached: its machine was stopped, or the service while it was attached or detached.
    #[serde(default)]
    pub detached: Vec<SnapshotId>,
    /// Disks of a machine were being given back the bytes of this snapshot, and have them now.
    #[serde(default)]
    pub restored: Vec<SnapshotId>,
    /// What could not be decided, for people.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether there was nothing to do.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// Which stores are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    /// Those that other hosts use too.
    Shared,
}

/// What one store keeps of a snapshot.
type StoreVolumes = (Arc<Store>, Vec<Volume>);

/// The storage as it was found: who is where.
pub(super) struct Inventory {
    pub(super) found: BTreeMap<SnapshotId, Vec<(Arc<Store>, Found)>>,
    /// Whether every store could be listed.
    pub(super) complete: bool,
}

impl Service {
    /// Compares everything: the storage, and what is attached.
    pub async fn reconcile(self: &Arc<Self>) -> Result<Report, WireError> {
        // Nobody waits for a storage while a machine stands still.
        self.end_pauses().await;
        let mut report = self.reconcile_storage().await?;
        self.tend_exports().await;
        let attached = self.reconcile_attached().await?;
        attached.problems.iter().for_each(|problem| tracing::warn!("reconcile: {problem}"));
        report.detached = attached.detached;
        self.finish_restores(&mut report).await;
        self.hide_what_nobody_needs().await;
        report.problems.extend(attached.problems);
        Ok(report)
    }

    /// Compares the catalog with the storage.
    pub(super) async fn reconcile_storage(self: &Arc<Self>) -> Result<Report, WireError> {
        self.compare(Which::All).await
    }

    /// Compares only what may have changed without us: stores that other hosts use too, and what is all in them.
    pub(super) async fn reconcile_shared(self: &Arc<Self>) -> Result<Report, WireError> {
        self.compare(Which::Shared).await
    }

    async fn compare(self: &Arc<Self>, which: Which) -> Result<Report, WireError> {
        let mut report = Report::default();
        // In this order: what is finished while the storage is listed must not be missed in the list.
        let entries = self.catalog(|catalog| catalog.all()).await?;
        let inventory = self.inventory_of(which, &mut report).await;
        let known: BTreeSet<SnapshotId> = entries.iter().map(|entry| entry.record.id).collect();
        for entry in entries {
            if which == Which::All || self.is_shared(&entry.record) {
                self.reconcile_entry(entry, &inventory, &mut report).await;
            }
        }
        for (id, parts) in &inventory.found {
            // Whether a part that is in no shared store is missing is for the whole comparison to say.
            if !known.contains(id) && (which == Which::All || is_all_of_it(parts)) {
                self.adopt(*id, parts, inventory.complete, &mut report).await;
            }
        }
        for problem in self.problems.news(&report.problems, which == Which::All) {
            tracing::warn!("reconcile: {problem}");
        }
        Ok(report)
    }

    /// Finishes what is unfinished and nobody works on; looks again at stores that could not be listed; removes and forgets
    /// what is too old.
    pub async fn tend(self: &Arc<Self>) {
        if self.unlisted.swap(false, Ordering::Relaxed) {
            // What goes wrong is logged there.
            let _ = self.reconcile_storage().await;
        }
        let unfinished = self.catalog(|catalog| catalog.unfinished()).await.unwrap_or_default();
        let mut report = Report::default();
        for entry in unfinished {
            if let Some((entry, claim)) = self.claim_as_it_is(entry.record.id).await {
                self.finish(entry, claim, &mut report).await;
            }
        }
        self.end_pauses().await;
        self.finish_restores(&mut report).await;
        self.tend_attached().await;
        self.tend_exports().await;
        self.hide_what_nobody_needs().await;
        self.expire().await;
        self.forget_failed().await;
    }

    pub(super) async fn inventory(&self, report: &mut Report) -> Inventory {
        self.inventory_of(Which::All, report).await
    }

    async fn inventory_of(&self, which: Which, report: &mut Report) -> Inventory {
        let mut inventory = Inventory { found: BTreeMap::new(), complete: true };
        let world = self.world();
        for store in world.stores().filter(|store| which == Which::All || store.driver.is_shared()) {
            let used = Arc::clone(store);
            let doing = format!("list the snapshots in the store {}", store.config.name);
            // Said when the call is over: one that hangs is not begun once more each minute.
            let (failed, late) = (Arc::clone(&self.unlisted), Arc::clone(&self.unlisted));
            let list = move || used.driver.list().inspect_err(|_| failed.store(true, Ordering::Relaxed));
            let too_late = move |_| late.store(true, Ordering::Relaxed);
            match self.workers.bounded(&doing, STORE_LIMIT, list, too_late).await {
                Ok(found) => {
                    for one in found {
                        let parts = inventory.found.entry(one.owner.snapshot).or_default();
                        parts.push((Arc::clone(store), one));
                    }
                }
                Err(error) => {
                    inventory.complete = false;
                    report.problems.push(errors::chain(&error));
                }
            }
        }
        inventory
    }

    async fn reconcile_entry(self: &Arc<Self>, entry: Entry, inventory: &Inventory, report: &mut Report) {
        let id = entry.record.id;
        let Some((now, claim)) = self.claim_as_it_is(id).await else { return };
        match now.phase {
            Phase::Intent | Phase::Settling | Phase::Deleting => self.finish(now, claim, report).await,
            // Somebody worked on it while the storage was listed: the list does not tell.
            _ if now != entry => {}
            Phase::Failed => {}
            Phase::Ready => {
                let parts = inventory.found.get(&id).filter(|parts| all_there(parts));
                if let Some(parts) = parts {
                    self.believe_lock(&entry.record, parts).await;
                    self.believe_restores(&entry.record, parts, report).await;
                }
                let whole = parts.is_some();
                let is_gone = !inventory.found.contains_key(&id);
                if is_gone && inventory.complete && self.is_shared(&entry.record) {
                    match self.catalog(move |catalog| catalog.remove(id)).await {
                        Ok(_) => report.removed.push(id),
                        Err(error) => report.problems.push(format!("{id}: {}", error.message)),
                    }
                } else if !whole && inventory.complete {
                    report.lost.push(id);
                    self.fail(entry.record, "the storage no longer has it").await;
                }
            }
        }
    }

    /// Claims a snapshot that nobody works on, and reads its entry again: what was read before the
    /// claim may have been finished or removed since.
    pub(super) async fn claim_as_it_is(&self, id: SnapshotId) -> Option<(Entry, Arc<Claim>)> {
        let claim = self.in_flight.claim(id)?;
        let entry = self.catalog(move |catalog| catalog.get(id)).await.ok()??;
        Some((entry, claim))
    }

    /// Finishes an entry that a stop of the service left.
    async fn finish(self: &Arc<Self>, entry: Entry, claim: Arc<Claim>, report: &mut Report) {
        let id = entry.record.id;
        match entry.phase {
            Phase::Ready | Phase::Failed => {}
            Phase::Deleting => match self.remove_everywhere(&entry.record, &claim, &mut false).await {
                Ok(()) => self.forget_cleaned(id, report).await,
                Err(error) => report.problems.push(format!("{id}: {}", error.message)),
            },
            Phase::Intent | Phase::Settling => self.recover(entry, claim, report).await,
        }
    }

    async fn recover(self: &Arc<Self>, entry: Entry, claim: Arc<Claim>, report: &mut Report) {
        let Entry { record, phase, .. } = entry;
        let id = record.id;
        let volumes = match self.volumes_of(&record) {
            Ok(volumes) => volumes,
            Err(problem) => return report.problems.push(format!("{id}: {problem}")),
        };
        let owner = Owner { vm: record.vm_uuid, snapshot: id };
        let mut cut: Vec<Part<Box<dyn CutSet>>> = Vec::new();
        let mut whole = 0;
        let mut nothing = 0;
        let stores: Vec<_> = volumes.iter().map(|(store, _)| Arc::clone(store)).collect();
        for (store, volumes) in volumes {
            let used = Arc::clone(&store);
            let doing = format!("recover the snapshot {id}");
            let recovered = self.workers.claimed(
                &claim,
                &doing,
                STORE_LIMIT,
                move || used.driver.recover(owner, &volumes),
                drop,
            );
            match recovered.await {
                Ok(Recovered::Nothing) => nothing += 1,
                Ok(Recovered::Whole) => whole += 1,
                Ok(Recovered::Cut(stage)) => cut.push(Part { store, stage }),
                Err(error) => return report.problems.push(errors::chain(&error)),
            }
        }
        let unconcluded = phase == Phase::Intent;
        let worthless = unconcluded && record.minimum > Consistency::Crash;
        if nothing > 0 || (worthless && whole == 0) {
            // Not cut everywhere, or worth less than its user accepts: it never was a snapshot.
            self.undo(cut, &record, &claim, whole, phase, report).await;
        } else if cut.is_empty() {
            self.adopt_whole(&record, report).await;
        } else {
            self.resume(record, unconcluded, &stores, cut, claim, report).await;
        }
    }

    async fn undo(
        &self,
        cut: Vec<Part<Box<dyn CutSet>>>,
        record: &SnapshotRecord,
        claim: &Arc<Claim>,
        whole: usize,
        phase: Phase,
        report: &mut Report,
    ) {
        let id = record.id;
        for part in cut {
            let undone = self
                .workers
                .claimed(claim, "undo a snapshot", STORE_LIMIT, move || part.stage.abandon(), drop)
                .await;
            if let Err(error) = undone {
                return report.problems.push(errors::chain(&error));
            }
        }
        if whole > 0
            && let Err(error) = self.remove_everywhere(record, claim, &mut false).await
        {
            return report.problems.push(format!("{id}: {}", error.message));
        }
        if phase == Phase::Settling {
            // Its guest may have been told of it.
            report.lost.push(id);
            self.fail(record.clone(), "the storage lost it before it was whole").await;
        } else {
            self.forget_cleaned(id, report).await;
        }
    }

    /// Sealed, but the catalog had not been told: the manifest is the truth.
    async fn adopt_whole(&self, record: &SnapshotRecord, report: &mut Report) {
        let id = record.id;
        let mut unread = Report::default();
        let inventory = self.inventory(&mut unread).await;
        let sealed = inventory.found.get(&id).and_then(|parts| read_manifest(parts).ok());
        let mut record = sealed.map_or_else(|| record.clone(), |manifest| manifest.record);
        record.state = State::Ready;
        match self.catalog(move |catalog| catalog.record(&record, Phase::Ready)).await {
            Ok(()) => report.resumed.push(id),
            Err(error) => report.problems.push(format!("{id}: {}", error.message)),
        }
    }

    async fn resume(
        self: &Arc<Self>,
        mut record: SnapshotRecord,
        unconcluded: bool,
        stores: &[Arc<Store>],
        cut: Vec<Part<Box<dyn CutSet>>>,
        claim: Arc<Claim>,
        report: &mut Report,
    ) {
        let id = record.id;
        name_disks(&mut record, cut.iter().map(|part| (part.store.as_ref(), part.stage.volumes())));
        if unconcluded {
            record.consistency = Consistency::Crash;
            record.consistency_reason =
                Line::lossy("the host's service stopped between the cut and the guest's conclusion");
            record.cut = CutEvidence::Unknown;
            tell_if_cut_apart(&mut record, stores.iter().map(Arc::as_ref));
        }
        let common =
            Common { service: Arc::clone(self), draft: record, stores: stores.len(), claim, _admitted: None };
        match settle::commit(&common).await {
            Ok(()) => {
                settle::start(common, cut, Instant::now());
                report.resumed.push(id);
            }
            Err(error) => report.problems.push(format!("{id}: {}", error.message)),
        }
    }

    /// Enters a snapshot that only the storage knows.
    async fn adopt(
        self: &Arc<Self>,
        id: SnapshotId,
        parts: &[(Arc<Store>, Found)],
        complete: bool,
        report: &mut Report,
    ) {
        let Some(claim) = self.in_flight.claim(id) else {
            return report
                .problems
                .push(format!("{id}: it is being worked on; run hostsnapd reconcile again"));
        };
        let Manifest { mut record, stores, .. } = match read_manifest(parts) {
            Ok(read) => read,
            Err(problem) => return report.problems.push(format!("{id}: {problem}")),
        };
        let whole = parts.iter().all(|(_, one)| one.whole);
        let missing = parts.len() < stores;
        if missing && !complete {
            return report.problems.push(format!("{id}: a part of it is in a store that can't be listed"));
        }
        if whole {
            record.state = if missing { State::Failed } else { State::Ready };
        }
        record.locked_until = lock_of(parts).unwrap_or(record.locked_until);
        // Another host's, whose machine is not known here: that host picks it up.
        if !whole && let Err(problem) = self.volumes_of(&record) {
            return report.problems.push(format!("{id}: {problem}"));
        }
        // Before the snapshot itself: after a crash in between it is still unknown, and all of this is done again.
        if let Err(error) = self.enter_restores_of_unknown(&record, parts).await {
            return report.problems.push(format!("{id}: {}", error.message));
        }
        let digest = digest_of_record(&record);
        let intent = record.clone();
        match self.catalog(move |catalog| catalog.enter(&intent, &digest)).await {
            // What is left of it may be all that somebody has: it stays until it is deleted.
            Ok(Begun::New) if whole && missing => {
                report.lost.push(id);
                self.fail(record, "a store no longer has its part of it").await;
            }
            Ok(Begun::New) if whole => {
                match self.catalog(move |catalog| catalog.record(&record, Phase::Ready)).await {
                    Ok(()) => report.adopted.push(id),
                    Err(error) => report.problems.push(format!("{id}: {}", error.message)),
                }
            }
            Ok(Begun::New) => {
                let entry = Entry { record, phase: Phase::Intent, digest };
                self.recover(entry, claim, report).await;
            }
            Ok(Begun::Existing(_)) => {}
            Err(error) => report.problems.push(format!("{id}: {}", error.message)),
        }
    }

    /// The volumes of a record, by store, as configured now.
    fn volumes_of(&self, record: &SnapshotRecord) -> Result<Vec<StoreVolumes>, String> {
        let world = self.world();
        let vm = world
            .vm(record.vm_uuid)
            .ok_or_else(|| format!("its virtual machine {} is not configured", record.vm))?;
        let mut by_store: BTreeMap<&str, StoreVolumes> = BTreeMap::new();
        for cut in &record.disks {
            let disk = vm
                .disks
                .iter()
                .find(|disk| disk.serial == cut.serial)
                .ok_or_else(|| format!("its disk {} is not configured", cut.serial))?;
            let store = world.store(disk);
            by_store
                .entry(&disk.store)
                .or_insert_with(|| (Arc::clone(store), Vec::new()))
                .1
                .push(World::volume(vm, disk));
        }
        Ok(by_store.into_values().collect())
    }

    async fn fail(&self, mut record: SnapshotRecord, why: &str) {
        record.state = State::Failed;
        tracing::error!(vm = %record.vm, "the snapshot {} is lost: {why}", record.id);
        // The failure to write it down is logged; the next reconcile comes to the same.
        let _ = self.catalog(move |catalog| catalog.record(&record, Phase::Failed)).await;
    }

    async fn forget_cleaned(&self, id: SnapshotId, report: &mut Report) {
        match self.catalog(move |catalog| catalog.remove(id)).await {
            Ok(_) => report.cleaned.push(id),
            Err(error) => report.problems.push(format!("{id}: {}", error.message)),
        }
    }
}

/// Whether no store that has a part of it is missing here.
fn is_all_of_it(parts: &[(Arc<Store>, Found)]) -> bool {
    read_manifest(parts).is_ok_and(|manifest| parts.len() >= manifest.stores)
}

/// Whether every part is whole, and none is missing.
fn all_there(parts: &[(Arc<Store>, Found)]) -> bool {
    let stores = read_manifest(parts).map_or(0, |manifest| manifest.stores);
    parts.len() >= stores && parts.iter().all(|(_, one)| one.whole)
}

/// The manifest that decides: the first part's.
pub(super) fn read_manifest(parts: &[(Arc<Store>, Found)]) -> Result<Manifest, String> {
    let (store, found) = parts.first().ok_or("it is in no store")?;
    let bytes = found
        .manifest
        .as_ref()
        .ok_or_else(|| format!("its manifest in the store {} can't be read", store.config.name))?;
    Manifest::read(bytes, found.owner).map_err(|error| errors::chain(&error))
}
