//! What the daemon is doing. Kept so that it can be told while file systems are frozen.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::{Duration, Instant};

use protocol::agent::{AgentCreate, AgentPhase, AgentStatus};
use protocol::message::Progress;
use protocol::{ErrorCode, SnapshotId, SnapshotRecord, WireError};

use crate::flow::{self, Options, Otherwise, Outcome, Surroundings, Told};

/// The guest's own limit on how long it lets itself be frozen, in milliseconds.
const LONGEST_FREEZE_MS: u32 = 60_000;

/// What all conversations share.
pub(super) struct State {
    around: Surroundings,
    phase: AtomicU8,
    creating: Mutex<()>,
    last: Mutex<Option<SnapshotId>>,
    started: Instant,
}

/// By their place here phases are kept in an atomic.
const PHASES: [AgentPhase; 4] =
    [AgentPhase::Idle, AgentPhase::Preparing, AgentPhase::Frozen, AgentPhase::Settling];

impl State {
    pub(super) fn new(around: Surroundings) -> Self {
        Self {
            around,
            phase: AtomicU8::new(0),
            creating: Mutex::new(()),
            last: Mutex::new(None),
            started: Instant::now(),
        }
    }

    /// Whether something must not be logged or opened now.
    pub(super) fn is_frozen(&self) -> bool {
        self.phase() == AgentPhase::Frozen
    }

    fn phase(&self) -> AgentPhase {
        PHASES[usize::from(self.phase.load(SeqCst))]
    }

    fn set_phase(&self, phase: AgentPhase) {
        let place = PHASES.iter().position(|known| *known == phase).unwrap_or(0);
        self.phase.store(u8::try_from(place).expect("four phases"), SeqCst);
    }

    pub(super) fn status(&self) -> AgentStatus {
        AgentStatus {
            phase: self.phase(),
            last: *self.last.lock().expect("no holder of this lock panics"),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Runs the very flow of the command line.
    pub(super) fn create(
        &self,
        create: AgentCreate,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Box<SnapshotRecord>, WireError> {
        let Ok(_only_one) = self.creating.try_lock() else {
            return Err(WireError::new(ErrorCode::Busy, "the agent is taking a snapshot already")
                .hint("try again when it is done"));
        };
        let options = options_of(create);
        tracing::info!("the host asks for a snapshot, request {}", options.request);
        let outcome = flow::create(&options, &self.around, &mut |told| match told {
            Told::Phase(phase) => self.set_phase(phase),
            Told::Progress(progress) => tell(progress),
            Told::Retrying => tracing::warn!("the host was lost; asking again for the same request"),
        });
        match outcome {
            Ok(Outcome::Snapshot(record)) => {
                tracing::info!("took the snapshot {}, {}-consistent", record.id, record.consistency);
                *self.last.lock().expect("no holder of this lock panics") = Some(record.id);
                Ok(record)
            }
            Ok(Outcome::Planned { .. }) => unreachable!("no dry run was asked for"),
            Err(error) => {
                tracing::warn!("no snapshot: {}", error.message);
                Err(error)
            }
        }
    }
}

fn options_of(create: AgentCreate) -> Options {
    Options {
        paths: create.paths.iter().map(|path| path.as_str().into()).collect(),
        labels: create.labels,
        note: create.note,
        minimum: create.minimum,
        otherwise: Otherwise::Remove,
        keep_for: create.keep_for_s.map(Duration::from_secs),
        freeze_timeout: Duration::from_millis(create.freeze_timeout_ms.clamp(1, LONGEST_FREEZE_MS).into()),
        request: create.request,
        dry_run: false,
        wait: true,
    }
}

#[cfg(test)]
mod tests {
    use protocol::{BoundedVec, Consistency, RequestId};

    use super::*;

    #[test]
    fn the_host_cannot_ask_for_a_longer_freeze_than_the_guest_allows() {
        let asked = |freeze_timeout_ms| {
            options_of(AgentCreate {
                request: RequestId::random(),
                paths: BoundedVec::empty(),
                labels: protocol::Labels::default(),
                note: "".parse().unwrap(),
                minimum: Consistency::Crash,
                keep_for_s: None,
                freeze_timeout_ms,
            })
            .freeze_timeout
        };
        assert_eq!(asked(u32::MAX), Duration::from_secs(60));
        assert_eq!(asked(0), Duration::from_millis(1));
        assert_eq!(asked(2500), Duration::from_millis(2500));
    }

    #[test]
    fn every_phase_is_told_as_it_was_set() {
        let state = State::new(Surroundings::default());
        for phase in PHASES {
            state.set_phase(phase);
            assert_eq!(state.status().phase, phase);
            assert_eq!(state.is_frozen(), phase == AgentPhase::Frozen);
        }
    }
}
