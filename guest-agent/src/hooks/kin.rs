//! All that one run of a hook has started, wherever it went: a process that left the group (a session
//! of its own, forked twice) still has the environment that its hook was given.
//!
//! A control group would be tighter, but not every guest has one that we may divide. The children of
//! a subreaper can't be told apart: a lock that an earlier hook holds in the background must live on.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use rustix::process::{Pid, Signal, kill_process};

/// A process may start another between our look and its end: as often as this is looked again.
const LOOKS: usize = 50;

/// Kills every process with this variable and value in its environment.
pub(super) fn kill(variable: &str, value: &OsStr) {
    let mark = [variable.as_bytes(), b"=", value.as_bytes()].concat();
    for _ in 0..LOOKS {
        let found = with_mark(&mark);
        if found.is_empty() {
            return;
        }
        for pid in found {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// What is dead already has no environment left.
fn with_mark(mark: &[u8]) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
            environment.is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == mark))
        })
        .collect()
}
