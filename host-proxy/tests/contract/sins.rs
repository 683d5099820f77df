//! The contract is worth what it catches: drivers that are wrong in one thing each, over real clones, fail it for that thing.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use host_proxy::drivers::reflink::Reflink;
use host_proxy::drivers::{
    Continue, CutSet, Deleted, Driver, DriverError, Expose, Exposed, Found, Owner, Plan, Progress, Ready,
    Recovered, Source, Volume, VolumeFacts, VolumeSnapshot,
};

use super::bench::{Bench, Files, Filler, Foreign};
use super::watched::Watched;
use super::{owner, promises};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sin {
    None,
    /// Whatever lies in the store is listed.
    ListsStrangers,
    /// What is reported done is only on its way to the disk.
    DoneTooEarly,
    /// After a cut that failed, writes hang.
    LeavesSuspended,
    /// A call never comes back.
    Hangs,
}

/// A driver with it.
struct Sinner {
    inner: Box<dyn Driver>,
    store: PathBuf,
    sin: Sin,
}

impl Driver for Sinner {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        self.inner.check(volume)
    }
    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
        self.inner.read_head(volume, len)
    }
    fn free_bytes(&self) -> Result<u64, DriverError> {
        self.inner.free_bytes()
    }
    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError> {
        let inner = self.inner.prepare(plan, deadline)?;
        Ok(Box::new(SinfulReady { inner, store: self.store.clone(), owner: plan.owner, sin: self.sin }))
    }
    fn list(&self) -> Result<Vec<Found>, DriverError> {
        let mut found = self.inner.list()?;
        if self.sin == Sin::ListsStrangers && self.store.join(".hostsnap/lost+found").exists() {
            found.push(Found { owner: owner(), whole: true, manifest: None });
        }
        Ok(found)
    }
    fn recover(&self, owner: Owner, volumes: &[Volume]) -> Result<Recovered, DriverError> {
        self.inner.recover(owner, volumes)
    }
    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        self.inner.rewrite(owner, manifest)
    }
    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        if self.sin == Sin::Hangs {
            // It holds nothing of the storage, which the test takes down.
            loop {
                std::thread::park();
            }
        }
        self.inner.delete(owner)
    }
    fn expose(&self) -> Option<&dyn Expose> {
        self.inner.expose()
    }
    fn limits(&self) -> &'static str {
        self.inner.limits()
    }
}

struct SinfulReady {
    inner: Box<dyn Ready>,
    store: PathBuf,
    owner: Owner,
    sin: Sin,
}

impl Ready for SinfulReady {
    fn volumes(&self) -> &[VolumeSnapshot] {
        self.inner.volumes()
    }
    fn cut(self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        let Self { inner, store, owner, sin } = *self;
        let cut = inner.cut(deadline);
        if sin == Sin::LeavesSuspended && cut.is_err() {
            let frozen = Command::new("fsfreeze").arg("-f").arg(&store).status().unwrap();
            assert!(frozen.success());
        }
        Ok(Box::new(SinfulCut { inner: cut?, store, owner, sin }))
    }
    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.inner.abandon()
    }
}

struct SinfulCut {
    inner: Box<dyn CutSet>,
    store: PathBuf,
    owner: Owner,
    sin: Sin,
}

impl CutSet for SinfulCut {
    fn volumes(&self) -> &[VolumeSnapshot] {
        self.inner.volumes()
    }
    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        if self.sin == Sin::DoneTooEarly { Ok(()) } else { self.inner.settle(progress) }
    }
    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        if self.sin != Sin::DoneTooEarly {
            return self.inner.seal(manifest);
        }
        let machine = self.store.join(".hostsnap").join(self.owner.vm.to_string());
        let partial = machine.join(format!("{}.partial", self.owner.snapshot));
        fs::write(partial.join("manifest.json"), manifest).unwrap();
        fs::rename(partial, machine.join(self.owner.snapshot.to_string())).unwrap();
        Ok(())
    }
    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.inner.abandon()
    }
}

/// Image files, and a driver that is wrong in one thing.
struct Sinful {
    files: Files,
    sin: Sin,
}

impl Bench for Sinful {
    fn driver(&self) -> Box<dyn Driver> {
        let store = self.files.folder();
        let inner = Box::new(Reflink::new(store.clone()).unwrap());
        Box::new(Sinner { inner, store, sin: self.sin })
    }
    fn volumes(&self) -> Vec<Volume> {
        self.files.volumes()
    }
    fn absent(&self) -> Source {
        self.files.absent()
    }
    fn leave_foreign(&self) -> Box<dyn Foreign + '_> {
        self.files.leave_foreign()
    }
    fn read(&self, exposed: &Exposed) -> (u8, u64) {
        self.files.read(exposed)
    }
    fn write(&self, volume: &Volume, byte: u8) {
        self.files.write(volume, byte);
    }
    fn lose_power(&self) -> bool {
        self.files.lose_power()
    }
    fn fill(&self) -> Option<Box<dyn Filler + '_>> {
        self.files.fill()
    }
}

/// What the contract says of it; `None` if it is kept.
fn verdict(sin: Sin) -> Option<String> {
    let mut files = Files::reflink();
    files.patience = Duration::from_secs(3);
    let bench = Sinful { files, sin };
    // A call takes milliseconds here; a hang costs this long.
    let limit = if sin == Sin::Hangs { Duration::from_secs(3) } else { Duration::from_secs(60) };
    let kept = catch_unwind(AssertUnwindSafe(|| promises(&Watched::new(&bench, limit))));
    let panic = kept.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).expect("a text"))
}

#[test]
fn a_driver_that_is_wrong_in_one_thing_fails_the_contract_for_that_thing() {
    assert_eq!(verdict(Sin::None), None, "the wrapper itself is not what is caught");
    for (sin, words) in [
        (Sin::ListsStrangers, "it lists what strangers made"),
        (Sin::DoneTooEarly, "lost with the power"),
        (Sin::LeavesSuspended, "I/O was left suspended"),
        (Sin::Hangs, "delete hangs"),
    ] {
        let said = verdict(sin).unwrap_or_else(|| panic!("{sin:?} is not caught"));
        assert!(said.contains(words), "{sin:?}: {said}");
    }
}
