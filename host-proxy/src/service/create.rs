//! One new snapshot, up to the storage's atomic point.
//!
//! `prepare` does all slow work and commits the intent; `Operation::cut` does nothing but cut;
//! `CutOperation::conclude` decides what may be claimed and hands over to `settle`. A connection
//! that is lost before the cut abandons; one that is lost after it concludes without evidence.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::agent::AgentCreate;
use protocol::evidence::{CutEvidence, Freeze, judge};
use protocol::fingerprint::{self, Fingerprint};
use protocol::message::{DiskRequest, Planned, Prepare, Prepared};
use protocol::record::{DiskRecord, State, Timing, UnixMillis};
use protocol::text::{Handle, Line, Name};
use protocol::{
    BoundedVec, Consistency, DiskSerial, ErrorCode, Evidence, Labels, Note, SnapshotId, SnapshotRecord,
    Ticket, WireError,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::in_flight::Claim;
use super::settle::{self, Settling};
use super::{Service, blocking, errors, manifest, now};
use crate::catalog::{Begun, Entry, Phase};
use crate::config::{Disk, Vm};
use crate::drivers::{CutSet, DriverError, Kind, Owner, Plan, Ready, Volume, VolumeSnapshot};
use crate::policy::{self, Allowed, Asker, Create};
use crate::world::{Store, World};

/// How long all slow work before the freeze may take.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);
/// How long a guest waits, not frozen, for others to finish.
const ADMISSION_LIMIT: Duration = Duration::from_secs(30);
/// How much longer than its allowance a cut is waited for: its guest has thawed by then, but what
/// was cut must be known.
const CUT_GRACE: Duration = Duration::from_secs(30);
/// How long an undo may take.
const ABANDON_LIMIT: Duration = Duration::from_secs(60);

/// What `prepare` came to.
pub enum Outcome {
    /// The cut may be asked for.
    Ready(Box<Operation>),
    /// This request was answered before: that is its snapshot.
    Existing(Box<SnapshotRecord>),
    /// A dry run: what would be done.
    Planned(Planned),
}

/// A snapshot that is ready to be cut.
pub struct Operation {
    common: Common,
    ticket: Ticket,
    lease_ends: Instant,
    parts: Vec<Part<Box<dyn Ready>>>,
}

/// A snapshot that was cut.
pub struct CutOperation {
    common: Common,
    ticket: Ticket,
    cut: CutEvidence,
    cut_ended: Instant,
    parts: Vec<Part<Box<dyn CutSet>>>,
}

/// What one snapshot carries from its first step to its last.
pub(super) struct Common {
    pub(super) service: Arc<Service>,
    pub(super) draft: SnapshotRecord,
    pub(super) _claim: Claim,
    pub(super) _admitted: Option<OwnedSemaphorePermit>,
}

/// The disks of a snapshot that one store keeps.
pub(super) struct Part<S> {
    pub(super) store: Arc<Store>,
    pub(super) stage: S,
}

impl Service {
    /// Checks everything, does all slow work, commits the intent. Nothing is frozen yet.
    pub async fn prepare(
        self: &Arc<Self>,
        asker: Asker,
        vm: &Vm,
        prepare: &Prepare,
    ) -> Result<Outcome, WireError> {
        let id = SnapshotId::derive(vm.uuid, prepare.request);
        let digest = digest(prepare);
        let Some(claim) = self.in_flight.claim(id) else {
            return Err(WireError::new(ErrorCode::Busy, "this request is being worked on already")
                .hint("repeat it in a moment, with the same request id"));
        };
        if let Some(entry) = self.catalog(move |catalog| catalog.get(id)).await? {
            return existing(entry, &digest);
        }

        let vm_uuid = vm.uuid;
        let usage = self.catalog(move |catalog| catalog.usage(vm_uuid, now())).await?;
        let allowed = policy::create(asker, vm, prepare, &usage)?;
        let world = self.world();
        self.prove_volumes(asker, &world, &allowed).await?;
        if prepare.dry_run {
            return Ok(Outcome::Planned(planned(id, &allowed, &world)));
        }

        let admitted = tokio::time::timeout(ADMISSION_LIMIT, Arc::clone(&self.admission).acquire_owned())
            .await
            .map_err(|_| {
                WireError::new(ErrorCode::Busy, "too many snapshots are being taken at once on this host")
                    .hint("try again in a moment")
            })?
            .expect("the semaphore is never closed");

        let draft = draft(id, &allowed, prepare, &world);
        let intent = draft.clone();
        match self.catalog(move |catalog| catalog.begin(&intent, &digest)).await? {
            Begun::Existing(entry) => return existing(*entry, &digest),
            Begun::New => {}
        }
        let mut common =
            Common { service: Arc::clone(self), draft, _claim: claim, _admitted: Some(admitted) };
        let parts = match common.prepare_parts(&world, &allowed).await {
            Ok(parts) => parts,
            Err(error) => {
                common.forget().await;
                return Err(error);
            }
        };
        common.name_disks(parts.iter().map(|part| (part.store.as_ref(), part.stage.volumes())));
        let lease = Duration::from_millis(prepare.lease_ms.into()).min(world.config.service.max_lease);
        Ok(Outcome::Ready(Box::new(Operation {
            common,
            ticket: Ticket::random(),
            lease_ends: Instant::now() + lease,
            parts,
        })))
    }

    /// A snapshot of all disks of a machine whose guest has no agent: crash-consistent at best, and
    /// only if that is what was asked for.
    pub async fn create_without_agent(
        self: &Arc<Self>,
        vm: &Vm,
        create: AgentCreate,
        unreachable: WireError,
    ) -> Result<Box<SnapshotRecord>, WireError> {
        if create.minimum > Consistency::Crash {
            let hint = "without an agent the host can only cut as a power cut would: --consistency crash";
            return Err(WireError { hint: Line::lossy(hint), ..unreachable });
        }
        if !create.paths.is_empty() {
            return Err(WireError::new(
                ErrorCode::Unsupported,
                format!(
                    "{}, and without one the host does not know which disks hold a path",
                    unreachable.message
                ),
            )
            .hint("leave the paths out to take all disks"));
        }
        let disks: Vec<_> = vm
            .disks
            .iter()
            .map(|disk| DiskRequest {
                serial: disk.serial.clone(),
                size_bytes: 0,
                fingerprint: Fingerprint::empty(),
            })
            .collect();
        let prepare = Prepare {
            request: create.request,
            disks: disks.try_into().expect("a machine has at most 64 disks"),
            mounts: BoundedVec::empty(),
            labels: create.labels,
            note: create.note,
            minimum: Consistency::Crash,
            keep_for_s: create.keep_for_s,
            lease_ms: 60_000,
            dry_run: false,
        };
        let operation = match self.prepare(Asker::Admin, vm, &prepare).await? {
            Outcome::Ready(operation) => operation,
            Outcome::Existing(record) => return Ok(record),
            Outcome::Planned(_) => unreachable!("no dry run was asked for"),
        };
        let lease = operation.lease_left();
        let evidence = Evidence {
            freeze: Freeze::NoAgent,
            file_systems: BoundedVec::empty(),
            hooks: BoundedVec::empty(),
        };
        let settling = operation.cut(lease).await?.conclude(Some((evidence, Timing::default()))).await?;
        settling.finish().await
    }

    /// Never cut the wrong volume: what the guest reads of each disk must be what the host reads of
    /// the volume. Also the pool's floor.
    async fn prove_volumes(
        &self,
        asker: Asker,
        world: &World,
        allowed: &Allowed<Create>,
    ) -> Result<(), WireError> {
        let create = allowed.get();
        let vm = create.vm.name.to_string();
        for (disk, wanted) in &create.disks {
            let store = Arc::clone(world.store(disk));
            let volume = World::volume(&create.vm, disk);
            let doing = format!("check the disk {}", disk.serial);
            let (facts, head, free_bytes) = blocking::bounded(
                &doing,
                PREPARE_LIMIT,
                move || {
                    let facts = store.driver.check(&volume)?;
                    let head = store.driver.read_head(&volume, fingerprint::HEAD_BYTES)?;
                    Ok((facts, head, store.driver.free_bytes()?))
                },
                drop,
            )
            .await
            .map_err(|error| errors::of_driver(&vm, &doing, &error))?;
            policy::room(disk.store.get_ref(), free_bytes, world.store(disk).config.min_free)?;
            // The administrator, for a guest without an agent, has read nothing to compare with.
            if asker == Asker::Admin {
                continue;
            }
            if facts.size_bytes != wanted.size_bytes {
                return Err(mismatch(
                    disk,
                    &format!("the guest's has {} bytes, the host's {}", wanted.size_bytes, facts.size_bytes),
                ));
            }
            if fingerprint::of_head(&head) != wanted.fingerprint {
                return Err(mismatch(
                    disk,
                    "the partition table or file system that the guest reads on it is not the one that the host reads",
                ));
            }
        }
        Ok(())
    }
}

fn mismatch(disk: &Disk, why: &str) -> WireError {
    WireError::new(
        ErrorCode::DiskMismatch,
        format!("the disk {} of the guest and the host's volume of that serial differ: {why}", disk.serial),
    )
    .hint("the host's administrator corrects the path of this [[vm.disk]]")
}

fn digest(prepare: &Prepare) -> [u8; 16] {
    let serials = prepare.disks.iter().map(|disk| &disk.serial);
    digest_of(serials, &prepare.labels, &prepare.note, prepare.minimum)
}

/// What makes two requests of one request id the same request. It can be told from a record as
/// well, so that it survives the loss of the catalog.
pub(super) fn digest_of_record(record: &SnapshotRecord) -> [u8; 16] {
    let serials = record.disks.iter().map(|disk| &disk.serial);
    digest_of(serials, &record.labels, &record.note, record.minimum)
}

fn digest_of<'a>(
    serials: impl Iterator<Item = &'a DiskSerial>,
    labels: &Labels,
    note: &Note,
    minimum: Consistency,
) -> [u8; 16] {
    // The guest may know a serial only as virtio cut it, and asks in any order.
    let mut serials: Vec<_> = serials.map(DiskSerial::virtio).collect();
    serials.sort_unstable();
    let bytes = serde_json::to_vec(&(serials, labels, note, minimum))
        .expect("a request has no value that JSON lacks");
    *Uuid::new_v5(&Uuid::NAMESPACE_OID, &bytes).as_bytes()
}

