//! Plugging a disk into a running QEMU and taking it out again. All that a disk is made of has one
//! name: its device, its block node, and the descriptors that QEMU was handed. So what is left of one
//! is found by the name alone, whatever happened to who plugged it in.
//!
//! Files are opened by us and handed over (`add-fd`): QEMU needs no right to the store.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use protocol::attach::AttachedName;
use serde_json::{Value, json};

use super::libvirt::LibvirtError;
use super::port::{self, Port};
use super::qmp::{Qmp, QmpError};

/// For a command that does nothing slow.
const LIMIT: Duration = Duration::from_secs(5);
/// How long QEMU may take to let go of a node whose device is gone.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);
const POLL_EVERY: Duration = Duration::from_millis(20);
/// What QEMU says to whoever plugs something in or out meanwhile (`qdev_device_add_from_qdict`, `qdev_unplug`).
const WHILE_MIGRATING: &str = "not allowed while migrating";
/// What a SCSI disk of ours says that it is: `packaging/udev/10-hostsnap.rules` knows it by that, since udev can't read the
/// page that its serial is in.
pub(super) const SCSI_PRODUCT: &str = "hostsnap";

/// What a disk shows.
pub enum Content {
    /// This, read-only.
    ReadOnly(Base),
    /// This with a qcow2 file over it, which takes what is written.
    Clone(Base, File),
}

/// What does not change.
pub enum Base {
    /// An image file or block device, open for reading, and QEMU's driver for its layout.
    File(File, &'static str),
    /// What QEMU opens by itself: a `-blockdev` without its name; raw.
    Node(Value),
}

/// A disk of ours that was found in a QEMU, or what is left of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: AttachedName,
    /// Whether its guest sees it: it has a device and a node.
    pub is_whole: bool,
    /// Whether it can be written to.
    pub is_writable: bool,
}

/// Why a disk was not plugged in or taken out.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// QEMU did not say.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// libvirt did not do it, or did not say.
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
    /// Whoever runs the machine can't.
    #[error("{0}")]
    Unsupported(&'static str),
    /// It is on its way to or from another host, or a file: nothing is plugged in or out meanwhile.
    #[error("the machine is being moved or saved")]
    Moving,
    /// No device could be made of its file.
    #[error("make a block device of its file")]
    Device(#[source] std::io::Error),
    /// There is no place for it.
    #[error("no port of the machine takes another disk: {}", .0.join("; "))]
    NoPort(Vec<String>),
    /// Its guest has not let it go.
    #[error("the guest has not released {0} within {limit} s", limit = .1.as_secs())]
    NotReleased(AttachedName, Duration),
    /// QEMU has not let its node go.
    #[error("QEMU has not released the block node of {0}: {1}")]
    NodeInUse(AttachedName, String),
}

impl PlugError {
    /// Whether the machine is gone, with all that was plugged in.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Qmp(error) => error.is_gone(),
            Self::Libvirt(error) => error.is_gone(),
            Self::Unsupported(_)
            | Self::Moving
            | Self::Device(_)
            | Self::NoPort(_)
            | Self::NotReleased(..)
            | Self::NodeInUse(..) => false,
        }
    }
}

/// Plugs a disk in. A failure leaves nothing behind, unless QEMU no longer answers.
pub fn plug(qmp: &mut Qmp, name: &AttachedName, content: &Content) -> Result<(), PlugError> {
    let plugged = add_node(qmp, name, content).map_err(PlugError::from).and_then(|()| add_device(qmp, name));
    if let Err(error) = plugged {
        // What can't be undone now is found by its name later.
        let _ = clear(qmp, name);
        return Err(error);
    }
    Ok(())
}

/// Takes a disk out: asks its guest for it, waits, and removes the rest. What is not there is out already.
pub fn unplug(qmp: &mut Qmp, name: &AttachedName, limit: Duration) -> Result<(), PlugError> {
    let deadline = Instant::now() + limit;
    let id = name.to_string();
    // Refused where there is no such device, and where its guest was asked before.
    match qmp.execute("device_del", json!({ "id": id }), LIMIT) {
        Err(QmpError::Refused { description, .. }) if description.contains(WHILE_MIGRATING) => {
            return Err(PlugError::Moving);
        }
        Ok(_) | Err(QmpError::Refused { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    while port::named_devices(qmp)?.contains(&id) {
        if Instant::now() >= deadline {
            return Err(PlugError::NotReleased(name.clone(), limit));
        }
        std::thread::sleep(POLL_EVERY);
    }
    clear(qmp, name)
}

/// Every disk of ours in this QEMU, and what is left of others.
pub fn found(qmp: &mut Qmp) -> Result<Vec<Found>, QmpError> {
    let devices = port::named_devices(qmp)?;
    let nodes = nodes(qmp)?;
    let names = devices.iter().chain(nodes.iter().map(|(name, _)| name));
    let mut ours: Vec<AttachedName> = names.filter_map(|name| name.parse().ok()).collect();
    ours.sort();
    ours.dedup();
    let found = ours.into_iter().map(|name| {
        let text = name.to_string();
        let node = nodes.iter().find(|(node, _)| *node == text);
        Found {
            is_whole: node.is_some() && devices.contains(&text),
            is_writable: node.is_some_and(|(_, is_read_only)| !is_read_only),
            name,
        }
    });
    Ok(found.collect())
}

/// The block nodes by name, and whether each is read-only.
fn nodes(qmp: &mut Qmp) -> Result<Vec<(String, bool)>, QmpError> {
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }), LIMIT)?;
    let Value::Array(nodes) = nodes else {
        return Err(QmpError::Malformed("query-named-block-nodes gave no list".to_owned()));
    };
    let of = |node: &Value| Some((node["node-name"].as_str()?.to_owned(), node["ro"].as_bool()?));
    Ok(nodes.iter().filter_map(of).collect())
}

