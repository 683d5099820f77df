//! The images of one snapshot: open and warm, then cut.
//!
//! They are cut side by side, by name, and not as a group of Ceph's: docs/decisions/0012-rbd.md.

use std::ffi::CString;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::entry::{Entry, State, key};
use super::ffi::cluster::Pool;
use super::ffi::image::Image;
use super::{ffi, meta, remove};
use crate::drivers::common::manifest_text;
use crate::drivers::{Continue, CutSet, DriverError, Kind, Owner, Progress, Ready, VolumeSnapshot};

/// One image of the set.
pub(super) struct Member {
    pub(super) image: Image,
    pub(super) entry: Entry,
}

/// All of them, in the order of the plan.
pub(super) struct Set {
    pool: Arc<Pool>,
    owner: Owner,
    name: CString,
    members: Vec<Member>,
    volumes: Vec<VolumeSnapshot>,
}

impl Set {
    pub(super) fn new(pool: Arc<Pool>, owner: Owner, members: Vec<Member>) -> Result<Self, DriverError> {
        let volumes = members.iter().map(|member| member.entry.volume()).collect();
        Ok(Self { pool, owner, name: ffi::text(&key(owner.snapshot))?, members, volumes })
    }

    /// Removes all of it. The images are closed first, so that whatever we hold of them is given back.
    fn remove(self) -> Result<(), DriverError> {
        let entries: Vec<Entry> = self.members.into_iter().map(|member| member.entry).collect();
        remove::all(&self.pool, self.owner, &entries)
    }

    /// The first failure, after all have come back.
    fn cut_all(&self) -> Result<(), DriverError> {
        let cut = |member: &Member| member.image.snapshot(&self.name);
        let Some((first, others)) = self.members.split_first() else { return Ok(()) };
        thread::scope(|scope| {
            let others: Vec<_> = others.iter().map(|member| scope.spawn(move || cut(member))).collect();
            let mut outcome = cut(first);
            for other in others {
                let theirs = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                outcome = outcome.and(theirs);
            }
            outcome
        })
    }
}

impl Ready for Set {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.volumes
    }

    fn cut(self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        if Instant::now() >= deadline {
            let error = DriverError::new(Kind::DeadlinePassed, "snapshot the images");
            return Err(error.after_undo(self.remove()));
        }
        match self.cut_all() {
            Ok(()) => Ok(self),
            // Undoing would wait for the same cluster, or for the same lock, and what was asked for may still
            // be done: only `recover` can tell, later.
            Err(error) if matches!(error.kind, Kind::Unreachable | Kind::Busy) => {
                let left = DriverError::new(error.kind, "left to reconcile");
                Err(error.after_undo(Err(left)))
            }
            Err(error) => Err(error.after_undo(self.remove())),
        }
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.remove()
    }
}

impl CutSet for Set {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.volumes
    }

    /// A snapshot is on all replicas when the cut comes back: there is nothing to wait for.
    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        let total_bytes = self.volumes.iter().map(|volume| volume.size_bytes).sum();
        match progress(Progress { done_bytes: total_bytes, total_bytes }) {
            Continue::Yes => Ok(()),
            Continue::No => Err(DriverError::new(Kind::Cancelled, "settle the snapshot")),
        }
    }

    fn seal(mut self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        let manifest = manifest_text(manifest)?;
        let key = key(self.owner.snapshot);
        for Member { image, entry } in &mut self.members {
            let cut = image.snapshots()?.into_iter().find(|snapshot| snapshot.name == key);
            let gone = || {
                let what = format!("finish {}: somebody removed that snapshot", entry.handle);
                DriverError::new(Kind::NotFound, what)
            };
            entry.snapshot = Some(cut.ok_or_else(gone)?.id);
            entry.state = State::Whole;
            entry.manifest.clone_from(&manifest);
        }
        // The first one last: it decides.
        for Member { entry, .. } in self.members.iter().rev() {
            meta::set(&self.pool, &entry.image, &key, &entry.text())?;
        }
        Ok(())
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.remove()
    }
}
