//! What an attempt does between `Prepared` and `Conclude`: hooks, flush, freeze, cut, thaw, hooks
//! again. What was quiesced is released on every way out.

use std::time::{Duration, Instant};

use protocol::agent::AgentPhase;
use protocol::evidence::Freeze;
use protocol::message::Prepared;
use protocol::{Consistency, ErrorCode, WireError};

use super::attempt::Attempt;
use super::evidence::{self, Seen};
use super::stop::Patience;
use super::{Told, chain, cut, micros};
use crate::client::{Client, ClientError};
use crate::freeze::{self, FreezeLock, Frozen, NotHeld, Plan};
use crate::hooks::{Ended, Occasion, Quiesced};
use crate::rehearsal::{self, Step};

/// How long flushing before the freeze may take.
const FLUSH_LIMIT: Duration = Duration::from_secs(30);

/// Why there was no cut.
pub(super) enum NotCut {
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

/// What is needed while something is quiesced.
pub(super) struct Quiet<'a> {
    pub(super) attempt: &'a Attempt<'a>,
    pub(super) lock: &'a FreezeLock,
    pub(super) patience: &'a Patience,
    pub(super) prepared: Prepared,
    pub(super) lease_ends: Instant,
}

impl Quiet<'_> {
    /// Hooks, flush, freeze, cut, thaw, hooks again. Whatever happens in between, what was quiesced
    /// is released when this returns.
    pub(super) fn cut(
        &self,
        client: &mut Client,
        seen: &mut Seen,
        tell: &mut dyn FnMut(Told),
    ) -> Result<(), NotCut> {
        let began = Instant::now();
        let target = self.attempt.target;
        let quiesced = self.attempt.hooks.quiesce(&Occasion {
            request: self.attempt.options.request,
            snapshot: self.prepared.id,
            mounts: &target.mount_points(),
            disks: &target.serials(),
        });
        seen.timing.hooks_us = micros(began);
        seen.hooks = quiesced.evidence();
        rehearsal::after(Step::Quiesced);
        let result = self.quiesced_cut(client, &quiesced, seen, tell);
        tell(Told::Phase(AgentPhase::Settling));
        if result.is_ok()
            && seen.freeze == Freeze::Held
            && let Some(joined) = target.joined()
        {
            seen.freeze = evidence::not_held(&joined);
        }
        let held = result.is_ok() && seen.freeze == Freeze::Held;
        seen.hooks = quiesced.release(if held { Ended::Cut } else { Ended::NotCut });
        result
    }

    fn quiesced_cut(
        &self,
        client: &mut Client,
        quiesced: &Quiesced,
        seen: &mut Seen,
        tell: &mut dyn FnMut(Told),
    ) -> Result<(), NotCut> {
        let minimum = self.attempt.options.accepted();
        if let Some(hook) = quiesced.refused() {
            return Err(NotCut::GaveUp(self.attempt.options.hook_failed(hook)));
        }
        self.go_on()?;
        let began = Instant::now();
        let flushed = freeze::flush::flush(&self.attempt.target.mount_points(), FLUSH_LIMIT);
        seen.timing.flush_us = micros(began);
        rehearsal::after(Step::Flushed);
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
        if let Some(joined) = self.attempt.target.joined() {
            return Err(WireError::new(ErrorCode::NotFreezable, joined).hint("try again"));
        }
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
        rehearsal::after(Step::Armed);
        tell(Told::Phase(AgentPhase::Frozen));
        let frozen = armed.freeze();
        rehearsal::after(Step::Frozen);
        // To ask for a cut is pointless if it has ended since: the keeper was killed, or we were stopped.
        let frozen = frozen.and_then(|frozen| match frozen.remaining().is_zero() {
            true => Err(frozen.thaw()),
            false => Ok(Some(frozen)),
        });
        frozen.map_err(|report| {
            let why = report.held.err().unwrap_or(NotHeld::GivenUp);
            seen.file_systems = report.file_systems;
            not_frozen(&why)
        })
    }
}

fn not_frozen(why: &NotHeld) -> WireError {
    let (code, hint) = match why {
        NotHeld::NotFreezable { mount_point, .. } => (
            ErrorCode::NotFreezable,
            format!(
                "what is read-only needs no freeze: mount -o remount,ro {}; or accept --consistency crash",
                mount_point.display()
            ),
        ),
        NotHeld::AlreadyFrozen(_) => (
            ErrorCode::NotFreezable,
            "wait for whoever froze it (another backup?); if nobody did, hostsnap thaw thaws everything"
                .to_owned(),
        ),
        NotHeld::NotPermitted(_) => (ErrorCode::Refused, "run it as root: sudo hostsnap …".to_owned()),
        NotHeld::DeadlineWhileFreezing(_) | NotHeld::Deadline => (
            ErrorCode::TimedOut,
            "raise --freeze-timeout, or try again when less is being written".to_owned(),
        ),
        NotHeld::NotFrozen { .. }
        | NotHeld::ThawedBySomebodyElse(_)
        | NotHeld::NotThawed { .. }
        | NotHeld::StillThawing(_)
        | NotHeld::KeeperDied
        | NotHeld::Emergency
        | NotHeld::GivenUp => (
            ErrorCode::NotFreezable,
            "try again; hostsnap doctor says more; or accept --consistency crash".to_owned(),
        ),
    };
    WireError::new(code, why.to_string()).hint(hint)
}