fn existing(entry: Entry, digest: &[u8; 16]) -> Result<Outcome, WireError> {
    if entry.digest != *digest {
        return Err(WireError::new(
            ErrorCode::RequestReused,
            format!("this request id was used before, for other disks or options: {}", entry.record.id),
        )
        .hint("leave --request-id out, or give a new one"));
    }
    match entry.phase {
        Phase::Settling | Phase::Ready | Phase::Failed => Ok(Outcome::Existing(Box::new(entry.record))),
        Phase::Intent | Phase::Deleting => Err(WireError::new(
            ErrorCode::Unavailable,
            "an earlier attempt at this request is not cleaned up yet",
        )
        .hint("repeat it in a moment; if that lasts, the host's administrator runs hostsnapd reconcile")),
    }
}

fn planned(id: SnapshotId, allowed: &Allowed<Create>, world: &World) -> Planned {
    let disks: Vec<_> = allowed
        .get()
        .disks
        .iter()
        .map(|(disk, wanted)| protocol::message::DiskInfo {
            serial: disk.serial.clone(),
            driver: driver_name(world.store(disk)),
            size_bytes: Some(wanted.size_bytes),
            problem: Line::lossy(""),
        })
        .collect();
    Planned { id, disks: disks.try_into().expect("no more disks than were asked for") }
}

