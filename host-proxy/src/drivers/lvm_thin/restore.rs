//! A volume given back the bytes of a snapshot of it, in place. The pool's metadata says which blocks may differ; of those only
//! what does is written, so that again is cheap and the pool gives no more blocks than it must.
//!
//! LVM's own way, merging, needs the volume closed and drops the snapshot.

use std::time::{Duration, Instant};

use super::report::{Lv, VolumeGroup};
use super::{LvmThin, delta, store};
use crate::drivers::restore::differing::{self, Pair, can_be_written};
use crate::drivers::restore::{concealed, same_size};
use crate::drivers::{DriverError, Extent, Kind, Others, Owner, Progress, Restore, Volume};

/// How long udev may take to let go of a volume that nobody writes any more.
const LET_GO_LIMIT: Duration = Duration::from_secs(5);

impl Restore for LvmThin {
    fn can_restore(&self, owner: Owner, volume: &Volume, others: Others) -> Result<(), DriverError> {
        let vg = self.pool.report()?;
        let (_, origin) = self.sides(&vg, owner, volume)?;
        if others == Others::Nobody {
            self.must_be_shut(origin)?;
        }
        can_be_written(volume, others)?;
        self.pool.takes(&vg, 0)
    }

    fn restore(
        &self,
        owner: Owner,
        volume: &Volume,
        others: Others,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        let vg = self.pool.report()?;
        let (snapshot, origin) = self.sides(&vg, owner, volume)?;
        if others == Others::Nobody {
            self.must_be_shut(origin)?;
        }
        let shown = store::activated(&self.pool, &snapshot)?;
        let written = Pair::open(&shown, volume, others)
            .and_then(|pair| self.write_what_differs(&vg, [&snapshot, origin], &pair, progress));
        concealed(self, owner, volume, written)
    }
}

impl LvmThin {
    /// The snapshot's volume, and the one that is to be as it.
    fn sides<'a>(
        &self,
        vg: &'a VolumeGroup,
        owner: Owner,
        volume: &Volume,
    ) -> Result<(Lv, &'a Lv), DriverError> {
        let manifests = store::open_manifests(&self.pool, vg)?;
        let snapshot = self.whole(vg, manifests.as_ref(), owner, &volume.serial)?;
        let origin = self.origin(vg, volume)?;
        same_size(volume, snapshot.size_bytes(), origin.size_bytes())?;
        Ok((snapshot, origin))
    }

    /// The device mapper counts who has a volume open, also those who honour no lock.
    fn must_be_shut(&self, origin: &Lv) -> Result<(), DriverError> {
        let deadline = Instant::now() + LET_GO_LIMIT;
        let mut is_open = origin.is_open();
        while is_open {
            if Instant::now() >= deadline {
                let name = self.pool.lv(&origin.name);
                let why = format!("restore {name}: somebody has it open; fuser -v /dev/{name}");
                return Err(DriverError::new(Kind::Busy, why));
            }
            std::thread::sleep(Duration::from_millis(200));
            is_open = self.pool.report()?.lv(&origin.name).is_some_and(Lv::is_open);
        }
        Ok(())
    }

    fn write_what_differs(
        &self,
        vg: &VolumeGroup,
        [snapshot, origin]: [&Lv; 2],
        pair: &Pair,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        // The metadata knows of what has reached the volume.
        pair.flush()?;
        let may_differ =
            self.delta.as_ref().map(|tool| delta::changes(&self.pool, vg, tool, origin, snapshot));
        let may_differ = match may_differ {
            Some(Ok(extents)) => extents,
            Some(Err(error)) => {
                tracing::info!("all of {} is compared: {}", origin.name, crate::service::chain(&error));
                pair.whole()
            }
            None => pair.whole(),
        };
        let differing = pair.differing(&may_differ, progress)?;
        self.has_room(&differing)?;
        pair.write(&differing, progress)
    }

    /// Whether the pool stays below its watermark with this written. What was written already takes nothing more, so that one
    /// that was ended in the middle is not kept from its end by its own beginning.
    fn has_room(&self, differing: &[Extent]) -> Result<(), DriverError> {
        let vg = self.pool.report()?;
        let needed = differing::room(differing, delta::block_bytes(&self.pool, &vg)?);
        let free = self.pool.free_below_watermark(&vg)?;
        if needed <= free {
            return Ok(());
        }
        let why = format!(
            "restore a volume of {0}: up to {needed} bytes are written, and the pool's data has {free} below its limit; \
             delete snapshots, or lvextend --size +1G {0}",
            self.pool.name
        );
        Err(DriverError::new(Kind::NoSpace, why))
    }
}
