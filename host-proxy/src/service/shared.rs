//! Stores that other hosts use too: what they made and removed since is looked up before anybody here is told what
//! there is. The catalog is an index; the storage is the truth.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use protocol::SnapshotRecord;
use protocol::record::DiskRecord;

use super::Service;

/// For how long what was looked up is taken for the truth.
const FRESH_FOR: Duration = Duration::from_secs(5);
/// How long the looking may keep somebody waiting, who then gets what the catalog has. It goes on meanwhile.
const LIMIT: Duration = Duration::from_secs(5);

/// When it was looked up last.
#[derive(Default)]
pub(super) struct Freshness(Mutex<Option<Instant>>);

impl Freshness {
    /// Whether it has to be looked up now; it is taken for done then.
    fn is_due(&self) -> bool {
        let mut last = self.0.lock().expect("no holder of this lock panics");
        let is_due = last.is_none_or(|last| last.elapsed() >= FRESH_FOR);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

impl Service {
    /// Brings the catalog up to date with stores that are shared with other hosts. Does nothing where there are none.
    pub async fn freshen(self: &Arc<Self>) {
        if !self.world().stores().any(|store| store.driver.is_shared()) || !self.freshness.is_due() {
            return;
        }
        let service = Arc::clone(self);
        // What goes wrong is logged there, and is no reason not to answer.
        let looking = tokio::spawn(async move { service.reconcile_shared().await.map(|_| ()) });
        if tokio::time::timeout(LIMIT, looking).await.is_err() {
            tracing::warn!("a shared store does not answer in time: other hosts' snapshots may be missing");
        }
    }

    /// Whether all of a snapshot is where other hosts can remove it.
    pub(super) fn is_shared(&self, record: &SnapshotRecord) -> bool {
        let world = self.world();
        let names = |shared| {
            let of_this_kind = world.stores().filter(move |store| store.driver.is_shared() == shared);
            of_this_kind.map(|store| store.driver.name()).collect::<Vec<_>>()
        };
        let (shared, own) = (names(true), names(false));
        let of_shared = |disk: &DiskRecord| {
            let name = disk.driver.as_str();
            shared.contains(&name) && !own.contains(&name)
        };
        // All of none is not all.
        !record.disks.is_empty() && record.disks.iter().all(of_shared)
    }
}
