//! Mounts that make way for a restore, and are made again in the same way: where they were, with their options, bind mounts
//! and subvolumes too.

use std::collections::VecDeque;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::{ErrorCode, WireError};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use crate::topology::mountinfo::{self, Mount};

/// How long a partition may take to be there again.
const APPEAR_LIMIT: Duration = Duration::from_secs(10);

/// What was unmounted, in the order in which it was.
pub(super) struct Unmounted(Vec<Mount>);

impl Unmounted {
    /// Unmounts them all, or none.
    pub(super) fn unmount(mounts: &[Mount]) -> Result<Self, WireError> {
        if let Some(part) = mounts.iter().find(|one| is_part(one) && whole_of(mounts, one).is_none()) {
            let text = format!(
                "{} shows only a part of its file system, {}",
                part.mount_point.display(),
                part.root.display()
            );
            return Err(
                WireError::new(ErrorCode::Busy, text).hint("unmount it, and mount it again afterwards")
            );
        }
        let mut done = Self(Vec::with_capacity(mounts.len()));
        let mut left = mounts.to_vec();
        while !left.is_empty() {
            let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
            let table = mountinfo::parse(&table);
            // Together with others of its peer group it may be gone already.
            let is_there = |one: &Mount| table.iter().any(|mount| mount.id == one.id);
            let has_child =
                |one: &Mount| table.iter().any(|mount| mount.parent == one.id && mount.id != one.id);
            let next = left.iter().position(|one| !is_there(one) || !has_child(one));
            let Some(next) = next else {
                let covered = left.remove(0);
                let text = format!("something else is mounted on {}", covered.mount_point.display());
                let hint = "unmount that first; findmnt -R shows it";
                return Err(done.after(WireError::new(ErrorCode::Busy, text).hint(hint)));
            };
            let one = left.remove(next);
            if is_there(&one)
                && let Err(error) = unmount_one(&table, &one)
            {
                return Err(done.after(error));
            }
            done.0.push(one);
        }
        Ok(done)
    }

    /// Mounts everything again, the last one first. What is mounted, and what did not go as it should.
    pub(super) fn mount_again(self) -> (Vec<PathBuf>, Vec<String>) {
        let (mut mounted, mut notes) = (Vec::new(), Vec::new());
        let all = self.0.clone();
        let mut left: VecDeque<Mount> = self.0.into_iter().rev().collect();
        let mut put_off = 0;
        while let Some(one) = left.pop_front() {
            let whole = if is_part(&one) { whole_of(&all, &one) } else { None };
            // A part of a file system comes after the whole of it.
            if whole.is_some_and(|whole| left.iter().any(|other| other.id == whole.id))
                && put_off <= left.len()
            {
                put_off += 1;
                left.push_back(one);
                continue;
            }
            put_off = 0;
            match mount_one(&one, whole) {
                Ok(note) => {
                    notes.extend(note);
                    mounted.push(one.mount_point);
                }
                Err(error) => notes.push(format!(
                    "{} could not be mounted again: {error}; mount {} {}",
                    one.mount_point.display(),
                    one.source.display(),
                    one.mount_point.display()
                )),
            }
        }
        (mounted, notes)
    }

    /// Mounts everything again after a failure, and says what of that failed too.
    pub(super) fn after(self, error: WireError) -> WireError {
        let (_, notes) = self.mount_again();
        if notes.is_empty() {
            return error;
        }
        WireError::new(error.code, format!("{}; and {}", error.message, notes.join("; ")))
            .hint(error.hint.as_str())
    }

    /// Leaves everything unmounted.
    pub(super) fn left(self, error: WireError) -> WireError {
        let points: Vec<_> = self.0.iter().map(|one| one.mount_point.display().to_string()).collect();
        if points.is_empty() {
            return error;
        }
        let text = format!("{}; left unmounted: {}", error.message, points.join(", "));
        WireError::new(error.code, text).hint(error.hint.as_str())
    }
}

/// btrfs mounts a subvolume by its option, not as a part.
fn is_part(mount: &Mount) -> bool {
    mount.root != Path::new("/") && mount.fs_type != "btrfs"
}

fn whole_of<'a>(mounts: &'a [Mount], part: &Mount) -> Option<&'a Mount> {
    mounts.iter().find(|one| one.dev == part.dev && one.root == Path::new("/"))
}

