//! What the host knows of its snapshots: a small database that survives power loss. Losing it loses
//! nothing, since every snapshot carries its manifest; see `service::reconcile`.
//!
//! | module | idea |
//! |---|---|
//! | this one | the life of an entry: intent → settling → ready, and → deleting → gone |
//! | `attachments` | what is attached to which machine |
//! | `restores` | which disks are being given back the bytes of which snapshot |
//! | `query` | find, list, usage |
//! | `age` | failed entries that were shown for long enough |
//! | `row` | between an entry and its row |
//! | `schema` | the file, its settings, its migrations |
//! | `error` | why it could not be used |
//!
//! There is one writer, the service, which keeps two workers off one snapshot; the catalog keeps its
//! own entries whole whatever they do.

mod age;
mod attachments;
mod error;
mod pauses;
mod query;
mod restores;
mod row;
mod schema;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use protocol::record::UnixMillis;
use protocol::{SnapshotId, SnapshotRecord};
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, OptionalExtension, params};

pub use attachments::{Attached, Stage};
pub use error::{CatalogError, FindError};
pub use pauses::Pause;
pub use restores::Restoring;
use row::{RECORD_VERSION, bytes_of, json, key, moment, read};

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

impl FromSql for Phase {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let word = value.as_str()?;
        Self::ALL.into_iter().find(|phase| phase.as_str() == word).ok_or(FromSqlError::InvalidType)
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
    /// Begun in the last hour, those that are gone again included.
    pub created_last_hour: u64,
}

/// A place before all that a machine (`?2`) has or had in the last hour, and not before its date (`?4`).
const NEWEST: &str = "max(?4,
    coalesce((SELECT max(position) + 1 FROM snapshots WHERE vm_uuid = ?2), 0),
    coalesce((SELECT max(position) + 1 FROM gone WHERE vm_uuid = ?2), 0))";

/// The catalog. Calls block; when one returns, what it wrote is durable. One that fails has changed
/// nothing.
pub struct Catalog(Mutex<Connection>);

