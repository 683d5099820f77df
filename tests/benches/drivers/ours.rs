//! One snapshot by the service itself, from `prepare` until it is durable, of which the cut is measured; and a restore.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::ceph::{Ceph, POOL, USER};
use host_proxy::audit::Audit;
use host_proxy::catalog::Catalog;
use host_proxy::config::Config;
use host_proxy::drivers::rbd;
use host_proxy::policy::{self, Asker};
use host_proxy::service::{Outcome, RestoreStep, Service};
use host_proxy::world::World;
use protocol::evidence::{Evidence, Freeze};
use protocol::fingerprint::Fingerprint;
use protocol::message::{DiskRequest, Prepare};
use protocol::record::Timing;
use protocol::restore::{Layout, Restore, Safety};
use protocol::text::Labels;
use protocol::{BoundedVec, Consistency, RequestId, SnapshotId};

use crate::Then;
use crate::bed::Bed;

const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";

/// A pool as the driver takes it.
pub(crate) fn place(ceph: &Ceph) -> rbd::Place {
    rbd::Place {
        pool: POOL.to_owned(),
        namespace: None,
        conf: ceph.conf(),
        user: USER.to_owned(),
        timeout: Duration::from_secs(15),
    }
}

/// A snapshot.
pub(crate) struct Cut {
    /// How long its cut took, in microseconds.
    pub(crate) took_us: u64,
    pub(crate) id: SnapshotId,
}

/// A service with one machine that has one disk.
pub(crate) struct Ours {
    service: Arc<Service>,
    _folder: tempfile::TempDir,
}

impl Ours {
    pub(crate) fn on(bed: &Bed) -> Result<Self> {
        let folder = tempfile::tempdir_in("/dev/shm")?;
        let at = folder.path().display();
        let [store, machine, disk] = bed.config();
        let text = format!(
            "[service]\nlisten_vsock = false\nstate_dir = \"{at}\"\ncontrol_socket = \"{at}/control\"\n\
             [[store]]\nname = \"s\"\n{store}\
             [[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"{at}/vsock\"\n{machine}\
             [vm.quota]\nsnapshots = 100000\nper_hour = 100000\n\
             [[vm.disk]]\nserial = \"disk\"\nstore = \"s\"\nformat = \"raw\"\n{disk}"
        );
        let config = Config::parse(&text, Path::new("bench.toml"))?;
        let world = World::new(config, None)?;
        let catalog = Catalog::open(&folder.path().join("catalog.sqlite"))?;
        let service = Service::new(world, catalog, Audit::open(folder.path())?);
        Ok(Self { service, _folder: folder })
    }

    pub(crate) async fn cut(&self, then: Then) -> Result<Cut> {
        let world = self.service.world();
        let vm = world.vm(UUID.parse()?).context("the machine")?;
        let disk = disk(0)?;
        let prepare = Prepare {
            request: RequestId::random(),
            disks: vec![disk].try_into()?,
            mounts: BoundedVec::empty(),
            labels: Labels::default(),
            note: "".parse()?,
            minimum: Consistency::Crash,
            keep_for_s: None,
            lease_ms: 60_000,
            dry_run: false,
        };
        let Outcome::Ready(operation) = self.service.prepare(Asker::Admin, vm, &prepare).await? else {
            bail!("this request is new");
        };
        tokio::time::sleep(crate::FREEZE).await;
        let cut = operation.cut(Duration::from_secs(60)).await?;
        let took_us = cut.done().took_us;
        let evidence = Evidence {
            freeze: Freeze::NoAgent,
            file_systems: BoundedVec::empty(),
            hooks: BoundedVec::empty(),
        };
        let record = cut.conclude(Some((evidence, Timing::default()))).await?.finish().await?;
        if then == Then::Removed {
            let allowed = policy::delete_as_admin(&record, host_proxy::service::now())?;
            self.service.delete(allowed).await?;
        }
        Ok(Cut { took_us, id: record.id })
    }
    /// Gives the disk the bytes of a snapshot, as its guest asks for it, and keeps nothing of what it holds now; how long that
    /// took, in microseconds.
    pub(crate) async fn restore(&self, id: SnapshotId, size_bytes: u64) -> Result<u64> {
        let world = self.service.world();
        let vm = world.vm(UUID.parse()?).context("the machine")?.clone();
        let wanted = Restore {
            request: RequestId::random(),
            id,
            disks: vec![disk(size_bytes)?].try_into()?,
            safety: Safety::None,
            layout: Layout::Same,
            dry_run: false,
        };
        let began = Instant::now();
        let mut restoring = self.service.restore(Asker::Guest, vm, wanted, "bench".to_owned());
        loop {
            if let RestoreStep::Ended(done) = restoring.next().await {
                done?;
                return Ok(u64::try_from(began.elapsed().as_micros())?);
            }
        }
    }

    /// Whether its driver can.
    pub(crate) fn can_restore(&self) -> Result<bool> {
        let world = self.service.world();
        let store = world.stores().next().context("the store")?;
        Ok(store.driver.restore().is_some())
    }
}

fn disk(size_bytes: u64) -> Result<DiskRequest> {
    Ok(DiskRequest { serial: "disk".parse()?, size_bytes, fingerprint: Fingerprint::empty() })
}
