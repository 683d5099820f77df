//! What changed between two snapshots of one machine, as the storage of each disk tells it.

use std::sync::Arc;
use std::time::Duration;

use protocol::text::Name;
use protocol::{DiskSerial, ErrorCode, SnapshotId, WireError};

use super::in_flight::Claim;
use super::{Service, errors};
use crate::drivers::{DriverError, Extent, Kind, Owner};
use crate::policy::{Allowed, Compare};
use crate::world::Store;

/// How long the storage of one disk may take: it reads its own maps, not the disk.
const COMPARE_LIMIT: Duration = Duration::from_secs(600);

/// What changed on one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChanges {
    /// The disk.
    pub disk: DiskSerial,
    /// The driver that tells it.
    pub driver: Name,
    /// How large the later of the two snapshots that were asked for has it, in bytes.
    pub size_bytes: u64,
    /// Where bytes may differ; all others are the same.
    pub extents: Vec<Extent>,
}

impl Service {
    /// Compares the disks that both snapshots hold, or one of them.
    pub async fn changes(
        &self,
        allowed: Allowed<Compare>,
        only: Option<DiskSerial>,
    ) -> Result<Vec<DiskChanges>, WireError> {
        let Compare { from, to } = allowed.into_inner();
        // Nobody removes them meanwhile.
        let _claims = [self.claimed(from.id)?, if from.id == to.id { None } else { self.claimed(to.id)? }];
        let is_in_both = |disk: &DiskSerial| from.disks.iter().any(|other| other.serial == *disk);
        let disks: Vec<_> = to
            .disks
            .iter()
            .filter(|disk| is_in_both(&disk.serial) && only.as_ref().is_none_or(|only| disk.serial == *only))
            .cloned()
            .collect();
        if disks.is_empty() {
            let what = only.map_or_else(|| "no disk".to_owned(), |disk| format!("no disk {disk}"));
            return Err(WireError::new(
                ErrorCode::NotFound,
                format!("{what} is in both {} and {}", from.id, to.id),
            )
            .hint("hostsnapd show tells which disks a snapshot holds"));
        }
        let owner = |snapshot| Owner { vm: to.vm_uuid, snapshot };
        let mut all = Vec::with_capacity(disks.len());
        for disk in disks {
            let store = self.store_of(to.vm.as_str(), to.vm_uuid, &disk.serial, &disk.driver)?;
            let doing = format!("compare the disk {}", disk.serial);
            let (from, to, serial) = (owner(from.id), owner(to.id), disk.serial.clone());
            let compared = self
                .workers
                .bounded(
                    &doing,
                    COMPARE_LIMIT,
                    move || match store.driver.changes() {
                        Some(able) => able.changes(from, to, &serial),
                        None => Err(DriverError::new(
                            Kind::Unsupported,
                            format!("ask the driver {}, which can't tell what changed", store.driver.name()),
                        )),
                    },
                    drop,
                )
                .await;
            let extents = compared.map_err(|error| match error.kind {
                Kind::Unsupported => unsupported(&disk.serial, &disk.driver, &error),
                _ => errors::of_driver(to.vm.to_string().as_str(), &doing, &error),
            })?;
            all.push(DiskChanges {
                disk: disk.serial,
                driver: disk.driver,
                size_bytes: disk.size_bytes,
                extents,
            });
        }
        Ok(all)
    }

    fn claimed(&self, id: SnapshotId) -> Result<Option<Arc<Claim>>, WireError> {
        match self.in_flight.claim(id) {
            Some(claim) => Ok(Some(claim)),
            None => Err(WireError::new(ErrorCode::Busy, format!("the snapshot {id} is being worked on"))
                .hint("try again in a moment")),
        }
    }

    /// The store that has this disk's snapshots, by the configuration as it is now.
    pub(super) fn store_of(
        &self,
        name: &str,
        vm: protocol::VmUuid,
        disk: &DiskSerial,
        driver: &Name,
    ) -> Result<Arc<Store>, WireError> {
        let world = self.world();
        let configured = world.vm(vm).and_then(|vm| vm.disks.iter().find(|one| one.serial == *disk));
        let store = configured.map(|disk| world.store(disk));
        store.filter(|store| store.driver.name() == driver.as_str()).cloned().ok_or_else(|| {
            WireError::new(
                ErrorCode::NotFound,
                format!("the configuration has no disk {disk} of {name} in a store of the driver {driver}"),
            )
            .hint("the snapshots are where the disk was when they were taken: configure it as it was")
        })
    }
}

fn unsupported(disk: &DiskSerial, driver: &Name, error: &DriverError) -> WireError {
    tracing::info!("compare the disk {disk}: {}", errors::chain(error));
    WireError::new(
        ErrorCode::Unsupported,
        format!(
            "the storage of the disk {disk} (driver {driver}) can't tell what changed between two snapshots"
        ),
    )
    .hint("hostsnapd check shows what each disk's storage can do; --disk chooses one")
}
