//! The catalog's attachments against QEMU. A machine that was stopped has none; what a killed service
//! left half made, or a guest had not released, is taken out; what a lost catalog no longer knows is
//! entered again, since its guest may be using it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use protocol::attach::{Access, AttachedName, Attachment};
use protocol::record::State;
use protocol::{SnapshotRecord, VmUuid, WireError};

use super::super::reconcile::Report;
use super::work;
use super::{RELEASE_LIMIT, Service, UNDO_LIMIT};
use crate::catalog::{Attached, Stage};
use crate::config::Vm;
use crate::drivers::DriverError;
use crate::service::errors;
use crate::vmm::monitor::Monitor;
use crate::vmm::plug::Found;

/// How long a QEMU may take to say what it has.
const LOOK_LIMIT: Duration = Duration::from_secs(20);
/// How long a guest that had not released a disk has for it when it is asked again.
const AGAIN_LIMIT: Duration = Duration::from_secs(3);

/// What becomes of a disk of ours whose snapshot is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum Unknown {
    /// Nobody needs it.
    TakenOut,
    /// Its guest may be using it, and another host know it.
    Left,
}

impl Service {
    /// Takes out of the catalog what is no longer attached to a machine, and out of the machine what
    /// should not be. Whoever calls it has the machine's turn.
    pub(super) async fn end_what_is_over(&self, vm: VmUuid, limit: Duration) -> Result<Report, WireError> {
        let mut report = Report::default();
        let mut attached = self.catalog(|catalog| catalog.attached()).await?;
        attached.retain(|attached| attached.vm == vm);
        let mut by_monitor: BTreeMap<Monitor, Vec<Attached>> = BTreeMap::new();
        for one in attached {
            by_monitor.entry(one.monitor.clone()).or_default().push(one);
        }
        for (monitor, attached) in by_monitor {
            let found = match self.look(monitor).await {
                Ok(found) => found,
                Err(error) => {
                    report.problems.push(errors::chain(&error));
                    continue;
                }
            };
            for one in attached {
                let serial = &one.attachment.serial;
                let is_there = found.iter().any(|it| it.is_whole && it.name.serial() == *serial);
                if one.stage == Stage::Attached && is_there {
                    continue;
                }
                let id = one.attachment.snapshot;
                // Somebody whose call came back late has it still.
                let Some(claim) = self.in_flight.claim(id) else { continue };
                match self.take_out(&one, &claim, limit).await {
                    Ok(()) => report.detached.push(id),
                    Err(error) => report.problems.push(format!("{id}: {}", error.message)),
                }
            }
        }
        Ok(report)
    }

    /// What a QEMU has of ours; nothing if it is gone.
    async fn look(&self, monitor: Monitor) -> Result<Vec<Found>, DriverError> {
        let doing = format!("look for attached disks at {monitor}");
        let call = {
            let doing = doing.clone();
            move || match monitor.found() {
                Err(error) if error.is_gone() => Ok(Vec::new()),
                found => found.map_err(|error| work::of_plug(doing, error)),
            }
        };
        self.workers.bounded(&doing, LOOK_LIMIT, call, drop).await
    }

    /// Once a minute: machines that were stopped, guests that had not released a disk.
    pub(in crate::service) async fn tend_attached(&self) {
        let attached = self.catalog(|catalog| catalog.attached()).await.unwrap_or_default();
        let machines: BTreeSet<VmUuid> = attached.iter().map(|attached| attached.vm).collect();
        for vm in machines {
            let _turn = self.turns.of(vm).await;
            for problem in self.end_what_is_over(vm, AGAIN_LIMIT).await.unwrap_or_default().problems {
                tracing::warn!("attached disks: {problem}");
            }
        }
    }

    /// Ends what is over at one machine, before something is decided on its snapshot.
    pub(in crate::service) async fn refresh_attached(
        &self,
        record: &SnapshotRecord,
    ) -> Result<(), WireError> {
        let id = record.id;
        if !self.catalog(move |catalog| catalog.attached_of(id)).await?.is_empty() {
            let _turn = self.turns.of(record.vm_uuid).await;
            self.end_what_is_over(record.vm_uuid, Duration::ZERO).await?;
        }
        Ok(())
    }

    /// All machines, all clones.
    pub(in crate::service) async fn reconcile_attached(&self) -> Result<Report, WireError> {
        let mut report = Report::default();
        let attached = self.catalog(|catalog| catalog.attached()).await?;
        let mut machines: BTreeSet<VmUuid> = attached.iter().map(|attached| attached.vm).collect();
        let world = self.world();
        machines.extend(world.config.vms.iter().map(|vm| vm.uuid));
        for uuid in machines {
            let ended = self.account_for(uuid, Unknown::TakenOut).await?;
            report.detached.extend(ended.detached);
            report.problems.extend(ended.problems);
        }
        self.sweep_clones(&mut report).await?;
        Ok(report)
    }

