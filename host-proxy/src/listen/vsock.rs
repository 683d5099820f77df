//! The AF_VSOCK listener: what production uses. The host's kernel reports each peer's CID and
//! source port.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use protocol::{ErrorCode, WireError};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use super::{Connections, converse, identity, turn_away};
use crate::audit::{Decision, Event};
use crate::config::PeerId;
use crate::service::Service;
use crate::session::Peer;

/// How many connections may wait for what libvirt says of them; a look is the same for all.
const MAX_LOOKING: usize = 64;

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
        let looking = Arc::new(Semaphore::new(MAX_LOOKING));
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
            if !is_only_libvirts(&service, addr.cid()) {
                admit(&service, &open, addr, via, stream, Ok(()));
                continue;
            }
            let (service, open) = (Arc::clone(&service), open.clone());
            let Ok(waiting) = Arc::clone(&looking).try_acquire_owned() else {
                let error = WireError::new(ErrorCode::Busy, "too many connections wait for libvirt's word");
                admit(&service, &open, addr, via, stream, Err(error.hint("try again in a moment")));
                continue;
            };
            tokio::spawn(async move {
                let looked = service.look_at_machines(Instant::now()).await;
                drop(waiting);
                admit(&service, &open, addr, via, stream, looked);
            });
        }
    }
}

/// Whether only libvirt can tell whose CID it is. It may be another machine's by now than it was at the last look.
fn is_only_libvirts(service: &Service, cid: u32) -> bool {
    let config = &service.world().config;
    let is_of_the_file = config.vms.iter().any(|vm| !vm.is_discovered && vm.peer == PeerId::Cid(cid));
    config.service.discover.is_some() && !is_of_the_file
}

/// Converses with whoever came, or says why not.
fn admit(
    service: &Arc<Service>,
    open: &Connections,
    addr: VsockAddr,
    via: String,
    stream: VsockStream,
    looked: Result<(), WireError>,
) {
    let world = service.world();
    match looked.and_then(|()| identity::of_vsock(&world.config, addr.cid(), addr.port())) {
        Ok(vm) => converse(service, open, Peer { vm: vm.uuid, via }, stream),
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
                took: Duration::ZERO,
            });
            turn_away(stream, error);
        }
    }
}
