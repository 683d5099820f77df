//! The bare command of lvm, for the benchmark that holds the driver against it: `lvcreate --snapshot` by an lvm that is
//! running already and knows its devices. Nothing is tagged, nothing is written down.

use std::time::{Duration, Instant};

use super::pool::{self, Pool, PoolName, SETTINGS, Watermarks};
use super::shell::Shell;
use crate::drivers::{DriverError, Kind};
use crate::exec::Tool;

const LIMIT: Duration = Duration::from_secs(120);

/// An lvm that waits, and nothing around it.
pub struct BareLvm {
    pool: Pool,
    shell: Shell,
    devices: String,
}

impl BareLvm {
    /// Started, and led through what it is to do, as `prepare` does.
    pub fn start(name: PoolName, origin: &str, snapshot: &str) -> Result<Self, DriverError> {
        let find =
            |tool| Tool::find(tool).map_err(|error| pool::failed("look for lvm (install lvm2)", error));
        let tools = [find("lvm")?, find("dmsetup")?];
        let pool = Pool::new(name, Watermarks::default(), tools, pool::REPORT_LIMIT);
        let devices = pool.report()?.devices.join(",");
        let shell = Shell::start(&pool.lvm).map_err(|error| pool::failed("start lvm", error))?;
        let mut bare = Self { pool, shell, devices };
        bare.lvcreate("--test", origin, snapshot)?;
        Ok(bare)
    }

    /// `lvcreate --snapshot`.
    pub fn snapshot(&mut self, origin: &str, snapshot: &str) -> Result<(), DriverError> {
        self.lvcreate("", origin, snapshot)
    }

    fn lvcreate(&mut self, option: &str, origin: &str, snapshot: &str) -> Result<(), DriverError> {
        let line = format!(
            "lvcreate {option} --yes --snapshot --setactivationskip y --permission r --name {snapshot} --autobackup n \
             --devices \"{}\" --config \"{SETTINGS}\" {}",
            self.devices,
            self.pool.lv(origin)
        );
        let doing = || format!("snapshot {origin}");
        let said =
            self.shell.run(&line, Instant::now() + LIMIT).map_err(|error| pool::failed(doing(), error))?;
        if said.contains(&format!("Logical volume \"{snapshot}\" created")) {
            return Ok(());
        }
        Err(DriverError { source: Some(said.into()), ..DriverError::new(Kind::Failed, doing()) })
    }

    /// Removes such a snapshot.
    pub fn remove(&self, snapshot: &str) -> Result<(), DriverError> {
        self.pool.change("remove the snapshot", &["lvremove", "--yes", &self.pool.lv(snapshot)])
    }
}
