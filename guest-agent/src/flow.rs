//! The way of a snapshot, from the guest's side: resolve, ask, quiesce, freeze, cut, thaw, conclude.
//!
//! Ask first, freeze last: what is refused never freezes anything. From the freeze to the thaw
//! nothing is allocated, logged, printed or opened; the host's answer is decoded after the thaw.
//!
//! | module | idea |
//! |---|---|
//! | `target` | what is to be taken: disks with their fingerprints, file systems in freeze order |
//! | `evidence` | what was seen, in the protocol's terms |

mod evidence;
mod target;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use protocol::agent::AgentPhase;
use protocol::evidence::Freeze;
use protocol::message::{Conclude, Cut, CutDone, Planned, Prepare, Prepared, Progress, Reply, Request};
use protocol::text::{Labels, Note};
use protocol::{Consistency, ErrorCode, RequestId, SnapshotRecord, Ticket, WireError};

use crate::client::{self, Client, HostAddress, WireFailure};
use crate::freeze::{self, FreezeLock, Frozen, NotHeld, Plan, Report};
use crate::hooks::{Hooks, Quiesced};
use evidence::Seen;
pub use target::Target;

/// How long after a lost connection the same request is repeated: `hostsnapd` may be restarting.
const RETRY_LIMIT: Duration = Duration::from_secs(60);
/// How long a cut is waited for when the freeze is over: only to learn what became of it.
const LATE_CUT_LIMIT: Duration = Duration::from_secs(60);
/// How long another snapshot of this machine is waited for, before anything is asked.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
/// What is asked for besides the freeze: hooks, flushing, arming.
const LEASE_FOR_QUIESCE_MS: u32 = 90_000;
/// How long flushing before the freeze may take.
const FLUSH_LIMIT: Duration = Duration::from_secs(30);
/// Longer than any `Cut` frame.
const CUT_FRAME: usize = 64;

/// What a user wants.
#[derive(Debug, Clone)]
pub struct Options {
    /// The paths whose disks to take; none is all disks.
    pub paths: Vec<PathBuf>,
    /// To find it again.
    pub labels: Labels,
    /// A remark.
    pub note: Note,
    /// The least that is acceptable.
    pub minimum: Consistency,
    /// For how long to keep it.
    pub keep_for: Option<Duration>,
    /// The longest freeze.
    pub freeze_timeout: Duration,
    /// Repeating it gives the same snapshot.
    pub request: RequestId,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Whether to wait until the snapshot is durable.
    pub wait: bool,
}

/// Where everything is that the flow needs.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The host.
    pub host: HostAddress,
    /// The hooks' folder.
    pub hooks: PathBuf,
    /// How long one hook may take.
    pub hook_limit: Duration,
    /// The folder of the freeze lock.
    pub run: PathBuf,
    /// This program, to run as the thaw keeper.
    pub keeper: PathBuf,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            host: HostAddress::default(),
            hooks: crate::hooks::FOLDER.into(),
            hook_limit: crate::hooks::LIMIT,
            run: freeze::DEFAULT_FOLDER.into(),
            keeper: freeze::THIS_PROGRAM.into(),
        }
    }
}

/// What a flow tells while it runs. Nothing is told between freeze and thaw but `Phase(Frozen)`,
/// which must not allocate, print or open anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It has come so far.
    Phase(AgentPhase),
    /// The storage has come so far.
    Progress(Progress),
    /// The host was lost, and the request is repeated.
    Retrying,
}

/// What a flow came to.
#[derive(Debug)]
pub enum Outcome {
    /// A snapshot.
    Snapshot(Box<SnapshotRecord>),
    /// A dry run: what would be done.
    Planned {
        /// By the host.
        planned: Planned,
        /// In the guest.
        target: Target,
    },
}

/// Why an attempt came to nothing.
struct Failure {
    error: WireError,
    /// Whether repeating the request can tell what became of it.
    lost: bool,
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self { error, lost: false }
    }
}

