//! Which disks are being given back the bytes of which snapshot: begun → done → forgotten after a day. The intent is
//! committed before the first byte is changed: what a stop of the service leaves is finished from it.

use protocol::{DiskSerial, RequestId, SnapshotId, VmUuid};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Catalog, CatalogError};
use crate::drivers::Others;

/// A restore, as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restoring {
    /// The machine.
    pub vm: VmUuid,
    /// The request that it answers.
    pub request: RequestId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The disks.
    pub disks: Vec<DiskSerial>,
    /// The snapshot of what they held before.
    pub safety: Option<SnapshotId>,
    /// Who may have them open.
    pub others: Others,
    /// Whether it is done.
    pub is_done: bool,
}

impl Restoring {
    /// Whether this disk is one of it.
    pub fn holds(&self, disk: &DiskSerial) -> bool {
        self.disks.iter().any(|one| one.same_disk(disk))
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Restoring> {
    let text = |column: &str| row.get::<_, String>(column);
    let wrong =
        |text: String| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, text.into());
    let disks = text("disks")?;
    let safety: Option<String> = row.get("safety")?;
    let id = |text: String| text.parse().map_err(|_| wrong(text));
    Ok(Restoring {
        vm: text("vm_uuid").and_then(|text| text.parse().map_err(|_| wrong(text)))?,
        request: text("request").and_then(|text| text.parse().map_err(|_| wrong(text)))?,
        snapshot: text("snapshot").and_then(id)?,
        disks: serde_json::from_str(&disks).map_err(|_| wrong(disks))?,
        safety: safety.map(id).transpose()?,
        others: if text("others")? == "nobody" { Others::Nobody } else { Others::Machine },
        is_done: text("stage")? == "done",
    })
}

fn insert(connection: &Connection, how: &str, restoring: &Restoring) -> Result<(), CatalogError> {
    let statement = format!(
        "{how} INTO restores (vm_uuid, request, snapshot, disks, safety, others, stage, changed_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, unixepoch())"
    );
    let row = params![
        restoring.vm.to_string(),
        restoring.request.to_string(),
        restoring.snapshot.to_string(),
        serde_json::to_string(&restoring.disks).expect("serials are texts"),
        restoring.safety.map(|id| id.to_string()),
        match restoring.others {
            Others::Machine => "machine",
            Others::Nobody => "nobody",
        },
        if restoring.is_done { "done" } else { "begun" },
    ];
    connection.execute(&statement, row)?;
    Ok(())
}

impl Catalog {
    /// Commits that disks are going to be overwritten.
    pub fn begin_restore(&self, restoring: &Restoring) -> Result<(), CatalogError> {
        let connection = self.connection();
        connection.execute(
            "DELETE FROM restores WHERE stage = 'done' AND changed_at NOT BETWEEN unixepoch() - 86400 AND unixepoch() + 86400",
            [],
        )?;
        insert(&connection, "INSERT", restoring)
    }

    /// Enters one that only the storage knows, as far as it is. One that is known stays as it is known.
    pub fn enter_restore(&self, restoring: &Restoring) -> Result<(), CatalogError> {
        insert(&self.connection(), "INSERT OR IGNORE", restoring)
    }

    /// It is done.
    pub fn end_restore(&self, restoring: &Restoring) -> Result<(), CatalogError> {
        self.connection().execute(
            "UPDATE restores SET stage = 'done', changed_at = unixepoch() WHERE vm_uuid = ?1 AND request = ?2",
            params![restoring.vm.to_string(), restoring.request.to_string()],
        )?;
        Ok(())
    }

    /// Nothing was overwritten after all.
    pub fn forget_restore(&self, restoring: &Restoring) -> Result<(), CatalogError> {
        self.connection().execute(
            "DELETE FROM restores WHERE vm_uuid = ?1 AND request = ?2",
            params![restoring.vm.to_string(), restoring.request.to_string()],
        )?;
        Ok(())
    }

    /// What became of a request.
    pub fn restore(&self, vm: VmUuid, request: RequestId) -> Result<Option<Restoring>, CatalogError> {
        let connection = self.connection();
        let asked = params![vm.to_string(), request.to_string()];
        let found = "SELECT * FROM restores WHERE vm_uuid = ?1 AND request = ?2";
        Ok(connection.query_row(found, asked, read).optional()?)
    }

    /// Those that were begun and are not done.
    pub fn unfinished_restores(&self) -> Result<Vec<Restoring>, CatalogError> {
        let connection = self.connection();
        let mut statement =
            connection.prepare_cached("SELECT * FROM restores WHERE stage = 'begun' ORDER BY changed_at")?;
        Ok(statement.query_map([], read)?.collect::<rusqlite::Result<_>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_is_known_from_its_intent_until_long_after_it_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("catalog.sqlite");
        let restoring = Restoring {
            vm: "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01".parse().unwrap(),
            request: RequestId::random(),
            snapshot: "bf77abd9-d60d-5492-9bd0-07059232c906".parse().unwrap(),
            disks: vec!["data".parse().unwrap(), "log".parse().unwrap()],
            safety: Some("00000000-0000-0000-0000-0000000000aa".parse().unwrap()),
            others: Others::Nobody,
            is_done: false,
        };
        Catalog::open(&file).unwrap().begin_restore(&restoring).unwrap();

        let catalog = Catalog::open(&file).unwrap();
        assert!(catalog.begin_restore(&restoring).is_err(), "a request is answered once");
        assert_eq!(catalog.unfinished_restores().unwrap(), std::slice::from_ref(&restoring));
        catalog.end_restore(&restoring).unwrap();
        assert_eq!(catalog.unfinished_restores().unwrap(), []);
        let known = catalog.restore(restoring.vm, restoring.request).unwrap();
        assert_eq!(known, Some(Restoring { is_done: true, ..restoring.clone() }));
        assert_eq!(catalog.restore(restoring.vm, RequestId::random()).unwrap(), None);
        catalog.enter_restore(&restoring).unwrap();
        assert_eq!(
            catalog.unfinished_restores().unwrap(),
            [],
            "what is done is not begun by what the storage knows"
        );
        catalog.forget_restore(&restoring).unwrap();
        assert_eq!(catalog.restore(restoring.vm, restoring.request).unwrap(), None);
        catalog.enter_restore(&restoring).unwrap();
        assert_eq!(catalog.unfinished_restores().unwrap(), std::slice::from_ref(&restoring));
    }
}
