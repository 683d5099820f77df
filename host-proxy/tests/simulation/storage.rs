//! A storage device in memory: what it holds, what of it survives a power cut, and what its guests
//! write. The driver over it is in `driver`.

use std::collections::{BTreeMap, BTreeSet};

use host_proxy::drivers::Owner;
use protocol::DiskSerial;

/// How far a snapshot is on the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Far {
    Prepared,
    /// `true` if a power cut can't harm it any more.
    Cut(bool),
    Sealed,
    Deleting,
}

/// What each disk holds: how often its guest has written.
pub(crate) type Contents = BTreeMap<DiskSerial, u64>;

/// The part of a snapshot that one store has.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) far: Far,
    pub(crate) contents: Contents,
    pub(crate) manifest: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct Storage {
    /// By the path of the volume.
    pub(crate) volumes: BTreeMap<String, u64>,
    /// By the store's name.
    pub(crate) stores: BTreeMap<&'static str, BTreeMap<Owner, Kept>>,
    /// No room for another snapshot.
    pub(crate) full: bool,
    /// Somebody has all snapshots open.
    pub(crate) held: bool,
    /// What was whole in all its stores at some time.
    pub(crate) ever_whole: BTreeSet<Owner>,
}

impl Storage {
    /// Everything of one snapshot: its stores and what they have.
    pub(crate) fn parts(&self, owner: Owner) -> impl Iterator<Item = (&'static str, &Kept)> {
        self.stores.iter().filter_map(move |(store, kept)| Some((*store, kept.get(&owner)?)))
    }

    /// All snapshots, whole or not.
    pub(crate) fn owners(&self) -> BTreeSet<Owner> {
        self.stores.values().flat_map(|kept| kept.keys().copied()).collect()
    }

    /// Whether all of it is there.
    pub(crate) fn is_whole(&self, owner: Owner, disks: &[DiskSerial]) -> bool {
        let sealed: BTreeSet<_> = self
            .parts(owner)
            .filter(|(_, kept)| kept.far == Far::Sealed)
            .flat_map(|(_, kept)| kept.contents.keys())
            .collect();
        disks.iter().all(|disk| sealed.contains(disk))
    }

    /// What a snapshot holds.
    pub(crate) fn contents(&self, owner: Owner) -> Contents {
        self.parts(owner).flat_map(|(_, kept)| kept.contents.clone()).collect()
    }

    /// What was cut and not settled may be there or not, as `torn` says for each.
    pub(crate) fn lose_power(&mut self, mut torn: impl FnMut() -> bool) {
        for kept in self.stores.values_mut().flat_map(|kept| kept.values_mut()) {
            if kept.far == Far::Cut(false) {
                if torn() {
                    kept.far = Far::Prepared;
                    kept.contents.clear();
                } else {
                    kept.far = Far::Cut(true);
                }
            }
        }
    }
}