fn draft(id: SnapshotId, allowed: &Allowed<Create>, prepare: &Prepare, world: &World) -> SnapshotRecord {
    let Create { vm, disks } = allowed.get();
    let created_at = now();
    let disks: Vec<_> = disks
        .iter()
        .map(|(disk, wanted)| DiskRecord {
            serial: disk.serial.clone(),
            driver: driver_name(world.store(disk)),
            handle: "pending".parse().expect("a valid handle"),
            size_bytes: wanted.size_bytes,
        })
        .collect();
    SnapshotRecord {
        id,
        vm_uuid: vm.uuid,
        vm: vm.name.clone(),
        request: prepare.request,
        created_at,
        consistency: Consistency::Crash,
        consistency_reason: Line::lossy("not concluded"),
        minimum: prepare.minimum,
        state: State::Settling,
        labels: prepare.labels.clone(),
        note: prepare.note.clone(),
        mounts: prepare.mounts.clone(),
        disks: disks.try_into().expect("no more disks than were asked for"),
        timing: Timing::default(),
        expires_at: prepare
            .keep_for_s
            .map(|seconds| UnixMillis(created_at.0.saturating_add(seconds.saturating_mul(1000)))),
        locked_until: None,
        evidence: None,
        cut: CutEvidence::Unknown,
    }
}

