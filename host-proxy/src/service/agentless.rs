//! A snapshot of a machine whose guest has no agent, or is not to be asked: the host cuts alone, as a power cut
//! would. Several disks that their storage does not cut at one instant are cut while the machine stands still.

use std::sync::Arc;
use std::time::Instant;

use protocol::agent::AgentCreate;
use protocol::evidence::Freeze;
use protocol::fingerprint::Fingerprint;
use protocol::message::{DiskRequest, Prepare};
use protocol::record::Timing;
use protocol::text::Line;
use protocol::{BoundedVec, Consistency, ErrorCode, Evidence, SnapshotRecord, WireError};

use super::{Outcome, Service};
use crate::audit::{Decision, Event};
use crate::config::Vm;
use crate::policy::Asker;

/// Why the host cuts alone.
#[derive(Debug)]
pub enum Alone {
    /// The guest's agent does not answer.
    NoAgent(WireError),
    /// It is not to be asked.
    NotAsked,
}

/// What becomes of the disks while they are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    /// It stands still meanwhile, where their storage does not cut them at one instant.
    MayWrite,
    /// It is stopped, or has let go of them.
    IsQuiet,
}

impl Alone {
    fn freeze(&self) -> Freeze {
        match self {
            Self::NoAgent(_) => Freeze::NoAgent,
            Self::NotAsked => Freeze::NotAsked,
        }
    }

    fn into_error(self) -> WireError {
        match self {
            Self::NoAgent(error) => error,
            Self::NotAsked => WireError::new(ErrorCode::BadRequest, "no agent is to be asked"),
        }
    }
}

impl Service {
    /// A snapshot of all disks of a machine without its guest: crash-consistent at best, and only if that is
    /// what was asked for.
    pub async fn create_without_agent(
        self: &Arc<Self>,
        vm: &Vm,
        create: AgentCreate,
        why: Alone,
    ) -> Result<Box<SnapshotRecord>, WireError> {
        let began = Instant::now();
        let outcome = self.cut_alone(vm, create, why).await;
        self.audit().note(&Event {
            verb: "create",
            vm: Some(&vm.name),
            vm_uuid: Some(vm.uuid),
            peer: "control",
            disks: vm.disks.iter().map(|disk| disk.serial.clone()).collect(),
            snapshot: outcome.as_ref().ok().map(|record| record.id),
            decision: outcome.as_ref().map_or_else(|error| Decision::of(error.code), |_| Decision::Done),
            error: outcome.as_ref().err(),
            took: began.elapsed(),
        });
        outcome
    }

    async fn cut_alone(
        self: &Arc<Self>,
        vm: &Vm,
        create: AgentCreate,
        why: Alone,
    ) -> Result<Box<SnapshotRecord>, WireError> {
        if create.minimum > Consistency::Crash {
            let hint = "without an agent the host can only cut as a power cut would: --consistency crash";
            return Err(WireError { hint: Line::lossy(hint), ..why.into_error() });
        }
        if !create.paths.is_empty() {
            return Err(WireError::new(
                ErrorCode::Unsupported,
                format!(
                    "{}, and without one the host does not know which disks hold a path",
                    why.into_error().message
                ),
            )
            .hint("leave the paths out to take all disks"));
        }
        let disks: Vec<_> = vm
            .disks
            .iter()
            .map(|disk| DiskRequest {
                serial: disk.serial.clone(),
                size_bytes: 0,
                fingerprint: Fingerprint::empty(),
            })
            .collect();
        let prepare = Prepare {
            request: create.request,
            disks: disks.try_into().expect("a machine has at most 64 disks"),
            mounts: BoundedVec::empty(),
            labels: create.labels,
            note: create.note,
            minimum: Consistency::Crash,
            keep_for_s: create.keep_for_s,
            lease_ms: 60_000,
            dry_run: false,
        };
        self.cut_unfrozen(vm, &prepare, why.freeze(), Machine::MayWrite).await
    }

    /// A snapshot for which nothing is frozen, for this reason; the guest's reading of the disks is not asked for.
    pub(super) async fn cut_unfrozen(
        self: &Arc<Self>,
        vm: &Vm,
        prepare: &Prepare,
        freeze: Freeze,
        machine: Machine,
    ) -> Result<Box<SnapshotRecord>, WireError> {
        let operation = match self.prepare(Asker::Admin, vm, prepare).await? {
            Outcome::Ready(operation) => operation,
            Outcome::Existing(record) => return Ok(record),
            Outcome::Planned(_) => unreachable!("no dry run was asked for"),
        };
        let evidence = Evidence { freeze, file_systems: BoundedVec::empty(), hooks: BoundedVec::empty() };
        let cut = match vm.monitor().filter(|_| machine == Machine::MayWrite) {
            Some(monitor) if operation.is_cut_apart() => {
                self.cut_standing_still(vm, monitor, *operation).await?
            }
            Some(monitor) => self.cut_where_it_is(vm, &monitor, *operation).await?,
            None => {
                let lease = operation.lease_left();
                operation.cut(lease).await?
            }
        };
        let settling = cut.conclude(Some((evidence, Timing::default()))).await?;
        settling.finish().await
    }
}
