//! Where a running QEMU takes another disk: a PCIe root port that is free, the main bus of a machine
//! that has hot plug there, or a virtio-scsi controller.
//!
//! What is there is read from QEMU's object tree (`qom-list`): a device's bus is a child of it, and a
//! device on a bus is a link `child[n]` of that.

use std::time::Duration;

use serde_json::{Value, json};

use super::qmp::{Qmp, QmpError};

const LIMIT: Duration = Duration::from_secs(5);
/// Devices with one slot below them, into which a device can be plugged.
const PORTS: [&str; 3] = ["child<pcie-root-port>", "child<ioh3420>", "child<xio3130-downstream>"];
const CONTROLLERS: [&str; 3] =
    ["child<virtio-scsi-pci>", "child<virtio-scsi-pci-non-transitional>", "child<virtio-scsi-device>"];
/// The folders of QEMU's object tree that hold the devices: those with an id, and those without.
const NAMED: &str = "/machine/peripheral";
const NAMELESS: &str = "/machine/peripheral-anon";

/// A place for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Port {
    /// This PCIe bus, which is empty.
    Pcie(String),
    /// Whatever bus QEMU takes if it is told none: `pci.0` of a `pc`. A `q35` refuses.
    Main,
    /// This SCSI bus.
    Scsi(String),
}

impl Port {
    /// The device that makes a disk of a block node there.
    pub(super) const fn device(&self) -> &'static str {
        match self {
            Self::Pcie(_) | Self::Main => "virtio-blk-pci",
            Self::Scsi(_) => "scsi-hd",
        }
    }

    pub(super) fn bus(&self) -> Option<&str> {
        match self {
            Self::Pcie(bus) | Self::Scsi(bus) => Some(bus),
            Self::Main => None,
        }
    }
}

/// All places, the best first.
pub(super) fn all(qmp: &mut Qmp) -> Result<Vec<Port>, QmpError> {
    let mut ports = Vec::new();
    let mut controllers = Vec::new();
    for folder in [NAMED, NAMELESS] {
        for (name, kind) in children(qmp, folder)? {
            let path = format!("{folder}/{name}");
            // A port without an id has a bus whose name may be another's as well.
            if folder == NAMED && PORTS.contains(&&*kind) {
                for (bus, kind) in children(qmp, &path)? {
                    if kind == "child<PCIE>" && is_empty(qmp, &format!("{path}/{bus}"))? {
                        ports.push(Port::Pcie(bus));
                    }
                }
            }
            if CONTROLLERS.contains(&&*kind) {
                let backend = if kind.contains("pci") { format!("{path}/virtio-backend") } else { path };
                let buses = children(qmp, &backend)?.into_iter().filter(|(_, kind)| kind == "child<SCSI>");
                controllers.extend(buses.map(|(bus, _)| Port::Scsi(bus)));
            }
        }
    }
    ports.sort_by(|a, b| a.bus().cmp(&b.bus()));
    ports.push(Port::Main);
    ports.extend(controllers);
    Ok(ports)
}

/// The devices that have an id.
pub(super) fn named_devices(qmp: &mut Qmp) -> Result<Vec<String>, QmpError> {
    Ok(children(qmp, NAMED)?.into_iter().map(|(name, _)| name).collect())
}

fn is_empty(qmp: &mut Qmp, bus: &str) -> Result<bool, QmpError> {
    Ok(!list(qmp, bus)?.iter().any(|(name, _)| name.starts_with("child[")))
}

fn children(qmp: &mut Qmp, path: &str) -> Result<Vec<(String, String)>, QmpError> {
    Ok(list(qmp, path)?.into_iter().filter(|(_, kind)| kind.starts_with("child<")).collect())
}

fn list(qmp: &mut Qmp, path: &str) -> Result<Vec<(String, String)>, QmpError> {
    let Value::Array(properties) = qmp.execute("qom-list", json!({ "path": path }), LIMIT)? else {
        return Err(QmpError::Malformed(format!("qom-list {path} gave no list")));
    };
    let text = |property: &Value, key: &str| property[key].as_str().unwrap_or_default().to_owned();
    Ok(properties.iter().map(|property| (text(property, "name"), text(property, "type"))).collect())
}
