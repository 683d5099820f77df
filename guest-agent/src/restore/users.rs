//! Which processes use file systems or disks, as fuser(1) finds out: by what the links of /proc say. Nothing is opened and
//! nothing followed, so that a dead server hangs nobody. What may not be read is passed over; root may read all.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::InTheWay;
use crate::topology::mountinfo::{self, Mount};

/// One line for each process: the first thing by which it uses one of these mounts or devices. `all` is the whole table.
pub(super) fn find(all: &[Mount], mounts: &[Mount], devices: &BTreeSet<&str>) -> Vec<InTheWay> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<_> = pids
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            let (path, how) = uses(&folder, |path| is_of(all, mounts, devices, path))?;
            let name = fs::read(folder.join("comm")).unwrap_or_default();
            let name = String::from_utf8_lossy(&name).trim_end().to_owned();
            // JSON has no other paths than readable ones.
            let path = path.to_string_lossy().into_owned().into();
            Some(InTheWay::Process { pid, name, path, how })
        })
        .collect();
    found.sort_by_key(|one| if let InTheWay::Process { pid, .. } = one { *pid } else { 0 });
    found
}

fn is_of(all: &[Mount], mounts: &[Mount], devices: &BTreeSet<&str>, path: &Path) -> bool {
    if let Ok(name) = path.strip_prefix("/dev")
        && name.to_str().is_some_and(|name| devices.contains(name))
    {
        return true;
    }
    path.is_absolute()
        && mountinfo::of_path(all, path).is_some_and(|on| mounts.iter().any(|mount| mount.id == on.id))
}

fn uses(folder: &Path, is_of: impl Fn(&Path) -> bool) -> Option<(PathBuf, &'static str)> {
    let link = |path: PathBuf| fs::read_link(path).ok().map(|to| without_deleted(&to));
    let descriptors = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    let files = descriptors.filter_map(|entry| Some((link(entry.path())?, "file")));
    let places = [("cwd", "cwd"), ("root", "root"), ("exe", "program")];
    let places = places.iter().filter_map(|(name, how)| Some((link(folder.join(name))?, *how)));
    let maps = fs::read(folder.join("maps")).unwrap_or_default();
    let mapped = mapped(&maps).into_iter().map(|path| (path, "mapped"));
    files.chain(places).chain(mapped).find(|(path, _)| is_of(path))
}

/// The kernel says so of a file that has no name any more (Linux `fs/d_path.c`).
fn without_deleted(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    OsStr::from_bytes(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes)).into()
}

/// The sixth column of proc_pid_maps(5).
fn mapped(maps: &[u8]) -> BTreeSet<PathBuf> {
    let path_of = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b'/')?;
        Some(without_deleted(Path::new(OsStr::from_bytes(&line[at..]))))
    };
    maps.split(|byte| *byte == b'\n').filter_map(path_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_an_open_file_also_one_without_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("open");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "exec 9>open; rm open; echo; read wait"]).current_dir(folder.path());
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let of_child = PathBuf::from(format!("/proc/{}", child.id()));
        let by_file = uses(&of_child, |one| one == path);
        let by_place = uses(&of_child, |one| one == path.parent().unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(by_file, Some((path.clone(), "file")));
        assert_eq!(by_place, Some((path.parent().unwrap().to_owned(), "cwd")));
    }

    #[test]
    fn a_device_and_what_is_on_its_mount_are_its_own_and_a_mount_below_is_not() {
        let all = mountinfo::parse(
            b"22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 254:16 / /data rw - xfs /dev/vdb rw\n\
              31 30 254:32 / /data/other rw - ext4 /dev/vdc rw\n",
        );
        let mounts = [all[1].clone()];
        let of = |path: &str| is_of(&all, &mounts, &["vdb"].into(), Path::new(path));
        for (path, expected) in [
            ("/data/x", true),
            ("/data", true),
            ("/data/other/x", false),
            ("/database", false),
            ("/dev/vdb", true),
            ("/dev/vdb1", false),
            ("socket:[12]", false),
        ] {
            assert_eq!(of(path), expected, "{path}");
        }
        let maps =
            b"7f00-7f01 r-xp 00000000 fe:10 12 /data/lib.so (deleted)\n7f02-7f03 rw-p 0 00:00 0 [heap]\n";
        assert_eq!(mapped(maps), [PathBuf::from("/data/lib.so")].into());
    }
}
