//! One attempt at a request: from the connection to the snapshot, or to why there is none.

use std::time::{Duration, Instant};

use protocol::message::{Conclude, Prepare};
use protocol::record::State;
use protocol::{ErrorCode, SnapshotRecord, WireError};

use super::evidence::Seen;
use super::quiet::{NotCut, Quiet};
use super::stop::Patience;
use super::{Options, Outcome, Surroundings, Target, Told, chain, micros};
use crate::client::{Client, ClientError, Readiness, WireFailure};
use crate::freeze::FreezeLock;
use crate::hooks::Hooks;
use crate::rehearsal::{self, Step};

/// What is asked for besides the freeze: flushing, arming, and at least so long for hooks.
const LEASE_FOR_FLUSH: Duration = Duration::from_secs(30);
const LEASE_FOR_HOOKS: Duration = Duration::from_secs(60);
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

impl Attempt<'_> {
    pub(super) fn run(&self, tell: &mut dyn FnMut(Told)) -> Result<Outcome, Failure> {
        let lock = match self.options.dry_run {
            true => None,
            false => Some(self.lock()?),
        };
        let began = Instant::now();
        let mut client = Client::connect(&self.around.host, self.around.limits).map_err(before_asking)?;
        rehearsal::after(Step::Connected);
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
        rehearsal::after(Step::Prepared);
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
        rehearsal::after(Step::Concluded);
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
        let hooks = self.hooks.longest().max(LEASE_FOR_HOOKS);
        let lease = self.options.freeze_timeout + LEASE_FOR_FLUSH + hooks;
        Prepare {
            request: self.options.request,
            disks: self.target.requests(),
            mounts: self.target.mounts(),
            labels: self.options.labels.clone(),
            note: self.options.note.clone(),
            minimum: self.options.accepted(),
            keep_for_s: self.options.keep_for.map(|time| time.as_secs()),
            lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX),
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
        if record.consistency < self.options.accepted() {
            let less = format!("is only {}-consistent: {}", record.consistency, record.consistency_reason);
            return Err(Failure::Final(unusable(ErrorCode::ConsistencyNotReached, less)));
        }
        Ok(Outcome::Snapshot(record))
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
