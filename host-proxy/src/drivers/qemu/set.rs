//! The copies of one snapshot, from the files that QEMU is handed to the end of its backup jobs.

use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::job::{self, Name, State};
use super::{LIMIT, POLL_EVERY, connect, of_qmp};
use crate::drivers::folder::{self, Folder};
use crate::drivers::{Continue, CutSet, DriverError, Kind, Owner, Progress, Ready, Volume, VolumeSnapshot};
use crate::vmm::disk;
use crate::vmm::qmp::{Qmp, QmpError, Unfinished};

/// The copy of one disk.
struct Copy {
    name: Name,
    /// What is copied; empty after `recover`, which needs it no more.
    source: String,
    file: File,
    path: PathBuf,
}

/// The copies of one snapshot.
pub(super) struct Set {
    folder: Folder,
    owner: Owner,
    monitor: PathBuf,
    qmp: Option<Qmp>,
    /// What starts the copies. Its connection is held from prepare to cut; then it is given free, since a monitor serves
    /// one client at a time.
    start: Option<Unfinished>,
    copies: Vec<Copy>,
    volumes: Vec<VolumeSnapshot>,
}

impl Set {
    /// None yet; `None` where there is no QEMU any more.
    pub(super) fn new(folder: Folder, owner: Owner, monitor: PathBuf, qmp: Option<Qmp>) -> Self {
        Self { folder, owner, monitor, qmp, start: None, copies: Vec::new(), volumes: Vec::new() }
    }

    /// Makes the copy of a disk, empty, and hands it to QEMU.
    pub(super) fn open(
        &mut self,
        index: usize,
        volume: &Volume,
        disk: disk::Disk,
        partial: &Path,
    ) -> Result<(), DriverError> {
        let path = partial.join(folder::file_name(&volume.serial, ".img"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|file| file.set_len(disk.size_bytes).map(|()| file))
            .map_err(|error| DriverError::io(format!("make {}", path.display()), error))?;
        let name = Name::of(self.owner.snapshot, index);
        self.push(volume, disk.size_bytes, Copy { name: name.clone(), source: disk.node, file, path });
        let copy = self.copies.last().expect("just pushed");
        let qmp = self.qmp.as_mut().expect("held while the copies are made");
        let doing = || format!("hand {} to QEMU", copy.path.display());
        let added = qmp
            .execute_with_fd("add-fd", json!({ "opaque": name.as_str() }), copy.file.as_fd(), LIMIT)
            .map_err(|error| of_qmp(doing(), error))?;
        let node = json!({
            "node-name": name.as_str(),
            "driver": "raw",
            // Zeros make holes: a copy takes no more room than what it holds.
            "discard": "unmap",
            "detect-zeroes": "unmap",
            "file": { "driver": "file", "filename": format!("/dev/fdset/{}", added["fdset-id"]) },
        });
        qmp.execute("blockdev-add", node, LIMIT).map_err(|error| of_qmp(doing(), error))?;
        Ok(())
    }

    /// Tells QEMU what it is to copy, but for the end of the command.
    pub(super) fn make_ready(&mut self) -> Result<(), DriverError> {
        let qmp = self.qmp.take().expect("held while the copies are made");
        let actions = self.copies.iter().map(|copy| job::backup(&copy.name, &copy.source)).collect();
        let start = job::ready_all(qmp, actions)
            .map_err(|error| of_qmp("tell QEMU of the backup jobs".to_owned(), error))?;
        self.start = Some(start);
        Ok(())
    }

    /// Finds the copy of a disk that was made before hostsnapd was restarted.
    pub(super) fn reopen(
        &mut self,
        index: usize,
        volume: &Volume,
        partial: &Path,
    ) -> Result<(), DriverError> {
        let path = partial.join(folder::file_name(&volume.serial, ".img"));
        // A copy that was not made was not cut either.
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { return Ok(()) };
        let size_bytes = file
            .metadata()
            .map_err(|error| DriverError::io(format!("look at {}", path.display()), error))?
            .len();
        let name = Name::of(self.owner.snapshot, index);
        self.push(volume, size_bytes, Copy { name, source: String::new(), file, path });
        Ok(())
    }

    /// Whether QEMU copies, or has copied, all of them. Its connection is given free.
    pub(super) fn was_cut(&mut self) -> Result<bool, DriverError> {
        let names = self.names();
        self.qmp.take().map_or(Ok(false), |mut qmp| job::all_there(&mut qmp, &names))
    }

    fn push(&mut self, volume: &Volume, size_bytes: u64, copy: Copy) {
        let handle = format!("{}/{}", self.owner.snapshot, folder::file_name(&volume.serial, ".img"));
        self.volumes.push(VolumeSnapshot { serial: volume.serial.clone(), handle, size_bytes });
        self.copies.push(copy);
    }

    fn names(&self) -> Vec<Name> {
        self.copies.iter().map(|copy| copy.name.clone()).collect()
    }

    /// Takes back what QEMU was given, then what is in the store. A QEMU that is gone has nothing.
    pub(super) fn remove(&mut self) -> Result<(), DriverError> {
        self.release()?;
        self.folder.remove(self.owner, folder::clear_images).map(|_| ())
    }

    fn release(&mut self) -> Result<(), DriverError> {
        self.start = None;
        let mut held = self.qmp.take();
        loop {
            let was_held = held.is_some();
            let mut qmp = match held.take().map_or_else(|| Qmp::connect(&self.monitor, LIMIT), Ok) {
                Ok(qmp) => qmp,
                Err(error) if error.is_gone() => return Ok(()),
                Err(error) => {
                    return Err(of_qmp(format!("talk to QEMU at {}", self.monitor.display()), error));
                }
            };
            match job::release(&mut qmp, &self.names()) {
                // QEMU is gone, or only this connection: a new one tells.
                Err(QmpError::Io(_)) if was_held => {}
                released => {
                    return released
                        .map_err(|error| of_qmp("take the copies back from QEMU".to_owned(), error));
                }
            }
        }
    }
}

impl Ready for Set {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.volumes
    }

