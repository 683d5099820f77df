//! QEMU itself copies: any image on any host file system. The cut is one QMP `transaction` that
//! starts a backup job for each disk, all at one instant; from then on QEMU copies a block before
//! the guest overwrites it, and the rest in the background. Until the jobs end the snapshot is
//! settling: it is lost if QEMU ends before.
//!
//! The targets are opened here and handed to QEMU as descriptors, so that QEMU needs no right to
//! the store (QEMU `docs/interop/qemu-qmp-ref`, `add-fd`, `blockdev-backup`, `transaction`).

mod cover;
mod job;
mod offline;
mod restore;
mod set;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::folder::{self, Folder, Place};
use super::images::KeepsImages;
use super::restore::{can_restore_image, restore_image};
use super::{
    Deleted, Driver, DriverError, Expose, Format, Found, Kind, Others, Owner, Plan, Progress, Ready,
    Recovered, Restore, SetCut, Volume, VolumeFacts, image,
};
use crate::vmm::disk::{self, FindError};
use crate::vmm::qmp::{Qmp, QmpError};
use set::Set;

/// How long a monitor may take to greet, and for a command that does nothing slow.
const LIMIT: Duration = Duration::from_secs(5);
/// How often a running job is asked how far it is.
const POLL_EVERY: Duration = Duration::from_millis(50);

/// Snapshots as copies by QEMU.
pub struct Qemu {
    store: PathBuf,
    folder: Folder,
}

impl Qemu {
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
}

fn monitor(volume: &Volume) -> Result<&Path, DriverError> {
    volume.qmp.as_deref().ok_or_else(|| {
        DriverError::new(
            Kind::Unsupported,
            format!("snapshot {}: its machine has no QMP socket", volume.serial),
        )
    })
}

fn connect(path: &Path) -> Result<Qmp, DriverError> {
    Qmp::connect(path, LIMIT).map_err(|error| of_qmp(format!("talk to QEMU at {}", path.display()), error))
}

fn of_qmp(doing: String, error: QmpError) -> DriverError {
    let kind = Kind::from(&error);
    DriverError { source: Some(Box::new(error)), ..DriverError::new(kind, doing) }
}

/// The disk, whatever it shows.
fn look(qmp: &mut Qmp, volume: &Volume) -> Result<disk::Disk, DriverError> {
    let doing = || format!("find the disk {} in QEMU", volume.serial);
    disk::find(qmp, &volume.serial, volume.path()?).map_err(|error| match error {
        FindError::Qmp(error) => of_qmp(doing(), error),
        other => DriverError { source: Some(Box::new(other)), ..DriverError::new(Kind::NotFound, doing()) },
    })
}

/// The disk, which shows its image.
fn find(qmp: &mut Qmp, volume: &Volume) -> Result<disk::Disk, DriverError> {
    let disk = look(qmp, volume)?;
    if disk.cover.is_some() {
        let text = format!("use the disk {}: a restore of it is not finished", volume.serial);
        return Err(DriverError::new(Kind::Busy, text));
    }
    Ok(disk)
}

impl KeepsImages for Qemu {
    fn image_of(&self, owner: Owner, volume: &protocol::DiskSerial) -> Result<PathBuf, DriverError> {
        self.folder.image_of(owner, volume)
    }

    fn can_restore_by(
        &self,
        owner: Owner,
        image: &Path,
        volume: &Volume,
        others: Others,
    ) -> Result<(), DriverError> {
        match volume.format {
            Format::Raw => can_restore_image(image, volume, others),
            Format::Qcow2 => restore::can_restore(owner.snapshot, image, volume, others),
        }
    }

    fn restore_by(
        &self,
        owner: Owner,
        image: &Path,
        volume: &Volume,
        others: Others,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        match volume.format {
            Format::Raw => restore_image(image, volume, others, progress),
            Format::Qcow2 => restore::restore(&self.folder, owner.snapshot, image, volume, others, progress),
        }
    }
}

