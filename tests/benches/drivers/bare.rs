//! The bare operation of each storage: the one call that makes the snapshot of the twin is measured; what has to be before it is
//! done before, and what is left to do is done after.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use host_proxy::drivers::btrfs::ioctl as btrfs;
use host_proxy::drivers::csi::bare::BarePlugin;
use host_proxy::drivers::lvm_thin::bare::BareLvm;
use host_proxy::drivers::{rbd, zfs};
use serde_json::json;

use crate::bed::{Array, Bed, Place, Qemu, image, name};
use crate::pools::{Group, Tank};
use crate::{Driver, Then};

const LIMIT: Duration = Duration::from_secs(60);
const TARGET: &str = "bare-target";
const JOB: &str = "bare-job";

/// How long it took, in microseconds.
pub(crate) fn cut(bed: &Bed, run: usize, then: Then) -> Result<u64> {
    match &bed.place {
        Place::Files { qemu: Some(qemu), fs } => copied(qemu, &fs.path(), run, then),
        Place::Files { fs, .. } if bed.driver == Driver::Btrfs => subvolume(&fs.path(), run, then),
        Place::Files { fs, .. } => cloned(&fs.path(), run, then),
        Place::Pool(ceph) => in_pool(&crate::ours::place(ceph), run, then),
        Place::Array(array) => by_plugin(array, run, then),
        Place::Group(group) => in_group(group, run, then),
        Place::Tank(tank) => in_tank(tank, run, then),
    }
}

/// Makes so many snapshots of both volumes, which stay.
pub(crate) fn make(bed: &Bed, number: usize) -> Result<()> {
    let names = (0..number).flat_map(|one| [false, true].map(|twin| (twin, one)));
    match &bed.place {
        _ if number == 0 => {}
        Place::Group(group) => {
            let mut lvm = BareLvm::start(group.pool().parse()?, name(true), "between")?;
            for (twin, one) in names {
                lvm.snapshot(name(twin), &format!("{}-between{one}", name(twin)))?;
            }
        }
        Place::Tank(tank) => {
            for (twin, one) in names {
                zfs::bare::BareCut::of(tank.pool(), &format!("{}@between{one}", tank.volume(twin)))?
                    .make()?;
            }
        }
        Place::Files { .. } | Place::Pool(_) | Place::Array(_) => {
            bail!("--measured is for lvm-thin and zfs: by the others a thousand take minutes")
        }
    }
    Ok(())
}

/// Its result, and how long it took, in microseconds.
pub(crate) fn timed<T>(call: impl FnOnce() -> T) -> (T, u64) {
    std::thread::sleep(crate::FREEZE);
    let began = Instant::now();
    let result = call();
    (result, u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX))
}

fn cloned(fs: &Path, run: usize, then: Then) -> Result<u64> {
    // XFS puts each folder into another part of itself, and a clone that is not beside its original takes longer: where
    // snapshots go is no part of what we add.
    let folder = fs.join("bare").join(run.to_string());
    fs::create_dir(&folder)?;
    let path = folder.join("image");
    let (from, to) = (File::open(image(fs, true))?, File::create(&path)?);
    let (cloned, took_us) = timed(|| rustix::fs::ioctl_ficlone(&to, &from));
    cloned.context("FICLONE")?;
    to.sync_all()?;
    if then == Then::Removed {
        fs::remove_dir_all(folder)?;
    }
    Ok(took_us)
}

fn subvolume(fs: &Path, run: usize, then: Then) -> Result<u64> {
    let (from, to) = (File::open(fs.join(name(true)))?, File::open(fs.join("bare"))?);
    let (cut, took_us) = timed(|| btrfs::snapshot(&to, &run.to_string(), &from));
    cut.context("the ioctl of btrfs subvolume snapshot")?;
    rustix::fs::syncfs(&to)?;
    if then == Then::Removed {
        btrfs::destroy(&to, &run.to_string())?;
    }
    Ok(took_us)
}

fn copied(qemu: &Qemu, fs: &Path, run: usize, then: Then) -> Result<u64> {
    let path = fs.join("bare").join(run.to_string());
    File::create(&path)?.set_len(fs::metadata(image(fs, true))?.len())?;
    let mut qmp = qemu.monitor()?;
    let node =
        json!({ "driver": "raw", "node-name": TARGET, "file": { "driver": "file", "filename": path } });
    qmp.execute("blockdev-add", node, LIMIT)?;
    let backup = json!({ "type": "blockdev-backup", "data": {
        "device": name(true), "target": TARGET, "sync": "full", "job-id": JOB } });
    let (cut, took_us) = timed(|| qmp.execute("transaction", json!({ "actions": [backup] }), LIMIT));
    cut.context("transaction")?;
    loop {
        let jobs = qmp.execute("query-jobs", json!({}), LIMIT)?;
        if !jobs.as_array().context("a list of jobs")?.iter().any(|job| job["id"] == JOB) {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    qmp.execute("blockdev-del", json!({ "node-name": TARGET }), LIMIT)?;
    if then == Then::Removed {
        fs::remove_file(path)?;
    }
    Ok(took_us)
}

fn in_pool(place: &rbd::Place, run: usize, then: Then) -> Result<u64> {
    let image = rbd::bare::BareImage::open(place, name(true))?;
    let snapshot = format!("bare{run}");
    let (cut, took_us) = timed(|| image.snapshot(&snapshot));
    cut?;
    if then == Then::Removed {
        image.remove(&snapshot)?;
    }
    Ok(took_us)
}

fn by_plugin(array: &Array, run: usize, then: Then) -> Result<u64> {
    let plugin = BarePlugin::new(&array.place())?;
    // Connects, as `prepare` does.
    plugin.remove("absent".to_owned())?;
    // A name such as ours: the plugin looks for it among those that it has.
    let name_of_it = format!("hostsnap-00000000-0000-0000-0000-{run:012}-1");
    let (made, took_us) = timed(|| plugin.snapshot(&name_of_it, name(true)));
    let id = made?;
    if then == Then::Removed {
        plugin.remove(id)?;
    }
    Ok(took_us)
}

fn in_group(group: &Group, run: usize, then: Then) -> Result<u64> {
    let snapshot = format!("bare{run}");
    let mut lvm = BareLvm::start(group.pool().parse()?, name(true), &snapshot)?;
    let (cut, took_us) = timed(|| lvm.snapshot(name(true), &snapshot));
    cut?;
    if then == Then::Removed {
        lvm.remove(&snapshot)?;
    }
    Ok(took_us)
}

fn in_tank(tank: &Tank, run: usize, then: Then) -> Result<u64> {
    let snapshot = format!("{}@bare{run}", tank.volume(true));
    let bare = zfs::bare::BareCut::of(tank.pool(), &snapshot)?;
    // `prepare` takes as long, and what a pool does after a write is over then.
    std::thread::sleep(Duration::from_millis(250));
    let (cut, took_us) = timed(|| bare.make());
    cut?;
    if then == Then::Removed {
        zfs::bare::remove(&snapshot)?;
    }
    Ok(took_us)
}
