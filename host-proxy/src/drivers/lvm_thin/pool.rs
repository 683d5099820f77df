//! Which thin pool, and asking lvm about it and for changes of it. Every call has a limit; one that
//! is ended at it may leave a volume suspended, which would hang a guest: those are resumed.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::names;
use super::report::{self, Lv, ReportError, VgState, VolumeGroup};
use crate::drivers::common::tool_failed;
use crate::drivers::{DriverError, Kind};
use crate::exec::{ExecError, Tool};

/// A report looks at all devices of this machine.
pub(super) const REPORT_LIMIT: Duration = Duration::from_secs(20);
/// A change of the volume group; removing many volumes takes longest.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// The device mapper's own tool does nothing slow.
const DMSETUP_LIMIT: Duration = Duration::from_secs(5);
/// A volume that is suspended twice, so far apart, with nobody at work on it, was left so.
const STILL: Duration = Duration::from_millis(500);
/// What the volume group's metadata must have left, in bytes, for the snapshot of one volume: its text
/// has some 550, more with a long serial.
const METADATA_BYTES_EACH: u64 = 2048;

/// For every command of ours. Without udev's answer (`udev_sync`) nothing waits for a daemon that
/// may not see us; device nodes are taken from devtmpfs, which has them at once. `dmeventd` is
/// the administrator's. An archive of each change, thousands a month, is no use to anybody.
pub(super) const SETTINGS: &str =
    "activation/udev_sync=0 activation/monitoring=0 backup/archive=0 log/silent=0";

/// A thin pool by its names: `vg0/thin`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolName {
    vg: String,
    lv: String,
}

/// A text that names no thin pool.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} names no thin pool; write volume group and pool, such as \"vg0/thin\"")]
pub struct NotAPool(String);

impl FromStr for PoolName {
    type Err = NotAPool;

    /// Names as in lvm(8), "VALID NAMES".
    fn from_str(text: &str) -> Result<Self, NotAPool> {
        let is_name = |name: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
            (1..=127).contains(&name.len())
                && name.chars().all(allowed)
                && !name.starts_with('-')
                && name != "."
                && name != ".."
        };
        match text.split_once('/') {
            Some((vg, lv)) if is_name(vg) && is_name(lv) => Ok(Self { vg: vg.to_owned(), lv: lv.to_owned() }),
            _ => Err(NotAPool(text.to_owned())),
        }
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vg, self.lv)
    }
}

/// How full a pool may be, in percent, for a snapshot to be begun. A pool that is full fails the writes of
/// every guest that is on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Of its data.
    pub data: u8,
    /// Of its metadata.
    pub metadata: u8,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self { data: 90, metadata: 80 }
    }
}

/// A pool, and the programs that know it.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub(super) name: PoolName,
    pub(super) lvm: Tool,
    dmsetup: Tool,
    watermarks: Watermarks,
    report_limit: Duration,
}

impl Pool {
    pub(super) fn new(
        name: PoolName,
        watermarks: Watermarks,
        [lvm, dmsetup]: [Tool; 2],
        report_limit: Duration,
    ) -> Self {
        Self { name, lvm, dmsetup, watermarks, report_limit }
    }

    /// A volume of the group as lvm's commands take it.
    pub(super) fn lv(&self, name: &str) -> String {
        format!("{}/{name}", self.name.vg)
    }

    /// The volume group as it is now.
    pub(super) fn report(&self) -> Result<VolumeGroup, DriverError> {
        let doing = || format!("look at the volume group {}", self.name.vg);
        let mut command = self.lvm.command();
        command.args(report::arguments(&self.name.vg)).args(["--config", SETTINGS]);
        let text = self.lvm.run(&mut command, self.report_limit).map_err(|error| failed(doing(), error))?;
        VolumeGroup::parse(&text).map_err(|error| {
            let kind = if matches!(error, ReportError::Count(0)) { Kind::NotFound } else { Kind::Failed };
            DriverError { source: Some(Box::new(error)), ..DriverError::new(kind, doing()) }
        })
    }

