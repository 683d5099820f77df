//! Which disks a request is about, and which file systems on them must be frozen, in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use protocol::DiskSerial;
use protocol::attach::AttachedName;
use serde::Serialize;

use super::TopologyError;
use super::capture::{Capture, Device};
use super::mountinfo::{self, Mount};
use super::stack::{Beneath, Stack, SuperBlock};

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The disks, each once.
    pub disks: Vec<Disk>,
    /// The mounted file systems on them, in the order of the freeze: innermost first, root last.
    pub file_systems: Vec<FileSystem>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Its name in `/dev`.
    pub name: String,
    /// By which the host knows it.
    pub serial: DiskSerial,
    /// In bytes.
    pub size_bytes: u64,
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    /// One place where it can be reached.
    pub mount_point: PathBuf,
    /// The number of that mount.
    pub mount_id: u32,
    /// Its kind.
    pub fs_type: String,
    /// The disks that it is on, by name.
    pub disks: BTreeSet<String>,
    /// Nothing writes to it: it need not be frozen.
    pub read_only: bool,
    /// Those of one rank don't depend on each other and can be frozen at the same time; those of a
    /// lower rank come before.
    pub rank: u32,
    /// Which it is, however it is mounted.
    #[serde(skip)]
    pub super_block: SuperBlock,
}

/// What to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// The disks under these canonical paths.
    Paths(Vec<PathBuf>),
    /// Every disk with a mounted file system, and these besides, by serial, mounted or not.
    All(Vec<DiskSerial>),
}

/// Decides.
pub fn select(capture: &Capture, wish: &Wish) -> Result<Selection, TopologyError> {
    let stack = Stack::new(capture);
    let mounted = mounted(&stack);
    let names = match wish {
        Wish::Paths(paths) => {
            let mut names = BTreeSet::new();
            for path in paths {
                names.extend(disks_under(&stack, &mounted, path)?);
            }
            names
        }
        Wish::All(known) => all_disks(&stack, &mounted, known),
    };
    if names.is_empty() {
        return Err(TopologyError::NoDisks);
    }
    let disks = identify(&stack, &names)?;
    let on_them: Vec<_> = mounted.iter().filter(|fs| !fs.beneath.disks.is_disjoint(&names)).collect();
    Ok(Selection { disks, file_systems: in_freeze_order(&stack, on_them)? })
}

/// A file system that can be written to on these disks and was not to be frozen by the plan: mounted, or
/// made writable, since then.
pub fn joined(capture: &Capture, disks: &BTreeSet<&str>, planned: &[FileSystem]) -> Option<PathBuf> {
    let stack = Stack::new(capture);
    let is_planned =
        |fs: &Mounted<'_>| planned.iter().any(|plan| !plan.read_only && plan.super_block == fs.super_block);
    let is_on_them = |fs: &Mounted<'_>| fs.beneath.disks.iter().any(|disk| disks.contains(disk.as_str()));
    let new = mounted(&stack)
        .into_iter()
        .find(|fs| !fs.best.super_read_only && is_on_them(fs) && !is_planned(fs))?;
    Some(new.best.mount_point.clone())
}

/// All disks with what is mounted on them, for `hostsnap disks`. What a disk lacks to be covered is
/// its `problem`.
pub fn overview(capture: &Capture) -> Vec<DiskOverview> {
    let stack = Stack::new(capture);
    let mounted = mounted(&stack);
    stack
        .disks()
        .map(|device| DiskOverview {
            name: device.name.clone(),
            serial: device.serial.clone(),
            size_bytes: device.size_bytes,
            mounts: mounted
                .iter()
                .filter(|fs| fs.beneath.disks.contains(&device.name))
                .map(|fs| (fs.best.mount_point.clone(), fs.best.fs_type.clone()))
                .collect(),
            problem: serial_of(device).err().map(|error| error.to_string()),
        })
        .collect()
}

/// A disk with what is mounted on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskOverview {
    /// Its name in `/dev`.
    pub name: String,
    /// Its serial, if it has one.
    pub serial: Option<String>,
    /// In bytes.
    pub size_bytes: u64,
    /// Mount points and kinds of the file systems on it.
    pub mounts: Vec<(PathBuf, String)>,
    /// Why no snapshot of it can be asked for.
    pub problem: Option<String>,
}

