//! A snapshot's disks in the machine that it is of: plugged in on its guest's wish, and taken out
//! again. One machine's attachments are worked on by one at a time; and while they are, nothing else
//! works on their snapshot.
//!
//! | module | idea |
//! |---|---|
//! | this one | what is asked for: attach, detach, what is there |
//! | `work` | what one attachment is made of, and how it is undone; blocks |
//! | `truth` | the catalog against QEMU: stopped machines, what a killed service left |

mod truth;
mod work;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::attach::{Access, Attach as Wanted, AttachedName, Attachment, DetachOutcome, MAX_ATTACHED};
use protocol::record::DiskRecord;
use protocol::{ErrorCode, SnapshotId, SnapshotRecord, VmUuid, WireError};
use tokio::sync::OwnedMutexGuard;

use super::in_flight::Claim;
use super::{Service, errors};
use crate::catalog::{Attached, Stage};
use crate::config::Vm;
use crate::drivers::Kind;
use crate::policy::{self, Allowed, Asker, Attach, Detach};
use crate::world::Store;
pub(super) use truth::Unknown;
use work::Work;

/// How long the host may take to plug one disk in.
const PLUG_LIMIT: Duration = Duration::from_secs(60);
/// How long a guest may take to release its disks. PCIe hot plug waits five seconds by itself.
const RELEASE_LIMIT: Duration = Duration::from_secs(15);
/// How long taking one out may take beside that.
const UNDO_LIMIT: Duration = Duration::from_secs(60);

/// Whose turn it is to work on a machine's attachments, or to pause it.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<VmUuid, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    pub(super) async fn of(&self, vm: VmUuid) -> OwnedMutexGuard<()> {
        let turn = Arc::clone(self.0.lock().expect("no holder of this lock panics").entry(vm).or_default());
        turn.lock_owned().await
    }
}

impl Service {
    /// Attaches disks of a snapshot to its machine. What is attached already is given again.
    pub async fn attach(&self, vm: &Vm, wanted: &Wanted) -> Result<Vec<Attachment>, WireError> {
        let _turn = self.turns.of(vm.uuid).await;
        self.end_what_is_over(vm.uuid, Duration::ZERO).await?;
        let scope = policy::read(Asker::Guest, vm)?;
        let reference = wanted.id.to_string().parse().expect("an identifier is a valid reference");
        let record = self.get(&scope, reference).await?;
        let allowed = policy::attach(vm, &record, wanted)?;
        let claim = self.claim(record.id)?;
        self.attach_allowed(allowed, &claim).await
    }

    async fn attach_allowed(
        &self,
        allowed: Allowed<Attach>,
        claim: &Arc<Claim>,
    ) -> Result<Vec<Attachment>, WireError> {
        let Attach { vm, record, disks, access } = allowed.into_inner();
        let mut there = self.catalog(|catalog| catalog.attached()).await?;
        there.retain(|attached| attached.vm == vm.uuid);
        let mut all = Vec::with_capacity(disks.len());
        let mut new = Vec::new();
        for (index, disk) in disks {
            let name = AttachedName::new(record.id, index);
            match there.iter().find(|attached| attached.attachment.serial == name.serial()) {
                Some(attached) => all.push(as_asked(attached, &record, access)?),
                None => new.push(self.plan(&vm, &record, &disk, &name, access)?),
            }
        }
        if there.len() + new.len() > MAX_ATTACHED {
            let text = format!("{} would have more than {MAX_ATTACHED} attached disks", vm.name);
            return Err(WireError::new(ErrorCode::QuotaExceeded, text)
                .hint("hostsnap list shows what is attached; hostsnap detach gives it back"));
        }
        self.has_room_for_clones(&vm, &new).await?;
        let mut made: Vec<Attached> = Vec::new();
        for attached in new {
            if let Err(error) = self.plug_in(&vm, &record, attached.clone(), claim).await {
                for attached in made {
                    // What can't be taken out now is tended to later; it is in the catalog.
                    let _ = self.take_out(&attached, claim, RELEASE_LIMIT).await;
                }
                return Err(error);
            }
            made.push(attached);
        }
        all.extend(made.into_iter().map(|attached| attached.attachment));
        all.sort_by(|a, b| a.serial.cmp(&b.serial));
        Ok(all)
    }

