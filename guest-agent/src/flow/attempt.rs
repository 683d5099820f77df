//! One attempt at a request: from the connection to the snapshot, or to why there is none.

use std::time::{Duration, Instant};

use protocol::agent::AgentPhase;
use protocol::evidence::Freeze;
use protocol::message::{Conclude, Prepare, Prepared};
use protocol::record::State;
use protocol::{Consistency, ErrorCode, SnapshotRecord, WireError};

use super::evidence::{self, Seen};
use super::stop::Patience;
use super::{Options, Outcome, Surroundings, Target, Told, chain, cut, micros};
use crate::client::{Client, ClientError, Readiness, WireFailure};
use crate::freeze::{self, FreezeLock, Frozen, NotHeld, Plan};
use crate::hooks::{Hooks, Quiesced};

/// What is asked for besides the freeze: hooks, flushing, arming.
const LEASE_FOR_QUIESCE_MS: u32 = 90_000;
/// How long flushing before the freeze may take.
const FLUSH_LIMIT: Duration = Duration::from_secs(30);
/// How often a snapshot that was found settling is asked for.
const SETTLE_POLL: Duration = Duration::from_millis(200);

/// One attempt at a request.
pub(super) struct Attempt<'a> {
    pub(super) options: &'a Options,
    pub(super) target: &'a Target,
    pub(super) around: &'a Surroundings,
    pub(super) hooks: &'a Hooks,
}

/// Why an attempt came to nothing.
pub(super) enum Failure {
    /// Repeating it changes nothing.
    Final(WireError),
    /// The host was lost after it was asked: only repeating the request tells what became of it.
    Lost(WireError),
    /// Nothing was begun. A host that was lost before may be on its way back.
    NotNow(WireError),
}

/// Why there was no cut.
enum NotCut {
    /// We gave up before asking for it.
    GaveUp(WireError),
    /// It was asked for.
    Asked(ClientError),
}

impl From<ClientError> for NotCut {
    fn from(error: ClientError) -> Self {
        Self::Asked(error)
    }
}

