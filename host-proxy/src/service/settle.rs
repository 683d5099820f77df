//! From cut to durable and whole. It goes on in the background whoever listens: a guest that hangs
//! up does not lose its snapshot.

use std::sync::Arc;

use protocol::message::Progress;
use protocol::record::State;
use protocol::{ErrorCode, SnapshotRecord, WireError};
use tokio::sync::watch;
use tokio::time::Instant;

use super::errors;
use super::manifest::Manifest;
use super::operation::{Common, Part};
use crate::catalog::Phase;
use crate::drivers::{self, Continue, CutSet, DriverError, Kind};

/// How far it is.
#[derive(Debug, Clone)]
pub enum SettleState {
    /// On its way.
    Running(Progress),
    /// Durable and whole.
    Ready(Box<SnapshotRecord>),
    /// The storage lost it.
    Failed(WireError),
}

/// A snapshot that is settling.
pub struct Settling {
    record: Box<SnapshotRecord>,
    state: watch::Receiver<SettleState>,
}

impl Settling {
    /// The snapshot as it is known now.
    pub fn into_record(self) -> Box<SnapshotRecord> {
        self.record
    }

    /// Waits for the next change. `None` when nobody works on it any more.
    pub async fn next(&mut self) -> Option<SettleState> {
        self.state.changed().await.ok()?;
        Some(self.state.borrow_and_update().clone())
    }

    /// Waits for the end.
    pub async fn finish(mut self) -> Result<Box<SnapshotRecord>, WireError> {
        loop {
            match self.next().await {
                Some(SettleState::Running(_)) => {}
                Some(SettleState::Ready(record)) => return Ok(record),
                Some(SettleState::Failed(error)) => return Err(error),
                None => return Err(WireError::new(ErrorCode::Internal, "settling the snapshot stopped")),
            }
        }
    }
}

/// Commits what is known. Only then may anybody be told that the snapshot is settling.
pub(super) async fn commit(common: &Common) -> Result<(), WireError> {
    let record = common.draft.clone();
    common.service.catalog(move |catalog| catalog.record(&record, Phase::Settling)).await
}

/// Lets the storage settle in the background what was committed.
pub(super) fn start(common: Common, parts: Vec<Part<Box<dyn CutSet>>>, cut_ended: Instant) -> Settling {
    let record = Box::new(common.draft.clone());
    let (updates, state) = watch::channel(SettleState::Running(Progress { done_bytes: 0, total_bytes: 0 }));
    tokio::spawn(run(common, parts, cut_ended, updates));
    Settling { record, state }
}

async fn run(
    mut common: Common,
    parts: Vec<Part<Box<dyn CutSet>>>,
    cut_ended: Instant,
    updates: watch::Sender<SettleState>,
) {
    // Others may be admitted now: from here on it is the storage's own pace.
    common._admitted = None;
    let updates = Arc::new(updates);
    let progress = Arc::clone(&updates);
    let mut record = common.draft.clone();
    let stores = common.stores;
    let workers = common.service.workers.clone();
    let settled = workers
        .unbounded(move || {
            let result = settle_parts(parts, &mut record, stores, cut_ended, &progress);
            (record, result)
        })
        .await;
    let state = match settled {
        Some((record, Ok(()))) => {
            common.draft = record;
            finish(&common, Phase::Ready).await
        }
        Some((record, Err(error))) => {
            common.draft = record;
            let told = errors::of_driver(common.draft.vm.as_str(), "make the snapshot durable", &error.cause);
            // What is cut but not sealed is picked up by `tend` and `reconcile`, as after a crash.
            if !error.can_be_recovered {
                common.draft.state = State::Failed;
                finish(&common, Phase::Failed).await;
            }
            SettleState::Failed(told)
        }
        None => SettleState::Failed(WireError::new(ErrorCode::Internal, "the storage driver panicked")),
    };
    drop(common);
    updates.send_replace(state);
}

/// Settles and seals every part. The longest part is its store's copying; sealing is quick.
fn settle_parts(
    mut parts: Vec<Part<Box<dyn CutSet>>>,
    record: &mut SnapshotRecord,
    stores: usize,
    cut_ended: Instant,
    updates: &watch::Sender<SettleState>,
) -> Result<(), Unsettled> {
    let totals: Vec<u64> =
        parts.iter().map(|part| part.stage.volumes().iter().map(|volume| volume.size_bytes).sum()).collect();
    let total_bytes: u64 = totals.iter().sum();
    let mut before = 0;
    for index in 0..parts.len() {
        let mut tell = |progress: drivers::Progress| {
            // A driver's own total may be smaller than the volumes' (it skips holes): scale.
            let part = drivers::Progress::share(totals[index], progress.done_bytes, progress.total_bytes);
            updates.send_replace(SettleState::Running(Progress { done_bytes: before + part, total_bytes }));
            Continue::Yes
        };
        if let Err(error) = parts[index].stage.settle(&mut tell) {
            return Err(abandon_all(parts, error));
        }
        before += totals[index];
    }
    record.state = State::Ready;
    record.timing.settle_us = u64::try_from(cut_ended.elapsed().as_micros()).unwrap_or(u64::MAX);
    let manifest = Manifest::new(record.clone(), stores).text();
    while let Some(part) = parts.pop() {
        // The contents are safe; only their final name is missing.
        part.stage.seal(&manifest).map_err(|cause| Unsettled { cause, can_be_recovered: true })?;
    }
    Ok(())
}

/// Why a snapshot is not whole.
struct Unsettled {
    cause: DriverError,
    /// Whether what was cut, or some of it, is still there.
    can_be_recovered: bool,
}

fn abandon_all(parts: Vec<Part<Box<dyn CutSet>>>, error: DriverError) -> Unsettled {
    if error.kind == Kind::Cancelled {
        return Unsettled { cause: error, can_be_recovered: true };
    }
    let cause = parts.into_iter().fold(error, |error, part| {
        let undone = part.stage.abandon();
        if error.undo_failed.is_some() { error } else { error.after_undo(undone) }
    });
    // What could not be undone is still on the storage: it must not be given up.
    let can_be_recovered = cause.undo_failed.is_some();
    Unsettled { cause, can_be_recovered }
}

async fn finish(common: &Common, phase: Phase) -> SettleState {
    let record = common.draft.clone();
    match common.service.catalog(move |catalog| catalog.record(&record, phase)).await {
        Ok(()) => SettleState::Ready(Box::new(common.draft.clone())),
        // The storage has it, with its manifest: `tend` and `reconcile` bring the catalog up to date.
        Err(error) => SettleState::Failed(
            WireError::new(
                error.code,
                format!("the snapshot {} is whole on the storage, but {}", common.draft.id, error.message),
            )
            .hint(format!("it is ready as soon as the host can write that down; {}", error.hint)),
        ),
    }
}
