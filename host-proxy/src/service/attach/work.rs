//! What one attachment is made of, and how it is undone: the driver's view of the snapshot, a clone
//! over it, a disk in QEMU. All of it blocks. Undoing needs only the names, and is done again as often
//! as need be.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::VmUuid;
use protocol::attach::AttachedName;

use super::super::shown;
use crate::catalog::Attached;
use crate::drivers::{DriverError, Exposed, Format, Kind, Owner};
use crate::exec::Tool;
use crate::service::errors;
use crate::vmm::plug::{Base, Content, PlugError};
use crate::vmm::qmp::QmpError;
use crate::world::Store;

/// The folder of clones, in a store or in the state folder.
pub(super) const CLONES: &str = "clones";
/// How long `qemu-img` may take to make an empty image.
const IMAGE_LIMIT: Duration = Duration::from_secs(20);

/// One attachment, to be made or undone.
pub(super) struct Work {
    owner: Owner,
    attached: Attached,
    stores: Vec<Arc<Store>>,
    is_read: bool,
}

impl Work {
    pub(super) fn new(vm: VmUuid, attached: &Attached, stores: Vec<Arc<Store>>) -> Self {
        let owner = Owner { vm, snapshot: attached.attachment.snapshot };
        Self { owner, attached: attached.clone(), stores, is_read: false }
    }

    /// Undoing it does not hide the disk: somebody else reads it, who hides it then.
    pub(super) fn leave_shown(&mut self) {
        self.is_read = true;
    }

    fn name(&self) -> AttachedName {
        let serial = self.attached.attachment.serial.as_str();
        serial.parse().expect("an attachment's serial is made of its name")
    }

    pub(super) fn make(&self) -> Result<(), DriverError> {
        let (store, exposed) = shown::expose(&self.stores, self.owner, &self.attached.attachment.disk)?;
        shown::refuse_what_is_too_short(&exposed, self.attached.attachment.size_bytes)?;
        let base = match exposed {
            Exposed::Node(node) => Base::Node(node),
            Exposed::Path { path, format } => {
                let file = File::open(&path)
                    .map_err(|error| DriverError::io(format!("open {}", path.display()), error))?;
                let layout = match format {
                    Format::Raw => "raw",
                    Format::Qcow2 => "qcow2",
                };
                Base::File(file, layout)
            }
        };
        let content = match &self.attached.clone {
            None => Content::ReadOnly(base),
            Some(path) => {
                let floor = store.config.min_free;
                Content::Clone(base, make_clone(path, self.attached.attachment.size_bytes, floor)?)
            }
        };
        let doing = || format!("plug {} into the machine", self.name());
        self.attached.monitor.plug(&self.name(), &content).map_err(|error| of_plug(doing(), error))
    }

    /// Takes it out of its machine, which has so long to release it, and removes what it was made of.
    /// A machine that is gone has released everything.
    pub(super) fn undo(&self, limit: Duration) -> Result<(), DriverError> {
        let doing = || format!("take {} out of the machine", self.name());
        self.unplug(limit).map_err(|error| of_plug(doing(), error))?;
        if let Some(clone) = &self.attached.clone {
            remove_clone(clone)?;
        }
        if self.is_read {
            return Ok(());
        }
        shown::conceal(&self.stores, self.owner, &self.attached.attachment.disk)
    }

    fn unplug(&self, limit: Duration) -> Result<(), PlugError> {
        let mut has_broken = false;
        loop {
            match self.attached.monitor.unplug(&self.name(), limit) {
                // QEMU is gone, or only this connection: a new one tells.
                Err(PlugError::Qmp(QmpError::Io(_))) if !has_broken => has_broken = true,
                Err(error) if error.is_gone() => return Ok(()),
                unplugged => return unplugged,
            }
        }
    }
}

/// The kind decides what the guest reads.
pub(super) fn of_plug(doing: String, error: PlugError) -> DriverError {
    let kind = match &error {
        PlugError::NoPort(_) | PlugError::Unsupported(_) => Kind::Unsupported,
        PlugError::Device(_) => Kind::Failed,
        PlugError::Libvirt(error) => errors::kind_of_libvirt(error),
        PlugError::NotReleased(..) | PlugError::NodeInUse(..) | PlugError::Moving => Kind::Busy,
        PlugError::Qmp(error) => Kind::from(error),
    };
    DriverError { source: Some(Box::new(error)), ..DriverError::new(kind, doing) }
}

/// An empty qcow2 file. What it lies over is told to QEMU alone: no path of the host is in it.
fn make_clone(path: &Path, size_bytes: u64, floor_bytes: u64) -> Result<File, DriverError> {
    let doing = || format!("make the clone {}", path.display());
    let io = |error: io::Error| DriverError::io(doing(), error);
    let folder = path.parent().expect("a clone is in a folder of clones");
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
    let stat = rustix::fs::statvfs(folder).map_err(|error| DriverError::io(doing(), error))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free_bytes < floor_bytes {
        let text = format!("{}: {free_bytes} bytes are free, and {floor_bytes} must stay so", doing());
        return Err(DriverError::new(Kind::NoSpace, text));
    }
    remove_clone(path)?;
    let tool = Tool::find("qemu-img").map_err(|error| DriverError {
        source: Some(Box::new(error)),
        ..DriverError::new(Kind::Unsupported, doing())
    })?;
    let mut command = tool.command();
    command.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(size_bytes.to_string());
    tool.run(&mut command, IMAGE_LIMIT).map_err(|error| DriverError {
        source: Some(Box::new(error)),
        ..DriverError::new(Kind::Failed, doing())
    })?;
    OpenOptions::new().read(true).write(true).open(path).map_err(io)
}

pub(super) fn remove_clone(path: &Path) -> Result<(), DriverError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DriverError::io(format!("remove the clone {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// The clones in a folder, whoever they were made for.
pub(super) fn clones_in(folder: &Path) -> Vec<PathBuf> {
    let is_ours = |path: &PathBuf| {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        path.extension().is_some_and(|extension| extension == "qcow2")
            && stem.is_some_and(|stem| stem.parse::<AttachedName>().is_ok())
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(is_ours).collect()
}
