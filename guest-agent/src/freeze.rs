//! Freezing file systems, and above all: thawing them again, whatever happens.
//!
//! The *thaw keeper* is a process of its own, started before the freeze. It calls FIFREEZE, so it
//! knows exactly what is frozen by us and what by somebody else; it is locked in memory and touches
//! no file. It thaws at the deadline and as soon as the process that started it is gone. Should the
//! keeper itself be killed, the flow thaws at once, by the state that both share. For a guest to
//! stay frozen, both must be killed at the same moment.
//!
//! ```text
//! flow    arm ──────────► freeze ───► (cut) ───► thaw: FITHAW in reverse
//!           │ starts        │ "freeze"             │ "end"
//! keeper    └─ locks memory └─ FIFREEZE in order   └─ helps, then it ends
//!                              ▲ deadline, or the flow is gone: FITHAW of everything, at once
//! ```
//!
//! | module | idea |
//! |---|---|
//! | [`keeper`] | the keeper's process |
//! | `guard` | the flow's side: armed, frozen, thawed |
//! | `together` | several file systems frozen at the same time |
//! | `shared`, `slot` | the page of memory that both read: how far it has come, and who may thaw what |
//! | `channel` | what they say to each other |
//! | `report` | what became of it, and whether the freeze was held |
//! | `emergency` | `hostsnap thaw` |
//! | `panic` | a panic thaws first, and is told then |
//! | `ioctl`, `mounts`, `clock`, `expedite` | the kernel's interfaces |
//! | [`flush`] | `syncfs` before the freeze, so that little is left to write in it |
//! | `lock` | one freeze at a time in a guest |
//! | `urgent` | before all else that wants the processor |
//!
//! Facts relied on: a freeze belongs to the super block, not to a descriptor, so the death of the
//! freezer leaves it frozen; a second FIFREEZE fails with EBUSY, a FITHAW of what is not frozen with
//! EINVAL (Linux `fs/super.c`, `freeze_super`, `thaw_super`); a FIFREEZE that waits can't be aborted.
//! Which file systems, and in which order, is the `topology`'s to say.

mod channel;
mod clock;
mod emergency;
mod expedite;
pub mod flush;
mod guard;
mod ioctl;
pub mod keeper;
mod lock;
mod mounts;
mod panic;
mod report;
mod shared;
mod slot;
mod together;
mod urgent;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use emergency::{Emergency, EmergencyReport, emergency_thaw};
pub use guard::{Armed, Frozen};
pub use lock::{DEFAULT_FOLDER, FreezeLock, LockError};
pub use mounts::OpenError;
pub use panic::thaw_before_a_panic_is_told;
pub use report::{Call, NotHeld, Outcome, Report};

/// By this path the running program can start itself again, even if its file was replaced.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// A file system to freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Its kind, for errors and evidence.
    pub fs_type: String,
    /// Its mount's number, the first field in `/proc/self/mountinfo`: if the path leads elsewhere
    /// now, nothing is frozen. `None` where it is not known.
    pub mount_id: Option<u64>,
    /// Those of one rank are frozen at the same time, those of a lower rank before. A file system in a
    /// file of another must have a lower rank than that one.
    pub rank: u32,
}

/// What is to be frozen, and for how long at most.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In the order of the freeze, which is by rank; thawed in reverse. At most 64.
    pub targets: Vec<Target>,
    /// The longest freeze.
    pub budget: Duration,
    /// The program that becomes the keeper: [`THIS_PROGRAM`], if its `main` asks
    /// [`keeper::is_asked_for`] first.
    pub keeper: PathBuf,
}

/// Why nothing is frozen, nor was.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// A mount point can't be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// More file systems than the keeper, and a record, have room for.
    #[error("{count} file systems are to be frozen; at most {} can be", shared::SLOTS)]
    TooMany {
        /// How many.
        count: usize,
    },
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

/// Opens the mount points and starts the keeper. Slow work, all of it before the freeze. The keeper
/// holds the lock as well, until everything is thawed.
///
/// # Errors
/// When a mount point can't be opened or is not the one that was meant, or there is no keeper.
pub fn arm(mut plan: Plan, lock: &FreezeLock) -> Result<Armed, FreezeError> {
    if plan.targets.len() > shared::SLOTS {
        return Err(FreezeError::TooMany { count: plan.targets.len() });
    }
    plan.targets.sort_by_key(|target| target.rank);
    let mounts = plan.targets.iter().map(mounts::open_target).collect::<Result<Vec<_>, OpenError>>()?;
    guard::arm(plan, mounts, lock)
}
