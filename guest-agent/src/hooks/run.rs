//! One run of one hook: its environment, its time limit, the end of what it printed.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use protocol::evidence::HookOutcome;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// How much of the end of what a hook prints is logged.
const OUTPUT_BYTES: usize = 4096;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run.
pub(super) struct Job<'a> {
    pub(super) program: &'a Path,
    /// Its argument.
    pub(super) when: &'a str,
    pub(super) request: &'a str,
    /// One a line.
    pub(super) mounts: &'a [u8],
    pub(super) result: Option<&'a str>,
}

/// Runs it to its end, or to the limit: then it is killed with its whole process group.
pub(super) fn run(job: &Job<'_>, limit: Duration) -> HookOutcome {
    let name = job.program.display();
    let mut tail = Tail::default();
    let outcome = started(job).and_then(|(child, output)| watch(child, output, limit, &mut tail));
    match &outcome {
        Ok(HookOutcome::Exited(0)) => tracing::debug!("hook {name} {}: {}", job.when, tail.text()),
        Ok(outcome) => tracing::warn!("hook {name} {} {outcome}: {}", job.when, tail.text()),
        Err(error) => tracing::warn!("start the hook {name} {}: {error}", job.when),
    }
    outcome.unwrap_or(HookOutcome::NotStarted)
}

fn started(job: &Job<'_>) -> io::Result<(Child, PipeReader)> {
    let (output, theirs) = io::pipe()?;
    rustix::io::ioctl_fionbio(&output, true)?;
    let mut command = Command::new(job.program);
    command
        .arg(job.when)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .env("HOSTSNAP_REQUEST_ID", job.request)
        .env("HOSTSNAP_MOUNTS", OsStr::from_bytes(job.mounts))
        .envs(job.result.map(|result| ("HOSTSNAP_RESULT", result)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(theirs.try_clone()?))
        .stderr(Stdio::from(theirs))
        // A group of its own, so that what it starts is killed with it, and ^C does not reach it: it
        // is to release what it quiesced.
        .process_group(0);
    Ok((command.spawn()?, output))
}

/// What a hook left running in the background may hold its output open: that is not waited for.
fn watch(
    mut child: Child,
    mut output: PipeReader,
    limit: Duration,
    tail: &mut Tail,
) -> io::Result<HookOutcome> {
    let Ok(process) = pidfd(&child) else {
        // Without a descriptor there is no wait with a limit.
        return Ok(killed(&mut child));
    };
    let deadline = Instant::now() + limit;
    let mut is_open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            tail.read(&mut output);
            return Ok(killed(&mut child));
        }
        let mut fds = [PollFd::new(&process, PollFlags::IN), PollFd::new(&output, PollFlags::IN)];
        let watched = if is_open { &mut fds[..] } else { &mut fds[..1] };
        let limit = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(watched, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                killed(&mut child);
                return Err(errno.into());
            }
        }
        let has_ended = !fds[0].revents().is_empty();
        if !fds[1].revents().is_empty() || has_ended {
            is_open = tail.read(&mut output);
        }
        if has_ended {
            return Ok(outcome_of(child.wait()?));
        }
    }
}

fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid_of(child)?, PidfdFlags::empty())?)
}

fn pid_of(child: &Child) -> io::Result<Pid> {
    let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    number.ok_or_else(|| io::Error::other("not a process number"))
}

/// Kills the whole group and reaps its leader, which until then keeps the number from being reused.
fn killed(child: &mut Child) -> HookOutcome {
    if let Ok(pid) = pid_of(child) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
    HookOutcome::TimedOut
}

fn outcome_of(status: ExitStatus) -> HookOutcome {
    match (status.code(), status.signal()) {
        (Some(code), _) => HookOutcome::Exited(code),
        (None, Some(signal)) => HookOutcome::Signalled(signal),
        (None, None) => unreachable!("a process that ended exited or was signalled"),
    }
}

/// The end of what was printed.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    /// Takes what there is. `false` when nothing more will come.
    fn read(&mut self, output: &mut PipeReader) -> bool {
        let mut chunk = [0; OUTPUT_BYTES];
        loop {
            match output.read(&mut chunk) {
                Ok(0) => return false,
                Ok(length) => {
                    self.0.extend(&chunk[..length]);
                    let surplus = self.0.len().saturating_sub(OUTPUT_BYTES);
                    self.0.drain(..surplus);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// On one line, without what a terminal would obey.
    fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).trim().replace('\n', " | ");
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::write_program;
    use super::*;

    fn script(folder: &Path, body: &str) -> std::path::PathBuf {
        let path = folder.join("hook");
        write_program(&path, &format!("#!/bin/sh\n{body}\n"));
        path
    }

    fn run_script(body: &str, limit: Duration) -> (HookOutcome, String) {
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), body);
        let job =
            Job { program: &program, when: "pre-freeze", request: "r", mounts: b"/a\n/b", result: None };
        let mut tail = Tail::default();
        let (child, output) = started(&job).unwrap();
        let outcome = watch(child, output, limit, &mut tail).unwrap();
        (outcome, tail.text())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_hook_sees_the_same_whoever_started_it() {
        let (outcome, text) = run_script("echo $1; pwd; env; cat", LONG);
        assert_eq!(outcome, HookOutcome::Exited(0));
        for expected in
            ["pre-freeze | / |", "HOSTSNAP_MOUNTS=/a | /b |", "HOSTSNAP_REQUEST_ID=r |", "PATH=/usr"]
        {
            assert!(text.contains(expected), "{expected:?} is not in {text:?}");
        }
        assert!(!text.contains("CARGO") && !text.contains("HOME="), "{text:?}");
    }

    #[test]
    fn how_it_ended_is_told() {
        assert_eq!(run_script("exit 3", LONG).0, HookOutcome::Exited(3));
        assert_eq!(run_script("kill -9 $$", LONG).0, HookOutcome::Signalled(9));
    }

    #[test]
    fn the_end_of_both_outputs_is_kept_and_nothing_that_a_terminal_obeys() {
        let (outcome, text) = run_script("yes x | head -c 1000000; printf 'w\\033[31mhy' >&2; exit 1", LONG);
        assert_eq!(outcome, HookOutcome::Exited(1));
        assert!(text.ends_with("w\u{fffd}[31mhy"), "{text:?}");
        assert!(text.len() < 2 * 4 * OUTPUT_BYTES, "{}", text.len());
    }

    #[test]
    fn one_that_does_not_end_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let body = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let (outcome, _) = run_script(&body, Duration::from_millis(500));
        assert_eq!(outcome, HookOutcome::TimedOut);
        let child = std::fs::read_to_string(&pid).unwrap();
        // Killed, it may be a zombie for a moment: nobody but init waits for it.
        harness::wait::wait_until("its child is dead", LONG, || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
            stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
        });
    }

    #[test]
    fn what_it_leaves_in_the_background_is_not_waited_for() {
        let began = Instant::now();
        let (outcome, text) = run_script("sleep 1000 & echo $!; exit 0", LONG);
        assert_eq!(outcome, HookOutcome::Exited(0));
        assert!(began.elapsed() < Duration::from_secs(900));
        assert!(
            Command::new("kill").arg(text.trim()).status().unwrap().success(),
            "it is still there: {text}"
        );
    }

    #[test]
    fn what_is_no_program_is_not_started() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("hook");
        std::fs::write(&program, "not executable").unwrap();
        let job = Job { program: &program, when: "pre-freeze", request: "r", mounts: b"", result: None };
        assert_eq!(run(&job, LONG), HookOutcome::NotStarted);
    }
}
