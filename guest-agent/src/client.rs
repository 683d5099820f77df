//! The conversation with the host, from the guest's side: blocking, with a limit on every wait.
//!
//! | module | idea |
//! |---|---|
//! | `address` | where the host is, and how it is connected to |
//! | `wire` | frames over a socket, by a deadline; also the ones that are sent while frozen |
//! | `error` | why there was no answer, and whether asking again can help |

mod address;
mod error;
mod wire;

use std::fs;
use std::time::{Duration, Instant};

use protocol::attach::{Attach, Attachment, DetachOutcome};
use protocol::message::{
    Conclude, CutDone, DeleteOutcome, DiskAbilities, DiskInfo, Hello, List, Page, Planned, Prepare, Prepared,
    Progress, Reply, Request, Welcome,
};
use protocol::restore::{Restore, RestorePlan};
use protocol::text::{Name, SnapshotRef};
use protocol::{ErrorCode, SnapshotId, SnapshotRecord, Ticket, VERSIONS, WireError};

pub use address::HostAddress;
pub use error::ClientError;
use error::kind;
pub use wire::{Socket, Wire, WireFailure};

/// How long the host may take for what.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To be reached and to greet.
    pub connect: Duration,
    /// An ordinary answer.
    pub answer: Duration,
    /// `Prepared`: the host does all its slow work then, and others may be first.
    pub prepare: Duration,
    /// The cut, counted from the freeze's end: only to learn what became of it.
    pub late_cut: Duration,
    /// The acknowledgement that we give up. The host gives up by itself as well.
    pub abort: Duration,
    /// Its silence while a snapshot settles.
    pub settle_silence: Duration,
    /// How long after it was lost the same request is repeated: it may be restarting.
    pub lost: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(30),
            prepare: Duration::from_secs(120),
            late_cut: Duration::from_secs(60),
            abort: Duration::from_secs(5),
            settle_silence: Duration::from_secs(600),
            lost: Duration::from_secs(60),
        }
    }
}

/// An open conversation.
pub struct Client {
    wire: Wire,
    limits: Limits,
    /// What the host said at the beginning.
    pub welcome: Welcome,
}

impl Client {
    /// Connects and greets.
    pub fn connect(address: &HostAddress, limits: Limits) -> Result<Self, ClientError> {
        let deadline = Instant::now() + limits.connect;
        let mut wire = Wire::new(address.connect(deadline).map_err(ClientError::NotConnected)?);
        let hello = Request::Hello(Hello {
            versions: VERSIONS,
            agent_version: own_version(),
            boot_id: read_id("/proc/sys/kernel/random/boot_id"),
            vm_uuid: read_id("/sys/class/dmi/id/product_uuid"),
        });
        wire.send(&hello, deadline)?;
        let welcome = match receive(&mut wire, deadline)? {
            Reply::Hello(welcome) => welcome,
            other => return Err(unexpected("Hello", &other)),
        };
        if !(VERSIONS.min..=VERSIONS.max).contains(&welcome.version) {
            return Err(ClientError::NotConnected(
                WireError::new(
                    ErrorCode::UnsupportedVersion,
                    format!(
                        "the host speaks version {} of the protocol, this program {} to {}",
                        welcome.version, VERSIONS.min, VERSIONS.max
                    ),
                )
                .hint("update the older side"),
            ));
        }
        Ok(Self { wire, limits, welcome })
    }

    /// The disks that the host knows.
    pub fn disks(&mut self) -> Result<Vec<DiskInfo>, ClientError> {
        match self.ask(&Request::Disks, self.limits.answer)? {
            Reply::Disks(disks) => Ok(disks.into_inner()),
            other => Err(unexpected("Disks", &other)),
        }
    }

    /// Asks for everything that comes before the cut.
    pub fn prepare(&mut self, prepare: Prepare) -> Result<Readiness, ClientError> {
        let dry_run = prepare.dry_run;
        match self.ask(&Request::Prepare(prepare), self.limits.prepare)? {
            Reply::Prepared(prepared) if !dry_run => Ok(Readiness::Ready(prepared)),
            Reply::Planned(planned) if dry_run => Ok(Readiness::Planned(planned)),
            Reply::Existing(record) => Ok(Readiness::Existing(record)),
            other => Err(unexpected("Prepare", &other)),
        }
    }

    /// How long the host may take.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// For the moments in which nothing may be allocated.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Reads the answer to `Cut`, which the wire has received already.
    pub fn cut_done(&mut self, ticket: Ticket) -> Result<CutDone, ClientError> {
        match self.wire.take()? {
            Reply::CutDone(done) if done.ticket == ticket => Ok(done),
            Reply::Error(error) => Err(ClientError::Told(error)),
            Reply::CutDone(_) => Err(ClientError::Unexpected { request: "Cut", reply: "another's CutDone" }),
            other => Err(unexpected("Cut", &other)),
        }
    }

    /// Shows the host what was proved. The answer is [`Client::settled`]'s.
    pub fn conclude(&mut self, conclude: Conclude) -> Result<(), ClientError> {
        Ok(self.wire.send(&Request::Conclude(conclude), Instant::now() + self.limits.answer)?)
    }

