//! External programs: found once, by absolute path; run with a limit, at which they are ended.
//! What they mean is their driver's.
//!
//! A program has a limit for all of it; one that tells how far it is, for as long as it tells nothing new.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

/// Where distributions keep the programs of administrators. `PATH` is not asked: who sets it is not root.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// What a program may print, in bytes. A report on ten thousand volumes has about ten million.
const OUTPUT_LIMIT: usize = 64 << 20;
const TOO_MUCH: &str = "it prints more than any report has";
/// Between SIGTERM and SIGKILL: a program that is in the middle of something finishes it.
const GRACE: Duration = Duration::from_secs(1);

/// A program of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    path: PathBuf,
}

/// Why a program was of no use.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It is not there.
    #[error("{0} is not installed")]
    Missing(String),
    /// It could not be started, or not be listened to.
    #[error("run {program}")]
    Io {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It was still running at its limit, and was ended.
    #[error("{program} did not end within {} ms{}", .limit.as_millis(), said(.stderr))]
    TimedOut {
        /// Which.
        program: String,
        /// How long it had.
        limit: Duration,
        /// What it complained about until then.
        stderr: String,
    },
    /// It told nothing new for so long, and was ended.
    #[error("{program} made no progress for {} s{}", .silence.as_secs(), said(.stderr))]
    Stuck {
        /// Which.
        program: String,
        /// For how long.
        silence: Duration,
        /// What it complained about until then.
        stderr: String,
    },
    /// It said that it failed.
    #[error("{program} failed ({status}){}", said(.stderr))]
    Failed {
        /// Which.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it complained about.
        stderr: String,
    },
}

/// What a program complained about, on one line.
fn said(stderr: &str) -> String {
    let lines: Vec<_> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { String::new() } else { format!(": {}", lines.join("; ")) }
}

impl Tool {
    /// A program by its name.
    pub fn find(name: &str) -> Result<Self, ExecError> {
        let places = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
        match places.into_iter().find(|path| path.is_file()) {
            Some(path) => Ok(Self { path }),
            None => Err(ExecError::Missing(name.to_owned())),
        }
    }

    /// A program that is somewhere else: for tests.
    #[doc(hidden)]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// A command that inherits nothing of our environment, speaks the language that we parse, and is
    /// not ended by a signal that is meant for us.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.env_clear().env("LC_ALL", "C").env("PATH", FOLDERS.join(":")).process_group(0);
        command.stdin(Stdio::null());
        command
    }

    /// Its path, for messages.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Runs it to its end; what it printed.
    pub fn run(&self, command: &mut Command, limit: Duration) -> Result<String, ExecError> {
        let mut stdout = Vec::new();
        let mut keep = |bytes: &[u8]| -> io::Result<()> {
            if stdout.len() + bytes.len() > OUTPUT_LIMIT {
                return Err(io::Error::other(TOO_MUCH));
            }
            stdout.extend_from_slice(bytes);
            Ok(())
        };
        let ran = self.run_to_its_end(command, Limit::InAll(limit), &mut keep);
        ran.map(|()| String::from_utf8_lossy(&stdout).into_owned())
    }

    /// Runs it to its end, however long that takes while it goes on printing; after so long without a word it is ended.
    /// `hear` is given what it prints. It ends with the thread that runs it.
    pub fn run_while_it_tells(
        &self,
        command: &mut Command,
        silence: Duration,
        hear: &mut dyn FnMut(&[u8]),
    ) -> Result<(), ExecError> {
        end_with_us(command);
        let mut hear = |bytes: &[u8]| {
            hear(bytes);
            Ok(())
        };
        self.run_to_its_end(command, Limit::WithoutAWord(silence), &mut hear)
    }

    fn run_to_its_end(&self, command: &mut Command, limit: Limit, hear: &mut Hear) -> Result<(), ExecError> {
        let program = self.name();
        let failed = |source| ExecError::Io { program: program.clone(), source };
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(&failed)?;
        // Whatever happens, it is not left running.
        let mut child = Running(child);
        let (stderr, ended) = listen(&mut child.0, limit, hear).map_err(&failed)?;
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        if !ended {
            drop(child);
            return Err(match limit {
                Limit::InAll(limit) => ExecError::TimedOut { program, limit, stderr },
                Limit::WithoutAWord(silence) => ExecError::Stuck { program, silence, stderr },
            });
        }
        let status = child.0.wait().map_err(failed)?;
        if status.success() { Ok(()) } else { Err(ExecError::Failed { program, status, stderr }) }
    }
}