impl Attempt<'_> {
    pub(super) fn run(&self, tell: &mut dyn FnMut(Told)) -> Result<Outcome, Failure> {
        let lock = match self.options.dry_run {
            true => None,
            false => Some(self.lock()?),
        };
        let began = Instant::now();
        let mut client = Client::connect(&self.around.host, self.around.limits).map_err(before_asking)?;
        let prepared = match client.prepare(self.request()).map_err(while_preparing)? {
            Readiness::Ready(prepared) => prepared,
            Readiness::Existing(record) => return self.existing(&mut client, record),
            Readiness::Planned(planned) => {
                return Ok(Outcome::Planned { planned, target: self.target.clone() });
            }
        };
        let lease_ends = Instant::now() + Duration::from_millis(prepared.lease_ms.into());
        let mut seen = Seen::default();
        seen.timing.prepare_us = micros(began);
        let lock = lock.expect("the client lets no Prepared through for a dry run");

        // From here to the end of what was quiesced, a signal waits.
        let patience = Patience::new();
        let ticket = prepared.ticket;
        let quiet = Quiet { attempt: self, lock: &lock, patience: &patience, prepared, lease_ends };
        let cut = quiet.cut(&mut client, &mut seen, tell);
        drop(lock);
        match cut {
            Ok(()) => {}
            Err(NotCut::GaveUp(error)) => {
                // The host gives up too when this conversation ends.
                let _ = client.abort(ticket);
                return Err(Failure::Final(error));
            }
            Err(NotCut::Asked(error)) => return Err(after_asking(error)),
        }
        let wait = self.options.wait && patience.stopped_by().is_none();
        let conclude = Conclude { ticket, timing: seen.timing, evidence: seen.into_evidence(), wait };
        client.conclude(conclude).map_err(after_asking)?;
        // The host knows all: whoever wants to end may.
        drop(patience);
        client
            .settled(&mut |progress| tell(Told::Progress(progress)))
            .map(Outcome::Snapshot)
            .map_err(after_asking)
    }

    fn lock(&self) -> Result<FreezeLock, Failure> {
        FreezeLock::take(&self.around.run, self.around.lock_limit).map_err(|error| {
            Failure::Final(WireError::new(ErrorCode::Busy, chain(&error)).hint("try again when it is done"))
        })
    }

    fn request(&self) -> Prepare {
        let freeze_ms = u32::try_from(self.options.freeze_timeout.as_millis()).unwrap_or(u32::MAX);
        Prepare {
            request: self.options.request,
            disks: self.target.requests(),
            mounts: self.target.mounts(),
            labels: self.options.labels.clone(),
            note: self.options.note.clone(),
            minimum: self.options.minimum,
            keep_for_s: self.options.keep_for.map(|time| time.as_secs()),
            lease_ms: freeze_ms.saturating_add(LEASE_FOR_QUIESCE_MS),
            dry_run: self.options.dry_run,
        }
    }

    /// The request was answered before; its snapshot may still be settling.
    fn existing(&self, client: &mut Client, mut record: Box<SnapshotRecord>) -> Result<Outcome, Failure> {
        while self.options.wait && record.state == State::Settling {
            std::thread::sleep(SETTLE_POLL);
            let reference = record.id.to_string().parse().expect("an identifier is a valid reference");
            record = client.get(reference).map_err(after_asking)?;
        }
        let unusable = |code, what: String| {
            WireError::new(code, format!("the snapshot {} of this request {what}", record.id))
                .hint("delete it, and take a new one with another request id")
        };
        if record.state == State::Failed {
            let lost = unusable(ErrorCode::StorageFailed, "was lost by the storage".to_owned());
            return Err(Failure::Final(lost));
        }
        if record.consistency < self.options.minimum {
            let less = format!("is only {}-consistent: {}", record.consistency, record.consistency_reason);
            return Err(Failure::Final(unusable(ErrorCode::ConsistencyNotReached, less)));
        }
        Ok(Outcome::Snapshot(record))
    }
}

/// What is needed while something is quiesced.
struct Quiet<'a> {
    attempt: &'a Attempt<'a>,
    lock: &'a FreezeLock,
    patience: &'a Patience,
    prepared: Prepared,
    lease_ends: Instant,
}

