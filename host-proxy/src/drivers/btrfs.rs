//! A btrfs subvolume of image files: the cut is one read-only snapshot of the subvolume, all disks
//! in it at one instant. The snapshots live in `.hostsnap`, a subvolume of its own inside the
//! store: a btrfs snapshot does not descend into other subvolumes, so they do not hold each other.

pub mod ioctl;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::common::settle_at_once;
use super::folder::{self, Folder, Place};
use super::images::KeepsImages;
use super::{
    Changes, Continue, CutSet, Deleted, Driver, DriverError, Expose, Extent, Format, Found, Kind, Owner,
    Plan, Progress, Ready, Recovered, Restore, SetCut, Volume, VolumeFacts, VolumeSnapshot, fiemap, image,
};

/// The inode of every subvolume's root (Linux `BTRFS_FIRST_FREE_OBJECTID`).
const SUBVOLUME_INODE: u64 = 256;
/// The snapshot itself, in its snapshot's folder.
const TREE: &str = "tree";

/// Snapshots as read-only subvolumes.
pub struct Btrfs {
    store: PathBuf,
    folder: Folder,
}

impl Btrfs {
    /// A store that is this subvolume.
    pub fn new(store: PathBuf) -> Result<Self, DriverError> {
        let look = |error| DriverError::io(format!("look at the store {}", store.display()), error);
        // Paths in the snapshot are relative to the subvolume: no link may hide it.
        let store = store.canonicalize().map_err(look)?;
        let stat = rustix::fs::statfs(&store)
            .map_err(|error| DriverError::io(format!("look at the store {}", store.display()), error))?;
        let inode = fs::metadata(&store)
            .map_err(|error| DriverError::io(format!("look at the store {}", store.display()), error))?
            .ino();
        // BTRFS_SUPER_MAGIC, Linux include/uapi/linux/magic.h
        if stat.f_type != 0x9123_683e || inode != SUBVOLUME_INODE {
            return Err(DriverError::new(
                Kind::Unsupported,
                format!(
                    "the store {} is no btrfs subvolume; make one: btrfs subvolume create",
                    store.display()
                ),
            ));
        }
        Ok(Self { folder: Folder::of_store(&store), store })
    }

    /// The path of a volume inside of the subvolume.
    fn inside(&self, volume: &Volume) -> Result<PathBuf, DriverError> {
        let path = volume
            .path()?
            .canonicalize()
            .map_err(|error| DriverError::io(format!("look at {}", volume.source), error))?;
        let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
        match path.strip_prefix(&self.store) {
            Ok(inside) if device(&path) == device(&self.store) => Ok(inside.to_owned()),
            _ => Err(DriverError::new(
                Kind::Unsupported,
                format!("{} is not in the subvolume {}", volume.source, self.store.display()),
            )),
        }
    }

    fn make_folder(&self) -> Result<(), DriverError> {
        if self.folder.root().exists() {
            return Ok(());
        }
        let store = open_folder(&self.store)?;
        match ioctl::create(&store, ".hostsnap") {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => {
                Err(DriverError::io(format!("make the subvolume {}", self.folder.root().display()), error))
            }
        }
    }

    fn snapshots(&self, owner: Owner, volumes: &[Volume]) -> Result<Vec<VolumeSnapshot>, DriverError> {
        volumes
            .iter()
            .map(|volume| {
                let handle = format!("{}/{}", owner.snapshot, folder::file_name(&volume.serial, ""));
                let size_bytes = image::regular_size(volume)?;
                Ok(VolumeSnapshot { serial: volume.serial.clone(), handle, size_bytes })
            })
            .collect()
    }

    fn set(&self, owner: Owner, volumes: &[Volume], partial: PathBuf) -> Result<Set, DriverError> {
        Ok(Set {
            volumes: self.snapshots(owner, volumes)?,
            owner,
            source: open_folder(&self.store)?,
            target: open_folder(&partial)?,
            folder: self.folder.clone(),
            store: self.store.clone(),
        })
    }
}

fn open_folder(path: &Path) -> Result<File, DriverError> {
    File::open(path).map_err(|error| DriverError::io(format!("open {}", path.display()), error))
}

fn clear(path: &Path) -> Result<(), DriverError> {
    if let Ok(links) = fs::read_dir(path) {
        for link in links.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"disk-"))
        {
            folder::remove_if_there(&link.path())?;
        }
    }
    match ioctl::destroy(open_folder(path)?, TREE) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => {
            Err(DriverError::io(format!("remove the subvolume {}", path.join(TREE).display()), error))
        }
    }
}

impl KeepsImages for Btrfs {
    fn image_of(&self, owner: Owner, volume: &protocol::DiskSerial) -> Result<PathBuf, DriverError> {
        let absent = || folder::no_image(owner, volume);
        let Place::Whole(path) = self.folder.place(owner) else { return Err(absent()) };
        path.join(link_name(volume)).canonicalize().map_err(|_| absent())
    }
}

