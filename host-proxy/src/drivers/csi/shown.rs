//! What this host keeps of a disk of a snapshot that is shown here: CSI opens no snapshot, so a volume is made of it, and
//! published to this host. All that undoing needs is noted before it is needed, in a folder for each such disk:
//!
//! ```text
//! <store>/.hostsnap/shown/<snapshot id>.<n>/
//!     shown.json    what the plugin is asked for, and what it calls the volume
//!     staging/      for the plugin's node service
//!     device        the volume, put there by the node service
//! ```
//!
//! It is not within the snapshot's folder: that is renamed when the snapshot is deleted, and what is mounted keeps its path.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use protocol::{DiskSerial, SnapshotId, VmUuid};
use serde::{Deserialize, Serialize};

use super::Store;
use super::entry::read_as;
use super::node::Node;
use super::plugin::Plugin;
use crate::drivers::folder::{entries, remove_if_there, remove_replaced, replace, sync};
use crate::drivers::{DriverError, Owner};

const FOLDER: &str = "shown";
const NOTE: &str = "shown.json";

/// A disk of a snapshot that is shown, or is going to be, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shown {
    /// The version of this text; 1 so far.
    hostsnap: u32,
    pub(super) vm: VmUuid,
    pub(super) serial: DiskSerial,
    /// The plugin's name: what another one calls a volume is something else.
    pub(super) plugin: String,
    pub(super) asked: Asked,
    /// What the plugin calls this host.
    pub(super) node: String,
    /// Whether the controller publishes it to this host.
    pub(super) publishes: bool,
    /// Whether the node service stages it.
    pub(super) stages: bool,
    /// The volume, once the plugin has told.
    pub(super) volume: Option<Volume>,
}

/// The question for the volume: asked again in the same words it gives the same one (CSI 1.12, `CreateVolume`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) name: String,
    /// What the plugin calls the snapshot.
    pub(super) snapshot: String,
    pub(super) required_bytes: u64,
    pub(super) parameters: BTreeMap<String, String>,
    /// Where it must be usable, for a plugin whose volumes are not everywhere.
    pub(super) topology: Option<BTreeMap<String, String>>,
}

/// A volume, as the plugin told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volume {
    pub(super) id: String,
    /// What the plugin wants to hear again with each call.
    pub(super) context: BTreeMap<String, String>,
}

impl Shown {
    /// Of this disk of this machine, asked for so; of this plugin, by this node.
    pub(super) fn new(
        (vm, serial): (VmUuid, &DiskSerial),
        asked: Asked,
        plugin: &Plugin,
        node: &Node,
    ) -> Self {
        Self {
            hostsnap: 1,
            vm,
            serial: serial.clone(),
            plugin: plugin.name.clone(),
            asked,
            node: node.id.clone(),
            publishes: plugin.publishes,
            stages: node.stages,
            volume: None,
        }
    }

    /// Whether it is what would be asked for now.
    pub(super) fn is(&self, now: &Self) -> bool {
        Self { volume: None, ..self.clone() } == *now
    }

    /// `None` if there is none: then the plugin was never asked.
    pub(super) fn read(spot: &Spot) -> Result<Option<Self>, DriverError> {
        read_as(&spot.0.join(NOTE), |shown: &Self| shown.hostsnap)
    }

    /// Notes it, durably.
    pub(super) fn write(&self, spot: &Spot) -> Result<(), DriverError> {
        let text = serde_json::to_vec_pretty(self).expect("no value that JSON lacks");
        replace(&spot.0.join(NOTE), &text)
    }
}

/// The folder of one such disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot(PathBuf);

impl Spot {
    pub(super) fn new(store: &Store, owner: Owner, index: usize) -> Self {
        Self(store.folder.root().join(FOLDER).join(format!("{}.{}", owner.snapshot, index + 1)))
    }

