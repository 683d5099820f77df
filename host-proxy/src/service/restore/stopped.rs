//! Whether a machine is stopped: the host may write to the disks only of one that is.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{ErrorCode, WireError};

use super::super::{Service, errors};
use crate::config::{PeerId, Vm};
use crate::vmm::libvirt;
use crate::vmm::monitor::Monitor;
use crate::vmm::pause::{self, RunState};

/// How long whoever knows may take to say whether a machine runs.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// How long a vsock device without a machine may take to close a connection.
const DEVICE_LIMIT: Duration = Duration::from_secs(2);

/// What is known of a machine.
enum Found {
    /// Its QEMU, or libvirt for it, says that it is there.
    Runs,
    /// Its vsock device takes connections here.
    IsReached(PathBuf),
    /// libvirt keeps its memory for its next start.
    IsSaved,
    Stopped,
}

impl Service {
    /// Refuses while it runs, or would go on with what it knows of its disks.
    pub(super) async fn refuse_if_it_runs(&self, vm: &Vm) -> Result<(), WireError> {
        let (monitor, peer) = (vm.monitor(), vm.peer.clone());
        let doing = format!("see whether {} runs", vm.name);
        let looked =
            self.workers.bounded(&doing, LOOK_LIMIT, move || look(monitor.as_ref(), &peer), drop).await;
        let (text, hint) = match looked {
            Ok(Found::Stopped) => return Ok(()),
            Ok(Found::IsReached(path)) => (
                format!("{} is running: its vsock device takes connections at {}", vm.name, path.display()),
                "stop it first, and whoever else listens there; or go back from inside, where the disk is no root disk: hostsnap restore",
            ),
            Ok(Found::Runs) => (
                format!("{} is running", vm.name),
                "stop it first; or go back from inside, where the disk is no root disk: hostsnap restore",
            ),
            // Its guest would go on with what it knows of the disk as it is now, and destroy it.
            Ok(Found::IsSaved) => (
                format!("{} is saved, and would go on at its next start with the disk as it is now", vm.name),
                "start it and shut it down; or give its memory up: virsh managedsave-remove",
            ),
            Err(error) => return Err(errors::of_driver(vm.name.as_str(), &doing, &error)),
        };
        Err(WireError::new(ErrorCode::Busy, text).hint(hint))
    }
}

/// Asks all that know. What none of them shows, the image's lock does.
fn look(monitor: Option<&Monitor>, peer: &PeerId) -> Result<Found, crate::drivers::DriverError> {
    let is_gone = |monitor| pause::state(monitor).is_ok_and(|state| state == RunState::Gone);
    Ok(match (monitor, peer) {
        (Some(monitor), _) if !is_gone(monitor) => Found::Runs,
        (_, PeerId::Socket(path)) if has_machine(path) => Found::IsReached(path.clone()),
        // A libvirt that can't say has been taken for a machine that runs.
        (Some(Monitor::Libvirt(domain)), _) if libvirt::is_saved(domain).unwrap_or(false) => Found::IsSaved,
        _ => Found::Stopped,
    })
}

/// Whether a hybrid vsock device has a machine: it waits for the word `CONNECT` then. One that outlived its machine and
/// waits for another closes what it accepts (`vhost-device-vsock`, `vhu_vsock_thread.rs`, `handle_event`).
fn has_machine(device: &Path) -> bool {
    let Ok(mut connection) = UnixStream::connect(device) else { return false };
    let is_closed = connection.set_read_timeout(Some(DEVICE_LIMIT)).and_then(|()| connection.read(&mut [0]));
    match is_closed {
        Ok(read) => read > 0,
        Err(error) => error.kind() != io::ErrorKind::ConnectionReset,
    }
}