/// How long a program may take.
#[derive(Clone, Copy)]
enum Limit {
    /// For all of it.
    InAll(Duration),
    /// Since it was last heard of.
    WithoutAWord(Duration),
}

impl Limit {
    fn deadline(self) -> Instant {
        match self {
            Self::InAll(limit) | Self::WithoutAWord(limit) => Instant::now() + limit,
        }
    }
}

/// Is given what a program prints.
type Hear<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// Ended when dropped, unless it has ended by itself and was waited for.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            end(&mut self.0);
        }
    }
}

/// Hears a child until it ends; what it complained about, and whether it ended. A daemon that it left behind may
/// hold its output open: that is not waited for.
fn listen(child: &mut Child, limit: Limit, hear: &mut Hear) -> io::Result<(Vec<u8>, bool)> {
    let mut deadline = limit.deadline();
    let pid = Pid::from_child(child);
    let end = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut stdout = Pipe::new(child.stdout.take().expect("it is piped").into())?;
    let mut stderr = Pipe::new(child.stderr.take().expect("it is piped").into())?;
    let mut complaints = Vec::new();
    loop {
        let (has_ended, in_time) = {
            let mut wanted = vec![PollFd::new(&end, PollFlags::IN)];
            let open = [&stdout, &stderr].into_iter().filter(|pipe| !pipe.closed);
            wanted.extend(open.map(|pipe| PollFd::new(&pipe.file, PollFlags::IN)));
            let in_time = wait(&mut wanted, deadline)?;
            (!wanted[0].revents().is_empty(), in_time)
        };
        let has_spoken = stdout.drain(hear)?;
        stderr.drain(&mut |bytes: &[u8]| {
            let room = OUTPUT_LIMIT.saturating_sub(complaints.len());
            complaints.extend_from_slice(&bytes[..bytes.len().min(room)]);
            Ok(())
        })?;
        if has_ended || !in_time {
            return Ok((complaints, has_ended));
        }
        if let (true, Limit::WithoutAWord(_)) = (has_spoken, limit) {
            deadline = limit.deadline();
        }
    }
}

/// Has a child killed when the thread that starts it ends (prctl(2), `PR_SET_PDEATHSIG`).
pub fn end_with_us(command: &mut Command) {
    let us = rustix::process::getpid();
    let ask = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // Whoever died before that is not told of.
        if rustix::process::getppid() == Some(us) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only two system calls are made: nothing is allocated, no lock is taken. Safe code has
    // no way to have a child do something before it becomes the program.
    unsafe { command.pre_exec(ask) };
}

struct Pipe {
    file: std::fs::File,
    closed: bool,
}

impl Pipe {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self { file: fd.into(), closed: false })
    }

    /// Takes what is there; whether that was anything.
    fn drain(&mut self, hear: &mut Hear) -> io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        let mut has_spoken = false;
        while !self.closed {
            match self.file.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(read) => {
                    has_spoken = true;
                    hear(&chunk[..read])?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(has_spoken)
    }
}

