//! What in this machine uses disks that are to be overwritten: mounts, which can be unmounted, and all else, which the
//! user ends. Pure but for the processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use protocol::{ErrorCode, WireError};
use serde::Serialize;

use super::users;
use crate::topology::capture::Capture;
use crate::topology::mountinfo::{self, Mount};
use crate::topology::select::Disk;
use crate::topology::stack::Stack;

/// Something that uses a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum InTheWay {
    /// A file system that is mounted.
    Mount {
        /// Where.
        path: PathBuf,
        /// Its kind.
        fstype: String,
    },
    /// This machine's own root file system.
    Root {
        /// Its kind.
        fstype: String,
    },
    /// Another block device is made of it: LVM, LUKS, md, a loop device.
    Holder {
        /// The disk, its partition, or the mount that holds the loop device's file.
        device: String,
        /// What is made of it.
        by: String,
    },
    /// Swap space.
    Swap {
        /// The device or file.
        device: PathBuf,
    },
    /// A process.
    Process {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
        /// What it has open, or is in.
        path: PathBuf,
        /// How: `file`, `cwd`, `root`, `program`, `mapped`.
        how: &'static str,
    },
}

impl InTheWay {
    /// For people.
    pub fn line(&self) -> String {
        match self {
            Self::Mount { path, fstype } => format!("{} ({fstype}) is mounted", path.display()),
            Self::Root { fstype } => format!("it holds the root file system ({fstype})"),
            Self::Holder { device, by } => format!("{by} is made of {device}"),
            Self::Swap { device } => format!("{} is swap space", device.display()),
            Self::Process { pid, name, path, how } => {
                let does = match *how {
                    "cwd" => "is in",
                    "root" => "has its root in",
                    "program" => "runs",
                    "mapped" => "has mapped",
                    _ => "has open",
                };
                format!("{name} (pid {pid}) {does} {}", path.display())
            }
        }
    }

    const fn can_be_unmounted(&self) -> bool {
        matches!(self, Self::Mount { .. })
    }
}

/// Everything of them that this machine has mounted, of every kind, in the order of the table.
pub(super) fn mounts(capture: &Capture, disks: &[Disk]) -> Vec<Mount> {
    let stack = Stack::new(capture);
    let is_on_them = |mount: &&Mount| {
        let beneath = stack.super_block(mount).map(|super_block| stack.beneath(&super_block));
        beneath.is_some_and(|beneath| disks.iter().any(|disk| beneath.disks.contains(&disk.name)))
    };
    stack.mounts.iter().filter(is_on_them).cloned().collect()
}

/// The disks and their partitions, by name.
fn devices<'a>(capture: &'a Capture, disks: &'a [Disk]) -> BTreeSet<&'a str> {
    let is_of = |name: &str| disks.iter().any(|disk| disk.name == name);
    let partitions = capture.devices.iter().filter(|one| one.partition_of.as_deref().is_some_and(is_of));
    disks.iter().map(|disk| disk.name.as_str()).chain(partitions.map(|one| one.name.as_str())).collect()
}

/// Everything that uses them.
pub(super) fn survey(capture: &Capture, disks: &[Disk]) -> Vec<InTheWay> {
    let mounts = mounts(capture, disks);
    let devices = devices(capture, disks);
    let mut found = used(capture, &mounts, &devices, &fs::read_to_string("/proc/swaps").unwrap_or_default());
    // Of the root file system everything is a user.
    if !found.iter().any(|one| matches!(one, InTheWay::Root { .. })) {
        let all = mountinfo::parse(capture.mountinfo.as_bytes());
        found.extend(users::find(&all, &mounts, &devices));
    }
    found
}

fn used(capture: &Capture, mounts: &[Mount], devices: &BTreeSet<&str>, swaps: &str) -> Vec<InTheWay> {
    let mut found: Vec<InTheWay> = mounts
        .iter()
        .map(|mount| match mount.mount_point == Path::new("/") {
            true => InTheWay::Root { fstype: mount.fs_type.clone() },
            false => InTheWay::Mount { path: mount.mount_point.clone(), fstype: mount.fs_type.clone() },
        })
        .collect();
    let table = mountinfo::parse(capture.mountinfo.as_bytes());
    let holds = |path: &Path| {
        let on = mountinfo::of_path(&table, path)?;
        mounts.iter().find(|mount| mount.id == on.id)
    };
    for device in &capture.devices {
        let by = device.dm_name.clone().unwrap_or_else(|| device.name.clone());
        for slave in device.slaves.iter().filter(|slave| devices.contains(slave.as_str())) {
            found.push(InTheWay::Holder { device: slave.clone(), by: by.clone() });
        }
        if let Some(mount) = device.loop_file.as_deref().and_then(holds) {
            found.push(InTheWay::Holder { device: mount.mount_point.display().to_string(), by });
        }
    }
    for device in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        let name = device.strip_prefix("/dev/");
        if name.map_or_else(|| holds(Path::new(device)).is_some(), |name| devices.contains(name)) {
            found.push(InTheWay::Swap { device: device.into() });
        }
    }
    found
}

