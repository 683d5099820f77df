//! Writing back before the freeze, so that FIFREEZE has little left to write while applications
//! wait. One `syncfs` of a busy file system leaves what was written during it; so it is repeated
//! until a round is short, or rounds don't get shorter. What is much is written back in sips before.

mod open_files;
mod sips;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::mounts::{self, OpenError};

/// A round as short as this leaves little enough.
const SHORT: Duration = Duration::from_millis(30);
/// More rounds than this don't help against a writer that is as fast as its disk.
const MOST_ROUNDS: usize = 5;

/// Why nothing was written back.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// A mount point can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The storage failed.
    #[error("write back {}", path.display())]
    Sync {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flushed {
    /// How long each round took.
    pub rounds: Vec<Duration>,
}

/// Whether another round is worth it, by how long the rounds so far took.
fn go_on(rounds: &[Duration]) -> bool {
    match rounds {
        [] | [_] if rounds.last().is_none_or(|first| *first > SHORT) => true,
        [.., before, last] => *last > SHORT && rounds.len() < MOST_ROUNDS && *last < *before / 2,
        _ => false,
    }
}

/// Writes back what these file systems hold, in this order, until little is left. No further round
/// is begun after the limit; one that was begun is not cut short.
///
/// # Errors
/// When a mount point can't be opened, or the storage failed: what is not on the disk now would not
/// be in the snapshot.
pub fn flush(mount_points: &[PathBuf], limit: Duration) -> Result<Flushed, FlushError> {
    let files = mount_points
        .iter()
        .map(|path| Ok((path, mounts::open_mount(path)?)))
        .collect::<Result<Vec<_>, OpenError>>()?;
    let began = Instant::now();
    sips::write_back(&files.iter().map(|(_, file)| file).collect::<Vec<_>>(), began + limit);
    let mut rounds = Vec::with_capacity(MOST_ROUNDS);
    while go_on(&rounds) && (rounds.is_empty() || began.elapsed() < limit) {
        let round = Instant::now();
        for (path, file) in &files {
            rustix::fs::syncfs(file)
                .map_err(|errno| FlushError::Sync { path: (*path).clone(), source: errno.into() })?;
        }
        rounds.push(round.elapsed());
    }
    Ok(Flushed { rounds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_repeated_while_they_get_much_shorter() {
        let table: [(&[u64], bool); 7] = [
            (&[], true),
            (&[5], false),
            (&[900], true),
            (&[900, 200], true),
            (&[900, 800], false),
            (&[900, 200, 20], false),
            (&[900, 400, 190, 90, 40], false),
        ];
        for (rounds, more) in table {
            let rounds: Vec<_> = rounds.iter().map(|ms| Duration::from_millis(*ms)).collect();
            assert_eq!(go_on(&rounds), more, "{rounds:?}");
        }
    }

    #[test]
    fn what_was_written_is_written_back_in_a_few_rounds() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("dirty"), vec![1; 1 << 16]).unwrap();
        let flushed = flush(&[folder.path().to_owned()], Duration::ZERO).unwrap();
        assert_eq!(flushed.rounds.len(), 1, "no second round after the limit");
        let error = flush(&["/no/such/folder".into()], Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"), "{error}");
    }
}
