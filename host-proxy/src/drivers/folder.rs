//! How the drivers that keep snapshots as files lay them out:
//!
//! ```text
//! <store>/.hostsnap/<vm uuid>/<snapshot id>.partial/    from prepare on
//!                             <snapshot id>/            from seal on
//!                             <snapshot id>.deleting/   from delete on
//!                                 manifest.json
//!                                 <serial>.img …        the driver's own
//! ```
//!
//! A rename moves a snapshot from one state to the next, so a crash leaves it in exactly one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use protocol::{DiskSerial, SnapshotId, VmUuid};

use super::{Deleted, DriverError, Found, Kind, Owner};

const MANIFEST: &str = "manifest.json";
/// A manifest that is larger, in bytes, is none of ours.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// The part of a store that is ours.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: PathBuf,
}

/// Where a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Absent,
    Partial(PathBuf),
    Whole(PathBuf),
    Deleting(PathBuf),
}

impl Folder {
    /// The folder of a store; nothing is made yet.
    pub(super) fn of_store(store: &Path) -> Self {
        Self { root: store.join(".hostsnap") }
    }

    /// The folder itself.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn machine(&self, vm: VmUuid) -> PathBuf {
        self.root.join(vm.to_string())
    }

    fn named(&self, owner: Owner, suffix: &str) -> PathBuf {
        self.machine(owner.vm).join(format!("{}{suffix}", owner.snapshot))
    }

    /// The image of a volume in a snapshot that is whole, where each is a file of its own.
    pub(super) fn image_of(&self, owner: Owner, volume: &DiskSerial) -> Result<PathBuf, DriverError> {
        let absent = || no_image(owner, volume);
        let Place::Whole(path) = self.place(owner) else { return Err(absent()) };
        let path = path.join(file_name(volume, ".img"));
        if path.is_file() { Ok(path) } else { Err(absent()) }
    }

    /// Where this snapshot is.
    pub(super) fn place(&self, owner: Owner) -> Place {
        let [whole, partial, deleting] =
            ["", ".partial", ".deleting"].map(|suffix| self.named(owner, suffix));
        if whole.symlink_metadata().is_ok() {
            Place::Whole(whole)
        } else if partial.symlink_metadata().is_ok() {
            Place::Partial(partial)
        } else if deleting.symlink_metadata().is_ok() {
            Place::Deleting(deleting)
        } else {
            Place::Absent
        }
    }

    /// Makes the partial snapshot's folder with its manifest, durably.
    pub(super) fn begin(&self, owner: Owner, manifest: &[u8]) -> Result<PathBuf, DriverError> {
        if self.place(owner) != Place::Absent {
            return Err(DriverError::new(Kind::Exists, format!("begin the snapshot {}", owner.snapshot)));
        }
        let machine = self.machine(owner.vm);
        make_folder(&self.root, true)?;
        make_folder(&machine, true)?;
        let partial = self.named(owner, ".partial");
        make_folder(&partial, false)?;
        let durable =
            write_manifest(&partial, manifest).and_then(|()| sync(&machine)).and_then(|()| sync(&self.root));
        durable.map_err(|error| {
            let undone = self.remove(owner, |_| Ok(())).map(|_| ());
            error.after_undo(undone)
        })?;
        Ok(partial)
    }

    /// Puts the final manifest in place and gives the snapshot its final name, durably.
    pub(super) fn seal(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        let partial = self.named(owner, ".partial");
        write_manifest(&partial, manifest)?;
        rename(&partial, &self.named(owner, ""))?;
        sync(&self.machine(owner.vm))
    }

    /// Replaces the manifest of a whole snapshot, durably.
    pub(super) fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        match self.place(owner) {
            Place::Whole(path) => write_manifest(&path, manifest),
            _ => Err(DriverError::new(Kind::NotFound, format!("find the snapshot {}", owner.snapshot))),
        }
    }

    /// Removes a snapshot in whatever state; `clear` empties its folder of what is the driver's own.
    pub(super) fn remove(
        &self,
        owner: Owner,
        clear: impl Fn(&Path) -> Result<(), DriverError>,
    ) -> Result<Deleted, DriverError> {
        let deleting = self.named(owner, ".deleting");
        match self.place(owner) {
            Place::Absent => return Ok(Deleted::WasAbsent),
            Place::Deleting(_) => {}
            Place::Partial(path) | Place::Whole(path) => {
                rename(&path, &deleting)?;
                sync(&self.machine(owner.vm))?;
            }
        }
        clear(&deleting)?;
        remove_replaced(&deleting.join(MANIFEST))?;
        fs::remove_dir(&deleting)
            .map_err(|error| DriverError::io(format!("remove {}", deleting.display()), error))?;
        sync(&self.machine(owner.vm))?;
        // The machine's folder goes with its last snapshot; while there are others it stays.
        let _ = fs::remove_dir(self.machine(owner.vm));
        Ok(Deleted::Gone)
    }

    /// Takes the beginning of a removal back: nothing of a whole snapshot was removed.
    pub(super) fn put_back(&self, owner: Owner) -> Result<(), DriverError> {
        rename(&self.named(owner, ".deleting"), &self.named(owner, ""))?;
        sync(&self.machine(owner.vm))
    }

    /// Everything of ours, and nothing else's: what has no name of our making is passed over.
    pub(super) fn list(&self) -> Result<Vec<Found>, DriverError> {
        let mut found = Vec::new();
        for machine in entries(&self.root)? {
            let Some(vm) = machine.to_str().and_then(|name| name.parse::<VmUuid>().ok()) else { continue };
            for name in entries(&self.machine(vm))? {
                let Some((snapshot, whole)) = name.to_str().and_then(parse_name) else { continue };
                let manifest = read_manifest(&self.machine(vm).join(&name));
                found.push(Found { owner: Owner { vm, snapshot }, whole, manifest });
            }
        }
        Ok(found)
    }
}