impl Driver for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        if volume.format != Format::Raw {
            return Err(DriverError::new(
                Kind::Unsupported,
                format!(
                    "snapshot {}: a {:?} image is not whole in its file while QEMU has it open; use the driver qemu",
                    volume.source, volume.format
                ),
            ));
        }
        self.inside(volume)?;
        Ok(VolumeFacts { size_bytes: image::regular_size(volume)? })
    }

    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
        image::read_head(volume, len)
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        folder::free_bytes(&self.store)
    }

    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError> {
        self.make_folder()?;
        let links: Vec<_> = plan
            .volumes
            .iter()
            .map(|volume| Ok((link_name(&volume.serial), self.inside(volume)?)))
            .collect::<Result<_, DriverError>>()?;
        let partial = self.folder.begin(plan.owner, &plan.manifest)?;
        let undo = |error: DriverError| {
            let undone = self.folder.remove(plan.owner, clear).map(|_| ());
            error.after_undo(undone)
        };
        for (name, inside) in links {
            // A link says which file in the tree is which disk, also when the configuration changed.
            std::os::unix::fs::symlink(Path::new(TREE).join(inside), partial.join(name))
                .map_err(|error| undo(DriverError::io(format!("link into {}", partial.display()), error)))?;
        }
        for volume in &plan.volumes {
            if Instant::now() >= deadline {
                return Err(undo(DriverError::new(Kind::DeadlinePassed, "flush the images")));
            }
            image::open(volume).and_then(|file| image::flush(&file, volume)).map_err(undo)?;
        }
        Ok(Box::new(self.set(plan.owner, &plan.volumes, partial).map_err(undo)?))
    }

    fn list(&self) -> Result<Vec<Found>, DriverError> {
        self.folder.list()
    }

    fn recover(&self, owner: Owner, volumes: &[Volume]) -> Result<Recovered, DriverError> {
        match self.folder.place(owner) {
            Place::Whole(_) => Ok(Recovered::Whole),
            Place::Absent => Ok(Recovered::Nothing),
            Place::Partial(path) if path.join(TREE).is_dir() => {
                Ok(Recovered::Cut(Box::new(self.set(owner, volumes, path)?)))
            }
            Place::Partial(_) | Place::Deleting(_) => {
                self.folder.remove(owner, clear).map(|_| Recovered::Nothing)
            }
        }
    }

    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        if let Place::Whole(path) = self.folder.place(owner) {
            let links = fs::read_dir(&path)
                .map_err(|error| DriverError::io(format!("list {}", path.display()), error))?;
            for link in links.flatten().filter(|entry| entry.path().is_symlink()) {
                image::refuse_if_used(&link.path())?;
            }
        }
        self.folder.remove(owner, clear)
    }

    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        self.folder.rewrite(owner, manifest)
    }

    fn expose(&self) -> Option<&dyn Expose> {
        Some(self)
    }

    fn changes(&self) -> Option<&dyn Changes> {
        Some(self)
    }

    fn set_cut(&self) -> SetCut {
        SetCut::OneInstant
    }

    fn restore(&self) -> Option<&dyn Restore> {
        Some(self)
    }

    fn limits(&self) -> &'static str {
        "raw images in one subvolume; a snapshot shares what does not change"
    }
}

fn link_name(serial: &protocol::DiskSerial) -> String {
    format!("disk-{}", folder::file_name(serial, ""))
}

impl Changes for Btrfs {
    fn changes(
        &self,
        from: Owner,
        to: Owner,
        volume: &protocol::DiskSerial,
    ) -> Result<Vec<Extent>, DriverError> {
        fiemap::changes(&self.image_of(from, volume)?, &self.image_of(to, volume)?)
    }
}

/// One snapshot of the subvolume.
struct Set {
    folder: Folder,
    store: PathBuf,
    owner: Owner,
    source: File,
    target: File,
    volumes: Vec<VolumeSnapshot>,
}

impl Set {
    fn remove(&self) -> Result<(), DriverError> {
        self.folder.remove(self.owner, clear).map(|_| ())
    }
}

impl Ready for Set {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.volumes
    }

    fn cut(self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        if Instant::now() >= deadline {
            let error = DriverError::new(Kind::DeadlinePassed, "snapshot the subvolume");
            return Err(error.after_undo(self.remove()));
        }
        match ioctl::snapshot(&self.target, TREE, &self.source) {
            Ok(()) => Ok(self),
            Err(error) => {
                let error =
                    DriverError::io(format!("snapshot the subvolume {}", self.store.display()), error);
                Err(error.after_undo(self.remove()))
            }
        }
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.remove()
    }
}

impl CutSet for Set {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.volumes
    }

    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        settle_at_once(&self.volumes, progress, "sync the snapshot", || {
            rustix::fs::syncfs(&self.target)
                .map_err(|error| DriverError::io(format!("sync {}", self.store.display()), error))
        })
    }

    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        self.folder.seal(self.owner, manifest)
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.remove()
    }
}
