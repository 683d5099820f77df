//! Freezing file systems, and above all: thawing them again, whatever happens.
//!
//! The *thaw keeper* is a process of its own, started before the freeze. It alone calls FIFREEZE and
//! FITHAW, so it knows exactly what is frozen by us and what by somebody else. It thaws when told
//! to, at the deadline, and as soon as the process that started it is gone. It is locked in memory
//! and touches no file meanwhile. Should the keeper itself be killed, the flow sees it and thaws in
//! its stead, by the state that both share. For a guest to stay frozen, both must be killed at once.
//!
//! ```text
//! flow    arm ──────────► freeze ───► (cut) ───► thaw
//!           │ starts        │ "freeze"             │ "thaw"
//! keeper    └─ locks memory └─ FIFREEZE in order   └─ FITHAW in reverse, then it ends
//!                              ▲ deadline, or the flow is gone: the same FITHAW at once
//! ```
//!
//! | module | idea |
//! |---|---|
//! | `keeper` | the keeper's process, from its start to its end |
//! | `shared` | the page of memory that both read: which file system is in which state |
//! | `ioctl` | FIFREEZE and FITHAW |
//! | `expedite` | `/sys/kernel/rcu_expedited`, which makes the freeze itself short |
//! | `flush` | `syncfs` before the freeze, so that little is left to write in it |
//! | `lock` | one freeze at a time in a guest |
//!
//! Facts relied on: a freeze belongs to the super block, not to a descriptor, so the death of the
//! freezer leaves it frozen; a second FIFREEZE fails with EBUSY, a FITHAW of what is not frozen with
//! EINVAL (Linux `fs/super.c`, `freeze_super`, `thaw_super`); a FIFREEZE that waits can't be aborted.

mod expedite;
pub mod flush;
mod ioctl;
pub mod keeper;
mod lock;
mod shared;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

pub use lock::{DEFAULT_FOLDER, FreezeLock, LockError};

use keeper::{Answer, Handle};
use shared::Shared;

/// How much longer than its deadline the keeper is waited for before the flow thaws by itself.
const KEEPER_GRACE: Duration = Duration::from_secs(1);

/// A file system to freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Its kind, for errors and evidence.
    pub fs_type: String,
}

/// What is to be frozen, and for how long at most.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In the order of the freeze; thawed in reverse. At most 64.
    pub targets: Vec<Target>,
    /// The longest freeze.
    pub budget: Duration,
    /// The program that is the keeper: this one, by its path.
    pub keeper: PathBuf,
}

/// Why nothing is frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// A mount point can't be opened.
    #[error("open {} to freeze it", path.display())]
    Open {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More file systems than the keeper has room for.
    #[error("{0} file systems are to be frozen; at most 64 can be")]
    TooMany(usize),
    /// The keeper could not be started.
    #[error("start the thaw keeper, without which nothing is frozen: {doing}")]
    Keeper {
        /// At which step.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The keeper is ready; nothing is frozen.
pub struct Armed {
    targets: Vec<Target>,
    files: Vec<File>,
    keeper: Handle,
    budget: Duration,
}

/// Everything is frozen. Dropping it thaws.
pub struct Frozen {
    armed: Armed,
    deadline: Instant,
    thawed: bool,
}

/// What became of a freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `Ok` if every file system was frozen before, and found still frozen by its thaw, before the
    /// deadline; else why not.
    pub held: Result<(), String>,
    /// Each file system, in the order of the freeze.
    pub file_systems: Vec<Outcome>,
    /// From the first FIFREEZE's start to the last one's end, in microseconds.
    pub freeze_us: u64,
    /// From the first FITHAW's start to the last one's end, in microseconds.
    pub thaw_us: u64,
    /// From the first FIFREEZE's start to the last FITHAW's end, in microseconds.
    pub stall_us: u64,
}

/// What became of one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Which.
    pub target: Target,
    /// FIFREEZE, if it was called and came back.
    pub freeze: Option<Call>,
    /// FITHAW, if it was called.
    pub thaw: Option<Call>,
}

/// One system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Microseconds since the first FIFREEZE began.
    pub at_us: u64,
    /// In microseconds.
    pub took_us: u64,
    /// 0, or why it failed.
    pub errno: i32,
}

/// Opens the mount points and starts the keeper. Slow work, all of it before the freeze. The lock
/// is handed to the keeper as well, so that it is held until everything is thawed.
pub fn arm(plan: Plan, lock: &FreezeLock) -> Result<Armed, FreezeError> {
    if plan.targets.len() > shared::SLOTS {
        return Err(FreezeError::TooMany(plan.targets.len()));
    }
    let files = plan.targets.iter().map(|target| open(&target.mount_point)).collect::<Result<Vec<_>, _>>()?;
    let keeper = Handle::start(&plan.keeper, &files, lock, plan.budget)?;
    Ok(Armed { targets: plan.targets, files, keeper, budget: plan.budget })
}

/// Opens a mount point without changing its access time, which on a frozen XFS would block.
fn open(path: &Path) -> Result<File, FreezeError> {
    let no_atime = libc_noatime();
    File::options()
        .read(true)
        .custom_flags(no_atime)
        .open(path)
        .or_else(|error| match error.raw_os_error() {
            // Only a file's owner may ask for no access time; root of a user namespace may not.
            Some(errno) if errno == Errno::PERM.raw_os_error() => File::open(path),
            _ => Err(error),
        })
        .map_err(|source| FreezeError::Open { path: path.to_owned(), source })
}

