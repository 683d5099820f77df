//! Going back to a snapshot: what the storage itself has for it, on the twin, and `Service::restore`, by turns.
//!
//! | storage | its own way |
//! |---|---|
//! | files that can be cloned | FICLONE onto the image |
//! | files of a QEMU, volumes of a CSI plugin | none: a plain copy onto the volume |
//! | rbd | `rbd_snap_rollback` |
//! | LVM | `lvconvert --merge`, which uses the snapshot up |
//! | ZFS | `zfs rollback`, which drops what is newer |

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::loopfs::run;
use host_proxy::drivers::rbd::bare::BareImage;

use crate::bare::timed;
use crate::bed::{Bed, Place, name};
use crate::figures::Figure;
use crate::ours::Ours;
use crate::{Driver, Then, none_yet};

/// Of each volume.
const DISK_BYTES: u64 = 64 << 20;
/// What is changed since the snapshot: a quarter of it, in pieces, each where it begins and how long it is.
const CHANGED: [(u64, u64); 16] = {
    let mut pieces = [(0, 1 << 20); 16];
    let mut index = 0;
    while index < pieces.len() {
        pieces[index].0 = (4 * index as u64) << 20;
        index += 1;
    }
    pieces
};
/// The bytes of the snapshot, and those of what is changed.
const THEN: u8 = 1;
const NOW: u8 = 2;
/// What the twin's snapshot is called.
const KEPT: &str = "kept";

/// Bare and ours; `None` where it is not to be measured, and where the driver has no such ability.
pub(crate) fn measure(
    driver: Driver,
    runtime: &tokio::runtime::Runtime,
    runs: usize,
) -> Result<Option<[Figure; 2]>> {
    if runs == 0 {
        return Ok(None);
    }
    let bed = Bed::make(driver, DISK_BYTES)?;
    let ours = Ours::on(&bed)?;
    if !ours.can_restore()? {
        return Ok(None);
    }
    for twin in [false, true] {
        bed.put(twin, THEN, &[(0, DISK_BYTES)])?;
    }
    let id = runtime.block_on(ours.cut(Then::Kept))?.id;
    let mut figures = none_yet(driver);
    for turn in 0..runs {
        for way in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
            let twin = way == 0;
            if twin {
                keep(&bed, turn)?;
            }
            bed.put(twin, NOW, &CHANGED)?;
            let took_us =
                if twin { go_back(&bed)? } else { runtime.block_on(ours.restore(id, DISK_BYTES))? };
            for (at, _) in CHANGED {
                ensure!(bed.holds(twin, THEN, at)?, "it is not what the snapshot holds, at {at}");
            }
            figures[way].took_us.push(took_us);
        }
    }
    Ok(Some(figures))
}

/// Has a snapshot of the twin made by the storage's own means, where there is none.
fn keep(bed: &Bed, turn: usize) -> Result<()> {
    match &bed.place {
        Place::Group(group) => {
            let twin = format!("{}/{}", group.vg(), name(true));
            run(Command::new("lvm").args(["lvcreate", "-q", "--snapshot", "--name", KEPT, &twin]));
        }
        _ if turn > 0 => {}
        Place::Tank(tank) => drop(run(Command::new("zfs").args(["snapshot", &kept_in_tank(tank)]))),
        Place::Pool(ceph) => BareImage::open(&crate::ours::place(ceph), name(true))?.snapshot(KEPT)?,
        Place::Files { .. } | Place::Array(_) => {
            let twin = twin_path(bed)?;
            fs::copy(&twin, beside(&twin))?;
            File::open(beside(&twin))?.sync_all()?;
        }
    }
    Ok(())
}

/// The storage's own way back; how long it took, in microseconds.
fn go_back(bed: &Bed) -> Result<u64> {
    match &bed.place {
        Place::Group(group) => {
            let kept = format!("{}/{KEPT}", group.vg());
            let mut merge = Command::new("lvm");
            merge.args(["lvconvert", "-q", "--yes", "--merge", &kept]);
            Ok(timed(|| run(&mut merge)).1)
        }
        Place::Tank(tank) => {
            let kept = kept_in_tank(tank);
            let mut rollback = Command::new("zfs");
            rollback.args(["rollback", &kept]);
            Ok(timed(|| run(&mut rollback)).1)
        }
        Place::Pool(ceph) => {
            let image = BareImage::open(&crate::ours::place(ceph), name(true))?;
            let (rolled_back, took_us) = timed(|| image.roll_back(KEPT));
            rolled_back?;
            Ok(took_us)
        }
        Place::Files { .. } | Place::Array(_) => {
            let twin = twin_path(bed)?;
            let clones = matches!(bed.driver, Driver::Reflink | Driver::Btrfs);
            let (copied, took_us) = timed(|| overwrite(&beside(&twin), &twin, clones));
            copied?;
            Ok(took_us)
        }
    }
}

fn overwrite(kept: &Path, volume: &Path, clones: bool) -> Result<()> {
    let mut from = File::open(kept)?;
    let mut to = File::options().write(true).open(volume)?;
    if clones {
        rustix::fs::ioctl_ficlone(&to, &from).context("FICLONE")?;
    } else {
        copy(&mut from, &mut to)?;
    }
    Ok(to.sync_all()?)
}

/// Byte for byte: `io::copy` shares extents where it can.
fn copy(from: &mut File, to: &mut File) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            len => to.write_all(&buffer[..len])?,
        }
    }
}

fn twin_path(bed: &Bed) -> Result<PathBuf> {
    bed.path(true).context("it is on this host")
}

fn beside(volume: &Path) -> PathBuf {
    volume.with_extension(KEPT)
}

fn kept_in_tank(tank: &crate::pools::Tank) -> String {
    format!("{}@{KEPT}", tank.volume(true))
}
