//! Starting the keeper, and the thread that watches it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use super::super::channel::{self, Parts, hear, wait};
use super::super::clock::{self, timespec};
use super::super::expedite::Expedite;
use super::super::lock::FreezeLock;
use super::super::shared::Shared;
use super::super::{FreezeError, Plan, keeper, panic};
use super::{Armed, Guard};

/// How long the keeper may take to get ready.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Enough for a few system calls.
const WATCHER_STACK_BYTES: usize = 128 * 1024;

/// Starts the keeper and waits until it is ready.
pub(in super::super) fn arm(plan: Plan, mounts: Vec<File>, lock: &FreezeLock) -> Result<Armed, FreezeError> {
    let failed = |doing: &'static str| move |source: io::Error| FreezeError::Keeper { doing, source };
    let (shared, page) = Shared::create().map_err(|errno| failed("share a page of memory")(errno.into()))?;
    shared.set_ranks(plan.targets.iter().map(|target| target.rank));
    let (ours, theirs) = channel::pair().map_err(failed("make a socket pair"))?;
    let timer = clock::timer().map_err(|errno| failed("make a timer")(errno.into()))?;
    let done = eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed("make an event")(errno.into()))?;
    let expedite = Expedite::open();
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(failed("copy a descriptor"));
    let parts = Parts {
        page,
        timer: copy(&timer)?,
        lock: lock.share().map_err(failed("share the lock"))?,
        expedite: expedite
            .as_ref()
            .map(Expedite::try_clone)
            .transpose()
            .map_err(failed("copy a descriptor"))?,
        mounts: mounts
            .iter()
            .map(File::try_clone)
            .collect::<Result<_, _>>()
            .map_err(failed("copy a descriptor"))?,
    };
    let our_lock = lock.share().map_err(failed("share the lock"))?;
    let child = start(&plan.keeper, theirs).map_err(failed("run this program again"))?;
    let keeper_pid = child.id();
    let guard = Arc::new(Guard {
        shared,
        channel: ours,
        timer,
        done,
        mounts,
        expedite,
        finished: AtomicBool::new(false),
        parted: AtomicBool::new(false),
        lock: our_lock,
    });
    panic::remember(&guard);
    // From here on the watcher ends the keeper, however this ends.
    let watched = Arc::clone(&guard);
    let watcher = thread::Builder::new()
        .name("hostsnap-watch".to_owned())
        .stack_size(WATCHER_STACK_BYTES)
        .spawn(move || watched.watch(child))
        .map_err(failed("start the thread that watches it"))?;
    let armed = Armed {
        guard,
        targets: plan.targets,
        budget: plan.budget,
        keeper_pid,
        watcher: Some(watcher),
        before: None,
    };
    channel::hand_over(&armed.guard.channel, &parts).map_err(failed("hand over the descriptors"))?;
    armed.guard.wait_until_ready().map_err(failed("wait until it is ready"))?;
    lock.note_keeper(keeper_pid, armed.guard.expedite.is_some())
        .map_err(failed("note its process in the lock"))?;
    Ok(armed)
}

fn start(program: &Path, channel: OwnedFd) -> io::Result<Child> {
    Command::new(program)
        .arg(keeper::ARGUMENT)
        .env_clear()
        // No folder of a file system that is to be frozen, or unmounted, stays in use.
        .current_dir("/")
        .stdin(Stdio::from(channel))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

impl Guard {
    fn wait_until_ready(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.channel, PollFlags::IN)];
        if !wait(&mut fds, Some(timespec(START_LIMIT))) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it said nothing in time"));
        }
        let mut message = [0; 256];
        match hear(&self.channel, &mut message) {
            Some((channel::READY, _)) => Ok(()),
            Some((_, text)) => Err(io::Error::other(String::from_utf8_lossy(text).into_owned())),
            None => Err(io::Error::other("it ended")),
        }
    }
}
