//! Who may do what. Pure: values in, a decision out.
//!
//! Every decision in favour is an [`Allowed`], whose contents only this module can make; the
//! service takes nothing else, so a forgotten check does not compile.

mod attach;
mod export;
mod restore;

use protocol::message::{DiskRequest, Prepare};
use protocol::record::{SnapshotRecord, State, UnixMillis};
use protocol::{DiskSerial, ErrorCode, VmUuid, WireError};

pub use attach::{Attach, Detach, attach, clones, detach, detach_as_admin};
pub use export::{Export, export_as_admin};

pub use restore::{Restore, restore};

use crate::catalog::Usage;
use crate::config::{Disk, Verb, Vm};

/// Something that policy allows. Read it with [`Allowed::get`]; there is no other way to make one
/// than to ask this module.
#[derive(Debug, Clone)]
pub struct Allowed<T>(T);

impl<T> Allowed<T> {
    /// What is allowed.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// What is allowed, by value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// The guest itself, over its own link.
    Guest,
    /// The host's administrator, over the control socket.
    Admin,
}

/// A snapshot of these disks of this machine may be taken.
#[derive(Debug, Clone)]
pub struct Create {
    /// The machine.
    pub vm: Vm,
    /// Its disks, each as configured and as asked for.
    pub disks: Vec<(Disk, DiskRequest)>,
}

impl Create {
    /// Its disks, by serial.
    pub fn serials(&self) -> Vec<DiskSerial> {
        self.disks.iter().map(|(disk, _)| disk.serial.clone()).collect()
    }
}

/// The snapshots of this machine may be read; `None` is every machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope(pub Option<VmUuid>);

/// This snapshot may be removed.
#[derive(Debug, Clone)]
pub struct Delete(pub SnapshotRecord);

/// What changed between these two snapshots of one machine may be told.
#[derive(Debug, Clone)]
pub struct Compare {
    /// What it is compared with.
    pub from: SnapshotRecord,
    /// What is compared.
    pub to: SnapshotRecord,
}

/// This snapshot may be locked until then, or unlocked.
#[derive(Debug, Clone)]
pub struct Lock {
    /// Which.
    pub record: SnapshotRecord,
    /// Until when; `None` unlocks.
    pub until: Option<UnixMillis>,
}

/// Decides on a new snapshot. A repeat of a request that was answered never comes here.
pub fn create(asker: Asker, vm: &Vm, prepare: &Prepare, usage: &Usage) -> Result<Allowed<Create>, WireError> {
    may(asker, vm, Verb::Create)?;
    if prepare.disks.is_empty() {
        return Err(WireError::new(ErrorCode::BadRequest, "the request names no disk"));
    }
    let mut disks: Vec<(Disk, DiskRequest)> = Vec::with_capacity(prepare.disks.len());
    for wanted in &prepare.disks {
        let disk = vm.disks.iter().find(|disk| disk.serial.same_disk(&wanted.serial)).ok_or_else(|| {
            WireError::new(
                ErrorCode::UnknownDisk,
                format!("the host knows no disk {} of the virtual machine {}", wanted.serial, vm.name),
            )
            .hint("the host's administrator adds it as [[vm.disk]], with the serial that the guest reads")
        })?;
        if disks.iter().any(|(known, _)| known.serial == disk.serial) {
            return Err(WireError::new(
                ErrorCode::BadRequest,
                format!("the request names the disk {} twice", disk.serial),
            ));
        }
        disks.push((disk.clone(), wanted.clone()));
    }
    within_quota(vm, &disks, usage)?;
    Ok(Allowed(Create { vm: vm.clone(), disks }))
}

fn within_quota(vm: &Vm, disks: &[(Disk, DiskRequest)], usage: &Usage) -> Result<(), WireError> {
    let quota = &vm.quota;
    if usage.snapshots >= quota.snapshots {
        return over(format!("{} has {} snapshots of {} allowed", vm.name, usage.snapshots, quota.snapshots));
    }
    if usage.created_last_hour >= quota.per_hour {
        return over(format!(
            "{} took {} snapshots in the last hour of {} allowed",
            vm.name, usage.created_last_hour, quota.per_hour
        ));
    }
    let asked = disks.iter().fold(0u64, |sum, (_, disk)| sum.saturating_add(disk.size_bytes));
    within_bytes(vm, asked, usage)
}

/// Decides on the bytes that are asked for beside those that a machine has.
fn within_bytes(vm: &Vm, asked: u64, usage: &Usage) -> Result<(), WireError> {
    match vm.quota.bytes {
        Some(allowed) if usage.bytes.saturating_add(asked) > allowed => over(format!(
            "{asked} bytes more would exceed the {allowed} bytes allowed to {}, of which {} are used",
            vm.name, usage.bytes
        )),
        _ => Ok(()),
    }
}

fn over(what: String) -> Result<(), WireError> {
    Err(WireError::new(ErrorCode::QuotaExceeded, what)
        .hint("delete snapshots that you no longer need, or ask the host's administrator for more"))
}

/// Decides on the pool: a snapshot must leave the floor free.
pub fn room(store: &str, free_bytes: u64, floor_bytes: u64) -> Result<(), WireError> {
    if free_bytes >= floor_bytes {
        return Ok(());
    }
    Err(WireError::new(
        ErrorCode::QuotaExceeded,
        format!(
            "the store {store} has {free_bytes} bytes free, less than the {floor_bytes} that must stay free"
        ),
    )
    .hint("delete snapshots, or ask the host's administrator for room"))
}

