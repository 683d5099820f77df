//! A machine whose guest asks for a snapshot while it is moved to another host, or saved. From some moment of the move on
//! the other host's QEMU has its disks, and what this host cuts is not what they held. So it is looked at twice, never while
//! its guest is frozen: before all else, and right after the cut. A cut after which the machine is still here was of its disks.

use std::sync::Arc;
use std::time::Duration;

use protocol::{ErrorCode, WireError};
use tokio::task::JoinHandle;

use super::{Service, errors};
use crate::config::Vm;
use crate::drivers::DriverError;
use crate::vmm::monitor::Monitor;
use crate::vmm::pause::{self, RunState};

/// How long whoever knows may take to say how a machine is. A guest waits meanwhile, not frozen.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// A look that somebody takes while others go on.
pub(super) struct Look(JoinHandle<Result<RunState, DriverError>>);

impl Service {
    /// Refuses while the machine is on its way. Gives whom to ask once more; nobody, where the answer is of no use: a monitor
    /// that fails, or that knows of no machine although its guest talks to us.
    pub(super) async fn refuse_if_moving(&self, vm: &Vm) -> Result<Option<Monitor>, WireError> {
        let Some(monitor) = vm.monitor() else { return Ok(None) };
        match self.ask(&monitor, DOING, LOOK_LIMIT, pause::state).await {
            Ok(RunState::Moving) => Err(is_moving(vm)),
            Ok(RunState::Runs | RunState::Paused | RunState::Other(_)) => Ok(Some(monitor)),
            Ok(RunState::Gone) => Ok(None),
            Err(error) => {
                tracing::warn!(vm = %vm.name, "nobody says whether it is being moved: {}", errors::chain(&error));
                Ok(None)
            }
        }
    }

    /// Looks whether the machine is still here.
    pub(super) fn look_whether_here(self: &Arc<Self>, monitor: Monitor) -> Look {
        let service = Arc::clone(self);
        Look(tokio::spawn(async move { service.ask(&monitor, DOING, LOOK_LIMIT, pause::state).await }))
    }
}

const DOING: &str = "ask the machine whether it runs";

impl Look {
    /// Whether the machine was here. One that does not answer any more is where it was before, as far as anybody can tell.
    pub(super) async fn was_here(self) -> bool {
        !matches!(self.0.await, Ok(Ok(RunState::Moving | RunState::Gone)))
    }
}

/// Refused before anything was done.
pub(super) fn is_moving(vm: &Vm) -> WireError {
    WireError::new(ErrorCode::Busy, format!("{} is being moved to or from another host, or saved", vm.name))
        .hint("nothing was cut; try again when it runs, on the host that it is on then")
}

/// Given up after the cut.
pub(super) fn has_moved(vm: &str) -> WireError {
    let text = format!(
        "{vm} was being moved to another host, or stopped, at the moment of the cut, and the snapshot was not kept"
    );
    WireError::new(ErrorCode::Busy, text).hint("try again when it runs, on the host that it is on then")
}