    /// What is going to be attached, and how it will be undone.
    fn plan(
        &self,
        vm: &Vm,
        record: &SnapshotRecord,
        disk: &DiskRecord,
        name: &AttachedName,
        access: Access,
    ) -> Result<Attached, WireError> {
        let monitor = vm.monitor().ok_or_else(|| {
            WireError::new(
                ErrorCode::Unsupported,
                format!("the host can't plug disks into {}: it knows no QMP socket of it", vm.name),
            )
            .hint(
                "the host's administrator gives QEMU -qmp unix:/run/vm/NAME.qmp,server=on,wait=off and the \
                 [[vm]] qmp = \"/run/vm/NAME.qmp\"",
            )
        })?;
        if !self.can_show(disk) {
            return Err(WireError::new(
                ErrorCode::Unsupported,
                format!(
                    "the disk {} can't be attached from a snapshot: the driver {} can't show one on the host",
                    disk.serial, disk.driver
                ),
            )
            .hint(
                "hostsnap disks says which disks can be attached; the host's administrator restores from it",
            ));
        }
        let clone = match access {
            Access::ReadOnly => None,
            Access::Writable => Some(self.folder_of_clones(vm, disk).join(format!("{name}.qcow2"))),
        };
        Ok(Attached {
            attachment: Attachment {
                snapshot: record.id,
                disk: disk.serial.clone(),
                serial: name.serial(),
                access,
                size_bytes: disk.size_bytes,
            },
            vm: vm.uuid,
            stage: Stage::Attaching,
            monitor,
            clone,
        })
    }

    /// Where no store of its driver is configured any more, the search for it says so.
    fn can_show(&self, disk: &DiskRecord) -> bool {
        let world = self.world();
        let mut of_driver =
            world.stores().filter(|store| store.driver.name() == disk.driver.as_str()).peekable();
        of_driver.peek().is_none() || of_driver.any(|store| store.driver.exposes().is_some())
    }

    async fn has_room_for_clones(&self, vm: &Vm, new: &[Attached]) -> Result<(), WireError> {
        let clones = new.iter().filter(|attached| attached.clone.is_some());
        let asked = clones.fold(0u64, |sum, attached| sum.saturating_add(attached.attachment.size_bytes));
        let (uuid, now) = (vm.uuid, self.now());
        let usage = self.catalog(move |catalog| catalog.usage(uuid, now)).await?;
        policy::clones(vm, asked, &usage)
    }

    /// Intent first; what fails is undone, or tended to later.
    async fn plug_in(
        &self,
        vm: &Vm,
        record: &SnapshotRecord,
        attached: Attached,
        claim: &Arc<Claim>,
    ) -> Result<(), WireError> {
        let intent = attached.clone();
        self.catalog(move |catalog| catalog.enter_attached(&intent)).await?;
        let work = self.work(record.vm_uuid, &attached);
        let doing = format!("attach the disk {} of the snapshot {}", attached.attachment.disk, record.id);
        let made = self.workers.claimed(claim, &doing, PLUG_LIMIT, move || work.make(), drop).await;
        if let Err(error) = made {
            let told = errors::of_attaching(vm.name.as_str(), &doing, &error);
            // The call may still be out: what it makes is undone when it is back, as what a killed service left.
            if error.kind == Kind::DeadlinePassed {
                return Err(told);
            }
            if let Err(undo) = self.take_out(&attached, claim, RELEASE_LIMIT).await {
                tracing::warn!(vm = %vm.name, "{doing}: undoing it failed too, tried again later: {undo}");
            }
            return Err(told);
        }
        self.catalog(move |catalog| catalog.move_attached(&attached, Stage::Attached)).await
    }

    /// Takes out what is attached of a snapshot.
    pub async fn detach(&self, allowed: Allowed<Detach>) -> Result<DetachOutcome, WireError> {
        let Detach { vm, snapshot } = allowed.into_inner();
        let _turn = self.turns.of(vm).await;
        let mut attached = self.catalog(move |catalog| catalog.attached_of(snapshot)).await?;
        attached.retain(|attached| attached.vm == vm);
        if attached.is_empty() {
            return Ok(DetachOutcome::WasNotAttached);
        }
        let claim = self.claim(snapshot)?;
        for one in &attached {
            self.take_out(one, &claim, RELEASE_LIMIT).await?;
        }
        Ok(DetachOutcome::Detached)
    }

