//! Between an [`Entry`] and its row. The whole record is one JSON text; what is searched for stands
//! beside it in columns.

use protocol::record::{State, UnixMillis};
use protocol::{SnapshotId, SnapshotRecord};
use rusqlite::Row;

use super::{CatalogError, Entry, Phase};

/// The shape of the JSON that is written now.
pub(super) const RECORD_VERSION: i64 = 1;

/// Identifiers are kept without dashes, so that a prefix can leave them out.
pub(super) fn key(id: SnapshotId) -> String {
    id.as_uuid().simple().to_string()
}

/// SQLite's integers are signed.
pub(super) fn moment(at: UnixMillis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

pub(super) fn bytes_of(record: &SnapshotRecord) -> i64 {
    let sum = record.disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.size_bytes));
    // No sum of fewer than a million such overflows SQLite's integers, whatever a guest claims.
    i64::try_from(sum).unwrap_or(i64::MAX).min(i64::MAX >> 20)
}

pub(super) fn json(record: &SnapshotRecord) -> String {
    serde_json::to_string(record).expect("a record has no value that JSON lacks")
}

/// What a row says; the inner error is a record that can't be read, which is that row's trouble and
/// no other's.
pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Result<Entry, CatalogError>> {
    let phase: Phase = row.get("phase")?;
    let digest: [u8; 16] = row.get("digest")?;
    let record: String = row.get("record")?;
    let locked_until: Option<i64> = row.get("locked_until")?;
    let id: String = row.get("id")?;
    let parsed: Result<SnapshotRecord, _> = serde_json::from_str(&record);
    Ok(parsed.map_err(|source| CatalogError::Record { id, source }).map(|mut record| {
        if phase == Phase::Failed {
            record.state = State::Failed;
        }
        record.locked_until = locked_until.map(|at| UnixMillis(u64::try_from(at).unwrap_or(0)));
        Entry { record, phase, digest }
    }))
}

/// Leaves out the rows that can't be read, and says so: one bad row must not hide the others.
pub(super) fn readable(result: Result<Entry, CatalogError>) -> Option<Entry> {
    result
        .inspect_err(|error| {
            tracing::error!(
                "catalog: {}; hostsnapd reconcile compares it with the storage",
                crate::service::chain(error)
            );
        })
        .ok()
}
