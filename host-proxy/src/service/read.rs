//! What a guest or the administrator may look at: disks, lists, single snapshots.

use std::sync::Arc;
use std::time::Duration;

use protocol::message::{DiskInfo, List, Page};
use protocol::text::{Line, SnapshotRef};
use protocol::{ErrorCode, SnapshotRecord, WireError};

use super::{Service, errors};
use crate::catalog::{Entry, FindError};
use crate::config::Vm;
use crate::policy::{self, Allowed, Scope};
use crate::world::World;

/// How long a storage device may take to say how it is.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// How many bytes of records go into one page: a frame holds 64 KiB, and the page's own fields
/// need a few.
const PAGE_BYTES: usize = 60 * 1024;
/// How many snapshots a page holds at most.
const PAGE_ENTRIES: usize = 256;

impl Service {
    /// The disks of a machine, each with what would keep a snapshot of it from working now.
    pub async fn disks(&self, vm: &Vm) -> Vec<DiskInfo> {
        let world = self.world();
        let mut disks = Vec::with_capacity(vm.disks.len());
        for disk in &vm.disks {
            let store = Arc::clone(world.store(disk));
            let volume = World::volume(vm, disk);
            let doing = format!("check the disk {}", disk.serial);
            let driver = store.driver.name().parse().expect("a driver's name is a valid name");
            let checked =
                self.workers.bounded(&doing, CHECK_LIMIT, move || store.driver.check(&volume), drop).await;
            let (size_bytes, problem) = match checked {
                Ok(facts) => (Some(facts.size_bytes), Line::lossy("")),
                Err(error) => (None, errors::of_driver(vm.name.as_str(), &doing, &error).message),
            };
            disks.push(DiskInfo { serial: disk.serial.clone(), driver, size_bytes, problem });
        }
        disks
    }

    /// How many snapshots a machine has.
    pub async fn count(&self, vm: &Vm) -> Result<u64, WireError> {
        let (uuid, now) = (vm.uuid, self.now());
        Ok(self.catalog(move |catalog| catalog.usage(uuid, now)).await?.snapshots)
    }

    /// A page of snapshots, newest first, as many as fit into a frame.
    pub async fn list(&self, scope: &Allowed<Scope>, list: List) -> Result<Page, WireError> {
        let Scope(vm) = *scope.get();
        let mut filter = list;
        let wanted = usize::from(filter.limit).clamp(1, PAGE_ENTRIES);
        filter.limit = u16::try_from(wanted + 1).expect("a page holds at most 256");
        let entries = self.catalog(move |catalog| catalog.list(vm, &filter)).await?;
        let mut room = PAGE_BYTES;
        let mut snapshots: Vec<SnapshotRecord> = Vec::new();
        let total = entries.len();
        for Entry { record, .. } in entries {
            let bytes = protocol::codec::encode(&record).map_or(PAGE_BYTES, |bytes| bytes.len());
            if snapshots.len() == wanted || (bytes > room && !snapshots.is_empty()) {
                break;
            }
            room = room.saturating_sub(bytes);
            snapshots.push(record);
        }
        let next = (snapshots.len() < total).then(|| snapshots.last().map(|last| last.id)).flatten();
        let snapshots = snapshots.try_into().expect("a page holds at most 256");
        Ok(Page { snapshots, next })
    }

    /// One snapshot, by its identifier, a unique prefix of it, or `latest`.
    pub async fn get(
        &self,
        scope: &Allowed<Scope>,
        reference: SnapshotRef,
    ) -> Result<SnapshotRecord, WireError> {
        let Scope(vm) = *scope.get();
        let asked = reference.to_string();
        let catalog = Arc::clone(&self.catalog);
        let found = self.workers.unbounded(move || catalog.find(vm, &reference)).await;
        match found.expect("no call of the catalog panics") {
            Ok(entry) => Ok(entry.record),
            Err(FindError::NotFound) => Err(policy::not_found(&asked)),
            Err(FindError::Ambiguous { candidates }) => {
                let candidates: Vec<_> = candidates.iter().map(ToString::to_string).collect();
                Err(WireError::new(
                    ErrorCode::Ambiguous,
                    format!("{asked} is the beginning of several snapshots: {}", candidates.join(", ")),
                )
                .hint("give more of the identifier"))
            }
            Err(FindError::Catalog(error)) => Err(errors::of_catalog(&error)),
        }
    }
}
