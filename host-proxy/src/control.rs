//! The administrator's way in: a Unix socket that only root can open. The same framing as the
//! guests', with messages of its own; both ends are this program.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::agent::{AgentCreate, AgentPhase};
use protocol::attach::DetachOutcome;
use protocol::message::{DeleteOutcome, DiskInfo, List, Page, Progress};
use protocol::record::UnixMillis;
use protocol::restore::{Layout, RestorePlan, Safety};
use protocol::text::{Line, Name, SnapshotRef};
use protocol::{BoundedVec, DiskSerial, ErrorCode, SnapshotId, SnapshotRecord, VmUuid, WireError};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

use crate::agent::Agent;
use crate::audit::{Decision, Event};
use crate::config::Vm;
use crate::drivers::Extent;
use crate::policy;
use crate::service::{Alone, DiskChanges, Report, Service};
use crate::session;
use crate::transport::{self, TransportError};

pub(crate) mod export;
mod restore;

/// How soon a request must come.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// What the administrator's command line asks. One request per connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Which virtual machines, with their disks?
    Vms,
    /// Snapshots, of one machine or of all.
    List {
        /// The machine's name.
        vm: Option<Name>,
        /// Which, from where on.
        filter: List,
    },
    /// One snapshot.
    Show {
        /// The machine's name.
        vm: Option<Name>,
        /// Which.
        snapshot: SnapshotRef,
    },
    /// Remove one snapshot.
    Delete(SnapshotId),
    /// Ask a guest's daemon for a snapshot of itself.
    Create {
        /// The machine's name.
        vm: Name,
        /// The options.
        create: AgentCreate,
    },
    /// Ask a guest's daemon whether it is there.
    Ping(Name),
    /// Compare the catalog with the storage.
    Reconcile,
    /// What changed between two snapshots?
    Changes {
        /// What it is compared with.
        from: SnapshotRef,
        /// What is compared.
        to: SnapshotRef,
        /// Only this disk.
        disk: Option<DiskSerial>,
    },
    /// Lock one snapshot, or unlock it.
    Lock {
        /// Which.
        snapshot: SnapshotId,
        /// Until when; `None` unlocks.
        until: Option<UnixMillis>,
    },
    /// Take out of its machine what is attached of one snapshot.
    Detach(SnapshotId),
    /// Show a disk of a snapshot on this host, as long as this connection lasts.
    Export(export::Wanted),
    /// Take a snapshot of a machine without asking its guest.
    CreateAlone {
        /// The machine's name.
        vm: Name,
        /// The options.
        create: AgentCreate,
    },
    /// Give disks of a stopped machine the bytes of one of its snapshots.
    Restore {
        /// The machine's name.
        vm: Name,
        /// Which.
        snapshot: SnapshotRef,
        /// Which of its disks; none is all.
        disks: BoundedVec<DiskSerial, 64>,
        /// Whether what they hold now is kept first.
        safety: Safety,
        /// Whether they may have been formatted anew.
        layout: Layout,
        /// Only say what would be done.
        dry_run: bool,
    },
}

/// What the service answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlReply {
    /// To `Vms`.
    Vms(Vec<VmStatus>),
    /// To `List`.
    Page(Page),
    /// To `Show`, `Create`, `CreateAlone` and `Lock`.
    Snapshot(Box<SnapshotRecord>),
    /// To `Delete`.
    Deleted(DeleteOutcome),
    /// To `Create`, any number of times, before the final reply.
    Progress(Progress),
    /// To `Ping`.
    Pong(AgentFacts),
    /// To `Reconcile`.
    Report(Report),
    /// To anything.
    Error(WireError),
    /// To `Changes` and `Export`, any number of times before the final reply: some extents of a disk, in order.
    Extents(DiskSerial, Vec<Extent>),
    /// To `Changes`, when all extents were told.
    Compared(Box<Compared>),
    /// To `Detach`.
    Detached(DetachOutcome),
    /// To `Export`: it is shown.
    Shown(Box<export::Shown>),
    /// To `Restore`: what would be done.
    RestorePlanned(RestorePlan),
    /// To `Restore`, after any number of `Progress`: what was done.
    Restored(RestorePlan),
}

/// Which snapshots were compared, and which of their disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// What it was compared with.
    pub from: SnapshotId,
    /// What was compared.
    pub to: SnapshotId,
    /// Each disk, its driver, its size in bytes.
    pub disks: BoundedVec<(DiskSerial, Name, u64), 64>,
}

/// A virtual machine as the administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub name: Name,
    /// Its UUID.
    pub uuid: VmUuid,
    /// How it comes in.
    pub peer: Line,
    /// Its disks.
    pub disks: BoundedVec<DiskInfo, 64>,
    /// How many snapshots it has.
    pub snapshots: u64,
}

