//! Removal, on demand and when a snapshot's time is over. Intent first, as with creation: what is
//! half removed is finished by reconcile.

use std::sync::Arc;
use std::time::Duration;

use protocol::message::DeleteOutcome;
use protocol::{ErrorCode, SnapshotRecord, WireError};

use super::clock::Seen;
use super::in_flight::Claim;
use super::{Service, errors};
use crate::drivers::{Deleted, Owner};
use crate::policy::{self, Allowed, Delete};

/// How long the storage may take to remove a snapshot.
const DELETE_LIMIT: Duration = Duration::from_secs(120);

impl Service {
    /// Removes a snapshot from the storage, then from the catalog.
    pub async fn delete(&self, allowed: Allowed<Delete>) -> Result<DeleteOutcome, WireError> {
        let Delete(record) = allowed.into_inner();
        let id = record.id;
        self.refresh_attached(&record).await?;
        let Some(claim) = self.in_flight.claim(id) else {
            return Err(WireError::new(ErrorCode::Busy, format!("the snapshot {id} is being worked on"))
                .hint("try again when it is ready"));
        };
        self.refuse_if_attached(&record).await?;
        self.refuse_if_exported(&record)?;
        self.refuse_if_restored_from(id).await?;
        let Some(was) = self.catalog(move |catalog| catalog.begin_delete(id)).await? else {
            return Ok(DeleteOutcome::WasAbsent);
        };
        let mut removed = false;
        if let Err(error) = self.remove_everywhere(&record, &claim, &mut removed).await {
            // What is in use stays as it was, and stays in the list.
            if error.code == ErrorCode::Busy && !removed {
                self.catalog(move |catalog| catalog.cancel_delete(id, was)).await?;
            }
            return Err(error);
        }
        self.catalog(move |catalog| catalog.remove(id)).await?;
        Ok(DeleteOutcome::Gone)
    }

    /// Removes a snapshot from every store: it may have parts in several, also in one that the
    /// configuration no longer gives to its machine.
    /// `removed` says whether some part is gone, also after a failure.
    pub(super) async fn remove_everywhere(
        &self,
        record: &SnapshotRecord,
        claim: &Arc<Claim>,
        removed: &mut bool,
    ) -> Result<(), WireError> {
        let owner = Owner { vm: record.vm_uuid, snapshot: record.id };
        for store in self.world().stores() {
            let store = Arc::clone(store);
            let doing = format!("delete the snapshot {}", record.id);
            let deleted = self
                .workers
                .claimed(claim, &doing, DELETE_LIMIT, move || store.driver.delete(owner), drop)
                .await;
            match deleted {
                Ok(Deleted::Gone) => *removed = true,
                Ok(Deleted::WasAbsent) => {}
                Err(error) => return Err(errors::of_driver(record.vm.as_str(), &doing, &error)),
            }
        }
        Ok(())
    }

    /// Removes the snapshots whose time is over. One that can't be removed does not stop the others.
    pub async fn expire(&self) {
        let Seen { now, elapsed, is_steady } = self.clock.look();
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let Ok(entries) = self.catalog(move |catalog| catalog.ending(elapsed_ms, now)).await else { return };
        self.overdue.forget_others(entries.iter().map(|(entry, _)| entry.record.id));
        for (entry, kept_ms) in entries.into_iter().filter(|_| is_steady) {
            let Some(allowed) = policy::expire(&entry.record, now, kept_ms) else { continue };
            let id = entry.record.id;
            match self.delete(allowed).await {
                Ok(_) => {
                    tracing::info!(vm = %entry.record.vm, "removed the snapshot {id}: its time was over")
                }
                // It is asked once a minute: what keeps an attached one is no news the next time.
                Err(error) if self.overdue.is_news(id, error.code) => {
                    tracing::warn!("the snapshot {id}, whose time is over, stays: {}", error.message)
                }
                Err(_) => {}
            }
        }
    }
}
