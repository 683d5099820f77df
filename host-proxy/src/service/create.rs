//! The beginning of a snapshot: everything is checked, all slow work done, the intent committed.
//! Nothing is frozen yet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use protocol::evidence::CutEvidence;
use protocol::fingerprint;
use protocol::message::{Planned, Prepare};
use protocol::record::{DiskRecord, State, Timing, UnixMillis};
use protocol::text::Line;
use protocol::{
    Consistency, DiskSerial, ErrorCode, Labels, Note, SnapshotId, SnapshotRecord, Ticket, WireError,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::manifest::Manifest;
use super::operation::{Common, Operation, Part, driver_name, log_undo};
use super::{Service, errors};
use crate::catalog::{Begun, Entry, Phase};
use crate::config::{Disk, Vm};
use crate::drivers::{Owner, Plan, Ready, Volume};
use crate::policy::{self, Allowed, Asker, Create};
use crate::world::World;

/// How long all slow work before the freeze may take.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);
/// How long a guest waits, not frozen, for others to finish.
const ADMISSION_LIMIT: Duration = Duration::from_secs(30);

/// What `prepare` came to.
pub enum Outcome {
    /// The cut may be asked for.
    Ready(Box<Operation>),
    /// This request was answered before: that is its snapshot.
    Existing(Box<SnapshotRecord>),
    /// A dry run: what would be done.
    Planned(Planned),
}

impl Service {
    /// Checks everything, does all slow work, commits the intent. Nothing is frozen yet.
    pub async fn prepare(
        self: &Arc<Self>,
        asker: Asker,
        vm: &Vm,
        prepare: &Prepare,
    ) -> Result<Outcome, WireError> {
        // What the machine made through other hosts counts, and a request that one of them answered is answered.
        self.freshen().await;
        let id = SnapshotId::derive(vm.uuid, prepare.request);
        let digest = digest(prepare);
        let claim = self.in_flight.claim(id);
        let entry = self.catalog(move |catalog| catalog.get(id)).await?;
        let claim = match (claim, entry) {
            // Concluded: whoever still settles it need not be waited for, nor who had it claimed a moment ago and has finished it
            // before it was read here.
            (_, Some(entry)) if matches!(entry.phase, Phase::Settling | Phase::Ready) => {
                return existing(entry, &digest);
            }
            (Some(_), Some(entry)) => return existing(entry, &digest),
            (Some(claim), None) => claim,
            (None, _) => {
                return Err(WireError::new(ErrorCode::Busy, "this request is being worked on already")
                    .hint("repeat it in a moment, with the same request id"));
            }
        };

        let allowed = self.decide(asker, vm, prepare).await?;
        self.refuse_if_restoring(vm.uuid, &allowed.get().serials()).await?;
        self.catalog(|catalog| catalog.has_room()).await?;
        let world = self.world();
        self.prove_volumes(asker, &world, &allowed).await?;
        // The administrator's are looked at where they are cut.
        let monitor = match asker {
            Asker::Guest => self.refuse_if_moving(vm).await?,
            Asker::Admin => None,
        };
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

        let draft = draft(id, self.now(), &allowed, prepare, &world);
        // What was decided a while ago is decided again with the intent: the same guest may have
        // come in by several connections.
        let beginning = self.beginning.lock().await;
        self.decide(asker, vm, prepare).await?;
        self.refuse_if_restoring(vm.uuid, &allowed.get().serials()).await?;
        let intent = draft.clone();
        match self.catalog(move |catalog| catalog.begin(&intent, &digest)).await? {
            Begun::Existing(entry) => return existing(*entry, &digest),
            Begun::New => {}
        }
        drop(beginning);
        let of_disks: BTreeSet<_> = allowed.get().disks.iter().map(|(disk, _)| disk.store.clone()).collect();
        let mut common = Common {
            service: Arc::clone(self),
            draft,
            stores: of_disks.len(),
            claim,
            _admitted: Some(admitted),
        };
        let parts = common.prepare_parts(&world, &allowed).await?;
        common.name_disks(parts.iter().map(|part| (part.store.as_ref(), part.stage.volumes())));
        let lease = Duration::from_millis(prepare.lease_ms.into()).min(world.config.service.max_lease);
        Ok(Outcome::Ready(Box::new(Operation {
            common,
            ticket: Ticket::random(),
            lease_ends: Instant::now() + lease,
            parts,
            monitor,
        })))
    }

    async fn decide(&self, asker: Asker, vm: &Vm, prepare: &Prepare) -> Result<Allowed<Create>, WireError> {
        let (vm_uuid, now) = (vm.uuid, self.now());
        let usage = self.catalog(move |catalog| catalog.usage(vm_uuid, now)).await?;
        policy::create(asker, vm, prepare, &usage)
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
            let (facts, head, free_bytes) = self
                .workers
                .bounded(
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
            policy::room(&disk.store, free_bytes, world.store(disk).config.min_free)?;
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

fn draft(
    id: SnapshotId,
    created_at: UnixMillis,
    allowed: &Allowed<Create>,
    prepare: &Prepare,
    world: &World,
) -> SnapshotRecord {
    let Create { vm, disks } = allowed.get();
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

impl Common {
    /// Readies the disks in every store. After a failure nothing is left, or the intent is.
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
                .filter(|(disk, _)| disk.store == store.config.name)
                .map(|(disk, _)| World::volume(vm, disk))
                .collect();
            if volumes.is_empty() {
                continue;
            }
            let plan =
                Plan { owner, volumes, manifest: Manifest::new(self.draft.clone(), self.stores).text() };
            let doing = "ready the snapshot";
            let used = Arc::clone(store);
            let deadline = (Instant::now() + PREPARE_LIMIT).into_std();
            let prepared = self
                .service
                .workers
                .claimed(
                    &self.claim,
                    doing,
                    PREPARE_LIMIT,
                    move || used.driver.prepare(&plan, deadline),
                    |ready: Box<dyn Ready>| {
                        log_undo(ready.abandon());
                    },
                )
                .await;
            match prepared {
                Ok(stage) => parts.push(Part { store: Arc::clone(store), stage }),
                Err(error) => {
                    let undone = self.abandon(parts, |ready: Box<dyn Ready>| ready.abandon()).await;
                    if undone && error.left_nothing() {
                        self.forget().await;
                    }
                    return Err(errors::of_driver(vm.name.as_str(), doing, &error));
                }
            }
        }
        Ok(parts)
    }
}
