//! Which block node of a QEMU is the disk with this serial, and what lies over its image while that is given other bytes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{DiskSerial, SnapshotId};
use serde_json::{Value, json};
use uuid::Uuid;

use super::qmp::{Qmp, QmpError};

const LIMIT: Duration = Duration::from_secs(5);

/// A disk of a running QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What the block layer calls what its device reads: its image, or the cover over it.
    pub node: String,
    /// What lies over its image.
    pub cover: Option<CoverName>,
    /// QEMU's driver for the node.
    pub layout: String,
    /// Its image, as QEMU opened it.
    pub file: PathBuf,
    /// Whether nothing can be written to the node.
    pub is_read_only: bool,
    /// In bytes, as the guest sees it.
    pub size_bytes: u64,
}

/// The name of a cover: a block node that shows a disk other bytes than its image has. All that it is made of is called by
/// it too. A node's name has at most 31 bytes (QEMU `include/block/block_int-common.h`, `node_name[32]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoverName(String);

const COVER: &str = "hr";
const COVER_DIGITS: usize = 24;

impl CoverName {
    /// The cover of a disk that shows it this snapshot: the same one always has the same name.
    pub fn new(snapshot: SnapshotId, disk: &DiskSerial) -> Self {
        let digits = Uuid::new_v5(snapshot.as_uuid(), disk.as_str().as_bytes()).simple().to_string();
        Self(format!("{COVER}{}", &digits[..COVER_DIGITS]))
    }

    /// As the block node is called.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of_node(node: &str) -> Option<Self> {
        let digits = node.strip_prefix(COVER)?;
        let is_ours = digits.len() == COVER_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_ours.then(|| Self(node.to_owned()))
    }
}

/// Why it was not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// QEMU did not say.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// None has this serial.
    #[error("the machine has no disk with the serial {wanted}; its disks have: {there}")]
    None {
        /// The serial.
        wanted: DiskSerial,
        /// Those that are there.
        there: String,
    },
    /// Several have.
    #[error("the machine has {count} disks with the serial {wanted}")]
    Several {
        /// The serial.
        wanted: DiskSerial,
        /// How many.
        count: usize,
    },
    /// The configured image is not there; whatever QEMU has open, it is not known to be that.
    #[error("look at the image {}", path.display())]
    Image {
        /// Where it should be.
        path: PathBuf,
        /// Why it can't be looked at.
        #[source]
        source: std::io::Error,
    },
    /// It is another image than the configuration says.
    #[error("the disk {wanted} of the machine is the image {there}, not the configured one")]
    OtherImage {
        /// The serial.
        wanted: DiskSerial,
        /// The image that QEMU has open.
        there: String,
    },
}

/// Finds it, and makes sure that it is this image.
pub fn find(qmp: &mut Qmp, wanted: &DiskSerial, image: &Path) -> Result<Disk, FindError> {
    let blocks = qmp.execute("query-block", json!({}), LIMIT)?;
    let mut found = Vec::new();
    let mut there = Vec::new();
    for block in blocks.as_array().into_iter().flatten().filter(|block| block.get("inserted").is_some()) {
        let Some(serial) = serial_of(qmp, block)? else { continue };
        // The administrator may have written what the guest reads of it.
        if serial.parse::<DiskSerial>().is_ok_and(|serial| serial.same_disk(wanted)) {
            found.push(block);
        }
        there.push(serial);
    }
    let block = match found[..] {
        [] => return Err(FindError::None { wanted: wanted.clone(), there: there.join(", ") }),
        [block] => block,
        _ => return Err(FindError::Several { wanted: wanted.clone(), count: found.len() }),
    };
    let inserted = &block["inserted"];
    let cover = inserted["node-name"].as_str().and_then(CoverName::of_node);
    let image_of = &inserted["image"];
    let image_of = if cover.is_some() { &image_of["backing-image"] } else { image_of };
    let file = image_of["filename"].as_str().unwrap_or_default();
    let configured =
        fs::metadata(image).map_err(|source| FindError::Image { path: image.to_owned(), source })?;
    if is_other_file(Path::new(file), &configured) {
        return Err(FindError::OtherImage { wanted: wanted.clone(), there: file.to_owned() });
    }
    let node = inserted["node-name"].as_str();
    let layout = inserted["drv"].as_str();
    let size_bytes = inserted["image"]["virtual-size"].as_u64();
    match (node, layout, size_bytes) {
        (Some(node), Some(layout), Some(size_bytes)) => {
            let (node, layout) = (node.to_owned(), layout.to_owned());
            let is_read_only = inserted["ro"].as_bool().unwrap_or(false);
            Ok(Disk { node, cover, layout, file: file.into(), is_read_only, size_bytes })
        }
        _ => Err(QmpError::Malformed("query-block without node-name or virtual-size".to_owned()).into()),
    }
}

/// virtio-blk and SCSI disks have the property themselves; of NVMe the controller has it, which is
/// above the namespace.
fn serial_of(qmp: &mut Qmp, block: &Value) -> Result<Option<String>, QmpError> {
    let Some(device) = block["qdev"].as_str().filter(|device| !device.is_empty()) else { return Ok(None) };
    let path =
        if device.starts_with('/') { device.to_owned() } else { format!("/machine/peripheral/{device}") };
    for path in Path::new(&path).ancestors().take(3) {
        let arguments = json!({ "path": path, "property": "serial" });
        match qmp.execute("qom-get", arguments, LIMIT) {
            Ok(Value::String(serial)) if !serial.is_empty() => return Ok(Some(serial)),
            Ok(_) | Err(QmpError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether both are files, and different ones. What QEMU was handed as a descriptor has no name.
fn is_other_file(there: &Path, configured: &fs::Metadata) -> bool {
    fs::metadata(there).is_ok_and(|there| (there.dev(), there.ino()) != (configured.dev(), configured.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cover_is_known_by_its_name_and_nothing_else_is_one() {
        let id = |text: &str| text.parse::<SnapshotId>().unwrap();
        let (one, other) =
            (id("00000000-0000-0000-0000-0000000000aa"), id("00000000-0000-0000-0000-0000000000ab"));
        let (data, log) = ("data".parse().unwrap(), "log".parse().unwrap());
        let name = CoverName::new(one, &data);
        assert_eq!(CoverName::of_node(name.as_str()), Some(name.clone()));
        assert_eq!(name, CoverName::new(one, &data));
        assert!(name != CoverName::new(other, &data) && name != CoverName::new(one, &log));
        assert!(format!("{}-d", name.as_str()).len() < 32);
        for node in
            ["data", "#block123", "hr", "hr0123", &format!("{}-d", name.as_str()), "hs00000000000000000000-0"]
        {
            assert_eq!(CoverName::of_node(node), None, "{node}");
        }
    }
}
