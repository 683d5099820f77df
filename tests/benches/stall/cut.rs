//! The bare cut of each storage: the one call that makes the snapshot, with everything before it
//! done before and everything behind it left out.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use host_proxy::drivers::btrfs::ioctl as btrfs;
use host_proxy::vmm::qmp::Qmp;
use serde_json::json;

use crate::Driver;
use crate::stage::Stage;

/// How long QEMU may take for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
const NAME: &str = "bare-cut";
const TARGET: &str = "bare-target";
const JOB: &str = "bare-job";

/// Ready to cut.
pub(crate) enum Bare {
    Clone { from: File, to: File, path: PathBuf },
    Subvolume { folder: File },
    Backup { qmp: Box<Qmp>, path: PathBuf },
}

impl Bare {
    pub(crate) fn prepare(stage: &Stage) -> Result<Self> {
        let path = stage.store.path().join(NAME);
        Ok(match stage.driver {
            Driver::Reflink => {
                Self::Clone { from: File::open(&stage.image)?, to: File::create(&path)?, path }
            }
            Driver::Btrfs => Self::Subvolume { folder: File::open(stage.store.path())? },
            Driver::Qemu => {
                let file = File::create(&path)?;
                file.set_len(fs::metadata(&stage.image)?.len())?;
                let mut qmp = Box::new(stage.monitor()?);
                let node = json!({ "driver": "raw", "node-name": TARGET,
                    "file": { "driver": "file", "filename": path } });
                qmp.execute("blockdev-add", node, LIMIT)?;
                Self::Backup { qmp, path }
            }
        })
    }

    pub(crate) fn cut(&mut self) -> Result<()> {
        match self {
            Self::Clone { from, to, .. } => rustix::fs::ioctl_ficlone(to, from).context("FICLONE"),
            Self::Subvolume { folder } => btrfs::snapshot(&*folder, NAME, &*folder).context("the ioctl"),
            Self::Backup { qmp, .. } => {
                let backup = json!({ "type": "blockdev-backup", "data": {
                    "device": "disk0", "target": TARGET, "sync": "full", "job-id": JOB } });
                qmp.execute("transaction", json!({ "actions": [backup] }), LIMIT)?;
                Ok(())
            }
        }
    }

    /// Removes what was cut.
    pub(crate) fn undo(self) -> Result<()> {
        match self {
            Self::Clone { path, .. } => fs::remove_file(path)?,
            Self::Subvolume { folder } => btrfs::destroy(&folder, NAME)?,
            Self::Backup { mut qmp, path } => {
                let _ = qmp.execute("block-job-cancel", json!({ "device": JOB, "force": true }), LIMIT);
                let busy = |qmp: &mut Qmp| -> Result<bool> {
                    let jobs = qmp.execute("query-jobs", json!({}), LIMIT)?;
                    Ok(jobs.as_array().is_some_and(|jobs| jobs.iter().any(|job| job["id"] == JOB)))
                };
                while busy(&mut qmp)? {
                    std::thread::sleep(Duration::from_millis(10));
                }
                qmp.execute("blockdev-del", json!({ "node-name": TARGET }), LIMIT)?;
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// That a cut was made at all: a floor that does nothing would be no floor.
pub(crate) fn is_there(stage: &Stage) -> Result<()> {
    ensure!(stage.store.path().join(NAME).exists(), "the bare cut left nothing");
    Ok(())
}
