//! What a cover is made of: its files, and all that QEMU has of it, by its name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::job::ignore_refusal;
use super::super::offline::qemu_img;
use super::super::{LIMIT, POLL_EVERY};
use super::{FLUSH_LIMIT, refused};
use crate::drivers::common::tool_failed;
use crate::drivers::{DriverError, Kind, Volume};
use crate::vmm::disk::{CoverName, Disk};
use crate::vmm::qmp::{Qmp, QmpError};

/// How long it may take to make an empty image.
const MAKE_LIMIT: Duration = Duration::from_secs(60);

/// Has the device read the cover.
pub(super) fn put_over(
    qmp: &mut Qmp,
    volume: &Volume,
    disk: &Disk,
    name: &CoverName,
    snapshot: &Path,
    scratch: &Path,
) -> Result<(), DriverError> {
    let old = File::open(snapshot)
        .map_err(|error| DriverError::io(format!("open {}", snapshot.display()), error))?;
    let (cover, data) = files(volume, scratch, disk.size_bytes)?;
    let name = name.as_str();
    let (data_node, old_node) = (format!("{name}-d"), format!("{name}-r"));
    let told = (|| {
        let old_file = hand_over(qmp, &old_node, &old)?;
        let data_file = hand_over(qmp, &data_node, &data)?;
        // So whoever comes later knows what is below.
        let cover_file = hand_over(qmp, &format!("{name} {}", disk.node), &cover)?;
        // A power loss of the host ends their QEMU too.
        let cache = json!({ "no-flush": true });
        let old = json!({
            "node-name": old_node, "driver": "raw", "read-only": true,
            "file": { "driver": "file", "filename": old_file, "read-only": true },
        });
        let data = json!({
            "node-name": data_node, "driver": "qcow2", "cache": cache,
            "file": { "driver": "file", "filename": data_file }, "backing": old,
        });
        let cover = json!({
            "node-name": name, "driver": "qcow2", "cache": cache,
            "file": { "driver": "file", "filename": cover_file }, "data-file": data, "backing": null,
        });
        qmp.execute("blockdev-add", cover, LIMIT)?;
        qmp.execute("blockdev-snapshot", json!({ "node": disk.node, "overlay": name }), FLUSH_LIMIT)
    })();
    told.map(drop).map_err(|error| refused(format!("put {} under a cover", volume.source), error))
}

/// Two empty images: the cover's own, and its data. They have no name any more: nothing is left of them when QEMU
/// closes them.
fn files(volume: &Volume, scratch: &Path, size_bytes: u64) -> Result<(File, File), DriverError> {
    let doing = || format!("make a cover for {} in {}", volume.source, scratch.display());
    let io = |error: io::Error| DriverError::io(doing(), error);
    remove_folder(scratch).map_err(io)?;
    DirBuilder::new().mode(0o700).create(scratch).map_err(io)?;
    let tool = qemu_img(volume)?;
    let make = |name: &str, options: &[&str]| {
        let mut command = tool.command();
        // Names within the folder: no path of the host is taken for options, or stays in a file.
        command.current_dir(scratch).args(["create", "-q", "-f", "qcow2"]).args(options);
        command.arg(name).arg(size_bytes.to_string());
        let made = tool.run(&mut command, MAKE_LIMIT);
        made.map_err(|error| tool_failed(doing(), error, kind_of))?;
        let opened = OpenOptions::new().read(true).write(true).open(scratch.join(name));
        opened.map_err(|error| DriverError::io(doing(), error))
    };
    // Larger clusters make smaller tables: 16 MiB for a TiB.
    let everywhere = "cluster_size=512k,preallocation=metadata,data_file=none";
    let made = make("cover", &["-o", everywhere]).and_then(|cover| Ok((cover, make("data", &[])?)));
    remove_folder(scratch).map_err(io)?;
    made
}

/// What the descriptors say that QEMU was handed.
fn marks(sets: &Value) -> impl Iterator<Item = (&Value, &str)> {
    let sets = sets.as_array().into_iter().flatten();
    sets.flat_map(|set| {
        let fds = set["fds"].as_array().into_iter().flatten();
        fds.filter_map(|fd| Some((&set["fdset-id"], fd["opaque"].as_str()?)))
    })
}

/// The node below a cover.
pub(super) fn below(qmp: &mut Qmp, name: &CoverName) -> Result<Option<String>, QmpError> {
    let sets = qmp.execute("query-fdsets", json!({}), LIMIT)?;
    let below = marks(&sets).filter_map(|(set, mark)| {
        Some((set.as_u64()?, mark.strip_prefix(name.as_str())?.strip_prefix(' ')?))
    });
    // A QEMU whose guest is paused still has the descriptors that were taken back from it: the newest is the cover's.
    Ok(below.max().map(|(_, base)| base.to_owned()))
}

/// Whether anything is left of a cover.
pub(super) enum Released {
    Gone,
    /// A device reads it.
    InPlace,
}

/// Takes back what QEMU has of a cover that no device reads.
pub(super) fn release(qmp: &mut Qmp, name: &CoverName) -> Result<Released, QmpError> {
    let name = name.as_str();
    if let Err(error) = remove_node(qmp, name) {
        return if let QmpError::Refused { .. } = error { Ok(Released::InPlace) } else { Err(error) };
    }
    remove_node(qmp, &format!("{name}-p"))?;
    let sets = qmp.execute("query-fdsets", json!({}), LIMIT)?;
    for (set, _) in marks(&sets).filter(|(_, mark)| mark.starts_with(name)) {
        ignore_refusal(qmp.execute("remove-fd", json!({ "fdset-id": set }), LIMIT))?;
    }
    Ok(Released::Gone)
}

/// As `release`, of a cover that no device reads any more.
pub(super) fn release_soon(qmp: &mut Qmp, name: &CoverName) -> Result<(), QmpError> {
    let deadline = Instant::now() + LIMIT;
    while let Released::InPlace = release(qmp, name)? {
        if Instant::now() >= deadline {
            return Err(QmpError::TimedOut { command: "blockdev-del".to_owned() });
        }
        std::thread::sleep(POLL_EVERY);
    }
    Ok(())
}

/// Removes a node; absent is fine.
pub(super) fn remove_node(qmp: &mut Qmp, node: &str) -> Result<(), QmpError> {
    match qmp.execute("blockdev-del", json!({ "node-name": node }), LIMIT) {
        Ok(_) => Ok(()),
        Err(error @ QmpError::Refused { .. }) => {
            let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }), LIMIT)?;
            let is_there = nodes.as_array().into_iter().flatten().any(|one| one["node-name"] == node);
            if is_there { Err(error) } else { Ok(()) }
        }
        Err(error) => Err(error),
    }
}

fn hand_over(qmp: &mut Qmp, mark: &str, file: &File) -> Result<String, QmpError> {
    let added = qmp.execute_with_fd("add-fd", json!({ "opaque": mark }), file.as_fd(), LIMIT)?;
    Ok(format!("/dev/fdset/{}", added["fdset-id"]))
}

/// `qemu-img` has one exit status for all failures; its words are those of strerror(3).
fn kind_of(stderr: &str) -> Kind {
    if stderr.contains("No space left on device") { Kind::NoSpace } else { Kind::Failed }
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
