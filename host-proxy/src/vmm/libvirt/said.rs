//! What `virsh domstate --reason` and, after it, `virsh domjobinfo` say of a domain (`tools/virsh-domain-monitor.c`). Pure.

use crate::vmm::pause::RunState;

/// Reasons of a pause that is a part of a move, or of a beginning.
const ON_ITS_WAY: [&str; 5] = ["migrating", "saving", "post-copy", "post-copy failed", "starting up"];
/// What libvirt does to a domain that is on its way.
const MOVES: [&str; 4] = ["Incoming migration", "Outgoing migration", "Save", "Restore"];

/// Their words.
pub(super) struct Said(pub(super) String);

impl Said {
    fn word_and_reason(&self) -> (&str, &str) {
        let line = self.0.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let (word, reason) = line.split_once(" (").unwrap_or((line, ""));
        (word, reason.trim_end_matches(')'))
    }

    fn is_moved(&self) -> bool {
        let mut jobs = self.0.lines().filter_map(|line| line.trim().strip_prefix("Operation:"));
        jobs.any(|job| MOVES.contains(&job.trim()))
    }

    /// Whether its processors are stopped, by whomever.
    pub(super) fn is_paused(&self) -> bool {
        self.word_and_reason().0 == "paused"
    }

    pub(super) fn state(&self) -> RunState {
        match self.word_and_reason() {
            _ if self.is_moved() => RunState::Moving,
            ("paused" | "running", reason) if ON_ITS_WAY.contains(&reason) => RunState::Moving,
            ("running" | "idle", _) => RunState::Runs,
            ("paused", _) => RunState::Paused,
            ("shut off", _) => RunState::Gone,
            (other, _) => RunState::Other(other.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_on_its_way_to_or_from_another_host_or_a_file_is_neither_paused_nor_running() {
        let no_job = "Job type:         None        \n";
        let job = |operation: &str| {
            format!("Job type: Unbounded\nOperation:        {operation}\nTime elapsed: 1 ms\n")
        };
        let other = RunState::Other("crashed".to_owned());
        let table = [
            ("running (booted)", no_job.to_owned(), RunState::Runs, false),
            ("running (migrated)", no_job.to_owned(), RunState::Runs, false),
            ("idle", String::new(), RunState::Runs, false),
            ("paused (user)", no_job.to_owned(), RunState::Paused, true),
            ("paused (migrating)", no_job.to_owned(), RunState::Moving, true),
            ("paused (starting up)", no_job.to_owned(), RunState::Moving, true),
            ("running (post-copy)", no_job.to_owned(), RunState::Moving, false),
            ("running (booted)", job("Outgoing migration"), RunState::Moving, false),
            ("paused (user)", job("Save"), RunState::Moving, true),
            ("running (booted)", job("Backup"), RunState::Runs, false),
            ("shut off (migrated)", String::new(), RunState::Gone, false),
            ("crashed (panicked)", no_job.to_owned(), other, false),
        ];
        for (state, job, expected, is_paused) in table {
            let said = Said(format!("{state}\n\n{job}\n"));
            assert_eq!((said.state(), said.is_paused()), (expected, is_paused), "{state}, {job}");
        }
    }
}
