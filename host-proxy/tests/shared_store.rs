//! Two hosts on one store, as Ceph's pools are: each has a catalog of its own, and what the other did must be known
//! before anybody is told anything. The store is a real one, reflinks on XFS, that says of itself that it is shared.

#[allow(dead_code)]
#[path = "common/asking.rs"]
mod asking;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use asking::request_for;
use harness::loopfs::{Kind as Fs, LoopFs};
use host_proxy::audit::Audit;
use host_proxy::catalog::Catalog;
use host_proxy::config::Config;
use host_proxy::drivers::reflink::Reflink;
use host_proxy::drivers::{
    Deleted, Driver, DriverError, Found, Owner, Plan, Ready, Recovered, Volume, VolumeFacts,
};
use host_proxy::policy::{self, Asker};
use host_proxy::service::{Outcome, Service};
use host_proxy::world::World;
use protocol::evidence::Evidence;
use protocol::message::{DeleteOutcome, List, Prepare};
use protocol::record::UnixMillis;
use protocol::{Consistency, SnapshotRecord};

const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";

/// A store that says whether it is shared, and counts how often it was listed.
struct Told {
    inner: Reflink,
    is_shared: bool,
    listed: Arc<AtomicUsize>,
}

impl Told {
    fn new(folder: &Path, is_shared: bool) -> Self {
        Self { inner: Reflink::new(folder.to_owned()).unwrap(), is_shared, listed: Arc::default() }
    }
}

impl Driver for Told {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn is_shared(&self) -> bool {
        self.is_shared
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
        self.inner.prepare(plan, deadline)
    }
    fn list(&self) -> Result<Vec<Found>, DriverError> {
        self.listed.fetch_add(1, SeqCst);
        self.inner.list()
    }
    fn recover(&self, owner: Owner, volumes: &[Volume]) -> Result<Recovered, DriverError> {
        self.inner.recover(owner, volumes)
    }
    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        self.inner.delete(owner)
    }
    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        self.inner.rewrite(owner, manifest)
    }
}

/// A host; `vm` is whether the machine may come in here.
fn host(folder: &Path, fs: &LoopFs, vm: bool) -> Arc<Service> {
    host_with(folder, fs, vm, None)
}

/// As `host`, with one more store, of its own, in this folder.
fn host_with(folder: &Path, fs: &LoopFs, vm: bool, own: Option<(&Path, Told)>) -> Arc<Service> {
    let mut text = format!(
        "[service]\nlisten_vsock = false\nstate_dir = \"{0}\"\ncontrol_socket = \"{0}/control\"\n\
         [[store]]\nname = \"s\"\ndriver = \"reflink\"\npath = \"{1}\"\nmin_free = \"1MiB\"\n",
        folder.display(),
        fs.path().display()
    );
    if vm {
        text += &format!(
            "[[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"{}/vsock\"\n\
             [[vm.disk]]\nserial = \"data\"\nstore = \"s\"\npath = \"{}/data.img\"\nformat = \"raw\"\n",
            folder.display(),
            fs.path().display()
        );
    }
    let driver: Box<dyn Driver> = Box::new(Told::new(&fs.path(), true));
    let mut drivers = BTreeMap::from([("s".to_owned(), driver)]);
    if let Some((path, own)) = own {
        text += &format!(
            "[[store]]\nname = \"own\"\ndriver = \"reflink\"\npath = \"{}\"\nmin_free = \"1MiB\"\n",
            path.display()
        );
        drivers.insert("own".to_owned(), Box::new(own));
    }
    let config = Config::parse(&text, Path::new("test.toml")).unwrap();
    let world = World::with_drivers(config, drivers);
    let catalog = Catalog::open(&folder.join("catalog.sqlite")).unwrap();
    Service::new(world, catalog, Audit::open(folder).unwrap())
}

fn request() -> Prepare {
    request_for(&[("data", 1 << 20, 7)], Consistency::Crash)
}

async fn prepared(service: &Arc<Service>, prepare: &Prepare) -> Outcome {
    let world = service.world();
    service.prepare(Asker::Guest, world.vm(UUID.parse().unwrap()).unwrap(), prepare).await.unwrap()
}

async fn take(service: &Arc<Service>, prepare: &Prepare) -> Box<SnapshotRecord> {
    let Outcome::Ready(operation) = prepared(service, prepare).await else { panic!("it was not ready") };
    let cut = operation.cut(Duration::from_secs(60)).await.unwrap();
    cut.conclude(None::<(Evidence, _)>).await.unwrap().finish().await.unwrap()
}

