//! Machines that were paused by us: the intent is committed before the pause, so that a service that was
//! killed meanwhile lets them go on when it starts again.

use protocol::VmUuid;
use rusqlite::params;

use super::{Catalog, CatalogError};
use crate::vmm::monitor::Monitor;

/// A machine that is paused, or was to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// The machine.
    pub vm: VmUuid,
    /// By whom it is let go on.
    pub monitor: Monitor,
}

impl Catalog {
    /// Commits that a machine is going to be paused.
    pub fn enter_pause(&self, pause: &Pause) -> Result<(), CatalogError> {
        self.connection().execute(
            "INSERT OR REPLACE INTO pauses (vm_uuid, monitor) VALUES (?1, ?2)",
            params![pause.vm.to_string(), pause.monitor.to_bytes()],
        )?;
        Ok(())
    }

    /// It goes on.
    pub fn forget_pause(&self, vm: VmUuid) -> Result<(), CatalogError> {
        self.connection().execute("DELETE FROM pauses WHERE vm_uuid = ?1", params![vm.to_string()])?;
        Ok(())
    }

    /// All of them.
    pub fn pauses(&self) -> Result<Vec<Pause>, CatalogError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached("SELECT vm_uuid, monitor FROM pauses")?;
        let rows =
            statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let mut pauses = Vec::new();
        for row in rows {
            let (vm, monitor) = row?;
            // A UUID that only this program writes.
            let Ok(vm) = vm.parse() else { continue };
            pauses.push(Pause { vm, monitor: Monitor::from_bytes(monitor) });
        }
        Ok(pauses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_outlives_the_service_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("catalog.sqlite");
        let vm = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01".parse().unwrap();
        let pause = Pause { vm, monitor: Monitor::Qmp("/run/vm/db1.qmp".into()) };
        for _ in 0..2 {
            Catalog::open(&file).unwrap().enter_pause(&pause).unwrap();
        }
        let catalog = Catalog::open(&file).unwrap();
        assert_eq!(catalog.pauses().unwrap(), [pause]);
        catalog.forget_pause(vm).unwrap();
        assert_eq!(catalog.pauses().unwrap(), []);
    }
}
