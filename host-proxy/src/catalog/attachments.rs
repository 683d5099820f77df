//! What is attached to which machine: attaching → attached → detaching → forgotten. The intent is
//! committed before anything is made for it, with all that undoing it needs, so that it can be undone
//! when the configuration has changed meanwhile.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use protocol::attach::{Access, Attachment};
use protocol::{SnapshotId, VmUuid};
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Row, params};

use super::row::key;
use super::{Catalog, CatalogError};
use crate::vmm::monitor::Monitor;

/// How far an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Parts of it may be there; its guest was not told of it.
    Attaching,
    /// Its guest may use it.
    Attached,
    /// It is being taken out; its guest may not have released it yet.
    Detaching,
}

/// An attached disk, as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// What its guest is told.
    pub attachment: Attachment,
    /// The machine.
    pub vm: VmUuid,
    /// How far it is.
    pub stage: Stage,
    /// By whom it is plugged in and taken out.
    pub monitor: Monitor,
    /// The clone that is thrown away with it.
    pub clone: Option<PathBuf>,
}

impl Stage {
    const ALL: [Self; 3] = [Self::Attaching, Self::Attached, Self::Detaching];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
        }
    }
}

impl FromSql for Stage {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let word = value.as_str()?;
        Self::ALL.into_iter().find(|stage| stage.as_str() == word).ok_or(FromSqlError::InvalidType)
    }
}

/// Paths are bytes.
fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    std::ffi::OsString::from_vec(bytes).into()
}

/// A text of the table that only this program writes.
fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse().map_err(|_| {
        rusqlite::Error::FromSqlConversionFailure(
            0,
            rusqlite::types::Type::Text,
            format!("{column} of an attachment: {text}").into(),
        )
    })
}

fn read(row: &Row<'_>) -> rusqlite::Result<Attached> {
    let clone: Option<Vec<u8>> = row.get("clone")?;
    let size: i64 = row.get("size_bytes")?;
    Ok(Attached {
        attachment: Attachment {
            snapshot: parsed(row, "snapshot")?,
            disk: parsed(row, "disk")?,
            serial: parsed(row, "name")?,
            access: if clone.is_some() { Access::Writable } else { Access::ReadOnly },
            size_bytes: u64::try_from(size).unwrap_or(0),
        },
        vm: parsed(row, "vm_uuid")?,
        stage: row.get("stage")?,
        monitor: Monitor::from_bytes(row.get("monitor")?),
        clone: clone.map(path),
    })
}

impl Catalog {
    /// Commits that a disk is going to be attached, or that it was found to be.
    pub fn enter_attached(&self, attached: &Attached) -> Result<(), CatalogError> {
        let Attached { attachment, vm, stage, monitor, clone } = attached;
        self.connection().execute(
            "INSERT INTO attachments (name, snapshot, vm_uuid, disk, size_bytes, stage, monitor, clone)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                attachment.serial.as_str(),
                key(attachment.snapshot),
                vm.to_string(),
                attachment.disk.as_str(),
                i64::try_from(attachment.size_bytes).unwrap_or(i64::MAX),
                stage.as_str(),
                monitor.to_bytes(),
                clone.as_deref().map(bytes),
            ],
        )?;
        Ok(())
    }

    /// Says how far an attachment is.
    pub fn move_attached(&self, attached: &Attached, stage: Stage) -> Result<(), CatalogError> {
        let name = attached.attachment.serial.as_str();
        let moved = "UPDATE attachments SET stage = ?3 WHERE vm_uuid = ?1 AND name = ?2";
        self.connection().execute(moved, params![attached.vm.to_string(), name, stage.as_str()])?;
        Ok(())
    }

    /// Forgets an attachment of which nothing is left.
    pub fn forget_attached(&self, attached: &Attached) -> Result<(), CatalogError> {
        let name = attached.attachment.serial.as_str();
        let gone = "DELETE FROM attachments WHERE vm_uuid = ?1 AND name = ?2";
        self.connection().execute(gone, params![attached.vm.to_string(), name])?;
        Ok(())
    }

    /// All attachments, in whatever stage.
    pub fn attached(&self) -> Result<Vec<Attached>, CatalogError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached("SELECT * FROM attachments ORDER BY vm_uuid, name")?;
        Ok(statement.query_map([], read)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Those of one snapshot.
    pub fn attached_of(&self, snapshot: SnapshotId) -> Result<Vec<Attached>, CatalogError> {
        let mut all = self.attached()?;
        all.retain(|attached| attached.attachment.snapshot == snapshot);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_is_read_as_it_was_written_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("catalog.sqlite");
        let attached = Attached {
            attachment: Attachment {
                snapshot: "bf77abd9-d60d-5492-9bd0-07059232c906".parse().unwrap(),
                disk: "data".parse().unwrap(),
                serial: "hs-bf77abd9d60d54.0".parse().unwrap(),
                access: Access::Writable,
                size_bytes: 1 << 30,
            },
            vm: "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01".parse().unwrap(),
            stage: Stage::Attaching,
            monitor: Monitor::Qmp("/run/vm/db1.qmp".into()),
            clone: Some(path(b"/store/\xff.qcow2".to_vec())),
        };
        let snapshot = attached.attachment.snapshot;
        Catalog::open(&file).unwrap().enter_attached(&attached).unwrap();

        let catalog = Catalog::open(&file).unwrap();
        assert!(catalog.enter_attached(&attached).is_err(), "a name is there once");
        assert_eq!(catalog.attached().unwrap(), std::slice::from_ref(&attached));
        catalog.move_attached(&attached, Stage::Attached).unwrap();
        let of_it = catalog.attached_of(snapshot).unwrap();
        assert_eq!(of_it, [Attached { stage: Stage::Attached, ..attached.clone() }]);
        catalog.forget_attached(&attached).unwrap();
        assert_eq!(catalog.attached_of(snapshot).unwrap(), []);
    }
}
