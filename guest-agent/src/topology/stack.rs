//! The block stack: from a device down to the disks that hold it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::capture::{Btrfs, Capture, Device};
use super::mountinfo::{self, Dev, Mount};

/// A file system, wherever and however often it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SuperBlock {
    /// Known by its block device.
    Device(Dev),
    /// btrfs has device numbers of its own, one for each subvolume: known by its UUID.
    Btrfs(String),
}

/// The whole system, ready to be asked.
pub struct Stack<'a> {
    devices: BTreeMap<&'a str, &'a Device>,
    btrfs: &'a [Btrfs],
    /// All mounts.
    pub mounts: Vec<Mount>,
}

/// What is beneath a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beneath {
    /// The disks, by name.
    pub disks: BTreeSet<String>,
    /// Files of other file systems that it passes through (loop devices).
    pub files: BTreeSet<PathBuf>,
}

impl<'a> Stack<'a> {
    /// Of a capture.
    pub fn new(capture: &'a Capture) -> Self {
        Self {
            devices: capture.devices.iter().map(|device| (device.name.as_str(), device)).collect(),
            btrfs: &capture.btrfs,
            mounts: mountinfo::parse(capture.mountinfo.as_bytes()),
        }
    }

    /// A device by its name.
    pub fn device(&self, name: &str) -> Option<&'a Device> {
        self.devices.get(name).copied()
    }

    /// All devices that are made of nothing else and could be a virtual machine's disk.
    pub fn disks(&self) -> impl Iterator<Item = &'a Device> {
        self.devices.values().copied().filter(|device| is_disk(device))
    }

    /// All devices that are made of others.
    pub fn holders(&self) -> impl Iterator<Item = &'a Device> {
        self.devices.values().copied().filter(|device| !device.slaves.is_empty())
    }

    /// Which file system a mount shows; `None` if it has no block device.
    pub fn super_block(&self, mount: &Mount) -> Option<SuperBlock> {
        if mount.fs_type == "btrfs" {
            let source = self.named(&mount.source)?;
            let fs = self.btrfs.iter().find(|fs| fs.devices.contains(&source.name))?;
            return Some(SuperBlock::Btrfs(fs.uuid.clone()));
        }
        self.by_number(mount.dev).map(|_| SuperBlock::Device(mount.dev))
    }

    /// Everything beneath a file system.
    pub fn beneath(&self, super_block: &SuperBlock) -> Beneath {
        let mut beneath = Beneath::default();
        let mut seen = BTreeSet::new();
        for device in self.devices_of(super_block) {
            self.descend(device, &mut seen, &mut beneath);
        }
        beneath
    }

    fn descend(&self, device: &'a Device, seen: &mut BTreeSet<&'a str>, beneath: &mut Beneath) {
        if !seen.insert(&device.name) {
            return;
        }
        let below = device.partition_of.iter().chain(&device.slaves).filter_map(|name| self.device(name));
        let mut is_leaf = true;
        for device in below {
            is_leaf = false;
            self.descend(device, seen, beneath);
        }
        match &device.loop_file {
            Some(file) => {
                beneath.files.insert(file.clone());
                let mount = mountinfo::of_path(&self.mounts, file);
                if let Some(super_block) = mount.and_then(|mount| self.super_block(mount)) {
                    for device in self.devices_of(&super_block) {
                        self.descend(device, seen, beneath);
                    }
                }
            }
            None if is_leaf => {
                beneath.disks.insert(device.name.clone());
            }
            None => {}
        }
    }

    fn devices_of(&self, super_block: &SuperBlock) -> Vec<&'a Device> {
        match super_block {
            SuperBlock::Device(dev) => self.by_number(*dev).into_iter().collect(),
            SuperBlock::Btrfs(uuid) => self
                .btrfs
                .iter()
                .filter(|fs| fs.uuid == *uuid)
                .flat_map(|fs| &fs.devices)
                .filter_map(|name| self.device(name))
                .collect(),
        }
    }

    fn by_number(&self, dev: Dev) -> Option<&'a Device> {
        self.devices.values().copied().find(|device| device.dev.parse() == Ok(dev))
    }

    /// `/dev/vda1` or `/dev/mapper/name`.
    fn named(&self, path: &Path) -> Option<&'a Device> {
        let name = path.strip_prefix("/dev").ok()?.to_str()?;
        let mapped = || {
            let name = name.strip_prefix("mapper/")?;
            self.devices.values().copied().find(|device| device.dm_name.as_deref() == Some(name))
        };
        self.device(name).or_else(mapped)
    }
}

/// Made of nothing else, and not made by the guest itself or for other media.
fn is_disk(device: &Device) -> bool {
    const OTHER: [&str; 6] = ["loop", "ram", "zram", "sr", "fd", "nbd"];
    let made_of_nothing =
        device.partition_of.is_none() && device.slaves.is_empty() && device.dm_name.is_none();
    made_of_nothing
        && !device.name.starts_with("md")
        && !device.name.starts_with("dm-")
        && !OTHER.iter().any(|other| {
            device.name.strip_prefix(other).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
}
