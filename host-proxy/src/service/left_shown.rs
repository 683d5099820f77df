//! Disks of snapshots that are shown on this host although nobody needs it: what a service that was killed had shown, and what
//! could not be hidden when it should have been. Some storages give room for it.

use std::sync::Arc;
use std::time::Duration;

use protocol::DiskSerial;

use super::in_flight::Claim;
use super::{Service, errors};
use crate::drivers::Owner;
use crate::world::Store;

/// How long a store may take to say what it shows, and to hide one disk.
const LIMIT: Duration = Duration::from_secs(75);

impl Service {
    /// Hides it. What fails is tried again the next time.
    pub(super) async fn hide_what_nobody_needs(&self) {
        for store in self.world().stores() {
            if store.driver.exposes().is_none() {
                continue;
            }
            let asked = Arc::clone(store);
            let doing = format!("see what the store {} shows", store.config.name);
            let ask = move || asked.driver.exposes().map_or(Ok(Vec::new()), |able| able.shown());
            let shown = self.workers.bounded(&doing, LIMIT, ask, drop).await.unwrap_or_else(|error| {
                tracing::warn!("{doing}: {}", errors::chain(&error));
                Vec::new()
            });
            for (owner, disk) in shown {
                // Whoever shows it just now has claimed its snapshot.
                let Some(claim) = self.in_flight.claim(owner.snapshot) else { continue };
                if !self.is_needed(owner, &disk).await {
                    self.hide_left(store, owner, disk, &claim).await;
                }
            }
        }
    }

    /// Whether it is attached, exported, or restored from; where that can't be told it is.
    async fn is_needed(&self, owner: Owner, disk: &DiskSerial) -> bool {
        let id = owner.snapshot;
        let attached = self.catalog(move |catalog| catalog.attached_of(id)).await;
        let restores = self.catalog(|catalog| catalog.unfinished_restores()).await;
        let (Ok(attached), Ok(restores)) = (attached, restores) else { return true };
        attached.iter().any(|one| one.attachment.disk == *disk)
            || restores.iter().any(|row| row.snapshot == id)
            || self.exports.has(id, disk)
    }

    async fn hide_left(&self, store: &Arc<Store>, owner: Owner, disk: DiskSerial, claim: &Arc<Claim>) {
        let store = Arc::clone(store);
        let doing = format!("hide the disk {disk} of {}, which nobody reads", owner.snapshot);
        let hide = move || store.driver.exposes().map_or(Ok(()), |able| able.conceal(owner, &disk));
        match self.workers.claimed(claim, &doing, LIMIT, hide, drop).await {
            Ok(()) => tracing::info!("{doing}: done"),
            Err(error) => tracing::warn!("{doing}: {}", errors::chain(&error)),
        }
    }
}
