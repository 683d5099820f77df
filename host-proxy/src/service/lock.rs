//! Locks: until their date nobody deletes the snapshot, its retention neither. They stand in the manifest, so that they
//! outlive the catalog, and in the catalog, where policy looks.

use std::sync::Arc;
use std::time::Duration;

use protocol::record::UnixMillis;
use protocol::{ErrorCode, SnapshotRecord, WireError};

use super::manifest::{Manifest, read_part};
use super::reconcile::{Report, read_manifest};
use super::{Service, errors};
use crate::drivers::{Found, Kind};
use crate::policy::{Allowed, Lock};
use crate::world::Store;

/// How long a store may take to write a manifest.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

impl Service {
    /// Locks or unlocks a snapshot: on the storage first, then in the catalog. In this order, because reconcile reads
    /// the catalog before it lists the storage, and believes the storage. What fails in the middle may be locked there
    /// already; the same command again puts it right.
    pub async fn lock(&self, allowed: Allowed<Lock>) -> Result<Box<SnapshotRecord>, WireError> {
        let Lock { record, until } = allowed.into_inner();
        let id = record.id;
        let Some(claim) = self.in_flight.claim(id) else {
            return Err(WireError::new(ErrorCode::Busy, format!("the snapshot {id} is being worked on"))
                .hint("try again in a moment"));
        };
        let entry = self.catalog(move |catalog| catalog.get(id)).await?;
        let mut record = entry.ok_or_else(|| crate::policy::not_found(&id.to_string()))?.record;
        record.locked_until = until;
        let mut report = Report::default();
        let mut inventory = self.inventory(&mut report).await;
        if let (false, Some(problem)) = (inventory.complete, report.problems.first()) {
            return Err(WireError::new(
                ErrorCode::StorageFailed,
                format!("a store can't be listed, and a part of {id} may be there: {problem}"),
            )
            .hint("hostsnapd check says what is wrong with it"));
        }
        let parts = inventory.found.remove(&id).unwrap_or_default();
        let stores = read_manifest(&parts).map_or(parts.len(), |manifest| manifest.stores);
        for (store, found) in parts.into_iter().filter(|(_, found)| found.whole) {
            let doing = format!("write the lock of {id} into the store {}", store.config.name);
            let mut manifest = Manifest::new(record.clone(), stores);
            // What is being restored from it in this store stays known.
            manifest.restores = read_part(&found).map(|manifest| manifest.restores).unwrap_or_default();
            let call = move || store.driver.rewrite(found.owner, &manifest.text());
            match self.workers.claimed(&claim, &doing, WRITE_LIMIT, call, drop).await {
                Err(error) if error.kind != Kind::NotFound => {
                    return Err(errors::of_driver(record.vm.as_str(), &doing, &error));
                }
                _ => {}
            }
        }
        if !self.catalog(move |catalog| catalog.set_lock(id, until)).await? {
            return Err(crate::policy::not_found(&id.to_string()));
        }
        Ok(Box::new(record))
    }

    /// What the storage says of a whole snapshot's lock, the catalog says as well: another host may have locked it, or
    /// this one died in the middle.
    pub(super) async fn believe_lock(&self, record: &SnapshotRecord, parts: &[(Arc<Store>, Found)]) {
        let id = record.id;
        let Some(until) = lock_of(parts).filter(|until| *until != record.locked_until) else { return };
        tracing::info!(vm = %record.vm, "the lock of the snapshot {id} is now what the storage says of it");
        // The failure is logged; the next reconcile comes to the same.
        let _ = self.catalog(move |catalog| catalog.set_lock(id, until)).await;
    }
}

/// Until when a snapshot is locked: as long as any of its parts. `None` if one can't be read.
pub(super) fn lock_of(parts: &[(Arc<Store>, Found)]) -> Option<Option<UnixMillis>> {
    let mut longest = None;
    for (_, found) in parts {
        longest = longest.max(read_part(found)?.record.locked_until);
    }
    Some(longest)
}
