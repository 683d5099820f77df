//! Where guests come in: AF_VSOCK and hybrid Unix sockets, both at once. Who comes is decided here,
//! from what the host's kernel says; what they want is the session's business.
//!
//! | module | idea |
//! |---|---|
//! | `identity` | from a CID and a port to a virtual machine, pure |
//! | `vsock` | the AF_VSOCK listener |
//! | `hybrid` | one Unix socket per virtual machine |

mod hybrid;
mod identity;
mod vsock;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use protocol::message::Reply;
use protocol::{ErrorCode, VmUuid, WireError};
use tokio::task::JoinHandle;

pub use vsock::Vsock;

use crate::config::{Config, PeerId};
use crate::service::Service;
use crate::session::{self, Peer};
use crate::transport::{self, Stream};

/// All places where guests come in.
pub struct Listeners {
    service: Arc<Service>,
    open: Connections,
    hybrid: HashMap<(VmUuid, PathBuf), JoinHandle<()>>,
    vsock: Option<JoinHandle<()>>,
}

impl Listeners {
    /// Nothing is listened on yet.
    pub fn new(service: Arc<Service>) -> Self {
        Self { service, open: Connections::default(), hybrid: HashMap::new(), vsock: None }
    }

    /// Listens on AF_VSOCK from now on.
    pub fn add_vsock(&mut self, listener: Vsock) {
        let (service, open) = (Arc::clone(&self.service), self.open.clone());
        self.vsock = Some(tokio::spawn(listener.accept_all(service, open)));
    }

    /// Listens on the Unix sockets of exactly those machines that this configuration gives one.
    /// Conversations that are open go on.
    pub fn follow(&mut self, config: &Config) {
        let wanted: HashMap<(VmUuid, PathBuf), usize> = config
            .vms
            .iter()
            .filter_map(|vm| match &vm.peer {
                PeerId::Socket(path) => Some(((vm.uuid, path.clone()), 0)),
                PeerId::Cid(_) | PeerId::Nobody => None,
            })
            .collect();
        self.hybrid.retain(|key, task| {
            let keep = wanted.contains_key(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for (vm, path) in wanted.into_keys() {
            let (service, open) = (Arc::clone(&self.service), self.open.clone());
            self.hybrid
                .entry((vm, path.clone()))
                .or_insert_with(|| tokio::spawn(hybrid::accept_all(service, open, vm, path)));
        }
    }

    /// Takes no new connections; waits until the open conversations are over.
    pub async fn close(&mut self) {
        for task in self.hybrid.drain().map(|(_, task)| task).chain(self.vsock.take()) {
            task.abort();
        }
        while self.open.any() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

/// How many connections each virtual machine has.
#[derive(Clone, Default)]
struct Connections(Arc<Mutex<HashMap<VmUuid, usize>>>);

/// One connection, counted as long as this lives.
struct Counted {
    vm: VmUuid,
    connections: Connections,
}

impl Connections {
    fn count(&self, vm: VmUuid, limit: usize) -> Option<Counted> {
        let mut counts = self.0.lock().expect("no holder of this lock panics");
        let count = counts.entry(vm).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Counted { vm, connections: self.clone() })
    }

    fn any(&self) -> bool {
        !self.0.lock().expect("no holder of this lock panics").is_empty()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.connections.0.lock().expect("no holder of this lock panics");
        if let Some(count) = counts.get_mut(&self.vm) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.vm);
            }
        }
    }
}

/// Begins the conversation with a peer, unless it has too many.
fn converse(service: &Arc<Service>, open: &Connections, peer: Peer, stream: impl Stream + 'static) {
    let limit = service.world().config.service.max_connections_per_vm;
    match open.count(peer.vm, limit) {
        Some(counted) => {
            let service = Arc::clone(service);
            tokio::spawn(async move {
                session::run(service, peer, stream).await;
                drop(counted);
            });
        }
        None => turn_away(
            stream,
            WireError::new(
                ErrorCode::TooManySessions,
                format!("this virtual machine has {limit} connections open, as many as are allowed"),
            )
            .hint("close one, or wait for one to end"),
        ),
    }
}

/// Tells a peer why it is not listened to.
fn turn_away(mut stream: impl Stream + 'static, error: WireError) {
    tokio::spawn(async move {
        // Whoever does not listen is not told.
        let _ = transport::send(&mut stream, &Reply::Error(error)).await;
    });
}

#[cfg(test)]
mod tests {
    use protocol::VmUuid;

    use super::Connections;

    #[test]
    fn one_machine_cannot_use_up_the_connections_of_another() {
        let open = Connections::default();
        let [a, b] = [1, 2].map(|n| VmUuid::from_uuid(uuid::Uuid::from_u128(n)));
        let first = open.count(a, 1).unwrap();
        assert!(open.count(a, 1).is_none());
        assert!(open.count(b, 1).is_some());
        drop(first);
        assert!(open.count(a, 1).is_some());
        assert!(!open.any());
    }
}