/// What a guest's daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFacts {
    /// Its version.
    pub version: Name,
    /// What it is doing.
    pub phase: AgentPhase,
    /// How long it took to answer, in microseconds.
    pub round_trip_us: u64,
}

/// Makes the socket, readable by root alone.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another hostsnapd is listening there"));
            }
            fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Between bind and chmod the umask keeps others out.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener
}

/// Serves the administrator.
pub async fn serve(service: Arc<Service>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(answer_one(Arc::clone(&service), stream));
            }
            Err(error) => {
                tracing::error!("accept on the control socket: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn answer_one(service: Arc<Service>, mut stream: UnixStream) {
    let own = rustix::process::geteuid().as_raw();
    let allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
    let result = async {
        let request = match transport::receive(&mut stream, REQUEST_LIMIT).await? {
            ControlRequest::Export(wanted) if allowed => {
                return export::serve(&service, &mut stream, wanted).await;
            }
            request => request,
        };
        let reply = if allowed {
            answer(&service, &mut stream, request).await
        } else {
            Err(WireError::new(ErrorCode::Refused, "only root may use the control socket"))
        };
        transport::send(&mut stream, &reply.unwrap_or_else(ControlReply::Error)).await
    };
    match result.await {
        Ok(()) | Err(TransportError::Closed) => {}
        Err(error) => tracing::warn!("control socket: {}", crate::service::chain(&error)),
    }
}

async fn answer(
    service: &Arc<Service>,
    stream: &mut UnixStream,
    request: ControlRequest,
) -> Result<ControlReply, WireError> {
    Ok(match request {
        ControlRequest::Vms => ControlReply::Vms(vms(service).await?),
        ControlRequest::List { vm, filter } => {
            let scope = policy::read_as_admin(uuid_of(service, vm.as_ref())?);
            service.freshen().await;
            ControlReply::Page(service.list(&scope, filter).await?)
        }
        ControlRequest::Show { vm, snapshot } => {
            let scope = policy::read_as_admin(uuid_of(service, vm.as_ref())?);
            service.freshen().await;
            ControlReply::Snapshot(Box::new(service.get(&scope, snapshot).await?))
        }
        ControlRequest::Delete(id) => ControlReply::Deleted(delete(service, id).await?),
        ControlRequest::Create { vm, create } => {
            ControlReply::Snapshot(create_in(service, stream, &vm_named(service, &vm)?, create).await?)
        }
        ControlRequest::Ping(vm) => ControlReply::Pong(ping(&vm_named(service, &vm)?).await?),
        ControlRequest::Reconcile => ControlReply::Report(service.reconcile().await?),
        ControlRequest::Changes { from, to, disk } => compare(service, stream, from, to, disk).await?,
        ControlRequest::Lock { snapshot, until } => {
            ControlReply::Snapshot(lock(service, snapshot, until).await?)
        }
        ControlRequest::Detach(id) => ControlReply::Detached(detach(service, id).await?),
        ControlRequest::Export(_) => unreachable!("it has a conversation of its own"),
        ControlRequest::CreateAlone { vm, create } => {
            let vm = vm_named(service, &vm)?;
            ControlReply::Snapshot(service.create_without_agent(&vm, create, Alone::NotAsked).await?)
        }
        ControlRequest::Restore { vm, snapshot, disks, safety, layout, dry_run } => {
            let vm = vm_named(service, &vm)?;
            let wish = restore::Wish { snapshot, disks: disks.into_inner(), safety, layout, dry_run };
            restore::answer(service, stream, vm, wish).await?
        }
    })
}

async fn vms(service: &Arc<Service>) -> Result<Vec<VmStatus>, WireError> {
    let world = service.world();
    let mut all = Vec::with_capacity(world.config.vms.len());
    for vm in &world.config.vms {
        let disks = service.disks(vm).await;
        all.push(VmStatus {
            name: vm.name.clone(),
            uuid: vm.uuid,
            peer: Line::lossy(&vm.peer.to_string()),
            disks: session::bounded(disks)?,
            snapshots: service.count(vm).await?,
        });
    }
    Ok(all)
}

/// Tells the extents as they fit into frames, then which disks they are of.
async fn compare(
    service: &Arc<Service>,
    stream: &mut UnixStream,
    from: SnapshotRef,
    to: SnapshotRef,
    disk: Option<DiskSerial>,
) -> Result<ControlReply, WireError> {
    let scope = policy::read_as_admin(None);
    service.freshen().await;
    let (from, to) = (service.get(&scope, from).await?, service.get(&scope, to).await?);
    let all = service.changes(policy::compare_as_admin(&from, &to)?, disk).await?;
    let mut disks = Vec::with_capacity(all.len());
    for DiskChanges { disk, driver, size_bytes, extents } in all {
        for some in extents.chunks(export::AT_ONCE) {
            let told = ControlReply::Extents(disk.clone(), some.to_vec());
            let sent = transport::send(stream, &told).await;
            sent.map_err(|_| WireError::new(ErrorCode::Unreachable, "whoever asked has gone"))?;
        }
        disks.push((disk, driver, size_bytes));
    }
    let disks = disks.try_into().expect("a snapshot has at most 64 disks");
    Ok(ControlReply::Compared(Box::new(Compared { from: from.id, to: to.id, disks })))
}

fn vm_named(service: &Service, name: &Name) -> Result<Vm, WireError> {
    let world = service.world();
    world.config.vms.iter().find(|vm| vm.name == *name).cloned().ok_or_else(|| {
        WireError::new(
            ErrorCode::NotFound,
            format!("there is no virtual machine {name} in the configuration"),
        )
        .hint("hostsnapd vms shows those there are")
    })
}

fn uuid_of(service: &Service, name: Option<&Name>) -> Result<Option<VmUuid>, WireError> {
    name.map(|name| vm_named(service, name).map(|vm| vm.uuid)).transpose()
}

async fn delete(service: &Arc<Service>, id: SnapshotId) -> Result<DeleteOutcome, WireError> {
    let began = Instant::now();
    service.freshen().await;
    let record = record_of(service, id).await?;
    let outcome = match policy::delete_as_admin(&record, service.now()) {
        Ok(allowed) => service.delete(allowed).await,
        Err(refused) => Err(refused),
    };
    note(service, "delete", &record, outcome.as_ref().err(), began);
    outcome
}

async fn lock(
    service: &Arc<Service>,
    id: SnapshotId,
    until: Option<UnixMillis>,
) -> Result<Box<SnapshotRecord>, WireError> {
    let began = Instant::now();
    service.freshen().await;
    let record = record_of(service, id).await?;
    let outcome = match policy::lock_as_admin(&record, until, service.now()) {
        Ok(allowed) => service.lock(allowed).await,
        Err(refused) => Err(refused),
    };
    let verb = if until.is_some() { "lock" } else { "unlock" };
    note(service, verb, &record, outcome.as_ref().err(), began);
    outcome
}

/// The emergency exit, for a guest that can't ask any more.
async fn detach(service: &Arc<Service>, id: SnapshotId) -> Result<DetachOutcome, WireError> {
    let began = Instant::now();
    let record = record_of(service, id).await?;
    let outcome = service.detach(policy::detach_as_admin(&record)).await;
    note(service, "detach", &record, outcome.as_ref().err(), began);
    outcome
}

async fn record_of(service: &Service, id: SnapshotId) -> Result<SnapshotRecord, WireError> {
    let reference = id.to_string().parse().expect("an identifier is a valid reference");
    service.get(&policy::read_as_admin(None), reference).await
}

/// Writes down what became of something that the administrator asked for.
fn note(
    service: &Service,
    verb: &'static str,
    record: &SnapshotRecord,
    error: Option<&WireError>,
    began: Instant,
) {
    service.audit().note(&Event {
        verb,
        vm: Some(&record.vm),
        vm_uuid: Some(record.vm_uuid),
        peer: "control",
        disks: Vec::new(),
        snapshot: Some(record.id),
        decision: error.map_or(Decision::Done, |error| Decision::of(error.code)),
        error,
        took: began.elapsed(),
    });
}

/// Lets the guest's daemon run its own flow; with no daemon there, and only if crash consistency
/// was asked for, the host cuts alone.
async fn create_in(
    service: &Arc<Service>,
    stream: &mut UnixStream,
    vm: &Vm,
    create: AgentCreate,
) -> Result<Box<SnapshotRecord>, WireError> {
    match Agent::connect(vm).await {
        Ok(mut agent) => {
            let (told, mut progress) = tokio::sync::mpsc::channel(16);
            // What does not fit is older than what comes next.
            let created = agent.create(create, |progress| {
                let _ = told.try_send(progress);
            });
            tokio::pin!(created);
            loop {
                tokio::select! {
                    outcome = &mut created => return outcome,
                    Some(progress) = progress.recv() => {
                        // Whoever asked may have hung up; the snapshot goes on.
                        let _ = transport::send(stream, &ControlReply::Progress(progress)).await;
                    }
                }
            }
        }
        Err(error) if error.code == ErrorCode::Unreachable => {
            service.create_without_agent(vm, create, Alone::NoAgent(error)).await
        }
        Err(error) => Err(error),
    }
}

async fn ping(vm: &Vm) -> Result<AgentFacts, WireError> {
    let mut agent = Agent::connect(vm).await?;
    let began = Instant::now();
    agent.ping().await?;
    let round_trip_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let phase = agent.status().await?.phase;
    Ok(AgentFacts { version: agent.version().clone(), phase, round_trip_us })
}
