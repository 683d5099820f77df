//! What a hook says of itself, in a comment near its beginning, as init scripts do:
//!
//! ```sh
//! #!/bin/sh
//! # hostsnap: required timeout=20s
//! ```

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::HookError;

/// What to do about a header that makes no sense.
pub(super) const HELP: &str =
    "write \"# hostsnap:\" and then required, best-effort or timeout=TIME, with a time from 1s to 10m";

const MARK: &str = "# hostsnap:";
/// It is in the first lines.
const HEAD_BYTES: u64 = 4096;
const HEAD_LINES: usize = 20;
const LONGEST: Duration = Duration::from_secs(600);

/// Whether there may be a snapshot without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// If it fails, nothing is taken.
    Required,
    /// If it fails, the snapshot is worth less, and says so.
    BestEffort,
}

/// What it says; a hook without a header is best-effort and has the usual time.
pub(super) fn of(path: &Path) -> Result<(Need, Option<Duration>), HookError> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head))
        .map_err(|source| HookError::Read { path: path.to_owned(), source })?;
    parse(&String::from_utf8_lossy(&head)).map_err(|word| HookError::Header { path: path.to_owned(), word })
}

/// The word that makes no sense is the error.
fn parse(head: &str) -> Result<(Need, Option<Duration>), String> {
    let (mut need, mut limit) = (Need::BestEffort, None);
    let words = head.lines().take(HEAD_LINES).filter_map(|line| line.strip_prefix(MARK));
    for word in words.flat_map(str::split_whitespace) {
        match (word, word.strip_prefix("timeout=")) {
            ("required", _) => need = Need::Required,
            ("best-effort", _) => need = Need::BestEffort,
            (_, Some(time)) => limit = Some(time_limit(time).ok_or(word)?),
            _ => return Err(word.to_owned()),
        }
    }
    Ok((need, limit))
}

fn time_limit(text: &str) -> Option<Duration> {
    let limit = protocol::args::duration(text).ok()?;
    (Duration::from_secs(1)..=LONGEST).contains(&limit).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_says_whether_it_is_required_and_how_long_it_may_take() {
        let (required, best_effort) = (Need::Required, Need::BestEffort);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let deep = "\n".repeat(HEAD_LINES) + "# hostsnap: required";
        for (head, expected) in [
            ("#!/bin/sh\nexit 0\n", Ok((best_effort, None))),
            ("#!/bin/sh\n# hostsnap: required\n", Ok((required, None))),
            ("#!/bin/sh\n# hostsnap: best-effort timeout=90s\n", Ok((best_effort, seconds(90)))),
            ("#!/bin/sh\n# hostsnap: timeout=2m\n# hostsnap: required\n", Ok((required, seconds(120)))),
            ("\u{7f}ELF\0\0# hostsnap: required", Ok((best_effort, None))),
            (deep.as_str(), Ok((best_effort, None))),
            ("# hostsnap: requierd", Err("requierd".to_owned())),
            ("# hostsnap: timeout=forever", Err("timeout=forever".to_owned())),
            ("# hostsnap: timeout=0s", Err("timeout=0s".to_owned())),
            ("# hostsnap: timeout=1h", Err("timeout=1h".to_owned())),
        ] {
            assert_eq!(parse(head), expected, "{head:?}");
        }
    }
}