fn unmount_one(table: &[Mount], one: &Mount) -> Result<(), WireError> {
    let point = one.mount_point.display();
    let busy = |text: String, hint: String| Err(WireError::new(ErrorCode::Busy, text).hint(hint));
    if !mountinfo::is_visible(table, one) {
        return busy(
            format!("{point} is hidden under another mount"),
            format!("unmount what covers it: findmnt {point}"),
        );
    }
    match unmount(&one.mount_point, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => busy(
            format!("nothing was restored: {point} is in use and can't be unmounted"),
            format!("fuser -vm {point} shows by whom"),
        ),
        Err(error) => Err(WireError::new(ErrorCode::Internal, format!("unmount {point}: {error}"))
            .hint("run it as root: sudo hostsnap …")),
    }
}

/// Mounts it where it was. What is not quite as it was.
fn mount_one(one: &Mount, whole: Option<&Mount>) -> rustix::io::Result<Option<String>> {
    let mut own = flags(&one.options);
    if !own.intersects(MountFlags::NOATIME | MountFlags::RELATIME) {
        own |= MountFlags::STRICTATIME;
    }
    if let Some(whole) = whole {
        let inside = one.root.strip_prefix("/").unwrap_or(&one.root);
        mount_bind(whole.mount_point.join(inside), &one.mount_point)?;
        mount_remount(&one.mount_point, MountFlags::BIND | own, c"")?;
        return Ok(None);
    }
    wait_for(&one.source);
    let of_all = own | flags(&one.super_options);
    let read_only = flags(&one.super_options) & MountFlags::RDONLY;
    let first = (of_all & !MountFlags::RDONLY) | read_only;
    let data = data(&one.super_options);
    let try_with =
        |data: &CString| mount(&one.source, &one.mount_point, &one.fs_type, first, data.as_c_str());
    let mut note = None;
    match try_with(&data) {
        // What the kernel shows of options is not always what it takes.
        Err(Errno::INVAL) if !data.is_empty() => {
            try_with(&CString::default())?;
            note = Some(format!(
                "{} is mounted with the kernel's own options, without {}",
                one.mount_point.display(),
                data.to_string_lossy()
            ));
        }
        mounted => mounted?,
    }
    if own.contains(MountFlags::RDONLY) && read_only.is_empty() {
        mount_remount(&one.mount_point, MountFlags::BIND | own, c"")?;
    }
    Ok(note)
}

/// A partition whose table was read anew comes back a moment later.
fn wait_for(source: &Path) {
    let deadline = Instant::now() + APPEAR_LIMIT;
    while source.is_absolute() && !source.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn flag(option: &str) -> Option<MountFlags> {
    Some(match option {
        "rw" => MountFlags::empty(),
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "sync" => MountFlags::SYNCHRONOUS,
        "dirsync" => MountFlags::DIRSYNC,
        "lazytime" => MountFlags::LAZYTIME,
        _ => return None,
    })
}

fn flags(options: &str) -> MountFlags {
    options.split(',').filter_map(flag).fold(MountFlags::empty(), |all, one| all | one)
}

/// What only the file system understands. `seclabel` is shown and never taken (SELinux).
fn data(options: &str) -> CString {
    let own: Vec<_> = options
        .split(',')
        .filter(|one| flag(one).is_none() && !matches!(*one, "seclabel" | "mand"))
        .collect();
    CString::new(own.join(",")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_the_file_systems_own() {
        assert_eq!(
            flags("rw,nosuid,nodev,noexec,relatime"),
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME
        );
        assert_eq!(flags("ro,attr2"), MountFlags::RDONLY);
        assert_eq!(data("rw,seclabel,errors=remount-ro,sync").to_bytes(), b"errors=remount-ro");
        assert!(data("rw").is_empty());
    }

    #[test]
    fn a_part_is_mounted_from_the_whole_and_a_subvolume_by_itself() {
        let mounts = mountinfo::parse(
            b"30 22 254:16 / /data rw - ext4 /dev/vdb rw\n31 22 254:16 /sub /mnt rw - ext4 /dev/vdb rw\n\
              32 22 0:40 /home /home rw - btrfs /dev/vdc rw,subvol=/home\n33 22 254:48 /x /y rw - ext4 /dev/vdd rw\n",
        );
        assert_eq!(whole_of(&mounts, &mounts[1]).map(|whole| whole.id), Some(30));
        assert_eq!([0, 1, 2, 3].map(|n| is_part(&mounts[n])), [false, true, false, true]);
        let refused = Unmounted::unmount(&mounts[3..]).err().expect("its whole is not mounted");
        assert!(refused.to_string().contains("only a part"), "{refused}");
    }
}