    /// All that there are, whatever became of their snapshots.
    pub(super) fn all(store: &Store) -> Result<Vec<(SnapshotId, Self)>, DriverError> {
        let folder = store.folder.root().join(FOLDER);
        let of_name = |name: std::ffi::OsString| {
            let (snapshot, _) = name.to_str()?.rsplit_once('.')?;
            Some((snapshot.parse().ok()?, Self(folder.join(&name))))
        };
        Ok(entries(&folder)?.into_iter().filter_map(of_name).collect())
    }

    /// For the node service to stage the volume in.
    pub(super) fn staging(&self) -> PathBuf {
        self.0.join("staging")
    }

    /// Where the node service puts the volume.
    pub(super) fn device(&self) -> PathBuf {
        self.0.join("device")
    }

    /// Makes the folder, durably.
    pub(super) fn make(&self) -> Result<(), DriverError> {
        let failed = |error| DriverError::io(format!("make the folder {}", self.0.display()), error);
        DirBuilder::new().recursive(true).mode(0o700).create(self.staging()).map_err(failed)?;
        self.0.ancestors().skip(1).take(2).try_for_each(sync)
    }

    /// The plugin must have removed what it put there. What it left, if it is not mounted, is nobody's.
    pub(super) fn clear_device(&self) -> Result<(), DriverError> {
        remove_if_there(&self.device())
    }

    /// Removes the folder: nothing is shown any more.
    pub(super) fn remove(&self) -> Result<(), DriverError> {
        self.clear_device()?;
        remove_folder(&self.staging())?;
        remove_replaced(&self.0.join(NOTE))?;
        remove_folder(&self.0)?;
        match self.0.parent() {
            Some(parent) if parent.is_dir() => sync(parent),
            _ => Ok(()),
        }
    }
}

fn remove_folder(path: &Path) -> Result<(), DriverError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let doing = format!("remove {}, where the plugin's node service left something", path.display());
            Err(DriverError::io(doing, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Shown {
        let asked = Asked {
            name: "hostsnap-shown-1".to_owned(),
            snapshot: "s".to_owned(),
            required_bytes: 1 << 20,
            parameters: BTreeMap::new(),
            topology: Some([("zone".to_owned(), "a".to_owned())].into()),
        };
        Shown {
            hostsnap: 1,
            vm: "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01".parse().unwrap(),
            serial: "data".parse().unwrap(),
            plugin: "array.example".to_owned(),
            asked,
            node: "node-1".to_owned(),
            publishes: true,
            stages: false,
            volume: None,
        }
    }

    #[test]
    fn what_was_noted_is_read_and_a_damaged_note_is_no_absence() {
        let folder = tempfile::tempdir().unwrap();
        let spot = Spot(folder.path().join("one.1"));
        assert_eq!(Shown::read(&spot).unwrap(), None);
        spot.make().unwrap();
        spot.make().unwrap();
        let mut shown = shown();
        shown.write(&spot).unwrap();
        assert_eq!(Shown::read(&spot).unwrap(), Some(shown.clone()));
        shown.volume = Some(Volume { id: "v".to_owned(), context: BTreeMap::new() });
        shown.write(&spot).unwrap();
        let read = Shown::read(&spot).unwrap().unwrap();
        assert_eq!(read, shown);
        assert!(read.is(&self::shown()) && !read.is(&Shown { node: "node-2".to_owned(), ..self::shown() }));
        fs::write(spot.0.join(NOTE), "{").unwrap();
        assert!(Shown::read(&spot).is_err());
        fs::write(spot.device(), b"").unwrap();
        spot.remove().unwrap();
        spot.remove().unwrap();
        assert!(!spot.0.exists() && folder.path().is_dir());
    }

    #[test]
    fn what_the_plugin_left_behind_is_told_and_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let spot = Spot(folder.path().join("one.1"));
        spot.make().unwrap();
        fs::write(spot.staging().join("lock"), b"x").unwrap();
        let error = spot.remove().unwrap_err();
        assert!(error.to_string().contains("left something"), "{error}");
        assert!(spot.staging().join("lock").exists());
    }
}