/// Takes a snapshot.
pub fn create(
    options: &Options,
    around: &Surroundings,
    tell: &mut dyn FnMut(Told),
) -> Result<Outcome, WireError> {
    tell(Told::Phase(AgentPhase::Preparing));
    let outcome = target::resolve(&options.paths, &around.host)
        .and_then(|target| create_of(options, &target, around, tell));
    tell(Told::Phase(AgentPhase::Idle));
    outcome
}

/// As [`create`], of what was resolved already.
pub fn create_of(
    options: &Options,
    target: &Target,
    around: &Surroundings,
    tell: &mut dyn FnMut(Told),
) -> Result<Outcome, WireError> {
    let hooks = Hooks::find(&around.hooks, around.hook_limit)?;
    if options.minimum == Consistency::Application && hooks.is_empty() {
        return Err(WireError::new(
            ErrorCode::BadRequest,
            format!("application consistency needs hooks, and there is none in {}", around.hooks.display()),
        )
        .hint("add one that quiesces the application, or accept --consistency filesystem"));
    }
    let lock = match options.dry_run {
        true => None,
        false => Some(FreezeLock::take(&around.run, LOCK_LIMIT).map_err(|error| {
            WireError::new(ErrorCode::Busy, error.to_string()).hint("try again when it is done")
        })?),
    };
    let began = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let attempt = Attempt { options, target, around, hooks: &hooks, lock: lock.as_ref() };
        let failure = match attempt.run(tell) {
            Ok(outcome) => return Ok(outcome),
            Err(failure) => failure,
        };
        if !failure.lost || began.elapsed() >= RETRY_LIMIT {
            return Err(failure.error);
        }
        tell(Told::Retrying);
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// One attempt at a request.
struct Attempt<'a> {
    options: &'a Options,
    target: &'a Target,
    around: &'a Surroundings,
    hooks: &'a Hooks,
    /// None in a dry run.
    lock: Option<&'a FreezeLock>,
}

