//! Writing back before the freeze, so that FIFREEZE has little left to write while applications
//! wait. One `syncfs` of a busy file system leaves what was written during it; so it is repeated
//! until a round is short, or it does not get shorter.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

/// A round as short as this leaves little enough.
const SHORT: Duration = Duration::from_millis(30);
/// More rounds than this don't help against a writer that is faster than its disk.
const MOST_ROUNDS: usize = 5;

/// Whether another round is worth it, by how long the rounds so far took.
fn go_on(rounds: &[Duration]) -> bool {
    match rounds {
        [] => true,
        [.., last] if *last <= SHORT || rounds.len() >= MOST_ROUNDS => false,
        [.., before, last] => *last < *before / 2,
        [_] => true,
    }
}

/// Writes back what these file systems hold, until little is left or the limit is reached.
pub fn flush(mount_points: &[std::path::PathBuf], limit: Duration) -> io::Result<()> {
    let files = mount_points.iter().map(File::open).collect::<io::Result<Vec<_>>>()?;
    let began = Instant::now();
    let mut rounds = Vec::with_capacity(MOST_ROUNDS);
    while go_on(&rounds) && began.elapsed() < limit {
        let round = Instant::now();
        for file in &files {
            rustix::fs::syncfs(file)?;
        }
        rounds.push(round.elapsed());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_repeated_while_they_get_much_shorter() {
        let ms = |times: &[u64]| times.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        for (rounds, more) in [
            (ms(&[]), true),
            (ms(&[5]), false),
            (ms(&[900]), true),
            (ms(&[900, 200]), true),
            (ms(&[900, 800]), false),
            (ms(&[900, 200, 20]), false),
            (ms(&[900, 400, 190, 90, 40]), false),
        ] {
            assert_eq!(go_on(&rounds), more, "{rounds:?}");
        }
    }
}
