//! Thin logical volumes of LVM: the cut is a thin snapshot of each, one after another. In the
//! volume group everything of ours is known by its names and tags (`names`), the manifests are in
//! a volume of their own (`manifests`): docs/decisions/0010-lvm-thin.md.
//!
//! | module | idea |
//! |---|---|
//! | `pool` | which pool; asking lvm about it and for changes of it, each with a limit |
//! | `report` | what lvm says, read; pure |
//! | `names` | names and tags; pure |
//! | `manifests` | the volume that holds the manifests |
//! | `store` | what of ours is in a pool; removing it |
//! | `delta` | what changed between two snapshots |
//! | `restore` | a volume given back the bytes of a snapshot |
//! | `shell` | an lvm that waits for its next command |
//! | `set` | one set of volumes: prepared, cut, sealed |

#[doc(hidden)]
pub mod bare;
mod delta;
mod manifests;
mod names;
mod pool;
mod report;
mod restore;
mod set;
mod shell;
mod store;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::{Duration, Instant};

pub use pool::{NotAPool, PoolName, Watermarks};

use manifests::{Manifests, Phase};
use pool::Pool;
use report::{Lv, VolumeGroup};
use set::{Cut, Part, Prepared, Set};
use shell::Shell;

use super::{
    Changes, Deleted, Driver, DriverError, Expose, Exposed, Extent, Format, Found, Kind, Owner, Plan, Ready,
    Recovered, Restore, Volume, VolumeFacts, VolumeSnapshot, image,
};
use crate::exec::Tool;

/// Snapshots as thin volumes.
pub struct LvmThin {
    pool: Pool,
    /// `thin_delta`, where it is installed.
    delta: Option<Tool>,
}

impl LvmThin {
    /// A store in this pool. Whether that is there is looked at when it is used: it may come later.
    pub fn new(name: PoolName, watermarks: Watermarks) -> Result<Self, DriverError> {
        let find = |tool| {
            Tool::find(tool).map_err(|error| pool::failed("look for lvm (install the package lvm2)", error))
        };
        let tools = [find("lvm")?, find("dmsetup")?];
        let delta = Tool::find("thin_delta").ok();
        Ok(Self { pool: Pool::new(name, watermarks, tools, pool::REPORT_LIMIT), delta })
    }

    /// With another lvm than this machine's: for tests.
    #[doc(hidden)]
    pub fn with_lvm(name: PoolName, watermarks: Watermarks, lvm: Tool, report_limit: Duration) -> Self {
        let dmsetup = Tool::find("dmsetup").unwrap_or_else(|_| Tool::at("/no/dmsetup".into()));
        Self { pool: Pool::new(name, watermarks, [lvm, dmsetup], report_limit), delta: None }
    }

