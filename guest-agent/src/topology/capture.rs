//! What the kernel says of mounts and block devices, as one value. [`live`] reads this machine's;
//! tests read captures of real guests, made with `hostsnap disks --capture`.

use std::fs;
use std::path::{Path, PathBuf};

use protocol::DiskSerial;
use serde::{Deserialize, Serialize};

use super::{TopologyError, serial};

/// Everything that the rest of the topology is computed from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// `/proc/self/mountinfo`.
    pub mountinfo: String,
    /// `/sys/class/block`.
    pub devices: Vec<Device>,
    /// `/sys/fs/btrfs`: each file system's devices, by name.
    pub btrfs: Vec<Btrfs>,
}

/// One block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Its name in `/dev`.
    pub name: String,
    /// `major:minor`.
    pub dev: String,
    /// In bytes.
    pub size_bytes: u64,
    /// The disk that it is a partition of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_of: Option<String>,
    /// The devices that it is made of: LVM, LUKS, md.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slaves: Vec<String>,
    /// The device mapper's name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dm_name: Option<String>,
    /// The file behind a loop device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loop_file: Option<PathBuf>,
    /// The disk's serial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// One btrfs file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Btrfs {
    /// Its UUID.
    pub uuid: String,
    /// Its devices, by name.
    pub devices: Vec<String>,
}

/// Reads this machine, as this process sees it.
pub fn live() -> Result<Capture, TopologyError> {
    let table = "/proc/self/mountinfo";
    let mountinfo = fs::read(table)
        .map_err(|error| TopologyError::Read { what: table.to_owned(), why: error.to_string() })?;
    Ok(Capture {
        // A path that is no UTF-8 can't be asked for by name, but must not hide the others.
        mountinfo: String::from_utf8_lossy(&mountinfo).into_owned(),
        devices: devices(Path::new("/sys/class/block"))?,
        btrfs: btrfs(Path::new("/sys/fs/btrfs")),
    })
}

/// The disk with this serial, by its name in `/dev`: of this machine, now. Reads no more than it needs, so that it
/// can be asked again and again.
pub fn disk_with_serial(wanted: &DiskSerial) -> Result<Option<String>, TopologyError> {
    let class = Path::new("/sys/block");
    let names = fs::read_dir(class)
        .map_err(|error| TopologyError::Read { what: class.display().to_string(), why: error.to_string() })?;
    let has_it = |disk: &Path| {
        let serial = disk.canonicalize().ok().and_then(|disk| disk_serial(&disk));
        serial.and_then(|text| text.parse::<DiskSerial>().ok()).is_some_and(|serial| serial.same_disk(wanted))
    };
    let found = names.flatten().find(|entry| has_it(&entry.path()));
    Ok(found.and_then(|entry| entry.file_name().into_string().ok()).map(|name| kernel_name(&name)))
}

fn devices(class: &Path) -> Result<Vec<Device>, TopologyError> {
    let unreadable = |error: std::io::Error| TopologyError::Read {
        what: class.display().to_string(),
        why: error.to_string(),
    };
    let mut devices = fs::read_dir(class)
        .map_err(unreadable)?
        .filter_map(|entry| device(&entry.ok()?.path()))
        .collect::<Vec<_>>();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(devices)
}

/// `None` for a device that went away while it was read.
fn device(path: &Path) -> Option<Device> {
    // `/sys/class/block/vda1` links to `…/block/vda/vda1`.
    let real = path.canonicalize().ok()?;
    let text = |name: &str| fs::read(real.join(name)).ok().and_then(|bytes| serial::plain(&bytes));
    let parent = || real.parent()?.file_name()?.to_str().map(kernel_name);
    let sectors: u64 = text("size")?.parse().ok()?;
    Some(Device {
        name: kernel_name(path.file_name()?.to_str()?),
        dev: text("dev")?,
        // In sysfs a sector always has 512 bytes (Linux Documentation/ABI/stable/sysfs-block).
        size_bytes: sectors.saturating_mul(512),
        partition_of: text("partition").and_then(|_| parent()),
        slaves: names_in(&real.join("slaves")),
        dm_name: text("dm/name"),
        loop_file: text("loop/backing_file").map(PathBuf::from),
        serial: disk_serial(&real),
    })
}

/// virtio-blk, NVMe, SCSI: whichever it is.
fn disk_serial(disk: &Path) -> Option<String> {
    let read = |name: &str| fs::read(disk.join(name)).ok();
    read("serial")
        .and_then(|bytes| serial::plain(&bytes))
        .or_else(|| read("device/vpd_pg80").and_then(|page| serial::of_page_80(&page)))
        .or_else(|| read("device/vpd_pg83").and_then(|page| serial::of_page_83(&page)))
        .or_else(|| read("device/serial").and_then(|bytes| serial::plain(&bytes)))
}

/// sysfs writes `/` of a device's name as `!`: `cciss!c0d0`.
fn kernel_name(name: &str) -> String {
    name.replace('!', "/")
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .map(|name| kernel_name(&name))
        .collect();
    names.sort();
    names
}

fn btrfs(folder: &Path) -> Vec<Btrfs> {
    names_in(folder)
        .into_iter()
        .map(|uuid| Btrfs { devices: names_in(&folder.join(&uuid).join("devices")), uuid })
        .filter(|fs| !fs.devices.is_empty())
        .collect()
}
