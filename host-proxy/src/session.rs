//! One conversation with a guest: hostile from its first byte. It has at most one snapshot under
//! way, every wait has a limit, and however it ends nothing is left half done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::attach::{Attach, Attachment};
use protocol::bounded::TooMany;
use protocol::message::{Conclude, Cut, Hello, List, Prepare, Progress, Reply, Request, Welcome};
use protocol::restore::Restore;
use protocol::text::{Name, SnapshotRef};
use protocol::{
    BoundedVec, DiskSerial, ErrorCode, SnapshotId, SnapshotRecord, Ticket, VERSIONS, VmUuid, WireError,
};

use crate::audit::{Decision, Event};
use crate::config::Vm;
use crate::policy::{self, Asker};
use crate::service::{CutOperation, Operation, Outcome, RestoreStep, Service, SettleState, Settling};
use crate::transport::{self, Stream, TransportError};

/// How soon after connecting `Hello` must come.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// How long a conversation may be silent when nothing is under way.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// How long after the cut the guest may take to thaw and conclude.
const CONCLUDE_LIMIT: Duration = Duration::from_secs(60);
/// How often the guest hears of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// The longest that a guest hears nothing of a restore.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// What a refusal costs its asker, so that a guest that tries in a loop can't fill the audit log.
const REFUSAL_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end, by what the host itself knows.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The virtual machine.
    pub vm: VmUuid,
    /// How it came, for the log: `vsock:42:1023` or `unix:/run/vm/db1.vsock_989`.
    pub via: String,
}

/// What is under way in a conversation.
enum Stage {
    Idle,
    Prepared(Box<Operation>),
    /// The lease ended; the guest may not know yet.
    Expired(Ticket),
    Cut(Box<CutOperation>),
    /// The cut was concluded without the guest, which may not know yet.
    Missed(Ticket),
}

/// Holds one conversation, from `Hello` to its end.
pub async fn run(service: Arc<Service>, peer: Peer, mut stream: impl Stream) {
    let mut session = Session { service, peer, stage: Stage::Idle };
    if let Err(error) = session.converse(&mut stream).await {
        match &error {
            TransportError::Closed | TransportError::Silent(_) => {}
            _ => {
                tracing::warn!(via = %session.peer.via, "conversation ended: {}", crate::service::chain(&error))
            }
        }
        if error.is_malformed() {
            let told = Reply::Error(
                WireError::new(ErrorCode::Malformed, "these bytes are no message of this protocol")
                    .hint("update hostsnap in the guest or hostsnapd on the host to the same version"),
            );
            // The guest may be gone; there is nobody else to tell.
            let _ = transport::send(&mut stream, &told).await;
        }
    }
    session.end().await;
}

struct Session {
    service: Arc<Service>,
    peer: Peer,
    stage: Stage,
}

type Answer = Result<Reply, WireError>;

