//! A snapshot under way: ready to be cut, then cut.
//!
//! `Operation::cut` does nothing but cut; `CutOperation::conclude` decides what may be claimed and
//! hands over to `settle`. A connection that is lost before the cut abandons; one that is lost after
//! it concludes without evidence.

use std::sync::Arc;
use std::time::Duration;

use protocol::evidence::{CutEvidence, judge};
use protocol::message::{CutDone, Prepared};
use protocol::record::{Timing, UnixMillis};
use protocol::text::{Handle, Line, Name};
use protocol::{Consistency, ErrorCode, Evidence, SnapshotRecord, Ticket, WireError};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::in_flight::Claim;
use super::moves::{Look, has_moved};
use super::settle::{self, Settling};
use super::{Service, errors};
use crate::drivers::{CutSet, DriverError, Ready, SetCut, VolumeSnapshot};
use crate::vmm::monitor::Monitor;
use crate::world::Store;

/// How much longer than its allowance a cut is waited for: its guest has thawed by then, but what
/// was cut must be known.
const CUT_GRACE: Duration = Duration::from_secs(30);
/// How long an undo may take.
const ABANDON_LIMIT: Duration = Duration::from_secs(60);

/// A snapshot that is ready to be cut.
pub struct Operation {
    pub(super) common: Common,
    pub(super) ticket: Ticket,
    pub(super) lease_ends: Instant,
    pub(super) parts: Vec<Part<Box<dyn Ready>>>,
    /// Who says, after the cut, whether its machine is still here.
    pub(super) monitor: Option<Monitor>,
}

/// A snapshot that was cut.
pub struct CutOperation {
    common: Common,
    ticket: Ticket,
    cut: CutEvidence,
    cut_ended: Instant,
    parts: Vec<Part<Box<dyn CutSet>>>,
    /// Whether its machine was still here after it.
    look: Option<Look>,
    /// Why its disks are of one instant although their storage does not make them so.
    stood_still: Option<String>,
}

/// What one snapshot carries from its first step to its last.
pub(super) struct Common {
    pub(super) service: Arc<Service>,
    pub(super) draft: SnapshotRecord,
    /// How many stores hold a part of it.
    pub(super) stores: usize,
    pub(super) claim: Arc<Claim>,
    pub(super) _admitted: Option<OwnedSemaphorePermit>,
}

/// The disks of a snapshot that one store keeps.
pub(super) struct Part<S> {
    pub(super) store: Arc<Store>,
    pub(super) stage: S,
}

impl Common {
    /// Puts what the storage calls each disk's snapshot into the draft.
    pub(super) fn name_disks<'a>(&mut self, parts: impl Iterator<Item = (&'a Store, &'a [VolumeSnapshot])>) {
        name_disks(&mut self.draft, parts);
    }

    /// Undoes every part; `true` if nothing is left.
    pub(super) async fn abandon<S: Send + 'static>(
        &self,
        parts: Vec<Part<S>>,
        undo: impl Fn(S) -> Result<(), DriverError> + Copy + Send + 'static,
    ) -> bool {
        let mut clean = true;
        for part in parts {
            let workers = &self.service.workers;
            let undo = move || undo(part.stage);
            let undone = workers.claimed(&self.claim, "undo a snapshot", ABANDON_LIMIT, undo, drop).await;
            clean &= log_undo(undone);
        }
        clean
    }

    /// Nothing came of it and nothing is left on the storage.
    pub(super) async fn forget(&self) {
        let id = self.draft.id;
        // What can't be forgotten now is found by reconcile; the failure is in the log.
        let _ = self.service.catalog(move |catalog| catalog.drop_intent(id)).await;
    }
}

/// Puts what the storage calls each disk's snapshot into a record. Disks of other parts stay as they
/// are: after a kill between two seals only one of them comes by here.
pub(super) fn name_disks<'a>(
    record: &mut SnapshotRecord,
    parts: impl Iterator<Item = (&'a Store, &'a [VolumeSnapshot])>,
) {
    let mut disks = std::mem::take(&mut record.disks).into_inner();
    for (store, volumes) in parts {
        for volume in volumes {
            for disk in disks.iter_mut().filter(|disk| disk.serial == volume.serial) {
                disk.driver = driver_name(store);
                disk.handle = Handle::try_from(volume.handle.clone())
                    .unwrap_or_else(|_| "unprintable".parse().expect("a valid handle"));
                disk.size_bytes = volume.size_bytes;
            }
        }
    }
    record.disks = disks.try_into().expect("as many as before");
}