    /// The pool in a report.
    pub(super) fn lv_in<'a>(&self, vg: &'a VolumeGroup) -> Result<&'a Lv, DriverError> {
        let pool = vg.lv(&self.name.lv).ok_or_else(|| {
            DriverError::new(Kind::NotFound, format!("find the thin pool {}: lvs", self.name))
        })?;
        match pool {
            pool if !pool.is_thin_pool() => {
                Err(DriverError::new(Kind::Unsupported, format!("{} is no thin pool", self.name)))
            }
            pool if !pool.is_active() => Err(DriverError::new(
                Kind::Failed,
                format!("the thin pool {0} is not active; lvchange -ay {0}", self.name),
            )),
            pool => Ok(pool),
        }
    }

    /// Whether snapshots of so many volumes have room, and nothing is in their way.
    pub(super) fn takes(&self, vg: &VolumeGroup, volumes: usize) -> Result<(), DriverError> {
        let refuse = |kind, why: String| Err(DriverError::new(kind, why));
        let name = &self.name;
        match vg.state {
            VgState::Usable => {}
            VgState::ReadOnly => {
                return refuse(Kind::Unsupported, format!("the volume group {} is read-only", name.vg));
            }
            VgState::Exported => {
                return refuse(
                    Kind::Unsupported,
                    format!("the volume group {0} is exported; vgimport {0}", name.vg),
                );
            }
            VgState::Partial => {
                return refuse(Kind::Failed, format!("the volume group {} lacks devices: vgs, pvs", name.vg));
            }
            VgState::Shared => {
                return refuse(
                    Kind::Unsupported,
                    format!(
                        "the volume group {} is shared by lvmlockd: one host alone must have it",
                        name.vg
                    ),
                );
            }
        }
        let pool = self.lv_in(vg)?;
        if !pool.health.is_empty() {
            let kind = if pool.health.contains("out_of_data") { Kind::NoSpace } else { Kind::Failed };
            return refuse(
                kind,
                format!("the thin pool {name} is not well: {}; lvs -o+lv_health_status", pool.health),
            );
        }
        let Watermarks { data, metadata } = self.watermarks;
        for (what, percent, watermark, option) in [
            ("data", pool.data_percent, data, "--size"),
            ("metadata", pool.metadata_percent, metadata, "--poolmetadatasize"),
        ] {
            let Some(percent) = percent else {
                return refuse(Kind::Failed, format!("lvm does not say how full the {what} of {name} is"));
            };
            if percent >= f64::from(watermark) {
                return refuse(
                    Kind::NoSpace,
                    format!(
                        "the {what} of the thin pool {name} is {percent} % full, the limit is {watermark} %; \
                         delete snapshots, or lvextend {option} +1G {name}"
                    ),
                );
            }
        }
        let needed = METADATA_BYTES_EACH * u64::try_from(volumes).unwrap_or(u64::MAX);
        if vg.metadata_free.is_some_and(|free| free < needed) {
            return refuse(
                Kind::NoSpace,
                format!(
                    "the metadata of the volume group {} has no room for more volumes: delete snapshots; a new \
                     group has more with vgcreate --metadatasize 16m",
                    name.vg
                ),
            );
        }
        Ok(())
    }

    /// How much may be written until the pool's data is at its watermark, in bytes.
    pub(super) fn free_below_watermark(&self, vg: &VolumeGroup) -> Result<u64, DriverError> {
        self.free_below(vg, f64::from(self.watermarks.data))
    }

    /// How much may be written until the pool's data is so many percent full, in bytes.
    pub(super) fn free_below(&self, vg: &VolumeGroup, percent: f64) -> Result<u64, DriverError> {
        let pool = self.lv_in(vg)?;
        let percent = percent - pool.data_percent.unwrap_or(100.0);
        // lvm gives hundredths of a percent.
        let hundredths = (percent.clamp(0.0, 100.0) * 100.0) as u128;
        Ok(u64::try_from(u128::from(pool.size_bytes()) * hundredths / 10_000).unwrap_or(u64::MAX))
    }

    /// Runs a command that changes the volume group.
    pub(super) fn change(&self, doing: &str, arguments: &[&str]) -> Result<(), DriverError> {
        let mut command = self.lvm.command();
        command.args(arguments).args(["--config", SETTINGS]);
        match self.lvm.run(&mut command, CHANGE_LIMIT) {
            Ok(_) => Ok(()),
            Err(error @ ExecError::TimedOut { .. }) => {
                let resumed = self.report().and_then(|vg| self.resume(&self.devices(&vg)));
                Err(failed(doing, error).after_undo(resumed))
            }
            Err(error) => Err(failed(doing, error)),
        }
    }

    /// The device mapper's names of all in the pool that lvm suspends.
    pub(super) fn devices(&self, vg: &VolumeGroup) -> Vec<String> {
        let active = vg.lvs.iter().filter(|lv| lv.is_active());
        let ours = active.filter(|lv| lv.name == self.name.lv || lv.pool == self.name.lv);
        ours.flat_map(|lv| ["", "-pool", "-tpool"].map(|suffix| vg.dm_uuid(lv, suffix))).collect()
    }

    /// Resumes those of these devices that were left suspended by an lvm that was ended.
    pub(super) fn resume(&self, devices: &[String]) -> Result<(), DriverError> {
        let before = self.suspended(devices)?;
        if before.is_empty() {
            return Ok(());
        }
        std::thread::sleep(STILL);
        for uuid in self.suspended(devices)?.iter().filter(|uuid| before.contains(uuid)) {
            tracing::warn!("{uuid} was left suspended by an lvm that was ended: it is resumed");
            let mut command = self.dmsetup.command();
            self.dmsetup
                .run(command.args(["resume", "--noudevsync", "--uuid", uuid]), DMSETUP_LIMIT)
                .map_err(|error| failed(format!("resume the device {uuid}"), error))?;
        }
        Ok(())
    }

    /// Asks or tells the device mapper something; what it says.
    pub(super) fn dmsetup(&self, doing: &str, arguments: &[&str]) -> Result<String, DriverError> {
        let mut command = self.dmsetup.command();
        self.dmsetup.run(command.args(arguments), DMSETUP_LIMIT).map_err(|error| failed(doing, error))
    }

    fn suspended(&self, devices: &[String]) -> Result<Vec<String>, DriverError> {
        let mut command = self.dmsetup.command();
        command.args(["info", "--columns", "--noheadings", "--separator", " ", "-o", "uuid,suspended"]);
        let text = self
            .dmsetup
            .run(&mut command, DMSETUP_LIMIT)
            .map_err(|error| failed("look for suspended devices", error))?;
        let lines = text.lines().filter_map(|line| line.trim().split_once(' '));
        let suspended =
            lines.filter(|(uuid, state)| *state == "Suspended" && devices.iter().any(|one| one == uuid));
        Ok(suspended.map(|(uuid, _)| uuid.to_owned()).collect())
    }

    /// The snapshots' volumes of all machines that are in this pool.
    pub(super) fn ours<'a>(&'a self, vg: &'a VolumeGroup) -> impl Iterator<Item = (&'a Lv, names::Ours)> {
        vg.lvs.iter().filter(|lv| lv.pool == self.name.lv).filter_map(|lv| Some((lv, lv.ours()?)))
    }
}

/// What lvm's complaint means.
pub(super) fn failed(doing: impl Into<String>, error: ExecError) -> DriverError {
    tool_failed(doing, error, kind_of)
}

/// lvm has one exit status for all failures; it says in words what was wrong.
pub(super) fn kind_of(said: &str) -> Kind {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&[
        "nsufficient free space",
        "above threshold",
        "metadata too large",
        "No space left",
        "out of data space",
    ]) {
        Kind::NoSpace
    } else if has(&[" in use", "is used by another device", "contains a filesystem in use"]) {
        Kind::Busy
    } else if has(&["already exists"]) {
        Kind::Exists
    } else if has(&["not found", "Failed to find logical volume"]) {
        Kind::NotFound
    } else {
        Kind::Failed
    }
}

/// Until when what began at `deadline` may go on.
pub(super) fn grace_after(deadline: Instant, grace: Duration) -> Instant {
    deadline.max(Instant::now()) + grace
}
