//! What is behind a disk that is plugged into a domain, as libvirt's XML has it.
//!
//! libvirt's QEMU is another user's process, and opens its files by their paths; a store's are root's alone. So it is given
//! block devices, which libvirt hands over by itself: the snapshot's own, or a loop device over its file. An image of
//! Ceph's it reaches as it reaches the domain's own disk on that image.
//!
//! A device has a name of the snapshot's in `/dev/hostsnap`, and the domain's XML has that name. `/dev/loop3` is another
//! file on another host: a domain that moved there would be given somebody else's snapshot. A name that is not there
//! makes libvirt refuse the move.
//!
//! A clone is a qcow2 file, which QEMU lets grow; a device can't. So the file is as long as it can ever become, with a
//! hole where nothing is yet.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use protocol::attach::AttachedName;
use serde_json::Value;

use super::xml::{self, Described, escaped};
use crate::vmm::loop_device::LoopDevice;
use crate::vmm::plug::{Base, Content, PlugError};

/// Where devices have names of ours. It is gone with the host's memory, as they are.
const FOLDER: &str = "/dev/hostsnap";
/// How large a cluster of a qcow2 file is, unless somebody says otherwise.
const CLUSTER: u64 = 64 << 10;
/// What a qcow2 file has beside data and tables of it: its header, its first tables, and what is moved while it grows.
const BESIDE: u64 = 64 * CLUSTER;

/// What is behind a disk. The devices stay while this lives, and as long as QEMU has them open.
pub(super) struct Behind {
    devices: Vec<LoopDevice>,
    kind: &'static str,
    layout: &'static str,
    source: String,
    /// Elements of a clone's disk that say what it lies over.
    below: Option<String>,
}

impl Behind {
    /// Makes it. What is left of a failure, [`forget`] removes.
    pub(super) fn of(name: &AttachedName, content: &Content, domain: &Described) -> Result<Self, PlugError> {
        match content {
            Content::ReadOnly(base) => Self::base(&name.to_string(), base, domain),
            Content::Clone(base, file) => {
                let base = Self::base(&format!("{name}.base"), base, domain)?;
                let Self { mut devices, kind, layout, source, .. } = base;
                let as_long_as_it_may_become = most_bytes(file).map_err(PlugError::Device)?;
                file.set_len(as_long_as_it_may_become).map_err(PlugError::Device)?;
                let device = LoopDevice::writable(file).map_err(PlugError::Device)?;
                let link = link(&name.to_string(), device.path()).map_err(PlugError::Device)?;
                devices.push(device);
                let below = format!(
                    "<backingStore type='{kind}'><format type='{layout}'/>{source}<backingStore/></backingStore>"
                );
                let source = block(&link);
                Ok(Self { devices, kind: "block", layout: "qcow2", source, below: Some(below) })
            }
        }
    }

    fn base(name: &str, base: &Base, domain: &Described) -> Result<Self, PlugError> {
        let (devices, kind, layout, source) = match base {
            Base::Node(node) => (Vec::new(), "network", "raw", of_ceph(node, domain)?),
            Base::File(file, layout) => {
                let (device, path) = device_of(file).map_err(PlugError::Device)?;
                let link = link(name, &path).map_err(PlugError::Device)?;
                (device.into_iter().collect(), "block", *layout, block(&link))
            }
        };
        Ok(Self { devices, kind, layout, source, below: None })
    }

    /// The disk's `type`.
    pub(super) const fn kind(&self) -> &'static str {
        self.kind
    }

    /// The disk's `<driver>` and what is behind it, and `<readonly/>` where that is so.
    pub(super) fn elements(&self) -> String {
        let Self { layout, source, below, .. } = self;
        // What the kernel had cached of a loop device would be written when QEMU closes it, while its guest waits.
        let (more, rest) = match below {
            Some(below) => (" cache='none' discard='unmap'", below.as_str()),
            None => ("", "<readonly/>"),
        };
        format!(
            "<driver name='qemu' type='{layout}'{more} error_policy='report' rerror_policy='report'/>{source}{rest}"
        )
    }
}

/// Removes the names of a disk's devices. They themselves are gone with the last who has them open.
pub(super) fn forget(name: &AttachedName) {
    for name in [name.to_string(), format!("{name}.base")] {
        match fs::remove_file(Path::new(FOLDER).join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("remove {FOLDER}/{name}: {error}");
            }
            _ => {}
        }
    }
}

