//! Which disks a restore is about, and the proof that it would work: the storage can, the volume is the guest's, its size
//! and what stands on it are those of the snapshot.

use std::sync::Arc;
use std::time::Duration;

use protocol::fingerprint::{self, Fingerprint};
use protocol::message::DiskRequest;
use protocol::record::DiskRecord;
use protocol::restore::{Layout, Restore as Wanted, RestoredDisk};
use protocol::{DiskSerial, ErrorCode, SnapshotRecord, WireError};

use super::super::in_flight::Claim;
use super::super::{Service, errors, shown};
use crate::catalog::Restoring as Row;
use crate::drivers::{DriverError, Exposed, Kind, Others, Owner, Source, Volume, restore};
use crate::policy::{Allowed, Asker, Restore};
use crate::world::{Store, World};

/// How long a storage may take to say whether it could.
const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// A disk that is overwritten.
pub(super) struct Target {
    pub(super) disk: DiskRecord,
    pub(super) volume: Volume,
    pub(super) store: Arc<Store>,
}

impl Target {
    pub(super) fn told(&self) -> RestoredDisk {
        let DiskRecord { serial, driver, size_bytes, .. } = self.disk.clone();
        RestoredDisk { serial, driver, size_bytes }
    }
}

/// What stands on the volume, and on its snapshot where this host can look.
struct Marks {
    now: Fingerprint,
    then: Option<Fingerprint>,
}

impl Service {
    /// Checks all, and changes nothing.
    pub(super) async fn targets(
        &self,
        asker: Asker,
        allowed: Allowed<Restore>,
        wanted: &Wanted,
        claim: &Arc<Claim>,
    ) -> Result<Vec<Target>, WireError> {
        let Restore { vm, record, disks } = allowed.into_inner();
        if asker == Asker::Admin {
            self.refuse_if_it_runs(&vm).await?;
        }
        let serials: Vec<DiskSerial> = disks.iter().map(|disk| disk.serial.clone()).collect();
        self.refuse_if_restoring(vm.uuid, &serials).await?;
        let mut targets = Vec::with_capacity(disks.len());
        for disk in disks {
            let asked = wanted.disks.iter().find(|one| one.serial.same_disk(&disk.serial));
            let target = self.target(&record, disk)?;
            let marks = self.prove(&record, &target, others_of(asker), claim).await?;
            if let (Asker::Guest, Some(asked)) = (asker, asked) {
                is_the_guests(&target.disk, asked, &marks)?;
            }
            if wanted.layout == Layout::Same && marks.then.as_ref().is_some_and(|then| *then != marks.now) {
                return Err(WireError::new(
                    ErrorCode::DiskMismatch,
                    format!(
                        "the disk {} has another partition table or file system than in the snapshot {}",
                        target.disk.serial, record.id
                    ),
                )
                .hint("it was partitioned or formatted since; to go back all the same: --changed-layout"));
            }
            targets.push(target);
        }
        Ok(targets)
    }

    /// The disks of a restore that was begun: they were checked then.
    pub(super) fn targets_of(&self, row: &Row, record: &SnapshotRecord) -> Result<Vec<Target>, WireError> {
        let disks = record.disks.iter().filter(|disk| row.holds(&disk.serial));
        disks.map(|disk| self.target(record, disk.clone())).collect()
    }

    fn target(&self, record: &SnapshotRecord, disk: DiskRecord) -> Result<Target, WireError> {
        let store = self.store_of(record.vm.as_str(), record.vm_uuid, &disk.serial, &disk.driver)?;
        let world = self.world();
        let vm = world.vm(record.vm_uuid);
        let configured = vm.and_then(|vm| Some((vm, vm.disks.iter().find(|one| one.serial == disk.serial)?)));
        let (vm, configured) = configured.ok_or_else(|| {
            let text = format!("{} has no disk {} any more", record.vm, disk.serial);
            WireError::new(ErrorCode::UnknownDisk, text).hint("hostsnapd vms shows the disks there are")
        })?;
        Ok(Target { volume: World::volume(vm, configured), disk, store })
    }

