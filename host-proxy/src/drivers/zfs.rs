//! ZFS: volumes (zvols), and datasets that hold image files. The cut is one request to the kernel, which snapshots
//! all datasets of a set at one instant: docs/decisions/0013-zfs.md.
//!
//! | module | idea |
//! |---|---|
//! | `core` | libzfs_core, loaded when it is needed: the cut, holds, removing |
//! | `tool` | asking `zfs` and `zpool`, and changing properties, each with a limit |
//! | `report` | what they say, read; pure |
//! | `names` | names of datasets, and ours among them; pure |
//! | `record` | what is in the properties of our snapshots; pure |
//! | `volume` | which dataset is behind a path |
//! | `inventory` | what of ours is in a store |
//! | `set` | one set of volumes: prepared, cut, sealed |
//! | `remove` | removing a snapshot, whatever its state |
//! | `restore` | a volume given back the bytes of a snapshot |

#[doc(hidden)]
pub mod bare;
mod core;
mod inventory;
mod names;
mod record;
mod remove;
mod report;
mod restore;
mod set;
mod tool;
mod volume;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use protocol::DiskSerial;

pub use names::{DatasetName, NotADataset};

use self::inventory::Held;
use self::record::{Part, Record};
use self::report::Dataset;
use self::set::{Cut, Prepared, Set};
use self::tool::Store;
use self::volume::Place;
use super::{
    Deleted, Driver, DriverError, Expose, Exposed, Format, Found, Kind, Owner, Plan, Ready, Recovered,
    Restore, SetCut, Volume, VolumeFacts, image,
};
use crate::exec::Tool;

/// How long a pool may take to write down what is dirty, before the freeze.
const SYNC_LIMIT: Duration = Duration::from_secs(40);

/// How long udev may take to let go of a volume that nobody reads any more.
const LET_GO_LIMIT: Duration = Duration::from_secs(5);

/// Snapshots of datasets.
pub struct Zfs {
    store: Store,
}

impl Zfs {
    /// A store that is this dataset and all below it. Whether that is there is looked at when it is used:
    /// its pool may be imported later. ZFS itself must be installed.
    pub fn new(dataset: DatasetName) -> Result<Self, DriverError> {
        Ok(Self { store: Store::new(dataset)? })
    }

    /// With other programs than this machine's: for tests.
    #[doc(hidden)]
    pub fn with_tools(dataset: DatasetName, zfs: Tool, zpool: Tool, report_limit: Duration) -> Self {
        Self { store: Store::with_tools(dataset, zfs, zpool, report_limit) }
    }

    /// Where a volume is, if it is in this store.
    fn place(&self, volume: &Volume) -> Result<Place, DriverError> {
        let place = Place::of(volume)?;
        let refuse = |why: String| {
            Err(DriverError::new(Kind::Unsupported, format!("snapshot {}: {why}", volume.source)))
        };
        if !self.store.dataset.holds(&place.dataset) {
            return refuse(format!("{} is not in the store's dataset {}", place.dataset, self.store.dataset));
        }
        if names::is_clone(&self.store.dataset, &place.dataset) {
            return refuse("it is a snapshot of ours".to_owned());
        }
        Ok(place)
    }

    /// These datasets as they are, if their snapshots have room.
    fn takes(&self, places: &[Place]) -> Result<Vec<Dataset>, DriverError> {
        self.store.pool_is_well()?;
        let root = self.store.dataset.as_str();
        let names: BTreeSet<&str> = places.iter().map(|place| place.dataset.as_str()).chain([root]).collect();
        let datasets = self.store.datasets(&names.into_iter().collect::<Vec<_>>())?;
        if dataset(&datasets, root)?.free_bytes() == 0 {
            let why = format!("{root} is full; zfs list -o space {root}");
            return Err(DriverError::new(Kind::NoSpace, why));
        }
        for one in &datasets {
            let (needed, free) = (one.needed_bytes(), one.free_bytes());
            if needed > free && places.iter().any(|place| place.dataset == one.name) {
                return Err(DriverError::new(
                    Kind::NoSpace,
                    format!(
                        "a snapshot of {0} takes {needed} bytes at once, for its reservation, and {free} are free; \
                         zfs set refreservation=none {0} does without",
                        one.name
                    ),
                ));
            }
        }
        Ok(datasets)
    }