impl Attempt<'_> {
    fn run(&self, tell: &mut dyn FnMut(Told)) -> Result<Outcome, Failure> {
        let began = Instant::now();
        let mut client = Client::connect(&self.around.host).map_err(may_come_back)?;
        let prepared = match client.prepare(self.request()).map_err(may_come_back)? {
            Reply::Prepared(prepared) => prepared,
            Reply::Existing(record) => return self.existing(&mut client, record).map_err(Failure::from),
            Reply::Planned(planned) => return Ok(Outcome::Planned { planned, target: self.target.clone() }),
            _ => unreachable!("the client lets no other answer through"),
        };
        let lease_ends = Instant::now() + Duration::from_millis(prepared.lease_ms.into());
        let mut seen = Seen::default();
        seen.timing.prepare_us = micros(began);

        let cut = self.quiesced_cut(&mut client, &prepared, lease_ends, &mut seen, tell);
        let ticket = prepared.ticket;
        match cut {
            Ok(()) => {}
            Err(NotCut::GaveUp(error)) => {
                // The host gives up too when this conversation ends.
                let _ = client.abort(ticket);
                return Err(error.into());
            }
            Err(NotCut::Refused(error)) => return Err(error.into()),
            Err(NotCut::Lost(failure)) => {
                return Err(Failure { error: client::lost(failure), lost: true });
            }
        }
        tell(Told::Phase(AgentPhase::Settling));
        self.conclude(&mut client, ticket, seen, tell)
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
    fn existing(&self, client: &mut Client, record: Box<SnapshotRecord>) -> Result<Outcome, WireError> {
        use protocol::record::State;
        let mut record = record;
        while self.options.wait && record.state == State::Settling {
            std::thread::sleep(Duration::from_millis(200));
            let reference = record.id.to_string().parse().expect("an identifier is a valid reference");
            record = client.get(reference)?;
        }
        if record.state == State::Failed {
            return Err(WireError::new(
                ErrorCode::StorageFailed,
                format!("the snapshot {} of this request was lost by the storage", record.id),
            )
            .hint("delete it, and take a new one without this request id"));
        }
        if record.consistency < self.options.minimum {
            return Err(WireError::new(
                ErrorCode::ConsistencyNotReached,
                format!(
                    "the snapshot {} of this request is only {}-consistent: {}",
                    record.id, record.consistency, record.consistency_reason
                ),
            )
            .hint("delete it, and take a new one without this request id"));
        }
        Ok(Outcome::Snapshot(record))
    }

    /// Hooks, flush, freeze, cut, thaw, hooks again. Whatever happens in between, what was quiesced
    /// is released when this returns.
    fn quiesced_cut(
        &self,
        client: &mut Client,
        prepared: &Prepared,
        lease_ends: Instant,
        seen: &mut Seen,
        tell: &mut dyn FnMut(Told),
    ) -> Result<(), NotCut> {
        // ^C and a stop of the service wait until what was quiesced is released; every step from
        // here to there has a limit. The thaw keeper does not depend on this.
        let _patience = BlockedSignals::new();
        let began = Instant::now();
        let quiesced = self.hooks.quiesce(self.options.request);
        seen.timing.hooks_us = micros(began);
        seen.hooks = quiesced.evidence();
        let result = self.frozen_cut(client, prepared, lease_ends, &quiesced, seen, tell);
        quiesced.release();
        result
    }

    fn frozen_cut(
        &self,
        client: &mut Client,
        prepared: &Prepared,
        lease_ends: Instant,
        quiesced: &Quiesced,
        seen: &mut Seen,
        tell: &mut dyn FnMut(Told),
    ) -> Result<(), NotCut> {
        if let Some(hook) = quiesced.failed().filter(|_| self.options.minimum == Consistency::Application) {
            let error = format!(
                "the hook {} {}, so application consistency can't be reached",
                hook.name, hook.outcome
            );
            return Err(NotCut::GaveUp(
                WireError::new(ErrorCode::HookFailed, error)
                    .hint("its output is in the log; or accept --consistency filesystem"),
            ));
        }
        let began = Instant::now();
        freeze::flush::flush(&self.target.mount_points(), FLUSH_LIMIT)
            .map_err(|error| NotCut::GaveUp(WireError::new(ErrorCode::StorageFailed, chain(&error))))?;
        seen.timing.flush_us = micros(began);

        let budget = self.options.freeze_timeout.min(lease_ends.saturating_duration_since(Instant::now()));
        match self.freeze(budget, tell) {
            Ok(None) => {
                seen.freeze = Freeze::Held;
                cut(client, prepared.ticket, Instant::now() + budget, seen)
            }
            Ok(Some(frozen)) => cut_frozen(client, prepared.ticket, frozen, seen),
            Err(not_frozen) if self.options.minimum > Consistency::Crash => Err(NotCut::GaveUp(not_frozen)),
            Err(not_frozen) => {
                // The user accepts it.
                seen.freeze = Freeze::NotHeld(not_frozen.message);
                cut(client, prepared.ticket, Instant::now() + budget, seen)
            }
        }
    }

    /// Freezes everything; `None` where nothing needs it, since no file system is mounted read-write
    /// on the disks.
    fn freeze(&self, budget: Duration, tell: &mut dyn FnMut(Told)) -> Result<Option<Frozen>, WireError> {
        let targets = self.target.to_freeze();
        let Some(lock) = self.lock.filter(|_| !targets.is_empty()) else { return Ok(None) };
        let plan = Plan { targets, budget, keeper: self.around.keeper.clone() };
        let armed = freeze::arm(plan, lock).map_err(|error| {
            WireError::new(ErrorCode::NotFreezable, chain(&error)).hint("hostsnap doctor says more")
        })?;
        // What runs from here to the thaw must not be paged in from what is frozen.
        let _ = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE);
        tell(Told::Phase(AgentPhase::Frozen));
        armed.freeze().map(Some).map_err(|report| {
            let why = report.held.err().unwrap_or(NotHeld::GivenUp);
            WireError::new(ErrorCode::NotFreezable, why.to_string())
                .hint("free it, or accept --consistency crash")
        })
    }

    fn conclude(
        &self,
        client: &mut Client,
        ticket: Ticket,
        seen: Seen,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Outcome, Failure> {
        let conclude =
            Conclude { ticket, timing: seen.timing, evidence: seen.into_evidence(), wait: self.options.wait };
        client
            .conclude(conclude, &mut |progress| tell(Told::Progress(progress)))
            .map(Outcome::Snapshot)
            .map_err(may_come_back)
    }
}

