//! Asking `zfs` and `zpool`, and changing properties by `zfs`: what is not in the cut. Each call has a limit.

use std::collections::BTreeMap;
use std::time::Duration;

use super::core;
use super::names::DatasetName;
use super::record::Properties;
use super::report::{self, Dataset, Snapshot};
use crate::drivers::common::tool_failed;
use crate::drivers::{DriverError, Kind};
use crate::exec::{ExecError, Tool};

/// A report on thousands of snapshots takes seconds on a busy pool.
const REPORT_LIMIT: Duration = Duration::from_secs(20);
/// A change waits for the pool to write down all that is dirty.
const CHANGE_LIMIT: Duration = Duration::from_secs(50);
/// Names in one command: Linux gives all arguments together 2 MiB.
const NAMES: usize = 2000;

/// A store, and the programs that know it.
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub(super) dataset: DatasetName,
    zfs: Tool,
    zpool: Tool,
    report_limit: Duration,
}

impl Store {
    /// With this machine's programs.
    pub(super) fn new(dataset: DatasetName) -> Result<Self, DriverError> {
        core::load()?;
        let find =
            |tool| Tool::find(tool).map_err(|error| failed("look for zfs (install zfsutils-linux)", error));
        Ok(Self { dataset, zfs: find("zfs")?, zpool: find("zpool")?, report_limit: REPORT_LIMIT })
    }

    /// With other programs: for tests.
    pub(super) fn with_tools(dataset: DatasetName, zfs: Tool, zpool: Tool, report_limit: Duration) -> Self {
        Self { dataset, zfs, zpool, report_limit }
    }

    fn ask(&self, doing: &str, tool: &Tool, arguments: &[&str]) -> Result<String, DriverError> {
        let mut command = tool.command();
        tool.run(command.args(arguments), self.report_limit).map_err(|error| failed(doing, error))
    }

    /// Whether the pool takes changes. `zpool` does not touch the disks: it answers of a suspended pool too.
    pub(super) fn pool_is_well(&self) -> Result<(), DriverError> {
        let name = self.dataset.pool();
        let doing = format!("look at the pool {name}");
        let text = self.ask(&doing, &self.zpool, &["list", "-H", "-p", "-o", report::POOL, name])?;
        let pool = report::pool(&text).ok_or_else(|| not_understood(&doing, "zpool list"))?;
        if !["ONLINE", "DEGRADED"].contains(&pool.health.as_str()) {
            let why =
                format!("the pool {name} is {}; zpool status {name}, then zpool clear {name}", pool.health);
            return Err(DriverError::new(Kind::Failed, why));
        }
        if pool.is_read_only {
            let why =
                format!("the pool {name} is imported read-only; zpool export {name}, zpool import {name}");
            return Err(DriverError::new(Kind::Unsupported, why));
        }
        Ok(())
    }

    /// These datasets as they are now; each must be there.
    pub(super) fn datasets(&self, names: &[&str]) -> Result<Vec<Dataset>, DriverError> {
        let doing = format!("look at {}", names.join(", "));
        let arguments = ["list", "-H", "-p", "-t", "filesystem,volume", "-o", report::DATASET];
        let text = self.ask(&doing, &self.zfs, &[&arguments[..], names].concat())?;
        let found = report::datasets(&text);
        if names.iter().all(|name| found.iter().any(|dataset| dataset.name == **name)) {
            Ok(found)
        } else {
            Err(not_understood(&doing, "zfs list"))
        }
    }

    /// The names of all snapshots in the store.
    pub(super) fn snapshot_names(&self) -> Result<Vec<String>, DriverError> {
        let doing = format!("list the snapshots in {}", self.dataset);
        // By the name alone, which zfs reads without opening each.
        let arguments =
            ["list", "-H", "-r", "-t", "snapshot", "-o", "name", "-s", "name", self.dataset.as_str()];
        Ok(self.ask(&doing, &self.zfs, &arguments)?.lines().map(str::to_owned).collect())
    }

    /// These snapshots as they are now; one that is gone meanwhile is an error.
    pub(super) fn snapshots(&self, names: &[&str]) -> Result<Vec<Snapshot>, DriverError> {
        let mut found = Vec::new();
        for names in names.chunks(NAMES) {
            let doing = format!("look at {} snapshots in {}", names.len(), self.dataset);
            let arguments = ["list", "-H", "-p", "-t", "snapshot", "-o", report::SNAPSHOT];
            found.extend(report::snapshots(&self.ask(
                &doing,
                &self.zfs,
                &[&arguments[..], names].concat(),
            )?));
        }
        Ok(found)
    }

