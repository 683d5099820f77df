//! Opening a mount point so that its file system can be frozen: without side effects, and only if it
//! is the file system that was meant.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::Errno;

use super::Target;

/// Why a mount point can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It can't be opened.
    #[error("open {} to freeze it", path.display())]
    Open {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something that is neither a folder nor a file is mounted there.
    #[error("{} is neither a folder nor a file, so what is mounted there can't be frozen", .0.display())]
    Special(PathBuf),
    /// The path leads to another mount than the one that was meant.
    #[error("{} leads to another file system than a moment ago: something was mounted over it, or unmounted", .0.display())]
    Covered(PathBuf),
}

/// Opens it, and checks that it is the mount that was meant.
pub(super) fn open_target(target: &Target) -> Result<File, OpenError> {
    let path = &target.mount_point;
    let file = open_mount(path)?;
    let Some(expected) = target.mount_id else { return Ok(file) };
    let seen = statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|errno| OpenError::Open { path: path.clone(), source: errno.into() })?;
    // A kernel before 5.8 does not tell.
    let tells = seen.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    match tells && seen.stx_mnt_id != expected {
        true => Err(OpenError::Covered(path.clone())),
        false => Ok(file),
    }
}

/// Opens a folder, or a file (bind mounts of single files are mount points too), and nothing whose
/// opening does something, such as a device. An `O_PATH` descriptor would not do: it takes no ioctl.
pub(super) fn open_mount(path: &Path) -> Result<File, OpenError> {
    let failed = |errno: Errno| OpenError::Open { path: path.to_owned(), source: errno.into() };
    let seen = statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE).map_err(failed)?;
    if !matches!(FileType::from_raw_mode(seen.stx_mode.into()), FileType::Directory | FileType::RegularFile) {
        return Err(OpenError::Special(path.to_owned()));
    }
    // Without access times: on a frozen file system their update has blocked readers
    // (velero-io/velero#2113).
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    open(path, flags | OFlags::NOATIME, Mode::empty())
        .or_else(|errno| match errno {
            // Only the owner of a file may ask for this; root of a user namespace may not own it.
            Errno::PERM => open(path, flags, Mode::empty()),
            errno => Err(errno),
        })
        .map(File::from)
        .map_err(failed)
}