impl Session {
    async fn converse(&mut self, stream: &mut impl Stream) -> Result<(), TransportError> {
        let hello = match transport::receive(stream, HELLO_LIMIT).await? {
            Request::Hello(hello) => hello,
            _ => return self.refuse(stream, out_of_order("Hello comes first")).await,
        };
        let welcome = match self.welcome(&hello) {
            Ok(welcome) => welcome,
            Err(error) => return self.refuse(stream, error).await,
        };
        // Before it is answered: whoever speaks after that is later.
        let mut boot = hello.boot_id.map(|id| self.service.boots().enter(self.peer.vm, id));
        transport::send(stream, &Reply::Hello(welcome)).await?;
        let mut over = async || match &mut boot {
            Some(boot) => boot.over().await,
            None => std::future::pending().await,
        };
        loop {
            let received = tokio::select! {
                // An earlier boot is not heard any more, whatever it still has to say.
                biased;
                () = over() => {
                    tracing::info!(via = %self.peer.via, "the guest was started anew: its earlier conversation is over");
                    return Ok(());
                }
                received = transport::receive(stream, self.wait_limit()) => received,
            };
            match received {
                Ok(request) => self.answer(stream, request).await?,
                Err(TransportError::Silent(_)) if self.give_up_waiting().await => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn refuse(&self, stream: &mut impl Stream, error: WireError) -> Result<(), TransportError> {
        tokio::time::sleep(REFUSAL_PAUSE).await;
        transport::send(stream, &Reply::Error(error)).await
    }

    fn welcome(&self, hello: &Hello) -> Result<Welcome, WireError> {
        let version = VERSIONS.agree(hello.versions).ok_or_else(|| {
            WireError::new(
                ErrorCode::UnsupportedVersion,
                format!(
                    "the agent speaks the protocol versions {} to {}, this host {} to {}",
                    hello.versions.min, hello.versions.max, VERSIONS.min, VERSIONS.max
                ),
            )
            .hint("update the older side")
        })?;
        let vm = self.vm()?;
        // The configuration knows the machine by its link. A guest that says it is another machine
        // shows that the link was given to a new one: CIDs are reused.
        if let Some(said) = hello.vm_uuid.filter(|said| *said != vm.uuid) {
            let error = WireError::new(
                ErrorCode::Refused,
                format!(
                    "the host knows this link as {} with the UUID {}, but this machine's is {said}",
                    vm.name, vm.uuid
                ),
            )
            .hint("the host's administrator corrects the uuid, or the cid, of this [[vm]]");
            self.note("hello", &vm, Vec::new(), Err(&error), Instant::now());
            return Err(error);
        }
        Ok(Welcome { version, host_version: own_version(), vm: vm.name })
    }

    /// The machine as it is configured now.
    fn vm(&self) -> Result<Vm, WireError> {
        self.service.world().vm(self.peer.vm).cloned().ok_or_else(|| {
            WireError::new(ErrorCode::Refused, "this virtual machine is no longer configured on the host")
        })
    }

    fn wait_limit(&self) -> Duration {
        match &self.stage {
            Stage::Idle | Stage::Expired(_) | Stage::Missed(_) => IDLE_LIMIT,
            Stage::Prepared(operation) => operation.lease_left(),
            Stage::Cut(_) => CONCLUDE_LIMIT,
        }
    }

    /// Nothing came in time. Whether the conversation goes on.
    async fn give_up_waiting(&mut self) -> bool {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle | Stage::Expired(_) | Stage::Missed(_) => false,
            Stage::Prepared(operation) => {
                self.stage = Stage::Expired(operation.prepared().ticket);
                operation.abandon().await;
                true
            }
            Stage::Cut(cut) => {
                let ticket = cut.done().ticket;
                self.stage = Stage::Cut(cut);
                self.end().await;
                self.stage = Stage::Missed(ticket);
                true
            }
        }
    }

    /// Leaves nothing half done.
    async fn end(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle | Stage::Expired(_) | Stage::Missed(_) => {}
            Stage::Prepared(operation) => operation.abandon().await,
            Stage::Cut(cut) => {
                let began = Instant::now();
                let concluded = cut.conclude(None).await;
                if let Ok(vm) = self.vm() {
                    let outcome = concluded.map(Settling::into_record);
                    self.note("conclude", &vm, Vec::new(), outcome.as_deref().map(|record| record.id), began);
                }
            }
        }
    }

    async fn answer(&mut self, stream: &mut impl Stream, request: Request) -> Result<(), TransportError> {
        let reply = match request {
            Request::Hello(_) => Err(out_of_order("Hello was said before")),
            Request::Ping(number) => Ok(Reply::Pong(number)),
            Request::Disks => self.disks().await,
            Request::Abilities => self.abilities().await,
            Request::Prepare(prepare) => self.prepare(&prepare).await,
            Request::Cut(cut) => self.cut(cut).await,
            Request::Conclude(conclude) => self.conclude(stream, conclude).await?,
            Request::Abort(ticket) => self.abort(ticket).await,
            Request::List(list) => self.list(list).await,
            Request::Get(reference) => self.get(reference).await,
            Request::Delete(id) => self.delete(id).await,
            Request::Attach(wanted) => self.attach(&wanted).await,
            Request::Detach(id) => self.detach(id).await,
            Request::Attachments => self.attachments().await,
            Request::Restore(wanted) => self.restore(stream, wanted).await?,
        };
        match reply {
            Ok(reply) => transport::send(stream, &reply).await,
            Err(error) => self.refuse(stream, error).await,
        }
    }

    async fn disks(&self) -> Answer {
        let vm = self.vm()?;
        policy::read(Asker::Guest, &vm)?;
        let disks = self.service.disks(&vm).await;
        Ok(Reply::Disks(bounded(disks)?))
    }

    async fn abilities(&self) -> Answer {
        let vm = self.vm()?;
        policy::read(Asker::Guest, &vm)?;
        let disks = self.service.abilities(&vm).await;
        Ok(Reply::Abilities(bounded(disks)?))
    }

    async fn prepare(&mut self, prepare: &Prepare) -> Answer {
        if !matches!(self.stage, Stage::Idle | Stage::Expired(_) | Stage::Missed(_)) {
            return Err(out_of_order("a snapshot is under way in this conversation already"));
        }
        let began = Instant::now();
        let vm = self.vm()?;
        let outcome = self.service.prepare(Asker::Guest, &vm, prepare).await;
        let id = SnapshotId::derive(vm.uuid, prepare.request);
        let disks = prepare.disks.iter().map(|disk| disk.serial.clone()).collect();
        self.note("prepare", &vm, disks, outcome.as_ref().map(|_| id), began);
        Ok(match outcome? {
            Outcome::Ready(operation) => {
                let prepared = operation.prepared();
                self.stage = Stage::Prepared(operation);
                Reply::Prepared(prepared)
            }
            Outcome::Existing(record) => Reply::Existing(record),
            Outcome::Planned(planned) => Reply::Planned(planned),
        })
    }

    async fn cut(&mut self, cut: Cut) -> Answer {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Prepared(operation) if operation.has_ticket(cut.ticket) => {
                let done = operation.cut(Duration::from_micros(cut.within_us)).await?;
                let reply = Reply::CutDone(done.done());
                self.stage = Stage::Cut(Box::new(done));
                Ok(reply)
            }
            Stage::Expired(ticket) if ticket == cut.ticket => Err(WireError::new(
                ErrorCode::LeaseExpired,
                "the lease ended before the cut was asked for; nothing was cut",
            )
            .hint("hooks or flushing took too long: make them faster, or raise --freeze-timeout")),
            stage => {
                self.stage = stage;
                Err(out_of_order("there is nothing to cut under this ticket"))
            }
        }
    }

