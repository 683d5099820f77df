//! What is to be taken: the topology's selection, with what each disk's first bytes say it is.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use protocol::fingerprint::{self, Fingerprint};
use protocol::message::DiskRequest;
use protocol::record::MountRecord;
use protocol::text::MountPath;
use protocol::{BoundedVec, DiskSerial, ErrorCode, WireError};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::evidence::fs_name;
use crate::client::{Client, HostAddress, Limits};
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
pub(super) fn resolve(paths: &[PathBuf], host: &HostAddress, limits: Limits) -> Result<Target, WireError> {
    let wish = if paths.is_empty() {
        let known = Client::connect(host, limits)?.disks()?;
        Wish::All(known.into_iter().map(|disk| disk.serial).collect())
    } else {
        Wish::Paths(paths.iter().map(|path| canonical(path)).collect::<Result<_, _>>()?)
    };
    let capture = capture::live()?;
    let selection = select::select(&capture, &wish)?;
    Target::new(selection)
}

fn canonical(path: &Path) -> Result<PathBuf, WireError> {
    path.canonicalize()
        .map_err(|error| TopologyError::Path { path: path.to_owned(), why: error.to_string() }.into())
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
                rank: fs.rank,
            })
            .collect()
    }

    /// What has come to these disks since the plan and was not frozen with the rest.
    pub(super) fn joined(&self) -> Option<String> {
        let names = self.disks.iter().map(|(disk, _)| disk.name.as_str()).collect();
        match capture::live() {
            Err(error) => Some(format!("what is mounted now can't be read: {error}")),
            Ok(capture) => select::joined(&capture, &names, &self.file_systems).map(|path| {
                format!(
                    "{} was mounted, or made writable, on a disk of this request meanwhile: it was not frozen",
                    path.display()
                )
            }),
        }
    }

    /// A disk without a mounted file system may still be written to: by ZFS, by a volume that a
    /// database uses raw, by a mount of another namespace. None of it can be frozen, and a record
    /// must not claim that nothing wrote.
    pub(super) fn writers_outside(&self) -> Result<(), WireError> {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let found = self.disks.iter().map(|(disk, _)| &disk.name).find(|name| {
            let has_mounts = self.file_systems.iter().any(|fs| fs.disks.contains(*name));
            !has_mounts && !has_swap(&swaps, name) && is_held(name)
        });
        let Some(name) = found else { return Ok(()) };
        Err(WireError::new(
            ErrorCode::NotFreezable,
            format!(
                "the disk {name} is in use, but not by a file system that is mounted here: it can't be frozen"
            ),
        )
        .hint("stop what uses it (lsblk shows it), leave the disk out, or accept --consistency crash"))
    }

    pub(super) fn serials(&self) -> Vec<DiskSerial> {
        self.disks.iter().map(|(disk, _)| disk.serial.clone()).collect()
    }

    pub(super) fn mount_points(&self) -> Vec<PathBuf> {
        self.to_freeze().into_iter().map(|target| target.mount_point).collect()
    }
}

/// Whether swap space lies on this disk or on a partition of it, by `/proc/swaps`. Its content is
/// worth nothing after a restore.
fn has_swap(swaps: &str, disk: &str) -> bool {
    swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).any(|device| {
        device.strip_prefix("/dev/").and_then(|name| name.strip_prefix(disk)).is_some_and(|partition| {
            partition.strip_prefix('p').unwrap_or(partition).bytes().all(|c| c.is_ascii_digit())
        })
    })
}

/// Whether anything holds the device or a partition of it: an exclusive open fails then (open(2),
/// O_EXCL on block devices). It is given back at once.
fn is_held(disk: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    matches!(rustix::fs::open(format!("/dev/{disk}"), flags, Mode::empty()), Err(Errno::BUSY))
}

/// What the host will read of the same disk must be what we read: written back first.
pub(crate) fn read_fingerprint(name: &str) -> io::Result<Fingerprint> {
    let device = File::open(format!("/dev/{name}"))?;
    device.sync_all()?;
    let mut head = Vec::with_capacity(fingerprint::HEAD_BYTES);
    device.take(fingerprint::HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(fingerprint::of_head(&head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_told_by_the_disk_that_it_is_on() {
        let swaps = "Filename\tType\tSize\tUsed\tPriority\n/dev/vdb2 partition 1 0 -2\n/dev/nvme0n1p3 partition 1 0 -3\n/swapfile file 1 0 -4\n/dev/vdab partition 1 0 -5\n";
        for (disk, expected) in
            [("vdb", true), ("nvme0n1", true), ("vda", false), ("vdab", true), ("vd", false), ("vdc", false)]
        {
            assert_eq!(has_swap(swaps, disk), expected, "{disk}");
        }
    }
}