/// An image of Ceph's, by the way that the domain itself has to it.
fn of_ceph(node: &Value, domain: &Described) -> Result<String, PlugError> {
    let text = |key: &str| node[key].as_str();
    let (Some("rbd"), Some(pool), Some(image), Some(snapshot)) =
        (text("driver"), text("pool"), text("image"), text("snapshot"))
    else {
        return Err(PlugError::Unsupported("libvirt knows no such storage"));
    };
    let image = match text("namespace") {
        Some(namespace) => format!("{pool}/{namespace}/{image}"),
        None => format!("{pool}/{image}"),
    };
    let own = domain.disks.iter().find(|disk| disk.source == xml::Source::Rbd(image.clone()));
    let own = own.ok_or(PlugError::Unsupported(
        "its XML has no <disk type='network'> on this image of Ceph's, by whose <host> and <auth> its QEMU would reach the \
         snapshot",
    ))?;
    let (image, snapshot) = (escaped(&image), escaped(snapshot));
    Ok(format!("<source protocol='rbd' name='{image}'>{}<snapshot name='{snapshot}'/></source>", own.reach))
}

fn block(path: &Path) -> String {
    format!("<source dev='{}'/>", escaped(&path.to_string_lossy()))
}

fn device_of(file: &File) -> io::Result<(Option<LoopDevice>, PathBuf)> {
    if file.metadata()?.file_type().is_block_device() {
        return Ok((None, fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?));
    }
    let device = LoopDevice::read_only(file)?;
    let path = device.path().to_owned();
    Ok((Some(device), path))
}

/// Gives a device this name. One that was left is replaced.
fn link(name: &str, device: &Path) -> io::Result<PathBuf> {
    let folder = Path::new(FOLDER);
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    // Whatever our umask is: libvirt's QEMU goes through it.
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    let path = folder.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(device, &path)?,
    }
    Ok(path)
}

/// How long an empty qcow2 file can become when all of its disk is written, in bytes: for each cluster of data there are
/// 8 bytes in a table of level 2 and 2 bytes in one of references (QEMU `docs/interop/qcow2.rst`), and for those tables again.
fn most_bytes(file: &File) -> io::Result<u64> {
    let mut size = [0; 8];
    // Its header has the disk's size at byte 24, big-endian.
    file.read_exact_at(&mut size, 24)?;
    let data = u64::from_be_bytes(size).div_ceil(CLUSTER);
    let tables = |clusters: u64| (clusters * 8).div_ceil(CLUSTER) + (clusters * 2).div_ceil(CLUSTER);
    let clusters = data + tables(data) + tables(tables(data));
    let now = file.metadata()?.len();
    Ok(now.max(clusters * CLUSTER + BESIDE))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn domain(disks: &str) -> Described {
        let text = format!(
            "<domain id='1'><name>n</name><uuid>3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01</uuid><devices>{disks}</devices></domain>"
        );
        xml::read(&text).unwrap()
    }

    fn node(namespace: Option<&str>) -> Value {
        let mut node = json!({ "driver": "rbd", "pool": "vms", "image": "db1", "snapshot": "hostsnap.x", "user": "hostsnap" });
        if let Some(namespace) = namespace {
            node["namespace"] = json!(namespace);
        }
        node
    }

    #[test]
    fn an_image_of_cephs_is_reached_as_the_domain_reaches_its_own() {
        let own = |name: &str| {
            domain(&format!(
                "<disk type='network'><source protocol='rbd' name='{name}'><host name='a'/></source><target dev='vda'/></disk>"
            ))
        };
        let behind = Behind::base("x", &Base::Node(node(None)), &own("vms/db1")).unwrap();
        assert_eq!(behind.kind(), "network");
        let source = "<source protocol='rbd' name='vms/db1'><host name='a'></host><snapshot name='hostsnap.x'/></source>";
        assert!(behind.elements().contains(source), "{}", behind.elements());
        assert!(behind.elements().ends_with("<readonly/>"));
        let inside = node(Some("inner"));
        assert!(of_ceph(&inside, &own("vms/inner/db1")).unwrap().contains("name='vms/inner/db1'"));
        for (node, domain) in
            [(&inside, own("vms/db1")), (&node(None), own("vms/db2")), (&json!({}), own("vms/db1"))]
        {
            let refused = of_ceph(node, &domain).unwrap_err();
            assert!(matches!(refused, PlugError::Unsupported(_)), "{refused}");
        }
    }

    #[test]
    fn a_clone_has_room_for_all_that_its_disk_can_hold() {
        let folder = tempfile::tempdir().unwrap();
        for megabytes in [1, 100_000] {
            let path = folder.path().join("clone");
            let size = format!("{megabytes}M");
            harness::loopfs::run(
                std::process::Command::new("qemu-img")
                    .args(["create", "-q", "-f", "qcow2"])
                    .arg(&path)
                    .arg(&size),
            );
            let measured = harness::loopfs::run(
                std::process::Command::new("qemu-img")
                    .args(["measure", "--output", "json", "-O", "qcow2", "--size", &size]),
            );
            let measured: Value = serde_json::from_str(&measured).unwrap();
            let whole = measured["fully-allocated"].as_u64().unwrap();
            let most = most_bytes(&File::open(&path).unwrap()).unwrap();
            assert!(
                whole > megabytes << 20 && most >= whole && most < whole + 2 * BESIDE,
                "{megabytes}: {whole} {most}"
            );
        }
    }
}
