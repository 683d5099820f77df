//! A service on reflinks, whose wall clock the test sets.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use harness::loopfs::{Kind, LoopFs};
use host_proxy::audit::Audit;
use host_proxy::catalog::Catalog;
use host_proxy::config::Config;
use host_proxy::drivers::{Driver, reflink::Reflink};
use host_proxy::policy::{self, Asker};
use host_proxy::service::{Clock, Operation, Outcome, Report, Service, Workers};
use host_proxy::world::World;
use protocol::message::{List, Prepare, Request};
use protocol::record::UnixMillis;
use protocol::{Consistency, ErrorCode, SnapshotId, SnapshotRecord, Ticket, WireError};

use super::guest::{conclude, request_for};

pub(crate) const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
pub(crate) const SECOND: u64 = 1000;
pub(crate) const HOUR: u64 = 3600 * SECOND;
pub(crate) const DAY: u64 = 24 * HOUR;
const QUOTA: &str = "{ snapshots = 100 }";
const IMAGE_BYTES: u64 = 1 << 20;

pub(crate) struct Stage {
    folder: tempfile::TempDir,
    store: LoopFs,
    clock: Arc<AtomicU64>,
    pub(crate) service: Arc<Service>,
}

impl Stage {
    pub(crate) fn set() -> Self {
        Self::with_quota(QUOTA)
    }

    pub(crate) fn with_quota(quota: &str) -> Self {
        let store = LoopFs::in_memory(Kind::Xfs, 400);
        std::fs::write(store.path().join("data.img"), vec![7; usize::try_from(IMAGE_BYTES).unwrap()])
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(AtomicU64::new(1_800_000_000_000));
        let service = service(folder.path(), &store, &clock, quota);
        Self { folder, store, clock, service }
    }

    /// Sets the wall clock on, or back.
    pub(crate) fn jump(&self, milliseconds: i64) {
        let jump = |now: u64| now.checked_add_signed(milliseconds);
        self.clock.fetch_update(SeqCst, SeqCst, jump).expect("long after 1970");
    }

    /// What the wall clock shows.
    pub(crate) fn now(&self) -> u64 {
        self.clock.load(SeqCst)
    }

    pub(crate) async fn ready(&self, prepare: &Prepare) -> Result<Box<Operation>, WireError> {
        let world = self.service.world();
        let vm = world.vm(UUID.parse().unwrap()).unwrap();
        match self.service.prepare(Asker::Guest, vm, prepare).await? {
            Outcome::Ready(operation) => Ok(operation),
            _ => panic!("it was asked for before"),
        }
    }

    /// A snapshot, to be kept for so long.
    pub(crate) async fn take(&self, keep_for_ms: Option<u64>) -> Result<SnapshotRecord, WireError> {
        finish(self.ready(&asked(keep_for_ms)).await?).await
    }

    pub(crate) async fn list(&self, limit: u16, after: Option<SnapshotId>) -> Vec<SnapshotId> {
        let list = List { limit, after, ..List::default() };
        let page = self.service.list(&policy::read_as_admin(None), list).await.unwrap();
        page.snapshots.iter().map(|record| record.id).collect()
    }

    pub(crate) async fn show(&self, reference: &str) -> Result<SnapshotRecord, WireError> {
        self.service.get(&policy::read_as_admin(None), reference.parse().unwrap()).await
    }

    pub(crate) async fn delete(&self, record: &SnapshotRecord) {
        let allowed = policy::delete_as_admin(record, UnixMillis(self.now())).unwrap();
        self.service.delete(allowed).await.unwrap();
    }

    /// Locks it for so long from now, or unlocks it.
    pub(crate) async fn lock(&self, record: &SnapshotRecord, for_ms: Option<u64>) -> Result<(), WireError> {
        let now = self.now();
        let until = for_ms.map(|ms| UnixMillis(now + ms));
        let allowed = policy::lock_as_admin(record, until, UnixMillis(now)).unwrap();
        self.service.lock(allowed).await.map(drop)
    }

    /// Whether its deletion would be refused for its lock.
    pub(crate) fn lock_is_in_the_way(&self, record: &SnapshotRecord) -> bool {
        let decided = policy::delete_as_admin(record, UnixMillis(self.now()));
        decided.is_err_and(|error| error.code == ErrorCode::Locked)
    }

    pub(crate) async fn reconcile(&self) -> Report {
        self.service.reconcile().await.unwrap()
    }

    /// What the storage has of a snapshot.
    pub(crate) fn on_storage(&self, record: &SnapshotRecord) -> std::path::PathBuf {
        self.store.path().join(".hostsnap").join(UUID).join(record.id.to_string())
    }

    /// The service looks after things once a minute, for so many of them.
    pub(crate) async fn tend_for_minutes(&self, minutes: u64) {
        for _ in 0..minutes {
            tokio::time::advance(Duration::from_secs(60)).await;
            self.jump(60 * SECOND as i64);
            self.service.tend().await;
        }
    }

    /// The same state and storage, and a service that has just started.
    pub(crate) fn restart(self) -> Self {
        let Self { folder, store, clock, service: before } = self;
        drop(before);
        let service = service(folder.path(), &store, &clock, QUOTA);
        Self { folder, store, clock, service }
    }

    /// The same storage, and a service that has just started with an empty catalog.
    pub(crate) fn restart_without_catalog(self) -> Self {
        let Self { store, clock, .. } = self;
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path(), &store, &clock, QUOTA);
        Self { folder, store, clock, service }
    }
}

/// A request for the disk, to be kept for so long.
pub(crate) fn asked(keep_for_ms: Option<u64>) -> Prepare {
    let asked = request_for(&[("data", IMAGE_BYTES, 7)], Consistency::Filesystem);
    Prepare { keep_for_s: keep_for_ms.map(|ms| ms / SECOND), ..asked }
}

/// The rest of its way.
pub(crate) async fn finish(operation: Box<Operation>) -> Result<SnapshotRecord, WireError> {
    let cut = operation.cut(Duration::from_secs(60)).await?;
    let Request::Conclude(seen) = conclude(Ticket::random()) else { unreachable!("it concludes") };
    let settling = cut.conclude(Some((seen.evidence, seen.timing))).await?;
    Ok(*settling.finish().await?)
}

fn service(folder: &Path, store: &LoopFs, clock: &Arc<AtomicU64>, quota: &str) -> Arc<Service> {
    let text = format!(
        "[service]\nlisten_vsock = false\nstate_dir = \"{0}\"\ncontrol_socket = \"{0}/control\"\n\
         [[store]]\nname = \"s\"\ndriver = \"reflink\"\npath = \"{1}\"\nmin_free = \"1MiB\"\n\
         [[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"{0}/vsock\"\nquota = {quota}\n\
         [[vm.disk]]\nserial = \"data\"\nstore = \"s\"\npath = \"{1}/data.img\"\nformat = \"raw\"\n",
        folder.display(),
        store.path().display()
    );
    let config = Config::parse(&text, Path::new("test.toml")).unwrap();
    let driver: Box<dyn Driver> = Box::new(Reflink::new(store.path()).unwrap());
    let world = World::with_drivers(config, BTreeMap::from([("s".to_owned(), driver)]));
    let catalog = Catalog::open(&folder.join("catalog.sqlite")).unwrap();
    let clock = Arc::clone(clock);
    let shown = Clock::showing(move || UnixMillis(clock.load(SeqCst)));
    let workers = Workers::run_by(|job| {
        tokio::task::spawn_blocking(move || job()());
    });
    Service::with(world, catalog, Audit::open(folder).unwrap(), workers, shown)
}
