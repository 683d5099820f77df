//! The way of a snapshot, from the guest's side: resolve, ask, quiesce, freeze, cut, thaw, conclude.
//!
//! Ask first, freeze last: what is refused never freezes anything. From the freeze to the thaw
//! nothing is allocated, logged, printed or opened; the host's answer is decoded after the thaw.
//!
//! | module | idea |
//! |---|---|
//! | `attempt` | one attempt: the conversation, step by step |
//! | `quiet` | what is done to this machine meanwhile, and undone |
//! | `cut` | the moments in which applications wait |
//! | `stop` | ^C and the stop of the service meanwhile |
//! | `target` | what is to be taken: disks with their fingerprints, file systems in freeze order |
//! | `evidence` | what was seen, in the protocol's terms |
//! | `minimum` | the least that is acceptable, and what is kept anyway |

mod attempt;
mod cut;
mod evidence;
mod minimum;
mod quiet;
mod stop;
mod target;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use protocol::agent::AgentPhase;
use protocol::message::{Planned, Progress};
use protocol::text::{Labels, Note};
use protocol::{Consistency, ErrorCode, RequestId, SnapshotRecord, WireError};

use crate::client::{HostAddress, Limits};
use crate::freeze;
use crate::hooks::Hooks;
use crate::rehearsal::{self, Step};
use attempt::{Attempt, Failure};
pub use minimum::{Otherwise, reached};
pub(crate) use stop::Patience;
pub use target::Target;
pub(crate) use target::read_fingerprint;

/// How long another snapshot of this machine is waited for.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
/// The first pause before it is repeated; each is twice the one before, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A host that is lost again and again at the cut must not freeze this machine each time.
const MOST_FREEZES: usize = 3;

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
    /// What becomes of a snapshot that is worth less.
    pub otherwise: Otherwise,
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
    /// How long it may take for what.
    pub limits: Limits,
    /// The hooks' folder.
    pub hooks: PathBuf,
    /// How long one hook may take.
    pub hook_limit: Duration,
    /// The folder of the freeze lock.
    pub run: PathBuf,
    /// How long another snapshot of this machine is waited for, before anything is asked.
    pub lock_limit: Duration,
    /// This program, to run as the thaw keeper.
    pub keeper: PathBuf,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            host: HostAddress::default(),
            limits: Limits::default(),
            hooks: crate::hooks::FOLDER.into(),
            hook_limit: crate::hooks::LIMIT,
            run: freeze::DEFAULT_FOLDER.into(),
            lock_limit: LOCK_LIMIT,
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

/// Takes a snapshot.
pub fn create(
    options: &Options,
    around: &Surroundings,
    tell: &mut dyn FnMut(Told),
) -> Result<Outcome, WireError> {
    tell(Told::Phase(AgentPhase::Preparing));
    let outcome = target::resolve(&options.paths, &around.host, around.limits)
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
    rehearsal::after(Step::Resolved);
    let mut hooks = Hooks::find(&around.hooks, around.hook_limit)?;
    if options.accepted() == Consistency::Application {
        if hooks.is_empty() {
            return Err(WireError::new(
                ErrorCode::BadRequest,
                format!(
                    "application consistency needs hooks, and there is none in {}",
                    around.hooks.display()
                ),
            )
            .hint("add one that quiesces the application, or accept --consistency filesystem"));
        }
        hooks = hooks.all_required();
    }
    let attempt = Attempt { options, target, around, hooks: &hooks };
    let mut freezes = 0;
    // When the host was lost first, and how.
    let mut lost: Option<(Instant, WireError)> = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let failed = attempt.run(&mut |told| {
            freezes += usize::from(told == Told::Phase(AgentPhase::Frozen));
            tell(told);
        });
        match failed {
            Ok(outcome) => return Ok(outcome),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::NotNow(error)) if lost.is_none() => return Err(error),
            Err(Failure::NotNow(_)) => {}
            Err(Failure::Lost(error)) => {
                lost.get_or_insert((Instant::now(), error));
            }
        }
        if let Some((since, error)) = &lost
            && (since.elapsed() >= around.limits.lost || freezes >= MOST_FREEZES)
        {
            let again = format!("repeat it with --request-id {} to learn what became of it", options.request);
            return Err(error.clone().hint(again));
        }
        tell(Told::Retrying);
        tell(Told::Phase(AgentPhase::Preparing));
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
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
