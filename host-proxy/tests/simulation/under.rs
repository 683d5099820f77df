//! A snapshot under way on the storage in memory: ready, then cut, then sealed.

use host_proxy::drivers::{
    Continue, CutSet, DriverError, Kind, Owner, Progress, Ready, Volume, VolumeSnapshot,
};

use crate::driver::Simulated;
use crate::storage::{Far, Kept};

/// One snapshot under way.
pub(crate) struct Under {
    pub(crate) driver: Simulated,
    pub(crate) owner: Owner,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) names: Vec<VolumeSnapshot>,
}

impl Under {
    fn abandon(self) -> Result<(), DriverError> {
        let owner = self.owner;
        let what = format!("abandon {}", owner.snapshot);
        self.driver.call(
            &what,
            |storage| {
                self.driver.forget(storage, owner);
                Ok(())
            },
            |_| (),
        )
    }
}

impl Ready for Under {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.names
    }

    fn cut(self: Box<Self>, deadline: std::time::Instant) -> Result<Box<dyn CutSet>, DriverError> {
        let owner = self.owner;
        self.driver.call(
            &format!("cut {}", owner.snapshot),
            |storage| {
                if tokio::time::Instant::now().into_std() > deadline {
                    self.driver.forget(storage, owner);
                    return Err(DriverError::new(Kind::DeadlinePassed, "cut"));
                }
                let cut = |volume: &Volume| {
                    let content = storage.volumes.get(&volume.source.to_string()).copied();
                    (volume.serial.clone(), content.unwrap_or(0))
                };
                let contents = self.volumes.iter().map(cut).collect();
                self.driver.kept(storage, |kept| match kept.get_mut(&owner) {
                    Some(kept) => {
                        (kept.far, kept.contents) = (Far::Cut(false), contents);
                        Ok(())
                    }
                    None => Err(DriverError::new(Kind::NotFound, "cut")),
                })
            },
            |storage| self.driver.forget(storage, owner),
        )?;
        Ok(self)
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        Under::abandon(*self)
    }
}

impl CutSet for Under {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.names
    }

    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        progress(Progress { done_bytes: 1, total_bytes: 2 });
        let owner = self.owner;
        self.driver.call(
            &format!("settle {}", owner.snapshot),
            |storage| {
                self.driver.kept(storage, |kept| match kept.get_mut(&owner) {
                    Some(Kept { far: far @ Far::Cut(_), .. }) => {
                        *far = Far::Cut(true);
                        Ok(())
                    }
                    _ => Err(DriverError::new(Kind::NotFound, "settle")),
                })
            },
            |_| (),
        )
    }

    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        let owner = self.owner;
        self.driver.call(
            &format!("seal {}", owner.snapshot),
            |storage| {
                self.driver.kept(storage, |kept| match kept.get_mut(&owner) {
                    Some(kept) if kept.far == Far::Cut(true) => {
                        (kept.far, kept.manifest) = (Far::Sealed, manifest.to_vec());
                        Ok(())
                    }
                    _ => Err(DriverError::new(Kind::NotFound, "seal")),
                })
            },
            |_| (),
        )
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        Under::abandon(*self)
    }
}
