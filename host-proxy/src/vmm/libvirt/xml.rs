//! What a domain's XML says of its way in and its disks (libvirt.org/formatdomain.html), as `virsh dumpxml` prints it.
//! Pure. What is not asked for here may be as it likes, so that other versions' XML is read too.
//!
//! roxmltree goes one level deeper by a call of itself; libvirt's own parser takes no more than 256 levels.

use protocol::VmUuid;
use roxmltree::{Document, Node, ParsingOptions};

use super::{LibvirtError, XML_LIMIT};

/// A domain has some hundreds of elements.
const MAX_NODES: u32 = 200_000;

/// A domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: VmUuid,
    /// Whether it runs, paused or not.
    pub is_running: bool,
    /// The CID of its vsock device. One that libvirt chooses is there only while it runs.
    pub cid: Option<u32>,
    /// Whether it has a virtio-scsi controller.
    pub takes_scsi: bool,
    /// Its disks; no CD-ROM and no floppy.
    pub disks: Vec<Disk>,
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What libvirt calls it, such as `vda`; unique in the domain.
    pub target: String,
    /// The device's serial, if one was given.
    pub serial: Option<String>,
    /// The name of its device in QEMU, while it runs.
    pub alias: Option<String>,
    /// What is behind it.
    pub source: Source,
    /// The layout of what is behind it, by QEMU's name.
    pub layout: String,
    /// Whether its guest can't write to it.
    pub is_read_only: bool,
    /// Whether other machines may have it too.
    pub is_shared: bool,
    /// How its QEMU reaches the network storage that it is on: the elements of its XML that say so, as they are.
    pub reach: String,
}

/// What is behind a disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A file or a block device of this host.
    Path(String),
    /// A volume of one of libvirt's storage pools.
    Volume {
        /// The pool.
        pool: String,
        /// The volume's name there.
        volume: String,
    },
    /// An image of Ceph's: `pool/image`, or `pool/namespace/image`.
    Rbd(String),
    /// Something else, in libvirt's words.
    Other(String),
}

/// Reads a domain's XML.
pub fn read(text: &str) -> Result<Described, LibvirtError> {
    let malformed = |why: String| LibvirtError::Malformed { what: "a domain".to_owned(), why };
    if text.len() > XML_LIMIT {
        return Err(malformed(format!("its XML has {} bytes, more than {XML_LIMIT}", text.len())));
    }
    let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document =
        Document::parse_with_options(text, options).map_err(|error| malformed(error.to_string()))?;
    let domain = document.root_element();
    if !domain.has_tag_name("domain") {
        return Err(malformed(format!("its XML begins with <{}>", domain.tag_name().name())));
    }
    let name = text_of(domain, "name").ok_or_else(|| malformed("it has no name".to_owned()))?;
    let uuid = text_of(domain, "uuid").and_then(|uuid| uuid.parse().ok());
    let uuid = uuid.ok_or_else(|| malformed(format!("{name} has no UUID")))?;
    let devices = child(domain, "devices");
    let all = |name: &'static str| {
        devices
            .into_iter()
            .flat_map(move |devices| devices.children().filter(move |node| node.has_tag_name(name)))
    };
    let cid = all("vsock").find_map(|vsock| child(vsock, "cid")?.attribute("address")?.parse().ok());
    Ok(Described {
        name: name.to_owned(),
        uuid,
        is_running: domain.attribute("id").is_some(),
        cid,
        takes_scsi: all("controller").any(|controller| {
            controller.attribute("type") == Some("scsi")
                && controller.attribute("model").is_some_and(|model| model.starts_with("virtio"))
        }),
        disks: all("disk").filter_map(disk).collect(),
    })
}

fn disk(disk: Node<'_, '_>) -> Option<Disk> {
    // libvirt leaves `device` out of nothing, but its documentation has `disk` as the default.
    if !matches!(disk.attribute("device").unwrap_or("disk"), "disk" | "lun") {
        return None;
    }
    let alias = child(disk, "alias").and_then(|alias| alias.attribute("name"));
    let driver = child(disk, "driver").and_then(|driver| driver.attribute("type"));
    Some(Disk {
        target: child(disk, "target")?.attribute("dev")?.to_owned(),
        serial: text_of(disk, "serial").map(str::to_owned),
        alias: alias.map(str::to_owned),
        source: source(disk),
        layout: driver.unwrap_or("raw").to_owned(),
        is_read_only: child(disk, "readonly").is_some(),
        is_shared: child(disk, "shareable").is_some(),
        reach: reach(disk),
    })
}

/// Where the monitors are, as whom to come (in `<source>`, or in the disk as older definitions have it), by which file of
/// Ceph's. A secret is named, not told.
fn reach(disk: Node<'_, '_>) -> String {
    let of = |node: Node<'_, '_>, names: &[&str]| -> String {
        let known = node.children().filter(|one| names.contains(&one.tag_name().name()));
        known.map(written).collect()
    };
    let source = child(disk, "source");
    source.map(|source| of(source, &["host", "auth", "config"])).unwrap_or_default() + &of(disk, &["auth"])
}

/// An element without texts, as it was.
fn written(node: Node<'_, '_>) -> String {
    let name = node.tag_name().name();
    let attributes: String =
        node.attributes().map(|one| format!(" {}='{}'", one.name(), escaped(one.value()))).collect();
    let inner: String = node.children().filter(Node::is_element).map(written).collect();
    format!("<{name}{attributes}>{inner}</{name}>")
}

fn source(disk: Node<'_, '_>) -> Source {
    let kind = disk.attribute("type").unwrap_or("file");
    let of = |name: &str| child(disk, "source").and_then(|source| source.attribute(name)).map(str::to_owned);
    let known = match kind {
        "file" => of("file").map(Source::Path),
        "block" => of("dev").map(Source::Path),
        "volume" => of("pool").zip(of("volume")).map(|(pool, volume)| Source::Volume { pool, volume }),
        "network" if of("protocol").as_deref() == Some("rbd") => of("name").map(Source::Rbd),
        _ => None,
    };
    known.unwrap_or_else(|| {
        let protocol = of("protocol").map(|protocol| format!(" {protocol}")).unwrap_or_default();
        Source::Other(format!("{kind}{protocol}"))
    })
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn text_of<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(node, name)?.text().map(str::trim).filter(|text| !text.is_empty())
}

/// A text as the value of an attribute in single quotes, or between tags.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '\'' => escaped += "&apos;",
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
