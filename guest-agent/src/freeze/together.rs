//! Freezing several file systems at the same time. Most of a FIFREEZE is waiting, for RCU and for the
//! disk, so those that don't depend on each other wait together.
//!
//! Every worker does the same: it takes the next file system of the rank, and when there is none left
//! it waits for the others, before the next rank begins. So all are written back, while nothing is frozen,
//! and then all are frozen. Nothing here allocates once it is made.

use std::fs::File;
use std::ops::Range;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::shared::Shared;

/// More would only queue for the same disks.
const MOST_WORKERS: usize = 8;

/// Who freezes what, and when.
pub(super) struct Together {
    ranks: Vec<Rank>,
    workers: usize,
    barrier: Barrier,
}

struct Rank {
    /// Of the slots.
    range: Range<usize>,
    next_to_flush: AtomicUsize,
    next_to_freeze: AtomicUsize,
}

impl Rank {
    fn new(range: Range<usize>) -> Self {
        let first = range.start;
        Self { range, next_to_flush: AtomicUsize::new(first), next_to_freeze: AtomicUsize::new(first) }
    }
}

impl Together {
    /// For these ranks, which ascend.
    pub(super) fn new(ranks: &[u32]) -> Self {
        let mut groups: Vec<Rank> = Vec::new();
        for (index, rank) in ranks.iter().enumerate() {
            match groups.last_mut() {
                Some(group) if index > 0 && ranks[index - 1] == *rank => group.range.end = index + 1,
                _ => groups.push(Rank::new(index..index + 1)),
            }
        }
        let workers = groups.iter().map(|group| group.range.len()).max().unwrap_or(1).min(MOST_WORKERS);
        Self { ranks: groups, workers, barrier: Barrier::new(workers) }
    }

    /// How many threads have to call [`Self::freeze`].
    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    /// Waits for the other workers.
    pub(super) fn meet(&self) {
        self.barrier.wait();
    }

    /// A worker's part. When the last one comes back, all that may be frozen is.
    pub(super) fn freeze(&self, shared: &Shared, files: &[File]) {
        self.each(|rank| &rank.next_to_flush, |index| shared.flush(files, index));
        self.each(|rank| &rank.next_to_freeze, |index| shared.freeze(files, index));
    }

    /// One thing after the other of what is left of each rank.
    fn each(&self, next: impl Fn(&Rank) -> &AtomicUsize, act: impl Fn(usize)) {
        for rank in &self.ranks {
            loop {
                let index = next(rank).fetch_add(1, SeqCst);
                if !rank.range.contains(&index) {
                    break;
                }
                act(index);
            }
            self.meet();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_are_frozen_together_and_ranks_one_after_the_other() {
        for (ranks, ranges, workers) in [
            (&[][..], vec![], 1),
            (&[0], vec![(0, 1)], 1),
            (&[0, 1, 2], vec![(0, 1), (1, 2), (2, 3)], 1),
            (&[0, 0, 1], vec![(0, 2), (2, 3)], 2),
            (&[0, 3, 3, 3], vec![(0, 1), (1, 4)], 3),
            (&[5; 20], vec![(0, 20)], MOST_WORKERS),
        ] {
            let together = Together::new(ranks);
            let got: Vec<_> = together.ranks.iter().map(|rank| (rank.range.start, rank.range.end)).collect();
            assert_eq!((got, together.workers()), (ranges, workers), "{ranks:?}");
        }
    }
}
