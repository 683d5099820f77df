//! Reconcile while the service goes on: what guests finish or delete at that moment is not mistaken for
//! lost or for unfinished.
//!
//! The incident: the storage was listed first and the catalog read after it. A snapshot that was
//! finished in between was in the catalog and not in the list: reported as lost, and marked so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use host_proxy::audit::Audit;
use host_proxy::catalog::{Catalog, Phase};
use host_proxy::config::Config;
use host_proxy::drivers::{
    Deleted, Driver, DriverError, Found, Kind, Owner, Plan, Ready, Recovered, Volume, VolumeFacts,
};
use host_proxy::service::Service;
use host_proxy::world::World;
use protocol::evidence::CutEvidence;
use protocol::record::{State, Timing, UnixMillis};
use protocol::text::{Labels, Line};
use protocol::{Consistency, RequestId, SnapshotId, SnapshotRecord, VmUuid};

const VM: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
const CONFIG: &str = r#"
[[store]]
name = "s"
driver = "reflink"
path = "/nowhere"
[[vm]]
name = "db1"
uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01"
cid = 42
"#;

/// A storage that holds nothing; while it is listed, something happens elsewhere.
struct Listing<F>(F);

impl<F: Fn() + Send + Sync> Driver for Listing<F> {
    fn name(&self) -> &'static str {
        "reflink"
    }

    fn check(&self, _: &Volume) -> Result<VolumeFacts, DriverError> {
        Err(DriverError::new(Kind::Unsupported, "check"))
    }

    fn read_head(&self, _: &Volume, _: usize) -> Result<Vec<u8>, DriverError> {
        Err(DriverError::new(Kind::Unsupported, "read"))
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        Ok(0)
    }

    fn prepare(&self, _: &Plan, _: Instant) -> Result<Box<dyn Ready>, DriverError> {
        Err(DriverError::new(Kind::Unsupported, "prepare"))
    }

    fn list(&self) -> Result<Vec<Found>, DriverError> {
        (self.0)();
        Ok(Vec::new())
    }

    fn recover(&self, _: Owner, _: &[Volume]) -> Result<Recovered, DriverError> {
        Ok(Recovered::Nothing)
    }

    fn delete(&self, _: Owner) -> Result<Deleted, DriverError> {
        Ok(Deleted::WasAbsent)
    }
}

fn record() -> SnapshotRecord {
    let vm: VmUuid = VM.parse().unwrap();
    let request = RequestId::random();
    SnapshotRecord {
        id: SnapshotId::derive(vm, request),
        vm_uuid: vm,
        vm: "db1".parse().unwrap(),
        request,
        created_at: UnixMillis(1),
        consistency: Consistency::Crash,
        consistency_reason: Line::lossy(""),
        minimum: Consistency::Crash,
        state: State::Ready,
        labels: Labels::default(),
        note: "".parse().unwrap(),
        mounts: Vec::new().try_into().unwrap(),
        disks: Vec::new().try_into().unwrap(),
        timing: Timing::default(),
        expires_at: None,
        locked_until: None,
        evidence: None,
        cut: CutEvidence::Unknown,
    }
}

/// The service over a storage that is empty, with what happens while it is listed.
fn service(folder: &Path, meanwhile: impl Fn(&Catalog) + Send + Sync + 'static) -> Arc<Service> {
    let path: PathBuf = folder.join("catalog.sqlite");
    let catalog = Catalog::open(&path).unwrap();
    // A second connection to the same file: the service's own is not to be had.
    let driver = Listing(move || meanwhile(&Catalog::open(&path).unwrap()));
    let drivers: BTreeMap<String, Box<dyn Driver>> =
        [("s".to_owned(), Box::new(driver) as Box<dyn Driver>)].into();
    let config = Config::parse(CONFIG, Path::new("test")).unwrap();
    Service::new(World::with_drivers(config, drivers), catalog, Audit::open(folder).unwrap())
}

#[tokio::test]
async fn a_snapshot_that_is_finished_while_the_storage_is_listed_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let fresh = record();
    let id = fresh.id;
    let service = service(folder.path(), move |catalog| {
        catalog.begin(&fresh, &[0; 16]).unwrap();
        catalog.record(&fresh, Phase::Ready).unwrap();
    });
    let report = service.reconcile().await.unwrap();
    assert!(report.lost.is_empty(), "{report:?}");
    let catalog = Catalog::open(&folder.path().join("catalog.sqlite")).unwrap();
    assert_eq!(catalog.get(id).unwrap().unwrap().phase, Phase::Ready);
}

#[tokio::test]
async fn an_intent_that_becomes_a_snapshot_while_the_storage_is_listed_is_not_undone() {
    let folder = tempfile::tempdir().unwrap();
    let fresh = record();
    let id = fresh.id;
    Catalog::open(&folder.path().join("catalog.sqlite")).unwrap().begin(&fresh, &[0; 16]).unwrap();
    let service = service(folder.path(), move |catalog| catalog.record(&fresh, Phase::Ready).unwrap());
    let report = service.reconcile().await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    let catalog = Catalog::open(&folder.path().join("catalog.sqlite")).unwrap();
    assert_eq!(catalog.get(id).unwrap().unwrap().phase, Phase::Ready);
}

#[tokio::test]
async fn a_snapshot_that_the_storage_no_longer_has_is_still_found_to_be_lost() {
    let folder = tempfile::tempdir().unwrap();
    let old = record();
    {
        let catalog = Catalog::open(&folder.path().join("catalog.sqlite")).unwrap();
        catalog.begin(&old, &[0; 16]).unwrap();
        catalog.record(&old, Phase::Ready).unwrap();
    }
    let service = service(folder.path(), |_| ());
    let report = service.reconcile().await.unwrap();
    assert_eq!(report.lost, [old.id]);
}