    fn cut(mut self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let error = DriverError::new(Kind::DeadlinePassed, "start the backup jobs");
            let undone = self.remove();
            return Err(error.after_undo(undone));
        }
        let start = self.start.take().expect("it was prepared");
        // Longer than the deadline: what was begun is waited for, to know what became of it.
        match start.run(left + LIMIT) {
            Ok(_) => Ok(self),
            Err(error) => {
                let error = of_qmp("start the backup jobs".to_owned(), error);
                let undone = self.remove();
                Err(error.after_undo(undone))
            }
        }
    }

    fn abandon(mut self: Box<Self>) -> Result<(), DriverError> {
        self.remove()
    }
}

impl CutSet for Set {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.volumes
    }

    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        let names = self.names();
        let mut last = Progress { done_bytes: 0, total_bytes: 0 };
        loop {
            let state = connect(&self.monitor).and_then(|mut qmp| job::state(&mut qmp, &names));
            let state = match state {
                // Somebody else has the monitor: nothing new is known.
                Err(error) if error.kind == Kind::Busy => {
                    State { progress: last, is_done: false, error: None }
                }
                state => state?,
            };
            last = state.progress;
            if progress(last) == Continue::No {
                return Err(DriverError::new(Kind::Cancelled, "copy the disks"));
            }
            if let Some(error) = state.error {
                // A job tells the error of its disk by its text alone (`job.c`, `job_update_rc`: strerror).
                let kind =
                    if error.contains("No space left on device") { Kind::NoSpace } else { Kind::Failed };
                return Err(DriverError::new(kind, format!("copy the disks: QEMU says: {error}")));
            }
            if state.is_done {
                break;
            }
            std::thread::sleep(POLL_EVERY);
        }
        self.release()?;
        for copy in &self.copies {
            copy.file
                .set_permissions(Permissions::from_mode(0o400))
                .and_then(|()| copy.file.sync_all())
                .map_err(|error| DriverError::io(format!("sync {}", copy.path.display()), error))?;
        }
        Ok(())
    }

    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        self.folder.seal(self.owner, manifest)
    }

    fn abandon(mut self: Box<Self>) -> Result<(), DriverError> {
        self.remove()
    }
}
