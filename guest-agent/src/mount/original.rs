//! What is mounted at a path of this machine now: its UUID tells its copy among the file systems of a
//! snapshot.

use std::path::{Path, PathBuf};

use super::choose::Original;
use super::place::Place;
use super::probe::{Content, probe};
use crate::topology::capture::Capture;
use crate::topology::mountinfo;
use crate::topology::stack::{Stack, SuperBlock};

/// With the serials of the disks that it is on. `None` where nothing is mounted, or nothing that can be told.
pub(super) fn at(capture: &Capture, path: &Path) -> Option<(Original, Vec<String>)> {
    let stack = Stack::new(capture);
    let mount = mountinfo::of_path(&stack.mounts, path).filter(|mount| mount.mount_point == path)?;
    let super_block = stack.super_block(mount)?;
    let device = match &super_block {
        SuperBlock::Device(dev) => {
            capture.devices.iter().find(|device| device.dev.parse() == Ok(*dev))?.name.clone()
        }
        SuperBlock::Btrfs(uuid) => capture.btrfs.iter().find(|fs| fs.uuid == *uuid)?.devices.first()?.clone(),
    };
    let beneath = stack.beneath(&super_block).disks;
    let serials = beneath.iter().map(|name| stack.device(name)?.serial.clone()).collect::<Option<Vec<_>>>();
    let place = Place::open(Path::new("/dev").join(device)).ok()?;
    match probe(&place).ok()? {
        Content::FileSystem(fs) => {
            let original = Original { kind: fs.kind, uuid: fs.uuid, root: mount.root.clone() };
            Some((original, serials.unwrap_or_default()))
        }
        _ => None,
    }
}

/// The part of a file system that was mounted at a path; all of it, if that is not known any more.
pub(super) fn root(original: Option<&Original>, fs: &super::probe::FileSystem) -> PathBuf {
    original
        .filter(|original| original.uuid == fs.uuid)
        .map_or_else(|| "/".into(), |known| known.root.clone())
}
