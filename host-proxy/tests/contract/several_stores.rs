//! One machine, its disks in three kinds of storage: one snapshot, or none. What fails in one of them is undone in all.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host_proxy::audit::Audit;
use host_proxy::catalog::Catalog;
use host_proxy::config::Config;
use host_proxy::drivers::{
    Continue, CutSet, Deleted, Driver, DriverError, Expose, Found, Kind, Owner, Plan, Progress, Ready,
    Recovered, SetCut, Volume, VolumeFacts, VolumeSnapshot,
};
use host_proxy::policy::{self, Asker};
use host_proxy::service::{Outcome, Service};
use host_proxy::world::World;
use protocol::evidence::{Evidence, Freeze};
use protocol::message::{List, Prepare};
use protocol::record::{State, Timing};
use protocol::{BoundedVec, Consistency, ErrorCode, SnapshotRecord, WireError};

use super::DISK_BYTES;
use super::asking::{held, request_for};
use super::bench::{Bench, Files, PausedQemu};

const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
const STORES: [&str; 3] = ["clones", "tree", "copies"];
/// Each disk with its store; the fourth is beside the second.
const DISKS: [(&str, &str); 4] = [("one", "clones"), ("two", "tree"), ("three", "copies"), ("four", "tree")];

/// Where a driver fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Prepare,
    Cut,
    Settle,
}

/// A driver that fails there.
struct Broken {
    inner: Box<dyn Driver>,
    at: Option<Step>,
}

fn fail(at: Option<Step>, step: Step) -> Result<(), DriverError> {
    if at == Some(step) { Err(DriverError::new(Kind::Failed, "injected")) } else { Ok(()) }
}

impl Driver for Broken {
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
        fail(self.at, Step::Prepare)?;
        Ok(Box::new(BrokenReady { inner: self.inner.prepare(plan, deadline)?, at: self.at }))
    }
    fn list(&self) -> Result<Vec<Found>, DriverError> {
        self.inner.list()
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
    fn expose(&self) -> Option<&dyn Expose> {
        self.inner.expose()
    }
    fn is_cut_by_machine(&self) -> bool {
        self.inner.is_cut_by_machine()
    }
    fn set_cut(&self) -> SetCut {
        self.inner.set_cut()
    }
}

struct BrokenReady {
    inner: Box<dyn Ready>,
    at: Option<Step>,
}

impl Ready for BrokenReady {
    fn volumes(&self) -> &[VolumeSnapshot] {
        self.inner.volumes()
    }
    fn cut(self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError> {
        if let Err(error) = fail(self.at, Step::Cut) {
            return Err(error.after_undo(self.inner.abandon()));
        }
        Ok(Box::new(BrokenCut { inner: self.inner.cut(deadline)?, at: self.at }))
    }
    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.inner.abandon()
    }
}

struct BrokenCut {
    inner: Box<dyn CutSet>,
    at: Option<Step>,
}

impl CutSet for BrokenCut {
    fn volumes(&self) -> &[VolumeSnapshot] {
        self.inner.volumes()
    }
    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError> {
        fail(self.at, Step::Settle)?;
        self.inner.settle(progress)
    }
    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError> {
        self.inner.seal(manifest)
    }
    fn abandon(self: Box<Self>) -> Result<(), DriverError> {
        self.inner.abandon()
    }
}

/// The three of them.
struct Storage {
    clones: Files,
    tree: Files,
    copies: PausedQemu,
}

impl Storage {
    fn new() -> Self {
        let storage = Self {
            clones: Files::reflink(),
            tree: Files::btrfs(),
            copies: PausedQemu::with_disks(&["three"]),
        };
        storage.write(0x11);
        storage
    }

    fn bench(&self, store: &str) -> &dyn Bench {
        match store {
            "clones" => &self.clones,
            "tree" => &self.tree,
            _ => &self.copies,
        }
    }