    /// Our properties of these datasets and snapshots, without what they inherit. Those that came with
    /// `zfs receive` count: a pool may have moved.
    pub(super) fn properties(&self, names: &[&str]) -> Result<BTreeMap<String, Properties>, DriverError> {
        let mut found = BTreeMap::new();
        for names in names.chunks(NAMES) {
            let doing = format!("read the properties of {} in {}", names.len(), self.dataset);
            let arguments = ["get", "-H", "-p", "-s", "local,received", "-o", report::PROPERTY, "all"];
            found.extend(report::properties(&self.ask(
                &doing,
                &self.zfs,
                &[&arguments[..], names].concat(),
            )?));
        }
        Ok(found)
    }

    /// The holds on these snapshots: their names and the tags.
    pub(super) fn holds(&self, names: &[&str]) -> Result<Vec<(String, String)>, DriverError> {
        let arguments = ["holds", "-H"];
        let text = self.ask("look at the holds", &self.zfs, &[&arguments[..], names].concat())?;
        Ok(report::holds(&text))
    }

    /// Sets properties of one dataset or snapshot, all at once.
    pub(super) fn set(&self, name: &str, properties: &[(String, String)]) -> Result<(), DriverError> {
        let pairs: Vec<String> = properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
        self.change(&format!("set the properties of {name}"), &[&["set"], &pairs[..], &[name]].concat())
    }

    /// Removes one property of the store's dataset.
    pub(super) fn unset(&self, property: &str) -> Result<(), DriverError> {
        let doing = format!("remove the property {property}");
        self.change(&doing, &["inherit", property, self.dataset.as_str()])
    }

    /// Runs a command that changes something.
    pub(super) fn change(&self, doing: &str, arguments: &[&str]) -> Result<(), DriverError> {
        let mut command = self.zfs.command();
        self.zfs.run(command.args(arguments), CHANGE_LIMIT).map(drop).map_err(|error| failed(doing, error))
    }
}

fn not_understood(doing: &str, program: &str) -> DriverError {
    DriverError::new(
        Kind::Failed,
        format!("{doing}: {program} says nothing that we understand; which version is it?"),
    )
}

/// What a complaint of zfs's means.
pub(super) fn failed(doing: impl Into<String>, error: ExecError) -> DriverError {
    tool_failed(doing, error, kind_of)
}

/// zfs has one exit status for all failures; it says in words what was wrong (OpenZFS `libzfs_util.c`).
fn kind_of(said: &str) -> Kind {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["out of space", "quota exceeded", "No space left", "limit reached"]) {
        Kind::NoSpace
    } else if has(&["does not exist", "no such pool", "could not find any snapshots"]) {
        Kind::NotFound
    } else if has(&["is busy", "has dependent clones", "dataset has children"]) {
        Kind::Busy
    } else if has(&["already exists"]) {
        Kind::Exists
    } else if has(&["read-only", "modules cannot be auto-loaded", "modules are not loaded"]) {
        Kind::Unsupported
    } else {
        Kind::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_zfs_complains_about_is_told_apart() {
        for (said, kind) in [
            ("cannot open 'tank/x': dataset does not exist", Kind::NotFound),
            ("cannot open 'tank': no such pool", Kind::NotFound),
            ("cannot set property for 'tank': out of space", Kind::NoSpace),
            ("cannot create 'tank/x': out of space", Kind::NoSpace),
            ("cannot destroy 'tank/x': dataset is busy", Kind::Busy),
            ("cannot destroy 'tank/x@y': snapshot has dependent clones", Kind::Busy),
            ("cannot create 'tank/x': dataset already exists", Kind::Exists),
            ("cannot set property for 'tank': pool is read-only", Kind::Unsupported),
            ("The ZFS modules cannot be auto-loaded.\nTry running 'modprobe zfs'", Kind::Unsupported),
            ("internal error: Invalid exchange", Kind::Failed),
        ] {
            assert_eq!(kind_of(said), kind, "{said}");
        }
    }
}