fn libc_noatime() -> i32 {
    // open(2): O_NOATIME. The bits fit: flags are an int there.
    i32::try_from(rustix::fs::OFlags::NOATIME.bits()).expect("open flags fit into an int")
}

impl Armed {
    /// Freezes everything, in order. If one file system can't be, those before it are thawed again
    /// by the time this returns.
    pub fn freeze(mut self) -> Result<Frozen, Report> {
        // What is touched from here to the thaw must not be paged in from what is frozen.
        let deadline = Instant::now() + self.budget;
        self.keeper.command_freeze();
        match self.keeper.wait(deadline + KEEPER_GRACE) {
            Answer::Frozen => Ok(Frozen { armed: self, deadline, thawed: false }),
            Answer::Thawed | Answer::Deadline | Answer::Gone | Answer::Silent => {
                self.finish();
                Err(self.report())
            }
        }
    }

    /// Ends the keeper, or what it left; afterwards nothing of ours is frozen.
    fn finish(&mut self) {
        self.keeper.command_thaw();
        let limit = Instant::now() + KEEPER_GRACE;
        loop {
            match self.keeper.wait(limit) {
                Answer::Thawed => break,
                Answer::Frozen | Answer::Deadline => {}
                Answer::Gone | Answer::Silent => {
                    self.keeper.end_and_thaw(&self.files);
                    break;
                }
            }
        }
    }

    fn report(&self) -> Report {
        report(&self.targets, self.keeper.shared())
    }
}

impl Frozen {
    /// What is left until the deadline.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Thaws everything, in reverse, and says how it went.
    pub fn thaw(mut self) -> Report {
        self.thawed = true;
        self.armed.finish();
        self.armed.report()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if !self.thawed {
            self.armed.finish();
        }
    }
}

fn report(targets: &[Target], shared: &Shared) -> Report {
    let start = shared.slots().iter().filter_map(|slot| slot.freeze_call()).map(|call| call.at_ns).min();
    let start = start.unwrap_or(0);
    let relative = |call: shared::RawCall| Call {
        at_us: call.at_ns.saturating_sub(start) / 1000,
        took_us: call.took_ns / 1000,
        errno: call.errno,
    };
    let file_systems: Vec<Outcome> = targets
        .iter()
        .zip(shared.slots())
        .map(|(target, slot)| Outcome {
            target: target.clone(),
            freeze: slot.freeze_call().map(relative),
            thaw: slot.thaw_call().map(relative),
        })
        .collect();
    let end = |call: &Call| call.at_us + call.took_us;
    let freezes = || file_systems.iter().filter_map(|fs| fs.freeze);
    let thaws = || file_systems.iter().filter_map(|fs| fs.thaw);
    let last_freeze = freezes().map(|call| end(&call)).max().unwrap_or(0);
    let first_thaw = thaws().map(|call| call.at_us).min().unwrap_or(0);
    let last_thaw = thaws().map(|call| end(&call)).max().unwrap_or(0);
    Report {
        held: held(&file_systems, shared.is_expired()),
        freeze_us: last_freeze,
        thaw_us: last_thaw.saturating_sub(first_thaw),
        stall_us: last_thaw.max(last_freeze),
        file_systems,
    }
}

fn held(file_systems: &[Outcome], expired: bool) -> Result<(), String> {
    for fs in file_systems {
        let at = fs.target.mount_point.display();
        match fs.freeze.map(Call::failure) {
            Some(None) => {}
            None => return Err(format!("{at} was not frozen in time")),
            Some(Some(Errno::BUSY)) => {
                return Err(format!("{at} was frozen already, by somebody else; it was not touched"));
            }
            Some(Some(Errno::OPNOTSUPP)) => {
                return Err(format!("{at} is {}, which can't be frozen", fs.target.fs_type));
            }
            Some(Some(errno)) => return Err(format!("{at} could not be frozen: {errno}")),
        }
    }
    if expired {
        return Err("the deadline of the freeze passed, and everything was thawed".to_owned());
    }
    for fs in file_systems {
        let at = fs.target.mount_point.display();
        match fs.thaw.map(Call::failure) {
            Some(None) => {}
            None => return Err(format!("{at} was not thawed by us")),
            Some(Some(Errno::INVAL)) => return Err(format!("{at} had been thawed by somebody else")),
            Some(Some(errno)) => return Err(format!("{at} could not be thawed: {errno}")),
        }
    }
    Ok(())
}

impl Call {
    fn failure(self) -> Option<Errno> {
        (self.errno != 0).then(|| Errno::from_raw_os_error(self.errno))
    }
}

/// What `thaw_all` found at one mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emergency {
    /// It was frozen and writes again.
    Thawed,
    /// It was not frozen.
    WasNotFrozen,
    /// It could not be told.
    Failed(String),
}

/// The emergency exit: thaws every file system given, whoever froze it.
pub fn thaw_all(mount_points: &[PathBuf]) -> Vec<(PathBuf, Emergency)> {
    let thaw = |path: &Path| match open(path) {
        Err(error) => Emergency::Failed(error.to_string()),
        Ok(file) => match ioctl::thaw(&file) {
            Ok(()) => Emergency::Thawed,
            Err(Errno::INVAL) => Emergency::WasNotFrozen,
            Err(errno) => Emergency::Failed(errno.to_string()),
        },
    };
    mount_points.iter().map(|path| (path.clone(), thaw(path))).collect()
}
