//! A cut of several disks that are to be of one instant, where neither a freeze nor the storage makes them so: the
//! machine stands still meanwhile. It is let go on on every path, by whoever serves next if need be.

use std::time::Duration;

use protocol::{ErrorCode, WireError};
use tokio::time::Instant;

use super::moves::is_moving;
use super::operation::{CutOperation, Operation};
use super::{Service, errors};
use crate::catalog::Pause;
use crate::config::Vm;
use crate::drivers::{DriverError, Kind};
use crate::vmm::monitor::{Monitor, MonitorError};
use crate::vmm::pause::{self, RunState};

/// How long a machine stands still at most, but for what its own QEMU takes to stop and to go on.
const STAND_STILL_LIMIT: Duration = Duration::from_secs(10);
/// How long QEMU may take to stop: it finishes and flushes what its guest has asked for.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long whoever is asked may take for what is not slow, all its calls together.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// How often a machine is asked to go on before that is left to `tend`.
const ATTEMPTS: usize = 3;
/// More than may ever be paused at once: see [`Service::let_go`].
pub(super) const ALL: u32 = 1024;

impl Service {
    /// Cuts while the machine stands still.
    pub(super) async fn cut_standing_still(
        &self,
        vm: &Vm,
        monitor: Monitor,
        operation: Operation,
    ) -> Result<CutOperation, WireError> {
        let _turn = self.turns.of(vm.uuid).await;
        let Ok(_open) = self.pauses.acquire().await else {
            operation.abandon().await;
            return Err(WireError::new(ErrorCode::Unavailable, "the host's service is stopping"));
        };
        match self.ask(&monitor, "ask the machine whether it runs", ASK_LIMIT, pause::state).await {
            Ok(RunState::Runs) => self.cut_paused(vm, monitor, operation).await,
            Ok(RunState::Paused) => self.cut_as_paused_by_others(&monitor, operation).await,
            Ok(RunState::Moving) => {
                operation.abandon().await;
                Err(is_moving(vm))
            }
            // Nobody says that it stands still, or is to.
            Ok(RunState::Other(_) | RunState::Gone) => {
                let lease = operation.lease_left();
                operation.cut(lease).await
            }
            Err(error) => {
                operation.abandon().await;
                Err(told(vm, "ask the machine whether it runs", &error))
            }
        }
    }

    async fn cut_paused(
        &self,
        vm: &Vm,
        monitor: Monitor,
        operation: Operation,
    ) -> Result<CutOperation, WireError> {
        let doing = "pause the machine";
        let pause = Pause { vm: vm.uuid, monitor };
        let intent = pause.clone();
        if let Err(error) = self.catalog(move |catalog| catalog.enter_pause(&intent)).await {
            operation.abandon().await;
            return Err(error);
        }
        let began = Instant::now();
        let stop = |monitor: &Monitor| pause::stop(monitor, STOP_LIMIT);
        if let Err(error) = self.ask(&pause.monitor, doing, ASK_LIMIT, stop).await {
            // It may stop yet: whoever tends asks once more.
            if self.end_pause(&pause).await == Some(RunState::Paused) {
                self.forget_pause(&pause).await;
            }
            operation.abandon().await;
            return Err(told(vm, doing, &error));
        }
        let cut = operation.cut(STAND_STILL_LIMIT);
        tokio::pin!(cut);
        // A cut that hangs does not hold the machine: then its disks are not of one instant.
        let (cut, was, through_the_cut) = tokio::select! {
            cut = &mut cut => (cut, self.end_pause(&pause).await, true),
            () = tokio::time::sleep(STAND_STILL_LIMIT) => {
                let was = self.end_pause(&pause).await;
                (cut.await, was, false)
            }
        };
        let stood_still_ms = began.elapsed().as_millis();
        // Else asked again, and forgotten then, by whoever tends.
        if was.is_some() {
            self.forget_pause(&pause).await;
        }
        let by_us = format!(
            "the machine was paused for {stood_still_ms} ms meanwhile, which makes one instant of all its disks"
        );
        Ok(cut?.stood_still((through_the_cut && was == Some(RunState::Paused)).then_some(by_us)))
    }

    /// It stays paused: whoever paused it has a reason.
    async fn cut_as_paused_by_others(
        &self,
        monitor: &Monitor,
        operation: Operation,
    ) -> Result<CutOperation, WireError> {
        let lease = operation.lease_left();
        let cut = operation.cut(lease).await?;
        let after = self.ask(monitor, "ask the machine whether it runs", ASK_LIMIT, pause::state).await;
        let by_others = "somebody else had paused the machine, which makes one instant of all its disks";
        let is_still = matches!(after, Ok(RunState::Paused));
        Ok(cut.stood_still(is_still.then(|| by_others.to_owned())))
    }