    /// The volume behind a disk.
    fn volume(&self, serial: &str) -> Volume {
        let (_, store) = DISKS.iter().find(|(disk, _)| *disk == serial).unwrap();
        self.bench(store).volumes()[usize::from(serial == "four")].clone()
    }

    /// As the guest would, on all disks.
    fn write(&self, byte: u8) {
        for (serial, store) in DISKS {
            self.bench(store).write(&self.volume(serial), byte);
        }
    }

    fn lists(&self) -> Vec<Found> {
        STORES.iter().flat_map(|store| self.bench(store).driver().list().unwrap()).collect()
    }

    fn service(&self, folder: &Path, broken: Option<(&str, Step)>) -> Arc<Service> {
        let mut text = format!(
            "[service]\nlisten_vsock = false\nstate_dir = \"{0}\"\ncontrol_socket = \"{0}/control\"\n",
            folder.display()
        );
        let mut drivers: BTreeMap<String, Box<dyn Driver>> = BTreeMap::new();
        for store in STORES {
            let inner = self.bench(store).driver();
            let driver = inner.name();
            text += &format!(
                "[[store]]\nname = \"{store}\"\ndriver = \"{driver}\"\npath = \"{}/{store}\"\nmin_free = \"1MiB\"\n",
                folder.display()
            );
            let at = broken.filter(|(name, _)| *name == store).map(|(_, step)| step);
            drivers.insert(store.to_owned(), Box::new(Broken { inner, at }));
        }
        let qmp = self.volume("three").qmp.unwrap();
        text += &format!(
            "[[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"{}/vsock\"\nqmp = \"{}\"\n",
            folder.display(),
            qmp.display()
        );
        for (serial, store) in DISKS {
            let path = self.volume(serial).source.to_string();
            text += &format!(
                "[[vm.disk]]\nserial = \"{serial}\"\nstore = \"{store}\"\npath = \"{path}\"\nformat = \"raw\"\n"
            );
        }
        let config = Config::parse(&text, Path::new("test.toml")).unwrap();
        let world = World::with_drivers(config, drivers);
        let catalog = Catalog::open(&folder.join("catalog.sqlite")).unwrap();
        Service::new(world, catalog, Audit::open(folder).unwrap())
    }

    /// The disks hold 0x22 at the cut, and something else from then on.
    async fn take(
        &self,
        service: &Arc<Service>,
        serials: &[&str],
        minimum: Consistency,
        freeze: Freeze,
    ) -> Result<Box<SnapshotRecord>, WireError> {
        self.write(0x11);
        let world = service.world();
        let vm = world.vm(UUID.parse().unwrap()).unwrap();
        let asked = prepare(serials, minimum);
        let Outcome::Ready(operation) = service.prepare(Asker::Guest, vm, &asked).await? else {
            panic!("it is new")
        };
        self.write(0x22);
        let cut = operation.cut(Duration::from_secs(60)).await;
        self.write(0x33);
        cut?.conclude(Some((evidence(freeze), Timing::default()))).await?.finish().await
    }
}

fn prepare(serials: &[&str], minimum: Consistency) -> Prepare {
    let disks: Vec<_> = serials.iter().map(|serial| (*serial, DISK_BYTES, 0x11)).collect();
    request_for(&disks, minimum)
}

fn evidence(freeze: Freeze) -> Evidence {
    match freeze {
        Freeze::Held => held(),
        other => Evidence { freeze: other, file_systems: BoundedVec::empty(), hooks: BoundedVec::empty() },
    }
}

