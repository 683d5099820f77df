//! The catalog's file: its settings, its schema and how it came to be.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};
use rustix::fs::FallocateFlags;

use super::CatalogError;

/// Migrations are only ever appended: `PRAGMA user_version` counts those that were applied.
const STEPS: &[M<'_>] = &[
    M::up(
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
    ),
    // The lock has a column of its own, so that a record that settles meanwhile does not undo it.
    // `gone` remembers for an hour what was removed: a guest that deletes what it makes has made it
    // all the same, and a list goes on behind a snapshot that was removed between two pages.
    M::up(
        "ALTER TABLE snapshots ADD COLUMN locked_until INTEGER;
        UPDATE snapshots SET locked_until = json_extract(record, '$.locked_until');
        ALTER TABLE snapshots ADD COLUMN record_version INTEGER NOT NULL DEFAULT 1;
        CREATE TABLE gone (
            id          TEXT NOT NULL,
            vm_uuid     TEXT NOT NULL,
            created_at  INTEGER NOT NULL,
            gone_at     INTEGER NOT NULL    -- seconds since 1970
        ) STRICT;
        CREATE INDEX gone_by_id ON gone (id);
        CREATE INDEX gone_by_vm ON gone (vm_uuid, created_at);
        CREATE INDEX gone_by_time ON gone (gone_at);
        CREATE TRIGGER remember_gone AFTER DELETE ON snapshots BEGIN
            DELETE FROM gone
                WHERE gone_at NOT BETWEEN unixepoch() - 3600 AND unixepoch() + 60
                OR rowid <= (SELECT max(rowid) FROM gone) - 20000;
            INSERT INTO gone (id, vm_uuid, created_at, gone_at)
                VALUES (old.id, old.vm_uuid, old.created_at, unixepoch());
        END;",
    ),
    // Since when a failed snapshot is known to be that: `age`.
    M::up("ALTER TABLE snapshots ADD COLUMN failed_at INTEGER;"),
    // `position` orders what a machine has, since the clock may be set back: `Catalog::begin`. `kept_ms` is
    // what is known of the age of a snapshot whose date is none: `age`. What is gone is remembered also
    // when the clock is set back by the hour for which it is.
    M::up(
        "ALTER TABLE snapshots ADD COLUMN position INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE snapshots ADD COLUMN kept_ms INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE gone ADD COLUMN position INTEGER NOT NULL DEFAULT 0;
        UPDATE snapshots SET position = created_at;
        UPDATE gone SET position = created_at;
        CREATE INDEX snapshots_by_position ON snapshots (vm_uuid, position DESC);
        CREATE INDEX gone_by_position ON gone (vm_uuid, position DESC);
        DROP TRIGGER remember_gone;
        CREATE TRIGGER remember_gone AFTER DELETE ON snapshots BEGIN
            DELETE FROM gone
                WHERE gone_at NOT BETWEEN unixepoch() - 3600 AND unixepoch() + 3660
                OR rowid <= (SELECT max(rowid) FROM gone) - 20000;
            INSERT INTO gone (id, vm_uuid, created_at, position, gone_at)
                VALUES (old.id, old.vm_uuid, old.created_at, old.position, unixepoch());
        END;",
    ),
    M::up(
        "CREATE TABLE attachments (
            vm_uuid     TEXT NOT NULL,
            name        TEXT NOT NULL,      -- hs-…: its serial, and QEMU's name of node and device
            snapshot    TEXT NOT NULL,      -- 32 hexadecimal digits
            disk        TEXT NOT NULL,
            size_bytes  INTEGER NOT NULL,
            stage       TEXT NOT NULL CHECK (stage IN ('attaching', 'attached', 'detaching')),
            monitor     BLOB NOT NULL,      -- the path of QEMU's monitor, or libvirt's domain
            clone       BLOB,               -- the path of the clone that may be written to
            PRIMARY KEY (vm_uuid, name)
        ) STRICT;",
    ),
    M::up(
        "CREATE TABLE pauses (
            vm_uuid     TEXT PRIMARY KEY,
            monitor     BLOB NOT NULL       -- by whom it is let go on
        ) STRICT;",
    ),
    M::up(
        "CREATE TABLE restores (
            vm_uuid     TEXT NOT NULL,
            request     TEXT NOT NULL,
            snapshot    TEXT NOT NULL,
            disks       TEXT NOT NULL,      -- their serials, as JSON
            safety      TEXT,               -- the snapshot of what they held before
            others      TEXT NOT NULL CHECK (others IN ('machine', 'nobody')),
            stage       TEXT NOT NULL CHECK (stage IN ('begun', 'done')),
            changed_at  INTEGER NOT NULL,   -- seconds since 1970
            PRIMARY KEY (vm_uuid, request)
        ) STRICT;",
    ),
];

/// How many bytes are set aside for the log, so that on a full file system what was begun can be
/// finished, and snapshots can be deleted to make room: each writes a few pages of 4 KiB. New
/// snapshots are refused while less than that is free.
pub(super) const SET_ASIDE: u64 = 1 << 20;

const MIGRATIONS: Migrations<'_> = Migrations::from_slice(STEPS);

pub(super) fn open(path: &Path) -> Result<Connection, CatalogError> {
    // Also for a file that is there already. SQLite gives its -wal and -shm files the same mode.
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
        .map_err(|source| CatalogError::File { doing: "make the catalog", path: path.to_owned(), source })?;
    let open = || {
        let mut connection = Connection::open(path)?;
        settle_in(&mut connection, path)?;
        set_room_aside(path);
        Ok(connection)
    };
    open().map_err(|error| match error {
        error if error.is_damage() && !matches!(error, CatalogError::Damaged { .. }) => {
            CatalogError::Damaged { path: path.to_owned(), report: crate::service::chain(&error) }
        }
        CatalogError::Sql(source) => CatalogError::Open { path: path.to_owned(), source },
        other => other,
    })
}

fn settle_in(connection: &mut Connection, path: &Path) -> Result<(), CatalogError> {
    connection.busy_timeout(Duration::from_secs(5))?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = i64::try_from(STEPS.len()).expect("few migrations");
    if found > known {
        return Err(CatalogError::TooNew { path: path.to_owned(), found, known });
    }
    if let Some(report) = check(connection, "quick_check")?.into_iter().next() {
        return Err(CatalogError::Damaged { path: path.to_owned(), report });
    }
    // WAL with FULL: a commit is synced before it returns (sqlite.org/pragma.html#pragma_synchronous).
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    MIGRATIONS.to_latest(connection).map_err(|source| CatalogError::Migrate { path: path.to_owned(), source })
}

/// Gives the log blocks beyond its end (fallocate(2), FALLOC_FL_KEEP_SIZE): SQLite does not see them
/// until it writes there, and cuts them off only with the file. A file system that can't, or has no
/// room, keeps the service from nothing.
fn set_room_aside(path: &Path) {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let aside = OpenOptions::new()
        .write(true)
        .open(&log)
        .and_then(|log| Ok(rustix::fs::fallocate(&log, FallocateFlags::KEEP_SIZE, 0, SET_ASIDE)?));
    if let Err(error) = aside {
        tracing::debug!("set room aside for the catalog's log {}: {error}", log.display());
    }
}

/// What SQLite's `quick_check` or `integrity_check` finds wrong; nothing if all is well.
pub(super) fn check(connection: &Connection, pragma: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(&format!("PRAGMA {pragma}(20)"))?;
    let mut lines =
        statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    lines.retain(|line| line != "ok");
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::MIGRATIONS;

    #[test]
    fn every_migration_is_valid_sql() {
        MIGRATIONS.validate().unwrap();
    }
}
