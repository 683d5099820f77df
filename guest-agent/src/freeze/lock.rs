//! One freeze at a time in a guest: a second create must not meet the first one's frozen file
//! systems. The keeper holds the lock too, so it is free only when everything is thawed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::expedite;

/// Where the lock is.
pub const DEFAULT_FOLDER: &str = "/run/hostsnap";

const FILE: &str = "freeze.lock";
/// The file's first line: whether RCU is expedited. Of one length, so that it is changed in one write.
const EXPEDITED: &str = "expedited yes\n";
const NOT_EXPEDITED: &str = "expedited no \n";
/// There is no wait with a limit for a lock of this kind.
const RETRY: Duration = Duration::from_millis(20);

/// The lock, held.
pub struct FreezeLock(File);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error(
        "another snapshot is being taken in this machine, by process {}; it did not end within {} s",
        holder.map_or_else(|| "?".to_owned(), |pid| pid.to_string()), waited.as_secs()
    )]
    Held {
        /// The process that took it, if it can be told.
        holder: Option<u32>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The lock's file can't be used.
    #[error("use the lock {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FreezeLock {
    /// Waits for the lock at most so long.
    ///
    /// # Errors
    /// When somebody else has it still, or its file can't be made.
    pub fn take(folder: &Path, limit: Duration) -> Result<Self, LockError> {
        let path = folder.join(FILE);
        let failed = |source| LockError::File { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        let began = Instant::now();
        while !try_lock(&file).map_err(failed)? {
            if began.elapsed() >= limit {
                return Err(LockError::Held { holder: Notes::read(&file).flow, waited: limit });
            }
            std::thread::sleep(RETRY);
        }
        put_right(&file).map_err(failed)?;
        let notes = format!("{NOT_EXPEDITED}flow {}\n", std::process::id());
        file.write_all_at(notes.as_bytes(), 0).map_err(failed)?;
        Ok(Self(file))
    }

    /// The same lock once more: it is free when all of them are closed (flock(2): it belongs to the
    /// open file, which descriptors share).
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }

    /// Writes down the keeper, for `hostsnap thaw`, and whether it will expedite RCU.
    pub(super) fn note_keeper(&self, pid: u32, expedites: bool) -> io::Result<()> {
        let first = if expedites { EXPEDITED } else { NOT_EXPEDITED };
        let notes = format!("{first}flow {}\nkeeper {pid}\n", std::process::id());
        self.0.set_len(0)?;
        self.0.write_all_at(notes.as_bytes(), 0)
    }
}

/// By flow or keeper, when all is as it was.
pub(super) fn nothing_to_put_right(lock: &OwnedFd) {
    let _ = rustix::io::pwrite(lock, NOT_EXPEDITED.as_bytes(), 0);
}

/// Puts right what a flow and a keeper left that were killed together. Nothing, while a lock is held.
pub(super) fn put_right_what_was_left(folder: &Path) {
    let file = File::options().read(true).write(true).open(folder.join(FILE));
    if let Ok(file) = file
        && matches!(try_lock(&file), Ok(true))
    {
        // Nobody could do more about it.
        let _ = put_right(&file);
    }
}

fn put_right(held: &File) -> io::Result<()> {
    if Notes::read(held).expedited {
        expedite::off_in_their_stead();
    }
    held.set_len(0)
}

/// The keeper that is at work now, if there is one. Changes nothing.
pub(super) fn keeper_at_work(folder: &Path) -> Option<u32> {
    let file = File::open(folder.join(FILE)).ok()?;
    match try_lock(&file) {
        Ok(false) => Notes::read(&file).keeper,
        // Nobody has it; closing the file lets it go again.
        Ok(true) | Err(_) => None,
    }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[derive(Default)]
struct Notes {
    flow: Option<u32>,
    keeper: Option<u32>,
    expedited: bool,
}

impl Notes {
    fn read(file: &File) -> Self {
        let mut text = String::new();
        // What can't be read is as good as not written.
        let _ = file.take(128).read_to_string(&mut text);
        Self::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let mut notes = Self::default();
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("flow", pid)) => notes.flow = pid.parse().ok(),
                Some(("keeper", pid)) => notes.keeper = pid.parse().ok(),
                Some(("expedited", answer)) => notes.expedited = answer == "yes",
                _ => {}
            }
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lock that is dropped is free when every child that was just forked, by a test beside this
    /// one, has closed its copy of the descriptor, which exec does.
    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn a_second_snapshot_waits_and_is_told_who_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let first = FreezeLock::take(folder.path(), Duration::ZERO).unwrap();
        let Err(error) = FreezeLock::take(folder.path(), Duration::from_millis(50)) else {
            panic!("two have the lock");
        };
        let own = std::process::id();
        assert!(matches!(error, LockError::Held { holder: Some(pid), .. } if pid == own), "{error}");
        assert!(error.to_string().contains(&own.to_string()));
        drop(first);
        FreezeLock::take(folder.path(), SOON).unwrap();
    }

    #[test]
    fn a_lock_is_held_until_its_last_share_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FreezeLock::take(folder.path(), Duration::ZERO).unwrap();
        let share = lock.share().unwrap();
        drop(lock);
        assert!(FreezeLock::take(folder.path(), Duration::ZERO).is_err());
        drop(share);
        FreezeLock::take(folder.path(), SOON).unwrap();
    }

    #[test]
    fn the_keeper_is_known_only_while_somebody_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(keeper_at_work(folder.path()), None);
        let lock = FreezeLock::take(folder.path(), Duration::ZERO).unwrap();
        assert_eq!(keeper_at_work(folder.path()), None);
        lock.note_keeper(4711, false).unwrap();
        assert_eq!(keeper_at_work(folder.path()), Some(4711));
        drop(lock);
        harness::wait::wait_until("nobody has it", SOON, || keeper_at_work(folder.path()).is_none());
    }
}
