//! The driver over the storage in memory. It keeps the contract that `tests/contract` asks of every
//! driver, and fails where chance wants it: before a call did anything, after it did all, or with the
//! service dying in it. A snapshot under way is in `under`.

use std::panic::resume_unwind;

use host_proxy::drivers::{
    Deleted, Driver, DriverError, Found, Kind, Owner, Plan, Ready, Recovered, Volume, VolumeFacts,
    VolumeSnapshot,
};

use crate::stage::{Died, Stage};
use crate::storage::{Far, Kept, Storage};
use crate::under::Under;

pub(crate) const DISK_BYTES: u64 = 1 << 20;
pub(crate) const HEAD: [u8; 512] = [7; 512];

#[derive(Clone)]
pub(crate) struct Simulated {
    pub(crate) stage: Stage,
    pub(crate) store: &'static str,
}

impl Simulated {
    /// Does `work` on the storage, with what chance makes of it. `clean_up` is what a driver does
    /// when it fails: nothing is left behind.
    pub(crate) fn call<T>(
        &self,
        what: &str,
        work: impl FnOnce(&mut Storage) -> Result<T, DriverError>,
        clean_up: impl FnOnce(&mut Storage),
    ) -> Result<T, DriverError> {
        // Undoing may fail as well, and then the error says so.
        let undo_fails = self.stage.chance(|chance| chance.permille(200));
        let failed = |when: &str| {
            let error = DriverError::new(Kind::Failed, format!("{what}: failed {when}, by chance"));
            let undo = DriverError::new(Kind::Failed, "undo, by chance");
            if undo_fails { error.after_undo(Err(undo)) } else { error }
        };
        let fails = self.stage.permille(|weather| weather.storage_fails);
        let dies = self.stage.permille(|weather| weather.dies_in_a_call);
        let late = self.stage.chance(|chance| chance.permille(500));
        let how = match (fails, dies, late) {
            (_, true, false) => " and the service dies before it",
            (_, true, true) => " and the service dies after it",
            (true, _, false) => " and fails before it",
            (true, _, true) => " and fails after it",
            _ => "",
        };
        self.stage.say(|| format!("  store {}: {what}{how}", self.store));
        if dies && !late {
            resume_unwind(Box::new(Died));
        }
        if fails && !late {
            if !undo_fails {
                clean_up(&mut self.stage.lock().storage);
            }
            return Err(failed("before it"));
        }
        let done = work(&mut self.stage.lock().storage);
        if dies {
            resume_unwind(Box::new(Died));
        }
        if fails && done.is_ok() {
            if !undo_fails {
                clean_up(&mut self.stage.lock().storage);
            }
            return Err(failed("after it"));
        }
        done
    }

    pub(crate) fn kept<T>(
        &self,
        storage: &mut Storage,
        act: impl FnOnce(&mut std::collections::BTreeMap<Owner, Kept>) -> T,
    ) -> T {
        act(storage.stores.entry(self.store).or_default())
    }

    pub(crate) fn forget(&self, storage: &mut Storage, owner: Owner) {
        self.kept(storage, |kept| kept.remove(&owner));
    }

    fn under(&self, owner: Owner, volumes: &[Volume]) -> Under {
        let names = volumes.iter().map(|volume| VolumeSnapshot {
            serial: volume.serial.clone(),
            handle: format!("{}/{}", owner.snapshot, volume.serial),
            size_bytes: DISK_BYTES,
        });
        Under { driver: self.clone(), owner, volumes: volumes.to_vec(), names: names.collect() }
    }
}

impl Driver for Simulated {
    fn name(&self) -> &'static str {
        "reflink"
    }

    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        self.call(&format!("check {}", volume.serial), |_| Ok(VolumeFacts { size_bytes: DISK_BYTES }), |_| ())
    }

    fn read_head(&self, _: &Volume, _: usize) -> Result<Vec<u8>, DriverError> {
        Ok(HEAD.to_vec())
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        Ok(1 << 40)
    }

    fn prepare(&self, plan: &Plan, _: std::time::Instant) -> Result<Box<dyn Ready>, DriverError> {
        let owner = plan.owner;
        let kept = Kept { far: Far::Prepared, contents: Default::default(), manifest: plan.manifest.clone() };
        let before = self.kept(&mut self.stage.lock().storage, |kept| kept.contains_key(&owner));
        self.call(
            &format!("prepare {}", owner.snapshot),
            |storage| match (before, storage.full) {
                (true, _) => Err(DriverError::new(Kind::Exists, "prepare")),
                (_, true) => Err(DriverError::new(Kind::NoSpace, "prepare")),
                _ => {
                    self.kept(storage, |all| all.insert(owner, kept));
                    Ok(())
                }
            },
            |storage| {
                if !before {
                    self.forget(storage, owner);
                }
            },
        )?;
        Ok(Box::new(self.under(owner, &plan.volumes)))
    }

    fn list(&self) -> Result<Vec<Found>, DriverError> {
        let found = |(owner, kept): (&Owner, &Kept)| Found {
            owner: *owner,
            whole: kept.far == Far::Sealed,
            manifest: Some(kept.manifest.clone()),
        };
        self.call("list", |storage| Ok(self.kept(storage, |kept| kept.iter().map(found).collect())), |_| ())
    }

    fn recover(&self, owner: Owner, volumes: &[Volume]) -> Result<Recovered, DriverError> {
        self.call(
            &format!("recover {}", owner.snapshot),
            |storage| match self.kept(storage, |kept| kept.get(&owner).map(|kept| kept.far)) {
                None => Ok(Recovered::Nothing),
                Some(Far::Sealed) => Ok(Recovered::Whole),
                Some(Far::Cut(_)) => Ok(Recovered::Cut(Box::new(self.under(owner, volumes)))),
                Some(Far::Prepared | Far::Deleting) => {
                    self.forget(storage, owner);
                    Ok(Recovered::Nothing)
                }
            },
            |_| (),
        )
    }

    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        let chance = self.stage.chance(|chance| chance.permille(500));
        self.call(
            &format!("delete {}", owner.snapshot),
            |storage| {
                let there = self.kept(storage, |kept| kept.contains_key(&owner));
                if there && storage.held {
                    return Err(DriverError::new(Kind::Busy, "delete"));
                }
                self.forget(storage, owner);
                Ok(if there { Deleted::Gone } else { Deleted::WasAbsent })
            },
            // What fails in the middle has begun.
            |storage| {
                let held = storage.held;
                self.kept(storage, |kept| {
                    kept.get_mut(&owner).filter(|_| chance && !held).map(|kept| kept.far = Far::Deleting)
                });
            },
        )
    }
}
