//! Image files on a file system that shares extents (XFS, btrfs, …): the cut is one FICLONE for
//! each disk, so a set is cut one disk after another, not at one instant. Under a freeze that is
//! held through the cut, nothing is written meanwhile and the set is consistent all the same.
//!
//! Raw images only: a qcow2 image that QEMU has open is not whole in its file, since QEMU caches
//! its metadata (docs/interop/qcow2.rst, "cache"); the driver `qemu` takes those.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};

use super::folder::{self, Folder, Place};
use super::images::KeepsImages;
use super::{
    Changes, Continue, CutSet, Deleted, Driver, DriverError, Expose, Extent, Format, Found, Kind, Owner,
    Plan, Progress, Ready, Recovered, Restore, Volume, VolumeFacts, VolumeSnapshot, fiemap, image,
};

/// Snapshots as clones of image files.
pub struct Reflink {
    store: PathBuf,
    folder: Folder,
}

impl Reflink {
    /// A store in this folder.
    pub fn new(store: PathBuf) -> Result<Self, DriverError> {
        let meta = fs::metadata(&store)
            .map_err(|error| DriverError::io(format!("look at the store {}", store.display()), error))?;
        if !meta.is_dir() {
            return Err(DriverError::new(
                Kind::NotFound,
                format!("the store {} is no folder", store.display()),
            ));
        }
        Ok(Self { folder: Folder::of_store(&store), store })
    }

    /// Clones one block between two files that have no name: proves that it works and leaves nothing.
    fn prove_sharing(&self) -> Result<(), DriverError> {
        let doing = || format!("share extents in {}", self.store.display());
        let unnamed = || {
            rustix::fs::open(
                &self.store,
                OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
                Mode::RUSR | Mode::WUSR,
            )
            .map_err(|error| DriverError::io(doing(), error))
        };
        let (from, to) = (unnamed()?, unnamed()?);
        rustix::io::write(&from, &[0; 4096]).map_err(|error| DriverError::io(doing(), error))?;
        rustix::fs::ioctl_ficlone(&to, &from).map_err(|error| DriverError {
            kind: Kind::Unsupported,
            ..DriverError::io(
                format!("{}: its file system can't; use XFS or btrfs, or the driver qemu", doing()),
                error,
            )
        })
    }
}

impl KeepsImages for Reflink {
    fn image_of(&self, owner: Owner, volume: &protocol::DiskSerial) -> Result<PathBuf, DriverError> {
        self.folder.image_of(owner, volume)
    }
}

impl Driver for Reflink {
    fn name(&self) -> &'static str {
        "reflink"
    }

    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        if volume.format != Format::Raw {
            return Err(DriverError::new(
                Kind::Unsupported,
                format!(
                    "clone {}: a {:?} image is not whole in its file while QEMU has it open; use the driver qemu",
                    volume.source, volume.format
                ),
            ));
        }
        let size_bytes = image::regular_size(volume)?;
        let device = |path: &Path| {
            fs::metadata(path)
                .map(|meta| meta.dev())
                .map_err(|error| DriverError::io(format!("look at {}", path.display()), error))
        };
        if device(volume.path()?)? != device(&self.store)? {
            return Err(DriverError::new(
                Kind::Unsupported,
                format!(
                    "clone {}: it is not in the file system of the store {}",
                    volume.source,
                    self.store.display()
                ),
            ));
        }
        self.prove_sharing()?;
        Ok(VolumeFacts { size_bytes })
    }

    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
        image::read_head(volume, len)
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        folder::free_bytes(&self.store)
    }

    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError> {
        let partial = self.folder.begin(plan.owner, &plan.manifest)?;
        let undo = |error: DriverError| {
            let undone = self.folder.remove(plan.owner, folder::clear_images).map(|_| ());
            error.after_undo(undone)
        };
        let mut clones = Vec::with_capacity(plan.volumes.len());
        for volume in &plan.volumes {
            if Instant::now() >= deadline {
                return Err(undo(DriverError::new(Kind::DeadlinePassed, "open the images")));
            }
            clones.push(Clone::open(volume, &partial, plan.owner).map_err(undo)?);
        }
        folder::sync(&partial).map_err(undo)?;
        Ok(Box::new(Set::new(self.folder.clone(), plan.owner, clones)))
    }

    fn list(&self) -> Result<Vec<Found>, DriverError> {
        self.folder.list()
    }

    fn recover(&self, owner: Owner, volumes: &[Volume]) -> Result<Recovered, DriverError> {
        let partial = match self.folder.place(owner) {
            Place::Whole(_) => return Ok(Recovered::Whole),
            Place::Absent => return Ok(Recovered::Nothing),
            Place::Deleting(_) => {
                return self.folder.remove(owner, folder::clear_images).map(|_| Recovered::Nothing);
            }
            Place::Partial(path) => path,
        };
        let clones: Option<Vec<Clone>> =
            volumes.iter().map(|volume| Clone::reopen(volume, &partial, owner)).collect::<Result<_, _>>()?;
        match clones {
            Some(clones) if !clones.is_empty() => {
                Ok(Recovered::Cut(Box::new(Set::new(self.folder.clone(), owner, clones))))
            }
            _ => self.folder.remove(owner, folder::clear_images).map(|_| Recovered::Nothing),
        }
    }

    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        if let Place::Whole(path) = self.folder.place(owner) {
            folder::images(&path)?.iter().try_for_each(|image| image::refuse_if_used(image))?;
        }
        self.folder.remove(owner, folder::clear_images)
    }

    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        self.folder.rewrite(owner, manifest)
    }

    fn expose(&self) -> Option<&dyn Expose> {
        Some(self)
    }

    fn changes(&self) -> Option<&dyn Changes> {
        fiemap::is_known(&self.store).then_some(self)
    }

    fn restore(&self) -> Option<&dyn Restore> {
        Some(self)
    }

    fn limits(&self) -> &'static str {
        "raw images in the file system of the store; a snapshot shares what does not change"
    }
}