/// A set that nobody froze is of one instant only where one storage cuts it so. Elsewhere each disk is as after a power cut, and
/// all of them together are not.
pub(super) fn tell_if_cut_apart<'a>(
    record: &mut SnapshotRecord,
    mut stores: impl Iterator<Item = &'a Store>,
) {
    let of_one_instant = is_of_one_instant(&mut stores);
    if record.consistency == Consistency::Crash && record.disks.len() > 1 && !of_one_instant {
        record.consistency_reason = Line::lossy(&format!(
            "{}; each disk is as after a power cut of its own: they were not cut at one instant",
            record.consistency_reason
        ));
    }
}

/// Whether one storage has it all, and cuts it at one instant.
fn is_of_one_instant<'a>(stores: &mut impl Iterator<Item = &'a Store>) -> bool {
    match (stores.next(), stores.next()) {
        (Some(only), None) => only.driver.set_cut() == SetCut::OneInstant,
        _ => false,
    }
}

/// A driver's name, as records have it.
pub(super) fn driver_name(store: &Store) -> Name {
    store.driver.name().parse().expect("a driver's name is a valid name")
}

/// Logs an undo that failed; whether it did not.
pub(super) fn log_undo(undone: Result<(), DriverError>) -> bool {
    match undone {
        Ok(()) => true,
        Err(error) => {
            tracing::error!("undo a snapshot: {}; reconcile will try again", errors::chain(&error));
            false
        }
    }
}

impl Operation {
    /// What the guest must show to go on.
    pub fn prepared(&self) -> Prepared {
        Prepared {
            ticket: self.ticket,
            id: self.common.draft.id,
            lease_ms: u32::try_from(self.lease_left().as_millis()).unwrap_or(u32::MAX),
        }
    }

    /// For how long the cut may still be asked for.
    pub fn lease_left(&self) -> Duration {
        self.lease_ends.saturating_duration_since(Instant::now())
    }

    /// Whether this is its ticket.
    pub fn has_ticket(&self, ticket: Ticket) -> bool {
        self.ticket == ticket
    }

    /// Whether it has several disks that nothing but a machine that stands still makes of one instant.
    pub(super) fn is_cut_apart(&self) -> bool {
        let mut stores = self.parts.iter().map(|part| part.store.as_ref());
        self.common.draft.disks.len() > 1 && !is_of_one_instant(&mut stores)
    }

    /// The guest gave up, or was never heard of again.
    pub async fn abandon(self) {
        if self.common.abandon(self.parts, |ready| ready.abandon()).await {
            self.common.forget().await;
        }
    }

    /// The atomic point. `within` is what is left of the guest's freeze.
    pub async fn cut(self, within: Duration) -> Result<CutOperation, WireError> {
        if self.lease_left().is_zero() {
            let lease = WireError::new(
                ErrorCode::LeaseExpired,
                "the lease of this request ended before the cut was asked for; nothing was cut",
            );
            self.abandon().await;
            return Err(
                lease.hint("hooks and flushing took too long: raise --freeze-timeout or speed them up")
            );
        }
        let began = Instant::now();
        let Self { mut common, ticket, parts, monitor, .. } = self;
        let cuts = cut_all(&common, parts, began + within, within + CUT_GRACE).await;
        let ended = Instant::now();
        let took_us = micros(ended - began);
        let mut done = Vec::new();
        let mut failures = Vec::new();
        for cut in cuts {
            match cut {
                Ok(part) => done.push(part),
                Err(error) => failures.push(error),
            }
        }
        // A call that is still out may yet cut: only reconcile can tell when it is over.
        let nothing_left = failures.iter().all(DriverError::left_nothing);
        if let Some(error) = failures.pop() {
            let undone = common.abandon(done, |cut: Box<dyn CutSet>| cut.abandon()).await;
            if undone && nothing_left {
                common.forget().await;
            }
            return Err(errors::of_driver(common.draft.vm.as_str(), "cut the disks", &error));
        }
        date(&mut common.draft, common.service.now());
        let allowed_us = micros(within);
        let cut = if took_us <= allowed_us {
            CutEvidence::InTime { took_us }
        } else {
            CutEvidence::Late { took_us, allowed_us }
        };
        // A monitor that cut is busy with that. The guest thaws meanwhile.
        let asked = monitor.filter(|_| !done.iter().any(|part| part.store.driver.is_cut_by_machine()));
        let look = asked.map(|monitor| common.service.look_whether_here(monitor));
        Ok(CutOperation { common, ticket, cut, cut_ended: ended, parts: done, look, stood_still: None })
    }
}

