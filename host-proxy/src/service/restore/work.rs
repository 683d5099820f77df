//! The bytes of a restore: its intent, the overwriting, and what a stop of the service left of it.

use std::sync::Arc;

use protocol::message::Progress;
use protocol::{DiskSerial, ErrorCode, SnapshotId, SnapshotRecord, VmUuid, WireError};
use tokio::sync::watch;

use super::super::in_flight::Claim;
use super::super::reconcile::Report;
use super::super::{Service, errors};
use super::RestoreStep;
use super::noted::Stage;
use super::target::Target;
use crate::catalog::Restoring as Row;
use crate::drivers::{self, DriverError, Kind, Owner};
use crate::world::Store;

/// The stores of these disks, each once.
fn stores_of(targets: &[Target]) -> Vec<Arc<Store>> {
    let mut stores: Vec<Arc<Store>> = Vec::new();
    for Target { store, .. } in targets {
        if !stores.iter().any(|one| one.config.name == store.config.name) {
            stores.push(Arc::clone(store));
        }
    }
    stores
}

/// A restore that came to no end.
pub(super) struct Stopped {
    /// Why.
    told: WireError,
    /// Whether all is as it was before this attempt.
    nothing_was_done: bool,
}

impl Stopped {
    /// What whoever asked is told of one that has changed something.
    pub(super) fn in_the_middle(self) -> WireError {
        WireError::new(
            ErrorCode::RestoreUnfinished,
            format!("the disks may hold neither the old bytes nor the new: {}", self.told.message),
        )
        .hint("use them for nothing until hostsnapd reconcile, on the host, has finished it")
    }
}

impl Service {
    /// The first attempt. One that was refused before anything was done is forgotten.
    pub(super) async fn begin_to_overwrite(
        &self,
        row: &Row,
        record: &SnapshotRecord,
        targets: Vec<Target>,
        claim: &Arc<Claim>,
        tell: &Arc<watch::Sender<RestoreStep>>,
    ) -> Result<(), WireError> {
        let stores = stores_of(&targets);
        match self.overwrite(row, record, targets, claim, tell).await {
            Err(Stopped { told, nothing_was_done: true }) => {
                // What stays noted would be done once more: it is not forgotten either.
                if self.write_note(row, record, &stores, Stage::Never).await.is_err() {
                    return Err(Stopped { told, nothing_was_done: false }.in_the_middle());
                }
                let row = row.clone();
                self.catalog(move |catalog| catalog.forget_restore(&row)).await?;
                Err(told)
            }
            overwritten => overwritten.map_err(Stopped::in_the_middle),
        }
    }

    /// Commits the intent, if nothing else is under way on its disks.
    pub(super) async fn commit(&self, row: &Row) -> Result<(), WireError> {
        let _beginning = self.beginning.lock().await;
        self.refuse_if_restoring(row.vm, &row.disks).await?;
        // A storage that still copies what was cut would copy what is restored.
        let unfinished = self.catalog(|catalog| catalog.unfinished()).await?;
        let of_the_disks = unfinished.iter().map(|entry| &entry.record).find(|record| {
            record.vm_uuid == row.vm && record.disks.iter().any(|disk| row.holds(&disk.serial))
        });
        if let Some(record) = of_the_disks {
            let text =
                format!("nothing was restored: the snapshot {} of these disks is not whole yet", record.id);
            return Err(
                WireError::new(ErrorCode::Busy, text).hint("try again when hostsnap list shows it as ready")
            );
        }
        let row = row.clone();
        self.catalog(move |catalog| catalog.begin_restore(&row)).await
    }

    /// Refuses while one of these disks is being given back the bytes of a snapshot.
    pub(in crate::service) async fn refuse_if_restoring(
        &self,
        vm: VmUuid,
        disks: &[DiskSerial],
    ) -> Result<(), WireError> {
        let rows = self.catalog(|catalog| catalog.unfinished_restores()).await?;
        let row = rows.iter().find(|row| row.vm == vm && disks.iter().any(|disk| row.holds(disk)));
        let Some(row) = row else { return Ok(()) };
        let disks: Vec<_> = row.disks.iter().map(DiskSerial::as_str).collect();
        Err(WireError::new(
            ErrorCode::Busy,
            format!(
                "{} is being restored from the snapshot {}, and not finished",
                disks.join(", "),
                row.snapshot
            ),
        )
        .hint("try again in a moment; if that lasts, the host's administrator runs hostsnapd reconcile"))
    }