impl DiskOverview {
    /// Whether it is a snapshot's, which nobody takes snapshots of.
    pub fn is_attached(&self) -> bool {
        self.serial.as_ref().is_some_and(|serial| serial.parse::<AttachedName>().is_ok())
    }
}

/// A file system that is mounted at least once.
struct Mounted<'a> {
    super_block: SuperBlock,
    /// The mount through which it is best reached: visible, its whole tree, the shortest path.
    best: &'a Mount,
    visible: bool,
    beneath: Beneath,
}

fn mounted<'a>(stack: &'a Stack<'_>) -> Vec<Mounted<'a>> {
    let mut by_super_block: BTreeMap<SuperBlock, Vec<&Mount>> = BTreeMap::new();
    for mount in &stack.mounts {
        if let Some(super_block) = stack.super_block(mount) {
            by_super_block.entry(super_block).or_default().push(mount);
        }
    }
    let rank = |mount: &Mount| {
        let hidden = !mountinfo::is_visible(&stack.mounts, mount);
        let part = mount.root != Path::new("/");
        (hidden, part, mount.mount_point.components().count(), mount.id)
    };
    by_super_block
        .into_iter()
        .filter_map(|(super_block, mounts)| {
            let best = mounts.into_iter().min_by_key(|mount| rank(mount))?;
            let visible = mountinfo::is_visible(&stack.mounts, best);
            let beneath = stack.beneath(&super_block);
            Some(Mounted { super_block, best, visible, beneath })
        })
        .collect()
}

fn disks_under(
    stack: &Stack<'_>,
    mounted: &[Mounted<'_>],
    path: &Path,
) -> Result<BTreeSet<String>, TopologyError> {
    let mount = mountinfo::of_path(&stack.mounts, path).ok_or_else(|| TopologyError::Path {
        path: path.to_owned(),
        why: "it is on no mount of this process's namespace".to_owned(),
    })?;
    let Some(super_block) = stack.super_block(mount) else {
        if mount.dev.major != 0 || mount.fs_type == "btrfs" {
            let device = format!("{} ({})", mount.source.display(), mount.dev);
            return Err(TopologyError::UnknownDevice { path: path.to_owned(), device });
        }
        return Err(TopologyError::NotOnDisk {
            path: path.to_owned(),
            fs_type: mount.fs_type.clone(),
            why: why_not_on_disk(&mount.fs_type),
        });
    };
    let fs = mounted.iter().find(|fs| fs.super_block == super_block);
    Ok(fs.map(|fs| fs.beneath.disks.clone()).unwrap_or_default())
}

fn why_not_on_disk(fs_type: &str) -> &'static str {
    match fs_type {
        "tmpfs" | "ramfs" | "rootfs" => "which lives in memory and is on no disk; leave it out",
        "overlay" => {
            "which has no disk of its own; ask for the path of its upper directory (upperdir= in /proc/mounts)"
        }
        "nfs" | "nfs4" | "cifs" | "smb3" | "ceph" | "9p" | "virtiofs" | "glusterfs" => {
            "which another machine keeps; take the snapshot there"
        }
        "zfs" => "which has its own pools; ask for the disks with --all",
        _ => "which is on no disk; leave it out",
    }
}

fn all_disks(stack: &Stack<'_>, mounted: &[Mounted<'_>], known: &[DiskSerial]) -> BTreeSet<String> {
    // A snapshot that is attached is none of the machine's own disks, whatever is mounted from it.
    let is_own = |name: &String| {
        let serial = stack.device(name).and_then(|device| serial_of(device).ok());
        serial.is_none_or(|serial| serial.as_str().parse::<AttachedName>().is_err())
    };
    let held = mounted.iter().flat_map(|fs| fs.beneath.disks.iter().cloned()).filter(is_own);
    let named = stack
        .disks()
        .filter(|device| {
            serial_of(device).is_ok_and(|serial| known.iter().any(|known| known.same_disk(&serial)))
        })
        .map(|device| device.name.clone());
    held.chain(named).collect()
}

