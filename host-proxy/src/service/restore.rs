//! Disks given back the bytes that they had in a snapshot. Everything is checked before anything is changed; what they
//! hold now is kept as a snapshot first; and from the intent on the catalog knows of it, so that it is finished whatever
//! happens. Until then no snapshot of these disks is taken, and none of the snapshot's bytes are removed.
//!
//! | module | idea |
//! |---|---|
//! | this one | what is asked for, from the question to the answer |
//! | `target` | which disks, and the proof that it would work |
//! | `stopped` | whether a machine is stopped, for the host to write to its disks |
//! | `work` | the bytes, and what a stop of the service left of them |
//! | `noted` | what the storage knows of it, should the catalog be lost |

mod noted;
mod stopped;
mod target;
mod work;

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::evidence::Freeze;
use protocol::fingerprint::Fingerprint;
use protocol::message::{DiskRequest, Prepare, Progress};
use protocol::record::State;
use protocol::restore::{Restore as Wanted, RestorePlan, Safety};
use protocol::text::{LabelKey, LabelValue, Labels};
use protocol::{
    BoundedVec, Consistency, ErrorCode, Note, RequestId, SnapshotId, SnapshotRecord, VmUuid, WireError,
};
use tokio::sync::watch;
use uuid::Uuid;

use super::Service;
use super::agentless::Machine;
use crate::audit::{Decision, Event};
use crate::catalog::Restoring as Row;
use crate::config::Vm;
use crate::policy::{self, Asker};
pub(super) use noted::Noted;
use target::Target;
use work::Stopped;

/// How long a safety snapshot that is being copied is waited for.
const SETTLE_LIMIT: Duration = Duration::from_secs(3600);
/// How often it is looked at.
const SETTLE_POLL: Duration = Duration::from_millis(50);

/// How far a restore is.
#[derive(Debug, Clone)]
pub enum RestoreStep {
    /// On its way.
    Running(Progress),
    /// At its end.
    Ended(Result<RestorePlan, WireError>),
}

/// A restore that goes on, whoever listens.
pub struct Restoring(watch::Receiver<RestoreStep>);

impl Restoring {
    /// Waits for the next step.
    pub async fn next(&mut self) -> RestoreStep {
        match self.0.changed().await {
            Ok(()) => self.0.borrow_and_update().clone(),
            Err(_) => {
                let stopped = "the restore stopped; the host's log says why";
                RestoreStep::Ended(Err(WireError::new(ErrorCode::RestoreUnfinished, stopped)
                    .hint("the host's administrator runs hostsnapd reconcile")))
            }
        }
    }
}

impl Service {
    /// What a restore would do. Changes nothing.
    pub async fn plan_restore(
        &self,
        asker: Asker,
        vm: &Vm,
        wanted: &Wanted,
    ) -> Result<RestorePlan, WireError> {
        let record = self.snapshot_of(vm.uuid, wanted.id).await?;
        let allowed = policy::restore(asker, vm, &record, wanted)?;
        self.refresh_attached(&record).await?;
        self.refuse_if_attached(&record).await?;
        // Its disks are shown meanwhile, and nobody else is to hide them.
        let claim = self.claim(record.id)?;
        let targets = self.targets(asker, allowed, wanted, &claim).await?;
        let safety = (wanted.safety == Safety::Snapshot).then(|| safety_id(vm.uuid, wanted.request));
        Ok(plan(&record, &targets, safety))
    }

    /// Begins a restore. Whoever asks has seen to it that nothing uses the disks. `via` is for the audit log.
    pub fn restore(self: &Arc<Self>, asker: Asker, vm: Vm, wanted: Wanted, via: String) -> Restoring {
        let first = Progress { done_bytes: 0, total_bytes: 0 };
        let (tell, told) = watch::channel(RestoreStep::Running(first));
        let (service, tell) = (Arc::clone(self), Arc::new(tell));
        tokio::spawn(async move {
            let began = Instant::now();
            let outcome = service.restore_to_its_end(asker, &vm, &wanted, &tell).await;
            service.audit().note(&Event {
                verb: "restore",
                vm: Some(&vm.name),
                vm_uuid: Some(vm.uuid),
                peer: &via,
                disks: wanted.disks.iter().map(|disk| disk.serial.clone()).collect(),
                snapshot: outcome.as_ref().ok().map(|plan| plan.id),
                decision: outcome.as_ref().map_or_else(|error| Decision::of(error.code), |_| Decision::Done),
                error: outcome.as_ref().err(),
                took: began.elapsed(),
            });
            tell.send_replace(RestoreStep::Ended(outcome));
        });
        Restoring(told)
    }

