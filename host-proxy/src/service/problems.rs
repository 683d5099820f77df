//! What comparing the catalog with the storage could not decide, so that the log says it once and not each minute.

use std::collections::BTreeSet;
use std::sync::Mutex;

/// What was told of it.
#[derive(Default)]
pub(super) struct Problems(Mutex<BTreeSet<String>>);

impl Problems {
    /// Those of the found that were not yet told. What a comparison of all no longer finds is over, and told again if it comes
    /// back.
    pub(super) fn news(&self, found: &[String], of_all: bool) -> Vec<String> {
        let mut told = self.0.lock().expect("no holder of this lock panics");
        let news = found.iter().filter(|problem| !told.contains(*problem)).cloned().collect();
        if of_all {
            told.clear();
        }
        told.extend(found.iter().cloned());
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that was away for a night was a line of the log each minute.
    #[test]
    fn a_problem_is_told_once_and_again_when_it_was_over() {
        let problems = Problems::default();
        let both = ["the store is away", "a manifest is broken"].map(str::to_owned);
        let (away, lost) = (&both[..1], &both[1..]);
        assert_eq!(problems.news(away, true), away);
        assert_eq!(problems.news(&both, true), lost);
        assert!(problems.news(&[], false).is_empty(), "a part says nothing of the others");
        assert!(problems.news(&both, true).is_empty());
        assert!(problems.news(lost, true).is_empty());
        assert_eq!(problems.news(away, true), away, "it came back");
    }
}