    /// Cuts a machine that is not to be paused, unless it is on its way between two hosts: then the other may be writing to
    /// its disks, and this one see them as they were.
    pub(super) async fn cut_where_it_is(
        &self,
        vm: &Vm,
        monitor: &Monitor,
        operation: Operation,
    ) -> Result<CutOperation, WireError> {
        // One that does not answer may be stopped, and one disk by itself is of one instant whatever it does.
        let state = self.ask(monitor, "ask the machine whether it runs", ASK_LIMIT, pause::state).await;
        if matches!(state, Ok(RunState::Moving)) {
            operation.abandon().await;
            return Err(is_moving(vm));
        }
        let lease = operation.lease_left();
        operation.cut(lease).await
    }

    /// Lets a machine go on; what it was then. `None` if it could not be asked.
    async fn end_pause(&self, pause: &Pause) -> Option<RunState> {
        for _ in 0..ATTEMPTS {
            match self.ask(&pause.monitor, "let the machine go on", ASK_LIMIT, pause::go_on).await {
                Ok(was) => {
                    if matches!(was, RunState::Gone | RunState::Moving) {
                        tracing::warn!(
                            vm = %pause.vm,
                            "it was paused for a snapshot, and is not as it was; if it moved to another host meanwhile, it \
                             may be paused there: virsh resume"
                        );
                    }
                    return Some(was);
                }
                Err(error) => tracing::error!(vm = %pause.vm, "let it go on: {}", errors::chain(&error)),
            }
        }
        tracing::error!(vm = %pause.vm, "the machine may be paused still; it is asked again once a minute");
        None
    }

    async fn forget_pause(&self, pause: &Pause) {
        let vm = pause.vm;
        // What can't be forgotten now is looked at again by whoever tends; the failure is in the log.
        let _ = self.catalog(move |catalog| catalog.forget_pause(vm)).await;
    }

    /// Lets go on what a killed service had paused, and what could not be asked.
    pub(super) async fn end_pauses(&self) {
        let pauses = self.catalog(|catalog| catalog.pauses()).await.unwrap_or_default();
        for known in pauses {
            let _turn = self.turns.of(known.vm).await;
            // Whoever had the turn may have ended it.
            let now = self.catalog(|catalog| catalog.pauses()).await.unwrap_or_default();
            if !now.contains(&known) {
                continue;
            }
            if let Some(was) = self.end_pause(&known).await {
                if was == RunState::Paused {
                    tracing::warn!(vm = %known.vm, "let go on: it had been paused for a snapshot");
                }
                self.forget_pause(&known).await;
            }
        }
    }

    /// The service stops: nothing is paused any more, and what is goes on first.
    pub async fn let_go(&self, limit: Duration) {
        let all = tokio::time::timeout(limit, self.pauses.acquire_many(ALL)).await;
        self.pauses.close();
        if all.is_err() {
            self.end_pauses().await;
        }
    }

    /// Asks a machine's monitor something, where that may block.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        monitor: &Monitor,
        doing: &str,
        limit: Duration,
        call: impl FnOnce(&Monitor) -> Result<T, MonitorError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let (monitor, called) = (monitor.clone(), doing.to_owned());
        let call = move || call(&monitor).map_err(|error| of_monitor(called, error));
        self.workers.bounded(doing, limit, call, drop).await
    }
}

fn of_monitor(doing: String, error: MonitorError) -> DriverError {
    let kind = match &error {
        MonitorError::Qmp(error) => Kind::from(error),
        MonitorError::Libvirt(error) => errors::kind_of_libvirt(error),
    };
    DriverError { source: Some(Box::new(error)), ..DriverError::new(kind, doing) }
}

fn told(vm: &Vm, doing: &str, error: &DriverError) -> WireError {
    tracing::error!(vm = %vm.name, "{}", errors::chain(error));
    let code = match error.kind {
        Kind::DeadlinePassed => ErrorCode::TimedOut,
        Kind::Busy => ErrorCode::Busy,
        _ => ErrorCode::Unavailable,
    };
    WireError::new(code, format!("{doing}: {} does not do it", vm.name))
        .hint("nothing was cut; the log says why: journalctl -u hostsnapd")
}