    /// Undoes one attachment, however far it came, and forgets it.
    async fn take_out(
        &self,
        attached: &Attached,
        claim: &Arc<Claim>,
        limit: Duration,
    ) -> Result<(), WireError> {
        let detaching = attached.clone();
        self.catalog(move |catalog| catalog.move_attached(&detaching, Stage::Detaching)).await?;
        let mut work = self.work(attached.vm, attached);
        if self.exports.has(attached.attachment.snapshot, &attached.attachment.disk) {
            work.leave_shown();
        }
        let doing = format!(
            "detach the disk {} of the snapshot {}",
            attached.attachment.disk, attached.attachment.snapshot
        );
        let undone =
            self.workers.claimed(claim, &doing, limit + UNDO_LIMIT, move || work.undo(limit), drop).await;
        if let Err(error) = undone {
            return Err(errors::of_attaching(&self.name_of(attached.vm), &doing, &error));
        }
        let out = attached.clone();
        self.catalog(move |catalog| catalog.forget_attached(&out)).await
    }

    /// What a machine has attached.
    pub async fn attachments(&self, vm: &Vm) -> Result<Vec<Attachment>, WireError> {
        let _turn = self.turns.of(vm.uuid).await;
        self.end_what_is_over(vm.uuid, Duration::ZERO).await?;
        let attached = self.catalog(|catalog| catalog.attached()).await?;
        let of_it = attached.into_iter().filter(|one| one.vm == vm.uuid && one.stage != Stage::Attaching);
        Ok(of_it.map(|attached| attached.attachment).collect())
    }

    /// Refuses while something is attached of a snapshot.
    pub(super) async fn refuse_if_attached(&self, record: &SnapshotRecord) -> Result<(), WireError> {
        let id = record.id;
        let attached = self.catalog(move |catalog| catalog.attached_of(id)).await?;
        match attached.first() {
            None => Ok(()),
            Some(attached) => Err(WireError::new(
                ErrorCode::Busy,
                format!("the snapshot {id} is attached to {}", self.name_of(attached.vm)),
            )
            .hint(format!(
                "first: hostsnap detach {id}, in that machine; or hostsnapd detach {id}, on the host"
            ))),
        }
    }

    pub(super) fn claim(&self, id: SnapshotId) -> Result<Arc<Claim>, WireError> {
        self.in_flight.claim(id).ok_or_else(|| {
            WireError::new(ErrorCode::Busy, format!("the snapshot {id} is being worked on"))
                .hint("try again in a moment")
        })
    }

    pub(super) fn name_of(&self, vm: VmUuid) -> String {
        self.world().vm(vm).map_or_else(|| vm.to_string(), |vm| vm.name.to_string())
    }

    fn work(&self, vm: VmUuid, attached: &Attached) -> Work {
        let stores: Vec<Arc<Store>> = self.world().stores().map(Arc::clone).collect();
        Work::new(vm, attached, stores)
    }

    /// Beside the snapshots, where they are files; else with the catalog.
    fn folder_of_clones(&self, vm: &Vm, disk: &DiskRecord) -> PathBuf {
        let world = self.world();
        let configured = vm.disks.iter().find(|one| one.serial == disk.serial);
        let folder = configured.and_then(|disk| world.store(disk).config.backend.folder());
        match folder {
            Some(folder) => folder.join(".hostsnap").join(work::CLONES),
            None => world.config.service.state_dir.join(work::CLONES),
        }
    }
}

/// What is there already, if it is what was asked for.
fn as_asked(attached: &Attached, record: &SnapshotRecord, access: Access) -> Result<Attachment, WireError> {
    let Attachment { disk, access: is, .. } = &attached.attachment;
    let busy = |text: String, hint: String| Err(WireError::new(ErrorCode::Busy, text).hint(hint));
    let id = record.id;
    match attached.stage {
        _ if attached.attachment.snapshot != id => busy(
            format!("{}, of another snapshot, has the same serial", attached.attachment.serial),
            format!("first: hostsnap detach {}", attached.attachment.snapshot),
        ),
        Stage::Attached if *is == access => Ok(attached.attachment.clone()),
        Stage::Attached => busy(
            format!("the disk {disk} of the snapshot {id} is attached already, {}", is.as_str()),
            format!("first: hostsnap detach {id}"),
        ),
        Stage::Attaching | Stage::Detaching => busy(
            format!("the disk {disk} of the snapshot {id} is being taken out, and not yet released"),
            format!("unmount what is mounted from it; then hostsnap detach {id} again"),
        ),
    }
}
