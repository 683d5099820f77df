//! One freeze at a time in a guest: a second create must not meet the first one's frozen file
//! systems. The keeper holds the lock too, so it is free only when everything is thawed.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// Where the lock is, on a tmpfs that is never frozen.
pub const DEFAULT_FOLDER: &str = "/run/hostsnap";

/// The lock, held.
pub struct FreezeLock(File);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("another snapshot is being taken in this machine (process {holder}); it did not end within {} s", waited.as_secs())]
    Held {
        /// Its process.
        holder: String,
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
    pub fn take(folder: &Path, limit: Duration) -> Result<Self, LockError> {
        let path = folder.join("freeze.lock");
        let failed = |source| LockError::File { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let began = Instant::now();
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(failed(error.into()));
            }
            if began.elapsed() >= limit {
                let mut holder = String::new();
                // Only for the message.
                let _ = (&file).take(16).read_to_string(&mut holder);
                return Err(LockError::Held { holder: holder.trim().to_owned(), waited: limit });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self(file))
    }

    /// The same lock, for the keeper: it is free when both are closed (flock(2): a lock belongs to
    /// the open file description).
    pub(super) fn share(&self) -> io::Result<File> {
        self.0.try_clone()
    }
}
