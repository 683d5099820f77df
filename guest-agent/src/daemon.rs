//! The daemon: lets the host ask for a snapshot of this machine. It serves its own host only, runs
//! the same flow as the command line, one at a time, and answers `Ping` and `Status` meanwhile, also
//! while file systems are frozen: all of its memory is locked, and its answers touch no file.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use protocol::agent::{AgentCreate, AgentPhase, AgentReply, AgentRequest, AgentStatus};
use protocol::{ErrorCode, PORT, SnapshotId, SnapshotRecord, VERSIONS, WireError};
use rustix::mm::{MlockAllFlags, mlockall};
use sd_notify::NotifyState;
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VMADDR_CID_LOCAL, VsockListener};

use crate::client::{Wire, WireFailure, own_version};
use crate::flow::{self, Options, Outcome, Surroundings, Told};

/// How long the host may be silent in a conversation.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// How many conversations may be open at once: one that creates, others that ask how it is.
const MOST_CONVERSATIONS: usize = 8;

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

/// What all conversations share.
struct Daemon {
    around: Surroundings,
    phase: AtomicU8,
    open: AtomicUsize,
    creating: Mutex<()>,
    last: Mutex<Option<SnapshotId>>,
    started: Instant,
}

/// Serves until it is killed. A flow that is running then is undone by the thaw keeper and by the
/// host.
pub fn serve(place: Place, around: Surroundings) -> Result<(), WireError> {
    let daemon = Arc::new(Daemon {
        around,
        phase: AtomicU8::new(0),
        open: AtomicUsize::new(0),
        creating: Mutex::new(()),
        last: Mutex::new(None),
        started: Instant::now(),
    });
    let listen = |error: io::Error| {
        WireError::new(ErrorCode::Unreachable, format!("listen for the host ({place:?}): {error}"))
            .hint("hostsnap doctor says what is missing; another daemon may be running")
    };
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        tracing::warn!("memory can't be locked ({error}): while frozen the daemon may not answer");
    }
    match &place {
        Place::Vsock { allow_local } => {
            let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT).map_err(listen)?;
            ready();
            loop {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        let is_host =
                            peer.cid() == VMADDR_CID_HOST || (*allow_local && peer.cid() == VMADDR_CID_LOCAL);
                        if is_host {
                            daemon.converse_in_a_thread(stream.into());
                        } else {
                            tracing::warn!(
                                "refused a connection from CID {}, which is not the host",
                                peer.cid()
                            );
                        }
                    }
                    Err(error) => pause_after(&error),
                }
            }
        }
        Place::Unix(path) => {
            let _ = std::fs::remove_file(path);
            let listener = UnixListener::bind(path).map_err(listen)?;
            ready();
            loop {
                match listener.accept() {
                    Ok((stream, _)) => daemon.converse_in_a_thread(stream.into()),
                    Err(error) => pause_after(&error),
                }
            }
        }
    }
}

fn ready() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!("tell the service manager: {error}");
    }
    if let Some(limit) = sd_notify::watchdog_enabled() {
        std::thread::spawn(move || {
            loop {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                std::thread::sleep(limit / 3);
            }
        });
    }
    tracing::info!("ready");
}

fn pause_after(error: &io::Error) {
    tracing::error!("accept a connection: {error}");
    std::thread::sleep(Duration::from_millis(200));
}

impl Daemon {
    fn converse_in_a_thread(self: &Arc<Self>, socket: OwnedFd) {
        if self.open.fetch_add(1, SeqCst) >= MOST_CONVERSATIONS {
            self.open.fetch_sub(1, SeqCst);
            return;
        }
        let daemon = Arc::clone(self);
        std::thread::spawn(move || {
            match daemon.converse(&mut Wire::new(socket.into())) {
                Ok(()) | Err(WireFailure::Closed | WireFailure::TimedOut) => {}
                // Not while frozen: the log may be on what is frozen.
                Err(failure) if daemon.phase() != AgentPhase::Frozen => {
                    tracing::warn!("the conversation with the host ended: {failure}");
                }
                Err(_) => {}
            }
            daemon.open.fetch_sub(1, SeqCst);
        });
    }