    /// Waits for the answer to `Conclude`: until the snapshot is durable, if that asked to wait.
    pub fn settled(&mut self, tell: &mut dyn FnMut(Progress)) -> Result<Box<SnapshotRecord>, ClientError> {
        loop {
            match receive(&mut self.wire, Instant::now() + self.limits.settle_silence)? {
                Reply::Progress(progress) => tell(progress),
                Reply::Snapshot(record) => return Ok(record),
                other => return Err(unexpected("Conclude", &other)),
            }
        }
    }

    /// Gives up before the cut.
    pub fn abort(&mut self, ticket: Ticket) -> Result<(), ClientError> {
        match self.ask(&Request::Abort(ticket), self.limits.abort)? {
            Reply::Aborted => Ok(()),
            other => Err(unexpected("Abort", &other)),
        }
    }

    /// A page of snapshots.
    pub fn list(&mut self, list: List) -> Result<Page, ClientError> {
        match self.ask(&Request::List(list), self.limits.answer)? {
            Reply::Snapshots(page) => Ok(page),
            other => Err(unexpected("List", &other)),
        }
    }

    /// One snapshot.
    pub fn get(&mut self, reference: SnapshotRef) -> Result<Box<SnapshotRecord>, ClientError> {
        match self.ask(&Request::Get(reference), self.limits.answer)? {
            Reply::Snapshot(record) => Ok(record),
            other => Err(unexpected("Get", &other)),
        }
    }

    /// Removes a snapshot.
    pub fn delete(&mut self, id: SnapshotId) -> Result<DeleteOutcome, ClientError> {
        match self.ask(&Request::Delete(id), self.limits.prepare)? {
            Reply::Deleted(outcome) => Ok(outcome),
            other => Err(unexpected("Delete", &other)),
        }
    }

    /// What the storage of each disk can do. A host that is older than this question does not say.
    pub fn abilities(&mut self) -> Result<Option<Vec<DiskAbilities>>, ClientError> {
        match self.ask(&Request::Abilities, self.limits.prepare) {
            Ok(Reply::Abilities(disks)) => Ok(Some(disks.into_inner())),
            Ok(other) => Err(unexpected("Abilities", &other)),
            Err(ClientError::Told(error)) if error.code == ErrorCode::Malformed => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Plugs a snapshot's disks into this machine: those that were asked for, by the host's word.
    pub fn attach(&mut self, attach: Attach) -> Result<Vec<Attachment>, ClientError> {
        match self.ask(&Request::Attach(attach), self.limits.prepare)? {
            Reply::Attached(attached) => Ok(attached.into_inner()),
            other => Err(unexpected("Attach", &other)),
        }
    }

    /// Takes a snapshot's disks out of this machine.
    pub fn detach(&mut self, id: SnapshotId) -> Result<DetachOutcome, ClientError> {
        match self.ask(&Request::Detach(id), self.limits.prepare)? {
            Reply::Detached(outcome) => Ok(outcome),
            other => Err(unexpected("Detach", &other)),
        }
    }

    /// What is attached, of all snapshots.
    pub fn attachments(&mut self) -> Result<Vec<Attachment>, ClientError> {
        match self.ask(&Request::Attachments, self.limits.answer)? {
            Reply::Attached(attached) => Ok(attached.into_inner()),
            other => Err(unexpected("Attachments", &other)),
        }
    }

    /// Gives disks the bytes of a snapshot, or says what that would do. Waits as long as the host tells how far it is.
    pub fn restore(
        &mut self,
        wanted: Restore,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<RestorePlan, ClientError> {
        let dry_run = wanted.dry_run;
        self.wire.send(&Request::Restore(wanted), Instant::now() + self.limits.answer)?;
        loop {
            match receive(&mut self.wire, Instant::now() + self.limits.prepare)? {
                Reply::Progress(progress) => tell(progress),
                Reply::RestorePlanned(plan) if dry_run => return Ok(plan),
                Reply::Restored(plan) if !dry_run => return Ok(plan),
                other => return Err(unexpected("Restore", &other)),
            }
        }
    }

    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + limit;
        self.wire.send(request, deadline)?;
        receive(&mut self.wire, deadline)
    }
}

/// What came of `Prepare`.
#[derive(Debug)]
pub enum Readiness {
    /// The cut may be asked for.
    Ready(Prepared),
    /// It was a dry run: what would be done.
    Planned(Planned),
    /// The request was answered before: that is its snapshot.
    Existing(Box<SnapshotRecord>),
}

/// An answer; the host's error is ours.
fn receive(wire: &mut Wire, deadline: Instant) -> Result<Reply, ClientError> {
    match wire.receive(deadline)? {
        Reply::Error(error) => Err(ClientError::Told(error)),
        reply => Ok(reply),
    }
}

fn unexpected(request: &'static str, reply: &Reply) -> ClientError {
    ClientError::Unexpected { request, reply: kind(reply) }
}

/// This program's version.
pub fn own_version() -> Name {
    env!("CARGO_PKG_VERSION").parse().expect("a version is a valid name")
}

fn read_id<T: std::str::FromStr>(path: &str) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
