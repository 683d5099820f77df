//! One run of one hook: its environment, its time limit.

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use protocol::evidence::HookOutcome;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::kin::{self, Started};
use super::tail::Tail;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Names the run, in the environment of all that it starts.
const MARK: &str = "HOSTSNAP_HOOK";

/// What to run.
pub(super) struct Job<'a> {
    pub(super) program: &'a Path,
    pub(super) argument: &'a str,
    pub(super) environment: &'a [(&'static str, OsString)],
}

/// Runs it to its end, or to the limit: then it is killed with all that it started.
pub(super) fn run(job: &Job<'_>, limit: Duration) -> HookOutcome {
    let name = job.program.display();
    let mut tail = Tail::default();
    let mut since = None;
    let outcome = started(job).and_then(|(child, output)| {
        since = pid_of(&child).ok().and_then(Started::of);
        watch(child, output, limit, &mut tail)
    });
    if matches!(outcome, Ok(HookOutcome::TimedOut))
        && let Some(mark) = job.mark()
    {
        kin::kill(MARK, mark, since);
    }
    match &outcome {
        Ok(HookOutcome::Exited(0)) => tracing::debug!("hook {name} {}: {}", job.argument, tail.text()),
        Ok(outcome) => tracing::warn!("hook {name} {} {outcome}: {}", job.argument, tail.text()),
        Err(error) => tracing::warn!("start the hook {name} {}: {error}", job.argument),
    }
    outcome.unwrap_or(HookOutcome::NotStarted)
}

impl Job<'_> {
    fn mark(&self) -> Option<&OsStr> {
        self.environment.iter().find(|(name, _)| *name == MARK).map(|(_, value)| value.as_os_str())
    }
}

fn started(job: &Job<'_>) -> io::Result<(Child, PipeReader)> {
    let (output, theirs) = io::pipe()?;
    rustix::io::ioctl_fionbio(&output, true)?;
    let mut command = Command::new(job.program);
    command
        .arg(job.argument)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
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

#[cfg(test)]
mod tests {
    use super::super::tail::OUTPUT_BYTES;
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
        let environment = [("HOSTSNAP_MOUNTS", "/a\n/b".into()), (MARK, "this-run".into())];
        let job = Job { program: &program, argument: "pre-freeze", environment: &environment };
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
            ["pre-freeze | / |", "HOSTSNAP_MOUNTS=/a | /b |", "HOSTSNAP_HOOK=this-run", "PATH=/usr"]
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
        assert_dead(&std::fs::read_to_string(&pid).unwrap());
    }

    #[test]
    fn one_that_never_stops_printing_is_killed_at_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), "yes & yes & exec yes");
        let job = Job { program: &program, argument: "pre-freeze", environment: &[] };
        assert_eq!(run(&job, Duration::from_millis(500)), HookOutcome::TimedOut);
    }

    #[test]
    fn one_that_does_not_end_is_killed_with_what_left_its_group() {
        // A daemon: a session of its own, forked twice, nobody's child.
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let daemon = format!("(setsid sh -c 'sleep 1000 & echo $! > {}' &)", pid.display());
        let program = script(folder.path(), &format!("{daemon}; sleep 1000"));
        let environment = [(MARK, format!("{}", pid.display()).into())];
        let job = Job { program: &program, argument: "pre-freeze", environment: &environment };
        assert_eq!(run(&job, Duration::from_millis(1500)), HookOutcome::TimedOut);
        assert_dead(&std::fs::read_to_string(&pid).unwrap());
    }

    /// Killed, it may be a zombie for a moment: nobody but init waits for it.
    fn assert_dead(pid: &str) {
        harness::wait::wait_until("it is dead", LONG, || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
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
        let job = Job { program: &program, argument: "pre-freeze", environment: &[] };
        assert_eq!(run(&job, LONG), HookOutcome::NotStarted);
    }
}