/// Refuses with the list, unless `remount` can do away with all of it.
pub(super) fn refuse(in_the_way: &[InTheWay], remount: bool) -> Result<(), WireError> {
    let stays = |one: &&InTheWay| !(remount && one.can_be_unmounted());
    let lines: Vec<_> = in_the_way.iter().filter(stays).map(InTheWay::line).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let hint = if in_the_way.iter().any(|one| matches!(one, InTheWay::Root { .. })) {
        "go back from the host, while this machine is stopped: hostsnapd restore"
    } else if in_the_way.iter().all(InTheWay::can_be_unmounted) {
        "unmount it, or let --remount do it and mount it again afterwards"
    } else {
        "stop what uses the disk (services, swapoff, vgchange -an, cryptsetup close); --remount unmounts file systems"
    };
    let text = format!("nothing was restored, the disk is in use: {}", lines.join("; "));
    Err(WireError::new(ErrorCode::Busy, text).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::capture::Device;

    fn device(name: &str, dev: &str) -> Device {
        Device { name: name.to_owned(), dev: dev.to_owned(), size_bytes: 1 << 30, ..Device::default() }
    }

    fn capture() -> Capture {
        let part = Device { partition_of: Some("vdb".to_owned()), ..device("vdb1", "254:17") };
        let lv = Device {
            slaves: vec!["vdb1".to_owned()],
            dm_name: Some("vg-lv".to_owned()),
            ..device("dm-0", "252:0")
        };
        let on_it = Device { loop_file: Some("/data/image".into()), ..device("loop0", "7:0") };
        let devices = [("vda", "254:0"), ("vdb", "254:16"), ("vdc", "254:32")].map(|(n, d)| device(n, d));
        Capture {
            mountinfo: "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                        30 22 252:0 / /data rw - xfs /dev/mapper/vg-lv rw\n\
                        31 22 254:32 / /other rw - ext4 /dev/vdc rw\n"
                .to_owned(),
            devices: devices.into_iter().chain([part, lv, on_it]).collect(),
            btrfs: Vec::new(),
        }
    }

    fn found(disk: &str, swaps: &str) -> Vec<String> {
        let disks = [Disk { name: disk.to_owned(), serial: "x".parse().unwrap(), size_bytes: 1 << 30 }];
        let capture = capture();
        let devices = devices(&capture, &disks);
        let found = used(&capture, &mounts(&capture, &disks), &devices, swaps);
        found.iter().map(InTheWay::line).collect()
    }

    #[test]
    fn mounts_what_is_made_of_a_disk_and_swap_are_in_the_way_and_nothing_of_other_disks() {
        assert_eq!(found("vda", ""), ["it holds the root file system (ext4)"]);
        assert_eq!(
            found("vdb", "Filename Type\n/dev/vdb1 partition\n/dev/vda2 partition\n/data/swap file\n"),
            [
                "/data (xfs) is mounted",
                "vg-lv is made of vdb1",
                "loop0 is made of /data",
                "/dev/vdb1 is swap space",
                "/data/swap is swap space"
            ]
        );
        assert_eq!(found("vdc", "Filename Type\n/dev/vdb1 partition\n"), ["/other (ext4) is mounted"]);
    }

    #[test]
    fn what_can_be_unmounted_is_refused_only_without_remount() {
        let mount = InTheWay::Mount { path: "/data".into(), fstype: "ext4".to_owned() };
        let refused = refuse(std::slice::from_ref(&mount), false).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Busy);
        assert!(
            refused.to_string().contains("/data (ext4) is mounted")
                && refused.hint.as_str().contains("--remount")
        );
        assert!(refuse(std::slice::from_ref(&mount), true).is_ok());
        let process =
            InTheWay::Process { pid: 7, name: "db".to_owned(), path: "/data/x".into(), how: "file" };
        let refused = refuse(&[mount, process], true).unwrap_err();
        assert!(refused.to_string().contains("db (pid 7) has open /data/x"), "{refused}");
        assert!(!refused.message.as_str().contains("is mounted"), "{refused}");
        let root = refuse(&[InTheWay::Root { fstype: "ext4".to_owned() }], true).unwrap_err();
        assert!(root.hint.as_str().contains("hostsnapd restore"), "{root}");
    }
}