    fn begin(&self, plan: &Plan, deadline: Instant) -> Result<Prepared, DriverError> {
        let places = plan.volumes.iter().map(|volume| self.place(volume)).collect::<Result<Vec<_>, _>>()?;
        let datasets = self.takes(&places)?;
        let part = |(volume, place): (&Volume, &Place)| {
            Ok(Part {
                serial: volume.serial.clone(),
                size_bytes: place.size_bytes(volume)?,
                dataset: dataset(&datasets, &place.dataset)?.guid,
                file: place.file.clone(),
                cut: None,
            })
        };
        let parts = plan.volumes.iter().zip(&places).map(part).collect::<Result<Vec<_>, DriverError>>()?;
        let record = Record::new(plan.owner, parts, &plan.manifest)?;
        let notes = record.on_store()?;
        let cut_notes = record.on_snapshot()?;
        let note_names = notes.iter().map(|(name, _)| name.clone()).collect();
        let datasets = places.into_iter().map(|place| place.dataset).collect();
        let set = Set::new(self.store.clone(), record, datasets, note_names);
        let names = set.names()?;
        self.refuse_a_second(plan.owner, &names)?;
        let cut = core::Cut::new(names, &cut_notes)?;
        let prepared = Prepared { set, cut };
        let noted = self.store.set(self.store.dataset.as_str(), &notes);
        match noted.and_then(|()| self.make_ready(plan, deadline)) {
            Ok(()) => Ok(prepared),
            Err(error) => {
                let undone = Box::new(prepared).abandon();
                Err(error.after_undo(undone))
            }
        }
    }

    fn refuse_a_second(&self, owner: Owner, names: &BTreeSet<String>) -> Result<(), DriverError> {
        let place = self.store.dataset.as_str();
        let properties = self.store.properties(&[place])?;
        let notes = properties.get(place).map(Record::on_store_of).unwrap_or_default();
        let mut is_there = notes.iter().any(|(id, ..)| *id == owner.snapshot);
        for name in names {
            is_there = is_there || core::exists(name)?;
        }
        if is_there {
            return Err(DriverError::new(Kind::Exists, format!("begin the snapshot {}", owner.snapshot)));
        }
        Ok(())
    }

    /// Writes down what is dirty: on the devices of zvols, then in the whole pool, which the cut would wait for.
    fn make_ready(&self, plan: &Plan, deadline: Instant) -> Result<(), DriverError> {
        for volume in &plan.volumes {
            if Instant::now() >= deadline {
                return Err(DriverError::new(Kind::DeadlinePassed, "flush the volumes"));
            }
            image::open(volume).and_then(|file| image::flush(&file, volume))?;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        core::sync(self.store.dataset.pool(), left.min(SYNC_LIMIT))
    }

    /// The set of a snapshot that was cut; `None` if one of its volumes is missing.
    fn cut_set(&self, held: &Held, volumes: &[Volume]) -> Result<Option<Set>, DriverError> {
        let Some(record) = &held.record else { return Ok(None) };
        let origins: Vec<&str> = held
            .snapshots
            .iter()
            .filter_map(|snapshot| Some(names::parse_snapshot(&snapshot.name)?.0))
            .collect();
        let datasets = self.store.datasets(&origins)?;
        let of_guid = |guid| datasets.iter().find(|one| one.guid == guid).map(|one| one.name.clone());
        let names: Option<Vec<String>> = record.parts.iter().map(|part| of_guid(part.dataset)).collect();
        let serials = |serials: Vec<&DiskSerial>| serials.into_iter().cloned().collect::<BTreeSet<_>>();
        let same = serials(record.parts.iter().map(|part| &part.serial).collect())
            == serials(volumes.iter().map(|volume| &volume.serial).collect());
        let set = |names| Set::new(self.store.clone(), record.clone(), names, held.notes.clone());
        Ok(names.filter(|_| same).map(set))
    }
}

fn dataset<'a>(datasets: &'a [Dataset], name: &str) -> Result<&'a Dataset, DriverError> {
    datasets
        .iter()
        .find(|dataset| dataset.name == name)
        .ok_or_else(|| DriverError::new(Kind::NotFound, format!("find the dataset {name}; zfs list")))
}

