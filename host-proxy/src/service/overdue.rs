//! Snapshots that stay although their time is over, and why: so that the log says it once and not each minute.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use protocol::{ErrorCode, SnapshotId};

/// What was told of them.
#[derive(Default)]
pub(super) struct Overdue(Mutex<BTreeMap<SnapshotId, ErrorCode>>);

impl Overdue {
    /// Whether it was not yet told that this one stays for this reason.
    pub(super) fn is_news(&self, id: SnapshotId, why: ErrorCode) -> bool {
        self.0.lock().expect("no holder of this lock panics").insert(id, why) != Some(why)
    }

    /// Forgets those that are not among these.
    pub(super) fn forget_others(&self, ids: impl Iterator<Item = SnapshotId>) {
        let ids: BTreeSet<SnapshotId> = ids.collect();
        self.0.lock().expect("no holder of this lock panics").retain(|id, _| ids.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An attached snapshot whose time was over was a line of the log each minute.
    #[test]
    fn that_one_stays_is_told_once_and_again_when_the_reason_is_another() {
        let id: SnapshotId = "bf77abd9-d60d-5492-9bd0-07059232c906".parse().unwrap();
        let overdue = Overdue::default();
        let news = [ErrorCode::Busy, ErrorCode::Busy, ErrorCode::StorageFailed, ErrorCode::StorageFailed]
            .map(|why| overdue.is_news(id, why));
        assert_eq!(news, [true, false, true, false]);
        overdue.forget_others([id].into_iter());
        assert!(!overdue.is_news(id, ErrorCode::StorageFailed));
        overdue.forget_others(std::iter::empty());
        assert!(overdue.is_news(id, ErrorCode::StorageFailed), "it is another time that is over");
    }
}
