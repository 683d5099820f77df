//! What the storage of a machine's disks can do, what it asks for, how full it is: told before anybody relies on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::message::DiskAbilities;
use protocol::text::Line;

use super::{Service, errors};
use crate::config::Vm;
use crate::drivers::{Abilities, ROOM_UNKNOWN};

/// How long a storage device may take to say how full it is.
const ROOM_LIMIT: Duration = Duration::from_secs(10);

impl Service {
    /// Each disk of a machine, with what its storage can do. Each store is asked once for its room.
    pub async fn abilities(&self, vm: &Vm) -> Vec<DiskAbilities> {
        let world = self.world();
        // Another disk, beside those it has.
        let takes_disks = vm.monitor().is_some();
        let mut rooms = BTreeMap::new();
        let mut disks = Vec::with_capacity(vm.disks.len());
        for disk in &vm.disks {
            let store = world.store(disk);
            if !rooms.contains_key(&disk.store) {
                let asked = Arc::clone(store);
                let doing = format!("ask the store {} for its room", disk.store);
                // Some can tell only when they have asked their storage.
                let ask = move || {
                    let can = Some((asked.driver.abilities(), asked.driver.limits()));
                    Ok((can, asked.driver.free_bytes()))
                };
                let (can, room) = match self.workers.bounded(&doing, ROOM_LIMIT, ask, drop).await {
                    Ok(told) => told,
                    Err(error) => (None, Err(error)),
                };
                if let Err(error) = &room {
                    tracing::warn!("{doing}: {}", errors::chain(error));
                }
                rooms.insert(disk.store.clone(), (can, room.ok().filter(|room| *room != ROOM_UNKNOWN)));
            }
            let (can, free_bytes) = rooms.get(&disk.store).copied().unwrap_or_default();
            let words = can.map_or_else(Vec::new, |(can, _)| words(can, takes_disks));
            disks.push(DiskAbilities {
                serial: disk.serial.clone(),
                abilities: words.try_into().expect("there are no more abilities than fit"),
                limits: Line::lossy(can.map_or("", |(_, limits)| limits)),
                free_bytes,
                floor_bytes: store.config.min_free,
            });
        }
        disks
    }
}

fn words(can: Abilities, takes_disks: bool) -> Vec<protocol::text::Name> {
    // It takes both: a driver that shows a snapshot, and a machine that takes another disk.
    let attach = (can.expose && takes_disks).then_some("attach");
    let words = can.words().into_iter().chain(attach);
    words.map(|word| word.parse().expect("an ability is a valid name")).collect()
}