impl Driver for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        let mut qmp = connect(monitor(volume)?)?;
        let disk = find(&mut qmp, volume)?;
        Ok(VolumeFacts { size_bytes: disk.size_bytes })
    }

    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
        match volume.format {
            Format::Raw => image::read_head(volume, len),
            Format::Qcow2 => read_head_of_qcow2(volume, len),
        }
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        folder::free_bytes(&self.store)
    }

    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError> {
        let [first, ..] = &plan.volumes[..] else {
            return Err(DriverError::new(Kind::Unsupported, "snapshot no volume at all"));
        };
        let path = monitor(first)?.to_owned();
        let mut qmp = connect(&path)?;
        let disks =
            plan.volumes.iter().map(|volume| find(&mut qmp, volume)).collect::<Result<Vec<_>, _>>()?;
        let needed = disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.size_bytes));
        if self.free_bytes()? < needed {
            return Err(DriverError::new(
                Kind::NoSpace,
                format!("copy {needed} bytes into the store {}", self.store.display()),
            ));
        }
        let partial = self.folder.begin(plan.owner, &plan.manifest)?;
        let mut set = Set::new(self.folder.clone(), plan.owner, path, Some(qmp));
        let mut volumes = plan.volumes.iter().zip(disks).enumerate();
        let opened = volumes.try_for_each(|(index, (volume, disk))| match Instant::now() < deadline {
            true => set.open(index, volume, disk, &partial),
            false => Err(DriverError::new(Kind::DeadlinePassed, "open the copies")),
        });
        match opened.and_then(|()| set.make_ready()) {
            Ok(()) => Ok(Box::new(set)),
            Err(error) => {
                let undone = set.remove();
                Err(error.after_undo(undone))
            }
        }
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
        let [first, ..] = volumes else {
            return self.folder.remove(owner, folder::clear_images).map(|_| Recovered::Nothing);
        };
        let path = monitor(first)?.to_owned();
        let qmp = match Qmp::connect(&path, LIMIT) {
            Ok(qmp) => Some(qmp),
            // With QEMU its jobs are gone.
            Err(error) if error.is_gone() => None,
            Err(error) => return Err(of_qmp(format!("talk to QEMU at {}", path.display()), error)),
        };
        let mut set = Set::new(self.folder.clone(), owner, path, qmp);
        for (index, volume) in volumes.iter().enumerate() {
            set.reopen(index, volume, &partial)?;
        }
        if set.was_cut()? {
            return Ok(Recovered::Cut(Box::new(set)));
        }
        set.remove().map(|()| Recovered::Nothing)
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

    fn restore(&self) -> Option<&dyn Restore> {
        Some(self)
    }

    fn is_cut_by_machine(&self) -> bool {
        true
    }

    fn set_cut(&self) -> SetCut {
        SetCut::OneInstant
    }

    fn limits(&self) -> &'static str {
        "any image of a running QEMU; a snapshot is a copy and takes what the disk holds; it is lost if QEMU ends before the copy does"
    }
}

/// `qemu-img` reads the image beside the QEMU that has it open (`-U`); the guest flushed its disk
/// before it asked, so that what is read here is what it reads.
fn read_head_of_qcow2(volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
    let doing = || format!("read the first bytes of {} with qemu-img", volume.source);
    let folder = tempfile::tempdir().map_err(|error| DriverError::io(doing(), error))?;
    let head = folder.path().join("head");
    let arg = |name: &str, path: &Path| {
        let mut text = std::ffi::OsString::from(format!("{name}="));
        text.push(path);
        text
    };
    let status = Command::new("qemu-img")
        .args(["dd", "-U", "-f", "qcow2", "-O", "raw", "count=1"])
        .arg(format!("bs={len}"))
        .arg(arg("if", volume.path()?))
        .arg(arg("of", &head))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| DriverError::io(doing(), error))?;
    if !status.success() {
        return Err(DriverError::new(Kind::Failed, format!("{}: {status}", doing())));
    }
    fs::read(&head).map_err(|error| DriverError::io(doing(), error))
}