fn serial_of(device: &Device) -> Result<DiskSerial, TopologyError> {
    let missing = || TopologyError::NoSerial { disk: device.name.clone() };
    device.serial.clone().ok_or_else(missing)?.try_into().map_err(|_| missing())
}

fn identify(stack: &Stack<'_>, names: &BTreeSet<String>) -> Result<Vec<Disk>, TopologyError> {
    let mut disks: Vec<Disk> = Vec::with_capacity(names.len());
    for name in names {
        let device = stack.device(name).ok_or_else(|| TopologyError::NoSerial { disk: name.clone() })?;
        let serial = serial_of(device)?;
        disks.push(Disk { name: name.clone(), serial, size_bytes: device.size_bytes });
    }
    for disk in &disks {
        // Any other disk of this serial, chosen or not, makes it ambiguous; several paths to one
        // disk (multipath) are held together by the device mapper.
        let twin = stack.disks().find(|other| {
            other.name != disk.name
                && serial_of(other).is_ok_and(|serial| serial.same_disk(&disk.serial))
                && !share_a_holder(stack, &other.name, &disk.name)
        });
        if let Some(twin) = twin {
            return Err(TopologyError::AmbiguousSerial {
                first: disk.name.clone(),
                second: twin.name.clone(),
                serial: disk.serial.to_string(),
            });
        }
    }
    let mut seen: Vec<DiskSerial> = Vec::new();
    disks.retain(|disk| {
        let new = !seen.iter().any(|serial| serial.same_disk(&disk.serial));
        seen.push(disk.serial.clone());
        new
    });
    Ok(disks)
}

fn share_a_holder(stack: &Stack<'_>, a: &str, b: &str) -> bool {
    stack.holders().any(|device| {
        let holds = |name: &str| device.slaves.iter().any(|slave| slave == name);
        holds(a) && holds(b)
    })
}

/// A file system in a file of another comes before it; deeper mount points before shallower ones;
/// the root last. (A freeze from the outside in would block on the frozen outer one.) The first and
/// the last of these are the ranks; what is between is for people.
fn in_freeze_order(stack: &Stack<'_>, chosen: Vec<&Mounted<'_>>) -> Result<Vec<FileSystem>, TopologyError> {
    let mut left = chosen;
    left.sort_by_key(|fs| std::cmp::Reverse(fs.best.mount_point.components().count()));
    let mut ordered: Vec<FileSystem> = Vec::with_capacity(left.len());
    let mut before: Vec<&Mounted<'_>> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        // Ready is what holds no file of one that is still to come. Loops can't be circular.
        let ready = (0..left.len())
            .find(|index| !left.iter().any(|other| holds_file_of(stack, left[*index], other)))
            .unwrap_or(0);
        let fs = left.remove(ready);
        if !fs.visible && !fs.best.super_read_only {
            return Err(TopologyError::Hidden { mount_point: fs.best.mount_point.clone() });
        }
        let is_root = fs.best.mount_point == Path::new("/");
        let inside =
            before.iter().zip(&ordered).filter(|(other, _)| is_root || holds_file_of(stack, fs, other));
        let rank = inside.map(|(_, inner)| inner.rank + 1).max().unwrap_or(0);
        before.push(fs);
        ordered.push(FileSystem {
            mount_point: fs.best.mount_point.clone(),
            mount_id: fs.best.id,
            fs_type: fs.best.fs_type.clone(),
            disks: fs.beneath.disks.clone(),
            read_only: fs.best.super_read_only,
            rank,
            super_block: fs.super_block.clone(),
        });
    }
    ordered.sort_by_key(|fs| fs.rank);
    Ok(ordered)
}

/// Whether a file that `inner` passes through lies on `outer`.
fn holds_file_of(stack: &Stack<'_>, outer: &Mounted<'_>, inner: &Mounted<'_>) -> bool {
    inner.beneath.files.iter().any(|file| {
        let mount = mountinfo::of_path(&stack.mounts, file);
        mount.and_then(|mount| stack.super_block(mount)).as_ref() == Some(&outer.super_block)
    })
}

#[cfg(test)]
mod captured;
#[cfg(test)]
mod tests;
