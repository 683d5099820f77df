//! What was promised, and whether it is kept. It knows what guests asked for and were told, and looks at
//! the catalog and at the storage from outside.

use std::collections::{BTreeMap, BTreeSet};

use host_proxy::drivers::Owner;
use protocol::message::DiskRequest;
use protocol::record::{State as Far, UnixMillis};
use protocol::{Consistency, DiskSerial, RequestId, SnapshotId, SnapshotRecord, VmUuid};
use rusqlite::Connection;

use crate::storage::{Contents, Storage};

/// What a guest wants, and what became of it.
pub(crate) struct Wish {
    pub(crate) owner: Owner,
    pub(crate) request: RequestId,
    pub(crate) disks: Vec<DiskSerial>,
    pub(crate) minimum: Consistency,
    pub(crate) note: String,
    pub(crate) keep_for_s: Option<u64>,
    /// What the disks held while the guest was frozen, for each time that it said so.
    pub(crate) frozen: Vec<Contents>,
    /// What the disks held when it was first asked for.
    pub(crate) before: Contents,
    /// Whether a cut was ever asked for.
    pub(crate) cut_asked: bool,
    /// The record that its guest was given as ready.
    pub(crate) promised: Option<SnapshotRecord>,
    /// Somebody who may have asked for its removal.
    pub(crate) may_be_deleted: bool,
    /// When it may have been removed for its age.
    pub(crate) expires_at: Option<UnixMillis>,
    /// Attempts that are under way.
    pub(crate) attempts: usize,
}

#[derive(Default)]
pub(crate) struct Witness {
    pub(crate) wishes: BTreeMap<SnapshotId, Wish>,
    /// The latest that the wall clock ever showed.
    pub(crate) latest: Option<UnixMillis>,
    /// The catalog was lost, and was not compared with the storage since.
    pub(crate) catalog_is_lost: bool,
    /// What was seen of the catalog last.
    rows: BTreeMap<SnapshotId, String>,
}

impl Wish {
    /// Nothing was done for it yet.
    pub(crate) fn new(
        owner: Owner,
        request: RequestId,
        disks: Vec<DiskSerial>,
        minimum: Consistency,
        note: String,
        keep_for_s: Option<u64>,
    ) -> Self {
        Self {
            owner,
            request,
            disks,
            minimum,
            note,
            keep_for_s,
            frozen: Vec::new(),
            before: Contents::new(),
            cut_asked: false,
            promised: None,
            may_be_deleted: false,
            expires_at: None,
            attempts: 0,
        }
    }

    /// Whether its guest may rely on it now.
    pub(crate) fn stands(&self, latest: Option<UnixMillis>) -> bool {
        let expired = self.expires_at.is_some_and(|at| latest.is_some_and(|latest| latest >= at));
        self.promised.is_some() && !self.may_be_deleted && !expired
    }
}

/// All that the catalog has, by phase.
fn rows(catalog: &Connection) -> rusqlite::Result<BTreeMap<SnapshotId, String>> {
    let mut statement = catalog.prepare_cached("SELECT id, phase FROM snapshots")?;
    let rows = statement.query_map([], |row| {
        let id: String = row.get(0)?;
        Ok((id.parse().expect("an identifier"), row.get(1)?))
    })?;
    rows.collect()
}

impl Witness {
    /// What must hold at every moment. The changes of the catalog are given to `say`.
    pub(crate) fn look(
        &mut self,
        catalog: &Connection,
        storage: &mut Storage,
        quotas: &BTreeMap<VmUuid, u64>,
        mut say: impl FnMut(String),
    ) -> Result<(), String> {
        let rows = rows(catalog).map_err(|error| format!("look at the catalog: {error}"))?;
        for (id, phase) in &rows {
            if self.rows.get(id) != Some(phase) {
                say(format!("  catalog: {id} is {phase}"));
            }
        }
        for id in self.rows.keys().filter(|id| !rows.contains_key(id)) {
            say(format!("  catalog: {id} is gone"));
        }
        self.rows = rows;
        for (id, phase) in &self.rows {
            let wish = self
                .wishes
                .get(id)
                .ok_or_else(|| format!("{id} is in the catalog, and nobody asked for it"))?;
            let whole = storage.is_whole(wish.owner, &wish.disks);
            if whole {
                storage.ever_whole.insert(wish.owner);
            }
            if phase == "ready" && !whole {
                return Err(format!("{id} is ready in the catalog, and not whole on the storage"));
            }
        }
        let owners = storage.owners();
        for owner in &owners {
            if !self.catalog_is_lost && !self.rows.contains_key(&owner.snapshot) {
                return Err(format!("{} is on the storage, and the catalog does not know", owner.snapshot));
            }
        }
        for (vm, quota) in quotas {
            let has = owners.iter().filter(|owner| owner.vm == *vm).count();
            if has as u64 > *quota {
                return Err(format!("{vm} has {has} snapshots on the storage, {quota} are allowed"));
            }
        }
        for (id, wish) in self.wishes.iter().filter(|(_, wish)| wish.stands(self.latest)) {
            if !storage.is_whole(wish.owner, &wish.disks) {
                return Err(format!("{id} was acknowledged, and is not on the storage"));
            }
            if !self.catalog_is_lost && self.rows.get(id).map(String::as_str) != Some("ready") {
                return Err(format!("{id} was acknowledged, and is {:?} in the catalog", self.rows.get(id)));
            }
        }
        Ok(())
    }