/// Why there was no cut.
enum NotCut {
    /// We gave up before asking for it.
    GaveUp(WireError),
    /// The host refused or failed.
    Refused(WireError),
    /// The conversation broke: it may have been cut.
    Lost(WireFailure),
}

/// Cuts while nothing is frozen.
fn cut(client: &mut Client, ticket: Ticket, deadline: Instant, seen: &mut Seen) -> Result<(), NotCut> {
    let began = Instant::now();
    let mut frame = [0; CUT_FRAME];
    let sent = send_cut(client, ticket, deadline, &mut frame);
    let received = sent.and_then(|()| client.wire().receive_bytes(deadline + LATE_CUT_LIMIT));
    seen.timing.cut_us = micros(began);
    received.map_err(NotCut::Lost)?;
    decode_cut_done(client, ticket)
}

/// The moments in which applications wait. Nothing is allocated, logged, printed or opened before
/// the thaw; the answer is decoded after it.
fn cut_frozen(client: &mut Client, ticket: Ticket, frozen: Frozen, seen: &mut Seen) -> Result<(), NotCut> {
    let mut frame = [0; CUT_FRAME];
    let deadline = Instant::now() + frozen.remaining();
    let began = Instant::now();
    let sent = send_cut(client, ticket, deadline, &mut frame);
    let received = sent.and_then(|()| client.wire().receive_bytes(deadline));
    let in_time = received.is_ok();
    seen.timing.cut_us = micros(began);
    let report = frozen.thaw();

    record_freeze(seen, report, in_time);
    match received {
        // Only to learn what became of it: applications write again.
        Err(WireFailure::TimedOut) => {
            client.wire().receive_bytes(Instant::now() + LATE_CUT_LIMIT).map_err(NotCut::Lost)?;
        }
        other => other.map_err(NotCut::Lost)?,
    }
    decode_cut_done(client, ticket)
}

fn send_cut(
    client: &mut Client,
    ticket: Ticket,
    deadline: Instant,
    frame: &mut [u8; CUT_FRAME],
) -> Result<(), WireFailure> {
    let left = deadline.saturating_duration_since(Instant::now());
    let within_us = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
    let len = protocol::frame::encode_into(&Request::Cut(Cut { ticket, within_us }), frame)?;
    client.wire().send_bytes(&frame[..len], deadline)
}

fn decode_cut_done(client: &mut Client, ticket: Ticket) -> Result<(), NotCut> {
    match client.wire().take::<Reply>().map_err(NotCut::Lost)? {
        Reply::CutDone(CutDone { ticket: cut, .. }) if cut == ticket => Ok(()),
        Reply::Error(error) => Err(NotCut::Refused(error)),
        _ => Err(NotCut::Lost(WireFailure::Malformed("another answer than CutDone".to_owned()))),
    }
}

fn record_freeze(seen: &mut Seen, report: Report, answered_in_time: bool) {
    seen.timing.freeze_us = report.freeze_us;
    seen.timing.thaw_us = report.thaw_us;
    seen.timing.stall_us = report.stall_us;
    seen.freeze = match &report.held {
        Ok(()) if answered_in_time => Freeze::Held,
        Ok(()) => evidence::not_held("the host did not answer before the deadline of the freeze"),
        Err(why) => evidence::not_held(&why.to_string()),
    };
    seen.file_systems = report.file_systems;
}

/// A failure after which the host may be asked again, since it was not the host's word.
fn may_come_back(error: WireError) -> Failure {
    let lost = match error.code {
        // Connecting at all is tried once: nobody listening is an answer.
        ErrorCode::Unreachable => error.message.as_str().contains("broke off"),
        ErrorCode::Unavailable => true,
        _ => false,
    };
    Failure { error, lost }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// SIGINT, SIGTERM and SIGHUP wait as long as this lives.
struct BlockedSignals(Option<nix::sys::signal::SigSet>);

impl BlockedSignals {
    fn new() -> Self {
        use nix::sys::signal::{SigSet, SigmaskHow, Signal};
        let mut set = SigSet::empty();
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| set.add(signal));
        Self(set.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok())
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = before.thread_set_mask();
        }
    }
}
