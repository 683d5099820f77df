//! `hostsnap thaw`, the emergency exit: thaws every file system that is named, whoever froze it, and
//! tells a keeper that is at work to give up.
//!
//! Each FITHAW has a thread of its own. One that waits, for a disk that does not answer or for the
//! frozen file system that its loop device's image lies on, does not keep the others from being
//! thawed; so the order does not matter either.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::channel::wait;
use super::clock::timespec;
use super::{ioctl, keeper, lock, mounts};

/// How long a thaw, and the keeper's end, are waited for.
const LIMIT: Duration = Duration::from_secs(5);

/// What was found at one mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emergency {
    /// It was frozen and writes again.
    Thawed,
    /// It was not frozen.
    WasNotFrozen,
    /// FITHAW has not come back: its disk does not answer.
    StillWaiting,
    /// It can't be told; why.
    Failed(String),
}

/// What the emergency exit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmergencyReport {
    /// The keeper that was at work and has been told to end.
    pub keeper: Option<u32>,
    /// Each file system, in the order given.
    pub file_systems: Vec<(PathBuf, Emergency)>,
}

/// Thaws these file systems. `folder` is where the freeze lock is.
pub fn emergency_thaw(folder: &Path, mount_points: &[PathBuf]) -> EmergencyReport {
    let first = thaw_each(mount_points);
    // A keeper that is just freezing would go on with the next one.
    let keeper = lock::keeper_at_work(folder).filter(|pid| end_keeper(*pid));
    let second = if keeper.is_some() { thaw_each(mount_points) } else { Vec::new() };
    lock::put_right_what_was_left(folder);
    let thawed_late = |n: usize| second.get(n) == Some(&Emergency::Thawed);
    let what = first.into_iter().enumerate();
    let what = what.map(|(n, what)| if thawed_late(n) { Emergency::Thawed } else { what });
    EmergencyReport { keeper, file_systems: mount_points.iter().cloned().zip(what).collect() }
}

fn thaw_each(mount_points: &[PathBuf]) -> Vec<Emergency> {
    let limit = Instant::now() + LIMIT;
    let answers: Vec<_> = mount_points
        .iter()
        .map(|path| {
            let (say, hear) = mpsc::channel();
            let path = path.clone();
            thread::spawn(move || say.send(thaw(&path)));
            hear
        })
        .collect();
    let answer = |hear: mpsc::Receiver<Emergency>| {
        hear.recv_timeout(limit.saturating_duration_since(Instant::now())).unwrap_or(Emergency::StillWaiting)
    };
    answers.into_iter().map(answer).collect()
}

fn thaw(path: &Path) -> Emergency {
    match mounts::open_mount(path) {
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            Emergency::Failed(format!("{error}{cause}"))
        }
        Ok(file) => match ioctl::thaw(&file) {
            Ok(()) => Emergency::Thawed,
            Err(Errno::INVAL) => Emergency::WasNotFrozen,
            Err(errno) => Emergency::Failed(errno.to_string()),
        },
    }
}

/// Tells the keeper to end, and waits for that. `false` if this process is no keeper (any more).
fn end_keeper(pid: u32) -> bool {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(pidfd) = pidfd_open(process, PidfdFlags::empty()) else { return false };
    // Looked at after the descriptor has pinned the process: the number may have been reused.
    let is_keeper = std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).nth(1) == Some(keeper::ARGUMENT.as_bytes()));
    if !is_keeper || pidfd_send_signal(&pidfd, Signal::USR1).is_err() {
        return false;
    }
    wait(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(timespec(LIMIT)));
    true
}