    /// The logical volume behind a volume of the plan, if it can be snapshot.
    fn origin<'a>(&self, vg: &'a VolumeGroup, volume: &Volume) -> Result<&'a Lv, DriverError> {
        let unsupported =
            |why: String| DriverError::new(Kind::Unsupported, format!("snapshot {}: {why}", volume.source));
        if volume.format != Format::Raw {
            return Err(unsupported(format!("a logical volume holds a raw disk, not {:?}", volume.format)));
        }
        let meta = fs::metadata(volume.path()?).map_err(|error| {
            DriverError::io(format!("look at {} (lvchange -ay, if it is there)", volume.source), error)
        })?;
        if !meta.file_type().is_block_device() {
            return Err(unsupported("it is no logical volume, but a file".to_owned()));
        }
        let device = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let Some(lv) = vg.lvs.iter().find(|lv| lv.device() == Some(device)) else {
            return Err(unsupported(format!("it is no logical volume of the group of {}", self.pool.name)));
        };
        if lv.ours().is_some() {
            return Err(unsupported("it is a snapshot of ours".to_owned()));
        }
        match self.pool.lv_in(vg)? {
            pool if lv.name == pool.name => Err(unsupported("it is the pool itself".to_owned())),
            pool if lv.pool == pool.name => Ok(lv),
            _ if lv.pool.is_empty() => Err(unsupported(format!(
                "{} is no thin volume; move it into {} (lvconvert --thin)",
                lv.name, self.pool.name
            ))),
            _ => Err(unsupported(format!("{} is in another pool: {}", lv.name, lv.pool))),
        }
    }

    /// The volume that a whole snapshot has of a disk.
    fn whole(
        &self,
        vg: &VolumeGroup,
        manifests: Option<&Manifests>,
        owner: Owner,
        volume: &protocol::DiskSerial,
    ) -> Result<Lv, DriverError> {
        let held = store::one(&self.pool, vg, manifests, owner)?;
        let lv = held.lvs.iter().find(|(_, ours)| ours.serial == *volume).filter(|_| held.is_whole());
        lv.map(|(lv, _)| lv.clone()).ok_or_else(|| {
            let doing = format!("find the disk {volume} of {}", owner.snapshot);
            DriverError::new(Kind::NotFound, doing)
        })
    }

    /// What is needed for the cut, and nothing of it done.
    fn parts(&self, vg: &VolumeGroup, plan: &Plan) -> Result<Vec<Part>, DriverError> {
        let volumes = plan.volumes.iter().enumerate();
        volumes
            .map(|(index, volume)| {
                let origin = self.origin(vg, volume)?;
                if origin.is_suspended() {
                    let doing = format!("snapshot {}: it is suspended; dmsetup info", volume.source);
                    return Err(DriverError::new(Kind::Busy, doing));
                }
                let name = names::snapshot(plan.owner.snapshot, index);
                let snapshot = VolumeSnapshot {
                    serial: volume.serial.clone(),
                    handle: name.clone(),
                    size_bytes: origin.size_bytes(),
                };
                Ok(Part { snapshot, name, origin: origin.name.clone(), origin_uuid: origin.uuid.clone() })
            })
            .collect()
    }

    fn begin(&self, plan: &Plan, deadline: Instant) -> Result<Prepared, DriverError> {
        let vg = self.pool.report()?;
        self.pool.takes(&vg, plan.volumes.len())?;
        let parts = self.parts(&vg, plan)?;
        let manifests = store::make_manifests(&self.pool, &vg)?;
        let prefix = names::prefix(plan.owner.snapshot);
        if vg.lvs.iter().any(|lv| lv.name.starts_with(&prefix)) || manifests.find(plan.owner)?.is_some() {
            return Err(DriverError::new(
                Kind::Exists,
                format!("begin the snapshot {}", plan.owner.snapshot),
            ));
        }
        let shell = Shell::start(&self.pool.lvm).map_err(|error| pool::failed("start lvm", error))?;
        let record = manifests.put(plan.owner, Phase::Prepared, &plan.manifest)?;
        let suspends = self.pool.devices(&vg);
        let set = Set::new(self.pool.clone(), manifests, record, parts);
        let mut prepared = Prepared { set, shell, devices: vg.devices, suspends };
        match self.make_ready(&mut prepared, plan, deadline) {
            Ok(()) => Ok(prepared),
            Err(error) => {
                let undone = Box::new(prepared).abandon();
                Err(error.after_undo(undone))
            }
        }
    }

    fn make_ready(&self, prepared: &mut Prepared, plan: &Plan, deadline: Instant) -> Result<(), DriverError> {
        for volume in &plan.volumes {
            if Instant::now() >= deadline {
                return Err(DriverError::new(Kind::DeadlinePassed, "flush the volumes"));
            }
            // Suspending a volume writes back what the host holds of it (Linux `lock_fs`, dm.c).
            image::open(volume).and_then(|file| image::flush(&file, volume))?;
        }
        prepared.rehearse(pool::grace_after(deadline, Duration::ZERO))
    }
}

