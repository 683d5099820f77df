//! The daemon: lets the host ask for a snapshot of this machine. It serves its own host only.
//!
//! It answers while file systems are frozen, too: the threads that hold conversations are all
//! started before the first; memory is locked; an answer touches no file.
//!
//! | module | idea |
//! |---|---|
//! | `state` | what it is doing, and one snapshot at a time |
//! | `conversation` | one conversation with the host |

mod conversation;
mod state;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use protocol::{ErrorCode, PORT, WireError};
use rustix::mm::{MlockAllFlags, mlockall};
use sd_notify::NotifyState;
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VMADDR_CID_LOCAL, VsockListener};

use crate::client::{Wire, WireFailure};
use crate::flow::Surroundings;
use state::State;

/// How many conversations are held at once: one that creates, others that ask how it is. Further
/// ones wait in the socket's backlog.
const CONVERSATIONS: usize = 4;
/// What a conversation needs of stack; all of it is locked in memory.
const STACK_BYTES: usize = 512 * 1024;

/// Where the daemon listens.
#[derive(Debug, Clone)]
pub enum Place {
    /// On vsock port 989.
    Vsock {
        /// Whether this machine itself counts as its host: for tests.
        allow_local: bool,
    },
    /// On a Unix socket.
    Unix(PathBuf),
}

impl Place {
    /// As the command line says it.
    pub fn new(socket: Option<PathBuf>, allow_local: bool) -> Self {
        socket.map_or(Self::Vsock { allow_local }, Self::Unix)
    }
}

/// Serves until it is killed. A flow that is running then first releases what it quiesced.
///
/// # Errors
/// When it can't listen, or has no threads.
pub fn serve(place: &Place, around: Surroundings) -> Result<(), WireError> {
    let cannot = |what: &str, error: io::Error| {
        WireError::new(ErrorCode::Unreachable, format!("{what} ({place:?}): {error}"))
            .hint("hostsnap doctor says what is missing; another daemon may be running")
    };
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        tracing::warn!("memory can't be locked ({error}): while frozen the daemon may not answer");
    }
    let listener = Listener::open(place).map_err(|error| cannot("listen for the host", error))?;
    let state = Arc::new(State::new(around));
    let listener = Arc::new(listener);
    let threads = (0..CONVERSATIONS)
        .map(|_| {
            let (state, listener) = (Arc::clone(&state), Arc::clone(&listener));
            thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn(move || end_at_a_panic(|| hold_conversations(&state, &listener)))
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(|error| cannot("start the threads that answer", error))?;
    ready();
    for thread in threads {
        let _ = thread.join();
    }
    unreachable!("the threads never end")
}

/// With a thread less, and what it held in an unknown state, the daemon would go on saying that it is busy.
/// The service manager starts it anew; what was quiesced is released by then, and the panic told.
fn end_at_a_panic(work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        std::process::exit(1);
    }
}

fn hold_conversations(state: &State, listener: &Listener) {
    loop {
        match listener.accept() {
            Ok(socket) => match conversation::hold(state, Wire::new(socket.into())) {
                Ok(()) | Err(WireFailure::Closed | WireFailure::TimedOut) => {}
                // Not while frozen: the log may be on what is frozen.
                Err(_) if state.is_frozen() => {}
                Err(failure) => tracing::warn!("the conversation with the host ended: {failure}"),
            },
            Err(error) => {
                if !state.is_frozen() {
                    tracing::warn!("a connection was not accepted: {error}");
                }
                // A lack of descriptors does not pass faster when it is asked for faster.
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

enum Listener {
    Vsock { listener: VsockListener, allow_local: bool },
    Unix(UnixListener),
}

impl Listener {
    fn open(place: &Place) -> io::Result<Self> {
        match place {
            Place::Vsock { allow_local } => {
                let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT)?;
                Ok(Self::Vsock { listener, allow_local: *allow_local })
            }
            Place::Unix(path) => {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                UnixListener::bind(path).map(Self::Unix)
            }
        }
    }

    /// The next connection of the host; whoever else connects is refused.
    fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Vsock { listener, allow_local } => {
                let (stream, peer) = listener.accept()?;
                match is_host(peer.cid(), *allow_local) {
                    true => Ok(stream.into()),
                    false => {
                        Err(io::Error::other(format!("it comes from CID {}, not from the host", peer.cid())))
                    }
                }
            }
            Self::Unix(listener) => listener.accept().map(|(stream, _)| stream.into()),
        }
    }
}

/// The kernel says who it is. Port numbers prove nothing: whoever relays for the host (a hybrid
/// vsock) takes any.
fn is_host(cid: u32, allow_local: bool) -> bool {
    cid == VMADDR_CID_HOST || (allow_local && cid == VMADDR_CID_LOCAL)
}

fn ready() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!("tell the service manager: {error}");
    }
    if let Some(limit) = sd_notify::watchdog_enabled() {
        thread::spawn(move || {
            loop {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                thread::sleep(limit / 3);
            }
        });
    }
    tracing::info!("ready");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_may_ask_and_this_machine_only_in_tests() {
        for (cid, allow_local, served) in
            [(2, false, true), (1, false, false), (1, true, true), (3, true, false), (0, true, false)]
        {
            assert_eq!(is_host(cid, allow_local), served, "{cid}");
        }
    }
}
