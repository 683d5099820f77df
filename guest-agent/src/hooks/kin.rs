//! All that one run of a hook has started, wherever it went: a process that left the group (a session
//! of its own, forked twice) still has the environment that its hook was given.
//!
//! A control group would be tighter, but not every guest has one that we may divide. The children of
//! a subreaper can't be told apart: a lock that an earlier hook holds in the background must live on.
//!
//! Who reads a process's environment waits for its memory map (Linux `fs/proc/base.c`, `environ_read`), and that of a
//! process which hangs in the kernel may be held for ever: `ps` hangs so. So only what is younger than the hook is
//! looked at, and by a thread that is not waited for without a limit.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A process may start another between our look and its end: as often as this is looked again.
const LOOKS: usize = 50;
/// How long one process's environment is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// When a process was started, in ticks since the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Started(u64);

impl Started {
    /// That of a process that is there. This needs nothing of its memory.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // proc_pid_stat(5): the name is in parentheses and may hold anything; the 22nd field is `starttime`.
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_whitespace().nth(19)?.parse().ok().map(Self)
    }
}

/// Kills every process with this variable and value in its environment that is not older than `since`.
pub(super) fn kill(variable: &str, value: &OsStr, since: Option<Started>) {
    let mark = [variable.as_bytes(), b"=", value.as_bytes()].concat();
    let mut looker = Looker::new(PATIENCE, |pid| fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())));
    for _ in 0..LOOKS {
        let found = looker.with_mark(&mark, since);
        if found.is_empty() {
            return;
        }
        for pid in found {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

type Read = dyn Fn(Pid) -> io::Result<Vec<u8>> + Send + Sync;

/// Looks at environments.
struct Looker {
    read: Arc<Read>,
    patience: Duration,
    /// Those that did not answer, and are not asked again.
    silent: HashSet<Pid>,
}

impl Looker {
    fn new(patience: Duration, read: impl Fn(Pid) -> io::Result<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self { read: Arc::new(read), patience, silent: HashSet::new() }
    }

    /// What is dead already has no environment left.
    fn with_mark(&mut self, mark: &[u8], since: Option<Started>) -> Vec<Pid> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut left: VecDeque<Pid> = processes
            .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
            .filter(|pid| !self.silent.contains(pid) && Started::of(*pid) >= since)
            .collect();
        let mut found = Vec::new();
        while !left.is_empty() {
            let Some(answers) = self.ask(left.iter().copied().collect(), mark) else { break };
            while let Some(pid) = left.pop_front() {
                match answers.recv_timeout(self.patience) {
                    Ok(true) => found.push(pid),
                    Ok(false) => {}
                    Err(_) => {
                        tracing::warn!("the process {pid:?} hangs: whether a hook started it can't be told");
                        self.silent.insert(pid);
                        break;
                    }
                }
            }
        }
        found
    }

    /// A thread that looks at one after another. Where one hangs, it is left there; it ends with this process, if not
    /// before.
    fn ask(&self, pids: Vec<Pid>, mark: &[u8]) -> Option<mpsc::Receiver<bool>> {
        let (tell, answers) = mpsc::channel();
        let (read, mark) = (Arc::clone(&self.read), mark.to_owned());
        let look = move || {
            for pid in pids {
                let has_mark = read(pid).is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == mark));
                if tell.send(has_mark).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("hostsnap-kin".to_owned()).spawn(look);
        thread.inspect_err(|error| tracing::warn!("look for what a hook has left: {error}")).ok()?;
        Some(answers)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    const MARK: &[u8] = b"HOSTSNAP_HOOK=hangs";

    struct Sleeper(Child);

    impl Sleeper {
        fn start(mark: &str) -> Self {
            let mut command = Command::new("sleep");
            Self(command.arg("600").env("HOSTSNAP_HOOK", mark).spawn().unwrap())
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// One process in uninterruptible sleep, with its memory map locked, kept a hook that had run into its limit, and
    /// with it the snapshot, for ever.
    #[test]
    fn a_process_that_hangs_in_the_kernel_is_passed_over_and_the_others_are_found() {
        let sleepers: Vec<Sleeper> = (0..3).map(|_| Sleeper::start("hangs")).collect();
        let pids: Vec<Pid> = sleepers.iter().map(Sleeper::pid).collect();
        let (hangs, (release, held)) = (pids[1], mpsc::channel::<()>());
        let held = Mutex::new(held);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let mut looker = Looker::new(Duration::from_millis(300), move |pid| {
            noted.lock().unwrap().push(pid);
            if pid == hangs {
                let _ = held.lock().unwrap().recv();
            }
            // By the process's name, since what a child is given is there only after its exec.
            let is_ours = pids.contains(&pid);
            Ok(if is_ours { MARK.to_vec() } else { Vec::new() })
        });
        let began = Instant::now();
        let since = Started::of(sleepers[0].pid());
        assert!(since.is_some());
        for _ in 0..2 {
            let mut found = looker.with_mark(MARK, since);
            found.sort_by_key(|pid| pid.as_raw_nonzero());
            let mut expected = vec![sleepers[0].pid(), sleepers[2].pid()];
            expected.sort_by_key(|pid| pid.as_raw_nonzero());
            assert_eq!(found, expected);
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        let asked = asked.lock().unwrap();
        assert_eq!(asked.iter().filter(|pid| **pid == hangs).count(), 1, "it is asked once");
        assert!(!asked.contains(&Pid::INIT), "what is older than the hook is not asked");
        drop(release);
    }

    #[test]
    fn what_has_the_mark_is_killed_and_nothing_else() {
        let mut marked = Sleeper::start("is-killed");
        let since = Started::of(marked.pid());
        // Its environment is there when its program is.
        let program = || fs::read_link(format!("/proc/{}/exe", marked.pid().as_raw_nonzero()));
        while !program()
            .is_ok_and(|exe| exe.to_string_lossy().contains("sleep") || exe.ends_with("coreutils"))
        {
            thread::yield_now();
        }
        let mut other = Sleeper::start("lives");
        kill("HOSTSNAP_HOOK", OsStr::new("is-killed"), since);
        assert!(!marked.0.wait().unwrap().success());
        assert!(other.0.try_wait().unwrap().is_none());
    }
}
