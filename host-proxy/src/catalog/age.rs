//! How old entries are, where their date does not tell it.
//!
//! A snapshot that the storage lost is shown as failed, so that whoever relied on it learns of it; not for
//! ever, or the catalog would only grow. Whether something of it is left on the storage is for `service`.
//!
//! One with a date in the future was dated by a clock that was wrong, or the clock is wrong now: its age is the
//! time for which it was seen so.

use protocol::SnapshotId;
use protocol::record::UnixMillis;
use rusqlite::params;

use super::row::{key, moment, read, readable};
use super::{Catalog, CatalogError, Entry};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// For how long a failed snapshot is shown, in milliseconds.
const SHOWN_FOR: u64 = 30 * DAY;

/// How far in the future a date must be to be none, in milliseconds.
const AHEAD: u64 = HOUR;

impl Catalog {
    /// Every entry that has an end, with the time for which it was kept without a date that tells it, in
    /// milliseconds. `elapsed_ms` is how long ago that was asked last.
    pub fn ending(&self, elapsed_ms: u64, now: UnixMillis) -> Result<Vec<(Entry, u64)>, CatalogError> {
        let connection = self.connection();
        let ahead = moment(UnixMillis(now.0.saturating_add(AHEAD)));
        connection.execute(
            "UPDATE snapshots SET kept_ms = kept_ms + ?1
             WHERE created_at > ?2 AND json_extract(record, '$.expires_at') IS NOT NULL",
            params![moment(UnixMillis(elapsed_ms)), ahead],
        )?;
        let mut statement = connection.prepare_cached(
            "SELECT *, iif(created_at > ?1, kept_ms, 0) AS kept FROM snapshots
             WHERE json_extract(record, '$.expires_at') IS NOT NULL",
        )?;
        let entries = statement.query_map([ahead], |row| {
            let kept = u64::try_from(row.get::<_, i64>("kept")?).unwrap_or(0);
            Ok(readable(read(row)?).map(|entry| (entry, kept)))
        })?;
        Ok(entries.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The failed entries that were shown for long enough and are not locked. What is seen as failed for the
    /// first time, or was first seen by a clock that was ahead, is shown from `now` on.
    pub fn long_failed(&self, now: UnixMillis) -> Result<Vec<Entry>, CatalogError> {
        let connection = self.connection();
        let at = moment(now);
        let ahead = moment(UnixMillis(now.0.saturating_add(DAY)));
        connection.execute(
            "UPDATE snapshots SET failed_at = ?1
             WHERE phase = 'failed' AND (failed_at IS NULL OR failed_at > ?2)",
            params![at, ahead],
        )?;
        let mut statement = connection.prepare_cached(
            "SELECT * FROM snapshots
             WHERE phase = 'failed' AND failed_at <= ?2 AND (locked_until IS NULL OR locked_until <= ?1)",
        )?;
        let since = moment(UnixMillis(now.0.saturating_sub(SHOWN_FOR)));
        let entries = statement.query_map(params![at, since], read)?.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(entries.into_iter().filter_map(readable).collect())
    }

    /// A failed entry can't be forgotten now: it is looked at again in a day.
    pub fn show_longer(&self, id: SnapshotId, now: UnixMillis) -> Result<(), CatalogError> {
        let shown_since = moment(UnixMillis(now.0.saturating_sub(SHOWN_FOR - DAY)));
        self.connection().execute(
            "UPDATE snapshots SET failed_at = ?2 WHERE id = ?1 AND phase = 'failed'",
            params![key(id), shown_since],
        )?;
        Ok(())
    }
}
