//! Failed snapshots are forgotten when they were shown for long enough and nothing of them is left.

use super::Service;
use super::reconcile::Report;

impl Service {
    /// Forgets them. One of which some part is left stays: it may be all that somebody has.
    pub(super) async fn forget_failed(&self) {
        let now = self.now();
        let failed = self.catalog(move |catalog| catalog.long_failed(now)).await.unwrap_or_default();
        if failed.is_empty() {
            return;
        }
        let mut report = Report::default();
        let inventory = self.inventory(&mut report).await;
        for entry in failed {
            let id = entry.record.id;
            let Some((found, _claim)) = self.claim_as_it_is(id).await else { continue };
            if found != entry {
                continue;
            }
            let may_be_there = !inventory.complete || inventory.found.contains_key(&id);
            let done = self.catalog(move |catalog| match may_be_there {
                true => catalog.show_longer(id, now).map(|()| false),
                false => catalog.remove(id),
            });
            if matches!(done.await, Ok(true)) {
                tracing::info!(vm = %entry.record.vm, "forgot the snapshot {id}, which failed long ago");
            }
        }
    }
}
