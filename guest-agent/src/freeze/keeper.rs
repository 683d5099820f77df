//! The thaw keeper: a process of its own that freezes, and above all thaws.
//!
//! It is this same program, started again with [`ARGUMENT`]. Its main thread only waits: for a word
//! of the flow, for the flow's end, for the deadline, for `hostsnap thaw`. Its workers call FIFREEZE,
//! which may stay in the kernel for as long as it likes; at the deadline the main thread thaws all
//! that is frozen by then, and a worker thaws the late one as soon as it comes back.
//!
//! From [`READY`](channel::READY) on it is locked in memory and neither allocates, opens, logs nor
//! prints: whatever needs a file system that is frozen would make it wait for itself.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::time::Timespec;

use super::channel::{self, Parts, hear, is_readable, say, wait};
use super::expedite::Expedite;
use super::shared::{End, Shared};
use super::slot::Side;
use super::together::Together;
use super::{lock, panic, urgent};

/// The hidden first argument by which this program becomes the keeper.
pub const ARGUMENT: &str = "__thaw-keeper";

/// By this signal `hostsnap thaw` tells a keeper to end.
pub(super) const EMERGENCY: Signal = Signal::SIGUSR1;

/// Deep enough for a few system calls, shallow enough to be locked in memory without a thought.
const WORKER_STACK_BYTES: usize = 64 * 1024;

/// Between the thaw and the end of this process.
const PARTING_PAUSE: Duration = Duration::from_millis(6);

/// How often the last claims are looked at.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Whether this process was started to be the keeper. `main` asks this before anything else.
pub fn is_asked_for() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| first == ARGUMENT)
}

/// Is the keeper, until nothing is left to thaw.
pub fn run() -> ExitCode {
    run_calling(|| {})
}

/// As [`run`]; calls this when it is ready and from then on allocates nothing, which a test proves.
pub fn run_calling(on_ready: fn()) -> ExitCode {
    panic::end_at_a_panic();
    let Ok(flow) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    match get_ready(&flow) {
        Ok(keeper) => {
            keeper.serve(&flow, on_ready);
            ExitCode::SUCCESS
        }
        Err((doing, error)) => {
            let mut message = vec![channel::UNFIT];
            message.extend_from_slice(format!("{doing}: {error}").as_bytes());
            let _ = rustix::net::send(&flow, &message, rustix::net::SendFlags::NOSIGNAL);
            ExitCode::FAILURE
        }
    }
}

type Failed = (&'static str, io::Error);

fn get_ready(flow: &OwnedFd) -> Result<Keeper, Failed> {
    // Only the flow, the deadline and `hostsnap thaw` end it: not ^C, not a terminal that closes,
    // not the stop of a service. Threads inherit the mask.
    SigSet::all().thread_block().map_err(|errno| ("block signals", errno.into()))?;
    let mut emergency = SigSet::empty();
    emergency.add(EMERGENCY);
    let emergency = SignalFd::with_flags(&emergency, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|errno| ("watch for a signal", errno.into()))?;
    leave_the_crowd();

    let Parts { page, timer, lock, expedite, mounts } =
        channel::take_over(flow).map_err(|error| ("take over the descriptors", error))?;
    let event = || eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| ("make an event", errno.into()));
    let shared = Shared::map(&page).map_err(|errno| ("map the shared page", errno.into()))?;
    let keeper = Keeper {
        together: Together::new(&shared.ranks(mounts.len())),
        shared,
        timer,
        emergency,
        go: event()?,
        done: event()?,
        expedite,
        mounts,
        lock,
    };
    // Code, heap and stacks, the workers' to come too: nothing is fetched from a file system later.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
        .map_err(|errno| ("lock memory", errno.into()))?;
    // From now on it sleeps nearly always; when it wakes up, applications wait for it. Not before:
    // until here it only takes the processor from them.
    urgent::begin();
    Ok(keeper)
}

/// Away from all that could kill or delay it together with the flow. Best effort: without these it
/// does the same, with less certainty.
fn leave_the_crowd() {
    // Its own session: a killed process group, or a terminal that hangs up, does not take it along.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"hostsnap-thaw");
    // The out-of-memory killer passes it over, `memory.oom.group` included (proc_pid_oom_score_adj(5)).
    let _ = write_to("/proc/self/oom_score_adj", "-1000");
    // Out of the service's or session's control group: `systemctl kill`, or the SIGKILL at the end of
    // a slow stop, goes to a whole group at once, and nobody would be left to thaw.
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"] {
        let _ = write_to(&format!("{root}/cgroup.procs"), "0");
    }
}

/// Unlike `fs::write` it creates nothing where there is no such setting.
fn write_to(setting: &str, value: &str) -> io::Result<()> {
    File::options().write(true).open(setting)?.write_all(value.as_bytes())
}

