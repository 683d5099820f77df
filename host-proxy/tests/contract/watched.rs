//! A bench whose driver is watched: each call of it runs on a thread of its own, and one that does not come back in time is a
//! broken promise, not a test that hangs.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use host_proxy::drivers::{
    Abilities, Changes, Continue, CutSet, Deleted, Driver, DriverError, Expose, Exposed, Extent, Found,
    Others, Owner, Plan, Progress, Ready, Recovered, Restore, SetCut, Source, Volume, VolumeFacts,
    VolumeSnapshot,
};
use protocol::DiskSerial;

use super::bench::{Bench, Filler, Foreign, Held};

/// The longest limit of `docs/writing-a-driver.md`; under it every call must end, whatever it does.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(120);

/// Runs it on a thread of its own. One that hangs is left behind.
#[track_caller]
fn within<T: Send + 'static>(
    limit: Duration,
    what: &'static str,
    call: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, waiting) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = done.send(call());
    });
    match waiting.recv_timeout(limit) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            panic!("{what} hangs: nothing came back within {} ms", limit.as_millis())
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it has sent"),
        },
    }
}

pub(crate) struct Watched<'a> {
    bench: &'a dyn Bench,
    limit: Duration,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(bench: &'a dyn Bench, limit: Duration) -> Self {
        Self { bench, limit }
    }
}

impl Bench for Watched<'_> {
    fn driver(&self) -> Box<dyn Driver> {
        Box::new(WatchedDriver { inner: self.bench.driver().into(), limit: self.limit })
    }
    fn volumes(&self) -> Vec<Volume> {
        self.bench.volumes()
    }
    fn show(&self, owner: Owner, volume: &DiskSerial) -> Exposed {
        match self.driver().expose() {
            Some(watched) => watched.expose(owner, volume).unwrap(),
            None => self.bench.show(owner, volume),
        }
    }
    fn absent(&self) -> Source {
        self.bench.absent()
    }
    fn leave_foreign(&self) -> Box<dyn Foreign + '_> {
        self.bench.leave_foreign()
    }
    fn read(&self, exposed: &Exposed) -> (u8, u64) {
        self.bench.read(exposed)
    }
    fn hold(&self, exposed: &Exposed) -> Box<dyn Held + '_> {
        self.bench.hold(exposed)
    }
    fn write(&self, volume: &Volume, byte: u8) {
        self.bench.write(volume, byte);
    }
    fn write_at(&self, volume: &Volume, byte: u8, offset: u64, len: usize) {
        self.bench.write_at(volume, byte, offset, len);
    }
    fn bytes(&self, exposed: &Exposed) -> Vec<u8> {
        self.bench.bytes(exposed)
    }
    fn resize(&self, volume: &Volume, bytes: u64) {
        self.bench.resize(volume, bytes);
    }
    fn unwatched(&self) -> Box<dyn Driver> {
        self.bench.unwatched()
    }
    fn lose_power(&self) -> bool {
        self.bench.lose_power()
    }
    fn fill(&self) -> Option<Box<dyn Filler + '_>> {
        self.bench.fill()
    }
}

struct WatchedDriver {
    inner: Arc<dyn Driver>,
    limit: Duration,
}

impl WatchedDriver {
    fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&dyn Driver) -> T + Send + 'static,
    ) -> T {
        let inner = Arc::clone(&self.inner);
        within(self.limit, what, move || call(&*inner))
    }

    fn cut_set(&self, inner: Box<dyn CutSet>) -> Box<dyn CutSet> {
        Box::new(WatchedCut { volumes: inner.volumes().to_vec(), inner: Some(inner), limit: self.limit })
    }
}

impl Driver for WatchedDriver {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        let volume = volume.clone();
        self.call("check", move |driver| driver.check(&volume))
    }
    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
        let volume = volume.clone();
        self.call("read_head", move |driver| driver.read_head(&volume, len))
    }
    fn free_bytes(&self) -> Result<u64, DriverError> {
        self.call("free_bytes", |driver| driver.free_bytes())
    }
    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError> {
        let plan = plan.clone();
        let inner = self.call("prepare", move |driver| driver.prepare(&plan, deadline))?;
        Ok(Box::new(WatchedReady { volumes: inner.volumes().to_vec(), inner, limit: self.limit }))
    }
    fn list(&self) -> Result<Vec<Found>, DriverError> {
        self.call("list", |driver| driver.list())
    }
    fn recover(&self, owner: Owner, volumes: &[Volume]) -> Result<Recovered, DriverError> {
        let volumes = volumes.to_vec();
        Ok(match self.call("recover", move |driver| driver.recover(owner, &volumes))? {
            Recovered::Cut(inner) => Recovered::Cut(self.cut_set(inner)),
            other => other,
        })
    }
    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        self.call("delete", move |driver| driver.delete(owner))
    }
    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        let manifest = manifest.to_vec();
        self.call("rewrite", move |driver| driver.rewrite(owner, &manifest))
    }
    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }
    fn expose(&self) -> Option<&dyn Expose> {
        self.inner.expose().map(|_| self as &dyn Expose)
    }
    fn changes(&self) -> Option<&dyn Changes> {
        self.inner.changes().map(|_| self as &dyn Changes)
    }
    fn restore(&self) -> Option<&dyn Restore> {
        self.inner.restore().map(|_| self as &dyn Restore)
    }
    fn is_cut_by_machine(&self) -> bool {
        self.inner.is_cut_by_machine()
    }
    fn set_cut(&self) -> SetCut {
        self.inner.set_cut()
    }
    fn limits(&self) -> &'static str {
        self.inner.limits()
    }
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }
}