/// A snapshot is of the moment of its cut, and is to be kept from then on.
fn date(record: &mut SnapshotRecord, cut_at: UnixMillis) {
    let asked_at = std::mem::replace(&mut record.created_at, cut_at);
    record.expires_at =
        record.expires_at.map(|end| UnixMillis(cut_at.0.saturating_add(end.0.saturating_sub(asked_at.0))));
}

type CutPart = Result<Part<Box<dyn CutSet>>, DriverError>;

/// Cuts the parts of all stores side by side.
async fn cut_all(
    common: &Common,
    mut parts: Vec<Part<Box<dyn Ready>>>,
    deadline: Instant,
    limit: Duration,
) -> Vec<CutPart> {
    let cut = |Part { store, stage }| {
        let (workers, claim) = (common.service.workers.clone(), Arc::clone(&common.claim));
        async move {
            let cut = workers.claimed(
                &claim,
                "cut the disks",
                limit,
                move || Ready::cut(stage, deadline.into_std()),
                |cut: Box<dyn CutSet>| {
                    log_undo(cut.abandon());
                },
            );
            cut.await.map(|stage| Part { store, stage })
        }
    };
    // A task of its own for the only part would be woken, and wake us, while a guest is frozen.
    if parts.len() == 1 {
        let only = parts.pop().expect("there is one");
        return vec![cut(only).await];
    }
    let mut cuts = JoinSet::new();
    for part in parts {
        cuts.spawn(cut(part));
    }
    cuts.join_all().await
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl CutOperation {
    /// Its machine stood still from before the cut until after it, for this reason; or it did not.
    #[must_use]
    pub(super) fn stood_still(mut self, why: Option<String>) -> Self {
        self.stood_still = why;
        self
    }

    /// Whether this is its ticket.
    pub fn has_ticket(&self, ticket: Ticket) -> bool {
        self.ticket == ticket
    }

    /// What the guest reads while it is frozen.
    pub fn done(&self) -> CutDone {
        let took_us = match self.cut {
            CutEvidence::InTime { took_us } | CutEvidence::Late { took_us, .. } => took_us,
            CutEvidence::Unknown => 0,
        };
        CutDone { ticket: self.ticket, took_us }
    }

    /// Decides what may be claimed and lets the storage settle. `evidence` is `None` where the
    /// guest was not heard of again.
    pub async fn conclude(self, evidence: Option<(Evidence, Timing)>) -> Result<Settling, WireError> {
        let Self { mut common, cut, cut_ended, parts, look, stood_still, .. } = self;
        let is_here = match look {
            Some(look) => look.was_here().await,
            None => true,
        };
        if !is_here {
            let error = has_moved(common.draft.vm.as_str());
            if common.abandon(parts, |cut| cut.abandon()).await {
                common.forget().await;
            }
            return Err(error);
        }
        let record = &mut common.draft;
        match evidence {
            Some((evidence, timing)) => {
                let verdict = judge(&evidence, cut);
                record.consistency = verdict.consistency;
                record.consistency_reason = verdict.reason;
                record.timing = timing;
                record.evidence = Some(evidence);
                record.cut = cut;
            }
            None => {
                record.consistency = Consistency::Crash;
                record.consistency_reason =
                    Line::lossy("the guest's agent was not heard of again after the cut");
                record.cut = CutEvidence::Unknown;
            }
        }
        match stood_still {
            Some(why) => {
                record.consistency_reason = Line::lossy(&format!("{}; {why}", record.consistency_reason))
            }
            None => tell_if_cut_apart(record, parts.iter().map(|part| part.store.as_ref())),
        }
        if record.consistency < record.minimum {
            let error = below_minimum(record);
            if common.abandon(parts, |cut| cut.abandon()).await {
                common.forget().await;
            }
            return Err(error);
        }
        if let Err(error) = settle::commit(&common).await {
            // Whoever asked is told that there is none, so there must be none.
            if common.abandon(parts, |cut| cut.abandon()).await {
                common.forget().await;
            }
            let not_kept = format!("the snapshot was cut and not kept: {}", error.message);
            return Err(WireError::new(error.code, not_kept).hint(error.hint.as_str()));
        }
        Ok(settle::start(common, parts, cut_ended))
    }
}

fn below_minimum(record: &SnapshotRecord) -> WireError {
    WireError::new(
        ErrorCode::ConsistencyNotReached,
        format!(
            "only {} consistency was reached where at least {} was asked for, and the snapshot was not kept: {}",
            record.consistency, record.minimum, record.consistency_reason
        ),
    )
    .hint(format!("try again, or accept less: --consistency {}", record.consistency))
}
