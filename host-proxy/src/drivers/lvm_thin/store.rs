//! What of ours is in a pool: the volumes of snapshots, and the volume of their manifests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::manifests::{self, Manifests, Phase, Record};
use super::names;
use super::pool::Pool;
use super::report::{Lv, VolumeGroup};
use crate::drivers::{Deleted, DriverError, Kind, Owner};

/// One snapshot, as far as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    /// Its volumes, in the order of the set.
    pub(super) lvs: Vec<(Lv, names::Ours)>,
    pub(super) record: Option<Record>,
}

impl Held {
    /// Whether it was sealed, and nobody began to delete it.
    pub(super) fn is_whole(&self) -> bool {
        self.lvs.iter().any(|(_, ours)| ours.is_whole && ours.index == 0) && !self.is_in(Phase::Deleting)
    }

    pub(super) fn is_in(&self, phase: Phase) -> bool {
        self.record.as_ref().is_some_and(|record| record.phase == phase)
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.lvs.is_empty() && self.record.is_none()
    }
}

/// Everything of ours.
pub(super) fn all(
    pool: &Pool,
    vg: &VolumeGroup,
    manifests: Option<&Manifests>,
) -> Result<BTreeMap<Owner, Held>, DriverError> {
    let mut held: BTreeMap<Owner, Held> = BTreeMap::new();
    for (lv, ours) in pool.ours(vg) {
        held.entry(ours.owner).or_default().lvs.push((lv.clone(), ours));
    }
    for one in held.values_mut() {
        one.lvs.sort_by_key(|(_, ours)| ours.index);
    }
    for record in manifests.map(Manifests::all).transpose()?.unwrap_or_default() {
        let one = held.entry(record.owner).or_default();
        one.record = Some(record);
    }
    Ok(held)
}

/// One snapshot of ours.
pub(super) fn one(
    pool: &Pool,
    vg: &VolumeGroup,
    manifests: Option<&Manifests>,
    owner: Owner,
) -> Result<Held, DriverError> {
    Ok(all(pool, vg, manifests)?.remove(&owner).unwrap_or_default())
}

/// Opens the volume of the manifests, activating it if need be; `None` if there is none yet.
pub(super) fn open_manifests(pool: &Pool, vg: &VolumeGroup) -> Result<Option<Manifests>, DriverError> {
    let Some(lv) = vg.lv(names::MANIFESTS) else { return Ok(None) };
    if !lv.tags().any(|tag| tag == names::TAG) {
        return Err(DriverError::new(
            Kind::Exists,
            format!("{} is somebody else's volume, and we need that name: lvrename", pool.lv(&lv.name)),
        ));
    }
    Manifests::open(&activated(pool, lv)?).map(Some)
}

/// As `open_manifests`, and makes it.
pub(super) fn make_manifests(pool: &Pool, vg: &VolumeGroup) -> Result<Manifests, DriverError> {
    if let Some(there) = open_manifests(pool, vg)? {
        return Ok(there);
    }
    let size = format!("{}b", manifests::VOLUME_BYTES);
    let name = pool.name.to_string();
    let arguments = ["lvcreate", "--yes", "--thin", "--virtualsize", &size, "--name", names::MANIFESTS];
    // It is activated when it is used, on the host that uses it.
    let options = ["--setactivationskip", "y", "--activate", "n", "--addtag", names::TAG, &name];
    let doing = format!("make the volume {} for manifests", pool.lv(names::MANIFESTS));
    pool.change(&doing, &[&arguments[..], &options].concat())?;
    open_manifests(pool, &pool.report()?)?.ok_or_else(|| DriverError::new(Kind::Failed, doing))
}

/// The device of a volume. By its number: udev makes the other names, in its own time.
pub(super) fn activated(pool: &Pool, lv: &Lv) -> Result<PathBuf, DriverError> {
    if let Some(path) = node(lv) {
        return Ok(path);
    }
    let name = pool.lv(&lv.name);
    let doing = format!("activate {name}");
    pool.change(&doing, &["lvchange", "--activate", "y", "--ignoreactivationskip", &name])?;
    pool.report()?.lv(&lv.name).and_then(node).ok_or_else(|| DriverError::new(Kind::Failed, doing))
}

/// Takes its device away, unless somebody has it open.
pub(super) fn deactivate(pool: &Pool, lv: &Lv) -> Result<(), DriverError> {
    if !lv.is_active() || lv.is_open() {
        return Ok(());
    }
    let name = pool.lv(&lv.name);
    pool.change(&format!("deactivate {name}"), &["lvchange", "--activate", "n", &name])
}

fn node(lv: &Lv) -> Option<PathBuf> {
    let (_, minor) = lv.device()?;
    let path = Path::new("/dev").join(format!("dm-{minor}"));
    path.exists().then_some(path)
}

/// Removes a snapshot in whatever state. `Busy`, and untouched, while somebody has it open.
pub(super) fn remove(
    pool: &Pool,
    manifests: Option<&Manifests>,
    owner: Owner,
) -> Result<Deleted, DriverError> {
    let vg = pool.report()?;
    let opened;
    let manifests = match manifests {
        Some(manifests) => Some(manifests),
        None => {
            opened = open_manifests(pool, &vg)?;
            opened.as_ref()
        }
    };
    let held = one(pool, &vg, manifests, owner)?;
    if held.is_nothing() {
        return Ok(Deleted::WasAbsent);
    }
    let names: Vec<String> = held.lvs.iter().map(|(lv, _)| pool.lv(&lv.name)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if let Some((lv, _)) = held.lvs.iter().find(|(lv, _)| lv.is_open()) {
        return Err(DriverError::new(Kind::Busy, format!("{} is in use", pool.lv(&lv.name))));
    }
    if held.lvs.iter().any(|(lv, _)| lv.is_active()) {
        // Nobody can open them afterwards.
        let doing = format!("deactivate the snapshot {}", owner.snapshot);
        pool.change(&doing, &[&["lvchange", "--activate", "n"], &names[..]].concat())?;
    }
    if let Some(manifests) = manifests.filter(|_| held.is_whole()) {
        match &held.record {
            Some(record) => manifests.mark(record, Phase::Deleting).and_then(|()| manifests.flush())?,
            None => drop(manifests.put(owner, Phase::Deleting, b"")?),
        }
    }
    if !names.is_empty() {
        let doing = format!("remove the snapshot {}", owner.snapshot);
        pool.change(&doing, &[&["lvremove", "--yes", "--force"], &names[..]].concat())?;
    }
    if let Some(manifests) = manifests {
        manifests.remove(owner)?;
    }
    Ok(Deleted::Gone)
}