/// Decides on reading one's own disks and snapshots.
pub fn read(asker: Asker, vm: &Vm) -> Result<Allowed<Scope>, WireError> {
    may(asker, vm, Verb::List)?;
    Ok(Allowed(Scope(Some(vm.uuid))))
}

/// The administrator reads everything, or one machine's.
pub fn read_as_admin(vm: Option<VmUuid>) -> Allowed<Scope> {
    Allowed(Scope(vm))
}

/// The administrator removes anything that is not locked.
pub fn delete_as_admin(record: &SnapshotRecord, now: UnixMillis) -> Result<Allowed<Delete>, WireError> {
    unlocked(record, now)?;
    Ok(Allowed(Delete(record.clone())))
}

/// The administrator compares what can be compared: whole snapshots of one machine.
pub fn compare_as_admin(from: &SnapshotRecord, to: &SnapshotRecord) -> Result<Allowed<Compare>, WireError> {
    if from.vm_uuid != to.vm_uuid {
        return Err(WireError::new(
            ErrorCode::BadRequest,
            format!(
                "{} is of {}, {} of {}: only snapshots of one machine are compared",
                from.id, from.vm, to.id, to.vm
            ),
        ));
    }
    match [from, to].into_iter().find(|record| record.state != State::Ready) {
        None => Ok(Allowed(Compare { from: from.clone(), to: to.clone() })),
        Some(record) => Err(WireError::new(
            ErrorCode::Busy,
            format!("the snapshot {} is not ready but {}", record.id, record.state.as_str()),
        )
        .hint("hostsnapd list shows which are ready")),
    }
}

/// The administrator locks what is whole, and unlocks anything. No guest does either.
pub fn lock_as_admin(
    record: &SnapshotRecord,
    until: Option<UnixMillis>,
    now: UnixMillis,
) -> Result<Allowed<Lock>, WireError> {
    match (until, record.state) {
        (Some(until), _) if until <= now => Err(WireError::new(
            ErrorCode::BadRequest,
            format!("a lock until {} would be over already", protocol::view::rfc3339(until)),
        )
        .hint("give a moment to come: --until 2030-01-31, or --for 30d")),
        (Some(_), State::Settling) => {
            Err(WireError::new(ErrorCode::Busy, format!("the snapshot {} is not ready", record.id))
                .hint("lock it when it is: hostsnapd show"))
        }
        (Some(_), State::Failed) => Err(WireError::new(
            ErrorCode::Unsupported,
            format!("the storage lost the snapshot {}: there is nothing that a lock could keep", record.id),
        )
        .hint("hostsnapd list shows those that are ready")),
        _ => Ok(Allowed(Lock { record: record.clone(), until })),
    }
}

/// Decides on a guest's removal of a snapshot.
pub fn delete(vm: &Vm, record: &SnapshotRecord, now: UnixMillis) -> Result<Allowed<Delete>, WireError> {
    // A neighbour's snapshot does not exist: the answer must not tell whether it does.
    if record.vm_uuid != vm.uuid {
        return Err(not_found(&record.id.to_string()));
    }
    may(Asker::Guest, vm, Verb::Delete)?;
    if !vm.guest_may_delete {
        return Err(WireError::new(
            ErrorCode::Refused,
            format!("the host lets {} take snapshots but not delete them", vm.name),
        )
        .hint("ask the host's administrator: hostsnapd delete, or guest_may_delete = true"));
    }
    unlocked(record, now)?;
    Ok(Allowed(Delete(record.clone())))
}

/// Decides on what nobody asked for: a snapshot whose time is over. `kept_ms` is for how long it was kept with a
/// date in the future, which tells nothing of its age.
pub fn expire(record: &SnapshotRecord, now: UnixMillis, kept_ms: u64) -> Option<Allowed<Delete>> {
    let end = record.expires_at?;
    let to_keep = end.0.saturating_sub(record.created_at.0);
    let over = end <= now || (kept_ms > 0 && kept_ms >= to_keep);
    (over && unlocked(record, now).is_ok()).then(|| Allowed(Delete(record.clone())))
}

/// The answer where there is nothing, or nothing that the asker may know of.
pub fn not_found(reference: &str) -> WireError {
    WireError::new(ErrorCode::NotFound, format!("there is no snapshot {reference}"))
        .hint("hostsnap list shows those there are")
}

fn unlocked(record: &SnapshotRecord, now: UnixMillis) -> Result<(), WireError> {
    match record.locked_until {
        Some(until) if until > now => Err(WireError::new(
            ErrorCode::Locked,
            format!("the snapshot {} is locked until {}", record.id, protocol::view::rfc3339(until)),
        )
        .hint(format!("wait until then, or ask the host's administrator: hostsnapd unlock {}", record.id))),
        _ => Ok(()),
    }
}

fn may(asker: Asker, vm: &Vm, verb: Verb) -> Result<(), WireError> {
    if asker == Asker::Admin || vm.allow.contains(&verb) {
        return Ok(());
    }
    Err(WireError::new(ErrorCode::Refused, format!("the host does not allow {} to {verb}", vm.name))
        .hint("ask the host's administrator: the verbs are in [[vm]] allow"))
}

#[cfg(test)]
mod tests;
