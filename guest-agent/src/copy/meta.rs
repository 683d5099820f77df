//! What a file is besides its bytes: owner, extended attributes (with them ACLs and capabilities), mode, times. In
//! this order: a new owner takes capabilities and set-user-ID bits away, and an ACL changes the mode.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, lgetxattr,
    llistxattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

/// The largest list and the largest value that Linux has (xattr(7)).
const LARGEST: usize = 64 << 10;

/// So XFS shows what it keeps ACLs in, besides showing them as all others do.
const OF_XFS: &[u8] = b"trusted.SGI_ACL_";

/// A name in a folder.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) folder: BorrowedFd<'a>,
    pub(super) name: &'a OsStr,
}

impl Entry<'_> {
    /// For the calls that know no folders. The kernel follows the link in /proc, and none behind it.
    fn path(self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_fd().as_raw_fd())).join(self.name)
    }
}

/// Gives the target what the source has. All of it is tried; the first failure is told, with what it was.
pub(super) fn copy(from: Entry<'_>, stat: &Stat, to: Entry<'_>) -> Result<(), (String, io::Error)> {
    let mut first = None;
    let mut note = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            first.get_or_insert((what.to_owned(), error));
        }
    };
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    note("keep its owner", chownat(to.folder, to.name, owner.0, owner.1, no_follow).map_err(Into::into));
    note("keep its extended attributes", attributes(from, to));
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = chmodat(to.folder, to.name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty());
        note("keep its mode", mode.map_err(Into::into));
    }
    let time = |sec: i64, nsec| Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec.cast_signed()),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
    };
    note("keep its times", utimensat(to.folder, to.name, &times, no_follow).map_err(Into::into));
    first.map_or(Ok(()), Err)
}

fn attributes(from: Entry<'_>, to: Entry<'_>) -> io::Result<()> {
    let (source, target) = (from.path(), to.path());
    let mut names = Vec::with_capacity(LARGEST);
    match llistxattr(&source, spare_capacity(&mut names)) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        listed => listed?,
    };
    let mut first = Ok(());
    let wanted = |name: &&[u8]| !name.is_empty() && !name.starts_with(OF_XFS);
    for name in names.split(|byte| *byte == 0).filter(wanted) {
        let mut value = Vec::with_capacity(LARGEST);
        let copied = lgetxattr(&source, name, spare_capacity(&mut value))
            .and_then(|_| lsetxattr(&target, name, &value, XattrFlags::empty()));
        if let Err(errno) = copied {
            let text = format!("{}: {}", String::from_utf8_lossy(name), io::Error::from(errno));
            first = first.and(Err(io::Error::new(io::Error::from(errno).kind(), text)));
        }
    }
    first
}
