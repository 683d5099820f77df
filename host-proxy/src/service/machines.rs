//! The machines that libvirt has, looked at again and again: they start, stop, come and go while the service runs. Why
//! it looks, and does not listen: docs/decisions/0019-libvirt.md.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use protocol::{ErrorCode, VmUuid, WireError};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::attach::Unknown;
use super::{Service, errors};
use crate::config::{Config, Vm};
use crate::discover::{self, LeftOut, Machines};
use crate::drivers::DriverError;
use crate::world::{StoreError, World};

/// How long a look may take: each question to libvirt has a limit of its own.
const LOOK_LIMIT: Duration = Duration::from_secs(40);

/// Between the beginnings of two looks: a guest that connects again and again costs no more than that.
const GAP: Duration = Duration::from_millis(250);

/// How it was when it was last looked.
#[derive(Default)]
pub(super) struct Looks {
    last: Mutex<Last>,
    /// Machines that are new here, or not as they were, of which nobody has asked yet what is attached to them.
    arrived: std::sync::Mutex<BTreeSet<VmUuid>>,
}

#[derive(Default)]
struct Last {
    /// When the last look that succeeded was begun.
    began: Option<Instant>,
    left_out: Vec<LeftOut>,
    has_failed: bool,
}

impl Service {
    /// Takes over a configuration of the file, with the machines that are known until libvirt is asked again.
    pub async fn take_over(&self, mut config: Config) -> Result<(), StoreError> {
        let mut last = self.looks.last.lock().await;
        let before = self.world();
        if config.discovered_by_libvirt().is_some() {
            let known = before.config.vms.iter().filter(|vm| vm.is_discovered);
            let is_new = |uuid| config.vms.iter().all(|vm| vm.uuid != uuid);
            let known: Vec<_> = known.filter(|vm| is_new(vm.uuid)).cloned().collect();
            let stores: Vec<_> = config.stores.iter().map(|store| store.name.clone()).collect();
            config.vms.extend(known.into_iter().map(|mut vm| {
                vm.disks.retain(|disk| stores.contains(&disk.store));
                vm
            }));
        }
        self.note_arrived(&before.config, &config);
        self.replace_world(World::new(config, Some(&before))?);
        last.began = None;
        Ok(())
    }

    /// Looks which machines libvirt has, unless somebody began to do so after `since`.
    pub async fn look_at_machines(&self, since: Instant) -> Result<(), WireError> {
        let mut last = self.looks.last.lock().await;
        if last.began.is_some_and(|began| began >= since) {
            return Ok(());
        }
        if let Some(began) = last.began {
            tokio::time::sleep_until(began + GAP).await;
        }
        let before = self.world();
        let Some(libvirt) = before.config.discovered_by_libvirt() else { return Ok(()) };
        let file = discover::of_the_file(&before.config);
        let doing = "ask libvirt for its machines";
        let began = Instant::now();
        let call = move || {
            discover::look(&file, &libvirt).map_err(|error| {
                let kind = errors::kind_of_libvirt(&error);
                DriverError { source: Some(Box::new(error)), ..DriverError::new(kind, doing) }
            })
        };
        match self.workers.bounded(doing, LOOK_LIMIT, call, drop).await {
            Ok(machines) => {
                last.began = Some(began);
                last.has_failed = false;
                self.adopt_machines(&before, machines, &mut last);
                Ok(())
            }
            Err(error) => {
                if !std::mem::replace(&mut last.has_failed, true) {
                    tracing::error!("{}; what is known of them stays", errors::chain(&error));
                }
                Err(WireError::new(
                    ErrorCode::Unavailable,
                    "the host can't ask libvirt which machine this is",
                )
                .hint("try again in a moment; the host's log says why: journalctl -u hostsnapd"))
            }
        }
    }

    fn adopt_machines(&self, before: &World, machines: Machines, last: &mut Last) {
        let Machines { vms, left_out } = machines;
        for one in left_out.iter().filter(|one| !last.left_out.contains(one)) {
            tracing::warn!("left out: {one}");
        }
        last.left_out = left_out;
        if vms == before.config.vms {
            return;
        }
        let config = Config { vms, ..before.config.clone() };
        let (old, new) = (discover::discovered(&before.config), discover::discovered(&config));
        self.note_arrived(&before.config, &config);
        match World::new(config, Some(before)) {
            Ok(world) => {
                let (came, went) = (new.difference(&old).count(), old.difference(&new).count());
                tracing::info!(came, went, "libvirt has {} machines that the file does not name", new.len());
                self.replace_world(world);
            }
            Err(error) => tracing::error!("{}", errors::chain(&error)),
        }
    }

    fn note_arrived(&self, before: &Config, now: &Config) {
        let is_new = |vm: &&Vm| vm.monitor().is_some() && !before.vms.contains(vm);
        let arrived = now.vms.iter().filter(is_new).map(|vm| vm.uuid);
        self.looks.arrived.lock().expect("no holder of this lock panics").extend(arrived);
    }

    /// A machine that came from another host may have brought a snapshot with it, which is attached and not in this catalog.
    pub async fn look_at_arrived(self: &Arc<Self>) {
        let arrived = std::mem::take(&mut *self.looks.arrived.lock().expect("no holder of this lock panics"));
        if arrived.is_empty() {
            return;
        }
        // The snapshot was taken on the other host.
        self.freshen().await;
        for uuid in arrived {
            for problem in self.account_for(uuid, Unknown::Left).await.unwrap_or_default().problems {
                tracing::warn!("attached disks: {problem}");
            }
        }
    }
}