    async fn prove(
        &self,
        record: &SnapshotRecord,
        target: &Target,
        others: Others,
        claim: &Arc<Claim>,
    ) -> Result<Marks, WireError> {
        let doing = format!("restore the disk {}", target.disk.serial);
        let (store, volume) = (Arc::clone(&target.store), target.volume.clone());
        let owner = Owner { vm: record.vm_uuid, snapshot: record.id };
        let size_bytes = target.disk.size_bytes;
        let prove = move || marks(&store, owner, &volume, others, size_bytes);
        let proved = self.workers.claimed(claim, &doing, CHECK_LIMIT, prove, drop);
        proved.await.map_err(|error| match error.kind {
            Kind::Unsupported => {
                let driver = &target.disk.driver;
                let why = error.told.unwrap_or("it can't");
                tracing::info!(vm = %record.vm, "{doing}: {}", errors::chain(&error));
                WireError::new(ErrorCode::Unsupported, format!("{doing} in place, by the driver {driver}: {why}"))
                    .hint("hostsnap disks shows what each disk's storage can do; hostsnap mount and cp read the snapshot")
            }
            _ => errors::of_driver(record.vm.as_str(), &doing, &error),
        })
    }
}

/// A guest asks for itself, and its machine runs; the administrator for one that is stopped.
pub(super) fn others_of(asker: Asker) -> Others {
    if asker == Asker::Admin { Others::Nobody } else { Others::Machine }
}

fn marks(
    store: &Store,
    owner: Owner,
    volume: &Volume,
    others: Others,
    size_bytes: u64,
) -> Result<Marks, DriverError> {
    let doing = || format!("ask the driver {} to restore {}", store.driver.name(), volume.source);
    let able = store.driver.restore().ok_or_else(|| DriverError::new(Kind::Unsupported, doing()))?;
    let now = fingerprint::of_head(&store.driver.read_head(volume, fingerprint::HEAD_BYTES)?);
    let then = match store.driver.exposes() {
        None => None,
        Some(show) => {
            let exposed = show.expose(owner, &volume.serial)?;
            let head = head_then(store, able, owner, volume, &exposed, size_bytes);
            if let Err(error) = show.conceal(owner, &volume.serial) {
                // It is hidden later: `left_shown`, or who deletes the snapshot.
                tracing::warn!("before a restore: {}", errors::chain(&error));
            }
            head?.map(|head| fingerprint::of_head(&head))
        }
    };
    able.can_restore(owner, volume, others)?;
    Ok(Marks { now, then })
}

/// The first bytes of what the snapshot has of a volume. A damaged one is told before its size is compared with the volume's.
fn head_then(
    store: &Store,
    able: &dyn restore::Restore,
    owner: Owner,
    volume: &Volume,
    exposed: &Exposed,
    size_bytes: u64,
) -> Result<Option<Vec<u8>>, DriverError> {
    let Exposed::Path { path, format } = exposed else {
        return able.head_then(owner, volume, fingerprint::HEAD_BYTES);
    };
    shown::refuse_what_is_too_short(exposed, size_bytes)?;
    let source = Source::Path(path.clone());
    let snapshot = Volume { source, format: *format, ..volume.clone() };
    store.driver.read_head(&snapshot, fingerprint::HEAD_BYTES).map(Some)
}

/// What the guest reads of the disk must be what the host reads of the volume, now.
fn is_the_guests(disk: &DiskRecord, asked: &DiskRequest, marks: &Marks) -> Result<(), WireError> {
    let size = disk.size_bytes;
    if asked.size_bytes != size {
        return Err(WireError::new(
            ErrorCode::DiskMismatch,
            format!("the disk {} has {} bytes, the snapshot {size}", disk.serial, asked.size_bytes),
        )
        .hint("it was resized since: give it that size again, or copy files out with hostsnap cp"));
    }
    if asked.fingerprint != marks.now {
        return Err(WireError::new(
            ErrorCode::DiskMismatch,
            format!(
                "the partition table or file system that the guest reads on the disk {} is not the one that the host reads",
                disk.serial
            ),
        )
        .hint("the host's administrator corrects the path of this [[vm.disk]]"));
    }
    Ok(())
}
