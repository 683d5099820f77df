//! One set of volumes: prepared, cut, sealed. The cut is one `lvcreate --snapshot` for each volume, by an
//! lvm that is running already; lvm has no command for several. Under a freeze that is held through
//! the cut nothing is written meanwhile, and the set is consistent all the same.

use std::time::{Duration, Instant};

use super::manifests::{Manifests, Phase, Record};
use super::pool::{self, Pool, SETTINGS};
use super::report::VolumeGroup;
use super::shell::Shell;
use super::{names, store};
use crate::drivers::common::settle_at_once;
use crate::drivers::{Continue, CutSet, DriverError, Kind, Owner, Progress, Ready, VolumeSnapshot};
use crate::exec::ExecError;

/// How long lvm may go on after the deadline with what it began before it.
const CUT_GRACE: Duration = Duration::from_secs(5);

/// A volume, and what becomes its snapshot.
pub(super) struct Part {
    pub(super) snapshot: VolumeSnapshot,
    /// The names of both in the volume group.
    pub(super) origin: String,
    pub(super) name: String,
    pub(super) origin_uuid: String,
}

/// Prepared, not cut.
pub(super) struct Prepared {
    pub(super) set: Set,
    pub(super) shell: Shell,
    /// The devices that the volume group is on: where lvm looks, instead of everywhere.
    pub(super) devices: Vec<String>,
    /// What lvm suspends, by the device mapper's names.
    pub(super) suspends: Vec<String>,
}

/// All of one snapshot, in whatever state.
pub(super) struct Set {
    pub(super) pool: Pool,
    pub(super) manifests: Manifests,
    pub(super) record: Record,
    pub(super) parts: Vec<Part>,
    pub(super) volumes: Vec<VolumeSnapshot>,
}

impl Set {
    pub(super) fn new(pool: Pool, manifests: Manifests, record: Record, parts: Vec<Part>) -> Self {
        let volumes = parts.iter().map(|part| part.snapshot.clone()).collect();
        Self { pool, manifests, record, parts, volumes }
    }

    fn owner(&self) -> Owner {
        self.record.owner
    }

    fn remove(&self) -> Result<(), DriverError> {
        store::remove(&self.pool, Some(&self.manifests), self.owner()).map(|_| ())
    }

    /// Whether each volume's snapshot is there, and is of the volume that was prepared: another one
    /// may have got its name since.
    fn verify(&self, vg: &VolumeGroup) -> Result<(), DriverError> {
        for part in &self.parts {
            let found = vg.lv(&part.name).and_then(|lv| Some((lv, lv.ours()?)));
            let Some((lv, ours)) = found.filter(|(_, ours)| ours.owner == self.owner()) else {
                let doing = format!("find the snapshot {} that was cut", part.name);
                return Err(DriverError::new(Kind::Failed, doing));
            };
            if !is_of_its_origin(&lv.origin_uuid, &ours) {
                let doing = format!(
                    "{} is a snapshot of another volume, which has taken the name of {}",
                    part.name, lv.origin
                );
                return Err(DriverError::new(Kind::Failed, doing));
            }
        }
        Ok(())
    }
}

/// lvm forgets the origin when that is removed.
pub(super) fn is_of_its_origin(origin_uuid: &str, ours: &names::Ours) -> bool {
    origin_uuid.is_empty() || origin_uuid == ours.origin_uuid
}

impl Prepared {
    /// Goes through everything that the cut will do but for changing anything (lvm(8), `--test`):
    /// what lvm would refuse is refused now, and what it must load and read is in memory then.
    pub(super) fn rehearse(&mut self, deadline: Instant) -> Result<(), DriverError> {
        // The one thing that `--test` passes over.
        let said = self
            .shell
            .run("lvmconfig global/metadata_read_only", deadline)
            .map_err(|error| pool::failed("ask lvm whether it may change anything", error))?;
        if said.contains("metadata_read_only=1") {
            let doing = "lvm is configured to change nothing: global/metadata_read_only in lvm.conf";
            return Err(DriverError::new(Kind::Unsupported, doing));
        }
        for index in 0..self.set.parts.len() {
            self.lvcreate(index, "--test ", deadline)?;
        }
        Ok(())
    }

    fn lvcreate(&mut self, index: usize, option: &str, deadline: Instant) -> Result<(), DriverError> {
        let Part { snapshot, origin, name, origin_uuid } = &self.set.parts[index];
        let tags = names::tags(self.set.owner(), &snapshot.serial, origin_uuid);
        let tags: String = tags.iter().map(|tag| format!(" --addtag \"{tag}\"")).collect();
        let devices = self.devices.join(",");
        let line = format!(
            "lvcreate {option}--yes --snapshot --setactivationskip y --permission r --name {name}{tags} \
             --autobackup n --devices \"{devices}\" --config \"{SETTINGS}\" {}",
            self.set.pool.lv(origin)
        );
        let said = self
            .shell
            .run(&line, deadline)
            .map_err(|error| pool::failed(format!("snapshot {origin} of {}", self.set.pool.name), error))?;
        if said.contains(&format!("Logical volume \"{name}\" created")) {
            return Ok(());
        }
        let kind = pool::kind_of(&said);
        let doing = format!("snapshot {origin} of {}", self.set.pool.name);
        Err(DriverError { source: Some(complaint(&said)), ..DriverError::new(kind, doing) })
    }

    fn cut_all(&mut self, deadline: Instant) -> Result<(), DriverError> {
        for index in 0..self.set.parts.len() {
            if Instant::now() >= deadline {
                return Err(DriverError::new(Kind::DeadlinePassed, "snapshot the volumes"));
            }
            self.lvcreate(index, "", pool::grace_after(deadline, CUT_GRACE))?;
        }
        // The volumes can't show it: an lvm that was ended may leave one that is cut later, when the
        // next lvm brings the pool up to date.
        self.set.manifests.mark(&self.set.record, Phase::Cut)
    }
}

/// lvm's words without its warnings.
fn complaint(said: &str) -> Box<dyn std::error::Error + Send + Sync> {
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("WARNING"));
    lines.collect::<Vec<_>>().join("; ").into()
}

impl Ready for Prepared {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.set.volumes
    }

    fn cut(mut self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        match self.cut_all(deadline) {
            Ok(()) => Ok(Box::new(Cut { set: self.set, _shell: Some(self.shell) })),
            Err(error) => {
                let Self { set, shell, suspends, .. } = *self;
                drop(shell);
                let was_ended = error.source.as_ref().is_some_and(|source| source.is::<ExecError>());
                let resumed = if was_ended { set.pool.resume(&suspends) } else { Ok(()) };
                Err(error.after_undo(resumed.and_then(|()| set.remove())))
            }
        }
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.set.remove()
    }
}

/// Cut. The lvm that did it is ended when nobody is frozen any more.
pub(super) struct Cut {
    pub(super) set: Set,
    pub(super) _shell: Option<Shell>,
}

impl CutSet for Cut {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.set.volumes
    }

    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        settle_at_once(&self.set.volumes, progress, "flush the pool", || {
            self.set.verify(&self.set.pool.report()?)?;
            self.set.manifests.flush()
        })
    }

    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        let Self { set, .. } = *self;
        set.manifests.put(set.owner(), Phase::Cut, manifest)?;
        let first = set.pool.lv(&names::snapshot(set.owner().snapshot, 0));
        let doing = format!("make the snapshot {} whole", set.owner().snapshot);
        set.pool.change(&doing, &["lvchange", "--addtag", names::WHOLE, &first])
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.set.remove()
    }
}