impl Quiet<'_> {
    /// Hooks, flush, freeze, cut, thaw, hooks again. Whatever happens in between, what was quiesced
    /// is released when this returns.
    fn cut(&self, client: &mut Client, seen: &mut Seen, tell: &mut dyn FnMut(Told)) -> Result<(), NotCut> {
        let began = Instant::now();
        let quiesced =
            self.attempt.hooks.quiesce(self.attempt.options.request, &self.attempt.target.mount_points());
        seen.timing.hooks_us = micros(began);
        seen.hooks = quiesced.evidence();
        let result = self.quiesced_cut(client, &quiesced, seen, tell);
        tell(Told::Phase(AgentPhase::Settling));
        quiesced.release();
        result
    }

    fn quiesced_cut(
        &self,
        client: &mut Client,
        quiesced: &Quiesced,
        seen: &mut Seen,
        tell: &mut dyn FnMut(Told),
    ) -> Result<(), NotCut> {
        let minimum = self.attempt.options.minimum;
        if let Some(hook) = quiesced.failed().filter(|_| minimum == Consistency::Application) {
            let error = format!(
                "the hook {} {}, so application consistency can't be reached",
                hook.name, hook.outcome
            );
            return Err(NotCut::GaveUp(
                WireError::new(ErrorCode::HookFailed, error)
                    .hint("its output is in the log; or accept --consistency filesystem"),
            ));
        }
        self.go_on()?;
        let began = Instant::now();
        let flushed = freeze::flush::flush(&self.attempt.target.mount_points(), FLUSH_LIMIT);
        seen.timing.flush_us = micros(began);
        // A power cut would not have flushed either.
        if let Err(error) = flushed
            && minimum > Consistency::Crash
        {
            return Err(NotCut::GaveUp(WireError::new(ErrorCode::StorageFailed, chain(&error))));
        }

        let budget = self.go_on()?;
        let ticket = self.prepared.ticket;
        match self.freeze(budget, seen, tell) {
            Ok(Some(frozen)) => Ok(cut::frozen(client, ticket, frozen, seen, tell)?),
            Ok(None) => {
                seen.freeze = Freeze::Held;
                Ok(cut::unfrozen(client, ticket, Instant::now() + budget, seen)?)
            }
            Err(not_frozen) if minimum > Consistency::Crash => Err(NotCut::GaveUp(not_frozen)),
            Err(not_frozen) => {
                // The user accepts it.
                seen.freeze = evidence::not_held(not_frozen.message.as_str());
                Ok(cut::unfrozen(client, ticket, Instant::now() + budget, seen)?)
            }
        }
    }

    /// For how long things may be frozen, if nobody stopped us and the lease is still open.
    fn go_on(&self) -> Result<Duration, NotCut> {
        if let Some(signal) = self.patience.stopped_by() {
            return Err(NotCut::GaveUp(WireError::new(
                ErrorCode::Unavailable,
                format!("stopped by {signal}; nothing was taken, and nothing is frozen"),
            )));
        }
        let left = self.lease_ends.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NotCut::GaveUp(
                WireError::new(
                    ErrorCode::LeaseExpired,
                    format!(
                        "hooks and flushing took longer than the {} ms that the host waits; nothing was taken",
                        self.prepared.lease_ms
                    ),
                )
                .hint("make the hooks faster, or ask the host's administrator for a longer max_lease"),
            ));
        }
        Ok(left.min(self.attempt.options.freeze_timeout))
    }

    /// Freezes everything; `None` where nothing needs it, since nothing can write to the disks.
    fn freeze(
        &self,
        budget: Duration,
        seen: &mut Seen,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Option<Frozen>, WireError> {
        self.attempt.target.writers_outside()?;
        let targets = self.attempt.target.to_freeze();
        if targets.is_empty() {
            return Ok(None);
        }
        let plan = Plan { targets, budget, keeper: self.attempt.around.keeper.clone() };
        let armed = freeze::arm(plan, self.lock).map_err(|error| {
            WireError::new(ErrorCode::NotFreezable, chain(&error)).hint("hostsnap doctor says more")
        })?;
        // What runs from here to the thaw must not be paged in from what is frozen. If it can't be
        // locked, it was used a moment ago, and the keeper thaws at the deadline.
        let _ = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE);
        tell(Told::Phase(AgentPhase::Frozen));
        armed.freeze().map(Some).map_err(|report| {
            let why = report.held.err().unwrap_or(NotHeld::GivenUp).to_string();
            seen.file_systems = report.file_systems;
            WireError::new(ErrorCode::NotFreezable, why).hint("free it, or accept --consistency crash")
        })
    }
}

fn before_asking(error: ClientError) -> Failure {
    match error.may_pass() {
        true => Failure::NotNow(error.into()),
        false => Failure::Final(error.into()),
    }
}

fn while_preparing(error: ClientError) -> Failure {
    match error {
        // It was waited for long enough, and nothing is frozen.
        ClientError::Broken(WireFailure::TimedOut) => Failure::NotNow(error.into()),
        error if error.is_lost() => Failure::Lost(error.into()),
        error => before_asking(error),
    }
}

fn after_asking(error: ClientError) -> Failure {
    match error {
        ClientError::Told(error) => Failure::Final(error),
        // Also what makes no sense: only a conversation that begins anew tells what became of it.
        error => Failure::Lost(error.into()),
    }
}