fn parse_name(name: &str) -> Option<(SnapshotId, bool)> {
    let unfinished = name.strip_suffix(".partial").or_else(|| name.strip_suffix(".deleting"));
    let id: SnapshotId = unfinished.unwrap_or(name).parse().ok()?;
    // Only the canonical spelling is ours.
    (id.to_string() == unfinished.unwrap_or(name)).then_some((id, unfinished.is_none()))
}

/// A snapshot that is not whole, or has no such volume.
pub(super) fn no_image(owner: Owner, volume: &DiskSerial) -> DriverError {
    DriverError::new(Kind::NotFound, format!("show the disk {volume} of {}", owner.snapshot))
}

/// A file name for a disk. A serial may hold `/` and dots: what is not plain is written as `%hh`.
pub(super) fn file_name(serial: &DiskSerial, extension: &str) -> String {
    use std::fmt::Write as _;
    let mut name = String::new();
    for byte in serial.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            _ => write!(name, "%{byte:02x}").expect("writing to a String"),
        }
    }
    name + extension
}

/// The names in a folder; none, if it is not there.
pub(super) fn entries(folder: &Path) -> Result<Vec<OsString>, DriverError> {
    let failed = |error| DriverError::io(format!("list {}", folder.display()), error);
    match fs::read_dir(folder) {
        Ok(read) => {
            read.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>().map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

fn make_folder(path: &Path, may_exist: bool) -> Result<(), DriverError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if may_exist && error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|error| DriverError::io(format!("make the folder {}", path.display()), error)),
    }
}

fn write_manifest(folder: &Path, manifest: &[u8]) -> Result<(), DriverError> {
    replace(&folder.join(MANIFEST), manifest)
}

/// What a file is called while it is written: `manifest.json.new`.
fn new_of(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

/// Writes a file, or another in its place, durably and in one step.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), DriverError> {
    let new = new_of(path);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| DriverError::io(format!("write {}", path.display()), error))?;
    path.parent().map_or(Ok(()), sync)
}

/// Removes such a file, and what a crash has left of writing it.
pub(super) fn remove_replaced(path: &Path) -> Result<(), DriverError> {
    remove_if_there(&new_of(path))?;
    remove_if_there(path)
}

fn read_manifest(folder: &Path) -> Option<Vec<u8>> {
    let path = folder.join(MANIFEST);
    let fits = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MANIFEST_LIMIT);
    fits.then(|| fs::read(&path).ok()).flatten()
}

fn rename(from: &Path, to: &Path) -> Result<(), DriverError> {
    fs::rename(from, to)
        .map_err(|error| DriverError::io(format!("rename {} to {}", from.display(), to.display()), error))
}

/// The images in a snapshot's folder.
pub(super) fn images(path: &Path) -> Result<Vec<PathBuf>, DriverError> {
    let names = entries(path)?.into_iter().map(|name| path.join(name));
    Ok(names.filter(|path| path.extension().is_some_and(|extension| extension == "img")).collect())
}

/// Removes the images in a snapshot's folder. They are emptied first: their room is free then even
/// if somebody still has one open. QEMU 7.2, for one, closes a descriptor that was taken back from it
/// only while its guest runs (`monitor/fds.c`, `monitor_fdset_cleanup`).
pub(super) fn clear_images(path: &Path) -> Result<(), DriverError> {
    for image in images(path)? {
        match OpenOptions::new().write(true).truncate(true).open(&image) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DriverError::io(format!("empty {}", image.display()), error));
            }
            _ => remove_if_there(&image)?,
        }
    }
    Ok(())
}

/// Removes a file; absent is fine.
pub(super) fn remove_if_there(path: &Path) -> Result<(), DriverError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DriverError::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Makes a folder's entries durable.
pub(super) fn sync(folder: &Path) -> Result<(), DriverError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| DriverError::io(format!("sync {}", folder.display()), error))
}

/// Bytes that are free to us in the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> Result<u64, DriverError> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|error| DriverError::io(format!("ask {} for its room", path.display()), error))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_cannot_name_a_path() {
        let name = |serial: &str| file_name(&serial.parse().unwrap(), ".img");
        assert_eq!(name("../../etc/passwd"), "%2e%2e%2f%2e%2e%2fetc%2fpasswd.img");
        assert_eq!(name("data-1"), "data-1.img");
        assert_ne!(name("a%2f"), name("a/"));
    }

    #[test]
    fn only_names_of_our_making_are_listed() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder::of_store(scratch.path());
        assert!(folder.list().unwrap().is_empty());
        let vm: VmUuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01".parse().unwrap();
        let snapshot: SnapshotId = "00000000-0000-0000-0000-0000000000aa".parse().unwrap();
        folder.begin(Owner { vm, snapshot }, b"{}").unwrap();
        for foreign in ["lost+found", "notes"] {
            fs::create_dir(folder.root().join(foreign)).unwrap();
            fs::write(folder.machine(vm).join(foreign), b"x").unwrap();
        }
        fs::create_dir(folder.machine(vm).join("00000000-0000-0000-0000-0000000000AB")).unwrap();
        let found = folder.list().unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].owner.snapshot, snapshot);
        assert!(!found[0].whole);
    }
}