impl Catalog {
    /// Opens the file, makes it if there is none, and brings its schema up to date. A damaged file,
    /// or one of a newer hostsnapd, is refused and left as it is.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        schema::open(path).map(|connection| Self(Mutex::new(connection)))
    }

    /// Moves a catalog that nobody has open out of the way, with the files that belong to it, and
    /// says where it is now. The next start makes a new one from the storage. `None` if there is no
    /// catalog.
    pub fn set_aside(path: &Path, now: UnixMillis) -> Result<Option<PathBuf>, CatalogError> {
        let suffixed = |path: &Path, suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let aside = suffixed(path, &format!(".set-aside-{}", now.0));
        let moved = |suffix: &str| {
            let from = suffixed(path, suffix);
            match fs::rename(&from, suffixed(&aside, suffix)) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(source) => Err(CatalogError::File { doing: "move away the catalog", path: from, source }),
            }
        };
        // The log first: a database must never be opened without the log that belongs to it.
        moved("-wal")?;
        moved("-shm")?;
        Ok(moved("")?.then_some(aside))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Whether there is room for another snapshot in the catalog, and for the rest of what was begun.
    /// Asked before anything is done for it.
    pub fn has_room(&self) -> Result<(), CatalogError> {
        let connection = self.connection();
        let Some(path) = connection.path().map(Path::new) else { return Ok(()) };
        let stat = rustix::fs::statvfs(path).map_err(|error| CatalogError::File {
            doing: "look at the room of",
            path: path.to_owned(),
            source: error.into(),
        })?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        match free_bytes < schema::SET_ASIDE {
            true => Err(CatalogError::NoRoom { path: path.to_owned(), free_bytes }),
            false => Ok(()),
        }
    }

    /// Commits that a snapshot is going to be made. It is newer than all that its machine has, whatever
    /// the clock shows.
    pub fn begin(&self, record: &SnapshotRecord, digest: &[u8; 16]) -> Result<Begun, CatalogError> {
        self.insert(record, digest, NEWEST)
    }

    /// As [`Catalog::begin`], of one that was made before: its date says where it belongs.
    pub fn enter(&self, record: &SnapshotRecord, digest: &[u8; 16]) -> Result<Begun, CatalogError> {
        self.insert(record, digest, "?4")
    }

    fn insert(
        &self,
        record: &SnapshotRecord,
        digest: &[u8; 16],
        position: &str,
    ) -> Result<Begun, CatalogError> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        let existing = transaction
            .query_row("SELECT * FROM snapshots WHERE id = ?1", [key(record.id)], read)
            .optional()?;
        if let Some(entry) = existing {
            return Ok(Begun::Existing(Box::new(entry?)));
        }
        let insert = format!(
            "INSERT INTO snapshots
                (id, vm_uuid, phase, created_at, bytes, digest, record, locked_until, record_version, position)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, {position})"
        );
        transaction.execute(
            &insert,
            params![
                key(record.id),
                record.vm_uuid.to_string(),
                Phase::Intent.as_str(),
                moment(record.created_at),
                bytes_of(record),
                digest,
                json(record),
                record.locked_until.map(moment),
                RECORD_VERSION,
            ],
        )?;
        transaction.commit()?;
        Ok(Begun::New)
    }

    /// Replaces what is known of a snapshot and says how far it is. Its lock stays as
    /// [`Catalog::set_lock`] left it, and its place in the list once it is in it. What is being deleted
    /// can't be revived so.
    pub fn record(&self, record: &SnapshotRecord, phase: Phase) -> Result<(), CatalogError> {
        let changed = self.connection().execute(
            "UPDATE snapshots
             SET phase = ?2, created_at = ?3, bytes = ?4, record = ?5, record_version = ?6, failed_at = NULL,
                 position = iif(phase = 'intent', max(position, ?3), position)
             WHERE id = ?1 AND phase <> 'deleting'",
            params![
                key(record.id),
                phase.as_str(),
                moment(record.created_at),
                bytes_of(record),
                json(record),
                RECORD_VERSION,
            ],
        )?;
        if changed == 0 { Err(CatalogError::NotThere(record.id)) } else { Ok(()) }
    }

    /// Nothing came of an intent. `false` if there is none.
    pub fn drop_intent(&self, id: SnapshotId) -> Result<bool, CatalogError> {
        let dropped = self
            .connection()
            .execute("DELETE FROM snapshots WHERE id = ?1 AND phase = 'intent'", [key(id)])?;
        Ok(dropped > 0)
    }

    /// Commits that a snapshot is going to be removed, and says how far it was. `None` if there is
    /// none.
    pub fn begin_delete(&self, id: SnapshotId) -> Result<Option<Phase>, CatalogError> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        let was = transaction
            .query_row("SELECT phase FROM snapshots WHERE id = ?1", [key(id)], |row| row.get(0))
            .optional()?;
        transaction.execute("UPDATE snapshots SET phase = 'deleting' WHERE id = ?1", [key(id)])?;
        transaction.commit()?;
        Ok(was)
    }

    /// Takes [`Catalog::begin_delete`] back: the storage refused and has the snapshot as it was.
    /// `phase` is what it had been. `false` if it was not being removed.
    pub fn cancel_delete(&self, id: SnapshotId, phase: Phase) -> Result<bool, CatalogError> {
        let kept = self.connection().execute(
            "UPDATE snapshots SET phase = ?2 WHERE id = ?1 AND phase = 'deleting'",
            params![key(id), phase.as_str()],
        )?;
        Ok(kept > 0)
    }

    /// Forgets a snapshot that is gone from the storage. `false` if there is none.
    pub fn remove(&self, id: SnapshotId) -> Result<bool, CatalogError> {
        Ok(self.connection().execute("DELETE FROM snapshots WHERE id = ?1", [key(id)])? > 0)
    }

    /// Locks a snapshot until a moment, or unlocks it. `false` if there is none, or it is being
    /// removed.
    pub fn set_lock(&self, id: SnapshotId, until: Option<UnixMillis>) -> Result<bool, CatalogError> {
        let changed = self.connection().execute(
            "UPDATE snapshots SET locked_until = ?2 WHERE id = ?1 AND phase <> 'deleting'",
            params![key(id), until.map(moment)],
        )?;
        Ok(changed > 0)
    }
}

#[cfg(test)]
mod tests;
