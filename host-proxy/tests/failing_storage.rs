//! The service over a storage that fails at the nth call, or is slow: whatever happens, nothing is
//! half done after a reconcile, and nothing is claimed that was not proved. The storage below the
//! fault is a real one: reflinks on XFS.

#[path = "common/asking.rs"]
mod asking;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use asking::{held, request_for};
use harness::loopfs::{Kind as Fs, LoopFs};
use host_proxy::audit::Audit;
use host_proxy::catalog::Catalog;
use host_proxy::config::Config;
use host_proxy::drivers::reflink::Reflink;
use host_proxy::drivers::{
    Continue, CutSet, Deleted, Driver, DriverError, Found, Kind, Owner, Plan, Progress, Ready, Recovered,
    Volume, VolumeFacts, VolumeSnapshot,
};
use host_proxy::policy::{self, Asker};
use host_proxy::service::{Outcome, Service};
use host_proxy::world::World;
use protocol::attach::{Access, Attach};
use protocol::message::{List, Prepare};
use protocol::record::{State, Timing};
use protocol::{BoundedVec, Consistency, ErrorCode, SnapshotRecord, WireError};

const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";

/// What goes wrong.
#[derive(Clone, Default)]
struct Fault {
    /// The call that fails; 0 is none.
    fails_at: usize,
    /// How much longer the cut takes.
    slow_cut: Duration,
    /// What else happens when a snapshot is sealed.
    at_seal: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Whether it can't be listed.
    is_away: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

impl Fault {
    fn call(&self, what: &str) -> Result<(), DriverError> {
        match self.calls.fetch_add(1, SeqCst) + 1 == self.fails_at {
            true => Err(DriverError::new(Kind::Failed, format!("{what}: injected"))),
            false => Ok(()),
        }
    }
}

struct Faulty {
    inner: Box<dyn Driver>,
    fault: Fault,
}

impl Driver for Faulty {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        self.fault.call("check")?;
        self.inner.check(volume)
    }
    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
        self.fault.call("read_head")?;
        self.inner.read_head(volume, len)
    }
    fn free_bytes(&self) -> Result<u64, DriverError> {
        self.fault.call("free_bytes")?;
        self.inner.free_bytes()
    }
    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError> {
        self.fault.call("prepare")?;
        let inner = self.inner.prepare(plan, deadline)?;
        Ok(Box::new(FaultyReady { inner, fault: self.fault.clone() }))
    }
    fn list(&self) -> Result<Vec<Found>, DriverError> {
        match self.fault.is_away.load(SeqCst) {
            true => Err(DriverError::new(Kind::Unreachable, "list: injected")),
            false => self.inner.list(),
        }
    }
    fn recover(&self, owner: Owner, volumes: &[Volume]) -> Result<Recovered, DriverError> {
        self.inner.recover(owner, volumes)
    }
    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        self.inner.rewrite(owner, manifest)
    }
    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        self.inner.delete(owner)
    }
}

struct FaultyReady {
    inner: Box<dyn Ready>,
    fault: Fault,
}

impl Ready for FaultyReady {
    fn volumes(&self) -> &[VolumeSnapshot] {
        self.inner.volumes()
    }
    fn cut(self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        self.fault.call("cut")?;
        let inner = self.inner.cut(deadline)?;
        std::thread::sleep(self.fault.slow_cut);
        Ok(Box::new(FaultyCut { inner, fault: self.fault }))
    }
    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.inner.abandon()
    }
}

struct FaultyCut {
    inner: Box<dyn CutSet>,
    fault: Fault,
}

impl CutSet for FaultyCut {
    fn volumes(&self) -> &[VolumeSnapshot] {
        self.inner.volumes()
    }
    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        self.fault.call("settle")?;
        self.inner.settle(progress)
    }
    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        self.fault.call("seal")?;
        self.fault.at_seal.iter().for_each(|happen| happen());
        self.inner.seal(manifest)
    }
    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.inner.abandon()
    }
}

/// A service over this fault; what it leaves stays in the folder and on the file system.
fn service(folder: &Path, fs: &LoopFs, fault: &Fault) -> Arc<Service> {
    let text = format!(
        "[service]\nlisten_vsock = false\nstate_dir = \"{0}\"\ncontrol_socket = \"{0}/control\"\n\
         [[store]]\nname = \"s\"\ndriver = \"reflink\"\npath = \"{1}\"\nmin_free = \"1MiB\"\n\
         [[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"{0}/vsock\"\nqmp = \"{0}/qmp\"\n\
         [[vm.disk]]\nserial = \"data\"\nstore = \"s\"\npath = \"{1}/data.img\"\nformat = \"raw\"\n",
        folder.display(),
        fs.path().display()
    );
    let config = Config::parse(&text, Path::new("test.toml")).unwrap();
    let inner: Box<dyn Driver> = Box::new(Reflink::new(fs.path()).unwrap());
    let driver: Box<dyn Driver> = Box::new(Faulty { inner, fault: fault.clone() });
    let world = World::with_drivers(config, BTreeMap::from([("s".to_owned(), driver)]));
    let catalog = Catalog::open(&folder.join("catalog.sqlite")).unwrap();
    Service::new(world, catalog, Audit::open(folder).unwrap())
}