    /// A guest was given this record. What it says must be true, and what was said before.
    pub(crate) fn told(
        &mut self,
        to: Option<VmUuid>,
        record: &SnapshotRecord,
        storage: &Storage,
    ) -> Result<(), String> {
        let id = record.id;
        if to.is_some_and(|vm| vm != record.vm_uuid) {
            return Err(format!("{id} was shown to another machine's guest"));
        }
        let wish = self.wishes.get(&id).ok_or_else(|| format!("{id} is shown, and nobody asked for it"))?;
        if record.state != Far::Ready {
            return Ok(());
        }
        if !storage.ever_whole.contains(&wish.owner) {
            return Err(format!("{id} is shown as ready, and never was whole"));
        }
        if record.consistency < wish.minimum {
            return Err(format!(
                "{id} is {}, and at least {} was asked for",
                record.consistency, wish.minimum
            ));
        }
        if record.note.as_str() != wish.note || !same_disks(record, &wish.disks) {
            return Err(format!("{id} is not what was asked for: {record:?}"));
        }
        let changed = |first: &SnapshotRecord| {
            SnapshotRecord { locked_until: None, ..record.clone() }
                != SnapshotRecord { locked_until: None, ..first.clone() }
        };
        match &wish.promised {
            Some(first) if wish.stands(self.latest) && changed(first) => {
                Err(format!("{id} is told differently each time:\n{first:?}\n{record:?}"))
            }
            _ => Ok(()),
        }
    }

    /// A guest was given this record as the answer to its request: from now on it relies on it.
    pub(crate) fn promised(&mut self, record: &SnapshotRecord, storage: &Storage) -> Result<(), String> {
        if record.state != Far::Ready {
            return Ok(());
        }
        let Some(wish) = self.wishes.get_mut(&record.id) else { return Ok(()) };
        wish.expires_at = record.expires_at;
        wish.promised.get_or_insert_with(|| record.clone());
        if !wish.stands(self.latest) {
            return Ok(());
        }
        let contents = storage.contents(wish.owner);
        if record.consistency >= Consistency::Filesystem && !wish.frozen.contains(&contents) {
            return Err(format!("{} holds {contents:?}, frozen were {:?}", record.id, wish.frozen));
        }
        let past =
            |(disk, content): (&DiskSerial, &u64)| wish.before.get(disk).is_some_and(|at| content >= at);
        if !contents.iter().all(past) {
            return Err(format!("{} holds {contents:?}, older than {:?}", record.id, wish.before));
        }
        Ok(())
    }

    /// What must hold when everything has come to rest and the catalog was compared with the storage.
    pub(crate) fn at_rest(&self, storage: &Storage) -> Result<(), String> {
        for (id, phase) in &self.rows {
            if !matches!(phase.as_str(), "ready" | "failed") {
                return Err(format!("{id} is {phase} for ever"));
            }
        }
        for owner in storage.owners() {
            let id = owner.snapshot;
            let phase = self.rows.get(&id).map(String::as_str);
            let wish = self.wishes.get(&id);
            // A part of it was deleted, and the catalog that knew was lost: the rest is shown as failed.
            let rest = phase == Some("failed") && wish.is_some_and(|wish| !wish.stands(self.latest));
            if phase != Some("ready") && !rest {
                return Err(format!(
                    "{id} is on the storage for ever, and {:?} in the catalog",
                    self.rows.get(&id)
                ));
            }
            if self.wishes.get(&id).is_some_and(|wish| !wish.cut_asked) {
                return Err(format!("{id} is kept, and no cut was ever asked for"));
            }
        }
        Ok(())
    }
}

fn same_disks(record: &SnapshotRecord, disks: &[DiskSerial]) -> bool {
    let told: BTreeSet<_> = record.disks.iter().map(|disk| &disk.serial).collect();
    told == disks.iter().collect()
}

/// What is asked for of a disk.
pub(crate) fn disk_request(serial: &DiskSerial) -> DiskRequest {
    DiskRequest {
        serial: serial.clone(),
        size_bytes: crate::driver::DISK_BYTES,
        fingerprint: protocol::fingerprint::of_head(&crate::driver::HEAD),
    }
}
