//! The AF_VSOCK listener: what production uses. The host's kernel reports each peer's CID and
//! source port.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

use super::{Connections, converse, identity, turn_away};
use crate::audit::{Decision, Event};
use crate::service::Service;
use crate::session::Peer;

/// A socket that guests connect to.
pub struct Vsock(VsockListener);

impl Vsock {
    /// Binds the port on every transport of this host.
    pub fn bind(port: u32) -> io::Result<Self> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map(Self)
    }

    /// Takes over a listening socket from the service manager.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(VsockListener::from(fd))
    }

    pub(super) async fn accept_all(self, service: Arc<Service>, open: Connections) {
        loop {
            let (stream, addr) = match self.0.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: others end, then it goes on.
                    tracing::error!("accept a vsock connection: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let via = format!("vsock:{}:{}", addr.cid(), addr.port());
            let world = service.world();
            match identity::of_vsock(&world.config, addr.cid(), addr.port()) {
                Ok(vm) => converse(&service, &open, Peer { vm: vm.uuid, via }, stream),
                Err(error) => {
                    service.audit().note(&Event {
                        verb: "connect",
                        vm: None,
                        vm_uuid: None,
                        peer: &via,
                        disks: Vec::new(),
                        snapshot: None,
                        decision: Decision::of(error.code),
                        error: Some(&error),
                        took: Instant::now().elapsed(),
                    });
                    turn_away(stream, error);
                }
            }
        }
    }
}