    async fn restore_to_its_end(
        self: &Arc<Self>,
        asker: Asker,
        vm: &Vm,
        wanted: &Wanted,
        tell: &Arc<watch::Sender<RestoreStep>>,
    ) -> Result<RestorePlan, WireError> {
        let record = self.snapshot_of(vm.uuid, wanted.id).await?;
        let allowed = policy::restore(asker, vm, &record, wanted)?;
        self.refresh_attached(&record).await?;
        let claim = self.claim(record.id)?;
        let request = wanted.request;
        let (uuid, disks) = (vm.uuid, allowed.get().disks.clone());
        if let Some(row) = self.catalog(move |catalog| catalog.restore(uuid, request)).await? {
            if row.snapshot != record.id || !disks.iter().all(|disk| row.holds(&disk.serial)) {
                let text = format!("this request id was used before, to restore {}", row.snapshot);
                return Err(WireError::new(ErrorCode::RequestReused, text).hint("give a new one"));
            }
            let targets = self.targets_of(&row, &record)?;
            let done = plan(&record, &targets, row.safety);
            if !row.is_done {
                self.overwrite(&row, &record, targets, &claim, tell).await.map_err(Stopped::in_the_middle)?;
            }
            return Ok(done);
        }
        self.refuse_if_attached(&record).await?;
        let targets = self.targets(asker, allowed, wanted, &claim).await?;
        let safety = match wanted.safety {
            Safety::Snapshot => Some(self.keep_what_is_there(asker, vm, &record, wanted, &targets).await?),
            Safety::None => None,
        };
        let row = Row {
            vm: vm.uuid,
            request,
            snapshot: record.id,
            disks: targets.iter().map(|target| target.disk.serial.clone()).collect(),
            safety,
            others: target::others_of(asker),
            is_done: false,
        };
        let done = plan(&record, &targets, safety);
        self.commit(&row).await?;
        self.begin_to_overwrite(&row, &record, targets, &claim, tell).await?;
        Ok(done)
    }

    async fn snapshot_of(&self, vm: VmUuid, id: SnapshotId) -> Result<SnapshotRecord, WireError> {
        let scope = policy::read_as_admin(Some(vm));
        self.get(&scope, id.to_string().parse().expect("an identifier is a valid reference")).await
    }

    /// The safety snapshot. A repeat of the request finds the one that was taken.
    async fn keep_what_is_there(
        self: &Arc<Self>,
        asker: Asker,
        vm: &Vm,
        record: &SnapshotRecord,
        wanted: &Wanted,
        targets: &[Target],
    ) -> Result<SnapshotId, WireError> {
        let disks: Vec<_> = targets
            .iter()
            .map(|target| DiskRequest {
                serial: target.disk.serial.clone(),
                size_bytes: target.disk.size_bytes,
                fingerprint: Fingerprint::empty(),
            })
            .collect();
        let key: LabelKey = "hostsnap/before-restore-of".parse().expect("a valid key");
        let value: LabelValue = record.id.to_string().parse().expect("an identifier is a valid value");
        let note: Note =
            format!("what the disks held before the restore of {}", record.id).parse().expect("a valid note");
        let prepare = Prepare {
            request: safety_request(wanted.request),
            disks: disks.try_into().expect("no more than the snapshot has"),
            mounts: record.mounts.clone(),
            labels: Labels::try_from(std::collections::BTreeMap::from([(key, value)])).expect("one label"),
            note,
            minimum: Consistency::Crash,
            keep_for_s: None,
            lease_ms: 60_000,
            dry_run: false,
        };
        let freeze = if asker == Asker::Admin { Freeze::NoAgent } else { Freeze::NotAsked };
        let kept = match self.cut_unfrozen(vm, &prepare, freeze, Machine::IsQuiet).await {
            Ok(record) => self.until_whole(record.id).await,
            Err(error) => Err(error),
        };
        kept.map_err(|error| {
            let text = format!("nothing was restored: keep what the disks hold now: {}", error.message);
            let hint = format!("{}; or restore without it: --no-safety", error.hint);
            WireError::new(error.code, text).hint(hint.trim_start_matches("; "))
        })
    }

    /// One that an attempt before took, and that a start of the service picked up, may still settle.
    async fn until_whole(&self, id: SnapshotId) -> Result<SnapshotId, WireError> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let entry = self.catalog(move |catalog| catalog.get(id)).await?;
            let state = entry.ok_or_else(|| policy::not_found(&id.to_string()))?.record.state;
            match state {
                State::Ready => return Ok(id),
                State::Failed => {
                    let lost = format!("the storage lost the snapshot {id} before it was whole");
                    return Err(WireError::new(ErrorCode::StorageFailed, lost));
                }
                State::Settling if Instant::now() >= deadline => {
                    let late = format!("the snapshot {id} is not whole after {} s", SETTLE_LIMIT.as_secs());
                    return Err(WireError::new(ErrorCode::TimedOut, late));
                }
                State::Settling => tokio::time::sleep(SETTLE_POLL).await,
            }
        }
    }
}

fn safety_request(request: RequestId) -> RequestId {
    RequestId::from_uuid(Uuid::new_v5(request.as_uuid(), b"safety"))
}

fn safety_id(vm: VmUuid, request: RequestId) -> SnapshotId {
    SnapshotId::derive(vm, safety_request(request))
}

fn plan(record: &SnapshotRecord, targets: &[Target], safety: Option<SnapshotId>) -> RestorePlan {
    let disks: Vec<_> = targets.iter().map(Target::told).collect();
    RestorePlan {
        id: record.id,
        created_at: record.created_at,
        disks: BoundedVec::try_from(disks).expect("no more than the snapshot has"),
        safety,
    }
}
