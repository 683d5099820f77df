//! What the host knows of its snapshots: a small database that survives power loss. Losing it loses
//! nothing, since every snapshot carries its manifest; see `service::reconcile`.
//!
//! The whole record is kept as JSON; what is searched for stands beside it in columns.

mod schema;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use protocol::message::List;
use protocol::record::{State, UnixMillis};
use protocol::text::SnapshotRef;
use protocol::{SnapshotId, SnapshotRecord, VmUuid};
use rusqlite::{Connection, OptionalExtension, Row, params};

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It may exist on the storage; nobody was told of it.
    Intent,
    /// It was cut and concluded; the storage is making it durable.
    Settling,
    /// Durable and whole.
    Ready,
    /// The storage lost it.
    Failed,
    /// It may still exist on the storage; it is being removed.
    Deleting,
}

impl Phase {
    const ALL: [Self; 5] = [Self::Intent, Self::Settling, Self::Ready, Self::Failed, Self::Deleting];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Settling => "settling",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

/// One snapshot as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// All that is known of it.
    pub record: SnapshotRecord,
    /// How far it is.
    pub phase: Phase,
    /// What was asked for, in short: a repeat must ask for the same.
    pub digest: [u8; 16],
}

/// What `begin` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// Nothing: the intent is committed.
    New,
    /// The same virtual machine's same request.
    Existing(Box<Entry>),
}

/// How much a virtual machine has, unfinished ones included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Snapshots.
    pub snapshots: u64,
    /// Bytes of disks in them, each counted whole.
    pub bytes: u64,
    /// Of these, begun in the last hour.
    pub created_last_hour: u64,
}

/// The catalog could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// It can't be opened.
    #[error("open the catalog {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// It is damaged.
    #[error(
        "the catalog {} is damaged ({report}); move it away and start hostsnapd again: \
         it is rebuilt from the storage",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite's quick_check says.
        report: String,
    },
    /// A newer hostsnapd wrote it.
    #[error("the catalog has schema {found}, and this hostsnapd knows up to {known}: update it")]
    TooNew {
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A statement failed.
    #[error("use the catalog")]
    Sql(#[from] rusqlite::Error),
    /// A record in it can't be read.
    #[error("read a record of the catalog")]
    Record(#[from] serde_json::Error),
}

/// Why a reference names no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is none.
    #[error("there is no such snapshot")]
    NotFound,
    /// There are several.
    #[error("several snapshots begin so")]
    Ambiguous {
        /// Some of them.
        candidates: Vec<SnapshotId>,
    },
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl From<rusqlite::Error> for FindError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Catalog(error.into())
    }
}

/// The catalog. Calls block; when one returns, what it wrote is durable.
pub struct Catalog(Mutex<Connection>);

/// Which phases a user sees.
const VISIBLE: &str = "phase IN ('settling', 'ready', 'failed')";