fn driver_name(store: &Store) -> Name {
    store.driver.name().parse().expect("a driver's name is a valid name")
}

impl Common {
    async fn prepare_parts(
        &self,
        world: &World,
        allowed: &Allowed<Create>,
    ) -> Result<Vec<Part<Box<dyn Ready>>>, WireError> {
        let Create { vm, disks } = allowed.get();
        let owner = Owner { vm: vm.uuid, snapshot: self.draft.id };
        let mut parts: Vec<Part<Box<dyn Ready>>> = Vec::new();
        for store in world.stores() {
            let volumes: Vec<Volume> = disks
                .iter()
                .filter(|(disk, _)| disk.store.get_ref() == store.config.name.get_ref())
                .map(|(disk, _)| World::volume(vm, disk))
                .collect();
            if volumes.is_empty() {
                continue;
            }
            let plan = Plan { owner, volumes, manifest: manifest::write(&self.draft) };
            let doing = "ready the snapshot";
            let used = Arc::clone(store);
            let prepared = blocking::bounded(
                doing,
                PREPARE_LIMIT,
                move || used.driver.prepare(&plan, Instant::now() + PREPARE_LIMIT),
                |ready: Box<dyn Ready>| {
                    log_undo(ready.abandon());
                },
            )
            .await;
            match prepared {
                Ok(stage) => parts.push(Part { store: Arc::clone(store), stage }),
                Err(error) => {
                    abandon(parts, |ready: Box<dyn Ready>| ready.abandon()).await;
                    return Err(errors::of_driver(vm.name.as_str(), doing, &error));
                }
            }
        }
        Ok(parts)
    }

    /// Puts what the storage calls each disk's snapshot into the draft.
    pub(super) fn name_disks<'a>(&mut self, parts: impl Iterator<Item = (&'a Store, &'a [VolumeSnapshot])>) {
        name_disks(&mut self.draft, parts);
    }

    /// Nothing came of it and nothing is left on the storage.
    async fn forget(&self) {
        let id = self.draft.id;
        // What can't be forgotten now is found by reconcile; the failure is in the log.
        let _ = self.service.catalog(move |catalog| catalog.drop_intent(id)).await;
    }
}

/// Puts what the storage calls each disk's snapshot into a record.
pub(super) fn name_disks<'a>(
    record: &mut SnapshotRecord,
    parts: impl Iterator<Item = (&'a Store, &'a [VolumeSnapshot])>,
) {
    let disks: Vec<_> = parts
        .flat_map(|(store, volumes)| volumes.iter().map(move |volume| (store, volume)))
        .map(|(store, volume)| DiskRecord {
            serial: volume.serial.clone(),
            driver: driver_name(store),
            handle: Handle::try_from(volume.handle.clone())
                .unwrap_or_else(|_| "unprintable".parse().expect("a valid handle")),
            size_bytes: volume.size_bytes,
        })
        .collect();
    record.disks = disks.try_into().expect("no more volumes than disks were asked for");
}

fn log_undo(undone: Result<(), DriverError>) -> bool {
    match undone {
        Ok(()) => true,
        Err(error) => {
            tracing::error!("undo a snapshot: {}; reconcile will try again", errors::chain(&error));
            false
        }
    }
}

/// Undoes every part; `true` if nothing is left.
async fn abandon<S: Send + 'static>(
    parts: Vec<Part<S>>,
    undo: impl Fn(S) -> Result<(), DriverError> + Copy + Send + 'static,
) -> bool {
    let mut clean = true;
    for part in parts {
        let undone =
            blocking::bounded("undo a snapshot", ABANDON_LIMIT, move || undo(part.stage), drop).await;
        clean &= log_undo(undone);
    }
    clean
}

impl Operation {
    /// What the guest must show to go on.
    pub fn prepared(&self) -> Prepared {
        Prepared {
            ticket: self.ticket,
            id: self.common.draft.id,
            lease_ms: u32::try_from(self.lease_left().as_millis()).unwrap_or(u32::MAX),
        }
    }

    /// For how long the cut may still be asked for.
    pub fn lease_left(&self) -> Duration {
        self.lease_ends.saturating_duration_since(Instant::now())
    }

    /// Whether this is its ticket.
    pub fn has_ticket(&self, ticket: Ticket) -> bool {
        self.ticket == ticket
    }

