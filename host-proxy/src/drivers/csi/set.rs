//! The volumes of one snapshot: asked for, then waited for until the storage has all of them.

use std::fs::File;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tonic::Code;

use super::ask::{Answers, Question};
use super::entry::{Cut, Entry};
use super::{Store, remove};
use crate::drivers::{Continue, CutSet, DriverError, Kind, Owner, Progress, Ready, VolumeSnapshot};

/// The first pause before asking again whether it is ready; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How often whoever waits is asked whether to go on.
const SLICE: Duration = Duration::from_millis(250);
/// How often in a row a plugin may fail before it is believed: many answer INTERNAL to all that they don't know.
const FAILURES: u32 = 10;

/// What both stages have.
struct Set {
    store: Arc<Store>,
    owner: Owner,
    question: Question,
    /// Where the plugin's names are noted.
    note: File,
    volumes: Vec<VolumeSnapshot>,
}

/// Everything is ready to ask.
pub(super) struct Prepared(Set);

/// Cut.
pub(super) struct Taken {
    set: Set,
    cut: Cut,
    ready: Vec<bool>,
}

impl Set {
    fn new(store: &Arc<Store>, owner: Owner, entry: &Entry, note: File) -> Result<Self, DriverError> {
        let question = Question::new(owner, entry, &store.place, &store.secrets()?);
        Ok(Self { store: Arc::clone(store), owner, question, note, volumes: entry.snapshots(owner) })
    }
}

impl Prepared {
    pub(super) fn new(
        store: &Arc<Store>,
        owner: Owner,
        entry: &Entry,
        note: File,
    ) -> Result<Self, DriverError> {
        Set::new(store, owner, entry, note).map(Self)
    }
}

impl Ready for Prepared {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.0.volumes
    }

    fn cut(self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        let set = self.0;
        if Instant::now() >= deadline {
            let error = DriverError::new(Kind::DeadlinePassed, "snapshot the volumes");
            return Err(error.after_undo(remove::unasked(&set.store, set.owner)));
        }
        let answers = set.question.ask(&set.store.client, deadline);
        let cut = answers.made();
        let Some(refusal) = answers.refusal() else {
            // What can't be noted now is kept in memory and noted by `settle`.
            let _ = cut.note(&set.note);
            return Ok(Box::new(Taken { ready: answers.ready(), set, cut }));
        };
        let is_open = refusal.is_open();
        let error = refusal.clone().into_error("snapshot the volumes");
        if is_open {
            // What was asked for may still be done. Undoing would ask the same plugin and wait as long: only `recover` can
            // tell, later.
            let left = DriverError::new(error.kind, "left to reconcile");
            return Err(error.after_undo(Err(left)));
        }
        let undone = remove::these(&set.store, set.owner, &cut);
        Err(error.after_undo(undone))
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        remove::unasked(&self.0.store, self.0.owner)
    }
}

impl Taken {
    /// What a killed service left, and what the plugin calls it.
    pub(super) fn again(
        store: &Arc<Store>,
        owner: Owner,
        entry: &Entry,
        note: File,
        cut: Cut,
    ) -> Result<Self, DriverError> {
        let ready = vec![false; entry.volumes.len()];
        Ok(Self { set: Set::new(store, owner, entry, note)?, cut, ready })
    }

    /// Makes it durable what the plugin calls the snapshots: only by these names can they be deleted.
    fn keep(&self) -> Result<(), DriverError> {
        self.cut.keep(&self.set.note).map_err(|error| {
            DriverError::io(format!("write down the identifiers of {}", self.set.owner.snapshot), error)
        })
    }

    fn progress(&self) -> Progress {
        let sizes = || self.set.volumes.iter().map(|volume| volume.size_bytes);
        let done = sizes().zip(&self.ready).filter(|(_, is_ready)| **is_ready).map(|(size, _)| size);
        Progress { done_bytes: done.sum(), total_bytes: sizes().sum() }
    }

    /// Takes over who is ready, if these are still the snapshots that were cut.
    fn hear(&mut self, answers: &Answers) -> Result<(), DriverError> {
        let now = answers.made();
        let is_same = self.cut.group == now.group
            && self.cut.snapshots.iter().zip(&now.snapshots).all(|(cut, now)| cut.is(now));
        if is_same {
            // What was ready stays so, also where a plugin forgets.
            for (was, is) in self.ready.iter_mut().zip(answers.ready()) {
                *was |= is;
            }
            return Ok(());
        }
        // A later one, made by our asking: nobody else knows of it.
        let new = Cut {
            group: now.group,
            snapshots: now.snapshots.into_iter().filter(|one| !self.cut.has(one)).collect(),
        };
        let what =
            format!("finish {}: somebody removed its snapshots from the storage", self.set.owner.snapshot);
        let undone = remove::on_plugin(&self.set.store, &new);
        Err(DriverError::new(Kind::NotFound, what).after_undo(undone))
    }
}

impl CutSet for Taken {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.set.volumes
    }

    /// Has no limit of its own: a plugin that copies to another place may take a day, and one that is restarted comes back.
    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        let doing = "wait until the storage has the snapshots";
        self.keep()?;
        let mut pause = FIRST_PAUSE;
        let mut failures = 0;
        loop {
            if progress(self.progress()) == Continue::No {
                return Err(DriverError::new(Kind::Cancelled, doing));
            }
            if self.ready.iter().all(|is_ready| *is_ready) {
                return Ok(());
            }
            let answers = self.set.question.ask(&self.set.store.client, Instant::now());
            match answers.refusal() {
                None => {
                    failures = 0;
                    self.hear(&answers)?;
                    if self.ready.iter().all(|is_ready| *is_ready) {
                        continue;
                    }
                }
                Some(refusal) if refusal.is_open() => {}
                Some(refusal) => {
                    failures += 1;
                    if failures >= FAILURES || !matches!(refusal.code, Code::Internal | Code::Unknown) {
                        return Err(refusal.clone().into_error(doing));
                    }
                }
            }
            let until = Instant::now() + pause;
            while Instant::now() < until {
                thread::sleep(SLICE.min(until.saturating_duration_since(Instant::now())));
                if progress(self.progress()) == Continue::No {
                    return Err(DriverError::new(Kind::Cancelled, doing));
                }
            }
            pause = LAST_PAUSE.min(pause * 2);
        }
    }

    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        self.set.store.folder.seal(self.set.owner, manifest)
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        remove::these(&self.set.store, self.set.owner, &self.cut)
    }
}