fn storage() -> LoopFs {
    let fs = LoopFs::new(Fs::Xfs, 400);
    std::fs::write(fs.path().join("data.img"), vec![7; 1 << 20]).unwrap();
    fs
}

fn prepare(minimum: Consistency) -> Prepare {
    request_for(&[("data", 1 << 20, 7)], minimum)
}

async fn take(
    service: &Arc<Service>,
    prepare: &Prepare,
    within: Duration,
) -> Result<Box<SnapshotRecord>, WireError> {
    let world = service.world();
    let vm = world.vm(UUID.parse().unwrap()).unwrap();
    match service.prepare(Asker::Guest, vm, prepare).await? {
        Outcome::Ready(operation) => {
            let cut = operation.cut(within).await?;
            cut.conclude(Some((held(), Timing::default()))).await?.finish().await
        }
        Outcome::Existing(record) => Ok(record),
        Outcome::Planned(_) => unreachable!("no dry run was asked for"),
    }
}

async fn listed(service: &Service) -> Vec<SnapshotRecord> {
    let list = List { limit: 100, ..List::default() };
    service.list(&policy::read_as_admin(None), list).await.unwrap().snapshots.into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_call_fails_nothing_is_half_done_after_a_reconcile() {
    let fs = storage();
    let mut failures = 0;
    for fails_at in 1.. {
        let folder = tempfile::tempdir().unwrap();
        let fault = Fault { fails_at, ..Fault::default() };
        let broken = service(folder.path(), &fs, &fault);
        let prepare = prepare(Consistency::Filesystem);
        let outcome = take(&broken, &prepare, Duration::from_secs(60)).await;
        drop(broken);
        if fault.calls.load(SeqCst) < fails_at {
            assert!(outcome.is_ok(), "{outcome:?}");
            break;
        }
        failures += 1;
        assert!(outcome.is_err(), "call {fails_at} failed and nobody noticed");

        // The service is restarted, on a storage that works again.
        let mended = service(folder.path(), &fs, &Fault::default());
        mended.reconcile().await.unwrap();
        // What was cut and settled is finished; all else is gone.
        let storage = || Reflink::new(fs.path()).unwrap().list().unwrap();
        harness::wait::wait_until("nothing is half done", Duration::from_secs(30), || {
            storage().iter().all(|one| one.whole)
        });
        let known = listed(&mended).await;
        for one in storage() {
            let record =
                known.iter().find(|record| record.id == one.owner.snapshot).expect("nobody knows of it");
            assert_eq!(record.consistency, Consistency::Filesystem, "{record:?}");
            Reflink::new(fs.path()).unwrap().delete(one.owner).unwrap();
        }
    }
    assert!(failures >= 7, "only {failures} calls were tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_that_is_slower_than_the_freeze_is_worth_no_more_than_a_crash() {
    let fs = storage();
    let folder = tempfile::tempdir().unwrap();
    let slow = Fault { slow_cut: Duration::from_millis(300), ..Fault::default() };
    let service = service(folder.path(), &fs, &slow);
    let within = Duration::from_millis(100);

    let asked = prepare(Consistency::Filesystem);
    let refused = take(&service, &asked, within).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ConsistencyNotReached, "{refused}");
    assert!(Reflink::new(fs.path()).unwrap().list().unwrap().is_empty());

    let asked = prepare(Consistency::Crash);
    let record = take(&service, &asked, within).await.unwrap();
    assert_eq!(record.consistency, Consistency::Crash);
    assert!(record.consistency_reason.as_str().contains("lease"), "{}", record.consistency_reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_before_a_crash_is_kept_only_if_its_user_accepts_that() {
    let fs = storage();
    for minimum in [Consistency::Crash, Consistency::Filesystem] {
        let folder = tempfile::tempdir().unwrap();
        let asked = prepare(minimum);
        let id = {
            let crashing = service(folder.path(), &fs, &Fault::default());
            let world = crashing.world();
            let vm = world.vm(UUID.parse().unwrap()).unwrap();
            let Outcome::Ready(operation) = crashing.prepare(Asker::Guest, vm, &asked).await.unwrap() else {
                panic!("it was not ready");
            };
            let id = operation.prepared().id;
            drop(operation.cut(Duration::from_secs(60)).await.unwrap());
            id
        };
        let restarted = service(folder.path(), &fs, &Fault::default());
        restarted.reconcile().await.unwrap();
        // What was found is settled in the background; who asks meanwhile is told to repeat it.
        let record = loop {
            match take(&restarted, &asked, Duration::from_secs(60)).await {
                Err(error) if error.code == ErrorCode::Busy => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                taken => break taken.unwrap(),
            }
        };
        assert_eq!(record.id, id, "the same request, the same snapshot");
        let expected =
            if minimum == Consistency::Crash { Consistency::Crash } else { Consistency::Filesystem };
        assert_eq!(record.consistency, expected, "{}", record.consistency_reason);
        assert_eq!(Reflink::new(fs.path()).unwrap().list().unwrap().len(), 1);
        let allowed = policy::delete_as_admin(&record, host_proxy::service::now()).unwrap();
        harness::wait::wait_until("it is whole", Duration::from_secs(30), || {
            Reflink::new(fs.path()).unwrap().list().unwrap()[0].whole
        });
        while restarted.delete(allowed.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_whole_when_the_state_folder_is_full_is_told_and_found_again() {
    let fs = storage();
    // Where nothing can be set aside for the truth.
    let state = LoopFs::new(Fs::Ext2, 8);
    let state_path = state.path();
    let room = Arc::new(Mutex::new(None));
    let filler = Arc::clone(&room);
    let state = Arc::new(state);
    let at_seal = move || *filler.lock().unwrap() = Some(state.fill());
    let full = Fault { at_seal: Some(Arc::new(at_seal)), ..Fault::default() };
    let service = service(&state_path, &fs, &full);
    let asked = prepare(Consistency::Filesystem);
    let error = take(&service, &asked, Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSpace, "{error}");
    assert!(error.message.as_str().contains("is whole on the storage"), "{error}");

    // Nobody is told that there is none.
    let known = listed(&service).await;
    assert!(matches!(&known[..], [one] if one.state == State::Settling), "{known:?}");
    drop(room.lock().unwrap().take());
    service.tend().await;
    let again = take(&service, &asked, Duration::from_secs(60)).await.unwrap();
    assert_eq!((again.id, again.state), (known[0].id, State::Ready));
    assert_eq!(again.consistency, Consistency::Filesystem);
    assert!(service.reconcile().await.unwrap().is_clean());
}

/// Only the administrator's `reconcile`, or another start, found them; until then they counted for no quota.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_in_a_store_that_was_away_at_the_start_are_known_when_it_is_back() {
    let (fs, folder) = (storage(), tempfile::tempdir().unwrap());
    let before = service(folder.path(), &fs, &Fault::default());
    let made = take(&before, &prepare(Consistency::Filesystem), Duration::from_secs(60)).await.unwrap();
    let (new_folder, away) = (tempfile::tempdir().unwrap(), Fault::default());
    away.is_away.store(true, SeqCst);
    let service = service(new_folder.path(), &fs, &away);
    let report = service.reconcile().await.unwrap();
    assert!(report.problems.iter().any(|problem| problem.contains("injected")), "{report:?}");
    service.tend().await;
    assert_eq!(listed(&service).await, []);
    away.is_away.store(false, SeqCst);
    service.tend().await;
    assert!(matches!(&listed(&service).await[..], [one] if one.id == made.id));
    assert!(service.reconcile().await.unwrap().is_clean());
}

/// By a driver without `expose` it was searched for in all stores and then not found.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_its_storage_cannot_show_is_not_attached_and_nothing_is_noted_of_it() {
    let (fs, folder) = (storage(), tempfile::tempdir().unwrap());
    let service = service(folder.path(), &fs, &Fault::default());
    let made = take(&service, &prepare(Consistency::Filesystem), Duration::from_secs(60)).await.unwrap();
    let wanted = Attach { id: made.id, disks: BoundedVec::empty(), access: Access::ReadOnly };
    let world = service.world();
    let vm = world.vm(UUID.parse().unwrap()).unwrap();
    let error = service.attach(vm, &wanted).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unsupported, "{error}");
    assert!(error.message.as_str().contains("the driver reflink can't show one"), "{error}");
    assert_eq!(service.attachments(vm).await.unwrap(), []);
    let told = service.abilities(vm).await;
    assert!(!told[0].abilities.iter().any(|word| word.as_str() == "attach"), "{told:?}");
}