    /// The guest gave up, or was never heard of again.
    pub async fn abandon(self) {
        if abandon(self.parts, |ready| ready.abandon()).await {
            self.common.forget().await;
        }
    }

    /// The atomic point. `within` is what is left of the guest's freeze.
    pub async fn cut(self, within: Duration) -> Result<CutOperation, WireError> {
        if self.lease_left().is_zero() {
            let lease = WireError::new(
                ErrorCode::LeaseExpired,
                "the lease of this request ended before the cut was asked for; nothing was cut",
            );
            self.abandon().await;
            return Err(
                lease.hint("hooks and flushing took too long: raise --freeze-timeout or speed them up")
            );
        }
        let began = Instant::now();
        let Self { mut common, ticket, parts, .. } = self;
        let cuts = cut_all(parts, began + within, within + CUT_GRACE).await;
        let ended = Instant::now();
        let took_us = micros(ended - began);
        let mut done = Vec::new();
        let mut failed = None;
        for cut in cuts {
            match cut {
                Ok(part) => done.push(part),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            // A call that is still out may yet cut: only reconcile can tell when it is over.
            let nothing_left = abandon(done, |cut: Box<dyn CutSet>| cut.abandon()).await;
            if nothing_left && error.kind != Kind::DeadlinePassed {
                common.forget().await;
            }
            return Err(errors::of_driver(common.draft.vm.as_str(), "cut the disks", &error));
        }
        common.draft.created_at = now();
        let allowed_us = micros(within);
        let cut = if took_us <= allowed_us {
            CutEvidence::InTime { took_us }
        } else {
            CutEvidence::Late { took_us, allowed_us }
        };
        Ok(CutOperation { common, ticket, cut, cut_ended: ended, parts: done })
    }
}

type CutPart = Result<Part<Box<dyn CutSet>>, DriverError>;

/// Cuts the parts of all stores side by side.
async fn cut_all(parts: Vec<Part<Box<dyn Ready>>>, deadline: Instant, limit: Duration) -> Vec<CutPart> {
    let mut cuts = JoinSet::new();
    for Part { store, stage } in parts {
        cuts.spawn(async move {
            let cut = blocking::bounded(
                "cut the disks",
                limit,
                move || stage.cut(deadline),
                |cut: Box<dyn CutSet>| {
                    log_undo(cut.abandon());
                },
            );
            cut.await.map(|stage| Part { store, stage })
        });
    }
    cuts.join_all().await
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl CutOperation {
    /// Whether this is its ticket.
    pub fn has_ticket(&self, ticket: Ticket) -> bool {
        self.ticket == ticket
    }

    /// What the guest reads while it is frozen.
    pub fn done(&self) -> protocol::message::CutDone {
        let took_us = match self.cut {
            CutEvidence::InTime { took_us } | CutEvidence::Late { took_us, .. } => took_us,
            CutEvidence::Unknown => 0,
        };
        protocol::message::CutDone { ticket: self.ticket, took_us }
    }

    /// Decides what may be claimed and lets the storage settle. `evidence` is `None` where the
    /// guest was not heard of again.
    pub async fn conclude(self, evidence: Option<(Evidence, Timing)>) -> Result<Settling, WireError> {
        let Self { mut common, cut, cut_ended, parts, .. } = self;
        let record = &mut common.draft;
        match evidence {
            Some((evidence, timing)) => {
                let verdict = judge(&evidence, cut);
                record.consistency = verdict.consistency;
                record.consistency_reason = verdict.reason;
                record.timing = timing;
                record.evidence = Some(evidence);
                record.cut = cut;
            }
            None => {
                record.consistency = Consistency::Crash;
                record.consistency_reason =
                    Line::lossy("the guest's agent was not heard of again after the cut");
                record.cut = CutEvidence::Unknown;
            }
        }
        if record.consistency < record.minimum {
            let error = below_minimum(record);
            if abandon(parts, |cut| cut.abandon()).await {
                common.forget().await;
            }
            return Err(error);
        }
        settle::start(common, parts, cut_ended).await
    }
}

fn below_minimum(record: &SnapshotRecord) -> WireError {
    WireError::new(
        ErrorCode::ConsistencyNotReached,
        format!(
            "only {} consistency was reached where at least {} was asked for, and the snapshot was not kept: {}",
            record.consistency, record.minimum, record.consistency_reason
        ),
    )
    .hint(format!("try again, or accept less: --consistency {}", record.consistency))
}