    /// Compares all that one machine has with what is known of it.
    pub(in crate::service) async fn account_for(
        &self,
        uuid: VmUuid,
        unknown: Unknown,
    ) -> Result<Report, WireError> {
        let _turn = self.turns.of(uuid).await;
        let mut report = self.end_what_is_over(uuid, AGAIN_LIMIT).await?;
        let world = self.world();
        if let Some(vm) = world.vm(uuid)
            && let Some(monitor) = vm.monitor()
        {
            self.account_for_strangers(vm, monitor, unknown, &mut report).await?;
        }
        Ok(report)
    }

    /// What is in a machine and not in the catalog: entered if its snapshot is there.
    async fn account_for_strangers(
        &self,
        vm: &Vm,
        monitor: Monitor,
        unknown: Unknown,
        report: &mut Report,
    ) -> Result<(), WireError> {
        let found = match self.look(monitor.clone()).await {
            Ok(found) => found,
            // A monitor that does not answer keeps the service from nothing else.
            Err(error) => {
                tracing::warn!(vm = %vm.name, "{}", errors::chain(&error));
                return Ok(());
            }
        };
        let known = self.catalog(|catalog| catalog.attached()).await?;
        let is_known = |it: &Found| {
            known.iter().any(|one| one.vm == vm.uuid && one.attachment.serial == it.name.serial())
        };
        let strangers: Vec<Found> = found.into_iter().filter(|it| !is_known(it)).collect();
        if strangers.is_empty() {
            return Ok(());
        }
        let entries = self.catalog(|catalog| catalog.all()).await?;
        for stranger in strangers {
            let snapshot = entries.iter().map(|entry| &entry.record).find(|record| {
                record.vm_uuid == vm.uuid && record.state == State::Ready && stranger.name.is_of(record.id)
            });
            let entered = snapshot.and_then(|record| self.entry_of(vm, &monitor, record, &stranger));
            match entered {
                Some(attached) if stranger.is_whole => {
                    tracing::info!(vm = %vm.name, "{} is attached to it, and is entered in the catalog", stranger.name);
                    self.catalog(move |catalog| catalog.enter_attached(&attached)).await?;
                }
                _ if unknown == Unknown::Left => report.problems.push(format!(
                    "{} is attached to {}, and no snapshot of it is known here; hostsnapd reconcile takes it out",
                    stranger.name, vm.name
                )),
                _ => self.evict(stranger.name, monitor.clone(), report).await,
            }
        }
        Ok(())
    }

    fn entry_of(
        &self,
        vm: &Vm,
        monitor: &Monitor,
        record: &SnapshotRecord,
        found: &Found,
    ) -> Option<Attached> {
        let disk = record.disks.get(found.name.index())?;
        let clone = self.folder_of_clones(vm, disk).join(format!("{}.qcow2", found.name));
        let access = if found.is_writable { Access::Writable } else { Access::ReadOnly };
        Some(Attached {
            attachment: Attachment {
                snapshot: record.id,
                disk: disk.serial.clone(),
                serial: found.name.serial(),
                access,
                size_bytes: disk.size_bytes,
            },
            vm: vm.uuid,
            stage: Stage::Attached,
            monitor: monitor.clone(),
            clone: found.is_writable.then_some(clone),
        })
    }

    async fn evict(&self, name: AttachedName, monitor: Monitor, report: &mut Report) {
        let doing = format!("take out {name}, of which no snapshot is known");
        let call = move || {
            monitor
                .unplug(&name, RELEASE_LIMIT)
                .map_err(|error| work::of_plug(format!("take out {name}"), error))
        };
        match self.workers.bounded(&doing, RELEASE_LIMIT + UNDO_LIMIT, call, drop).await {
            Ok(()) => tracing::info!("{doing}: done"),
            Err(error) => report.problems.push(errors::chain(&error)),
        }
    }

    /// Clones that are nobody's.
    async fn sweep_clones(&self, report: &mut Report) -> Result<(), WireError> {
        let world = self.world();
        let stores = world.stores().filter_map(|store| store.config.backend.folder());
        let mut folders: Vec<PathBuf> =
            stores.map(|store| store.join(".hostsnap").join(work::CLONES)).collect();
        folders.push(world.config.service.state_dir.join(work::CLONES));
        let known = self.catalog(|catalog| catalog.attached()).await?;
        for clone in folders.iter().flat_map(|folder| work::clones_in(folder)) {
            if known.iter().any(|attached| attached.clone.as_ref() == Some(&clone)) {
                continue;
            }
            if let Err(error) = work::remove_clone(&clone) {
                report.problems.push(errors::chain(&error));
            }
        }
        Ok(())
    }
}
