//! What travels with a snapshot on the storage: enough to rebuild the catalog from nothing.

use protocol::SnapshotRecord;
use serde::{Deserialize, Serialize};

use super::restore::Noted;
use crate::drivers::{Found, Owner};

/// What is written beside a snapshot, in each store that holds a part of it.
#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The manifest's own version; 1 so far.
    hostsnap_manifest: u32,
    pub(super) record: SnapshotRecord,
    /// How many stores hold a part of it; 0 where that was not written down yet.
    #[serde(default)]
    pub(super) stores: usize,
    /// Which disks in this store are being given back its bytes, and which were last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) restores: Vec<Noted>,
}

/// Why a manifest was not believed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    #[error("read the snapshot's manifest")]
    Parse(#[from] serde_json::Error),
    #[error("the snapshot's manifest has version {0}, which this hostsnapd does not know: update it")]
    Version(u32),
    #[error("the snapshot's manifest is another snapshot's: {0}")]
    Foreign(protocol::SnapshotId),
}

impl Manifest {
    /// That of a record whose parts are in so many stores.
    pub(super) fn new(record: SnapshotRecord, stores: usize) -> Self {
        Self { hostsnap_manifest: 1, record, stores, restores: Vec::new() }
    }

    /// What stands at `owner`'s place.
    pub(super) fn read(bytes: &[u8], owner: Owner) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes)?;
        let record = &manifest.record;
        match manifest.hostsnap_manifest {
            1 if record.id == owner.snapshot && record.vm_uuid == owner.vm => Ok(manifest),
            1 => Err(ManifestError::Foreign(record.id)),
            version => Err(ManifestError::Version(version)),
        }
    }

    /// As it is written.
    pub(super) fn text(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a record has no value that JSON lacks")
    }
}

/// That of one part of a snapshot, if it can be read.
pub(super) fn read_part(found: &Found) -> Option<Manifest> {
    Manifest::read(found.manifest.as_ref()?, found.owner).ok()
}
