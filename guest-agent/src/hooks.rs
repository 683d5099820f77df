//! Hooks quiesce applications: programs that run before the freeze and after the thaw. Whether a
//! failure ends the snapshot is said by the hook (`required`), and by the `flow`.
//!
//! They are the executable files in `/etc/hostsnap/hooks.d`, in the order of their names, then those in
//! `fsfreeze-hook.d` beside it, which are called as qemu-ga calls its own:
//!
//! | when | argument | qemu-ga's | who is told |
//! |---|---|---|---|
//! | before the freeze, in order | `pre-freeze` | `freeze` | all, until a required one fails |
//! | after the thaw, in reverse, first | `freeze-failed` | | all that were started, if nothing was cut under a held freeze, or the hook itself failed |
//! | after the thaw, in reverse | `post-thaw` | `thaw` | all that were started, whatever happened |
//!
//! So a hook that pauses in `pre-freeze` and resumes in `post-thaw` is right; `freeze-failed` is news.
//! (qemu-ga: a failing freeze hook skips the thaw hook. zrepl releases only what succeeded; but a hook
//! that ran into its time limit may have quiesced already: docs/decisions/0007-hooks.md.)
//!
//! | variable | value |
//! |---|---|
//! | `HOSTSNAP_REQUEST_ID` | the request: the same before and after |
//! | `HOSTSNAP_SNAPSHOT_ID` | what the snapshot is called, if it comes to be |
//! | `HOSTSNAP_MOUNTS` | the mount points that are frozen, one a line |
//! | `HOSTSNAP_DISKS` | the serials of the disks, one a line |
//! | `HOSTSNAP_RESULT` | not before the freeze: `ok`, or `failed` if its own `pre-freeze` failed |
//! | `HOSTSNAP_HOOK` | this very run: whatever has it is killed at the time limit |
//! | `PATH`, `LC_ALL` | the same whoever started the snapshot |
//!
//! | module | idea |
//! |---|---|
//! | `folder` | which files are hooks, and whether they are root's alone |
//! | `header` | what a hook says of itself: its time limit, whether it is required |
//! | `quiesced` | what was started, and its release |
//! | `run` | one run: environment, time limit |
//! | `kin` | all that a run has started, wherever it went |
//! | `tail` | the end of what it prints |

mod folder;
mod header;
mod kin;
mod quiesced;
mod run;
mod tail;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{DiskSerial, ErrorCode, RequestId, SnapshotId, WireError};

use folder::Kind;
pub use header::Need;
pub use quiesced::{Ended, Quiesced};

/// Where the hooks are.
pub const FOLDER: &str = "/etc/hostsnap/hooks.d";
/// The name of the folder beside it, of hooks that were written for qemu-ga.
pub const QEMU_FOLDER: &str = "fsfreeze-hook.d";
/// How long a hook may take that does not say it.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The hooks of this machine.
#[derive(Debug, Clone, Default)]
pub struct Hooks(Vec<Hook>);

/// One hook.
#[derive(Debug, Clone)]
struct Hook {
    path: PathBuf,
    kind: Kind,
    need: Need,
    limit: Duration,
}

/// What hooks are told of the snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Occasion<'a> {
    /// The request.
    pub request: RequestId,
    /// What the snapshot will be called.
    pub snapshot: SnapshotId,
    /// What will be frozen.
    pub mounts: &'a [PathBuf],
    /// What will be cut.
    pub disks: &'a [DiskSerial],
}

/// Why the hooks can't be used. Nothing has been run.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The folder or a file in it can't be read.
    #[error("read {} for hooks", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody who is not root could change what runs as root.
    #[error("{} is not root's alone, and what is in it would run as root", .0.display())]
    NotRoots(PathBuf),
    /// What it says of itself makes no sense.
    #[error("the hook {} says of itself {word:?}", path.display())]
    Header {
        /// Which.
        path: PathBuf,
        /// What.
        word: String,
    },
}

impl From<HookError> for WireError {
    fn from(error: HookError) -> Self {
        let hint = match &error {
            HookError::Read { .. } => String::new(),
            HookError::NotRoots(path) => format!("chown root {0} && chmod go-w {0}", path.display()),
            HookError::Header { .. } => header::HELP.to_owned(),
        };
        Self::new(ErrorCode::HookFailed, crate::flow::chain(&error)).hint(hint)
    }
}

impl Hooks {
    /// Finds them. No folder is no hook.
    ///
    /// # Errors
    /// When something can't be read, others than root could have written it, or a header makes no sense.
    pub fn find(folder: &Path, limit: Duration) -> Result<Self, HookError> {
        let mut hooks = folder::hooks_in(folder, Kind::Own, limit)?;
        hooks.extend(folder::hooks_in(&folder.with_file_name(QEMU_FOLDER), Kind::Qemu, limit)?);
        Ok(Self(hooks))
    }

    /// As they are, but without any of them there is no snapshot.
    #[must_use]
    pub fn all_required(mut self) -> Self {
        self.0.iter_mut().for_each(|hook| hook.need = Need::Required);
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How long all of them may take before the freeze.
    pub fn longest(&self) -> Duration {
        self.0.iter().map(|hook| hook.limit).sum()
    }

    /// Runs what comes before the freeze, in order, until a required one fails.
    pub fn quiesce(&self, occasion: &Occasion<'_>) -> Quiesced {
        Quiesced::of(&self.0, occasion)
    }
}

#[cfg(test)]
mod tests;
