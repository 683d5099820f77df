//! Mounting with the calls that keep a mount out of sight until it is moved to a folder (fsopen(2), fsmount(2);
//! Linux 5.2): a command that only reads never shows one, and one that is killed leaves none.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use serde::Serialize;

use super::mapper::Writes;
use super::probe::{FileSystem, Kind};

/// What a mount is told, as mount(8) names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Options(Vec<String>);

/// By the file system, and whether it may be written to. A snapshot needs neither programs with other users' rights
/// nor devices; a read-only one no programs at all.
pub(super) fn options(fs: &FileSystem, writes: Writes) -> Options {
    let read_only = writes == Writes::Never;
    let mut all = match read_only {
        true => vec!["ro", "nosuid", "nodev", "noexec"],
        false => vec!["rw", "nosuid", "nodev"],
    };
    match fs.kind {
        // A journal that is to be replayed and can't be makes the kernel refuse the mount.
        Kind::Ext4 if fs.needs_recovery && read_only => all.push("noload"),
        Kind::Ext4 => {}
        // One that was frozen has something in its log, for its own sake (fs/xfs/xfs_log.c, xfs_log_quiesce). The
        // original's UUID is mounted already.
        Kind::Xfs if read_only => all.extend(["norecovery", "nouuid"]),
        Kind::Xfs => all.push("nouuid"),
        // From its top, so that every subvolume is below.
        Kind::Btrfs => all.push("subvolid=5"),
    }
    Options(all.into_iter().map(str::to_owned).collect())
}

impl std::fmt::Display for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// Mounts out of sight. The first device is the source; a btrfs may have more.
pub(super) fn mount(fs: &FileSystem, devices: &[PathBuf], options: &Options) -> io::Result<OwnedFd> {
    let context = fsopen(fs.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mut attributes = MountAttrFlags::empty();
    let configured = (|| {
        let [source, more @ ..] = devices else { return Err(Errno::INVAL) };
        fsconfig_set_string(&context, "source", source)?;
        more.iter().try_for_each(|device| fsconfig_set_string(&context, "device", device))?;
        for option in &options.0 {
            match (option.as_str(), option.split_once('=')) {
                ("nosuid", _) => attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
                ("nodev", _) => attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
                ("noexec", _) => attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
                ("rw", _) => {}
                (_, Some((key, value))) => fsconfig_set_string(&context, key, value)?,
                (flag, None) => {
                    if flag == "ro" {
                        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
                    }
                    fsconfig_set_flag(&context, flag)?;
                }
            }
        }
        fsconfig_create(&context)
    })();
    configured.map_err(|errno| with_reason(errno, &context))?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The kernel's own words, where it has any (fsopen(2): the context can be read).
fn with_reason(errno: Errno, context: &OwnedFd) -> io::Error {
    let mut said = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(count @ 1..) = rustix::io::read(context, &mut buffer) {
        said.push(String::from_utf8_lossy(&buffer[..count]).trim().to_owned());
    }
    let error = io::Error::from(errno);
    match said.is_empty() {
        true => error,
        false => io::Error::new(error.kind(), format!("{error} ({})", said.join("; "))),
    }
}

/// Its number in `/proc/self/mountinfo`, which it keeps when it is moved (proc_pid_fdinfo(5); statx(2) tells it only
/// since Linux 5.8).
pub(super) fn id(mount: impl AsFd) -> io::Result<u64> {
    let facts = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", mount.as_fd().as_raw_fd()))?;
    let number = facts.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    number.ok_or_else(|| io::Error::other("the kernel does not tell the number of a mount"))
}

/// A part of a mount as a mount of its own. The kernel makes one only of what is at a folder (before Linux 6.15), so
/// the whole is at this one meanwhile.
pub(super) fn part(whole: OwnedFd, root: &Path, meanwhile: &Path) -> io::Result<OwnedFd> {
    let Ok(root) = root.strip_prefix("/") else { return Ok(whole) };
    if root.as_os_str().is_empty() {
        return Ok(whole);
    }
    std::fs::create_dir_all(meanwhile)?;
    place(&whole, meanwhile)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let part = open_tree(&whole, root, flags);
    unmount(meanwhile, UnmountFlags::DETACH)?;
    let _ = std::fs::remove_dir(meanwhile);
    Ok(part?)
}

/// Shows a mount at a folder.
pub(super) fn place(mount: impl AsFd, at: &Path) -> io::Result<()> {
    Ok(move_mount(mount, c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_mounted_beside_its_original() {
        let fs = |kind, needs_recovery| FileSystem {
            kind,
            uuid: uuid::Uuid::nil(),
            label: String::new(),
            last_mounted: String::new(),
            needs_recovery,
            devices: 1,
        };
        for (fs, writes, expected) in [
            (fs(Kind::Ext4, false), Writes::Never, "ro,nosuid,nodev,noexec"),
            (fs(Kind::Ext4, true), Writes::Never, "ro,nosuid,nodev,noexec,noload"),
            (fs(Kind::Ext4, true), Writes::Allowed, "rw,nosuid,nodev"),
            (fs(Kind::Xfs, true), Writes::Never, "ro,nosuid,nodev,noexec,norecovery,nouuid"),
            (fs(Kind::Xfs, true), Writes::Allowed, "rw,nosuid,nodev,nouuid"),
            (fs(Kind::Btrfs, false), Writes::Never, "ro,nosuid,nodev,noexec,subvolid=5"),
        ] {
            assert_eq!(options(&fs, writes).to_string(), expected);
        }
    }
}