struct Keeper {
    shared: Shared,
    timer: OwnedFd,
    emergency: SignalFd,
    together: Together,
    /// Tells the workers to freeze, or to end.
    go: OwnedFd,
    /// Tells the main thread that the workers have nothing more to do.
    done: OwnedFd,
    expedite: Option<Expedite>,
    mounts: Vec<File>,
    /// Held until everything is thawed, even if the flow is gone.
    lock: OwnedFd,
}

impl Keeper {
    fn serve(&self, flow: &OwnedFd, on_ready: fn()) {
        thread::scope(|scope| {
            let start = |leads: bool| {
                let work = move || if leads { self.lead(flow) } else { self.help() };
                thread::Builder::new().stack_size(WORKER_STACK_BYTES).spawn_scoped(scope, work)
            };
            for worker in 0..self.together.workers() {
                if start(worker == 0).is_err() {
                    // Those that are there wait for the one that is not.
                    std::process::exit(1);
                }
            }
            on_ready();
            say(flow, channel::READY);
            self.watch(flow);
        });
    }

    /// The first worker: waits, freezes once with the others, says how it went.
    fn lead(&self, flow: &OwnedFd) {
        wait_for(&self.go);
        self.help();
        // If it ended before it began, nobody waits for a word.
        let frozen = self.shared.all_frozen(&self.mounts);
        say(flow, if frozen { channel::FROZEN } else { channel::NOT_FROZEN });
        if frozen {
            // The end of a thread is work for the processor that the flow needs now.
            wait_for(&self.go);
            urgent::end();
        }
        signal(&self.done);
    }

    /// Any worker.
    fn help(&self) {
        self.together.meet();
        self.together.freeze(&self.shared, &self.mounts);
    }

    /// The main thread: waits for the first reason to end, then thaws.
    fn watch(&self, flow: &OwnedFd) {
        let mut flow_is_gone = false;
        while self.shared.ended().is_none() {
            let mut fds = [
                PollFd::new(flow, PollFlags::IN),
                PollFd::new(&self.timer, PollFlags::IN),
                PollFd::new(&self.emergency, PollFlags::IN),
            ];
            wait(&mut fds, None);
            if is_readable(&fds[2]) {
                self.shared.end(End::Emergency);
            } else if is_readable(&fds[1]) {
                self.shared.end(End::Deadline);
            } else if is_readable(&fds[0]) {
                match hear(flow, &mut [0]) {
                    Some((channel::FREEZE, _)) => self.begin(),
                    Some(_) => self.shared.end(End::Dropped),
                    None => {
                        flow_is_gone = true;
                        self.shared.end(End::FlowGone);
                    }
                }
            }
        }
        self.shared.thaw_all(&self.mounts, Side::Keeper);
        if self.shared.is_settled() {
            urgent::end();
        }
        // The workers come back now, or when the kernel lets go of its FIFREEZE.
        signal(&self.go);
        self.wait_for_the_rest(flow, flow_is_gone);
        if let Some(expedite) = &self.expedite {
            expedite.off();
        }
        lock::nothing_to_put_right(&self.lock);
        // To give back locked memory keeps a processor busy that applications want now.
        thread::sleep(PARTING_PAUSE);
    }

    fn begin(&self) {
        // Not if the flow has given up meanwhile: it restores the setting once.
        if let (true, Some(expedite)) = (self.shared.is_freezing(), &self.expedite) {
            expedite.on();
        }
        signal(&self.go);
    }

    /// Until the workers are done and nothing is frozen any more. What the flow was about to thaw and
    /// did not, since it died or was stopped, is thawed in its stead.
    fn wait_for_the_rest(&self, flow: &OwnedFd, mut flow_is_gone: bool) {
        let mut workers_are_done = false;
        while !(workers_are_done && self.shared.is_settled()) {
            if flow_is_gone || self.shared.is_long_over() {
                self.shared.take_over_claims(&self.mounts, Side::Flow, Side::Keeper);
            }
            let mut fds = [PollFd::new(&self.done, PollFlags::IN), PollFd::new(flow, PollFlags::IN)];
            let watched = match (workers_are_done, flow_is_gone) {
                (true, _) => &mut fds[1..],
                (false, true) => &mut fds[..1],
                (false, false) => &mut fds[..],
            };
            wait(watched, Some(PATIENCE));
            workers_are_done |= is_readable(&fds[0]);
            flow_is_gone |= is_readable(&fds[1]) && hear(flow, &mut [0]).is_none();
        }
    }
}

fn signal(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

fn wait_for(event: &OwnedFd) {
    while matches!(rustix::io::read(event, &mut [0; 8]), Err(rustix::io::Errno::INTR)) {}
}