    /// Answers with progress until the snapshot is durable, if the guest wants to wait.
    async fn conclude(
        &mut self,
        stream: &mut impl Stream,
        conclude: Conclude,
    ) -> Result<Answer, TransportError> {
        let cut = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Cut(cut) if cut.has_ticket(conclude.ticket) => cut,
            Stage::Missed(ticket) if ticket == conclude.ticket => {
                return Ok(Err(WireError::new(
                    ErrorCode::TimedOut,
                    format!(
                        "the host heard nothing for {} s after the cut, and concluded without a word of the freeze",
                        CONCLUDE_LIMIT.as_secs()
                    ),
                )
                .hint("hostsnap list shows whether it kept the snapshot, as worth a crash; else take it again")));
            }
            stage => {
                self.stage = stage;
                return Ok(Err(out_of_order("there is nothing to conclude under this ticket")));
            }
        };
        let began = Instant::now();
        let concluded = cut.conclude(Some((conclude.evidence, conclude.timing))).await;
        let outcome = match concluded {
            Ok(settling) if conclude.wait => wait(stream, settling).await?,
            Ok(settling) => Ok(settling.into_record()),
            Err(error) => Err(error),
        };
        if let Ok(vm) = self.vm() {
            self.note("conclude", &vm, Vec::new(), outcome.as_deref().map(|record| record.id), began);
        }
        Ok(outcome.map(Reply::Snapshot))
    }

    async fn abort(&mut self, ticket: Ticket) -> Answer {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Prepared(operation) if operation.has_ticket(ticket) => {
                operation.abandon().await;
                Ok(Reply::Aborted)
            }
            Stage::Expired(expired) if expired == ticket => Ok(Reply::Aborted),
            stage => {
                self.stage = stage;
                Err(out_of_order("there is nothing to abort under this ticket"))
            }
        }
    }

    async fn list(&self, list: List) -> Answer {
        let scope = policy::read(Asker::Guest, &self.vm()?)?;
        self.service.freshen().await;
        Ok(Reply::Snapshots(self.service.list(&scope, list).await?))
    }

    async fn get(&self, reference: SnapshotRef) -> Answer {
        let scope = policy::read(Asker::Guest, &self.vm()?)?;
        self.service.freshen().await;
        Ok(Reply::Snapshot(Box::new(self.service.get(&scope, reference).await?)))
    }

    async fn delete(&self, id: SnapshotId) -> Answer {
        let began = Instant::now();
        let vm = self.vm()?;
        let outcome = self.delete_allowed(&vm, id).await;
        self.note("delete", &vm, Vec::new(), outcome.as_ref().map(|_| id), began);
        outcome.map(Reply::Deleted)
    }

    async fn delete_allowed(
        &self,
        vm: &Vm,
        id: SnapshotId,
    ) -> Result<protocol::message::DeleteOutcome, WireError> {
        let scope = policy::read(Asker::Guest, vm)?;
        self.service.freshen().await;
        let reference = id.to_string().parse().expect("an identifier is a valid reference");
        let record: SnapshotRecord = self.service.get(&scope, reference).await?;
        self.service.delete(policy::delete(vm, &record, self.service.now())?).await
    }

    async fn attach(&self, wanted: &Attach) -> Answer {
        let began = Instant::now();
        let vm = self.vm()?;
        self.service.freshen().await;
        let outcome = self.service.attach(&vm, wanted).await;
        let disks = wanted.disks.to_vec();
        self.note("attach", &vm, disks, outcome.as_ref().map(|_| wanted.id), began);
        attached(outcome?)
    }

    async fn detach(&self, id: SnapshotId) -> Answer {
        let began = Instant::now();
        let vm = self.vm()?;
        let outcome = self.service.detach(policy::detach(&vm, id)).await;
        self.note("detach", &vm, Vec::new(), outcome.as_ref().map(|_| id), began);
        outcome.map(Reply::Detached)
    }

    async fn attachments(&self) -> Answer {
        let vm = self.vm()?;
        policy::read(Asker::Guest, &vm)?;
        attached(self.service.attachments(&vm).await?)
    }

    /// Answers with progress until it is done. It goes on when the guest hangs up.
    async fn restore(&self, stream: &mut impl Stream, wanted: Restore) -> Result<Answer, TransportError> {
        let vm = match self.vm() {
            Ok(vm) => vm,
            Err(error) => return Ok(Err(error)),
        };
        self.service.freshen().await;
        if wanted.dry_run {
            let planned = self.service.plan_restore(Asker::Guest, &vm, &wanted).await;
            return Ok(planned.map(Reply::RestorePlanned));
        }
        let mut restoring = self.service.restore(Asker::Guest, vm, wanted, self.peer.via.clone());
        let mut told = Instant::now();
        let mut last = Progress { done_bytes: 0, total_bytes: 0 };
        loop {
            // While what the disks hold now is kept there is no progress; the guest must not take that for silence.
            match tokio::time::timeout(SIGN_OF_LIFE, restoring.next()).await {
                Ok(RestoreStep::Ended(outcome)) => return Ok(outcome.map(Reply::Restored)),
                Ok(RestoreStep::Running(progress)) if told.elapsed() < PROGRESS_EVERY => last = progress,
                Ok(RestoreStep::Running(progress)) => {
                    (told, last) = (Instant::now(), progress);
                    transport::send(stream, &Reply::Progress(last)).await?;
                }
                Err(_) => transport::send(stream, &Reply::Progress(last)).await?,
            }
        }
    }

    fn note(
        &self,
        verb: &'static str,
        vm: &Vm,
        disks: Vec<DiskSerial>,
        outcome: Result<SnapshotId, &WireError>,
        began: Instant,
    ) {
        self.service.audit().note(&Event {
            verb,
            vm: Some(&vm.name),
            vm_uuid: Some(vm.uuid),
            peer: &self.peer.via,
            disks,
            snapshot: outcome.ok(),
            decision: match outcome {
                Ok(_) => Decision::Done,
                Err(error) => Decision::of(error.code),
            },
            error: outcome.err(),
            took: began.elapsed(),
        });
    }
}

