//! A snapshot that the storage lost is shown as failed, so that whoever relied on it learns of it; not for
//! ever, or the catalog would only grow. Whether something of it is left on the storage is for `service`.

use protocol::SnapshotId;
use protocol::record::UnixMillis;
use rusqlite::params;

use super::row::{key, moment, read, readable};
use super::{Catalog, CatalogError, Entry};

const DAY: u64 = 24 * 3_600_000;
/// For how long a failed snapshot is shown, in milliseconds.
const SHOWN_FOR: u64 = 30 * DAY;

impl Catalog {
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
