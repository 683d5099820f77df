//! The conversation with the host, from the guest's side: blocking, with a limit on every wait.
//!
//! | module | idea |
//! |---|---|
//! | `address` | where the host is, and how it is connected to |
//! | `wire` | frames over a socket, by a deadline; also the ones that are sent while frozen |

mod address;
mod wire;

use std::fs;
use std::time::{Duration, Instant};

use protocol::message::{
    Conclude, DeleteOutcome, DiskInfo, Hello, List, Page, Prepare, Progress, Reply, Request, Welcome,
};
use protocol::text::{Name, SnapshotRef};
use protocol::{ErrorCode, SnapshotId, SnapshotRecord, Ticket, VERSIONS, WireError};

pub use address::HostAddress;
pub use wire::{Wire, WireFailure};

/// How long the host may take to be reached and to greet.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long an ordinary answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long `Prepared` may take: the host does all its slow work then, and others may be first.
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// How long the host may be silent while a snapshot settles.
const SETTLE_SILENCE: Duration = Duration::from_secs(600);

/// An open conversation.
pub struct Client {
    wire: Wire,
    /// What the host said at the beginning.
    pub welcome: Welcome,
}

impl Client {
    /// Connects and greets.
    pub fn connect(address: &HostAddress) -> Result<Self, WireError> {
        let deadline = Instant::now() + CONNECT_LIMIT;
        let mut wire = Wire::new(address.connect(deadline)?);
        let hello = Request::Hello(Hello {
            versions: VERSIONS,
            agent_version: own_version(),
            boot_id: read_id("/proc/sys/kernel/random/boot_id"),
            vm_uuid: read_id("/sys/class/dmi/id/product_uuid"),
        });
        wire.send(&hello, deadline).map_err(lost)?;
        match receive(&mut wire, deadline)? {
            Reply::Hello(welcome) => Ok(Self { wire, welcome }),
            other => Err(unexpected(&other)),
        }
    }

    /// The disks that the host knows.
    pub fn disks(&mut self) -> Result<Vec<DiskInfo>, WireError> {
        match self.ask(&Request::Disks, ANSWER_LIMIT)? {
            Reply::Disks(disks) => Ok(disks.into_inner()),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for everything that comes before the cut.
    pub fn prepare(&mut self, prepare: Prepare) -> Result<Reply, WireError> {
        match self.ask(&Request::Prepare(prepare), PREPARE_LIMIT)? {
            reply @ (Reply::Prepared(_) | Reply::Planned(_) | Reply::Existing(_)) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// For the moments in which nothing may be allocated.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Shows the host what was proved; waits until the snapshot is durable if `conclude.wait`.
    pub fn conclude(
        &mut self,
        conclude: Conclude,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Box<SnapshotRecord>, WireError> {
        let mut reply = self.ask(&Request::Conclude(conclude), SETTLE_SILENCE)?;
        loop {
            match reply {
                Reply::Progress(progress) => tell(progress),
                Reply::Snapshot(record) => return Ok(record),
                other => return Err(unexpected(&other)),
            }
            reply = receive(&mut self.wire, Instant::now() + SETTLE_SILENCE)?;
        }
    }

    /// Gives up before the cut.
    pub fn abort(&mut self, ticket: Ticket) -> Result<(), WireError> {
        match self.ask(&Request::Abort(ticket), ANSWER_LIMIT)? {
            Reply::Aborted => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// A page of snapshots.
    pub fn list(&mut self, list: List) -> Result<Page, WireError> {
        match self.ask(&Request::List(list), ANSWER_LIMIT)? {
            Reply::Snapshots(page) => Ok(page),
            other => Err(unexpected(&other)),
        }
    }

    /// One snapshot.
    pub fn get(&mut self, reference: SnapshotRef) -> Result<Box<SnapshotRecord>, WireError> {
        match self.ask(&Request::Get(reference), ANSWER_LIMIT)? {
            Reply::Snapshot(record) => Ok(record),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes a snapshot.
    pub fn delete(&mut self, id: SnapshotId) -> Result<DeleteOutcome, WireError> {
        match self.ask(&Request::Delete(id), PREPARE_LIMIT)? {
            Reply::Deleted(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Reply, WireError> {
        let deadline = Instant::now() + limit;
        self.wire.send(request, deadline).map_err(lost)?;
        receive(&mut self.wire, deadline)
    }
}

/// An answer; the host's error is ours.
fn receive(wire: &mut Wire, deadline: Instant) -> Result<Reply, WireError> {
    match wire.receive(deadline).map_err(lost)? {
        Reply::Error(error) => Err(error),
        reply => Ok(reply),
    }
}

/// What a broken conversation is to a user.
pub fn lost(failure: WireFailure) -> WireError {
    let (code, hint) = match &failure {
        WireFailure::TimedOut => (ErrorCode::TimedOut, "the host's log says why: journalctl -u hostsnapd"),
        WireFailure::Closed | WireFailure::Io(_) => {
            (ErrorCode::Unreachable, "hostsnapd may have been restarted; try again")
        }
        WireFailure::Malformed(_) => {
            (ErrorCode::Malformed, "update hostsnap and hostsnapd to the same version")
        }
    };
    WireError::new(code, format!("the conversation with the host broke off: {failure}")).hint(hint)
}

fn unexpected(_: &Reply) -> WireError {
    WireError::new(ErrorCode::Malformed, "the host gave another answer than was asked for")
        .hint("update hostsnap and hostsnapd to the same version")
}

/// This program's version.
pub fn own_version() -> Name {
    env!("CARGO_PKG_VERSION").parse().expect("a version is a valid name")
}

fn read_id<T: std::str::FromStr>(path: &str) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