async fn listed(service: &Arc<Service>) -> Vec<SnapshotRecord> {
    let list = List { limit: 100, ..List::default() };
    service.list(&policy::read_as_admin(None), list).await.unwrap().snapshots.into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_host_made_another_lists_repeats_and_deletes_and_the_first_forgets_it() {
    let fs = LoopFs::new(Fs::Xfs, 400);
    std::fs::write(fs.path().join("data.img"), vec![7; 1 << 20]).unwrap();
    let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (first, second) = (host(one.path(), &fs, true), host(two.path(), &fs, true));
    assert!(first.reconcile().await.unwrap().is_clean() && second.reconcile().await.unwrap().is_clean());

    let asked = request();
    let made = take(&first, &asked).await;
    second.freshen().await;
    assert_eq!(listed(&second).await, [(*made).clone()]);
    // A guest that was moved in the middle of its request repeats it there.
    let Outcome::Existing(again) = prepared(&second, &asked).await else { panic!("it was answered before") };
    assert_eq!(again, made);

    let allowed = policy::delete_as_admin(&again, host_proxy::service::now()).unwrap();
    assert_eq!(second.delete(allowed).await.unwrap(), DeleteOutcome::Gone);
    let report = first.reconcile().await.unwrap();
    assert_eq!(report.removed, [made.id], "{report:?}");
    assert!(report.lost.is_empty(), "the storage lost nothing: {report:?}");
    assert_eq!(listed(&first).await, []);
}

/// Each list of a guest's made the service list its other stores too, every five seconds.
#[tokio::test(flavor = "multi_thread")]
async fn to_learn_what_other_hosts_did_no_store_is_asked_that_only_this_host_uses() {
    let (fs, other) = (LoopFs::new(Fs::Xfs, 400), LoopFs::new(Fs::Xfs, 400));
    std::fs::write(fs.path().join("data.img"), vec![7; 1 << 20]).unwrap();
    let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let own = Told::new(&other.path(), false);
    let own_was_listed = Arc::clone(&own.listed);
    let first = host(one.path(), &fs, true);
    let second = host_with(two.path(), &fs, true, Some((&other.path(), own)));
    take(&first, &request()).await;
    second.freshen().await;
    assert_eq!((listed(&second).await.len(), own_was_listed.load(SeqCst)), (1, 0));
    second.reconcile().await.unwrap();
    assert_eq!((listed(&second).await.len(), own_was_listed.load(SeqCst)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_host_locked_another_does_not_delete_until_it_is_unlocked() {
    let fs = LoopFs::new(Fs::Xfs, 400);
    std::fs::write(fs.path().join("data.img"), vec![7; 1 << 20]).unwrap();
    let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (first, second) = (host(one.path(), &fs, true), host(two.path(), &fs, true));
    let made = take(&first, &request()).await;
    second.reconcile().await.unwrap();
    let now = host_proxy::service::now();
    let lock = async |service: &Arc<Service>, until| {
        let allowed = policy::lock_as_admin(&made, until, now).unwrap();
        service.lock(allowed).await.unwrap();
    };
    lock(&first, Some(UnixMillis(now.0 + 3_600_000))).await;
    second.reconcile().await.unwrap();
    let known = listed(&second).await.remove(0);
    assert!(policy::delete_as_admin(&known, now).is_err(), "{known:?}");
    lock(&second, None).await;
    first.reconcile().await.unwrap();
    let known = listed(&first).await.remove(0);
    first.delete(policy::delete_as_admin(&known, now).unwrap()).await.unwrap();
}

/// A host that does not know the machine entered the remains into its catalog as something to finish, and was
/// never done with it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_elsewhere_left_unfinished_is_that_hosts_business() {
    let fs = LoopFs::new(Fs::Xfs, 400);
    std::fs::write(fs.path().join("data.img"), vec![7; 1 << 20]).unwrap();
    let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (first, stranger) = (host(one.path(), &fs, true), host(two.path(), &fs, false));
    let Outcome::Ready(operation) = prepared(&first, &request()).await else { panic!("it was not ready") };
    drop(operation);
    let report = stranger.reconcile().await.unwrap();
    assert!(report.problems.iter().any(|problem| problem.contains("is not configured")), "{report:?}");
    assert_eq!(listed(&stranger).await, []);
    assert_eq!(first.reconcile().await.unwrap().cleaned.len(), 1);
    assert!(stranger.reconcile().await.unwrap().is_clean());
}
