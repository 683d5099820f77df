//! The thaw keeper's process, and the flow's handle on it.
//!
//! They talk over a socket pair, one byte a message; the end of the other process is the end of the
//! stream. The keeper's main thread only waits: for a byte, for the deadline, for the worker. The
//! worker calls FIFREEZE, which may block in the kernel; then the main thread still thaws what is
//! frozen at the deadline, and the worker thaws the late one as soon as it comes back.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::FreezeError;
use super::expedite::Expedite;
use super::lock::FreezeLock;
use super::shared::{Shared, now_ns};

/// The hidden first argument by which this program becomes the keeper.
pub const ARGUMENT: &str = "__thaw-keeper";

/// How long the keeper may take to get ready.
const START_LIMIT: Duration = Duration::from_secs(10);

// Flow to keeper.
const FREEZE: u8 = b'f';
const THAW: u8 = b't';
// Keeper to flow.
const READY: u8 = b'R';
const FROZEN: u8 = b'F';
const DEADLINE: u8 = b'D';
const THAWED: u8 = b'T';

// The keeper's descriptors; the mount points follow.
const CONTROL_FD: i32 = 3;
const SHARED_FD: i32 = 4;
const LOCK_FD: i32 = 5;
const EXPEDITE_FD: i32 = 6;
const FIRST_MOUNT_FD: i32 = 7;

/// What the keeper says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Everything is frozen.
    Frozen,
    /// The deadline passed; it is thawing.
    Deadline,
    /// Nothing of ours is frozen any more.
    Thawed,
    /// It is dead.
    Gone,
    /// It said nothing in time.
    Silent,
}

/// The flow's side.
pub(super) struct Handle {
    child: Child,
    control: UnixStream,
    shared: Shared,
    expedite: Option<Expedite>,
}

