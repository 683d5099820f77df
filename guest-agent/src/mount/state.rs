//! What is to be undone: one small file for each mount, written before anything is made, in a folder that a boot
//! empties. Whoever finds one, after a crash too, can undo it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use protocol::SnapshotId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::MountError;

/// What is, or may be, there of one mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Where it is mounted; nowhere, while a command copies from it.
    pub at: Option<PathBuf>,
    /// The path that it is of.
    pub of: String,
    /// The number of the mount that is about to be shown there.
    pub mount_id: Option<u64>,
    /// Devices of the device mapper, in the order in which they are made.
    pub devices: Vec<String>,
    /// Whether the disks were attached for this, and are to be detached after it.
    pub attached: bool,
}

/// A mount's file.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    /// Locked as long as the command that needs it runs.
    file: File,
    /// What it says.
    pub mounted: Mounted,
}

/// One command at a time changes what is mounted.
pub(super) fn lock(folder: &Path) -> Result<File, MountError> {
    let doing = || format!("take the lock in {}", folder.display());
    fs::create_dir_all(folder).map_err(MountError::io(doing()))?;
    let file = File::options().create(true).append(true).open(folder.join("lock"));
    let file = file.map_err(MountError::io(doing()))?;
    flock(&file, FlockOperation::LockExclusive).map_err(MountError::io(doing()))?;
    Ok(file)
}

impl Kept {
    /// Writes down what is about to be.
    pub(super) fn new(folder: &Path, mounted: Mounted) -> Result<Self, MountError> {
        let path = folder.join(format!("{}.json", Uuid::new_v4()));
        let file = File::create(&path).map_err(MountError::io(format!("write {}", path.display())))?;
        flock(&file, FlockOperation::LockExclusive).map_err(MountError::io("lock a file that is new"))?;
        let kept = Self { path, file, mounted };
        kept.save()?;
        Ok(kept)
    }

    /// Writes down what is so now.
    pub(super) fn save(&self) -> Result<(), MountError> {
        use std::os::unix::fs::FileExt;
        let text = serde_json::to_vec(&self.mounted).expect("no value that JSON lacks");
        // In place: the lock is this file's. One that is cut short by a crash is longer or shorter than its JSON,
        // which ends at its brace.
        let written = self.file.write_all_at(&text, 0).and_then(|()| self.file.set_len(text.len() as u64));
        written.map_err(MountError::io(format!("write {}", self.path.display())))
    }

    /// Notes devices that are about to be made.
    pub(super) fn will_make(&mut self, devices: Vec<String>) -> Result<(), MountError> {
        let new = devices.into_iter().filter(|name| !self.mounted.devices.contains(name)).collect::<Vec<_>>();
        self.mounted.devices.extend(new);
        self.save()
    }

    /// Nothing of it is left.
    pub(super) fn forget(self) -> Result<(), MountError> {
        fs::remove_file(&self.path).map_err(MountError::io(format!("remove {}", self.path.display())))
    }

    /// Whether the command that it was for has ended without undoing it.
    fn is_left_over(&self) -> bool {
        self.mounted.at.is_none()
    }
}

/// All that nobody works on just now: mounts at a folder, and what commands left that were killed.
pub(super) fn all(folder: &Path) -> Result<Vec<Kept>, MountError> {
    let read = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(MountError::io(format!("list {}", folder.display())))?,
    };
    let mut all = Vec::new();
    for path in
        read.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"))
    {
        let Ok(file) = File::options().read(true).write(true).open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let text = fs::read(&path).map_err(MountError::io(format!("read {}", path.display())))?;
        let mut values = serde_json::Deserializer::from_slice(&text).into_iter();
        match values.next() {
            Some(Ok(mounted)) => all.push(Kept { path, file, mounted }),
            // It was killed before it had written anything, so before it had made anything.
            _ => fs::remove_file(&path).map_err(MountError::io(format!("remove {}", path.display())))?,
        }
    }
    Ok(all)
}

/// Those that commands left which were killed.
pub(super) fn left_over(folder: &Path) -> Result<Vec<Kept>, MountError> {
    Ok(all(folder)?.into_iter().filter(Kept::is_left_over).collect())
}

/// What all files say, also of commands that run: what they need must stay.
pub(super) fn needed(folder: &Path) -> Vec<Mounted> {
    let read = fs::read_dir(folder).into_iter().flatten().flatten();
    read.filter_map(|entry| {
        let text = fs::read(entry.path()).ok()?;
        serde_json::Deserializer::from_slice(&text).into_iter().next()?.ok()
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(at: Option<&str>) -> Mounted {
        Mounted {
            snapshot: "bf77abd9-d60d-5492-9bd0-07059232c906".parse().unwrap(),
            at: at.map(Into::into),
            of: "/data".to_owned(),
            mount_id: None,
            devices: vec!["hostsnap-bf77abd9d60d54-vg-lv".to_owned()],
            attached: true,
        }
    }

    #[test]
    fn what_a_killed_command_left_is_found_and_what_a_running_one_needs_is_not_taken_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let running = Kept::new(folder.path(), mounted(None)).unwrap();
        drop(Kept::new(folder.path(), mounted(None)).unwrap());
        let mut at_a_folder = Kept::new(folder.path(), mounted(Some("/mnt"))).unwrap();
        at_a_folder.mounted.mount_id = Some(42);
        at_a_folder.save().unwrap();
        drop(at_a_folder);
        fs::write(folder.path().join("cut.json"), "").unwrap();
        fs::write(folder.path().join("short.json"), "{\"snapshot\"").unwrap();

        let found = all(folder.path()).unwrap();
        assert_eq!(found.len(), 2);
        let mut ids: Vec<_> = found.iter().map(|kept| kept.mounted.mount_id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [None, Some(42)]);
        drop(found);
        assert_eq!(needed(folder.path()).len(), 3);
        let left = left_over(folder.path()).unwrap();
        assert_eq!(left.len(), 1);
        left.into_iter().for_each(|kept| kept.forget().unwrap());
        running.forget().unwrap();
        assert_eq!(needed(folder.path()).len(), 1);
        assert!(all(Path::new("/nowhere/at/all")).unwrap().is_empty());
    }
}