async fn wait(
    stream: &mut impl Stream,
    mut settling: Settling,
) -> Result<Result<Box<SnapshotRecord>, WireError>, TransportError> {
    let mut told = Instant::now();
    loop {
        match settling.next().await {
            Some(SettleState::Running(Progress { done_bytes, total_bytes })) => {
                if told.elapsed() >= PROGRESS_EVERY {
                    told = Instant::now();
                    let progress = Progress { done_bytes, total_bytes };
                    transport::send(stream, &Reply::Progress(progress)).await?;
                }
            }
            Some(SettleState::Ready(record)) => return Ok(Ok(record)),
            Some(SettleState::Failed(error)) => return Ok(Err(error)),
            None => return Ok(Err(WireError::new(ErrorCode::Internal, "settling the snapshot stopped"))),
        }
    }
}

fn attached(attachments: Vec<Attachment>) -> Answer {
    Ok(Reply::Attached(bounded(attachments)?))
}

/// A list, as a message can hold it: the configuration allows no more.
pub(crate) fn bounded<T, const MAX: usize>(items: Vec<T>) -> Result<BoundedVec<T, MAX>, WireError> {
    items.try_into().map_err(|error: TooMany| WireError::new(ErrorCode::Internal, error.to_string()))
}

fn out_of_order(what: &str) -> WireError {
    WireError::new(ErrorCode::OutOfOrder, what)
}

/// This program's version, as it says it in `Hello`.
pub fn own_version() -> Name {
    env!("CARGO_PKG_VERSION").parse().expect("a version is a valid name")
}