impl Handle {
    /// Starts the keeper and waits until it is ready.
    pub(super) fn start(
        program: &Path,
        mounts: &[File],
        lock: &FreezeLock,
        budget: Duration,
    ) -> Result<Self, FreezeError> {
        let failed = |doing| move |source: io::Error| FreezeError::Keeper { doing, source };
        let (shared, page) = Shared::create().map_err(|e| failed("share a page of memory")(e.into()))?;
        let (ours, theirs) = UnixStream::pair().map_err(failed("make a socket pair"))?;
        let expedite = Expedite::open();
        let mut given = vec![
            OwnedFd::from(theirs),
            OwnedFd::from(page),
            OwnedFd::from(lock.share().map_err(failed("share the lock"))?),
            OwnedFd::from(match &expedite {
                Some(expedite) => expedite.try_clone().map_err(failed("share rcu_expedited"))?,
                None => File::open("/dev/null").map_err(failed("open /dev/null"))?,
            }),
        ];
        for mount in mounts {
            given.push(OwnedFd::from(mount.try_clone().map_err(failed("share a mount point"))?));
        }
        let mappings =
            (CONTROL_FD..).zip(given).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        let mut command = Command::new(program);
        command
            .arg(ARGUMENT)
            .arg(mounts.len().to_string())
            .arg(budget.as_nanos().to_string())
            .arg(if expedite.is_some() { "expedite" } else { "-" })
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
            .fd_mappings(mappings.collect())
            .map_err(|error| failed("hand over descriptors")(io::Error::other(error)))?;
        let child = command.spawn().map_err(failed("run this program again"))?;
        drop(command);
        let handle = Self { child, control: ours, shared, expedite };
        match handle.wait_for(READY, Instant::now() + START_LIMIT) {
            true => Ok(handle),
            false => {
                Err(failed("wait until it is ready")(io::Error::other("it ended, or said nothing in time")))
            }
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn command_freeze(&self) {
        self.say(FREEZE);
    }

    pub(super) fn command_thaw(&self) {
        self.shared.stop();
        self.say(THAW);
    }

    /// A keeper that is gone is noticed when its answer is waited for.
    fn say(&self, byte: u8) {
        let _ = send(&self.control, &[byte], SendFlags::NOSIGNAL);
    }

    fn wait_for(&self, byte: u8, limit: Instant) -> bool {
        wait_readable(&self.control, limit) && receive(&self.control) == Some(byte)
    }

    /// The next thing that the keeper says.
    pub(super) fn wait(&self, limit: Instant) -> Answer {
        if !wait_readable(&self.control, limit) {
            return Answer::Silent;
        }
        match receive(&self.control) {
            Some(FROZEN) => Answer::Frozen,
            Some(DEADLINE) => Answer::Deadline,
            Some(THAWED) => Answer::Thawed,
            _ => Answer::Gone,
        }
    }

    /// Takes the keeper's place: makes sure that it is gone, then thaws what it left.
    pub(super) fn end_and_thaw(&mut self, files: &[File]) {
        // First what can be thawed at once: the keeper's end may wait for a FIFREEZE in the kernel.
        self.shared.stop();
        self.shared.thaw_all(files);
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.shared.thaw_after_keeper(files);
        if let Some(expedite) = &self.expedite {
            expedite.off();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The end of the stream is its order to thaw and end.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

/// Waits until something can be read, or the other side is gone; `false` when the limit comes first.
fn wait_readable(fd: impl AsFd, limit: Instant) -> bool {
    loop {
        let left = limit.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            // Nothing to wait on: reading tells the same.
            Err(_) => return true,
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn receive(control: impl AsFd) -> Option<u8> {
    let mut byte = [0];
    loop {
        match recv(&control, &mut byte[..], RecvFlags::empty()) {
            Ok((1, _)) => return Some(byte[0]),
            Err(rustix::io::Errno::INTR) => {}
            _ => return None,
        }
    }
}

/// The keeper's process. `arguments` are those behind [`ARGUMENT`].
pub fn run(arguments: &[String]) -> ExitCode {
    let [count, budget_ns, expedite] = arguments else { return ExitCode::from(2) };
    let (Ok(count), Ok(budget_ns)) = (count.parse::<i32>(), budget_ns.parse::<u64>()) else {
        return ExitCode::from(2);
    };
    // Only the stream's end and the deadline end it: not ^C, not a stop of the service. The mask is
    // inherited by the worker.
    let _ = nix::sys::signal::SigSet::all().thread_block();
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"hostsnap-thaw");
    // The kernel's out-of-memory killer passes it over (proc_pid_oom_score_adj(5)).
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let keeper = Keeper {
        control: inherited(CONTROL_FD).into(),
        mounts: (0..count).map(|n| File::from(inherited(FIRST_MOUNT_FD + n))).collect(),
        shared: match Shared::map(inherited(SHARED_FD)) {
            Ok(shared) => shared,
            Err(_) => return ExitCode::FAILURE,
        },
        expedite: (expedite == "expedite").then(|| Expedite::from_file(inherited(EXPEDITE_FD).into())),
        _lock: inherited(LOCK_FD),
        budget_ns,
    };
    match keeper.serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn inherited(fd: i32) -> OwnedFd {
    // SAFETY: `Handle::start` mapped exactly these descriptors for this process, and each is taken
    // once, at its start.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

struct Keeper {
    control: UnixStream,
    mounts: Vec<File>,
    shared: Shared,
    expedite: Option<Expedite>,
    _lock: OwnedFd,
    budget_ns: u64,
}

/// Why the keeper's main thread woke up.
enum Wake {
    Byte(u8),
    FlowGone,
    WorkerDone,
    Deadline,
}

impl Keeper {
    fn serve(&self) -> io::Result<()> {
        let go = eventfd(0, EventfdFlags::CLOEXEC)?;
        let done = eventfd(0, EventfdFlags::CLOEXEC)?;
        // Code, stacks and heap, now and later: nothing is paged in from what is frozen.
        mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)?;
        thread::scope(|scope| {
            let worker = thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, || {
                if wait_event(&go) == Some(GO) {
                    let frozen = self.shared.freeze_all(&self.mounts);
                    signal(&done, if frozen { ALL_FROZEN } else { NOT_FROZEN });
                }
            });
            worker?;
            self.say(READY);
            self.watch(&go, &done);
            Ok(())
        })
    }

    /// Nothing below allocates, opens or logs.
    fn watch(&self, go: &OwnedFd, done: &OwnedFd) {
        let mut deadline_ns = None;
        let mut working = false;
        loop {
            match self.wait(done, working, deadline_ns) {
                Wake::Byte(FREEZE) if deadline_ns.is_none() => {
                    deadline_ns = Some(now_ns() + self.budget_ns);
                    working = true;
                    if let Some(expedite) = &self.expedite {
                        expedite.on();
                    }
                    signal(go, GO);
                }
                Wake::WorkerDone => {
                    working = false;
                    match wait_event(done) {
                        Some(ALL_FROZEN) => self.say(FROZEN),
                        _ => break,
                    }
                }
                Wake::Deadline => {
                    self.shared.expire();
                    self.shared.stop();
                    self.shared.thaw_all(&self.mounts);
                    self.say(DEADLINE);
                    break;
                }
                Wake::Byte(_) | Wake::FlowGone => break,
            }
        }
        self.shared.stop();
        self.shared.thaw_all(&self.mounts);
        if deadline_ns.is_none() {
            signal(go, NEVER);
        } else if working {
            // A FIFREEZE is still in the kernel; the worker thaws it when it comes back.
            wait_event(done);
            self.shared.thaw_all(&self.mounts);
        }
        if deadline_ns.is_some()
            && let Some(expedite) = &self.expedite
        {
            expedite.off();
        }
        self.say(THAWED);
    }

    fn wait(&self, done: &OwnedFd, working: bool, deadline_ns: Option<u64>) -> Wake {
        loop {
            let left = deadline_ns.map(|at| Duration::from_nanos(at.saturating_sub(now_ns())));
            if left.is_some_and(|left| left.is_zero()) {
                return Wake::Deadline;
            }
            let mut fds = [PollFd::new(&self.control, PollFlags::IN), PollFd::new(done, PollFlags::IN)];
            let watched = if working { &mut fds[..] } else { &mut fds[..1] };
            match poll(watched, left.map(timespec).as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(_) => return Wake::FlowGone,
            }
            if working && !fds[1].revents().is_empty() {
                return Wake::WorkerDone;
            }
            return match receive(&self.control) {
                Some(byte) => Wake::Byte(byte),
                None => Wake::FlowGone,
            };
        }
    }

    fn say(&self, byte: u8) {
        let _ = send(&self.control, &[byte], SendFlags::NOSIGNAL);
    }
}

// What is told between the keeper's threads.
const GO: u64 = 1;
const NEVER: u64 = 2;
const ALL_FROZEN: u64 = 1;
const NOT_FROZEN: u64 = 2;

fn signal(event: &OwnedFd, value: u64) {
    let _ = rustix::io::write(event, &value.to_ne_bytes());
}

fn wait_event(event: &OwnedFd) -> Option<u64> {
    let mut value = [0; 8];
    debug_assert!(event.as_raw_fd() >= 0);
    loop {
        match rustix::io::read(event, &mut value) {
            Ok(8) => return Some(u64::from_ne_bytes(value)),
            Err(rustix::io::Errno::INTR) => {}
            _ => return None,
        }
    }
}
