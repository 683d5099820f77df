//! Looking things up: by reference, page by page, how much there is.

use protocol::message::List;
use protocol::record::UnixMillis;
use protocol::text::SnapshotRef;
use protocol::{DiskSerial, SnapshotId, SnapshotRecord, VmUuid};
use rusqlite::{OptionalExtension, params};

use super::row::{key, moment, read, readable};
use super::{Catalog, CatalogError, Entry, FindError, Usage, schema};

/// Which phases a user sees.
const VISIBLE: &str = "phase IN ('settling', 'ready', 'failed')";
/// How many candidates an ambiguous reference is answered with.
const CANDIDATES: usize = 5;
/// An hour, in milliseconds.
const HOUR: u64 = 3_600_000;
/// How far in the future a moment may be and still count as past, in milliseconds: the clock may
/// have been set back, and what was done in the hour before was done all the same. What is further off
/// was written by a clock that was wrong, and must not hold up a machine for good.
const CLOCK_SLACK: u64 = HOUR;

impl Catalog {
    /// One snapshot, in whatever phase.
    pub fn get(&self, id: SnapshotId) -> Result<Option<Entry>, CatalogError> {
        self.connection()
            .query_row("SELECT * FROM snapshots WHERE id = ?1", [key(id)], read)
            .optional()?
            .transpose()
    }

    /// The snapshot that a user names; `vm` of `None` is every machine.
    pub fn find(&self, vm: Option<VmUuid>, reference: &SnapshotRef) -> Result<Entry, FindError> {
        let (prefix, limit) = match reference.as_str() {
            "latest" => (String::new(), 1),
            text => (text.replace('-', "").to_ascii_lowercase(), CANDIDATES + 1),
        };
        let connection = self.connection();
        // `g` follows the last hexadecimal digit: the range is the prefix, and the index finds it.
        let mut statement = connection.prepare_cached(&format!(
            "SELECT * FROM snapshots
             WHERE (?1 IS NULL OR vm_uuid = ?1) AND {VISIBLE} AND id >= ?2 AND id < ?2 || 'g'
             ORDER BY position DESC, id DESC LIMIT {limit}"
        ))?;
        let mut entries = statement
            .query_map(params![vm.map(|vm| vm.to_string()), prefix], read)?
            .map(|row| row?.map_err(FindError::from))
            .collect::<Result<Vec<_>, _>>()?;
        match entries.len() {
            0 => Err(FindError::NotFound),
            1 => Ok(entries.remove(0)),
            _ => Err(FindError::Ambiguous {
                candidates: entries.iter().take(CANDIDATES).map(|entry| entry.record.id).collect(),
            }),
        }
    }

    /// Snapshots, newest first; at most `filter.limit`, those behind `filter.after`. What is removed
    /// or added between two pages moves nothing else.
    pub fn list(&self, vm: Option<VmUuid>, filter: &List) -> Result<Vec<Entry>, CatalogError> {
        let connection = self.connection();
        let vm = vm.map(|vm| vm.to_string());
        let behind: (i64, String) = match filter.after {
            None => (i64::MAX, "g".to_owned()),
            // Only among one's own: where a neighbour's snapshot stands is not to be told.
            Some(after) => connection
                .query_row(
                    "SELECT position FROM snapshots WHERE id = ?2 AND (?1 IS NULL OR vm_uuid = ?1)
                     UNION ALL
                     SELECT position FROM gone WHERE id = ?2 AND (?1 IS NULL OR vm_uuid = ?1) LIMIT 1",
                    params![vm, key(after)],
                    |row| row.get(0),
                )
                .optional()?
                .map(|at| (at, key(after)))
                .ok_or(CatalogError::UnknownCursor(after))?,
        };
        let mut statement = connection.prepare_cached(&format!(
            "SELECT * FROM snapshots
             WHERE (?1 IS NULL OR vm_uuid = ?1) AND {VISIBLE} AND (position, id) < (?2, ?3)
             ORDER BY position DESC, id DESC"
        ))?;
        let mut rows = statement.query(params![vm, behind.0, behind.1])?;
        let mut found = Vec::new();
        while found.len() < usize::from(filter.limit) {
            let Some(row) = rows.next()? else { break };
            found.extend(readable(read(row)?).filter(|entry| matches(&entry.record, filter)));
        }
        Ok(found)
    }

    /// What a stop of the service may have left: intents, settling, being deleted.
    pub fn unfinished(&self) -> Result<Vec<Entry>, CatalogError> {
        self.select("WHERE phase IN ('intent', 'settling', 'deleting')")
    }

    /// Every entry.
    pub fn all(&self) -> Result<Vec<Entry>, CatalogError> {
        self.select("")
    }

    fn select(&self, condition: &str) -> Result<Vec<Entry>, CatalogError> {
        let connection = self.connection();
        let mut statement =
            connection.prepare_cached(&format!("SELECT * FROM snapshots {condition} ORDER BY created_at"))?;
        let entries = statement.query_map([], read)?.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(entries.into_iter().filter_map(readable).collect())
    }

    /// How much a virtual machine has; clones of attached snapshots count as well. What it made in the last hour and removed again counts as
    /// made, whether it was cut or not: it was work.
    pub fn usage(&self, vm: VmUuid, now: UnixMillis) -> Result<Usage, CatalogError> {
        let since = moment(UnixMillis(now.0.saturating_sub(HOUR)));
        let until = moment(UnixMillis(now.0.saturating_add(CLOCK_SLACK)));
        let usage = self.connection().query_row(
            "SELECT count(*), coalesce(sum(bytes), 0)
                + (SELECT coalesce(sum(size_bytes), 0) FROM attachments
                    WHERE vm_uuid = ?1 AND clone IS NOT NULL),
                (SELECT count(*) FROM snapshots
                    WHERE vm_uuid = ?1 AND created_at > ?2 AND created_at <= ?3)
                + (SELECT count(*) FROM gone
                    WHERE vm_uuid = ?1 AND created_at > ?2 AND created_at <= ?3)
             FROM snapshots WHERE vm_uuid = ?1 AND phase <> 'failed'",
            params![vm.to_string(), since, until],
            |row| {
                let count = |index| row.get::<_, i64>(index).map(|n| u64::try_from(n).unwrap_or(0));
                Ok(Usage { snapshots: count(0)?, bytes: count(1)?, created_last_hour: count(2)? })
            },
        )?;
        Ok(usage)
    }

    /// Looks at every page, index and record; says what is wrong, and nothing if all is well.
    pub fn integrity(&self) -> Result<Vec<String>, CatalogError> {
        let connection = self.connection();
        let mut problems = schema::check(&connection, "integrity_check")?;
        let mut statement = connection.prepare("SELECT * FROM snapshots")?;
        for entry in statement.query_map([], read)? {
            problems.extend(entry?.err().map(|error| crate::service::chain(&error)));
        }
        Ok(problems)
    }
}

fn matches(record: &SnapshotRecord, filter: &List) -> bool {
    let holds = |wanted: &DiskSerial| record.disks.iter().any(|disk| disk.serial.same_disk(wanted));
    record.labels.contains(&filter.labels)
        && filter.disk.as_ref().is_none_or(holds)
        && filter.state.is_none_or(|state| record.state == state)
}