impl Catalog {
    /// Opens the file, makes it if there is none, and brings its schema up to date.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        schema::open(path).map(|connection| Self(Mutex::new(connection)))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Commits that a snapshot is going to be made.
    pub fn begin(&self, record: &SnapshotRecord, digest: &[u8; 16]) -> Result<Begun, CatalogError> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        let existing = transaction
            .query_row("SELECT * FROM snapshots WHERE id = ?1", [key(record.id)], read)
            .optional()?;
        if let Some(entry) = existing {
            return Ok(Begun::Existing(Box::new(entry?)));
        }
        transaction.execute(
            "INSERT INTO snapshots (id, vm_uuid, phase, created_at, bytes, digest, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                key(record.id),
                record.vm_uuid.to_string(),
                Phase::Intent.as_str(),
                moment(record.created_at),
                bytes_of(record),
                digest,
                serde_json::to_string(record)?,
            ],
        )?;
        transaction.commit()?;
        Ok(Begun::New)
    }

    /// Replaces what is known of a snapshot and says how far it is.
    pub fn record(&self, record: &SnapshotRecord, phase: Phase) -> Result<(), CatalogError> {
        let changed = self.connection().execute(
            "UPDATE snapshots SET phase = ?2, created_at = ?3, bytes = ?4, record = ?5 WHERE id = ?1",
            params![
                key(record.id),
                phase.as_str(),
                moment(record.created_at),
                bytes_of(record),
                serde_json::to_string(record)?,
            ],
        )?;
        match changed {
            1 => Ok(()),
            _ => Err(rusqlite::Error::QueryReturnedNoRows.into()),
        }
    }

    /// Nothing came of an intent. `false` if there is none.
    pub fn drop_intent(&self, id: SnapshotId) -> Result<bool, CatalogError> {
        let dropped = self
            .connection()
            .execute("DELETE FROM snapshots WHERE id = ?1 AND phase = 'intent'", [key(id)])?;
        Ok(dropped > 0)
    }

    /// Commits that a snapshot is going to be removed. `false` if there is none.
    pub fn begin_delete(&self, id: SnapshotId) -> Result<bool, CatalogError> {
        let marked =
            self.connection().execute("UPDATE snapshots SET phase = 'deleting' WHERE id = ?1", [key(id)])?;
        Ok(marked > 0)
    }

    /// Forgets a snapshot that is gone from the storage. `false` if there is none.
    pub fn remove(&self, id: SnapshotId) -> Result<bool, CatalogError> {
        Ok(self.connection().execute("DELETE FROM snapshots WHERE id = ?1", [key(id)])? > 0)
    }

    /// One snapshot, in whatever phase.
    pub fn get(&self, id: SnapshotId) -> Result<Option<Entry>, CatalogError> {
        self.connection()
            .query_row("SELECT * FROM snapshots WHERE id = ?1", [key(id)], read)
            .optional()?
            .transpose()
    }

    /// The snapshot that a user names; `vm` of `None` is every machine.
    pub fn find(&self, vm: Option<VmUuid>, reference: &SnapshotRef) -> Result<Entry, FindError> {
        let connection = self.connection();
        let vm = vm.map(|vm| vm.to_string());
        let (condition, prefix, limit) = match reference.as_str() {
            "latest" => ("?2 = ''", String::new(), 1),
            text => ("substr(id, 1, length(?2)) = ?2", text.replace('-', "").to_ascii_lowercase(), 6),
        };
        let mut statement = connection.prepare(&format!(
            "SELECT * FROM snapshots WHERE (?1 IS NULL OR vm_uuid = ?1) AND {VISIBLE} AND {condition}
             ORDER BY created_at DESC, id LIMIT {limit}"
        ))?;
        let mut entries = statement
            .query_map(params![vm, prefix], read)?
            .map(|row| row?.map_err(FindError::from))
            .collect::<Result<Vec<_>, _>>()?;
        match entries.len() {
            0 => Err(FindError::NotFound),
            1 => Ok(entries.remove(0)),
            _ => Err(FindError::Ambiguous {
                candidates: entries.iter().take(5).map(|entry| entry.record.id).collect(),
            }),
        }
    }

    /// Snapshots, newest first; at most `filter.limit`, those behind `filter.after`.
    pub fn list(&self, vm: Option<VmUuid>, filter: &List) -> Result<Vec<Entry>, CatalogError> {
        let connection = self.connection();
        let after = filter.after.map(key);
        let mut statement = connection.prepare(&format!(
            "SELECT * FROM snapshots WHERE (?1 IS NULL OR vm_uuid = ?1) AND {VISIBLE}
             AND (?2 IS NULL OR (created_at, id) <
                 (SELECT created_at, id FROM snapshots WHERE id = ?2))
             ORDER BY created_at DESC, id DESC"
        ))?;
        let mut rows = statement.query(params![vm.map(|vm| vm.to_string()), after])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            if found.len() >= usize::from(filter.limit) {
                break;
            }
            let entry = read(row)??;
            if matches(&entry.record, filter) {
                found.push(entry);
            }
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
            connection.prepare(&format!("SELECT * FROM snapshots {condition} ORDER BY created_at"))?;
        statement.query_map([], read)?.map(|row| row?).collect()
    }

    /// How much a virtual machine has.
    pub fn usage(&self, vm: VmUuid, now: UnixMillis) -> Result<Usage, CatalogError> {
        let hour_ago = moment(UnixMillis(now.0.saturating_sub(3_600_000)));
        let usage = self.connection().query_row(
            "SELECT count(*), coalesce(sum(bytes), 0), coalesce(sum(created_at > ?2), 0)
             FROM snapshots WHERE vm_uuid = ?1 AND phase <> 'failed'",
            params![vm.to_string(), hour_ago],
            |row| {
                let count = |index| row.get::<_, i64>(index).map(|n| u64::try_from(n).unwrap_or(0));
                Ok(Usage { snapshots: count(0)?, bytes: count(1)?, created_last_hour: count(2)? })
            },
        )?;
        Ok(usage)
    }
}

fn matches(record: &SnapshotRecord, filter: &List) -> bool {
    let holds = |wanted: &protocol::DiskSerial| record.disks.iter().any(|disk| disk.serial.same_disk(wanted));
    record.labels.contains(&filter.labels)
        && filter.disk.as_ref().is_none_or(holds)
        && filter.state.is_none_or(|state| record.state == state)
}

/// Identifiers are kept without dashes, so that a prefix can leave them out.
fn key(id: SnapshotId) -> String {
    id.as_uuid().simple().to_string()
}

/// SQLite's integers are signed.
fn moment(at: UnixMillis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

fn bytes_of(record: &SnapshotRecord) -> i64 {
    let sum = record.disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.size_bytes));
    // Half of the range, so that a sum of two does not overflow SQLite's.
    i64::try_from(sum).unwrap_or(i64::MAX).min(i64::MAX / 1024)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Result<Entry, CatalogError>> {
    let phase: String = row.get("phase")?;
    let digest: [u8; 16] = row.get("digest")?;
    let record: String = row.get("record")?;
    let phase = Phase::ALL.into_iter().find(|known| known.as_str() == phase).unwrap_or(Phase::Failed);
    Ok(serde_json::from_str(&record).map_err(CatalogError::from).map(|mut record: SnapshotRecord| {
        if phase == Phase::Failed {
            record.state = State::Failed;
        }
        Entry { record, phase, digest }
    }))
}

#[cfg(test)]
mod tests;
