//! What is to be taken: the topology's selection, with what each disk's first bytes say it is.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use protocol::fingerprint::{self, Fingerprint};
use protocol::message::DiskRequest;
use protocol::record::MountRecord;
use protocol::text::MountPath;
use protocol::{BoundedVec, ErrorCode, WireError};

use super::evidence::fs_name;
use crate::client::{Client, HostAddress};
use crate::freeze;
use crate::topology::select::{self, Disk, FileSystem, Selection, Wish};
use crate::topology::{TopologyError, capture};

/// What is to be taken.
#[derive(Debug, Clone)]
pub struct Target {
    /// The disks.
    pub disks: Vec<(Disk, Fingerprint)>,
    /// All mounted file systems on them, in the order of the freeze.
    pub file_systems: Vec<FileSystem>,
}

/// Finds out; asks the host only where all disks are wanted.
pub(super) fn resolve(paths: &[PathBuf], host: &HostAddress) -> Result<Target, WireError> {
    let wish = if paths.is_empty() {
        let known = Client::connect(host)?.disks()?;
        Wish::All(known.into_iter().map(|disk| disk.serial).collect())
    } else {
        Wish::Paths(paths.iter().map(|path| canonical(path)).collect::<Result<_, _>>()?)
    };
    let capture = capture::live().map_err(|error| of_topology(&error))?;
    let selection = select::select(&capture, &wish).map_err(|error| of_topology(&error))?;
    Target::new(selection)
}

fn canonical(path: &Path) -> Result<PathBuf, WireError> {
    path.canonicalize()
        .map_err(|error| of_topology(&TopologyError::Path { path: path.to_owned(), why: error.to_string() }))
}

fn of_topology(error: &TopologyError) -> WireError {
    WireError::new(error.code(), error.to_string())
}

impl Target {
    /// Reads the first bytes of each disk.
    pub fn new(selection: Selection) -> Result<Self, WireError> {
        let too_many = |what: &str, count: usize| {
            WireError::new(ErrorCode::BadRequest, format!("{count} {what}; a snapshot can have at most 64"))
        };
        if selection.disks.len() > 64 {
            return Err(too_many("disks", selection.disks.len()));
        }
        if selection.file_systems.len() > 64 {
            return Err(too_many("file systems", selection.file_systems.len()));
        }
        let disks = selection
            .disks
            .into_iter()
            .map(|disk| {
                let fingerprint = read_fingerprint(&disk.name).map_err(|error| {
                    let text = format!("read the first bytes of /dev/{}: {error}", disk.name);
                    let code = match error.kind() {
                        io::ErrorKind::PermissionDenied => ErrorCode::Refused,
                        _ => ErrorCode::Internal,
                    };
                    WireError::new(code, text).hint("run it as root: sudo hostsnap …")
                })?;
                Ok((disk, fingerprint))
            })
            .collect::<Result<_, WireError>>()?;
        Ok(Self { disks, file_systems: selection.file_systems })
    }

    pub(super) fn requests(&self) -> BoundedVec<DiskRequest, 64> {
        let requests: Vec<_> = self
            .disks
            .iter()
            .map(|(disk, fingerprint)| DiskRequest {
                serial: disk.serial.clone(),
                size_bytes: disk.size_bytes,
                fingerprint: fingerprint.clone(),
            })
            .collect();
        requests.try_into().expect("`new` bounds the disks")
    }

    pub(super) fn mounts(&self) -> BoundedVec<MountRecord, 64> {
        let mounts: Vec<_> = self
            .file_systems
            .iter()
            .map(|fs| MountRecord {
                path: MountPath::lossy(&fs.mount_point.to_string_lossy()),
                fs_type: fs_name(&fs.fs_type),
            })
            .collect();
        mounts.try_into().expect("`new` bounds the file systems")
    }

    /// Nothing writes to a read-only file system: it needs neither flush nor freeze.
    pub(super) fn to_freeze(&self) -> Vec<freeze::Target> {
        self.file_systems
            .iter()
            .filter(|fs| !fs.read_only)
            .map(|fs| freeze::Target {
                mount_point: fs.mount_point.clone(),
                fs_type: fs.fs_type.clone(),
                mount_id: Some(fs.mount_id.into()),
            })
            .collect()
    }

    pub(super) fn mount_points(&self) -> Vec<PathBuf> {
        self.to_freeze().into_iter().map(|target| target.mount_point).collect()
    }
}

/// What the host will read of the same disk must be what we read: written back first.
fn read_fingerprint(name: &str) -> io::Result<Fingerprint> {
    let device = File::open(format!("/dev/{name}"))?;
    device.sync_all()?;
    let mut head = Vec::with_capacity(fingerprint::HEAD_BYTES);
    device.take(fingerprint::HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(fingerprint::of_head(&head))
}
