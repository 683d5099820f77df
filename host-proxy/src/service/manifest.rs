//! What travels with a snapshot on the storage: enough to rebuild the catalog from nothing.

use protocol::SnapshotRecord;
use serde::{Deserialize, Serialize};

use crate::drivers::Owner;

#[derive(Serialize, Deserialize)]
struct Manifest {
    /// The manifest's own version; 1 so far.
    hostsnap_manifest: u32,
    record: SnapshotRecord,
    /// How many stores hold a part of it; 0 where that was not written down yet.
    #[serde(default)]
    stores: usize,
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

/// The manifest of a record whose parts are in so many stores.
pub(super) fn write(record: &SnapshotRecord, stores: usize) -> Vec<u8> {
    let manifest = Manifest { hostsnap_manifest: 1, record: record.clone(), stores };
    serde_json::to_vec_pretty(&manifest).expect("a record has no value that JSON lacks")
}

/// The record of a manifest that stands at `owner`'s place, and in how many stores its parts are.
pub(super) fn read(bytes: &[u8], owner: Owner) -> Result<(SnapshotRecord, usize), ManifestError> {
    let manifest: Manifest = serde_json::from_slice(bytes)?;
    match manifest {
        Manifest { hostsnap_manifest: 1, record, stores }
            if record.id == owner.snapshot && record.vm_uuid == owner.vm =>
        {
            Ok((record, stores))
        }
        Manifest { hostsnap_manifest: 1, record, .. } => Err(ManifestError::Foreign(record.id)),
        Manifest { hostsnap_manifest: version, .. } => Err(ManifestError::Version(version)),
    }
}
