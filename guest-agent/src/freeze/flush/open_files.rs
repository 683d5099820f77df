//! The files that processes have open for writing, by /proc: where what is dirty most probably is.
//!
//! A descriptor is copied out of its process (pidfd_getfd(2)) instead of opening its file once more:
//! opening would break leases (Samba's oplocks, NFS delegations) and ask whoever watches files by
//! fanotify. What can't be looked at (another user's process, one that has just ended) is left out:
//! `syncfs` writes it back as well.

use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// A file that a process has open for writing.
pub(super) struct OpenFile {
    pub(super) fd: OwnedFd,
    pub(super) device: u64,
    pub(super) size_bytes: u64,
}

/// Those on the file systems of these devices, each once. More than `most` are not looked for.
pub(super) fn of(devices: &HashSet<u64>, most: usize) -> Vec<OpenFile> {
    let mut seen = HashSet::new();
    let mut files = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Some(pid) = process.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?))
        else {
            continue;
        };
        if pid != getpid() {
            of_process(pid, &process.path().join("fd"), devices, &mut seen, &mut files);
        }
        if files.len() >= most {
            break;
        }
    }
    files
}

fn of_process(
    pid: Pid,
    folder: &Path,
    devices: &HashSet<u64>,
    seen: &mut HashSet<(u64, u64)>,
    files: &mut Vec<OpenFile>,
) {
    let mut pidfd = None;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // Of the link the owner's write bit tells that it is open for writing (proc_pid_fd(5)).
        if !fs::symlink_metadata(entry.path()).is_ok_and(|link| link.mode() & 0o200 != 0) {
            continue;
        }
        let Ok(file) = fs::metadata(entry.path()) else { continue };
        let wanted = file.is_file() && file.size() > 0 && devices.contains(&file.dev());
        if !wanted || seen.contains(&(file.dev(), file.ino())) {
            continue;
        }
        if pidfd.is_none() {
            pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        }
        let (Some(pidfd), Some(number)) =
            (&pidfd, entry.file_name().to_str().and_then(|name| name.parse().ok()))
        else {
            continue;
        };
        if let Ok(fd) = pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())
            // The number may mean another file by now.
            && rustix::fs::fstat(&fd).is_ok_and(|now| (now.st_dev, now.st_ino) == (file.dev(), file.ino()))
        {
            seen.insert((file.dev(), file.ino()));
            files.push(OpenFile { fd, device: file.dev(), size_bytes: file.size() });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_another_process_has_open_for_writing_is_found_once_and_what_it_reads_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (written, read) = (folder.path().join("written"), folder.path().join("read"));
        fs::write(&written, b"12345").unwrap();
        fs::write(&read, b"12345").unwrap();
        let mut process = Command::new("sh")
            .args(["-c", "exec 5>>\"$1\" 6>>\"$1\" 7<\"$2\"; echo open; read end", "sh"])
            .args([&written, &read])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let file = fs::metadata(&written).unwrap();
        let found = of(&[file.dev()].into(), 1000);
        let nodes: Vec<_> = found.iter().map(|file| rustix::fs::fstat(&file.fd).unwrap().st_ino).collect();
        let other = fs::metadata(&read).unwrap().ino();
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(nodes.iter().filter(|node| **node == file.ino()).count(), 1, "{nodes:?}");
        assert!(!nodes.contains(&other), "{nodes:?}");
        assert!(found.iter().any(|found| (found.device, found.size_bytes) == (file.dev(), 5)));
    }
}