impl Driver for Zfs {
    fn name(&self) -> &'static str {
        "zfs"
    }

    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        let place = self.place(volume)?;
        let size_bytes = place.size_bytes(volume)?;
        self.takes(&[place])?;
        Ok(VolumeFacts { size_bytes })
    }

    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
        image::read_head(volume, len)
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        let root = self.store.dataset.as_str();
        Ok(dataset(&self.store.datasets(&[root])?, root)?.free_bytes())
    }

    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError> {
        Ok(Box::new(self.begin(plan, deadline)?))
    }

    fn list(&self) -> Result<Vec<Found>, DriverError> {
        let all = inventory::all(&self.store)?;
        Ok(all.iter().map(|(owner, held)| inventory::found(*owner, held)).collect())
    }

    fn recover(&self, owner: Owner, volumes: &[Volume]) -> Result<Recovered, DriverError> {
        let held = inventory::one(&self.store, owner)?;
        if held.is_whole() {
            remove::drop_notes(&self.store, &held)?;
            return Ok(Recovered::Whole);
        }
        match self.cut_set(&held, volumes)? {
            Some(set) => Ok(Recovered::Cut(Box::new(Cut { set }))),
            None => remove::remove(&self.store, owner).map(|_| Recovered::Nothing),
        }
    }

    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        remove::remove(&self.store, owner)
    }

    fn find(&self, owner: Owner) -> Result<Option<Found>, DriverError> {
        let held = inventory::one(&self.store, owner)?;
        Ok((!held.is_nothing()).then(|| inventory::found(owner, &held)))
    }

    /// All properties are set in one transaction (OpenZFS `dsl_props_set`). What is left of a longer record is not read:
    /// the first property says how many there are.
    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        let held = inventory::one(&self.store, owner)?;
        match (held.is_whole(), &held.record, &held.sealed_on) {
            (true, Some(record), Some(snapshot)) => {
                let mut record = record.clone();
                record.set_manifest(manifest)?;
                self.store.set(snapshot, &record.on_snapshot()?)
            }
            _ => Err(DriverError::new(Kind::NotFound, format!("find the snapshot {}", owner.snapshot))),
        }
    }

    fn expose(&self) -> Option<&dyn Expose> {
        Some(self)
    }

    fn restore(&self) -> Option<&dyn Restore> {
        Some(self)
    }

    fn set_cut(&self) -> SetCut {
        SetCut::OneInstant
    }

    fn limits(&self) -> &'static str {
        "volumes and raw images in one dataset and below it; a snapshot shares what does not change"
    }
}

/// Where a volume's snapshot can be read, and the clone that was made for that.
struct Shown {
    path: PathBuf,
    clone: Option<String>,
}

