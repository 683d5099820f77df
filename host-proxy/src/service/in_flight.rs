//! Which snapshots are being worked on, so that nothing else touches them meanwhile.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use protocol::SnapshotId;

/// The set of snapshots that are being worked on.
#[derive(Clone, Default)]
pub(super) struct InFlight(Arc<Mutex<HashSet<SnapshotId>>>);

/// As long as this lives, its snapshot is being worked on. Each call that is out has a share of it.
pub(super) struct Claim {
    id: SnapshotId,
    set: InFlight,
}

impl InFlight {
    /// Claims a snapshot; `None` if somebody else has it.
    pub(super) fn claim(&self, id: SnapshotId) -> Option<Arc<Claim>> {
        let new = self.0.lock().expect("no holder of this lock panics").insert(id);
        new.then(|| Arc::new(Claim { id, set: self.clone() }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.set.0.lock().expect("no holder of this lock panics").remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use protocol::RequestId;

    use super::*;

    #[test]
    fn a_snapshot_is_worked_on_by_one_at_a_time() {
        let set = InFlight::default();
        let id = SnapshotId::from_uuid(*RequestId::random().as_uuid());
        let claim = set.claim(id).unwrap();
        assert!(set.claim(id).is_none());
        drop(claim);
        assert!(set.claim(id).is_some());
    }
}