/// Reads of it return at once.
pub fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// Waits for one of these, at most until the deadline: whether there was one.
pub fn wait(wanted: &mut [PollFd<'_>], deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(wanted, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends a child with all that it started: SIGTERM, a moment, SIGKILL.
pub fn end(child: &mut Child) {
    let group = Pid::from_child(child);
    for signal in [Signal::TERM, Signal::KILL] {
        // It is no zombie's group before `try_wait`: nobody else has that number yet.
        let _ = rustix::process::kill_process_group(group, signal);
        if let Ok(end) = rustix::process::pidfd_open(group, PidfdFlags::empty()) {
            let _ = wait(&mut [PollFd::new(&end, PollFlags::IN)], Instant::now() + GRACE);
        }
    }
    if !matches!(child.try_wait(), Ok(Some(_))) {
        tracing::error!(pid = child.id(), "a program that was killed does not end: it hangs in the kernel");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Duration = Duration::from_secs(30);

    fn sh(script: &str, limit: Duration) -> Result<String, ExecError> {
        let tool = Tool::find("sh").unwrap();
        tool.run(tool.command().args(["-c", script]), limit)
    }

    #[test]
    fn what_it_prints_and_how_it_fails_is_told() {
        assert_eq!(sh("echo $LC_ALL; echo ignored >&2", PLENTY).unwrap(), "C\n");
        let error = sh("echo one >&2; echo two >&2; exit 5", PLENTY).unwrap_err().to_string();
        assert!(error.contains("exit status: 5") && error.ends_with(": one; two"), "{error}");
        let error = Tool::find("no-such-program").unwrap_err();
        assert!(matches!(error, ExecError::Missing(_)), "{error}");
    }

    #[test]
    fn more_than_a_pipe_holds_arrives_whole() {
        assert_eq!(sh("head -c 1000000 /dev/zero | tr '\\0' x", PLENTY).unwrap().len(), 1_000_000);
    }

    #[test]
    fn one_that_hangs_is_ended_at_its_limit_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pids");
        let script = format!(
            "trap '' TERM; sleep 600 & echo $! $$ > {}; echo so far >&2; wait; sleep 600",
            pids.display()
        );
        let began = Instant::now();
        let error = sh(&script, Duration::from_secs(1)).unwrap_err();
        assert!(matches!(&error, ExecError::TimedOut { stderr, .. } if stderr == "so far\n"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20));
        for pid in std::fs::read_to_string(pids).unwrap().split_whitespace() {
            harness::wait::wait_until("it is gone", PLENTY, || {
                let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                state.is_empty() || state.contains(") Z ")
            });
        }
    }

    #[test]
    fn one_that_tells_how_far_it_is_may_take_as_long_as_it_tells_and_ends_with_who_runs_it() {
        let tool = Tool::find("sh").unwrap();
        let tell = |script: &str, hear: &mut dyn FnMut(&[u8])| {
            tool.run_while_it_tells(tool.command().args(["-c", script]), Duration::from_secs(2), hear)
        };
        let mut heard = Vec::new();
        let began = Instant::now();
        let steps = "for n in 1 2 3 4 5 6; do sleep 0.5; echo $n; done";
        tell(steps, &mut |bytes| heard.extend_from_slice(bytes)).unwrap();
        assert_eq!(heard, b"1\n2\n3\n4\n5\n6\n");
        assert!(began.elapsed() > Duration::from_secs(2), "it had more than its silence for all of it");
        let error = tell("echo 1; echo why >&2; sleep 600", &mut |_| {}).unwrap_err();
        assert_eq!(error.to_string(), format!("{} made no progress for 2 s: why", tool.name()));
        // As whoever hears it comes to an end in the middle.
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("echo $$ > {}; echo 1; sleep 600", pid.display());
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            tell(&script, &mut |_| std::panic::resume_unwind(Box::new("killed")))
        }));
        assert!(ended.is_err());
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it was left running");
    }

    #[test]
    fn a_daemon_that_holds_the_output_open_is_not_waited_for() {
        let began = Instant::now();
        assert_eq!(sh("sleep 5 & echo done", PLENTY).unwrap(), "done\n");
        assert!(began.elapsed() < Duration::from_secs(4));
    }
}
