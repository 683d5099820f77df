//! Disks of snapshots that are read on this host for somebody else, who is given them over NBD. As long as one is, its
//! snapshot is not removed, and not hidden. A note in the state folder outlives the service: what was shown is hidden then
//! by the next one.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::{DiskSerial, ErrorCode, SnapshotId, SnapshotRecord, VmUuid, WireError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::in_flight::Claim;
use super::{Service, errors, shown};
use crate::drivers::{DriverError, Extent, Kind, Owner};
use crate::export;
use crate::policy::{Allowed, Export};
use crate::world::Store;

/// How long the storage may take to show a disk, or to hide it.
const SHOW_LIMIT: Duration = Duration::from_secs(60);
/// How often, and with which pause, what is still open is tried to be hidden: a child that is killed is gone in a moment.
const TRIES: u32 = 25;
const PAUSE: Duration = Duration::from_millis(200);
/// The folder of the notes, in the state folder.
const NOTES: &str = "exports";

/// How many read each disk of each snapshot.
#[derive(Clone, Default)]
pub(super) struct Exports(Arc<Mutex<HashMap<Read, usize>>>);

type Read = (SnapshotId, DiskSerial);

impl Exports {
    fn begin(&self, read: Read) -> Reading {
        *self.0.lock().expect("no holder of this lock panics").entry(read.clone()).or_default() += 1;
        Reading { read, all: self.clone() }
    }

    /// Whether somebody reads this disk.
    pub(super) fn has(&self, snapshot: SnapshotId, disk: &DiskSerial) -> bool {
        self.0.lock().expect("no holder of this lock panics").contains_key(&(snapshot, disk.clone()))
    }

    fn has_any(&self, snapshot: SnapshotId) -> bool {
        self.0.lock().expect("no holder of this lock panics").keys().any(|(id, _)| *id == snapshot)
    }
}

/// As long as this lives, its disk is read.
struct Reading {
    read: Read,
    all: Exports,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().expect("no holder of this lock panics");
        if let Some(count) = all.get_mut(&self.read) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.read);
            }
        }
    }
}

/// What outlives the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    vm: VmUuid,
    snapshot: SnapshotId,
    disk: DiskSerial,
}

impl Note {
    const fn owner(&self) -> Owner {
        Owner { vm: self.vm, snapshot: self.snapshot }
    }
}

/// A disk that is shown, until [`Service::end_export`].
pub struct Exported {
    /// The disk's place in the record.
    pub index: usize,
    /// The disk.
    pub disk: DiskSerial,
    /// How large it is, in bytes.
    pub size_bytes: u64,
    /// What QEMU opens.
    pub node: Value,
    /// What changed on it, where that was asked for.
    pub changed: Option<Vec<Extent>>,
    note: Note,
    reading: Reading,
}

impl Service {
    /// Shows a disk of a snapshot on this host.
    pub async fn export(&self, allowed: Allowed<Export>) -> Result<Exported, WireError> {
        let Export { record, index, since } = allowed.into_inner();
        let disk = record.disks[index].clone();
        let changed = match since {
            Some(since) => {
                let all = self.changes(since, Some(disk.serial.clone())).await?;
                Some(all.into_iter().flat_map(|one| one.extents).collect())
            }
            None => None,
        };
        let claim = self.in_flight.claim(record.id).ok_or_else(|| {
            WireError::new(ErrorCode::Busy, format!("the snapshot {} is being worked on", record.id))
                .hint("try again in a moment")
        })?;
        // It may have been removed before it was claimed.
        let id = record.id;
        if self.catalog(move |catalog| catalog.get(id)).await?.is_none() {
            return Err(WireError::new(ErrorCode::NotFound, format!("there is no snapshot {id} any more")));
        }
        let note = Note { vm: record.vm_uuid, snapshot: id, disk: disk.serial.clone() };
        let reading = self.exports.begin((id, disk.serial.clone()));
        let doing = format!("show the disk {} of the snapshot {id}", disk.serial);
        let (path, text) = (self.note(&note), serde_json::to_vec(&note).expect("no value that JSON lacks"));
        let (stores, noted, size_bytes) = (self.stores(), note.clone(), disk.size_bytes);
        let show = move || {
            let written =
                path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
            written.map_err(|error| DriverError::io(format!("write {}", path.display()), error))?;
            let (_, exposed) = shown::expose(&stores, noted.owner(), &noted.disk)?;
            shown::refuse_what_is_too_short(&exposed, size_bytes)?;
            Ok(exposed)
        };
        match self.workers.claimed(&claim, &doing, SHOW_LIMIT, show, drop).await {
            Ok(exposed) => Ok(Exported {
                index,
                disk: disk.serial,
                size_bytes: disk.size_bytes,
                node: export::node(&exposed),
                changed,
                note,
                reading,
            }),
            Err(error) => {
                drop(reading);
                // After a deadline the call may still be out: the note stays, and `tend_exports` looks after it.
                if error.kind != Kind::DeadlinePassed {
                    self.hide(&note, &claim).await;
                }
                Err(match error.kind {
                    Kind::Unsupported => WireError::new(
                        ErrorCode::Unsupported,
                        format!("the storage of the disk {} shows no snapshots on this host", note.disk),
                    )
                    .hint("hostsnapd check tells what each disk's storage can do: expose is what this needs"),
                    _ => errors::of_driver(record.vm.as_str(), &doing, &error),
                })
            }
        }
    }

