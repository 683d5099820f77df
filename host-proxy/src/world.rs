//! One configuration, made real: each store with its driver. A reload makes a new world; sessions
//! look at the current one at each request.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::VmUuid;

use crate::config::{self, Backend, Config, Disk, Vm};
use crate::drivers::btrfs::Btrfs;
use crate::drivers::csi::Csi;
use crate::drivers::lvm_thin::LvmThin;
use crate::drivers::qemu::Qemu;
use crate::drivers::rbd::Rbd;
use crate::drivers::reflink::Reflink;
use crate::drivers::zfs::Zfs;
use crate::drivers::{Driver, DriverError, Volume};

/// Everything that a configuration says, ready to use.
pub struct World {
    /// What was configured.
    pub config: Config,
    stores: BTreeMap<String, Arc<Store>>,
}

/// One `[[store]]` with its driver.
pub struct Store {
    /// What was configured.
    pub config: config::Store,
    /// The driver that keeps its snapshots there.
    pub driver: Box<dyn Driver>,
}

/// A store's driver could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("set up the store {store}")]
pub struct StoreError {
    store: String,
    #[source]
    source: DriverError,
}

impl World {
    /// Sets up every store. Those of `before` that are configured as they were are taken over, with
    /// their locks and connections.
    pub fn new(config: Config, before: Option<&Self>) -> Result<Self, StoreError> {
        let mut stores = BTreeMap::new();
        for store in &config.stores {
            let kept =
                before.and_then(|world| world.stores.get(&store.name)).filter(|old| old.config == *store);
            let made = match kept {
                Some(old) => Arc::clone(old),
                None => Arc::new(Store {
                    config: store.clone(),
                    driver: driver_of(store)
                        .map_err(|source| StoreError { store: store.name.clone(), source })?,
                }),
            };
            stores.insert(store.name.clone(), made);
        }
        Ok(Self { config, stores })
    }

    /// A world of drivers that were made elsewhere: for tests that wrap them with faults.
    #[doc(hidden)]
    pub fn with_drivers(config: Config, mut drivers: BTreeMap<String, Box<dyn Driver>>) -> Self {
        let stores = config
            .stores
            .iter()
            .map(|store| {
                let driver = drivers.remove(&store.name).expect("the test gives every store a driver");
                (store.name.clone(), Arc::new(Store { config: store.clone(), driver }))
            })
            .collect();
        Self { config, stores }
    }

    /// The machine of this UUID.
    pub fn vm(&self, uuid: VmUuid) -> Option<&Vm> {
        self.config.vms.iter().find(|vm| vm.uuid == uuid)
    }

    /// The store of this disk.
    pub fn store(&self, disk: &Disk) -> &Arc<Store> {
        self.stores.get(&disk.store).expect("the configuration was checked: every disk's store is there")
    }

    /// All stores.
    pub fn stores(&self) -> impl Iterator<Item = &Arc<Store>> {
        self.stores.values()
    }

    /// The volume behind a disk of this machine.
    pub fn volume(vm: &Vm, disk: &Disk) -> Volume {
        Volume {
            serial: disk.serial.clone(),
            source: disk.source.clone(),
            format: disk.format,
            qmp: vm.qmp.clone(),
        }
    }
}

fn driver_of(store: &config::Store) -> Result<Box<dyn Driver>, DriverError> {
    Ok(match &store.backend {
        Backend::Reflink(path) => Box::new(Reflink::new(path.clone())?),
        Backend::Btrfs(path) => Box::new(Btrfs::new(path.clone())?),
        Backend::Qemu(path) => Box::new(Qemu::new(path.clone())?),
        Backend::LvmThin(pool, watermarks) => Box::new(LvmThin::new(pool.clone(), *watermarks)?),
        Backend::Rbd(place) => Box::new(Rbd::new(place.clone())?),
        Backend::Zfs(dataset) => Box::new(Zfs::new(dataset.clone())?),
        Backend::Csi(place) => Box::new(Csi::new(place.clone())?),
    })
}
