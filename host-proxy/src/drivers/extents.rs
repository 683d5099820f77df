//! Ranges of a disk's bytes, put in order. Pure.

use serde::{Deserialize, Serialize};

/// A range of a disk's bytes; never empty where a driver tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

impl Extent {
    /// From here to there, which is not before it.
    pub(super) const fn between(offset: u64, end: u64) -> Self {
        Self { offset, length: end - offset }
    }

    /// Where it ends.
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// The same bytes as sorted extents of which no two touch, all within a disk of this size.
pub(super) fn in_order(mut extents: Vec<Extent>, size_bytes: u64) -> Vec<Extent> {
    extents.sort_unstable();
    let mut merged: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        let end = extent.end().min(size_bytes);
        if end <= extent.offset {
            continue;
        }
        match merged.last_mut() {
            Some(last) if extent.offset <= last.end() => last.length = end.max(last.end()) - last.offset,
            _ => merged.push(Extent::between(extent.offset, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_touches_is_one_and_what_is_behind_the_end_is_none() {
        let extents = |pairs: &[(u64, u64)]| -> Vec<Extent> {
            pairs.iter().map(|(offset, length)| Extent { offset: *offset, length: *length }).collect()
        };
        let told = in_order(extents(&[(8, 4), (0, 4), (4, 2), (9, 1), (30, 9), (40, 1), (12, 0)]), 32);
        assert_eq!(told, extents(&[(0, 6), (8, 4), (30, 2)]));
        assert_eq!(in_order(extents(&[(u64::MAX, 5), (7, u64::MAX)]), 10), extents(&[(7, 3)]));
    }

    proptest! {
        #[test]
        fn every_byte_is_in_it_that_was_and_no_other(
            pairs in proptest::collection::vec((0..64_u64, 0..16_u64), 0..20), size in 0..80_u64,
        ) {
            let given: Vec<_> = pairs.iter().map(|(offset, length)| Extent { offset: *offset, length: *length }).collect();
            let told = in_order(given.clone(), size);
            let is_in = |extents: &[Extent], byte: u64| extents.iter().any(|one| (one.offset..one.end()).contains(&byte));
            for byte in 0..size {
                prop_assert_eq!(is_in(&given, byte), is_in(&told, byte));
            }
            prop_assert!(told.iter().all(|one| one.length > 0 && one.end() <= size));
            prop_assert!(told.windows(2).all(|two| two[0].end() < two[1].offset));
        }
    }
}