    /// Refuses while a restore that is not finished needs this snapshot.
    pub(in crate::service) async fn refuse_if_restored_from(&self, id: SnapshotId) -> Result<(), WireError> {
        let rows = self.catalog(|catalog| catalog.unfinished_restores()).await?;
        if rows.iter().all(|row| row.snapshot != id && row.safety != Some(id)) {
            return Ok(());
        }
        Err(WireError::new(
            ErrorCode::Busy,
            format!("a restore that is not finished needs the snapshot {id}"),
        )
        .hint("the host's administrator runs hostsnapd reconcile"))
    }

    /// Overwrites the disks, one after another, and writes down that it is done. One that was begun before is begun anew.
    pub(super) async fn overwrite(
        &self,
        row: &Row,
        record: &SnapshotRecord,
        targets: Vec<Target>,
        claim: &Arc<Claim>,
        tell: &Arc<watch::Sender<RestoreStep>>,
    ) -> Result<(), Stopped> {
        let owner = Owner { vm: row.vm, snapshot: row.snapshot };
        let stores = stores_of(&targets);
        if let Err(told) = self.write_note(row, record, &stores, Stage::Begun).await {
            return Err(Stopped { told, nothing_was_done: true });
        }
        let total_bytes = targets.iter().map(|target| target.disk.size_bytes).sum();
        let mut before = 0;
        for (index, Target { disk, volume, store }) in targets.into_iter().enumerate() {
            let doing = format!("restore the disk {}", disk.serial);
            let (tell, others, claim) = (Arc::clone(tell), row.others, Arc::clone(claim));
            let restored = self.workers.to_its_end(move || {
                let _claim = claim;
                let mut progress = |now: drivers::Progress| {
                    let done_bytes = before + now.done_bytes;
                    tell.send_replace(RestoreStep::Running(Progress { done_bytes, total_bytes }));
                };
                let lacks = || {
                    DriverError::new(
                        Kind::Unsupported,
                        format!("ask the driver {} for it", store.driver.name()),
                    )
                };
                store.driver.restore().ok_or_else(lacks)?.restore(owner, &volume, others, &mut progress)
            });
            if let Err(error) = restored.await {
                let told = errors::of_driver(&self.name_of(row.vm), &doing, &error);
                let refused =
                    matches!(error.kind, Kind::Busy | Kind::NoSpace | Kind::NotFound | Kind::Unsupported);
                return Err(Stopped { told, nothing_was_done: index == 0 && refused });
            }
            before += disk.size_bytes;
        }
        // In this order: whoever reads of an end in the catalog must not find a beginning on the storage later.
        if let Err(told) = self.write_note(row, record, &stores, Stage::Done).await {
            return Err(Stopped { told, nothing_was_done: false });
        }
        let done = row.clone();
        let written = self.catalog(move |catalog| catalog.end_restore(&done)).await;
        written.map_err(|told| Stopped { told, nothing_was_done: false })
    }

    /// Finishes what a stop of the service, or a failing storage, left in the middle.
    pub(in crate::service) async fn finish_restores(&self, report: &mut Report) {
        let rows = self.catalog(|catalog| catalog.unfinished_restores()).await.unwrap_or_default();
        for row in rows {
            // Somebody else works on it.
            let Some(claim) = self.in_flight.claim(row.snapshot) else { continue };
            match self.finish_restore(&row, &claim).await {
                Ok(true) => report.restored.push(row.snapshot),
                Ok(false) => {}
                Err(error) => {
                    let problem =
                        format!("the restore of {} is not finished: {}", row.snapshot, error.message);
                    tracing::error!("{problem}");
                    report.problems.push(problem);
                }
            }
        }
    }

    /// Whether there was something to do.
    async fn finish_restore(&self, row: &Row, claim: &Arc<Claim>) -> Result<bool, WireError> {
        let (vm, request, id) = (row.vm, row.request, row.snapshot);
        // What was read before the claim may be done by now.
        let now = self.catalog(move |catalog| catalog.restore(vm, request)).await?;
        if now.is_none_or(|row| row.is_done) {
            return Ok(false);
        }
        let entry = self.catalog(move |catalog| catalog.get(id)).await?;
        let record = entry.ok_or_else(|| crate::policy::not_found(&id.to_string()))?.record;
        let nobody = watch::channel(RestoreStep::Running(Progress { done_bytes: 0, total_bytes: 0 })).0;
        let targets = self.targets_of(row, &record)?;
        let overwritten = self.overwrite(row, &record, targets, claim, &Arc::new(nobody)).await;
        overwritten.map_err(Stopped::in_the_middle)?;
        tracing::info!(vm = %record.vm, "finished the restore of the snapshot {id}");
        Ok(true)
    }
}