impl Driver for LvmThin {
    fn name(&self) -> &'static str {
        "lvm-thin"
    }

    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        let vg = self.pool.report()?;
        let size_bytes = self.origin(&vg, volume)?.size_bytes();
        self.pool.takes(&vg, 1)?;
        Ok(VolumeFacts { size_bytes })
    }

    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
        image::read_head(volume, len)
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        let vg = self.pool.report()?;
        self.pool.free_below(&vg, 100.0)
    }

    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError> {
        Ok(Box::new(self.begin(plan, deadline)?))
    }

    fn list(&self) -> Result<Vec<Found>, DriverError> {
        let vg = self.pool.report()?;
        let manifests = store::open_manifests(&self.pool, &vg)?;
        let all = store::all(&self.pool, &vg, manifests.as_ref())?;
        let found = all.into_iter().map(|(owner, held)| {
            let whole = held.is_whole();
            Found { owner, whole, manifest: held.record.and_then(|record| record.manifest) }
        });
        Ok(found.collect())
    }

    fn recover(&self, owner: Owner, volumes: &[Volume]) -> Result<Recovered, DriverError> {
        let vg = self.pool.report()?;
        let manifests = store::open_manifests(&self.pool, &vg)?;
        let held = store::one(&self.pool, &vg, manifests.as_ref(), owner)?;
        if held.is_nothing() {
            return Ok(Recovered::Nothing);
        }
        if held.is_whole() {
            return Ok(Recovered::Whole);
        }
        let parts = parts_of(&held, volumes).filter(|_| held.is_in(Phase::Cut));
        match (manifests, held.record, parts) {
            (Some(manifests), Some(record), Some(parts)) => {
                let set = Set::new(self.pool.clone(), manifests, record, parts);
                Ok(Recovered::Cut(Box::new(Cut { set, _shell: None })))
            }
            (manifests, ..) => {
                store::remove(&self.pool, manifests.as_ref(), owner).map(|_| Recovered::Nothing)
            }
        }
    }

    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        store::remove(&self.pool, None, owner)
    }

    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        let vg = self.pool.report()?;
        let manifests = store::open_manifests(&self.pool, &vg)?;
        let held = store::one(&self.pool, &vg, manifests.as_ref(), owner)?;
        match manifests.filter(|_| held.is_whole()) {
            Some(manifests) => manifests.put(owner, Phase::Cut, manifest).map(|_| ()),
            None => Err(DriverError::new(Kind::NotFound, format!("find the snapshot {}", owner.snapshot))),
        }
    }

    fn expose(&self) -> Option<&dyn Expose> {
        Some(self)
    }

    fn changes(&self) -> Option<&dyn Changes> {
        self.delta.as_ref().map(|_| self as &dyn Changes)
    }

    fn restore(&self) -> Option<&dyn Restore> {
        Some(self)
    }

    fn limits(&self) -> &'static str {
        "thin volumes of one pool; a snapshot shares what does not change; none is begun over the pool's watermarks, no restore either"
    }
}

impl Changes for LvmThin {
    fn changes(
        &self,
        from: Owner,
        to: Owner,
        volume: &protocol::DiskSerial,
    ) -> Result<Vec<Extent>, DriverError> {
        let vg = self.pool.report()?;
        let manifests = store::open_manifests(&self.pool, &vg)?;
        let find = |owner| self.whole(&vg, manifests.as_ref(), owner, volume);
        let (from, to) = (find(from)?, find(to)?);
        let delta = self.delta.as_ref().ok_or_else(|| {
            DriverError::new(
                Kind::Unsupported,
                "compare snapshots: install the package thin-provisioning-tools",
            )
        })?;
        delta::changes(&self.pool, &vg, delta, &from, &to)
    }
}

/// The parts of a snapshot that was cut, in the order of its volumes; `None` if one is missing.
fn parts_of(held: &store::Held, volumes: &[Volume]) -> Option<Vec<Part>> {
    if volumes.is_empty() || volumes.len() != held.lvs.len() {
        return None;
    }
    let part = |volume: &Volume| {
        let (lv, ours) = held.lvs.iter().find(|(_, ours)| ours.serial == volume.serial)?;
        set::is_of_its_origin(&lv.origin_uuid, ours).then(|| Part {
            snapshot: VolumeSnapshot {
                serial: volume.serial.clone(),
                handle: lv.name.clone(),
                size_bytes: lv.size_bytes(),
            },
            origin: lv.origin.clone(),
            name: lv.name.clone(),
            origin_uuid: ours.origin_uuid.clone(),
        })
    };
    volumes.iter().map(part).collect()
}

impl Expose for LvmThin {
    fn expose(&self, owner: Owner, volume: &protocol::DiskSerial) -> Result<Exposed, DriverError> {
        let vg = self.pool.report()?;
        let manifests = store::open_manifests(&self.pool, &vg)?;
        let lv = self.whole(&vg, manifests.as_ref(), owner, volume)?;
        Ok(Exposed::Path { path: store::activated(&self.pool, &lv)?, format: Format::Raw })
    }