    /// Nobody reads it any more: hides it, unless somebody else needs it.
    pub async fn end_export(&self, exported: Exported) {
        let Exported { note, reading, .. } = exported;
        drop(reading);
        for _ in 0..TRIES {
            if let Some(claim) = self.in_flight.claim(note.snapshot)
                && self.hide(&note, &claim).await
            {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::warn!("the disk {} of {} stays shown, and is looked after again", note.disk, note.snapshot);
    }

    /// What a service that was killed has left shown.
    pub(super) async fn tend_exports(&self) {
        let folder = self.world().config.service.state_dir.join(NOTES);
        let notes = self.workers.unbounded(move || notes_in(&folder)).await.unwrap_or_default();
        for note in notes {
            if self.exports.has(note.snapshot, &note.disk) {
                continue;
            }
            if let Some(claim) = self.in_flight.claim(note.snapshot) {
                self.hide(&note, &claim).await;
            }
        }
    }

    /// Refuses while somebody reads a disk of it.
    pub(super) fn refuse_if_exported(&self, record: &SnapshotRecord) -> Result<(), WireError> {
        if !self.exports.has_any(record.id) {
            return Ok(());
        }
        Err(WireError::new(ErrorCode::Busy, format!("the snapshot {} is being exported", record.id))
            .hint("first end the hostsnapd export that serves it"))
    }

    /// Whether nothing is left to do.
    async fn hide(&self, note: &Note, claim: &Arc<Claim>) -> bool {
        if self.exports.has(note.snapshot, &note.disk) {
            return true;
        }
        let id = note.snapshot;
        let Ok(attached) = self.catalog(move |catalog| catalog.attached_of(id)).await else { return false };
        // A guest that has it attached needs it shown; its end hides it.
        let is_attached = attached.iter().any(|one| one.attachment.disk == note.disk);
        let (path, stores, noted) = (self.note(note), self.stores(), note.clone());
        let doing = format!("hide the disk {} of the snapshot {id}", note.disk);
        let hide = move || {
            if !is_attached {
                shown::conceal(&stores, noted.owner(), &noted.disk)?;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(DriverError::io(format!("remove {}", path.display()), error))
                }
                _ => Ok(()),
            }
        };
        match self.workers.claimed(claim, &doing, SHOW_LIMIT, hide, drop).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!("{doing}: {}", errors::chain(&error));
                false
            }
        }
    }

    fn stores(&self) -> Vec<Arc<Store>> {
        self.world().stores().map(Arc::clone).collect()
    }

    /// By the snapshot and, since a serial may hold anything, by a sum of it.
    fn note(&self, note: &Note) -> PathBuf {
        let folder = self.world().config.service.state_dir.join(NOTES);
        let serial: String = note.disk.as_str().bytes().map(|byte| format!("{byte:02x}")).collect();
        folder.join(format!("{}.{serial}", note.snapshot))
    }
}

fn notes_in(folder: &Path) -> Vec<Note> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()).collect()
}