async fn known(service: &Service) -> Vec<SnapshotRecord> {
    let list = List { limit: 100, ..List::default() };
    service.list(&policy::read_as_admin(None), list).await.unwrap().snapshots.into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_disks_in_three_kinds_of_storage_has_one_snapshot_or_none() {
    let storage = Storage::new();
    it_is_one_snapshot_of_what_was_there_under_the_freeze(&storage).await;
    without_a_freeze_it_is_refused_or_worth_a_crash_of_each_disk(&storage).await;
    what_fails_in_one_is_undone_in_all(&storage).await;
}

async fn it_is_one_snapshot_of_what_was_there_under_the_freeze(storage: &Storage) {
    let folder = tempfile::tempdir().unwrap();
    let service = storage.service(folder.path(), None);
    let all = DISKS.map(|(serial, _)| serial);
    let record = storage.take(&service, &all, Consistency::Filesystem, Freeze::Held).await.unwrap();
    assert_eq!((record.state, record.consistency), (State::Ready, Consistency::Filesystem));
    let drivers: Vec<_> = record.disks.iter().map(|disk| disk.driver.as_str()).collect();
    assert_eq!(drivers, ["reflink", "btrfs", "qemu", "btrfs"]);
    let owner = Owner { vm: record.vm_uuid, snapshot: record.id };
    for (serial, store) in DISKS {
        let bench = storage.bench(store);
        let driver = bench.driver();
        // In the store a volume has the serial of the configuration.
        let exposed = driver.expose().unwrap().expose(owner, &serial.parse().unwrap()).unwrap();
        assert_eq!(bench.read(&exposed), (0x22, DISK_BYTES), "{serial}");
        let [Found { owner: whose, whole: true, manifest: Some(_) }] = &driver.list().unwrap()[..] else {
            panic!("{store} has another: {:?}", driver.list())
        };
        assert_eq!(*whose, owner);
    }
    assert!(service.reconcile().await.unwrap().is_clean());
    service.delete(policy::delete_as_admin(&record, host_proxy::service::now()).unwrap()).await.unwrap();
    assert_eq!(storage.lists(), []);
}

async fn without_a_freeze_it_is_refused_or_worth_a_crash_of_each_disk(storage: &Storage) {
    let folder = tempfile::tempdir().unwrap();
    let service = storage.service(folder.path(), None);
    let three = ["one", "two", "three"];
    let lost = || Freeze::NotHeld("the keeper was killed".parse().unwrap());
    for freeze in [Freeze::NotAsked, lost()] {
        let refused = storage.take(&service, &three, Consistency::Filesystem, freeze).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::ConsistencyNotReached, "{refused}");
        assert!(refused.message.as_str().contains("not cut at one instant"), "{refused}");
        assert_eq!(storage.lists(), []);
        assert_eq!(known(&service).await, []);
    }
    let apart = ["one", "two"];
    // One subvolume holds both: one instant, whoever wrote meanwhile.
    let together = ["two", "four"];
    for (serials, is_apart) in [(&three[..], true), (&apart, true), (&together, false), (&["two"], false)] {
        let record = storage.take(&service, serials, Consistency::Crash, lost()).await.unwrap();
        assert_eq!(record.consistency, Consistency::Crash);
        let reason = record.consistency_reason.as_str();
        assert!(reason.contains("the keeper was killed"), "{reason}");
        assert_eq!(
            reason.contains("each disk is as after a power cut of its own"),
            is_apart,
            "{serials:?}: {reason}"
        );
        service.delete(policy::delete_as_admin(&record, host_proxy::service::now()).unwrap()).await.unwrap();
    }
}

async fn what_fails_in_one_is_undone_in_all(storage: &Storage) {
    let three = ["one", "two", "three"];
    for store in STORES {
        for step in [Step::Prepare, Step::Cut, Step::Settle] {
            let folder = tempfile::tempdir().unwrap();
            let service = storage.service(folder.path(), Some((store, step)));
            let error =
                storage.take(&service, &three, Consistency::Filesystem, Freeze::Held).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::StorageFailed, "{store} {step:?}: {error}");
            assert_eq!(storage.lists(), [], "{store} {step:?}: something is left");
            // Once the guest was told that it is cut, it is told what became of it.
            let told: Vec<_> = known(&service).await.iter().map(|record| record.state).collect();
            let expected: &[State] = if step == Step::Settle { &[State::Failed] } else { &[] };
            assert_eq!(told, expected, "{store} {step:?}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let service = storage.service(folder.path(), None);
    storage.take(&service, &three, Consistency::Filesystem, Freeze::Held).await.unwrap();
}