    fn converse(&self, wire: &mut Wire) -> Result<(), WireFailure> {
        let soon = || Instant::now() + IDLE_LIMIT;
        match wire.receive(soon())? {
            AgentRequest::Hello(theirs) => match VERSIONS.agree(theirs) {
                Some(version) => {
                    wire.send(&AgentReply::Hello { version, agent_version: own_version() }, soon())?;
                }
                None => {
                    let error = WireError::new(
                        ErrorCode::UnsupportedVersion,
                        format!(
                            "this agent speaks the protocol versions {} to {}, the host {} to {}",
                            VERSIONS.min, VERSIONS.max, theirs.min, theirs.max
                        ),
                    );
                    return wire.send(&AgentReply::Error(error), soon());
                }
            },
            _ => {
                let error = WireError::new(ErrorCode::OutOfOrder, "Hello comes first");
                return wire.send(&AgentReply::Error(error), soon());
            }
        }
        loop {
            let reply = match wire.receive(soon())? {
                AgentRequest::Hello(_) => {
                    AgentReply::Error(WireError::new(ErrorCode::OutOfOrder, "Hello was said before"))
                }
                AgentRequest::Ping(number) => AgentReply::Pong(number),
                AgentRequest::Status => AgentReply::Status(self.status()),
                AgentRequest::Create(create) => match self.create(create, wire) {
                    Ok(record) => AgentReply::Created(record),
                    Err(error) => AgentReply::Error(error),
                },
            };
            wire.send(&reply, soon())?;
        }
    }

    fn phase(&self) -> AgentPhase {
        match self.phase.load(SeqCst) {
            1 => AgentPhase::Preparing,
            2 => AgentPhase::Frozen,
            3 => AgentPhase::Settling,
            _ => AgentPhase::Idle,
        }
    }

    fn set_phase(&self, phase: AgentPhase) {
        let number = match phase {
            AgentPhase::Idle => 0,
            AgentPhase::Preparing => 1,
            AgentPhase::Frozen => 2,
            AgentPhase::Settling => 3,
        };
        self.phase.store(number, SeqCst);
    }

    fn status(&self) -> AgentStatus {
        AgentStatus {
            phase: self.phase(),
            last: *self.last.lock().expect("no holder of this lock panics"),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn create(&self, create: AgentCreate, wire: &mut Wire) -> Result<Box<SnapshotRecord>, WireError> {
        let Ok(_only_one) = self.creating.try_lock() else {
            return Err(WireError::new(ErrorCode::Busy, "the agent is taking a snapshot already")
                .hint("try again when it is done"));
        };
        let options = Options {
            paths: create.paths.iter().map(|path| path.as_str().into()).collect(),
            labels: create.labels,
            note: create.note,
            minimum: create.minimum,
            keep_for: create.keep_for_s.map(Duration::from_secs),
            // The guest's own limit on how long it lets itself be frozen.
            freeze_timeout: Duration::from_millis(create.freeze_timeout_ms.clamp(1, 60_000).into()),
            request: create.request,
            dry_run: false,
            wait: true,
        };
        let outcome = flow::create(&options, &self.around, &mut |told| match told {
            Told::Phase(phase) => self.set_phase(phase),
            Told::Progress(progress) => {
                // Whoever asked may have hung up; the snapshot goes on.
                let _ = wire.send(&AgentReply::Progress(progress), Instant::now() + Duration::from_secs(1));
            }
            Told::Retrying => tracing::warn!("the host was lost; asking again for the same request"),
        });
        self.set_phase(AgentPhase::Idle);
        match outcome? {
            Outcome::Snapshot(record) => {
                *self.last.lock().expect("no holder of this lock panics") = Some(record.id);
                Ok(record)
            }
            Outcome::Planned { .. } => unreachable!("no dry run was asked for"),
        }
    }
}