impl Changes for Reflink {
    fn changes(
        &self,
        from: Owner,
        to: Owner,
        volume: &protocol::DiskSerial,
    ) -> Result<Vec<Extent>, DriverError> {
        fiemap::changes(&self.image_of(from, volume)?, &self.image_of(to, volume)?)
    }
}

/// One image and the file that becomes its clone.
struct Clone {
    source: Option<File>,
    target: File,
    path: PathBuf,
    snapshot: VolumeSnapshot,
}

impl Clone {
    fn open(volume: &Volume, partial: &Path, owner: Owner) -> Result<Self, DriverError> {
        let size_bytes = image::regular_size(volume)?;
        let source = image::open(volume)?;
        let path = partial.join(folder::file_name(&volume.serial, ".img"));
        let target = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| DriverError::io(format!("make {}", path.display()), error))?;
        image::flush(&source, volume)?;
        let snapshot = snapshot_of(volume, owner, size_bytes);
        Ok(Self { source: Some(source), target, path, snapshot })
    }

    /// `None` if it was not cut: FICLONE goes extent by extent and lets its target grow as it goes, and
    /// a signal that kills ends it in the middle (Linux `xfs_reflink_remap_extent`,
    /// `clone_finish_inode_update`). One that has the whole size has all extents. An image that was
    /// resized since is taken for not cut, which loses nothing that was acknowledged.
    fn reopen(volume: &Volume, partial: &Path, owner: Owner) -> Result<Option<Self>, DriverError> {
        let path = partial.join(folder::file_name(&volume.serial, ".img"));
        let Ok(target) = OpenOptions::new().read(true).write(true).open(&path) else { return Ok(None) };
        let size_bytes = target
            .metadata()
            .map_err(|error| DriverError::io(format!("look at {}", path.display()), error))?
            .len();
        let is_whole = size_bytes == image::regular_size(volume)?;
        let snapshot = snapshot_of(volume, owner, size_bytes);
        Ok(is_whole.then_some(Self { source: None, target, path, snapshot }))
    }
}

fn snapshot_of(volume: &Volume, owner: Owner, size_bytes: u64) -> VolumeSnapshot {
    let handle = format!("{}/{}", owner.snapshot, folder::file_name(&volume.serial, ".img"));
    VolumeSnapshot { serial: volume.serial.clone(), handle, size_bytes }
}

/// The clones of one snapshot: opened, then cut.
struct Set {
    folder: Folder,
    owner: Owner,
    clones: Vec<Clone>,
    volumes: Vec<VolumeSnapshot>,
}

impl Set {
    fn new(folder: Folder, owner: Owner, clones: Vec<Clone>) -> Self {
        let volumes = clones.iter().map(|clone| clone.snapshot.clone()).collect();
        Self { folder, owner, clones, volumes }
    }

    fn remove(&self) -> Result<(), DriverError> {
        self.folder.remove(self.owner, folder::clear_images).map(|_| ())
    }
}

impl Ready for Set {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.volumes
    }

    fn cut(self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        for clone in &self.clones {
            if Instant::now() >= deadline {
                let error = DriverError::new(Kind::DeadlinePassed, "clone the images");
                return Err(error.after_undo(self.remove()));
            }
            let source = clone.source.as_ref().expect("a prepared clone has its source");
            if let Err(error) = rustix::fs::ioctl_ficlone(&clone.target, source) {
                let error = DriverError::io(format!("clone into {}", clone.path.display()), error);
                return Err(error.after_undo(self.remove()));
            }
        }
        Ok(self)
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
        let total_bytes = self.volumes.iter().map(|volume| volume.size_bytes).sum();
        let mut done_bytes = 0;
        for clone in &self.clones {
            if progress(Progress { done_bytes, total_bytes }) == Continue::No {
                return Err(DriverError::new(Kind::Cancelled, "sync the clones"));
            }
            clone
                .target
                .set_permissions(Permissions::from_mode(0o400))
                .and_then(|()| clone.target.sync_all())
                .map_err(|error| DriverError::io(format!("sync {}", clone.path.display()), error))?;
            done_bytes += clone.snapshot.size_bytes;
        }
        progress(Progress { done_bytes, total_bytes });
        Ok(())
    }

    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        self.folder.seal(self.owner, manifest)
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.remove()
    }
}
