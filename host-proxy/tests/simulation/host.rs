//! The host: the service that is shipped, over a catalog in a file and a storage in memory. It dies, is
//! started again, and may lose its catalog meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use host_proxy::audit::Audit;
use host_proxy::catalog::Catalog;
use host_proxy::config::{Config, Vm};
use host_proxy::drivers::Driver;
use host_proxy::service::{Clock, Report, Service, Workers};
use host_proxy::session::{self, Peer};
use host_proxy::world::World;
use protocol::{VmUuid, WireError};
use rusqlite::Connection;
use tokio::io::DuplexStream;
use tokio::task::JoinSet;

use crate::driver::Simulated;
use crate::stage::Stage;

const CONFIG: &str = r#"
[[store]]
name = "fast"
driver = "reflink"
path = "/fast"
[[store]]
name = "large"
driver = "reflink"
path = "/large"
[[vm]]
name = "db1"
uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01"
cid = 41
quota = { snapshots = 5, per_hour = 100000 }
disk = [
    { serial = "data", store = "fast", path = "/fast/db1-data.img", format = "raw" },
    { serial = "log", store = "large", path = "/large/db1-log.img", format = "raw" },
]
[[vm]]
name = "db2"
uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f02"
cid = 42
quota = { snapshots = 3, per_hour = 100000 }
disk = [{ serial = "data", store = "fast", path = "/fast/db2-data.img", format = "raw" }]
[[vm]]
name = "vault"
uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f03"
cid = 43
guest_may_delete = false
quota = { snapshots = 4, per_hour = 100000 }
disk = [{ serial = "data", store = "large", path = "/large/vault-data.img", format = "raw" }]
"#;
const STORES: [&str; 2] = ["fast", "large"];

/// A folder for the state of the service, used by one schedule after another.
pub(crate) struct Scratch {
    folder: tempfile::TempDir,
    empty_catalog: Vec<u8>,
    pub(crate) config: Config,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        // In memory, where there is such a place: thousands of catalogs are written.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.expect("a folder for the state");
        let path = folder.path().join("empty.sqlite");
        drop(Catalog::open(&path).expect("an empty catalog"));
        let empty_catalog = fs::read(&path).expect("an empty catalog");
        let config = Config::parse(CONFIG, Path::new("simulation.toml")).expect("a valid configuration");
        Self { folder, empty_catalog, config }
    }

    pub(crate) fn catalog(&self) -> PathBuf {
        self.folder.path().join("catalog.sqlite")
    }

    /// What logrotate does once a month.
    pub(crate) fn rotate_audit(&self) {
        fs::remove_file(self.folder.path().join("audit.log")).expect("an audit log");
    }

    /// An empty catalog, and nothing of an earlier schedule.
    pub(crate) fn clear(&self) {
        for file in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm", "audit.log"] {
            let _ = fs::remove_file(self.folder.path().join(file));
        }
        fs::write(self.catalog(), &self.empty_catalog).expect("an empty catalog");
    }
}

struct Life {
    service: Arc<Service>,
    /// Reconciled, so that guests may come in.
    open: bool,
    tasks: JoinSet<()>,
}

/// The host and its service, if it runs.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) stage: Stage,
    pub(crate) scratch: Arc<Scratch>,
    life: Arc<Mutex<Option<Life>>>,
}

impl Host {
    pub(crate) fn new(stage: Stage, scratch: Arc<Scratch>) -> Self {
        for store in STORES {
            stage.lock().storage.stores.insert(store, BTreeMap::new());
        }
        Self { stage, scratch, life: Arc::default() }
    }

    pub(crate) fn vms(&self) -> &[Vm] {
        &self.scratch.config.vms
    }

    /// A look at the catalog from outside.
    pub(crate) fn observer(&self) -> Connection {
        Connection::open(self.scratch.catalog()).expect("look at the catalog")
    }

    /// Starts the service, as `hostsnapd serve` does: guests come in when the catalog was compared
    /// with the storage.
    pub(crate) fn start(&self) {
        let number = self.stage.lock().life;
        self.stage.say(|| format!("the service starts (life {number})"));
        let driver = |store: &'static str| -> (String, Box<dyn Driver>) {
            (store.to_owned(), Box::new(Simulated { stage: self.stage.clone(), store }))
        };
        let world = World::with_drivers(self.scratch.config.clone(), STORES.map(driver).into());
        let catalog = Catalog::open(&self.scratch.catalog()).expect("the catalog opens");
        let audit = Audit::open(self.scratch.folder.path()).expect("the audit log opens");
        let (stage, clock) = (self.stage.clone(), self.stage.clone());
        let workers = Workers::run_by(move |job| stage.call(number, job));
        let service = Service::with(world, catalog, audit, workers, Clock::showing(move || clock.now()));
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().open(Arc::clone(&service)));
        *self.life.lock().expect("no panic") = Some(Life { service, open: false, tasks });
    }

    async fn open(self, service: Arc<Service>) {
        loop {
            match service.reconcile().await {
                report @ Ok(_) => {
                    self.reconciled(&report);
                    break;
                }
                // systemd starts it again.
                Err(error) => self.stage.say(|| format!("not started: {error}")),
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        if let Some(life) = &mut *self.life.lock().expect("no panic") {
            life.open = true;
        }
    }

    /// The catalog was compared with the storage.
    pub(crate) fn reconciled(&self, report: &Result<Report, WireError>) {
        self.stage.say(|| format!("reconciled: {report:?}"));
        if report.as_ref().is_ok_and(|report| report.problems.is_empty()) {
            self.stage.lock().witness.catalog_is_lost = false;
        }
    }

    /// SIGKILL. What it had begun is never finished by it.
    pub(crate) fn die(&self, catalog_lost: bool) {
        self.stage.bury();
        // Dropping the tasks closes their connections and does nothing else.
        *self.life.lock().expect("no panic") = None;
        self.stage
            .say(|| format!("the service is dead{}", if catalog_lost { ", the catalog lost" } else { "" }));
        if catalog_lost {
            self.stage.lock().witness.catalog_is_lost = true;
            self.scratch.clear();
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.life.lock().expect("no panic").as_ref().is_some_and(|life| life.open)
    }

    /// The service, for its administrator.
    pub(crate) fn service(&self) -> Option<Arc<Service>> {
        let life = self.life.lock().expect("no panic");
        life.as_ref().filter(|life| life.open).map(|life| Arc::clone(&life.service))
    }

    /// Something of the service's own, which dies with it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(life) = &mut *self.life.lock().expect("no panic") {
            // What is over needs no place any more.
            while life.tasks.try_join_next().is_some() {}
            life.tasks.spawn(task);
        }
    }

    /// A connection of this guest's, if the service listens.
    pub(crate) fn connect(&self, vm: VmUuid) -> Option<DuplexStream> {
        let service = self.service()?;
        let (ours, theirs) = tokio::io::duplex(128 * 1024);
        let peer = Peer { vm, via: "simulated".to_owned() };
        self.spawn(session::run(service, peer, theirs));
        Some(ours)
    }
}