impl Expose for WatchedDriver {
    fn expose(&self, owner: Owner, volume: &DiskSerial) -> Result<Exposed, DriverError> {
        let volume = volume.clone();
        self.call("expose", move |driver| driver.expose().expect("asked before").expose(owner, &volume))
    }
    fn conceal(&self, owner: Owner, volume: &DiskSerial) -> Result<(), DriverError> {
        let volume = volume.clone();
        self.call("conceal", move |driver| driver.expose().expect("asked before").conceal(owner, &volume))
    }
}

impl Changes for WatchedDriver {
    fn changes(&self, from: Owner, to: Owner, volume: &DiskSerial) -> Result<Vec<Extent>, DriverError> {
        let volume = volume.clone();
        self.call("changes", move |driver| driver.changes().expect("asked before").changes(from, to, &volume))
    }
}

impl Restore for WatchedDriver {
    fn can_restore(&self, owner: Owner, volume: &Volume, others: Others) -> Result<(), DriverError> {
        let volume = volume.clone();
        let asks = move |driver: &dyn Driver| {
            driver.restore().expect("asked before").can_restore(owner, &volume, others)
        };
        self.call("can_restore", asks)
    }
    fn head_then(&self, owner: Owner, volume: &Volume, len: usize) -> Result<Option<Vec<u8>>, DriverError> {
        let volume = volume.clone();
        let asks =
            move |driver: &dyn Driver| driver.restore().expect("asked before").head_then(owner, &volume, len);
        self.call("head_then", asks)
    }
    fn restore(
        &self,
        owner: Owner,
        volume: &Volume,
        others: Others,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        let volume = volume.clone();
        let asks = move |driver: &dyn Driver| {
            let mut told = Vec::new();
            let able = driver.restore().expect("asked before");
            let restored = able.restore(owner, &volume, others, &mut |now| told.push(now));
            (told, restored)
        };
        let (told, restored) = self.call("restore", asks);
        told.into_iter().for_each(progress);
        restored
    }
}

struct WatchedReady {
    inner: Box<dyn Ready>,
    volumes: Vec<VolumeSnapshot>,
    limit: Duration,
}

impl Ready for WatchedReady {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.volumes
    }
    fn cut(self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        let Self { inner, limit, .. } = *self;
        let inner = within(limit, "cut", move || inner.cut(deadline))?;
        Ok(Box::new(WatchedCut { volumes: inner.volumes().to_vec(), inner: Some(inner), limit }))
    }
    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        within(self.limit, "abandon", move || self.inner.abandon())
    }
}

struct WatchedCut {
    /// Out while it settles.
    inner: Option<Box<dyn CutSet>>,
    volumes: Vec<VolumeSnapshot>,
    limit: Duration,
}

impl WatchedCut {
    fn take(self) -> Box<dyn CutSet> {
        self.inner.expect("it does not settle now")
    }
}

impl CutSet for WatchedCut {
    fn volumes(&self) -> &[VolumeSnapshot] {
        &self.volumes
    }

    /// Settling may take minutes; what hangs is one that neither ends nor tells how far it is.
    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        let mut inner = self.inner.take().expect("it does not settle now");
        let (tell, told) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let settling = std::thread::spawn(move || {
            let result = inner.settle(&mut |progress| {
                let _ = tell.send(progress);
                answers.recv().unwrap_or(Continue::No)
            });
            (inner, result)
        });
        loop {
            match told.recv_timeout(self.limit) {
                Ok(now) => {
                    let _ = answer.send(progress(now));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("settle hangs: it tells no progress"),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        let (inner, result) = settling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.inner = Some(inner);
        result
    }

    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        let (limit, manifest) = (self.limit, manifest.to_vec());
        let inner = self.take();
        within(limit, "seal", move || inner.seal(&manifest))
    }

    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        let limit = self.limit;
        let inner = self.take();
        within(limit, "abandon", move || inner.abandon())
    }
}
