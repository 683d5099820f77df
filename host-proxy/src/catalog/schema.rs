//! The catalog's file: its settings, its schema and how it came to be.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};

use super::CatalogError;

/// Migrations are only ever appended: `PRAGMA user_version` counts those that were applied.
const STEPS: &[M<'_>] = &[M::up(
    "CREATE TABLE snapshots (
        id          TEXT PRIMARY KEY,   -- 32 hexadecimal digits
        vm_uuid     TEXT NOT NULL,
        phase       TEXT NOT NULL CHECK (phase IN ('intent', 'settling', 'ready', 'failed', 'deleting')),
        created_at  INTEGER NOT NULL,   -- milliseconds since 1970
        bytes       INTEGER NOT NULL,   -- of all its disks
        digest      BLOB NOT NULL,      -- of what was asked for
        record      TEXT NOT NULL       -- SnapshotRecord as JSON
    ) STRICT;
    CREATE INDEX snapshots_by_vm ON snapshots (vm_uuid, created_at DESC);",
)];

const MIGRATIONS: Migrations<'_> = Migrations::from_slice(STEPS);

pub(super) fn open(path: &Path) -> Result<Connection, CatalogError> {
    // SQLite gives its -wal and -shm files the mode of the file itself.
    let made = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let failed = |source| CatalogError::Open { path: path.to_owned(), source };
    made.map_err(|error| failed(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))?;
    let mut connection = Connection::open(path).map_err(failed)?;
    settle_in(&mut connection).map_err(|error| match error {
        CatalogError::Sql(source) if is_damage(&source) => {
            CatalogError::Damaged { path: path.to_owned(), report: source.to_string() }
        }
        CatalogError::Damaged { report, .. } => CatalogError::Damaged { path: path.to_owned(), report },
        other => other,
    })?;
    Ok(connection)
}

fn settle_in(connection: &mut Connection) -> Result<(), CatalogError> {
    connection.busy_timeout(Duration::from_secs(5))?;
    // WAL with FULL: a commit is synced before it returns (sqlite.org/pragma.html#pragma_synchronous).
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    let report: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if report != "ok" {
        return Err(CatalogError::Damaged { path: Default::default(), report });
    }
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = i64::try_from(STEPS.len()).expect("few migrations");
    if found > known {
        return Err(CatalogError::TooNew { found, known });
    }
    MIGRATIONS
        .to_latest(connection)
        .map_err(|error| CatalogError::Sql(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}