impl Zfs {
    /// Makes a volume's snapshot readable.
    fn shown(&self, held: &Held, owner: Owner, volume: &DiskSerial) -> Result<Shown, DriverError> {
        let shown =
            held.whole_part(volume).and_then(|(index, part)| Some((index, part, held.by_guid(part.cut?)?)));
        let Some((index, part, snapshot)) = shown else {
            let doing = format!("show the disk {volume} of {}", owner.snapshot);
            return Err(DriverError::new(Kind::NotFound, doing));
        };
        match (&part.file, snapshot.name.split_once('@')) {
            (Some(file), Some((dataset, name))) => {
                let path = volume::mount_point(dataset)?.join(".zfs/snapshot").join(name).join(file);
                Ok(Shown { path, clone: None })
            }
            _ => {
                let clone = names::clone(&self.store.dataset, owner.snapshot, index);
                if !snapshot.clones.contains(&clone) {
                    // Without partitions: nothing of this host is to look for file systems on it.
                    let options = ["-o", "readonly=on", "-o", "volmode=dev", "-o", "snapdev=hidden"];
                    let arguments = [&["clone"], &options[..], &[&snapshot.name, &clone]].concat();
                    self.store.change(&format!("clone {} to show it", snapshot.name), &arguments)?;
                }
                Ok(Shown { path: volume::device(&clone)?, clone: Some(clone) })
            }
        }
    }

    /// udev may look at a volume's device for a moment after its last reader.
    fn remove_clone_soon(&self, clone: &str) -> Result<(), DriverError> {
        let deadline = Instant::now() + LET_GO_LIMIT;
        loop {
            match remove::remove_clone(&self.store, clone) {
                Err(error) if error.kind == Kind::Busy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                removed => return removed,
            }
        }
    }
}

impl Expose for Zfs {
    fn expose(&self, owner: Owner, volume: &DiskSerial) -> Result<Exposed, DriverError> {
        let held = inventory::one(&self.store, owner)?;
        let Shown { path, .. } = self.shown(&held, owner, volume)?;
        Ok(Exposed::Path { path, format: Format::Raw })
    }

    fn conceal(&self, owner: Owner, volume: &DiskSerial) -> Result<(), DriverError> {
        let held = inventory::one(&self.store, owner)?;
        let parts = held.record.iter().flat_map(|record| record.parts.iter().enumerate());
        for (index, _) in parts.filter(|(_, part)| part.serial == *volume) {
            let clone = names::clone(&self.store.dataset, owner.snapshot, index);
            if held.snapshots.iter().any(|snapshot| snapshot.clones.contains(&clone)) {
                self.remove_clone_soon(&clone)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A driver whose zfs and zpool are this script.
    fn driver(script: &str) -> (tempfile::TempDir, Zfs) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zfs");
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let tool = Tool::at(path);
        let dataset = "tank/vms".parse().unwrap();
        (folder, Zfs::with_tools(dataset, tool.clone(), tool, Duration::from_secs(2)))
    }

    #[test]
    fn a_zfs_that_hangs_is_given_up_at_its_limit() {
        let (_folder, driver) = driver("echo 'waiting for the pool' >&2; sleep 600");
        let began = Instant::now();
        for error in [driver.free_bytes().unwrap_err(), driver.list().unwrap_err()] {
            assert_eq!(error.kind, Kind::DeadlinePassed, "{error}");
            let told = crate::service::chain(&error);
            assert!(told.contains("waiting for the pool"), "{told}");
        }
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_is_wrong_with_a_pool_is_told_before_anything_is_begun() {
        for (script, kind, words) in [
            ("printf 'SUSPENDED\\toff\\n'", Kind::Failed, "SUSPENDED; zpool status tank, then zpool clear"),
            ("printf 'ONLINE\\ton\\n'", Kind::Unsupported, "imported read-only"),
            ("echo 'another version'", Kind::Failed, "which version is it?"),
            (
                "echo \"cannot open 'tank': no such pool\" >&2; exit 1",
                Kind::NotFound,
                "look at the pool tank",
            ),
            (
                "echo 'The ZFS modules cannot be auto-loaded.' >&2; exit 1",
                Kind::Unsupported,
                "look at the pool",
            ),
        ] {
            let (_folder, driver) = driver(script);
            let error = driver.takes(&[]).unwrap_err();
            assert_eq!(error.kind, kind, "{script}: {error}");
            assert!(error.to_string().contains(words), "{script}: {error}");
        }
    }
}