    fn conceal(&self, owner: Owner, volume: &protocol::DiskSerial) -> Result<(), DriverError> {
        let vg = self.pool.report()?;
        let manifests = store::open_manifests(&self.pool, &vg)?;
        let held = store::one(&self.pool, &vg, manifests.as_ref(), owner)?;
        match held.lvs.iter().find(|(_, ours)| ours.serial == *volume) {
            Some((lv, _)) => store::deactivate(&self.pool, lv),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A driver whose lvm is this script.
    fn driver(script: &str) -> (tempfile::TempDir, LvmThin) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lvm");
        fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let name = "vg0/thin".parse().unwrap();
        let limit = Duration::from_secs(2);
        (folder, LvmThin::with_lvm(name, Watermarks::default(), Tool::at(path), limit))
    }

    fn recorded(changed: impl Fn(&str) -> String) -> (tempfile::TempDir, LvmThin) {
        let report = changed(include_str!("lvm_thin/fixtures/lvm-2.03.16.json"));
        driver(&format!("cat <<'END'\n{report}\nEND\n"))
    }

    #[test]
    fn an_lvm_that_hangs_is_given_up_at_its_limit() {
        let (_folder, driver) = driver("echo '  Waiting for a lock' >&2; sleep 600");
        let began = Instant::now();
        let error = driver.free_bytes().unwrap_err();
        assert_eq!(error.kind, Kind::DeadlinePassed, "{error}");
        assert!(
            crate::service::chain(&error).contains("Waiting for a lock"),
            "{}",
            crate::service::chain(&error)
        );
        assert!(began.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn a_group_that_is_not_there_and_a_report_that_is_none_are_told_apart() {
        let (_folder, absent) =
            driver("echo '  Volume group \"vg0\" not found' >&2; echo '{\"report\": []}'; exit 5");
        assert_eq!(absent.free_bytes().unwrap_err().kind, Kind::NotFound);
        let (_folder, broken) = recorded(|report| report[..report.len() / 2].to_owned());
        assert_eq!(broken.list().unwrap_err().kind, Kind::Failed);
    }

    #[test]
    fn a_pool_is_refused_for_what_is_wrong_with_it() {
        let full = "\"data_percent\":\"0.00\", \"metadata_percent\":\"11.04\"";
        for (from, to, kind, words) in [
            ("", "", None, ""),
            (
                full,
                "\"data_percent\":\"90.00\", \"metadata_percent\":\"11.04\"",
                Some(Kind::NoSpace),
                "lvextend --size",
            ),
            (
                full,
                "\"data_percent\":\"0.00\", \"metadata_percent\":\"80.1\"",
                Some(Kind::NoSpace),
                "lvextend --poolmeta",
            ),
            (
                full,
                "\"data_percent\":\"\", \"metadata_percent\":\"\"",
                Some(Kind::Failed),
                "how full the data",
            ),
            ("\"vg_mda_free\":\"518144\"", "\"vg_mda_free\":\"2047\"", Some(Kind::NoSpace), "--metadatasize"),
            ("\"writeable\", \"vg_p", "\"read-only\", \"vg_p", Some(Kind::Unsupported), "read-only"),
            ("\"vg_shared\":\"\"", "\"vg_shared\":\"shared\"", Some(Kind::Unsupported), "lvmlockd"),
            ("\"vg_partial\":\"\"", "\"vg_partial\":\"partial\"", Some(Kind::Failed), "lacks devices"),
            ("\"lv_active\":\"active\"", "\"lv_active\":\"\"", Some(Kind::Failed), "lvchange -ay vg0/thin"),
            ("\"thin,pool\"", "\"thin,sparse\"", Some(Kind::Unsupported), "no thin pool"),
            (
                "\"lv_name\":\"thin\"",
                "\"lv_name\":\"fat\"",
                Some(Kind::NotFound),
                "find the thin pool vg0/thin",
            ),
            (
                "\"open\", \"lv_health_status\":\"\"",
                "\"open\", \"lv_health_status\":\"out_of_data\"",
                Some(Kind::NoSpace),
                "out_of_data",
            ),
            (
                "\"open\", \"lv_health_status\":\"\"",
                "\"open\", \"lv_health_status\":\"failed\"",
                Some(Kind::Failed),
                "failed",
            ),
        ] {
            let (_folder, driver) = recorded(|report| {
                let text = report.replacen(from, to, 1);
                assert!(text != report || kind.is_none(), "{from} is not in the report");
                text
            });
            let vg = driver.pool.report().unwrap();
            match (driver.pool.takes(&vg, 1), kind) {
                (Ok(()), None) => {}
                (Err(error), Some(kind)) => {
                    assert_eq!(error.kind, kind, "{to}: {error}");
                    assert!(error.to_string().contains(words), "{to}: {error}");
                }
                (result, _) => panic!("{to}: {result:?}"),
            }
        }
        let (_folder, driver) = recorded(str::to_owned);
        assert_eq!(driver.free_bytes().unwrap(), 1 << 30);
    }
}