fn add_node(qmp: &mut Qmp, name: &AttachedName, content: &Content) -> Result<(), QmpError> {
    let mut node = match content {
        Content::ReadOnly(base) => read_only(qmp, name, base)?,
        Content::Clone(base, file) => json!({
            "driver": "qcow2",
            "discard": "unmap",
            // It does not outlive its QEMU: what a power loss of the host does to it is of no interest.
            "cache": { "no-flush": true },
            "file": { "driver": "file", "filename": hand_over(qmp, name, file)? },
            "backing": read_only(qmp, name, base)?,
        }),
    };
    node["node-name"] = json!(name.to_string());
    qmp.execute("blockdev-add", node, LIMIT).map(|_| ())
}

fn read_only(qmp: &mut Qmp, name: &AttachedName, base: &Base) -> Result<Value, QmpError> {
    let (layout, file) = match base {
        Base::Node(node) => ("raw", node.clone()),
        Base::File(file, layout) => {
            let is_device = file.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
            let driver = if is_device { "host_device" } else { "file" };
            let filename = hand_over(qmp, name, file)?;
            (*layout, json!({ "driver": driver, "filename": filename, "read-only": true }))
        }
    };
    Ok(json!({ "driver": layout, "read-only": true, "file": file }))
}

fn hand_over(qmp: &mut Qmp, name: &AttachedName, file: &File) -> Result<String, QmpError> {
    let arguments = json!({ "opaque": name.to_string() });
    let added = qmp.execute_with_fd("add-fd", arguments, file.as_fd(), LIMIT)?;
    Ok(format!("/dev/fdset/{}", added["fdset-id"]))
}

fn add_device(qmp: &mut Qmp, name: &AttachedName) -> Result<(), PlugError> {
    let name = name.to_string();
    let mut refusals = Vec::new();
    for port in port::all(qmp)? {
        match qmp.execute("device_add", device(&name, &port), LIMIT) {
            Ok(_) => return Ok(()),
            Err(QmpError::Refused { description, .. }) if description.contains(WHILE_MIGRATING) => {
                return Err(PlugError::Moving);
            }
            Err(QmpError::Refused { description, .. }) => refusals.push(description),
            Err(error) => return Err(error.into()),
        }
    }
    Err(PlugError::NoPort(refusals))
}

/// Errors are reported to the guest: QEMU's own choice for a write without room, to pause the whole
/// machine, would let a clone stop what it was cloned from.
fn device(name: &str, port: &Port) -> Value {
    let mut device = json!({
        "driver": port.device(),
        "id": name,
        "drive": name,
        "serial": name,
        "werror": "report",
        "rerror": "report",
    });
    if let Some(bus) = port.bus() {
        device["bus"] = json!(bus);
    }
    if let Port::Scsi(_) = port {
        device["product"] = json!(SCSI_PRODUCT);
    }
    device
}

/// Removes node and descriptors of a disk whose device is gone.
fn clear(qmp: &mut Qmp, name: &AttachedName) -> Result<(), PlugError> {
    let text = name.to_string();
    let deadline = Instant::now() + RELEASE_LIMIT;
    loop {
        match qmp.execute("blockdev-del", json!({ "node-name": text }), LIMIT) {
            Ok(_) => break,
            Err(QmpError::Refused { description, .. }) => {
                if !nodes(qmp)?.iter().any(|(node, _)| *node == text) {
                    break;
                }
                if Instant::now() >= deadline {
                    return Err(PlugError::NodeInUse(name.clone(), description));
                }
                std::thread::sleep(POLL_EVERY);
            }
            Err(error) => return Err(error.into()),
        }
    }
    let sets = qmp.execute("query-fdsets", json!({}), LIMIT)?;
    for set in sets.as_array().into_iter().flatten() {
        let fds = set["fds"].as_array();
        if fds.is_some_and(|fds| fds.iter().any(|fd| fd["opaque"] == text)) {
            match qmp.execute("remove-fd", json!({ "fdset-id": set["fdset-id"] }), LIMIT) {
                Ok(_) | Err(QmpError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
