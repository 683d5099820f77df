//! What this host keeps of a snapshot, since CSI has no place for it: beside the manifest, in the snapshot's folder
//! (`drivers/folder.rs`),
//!
//! ```text
//! csi.json    before the cut: which volumes, of which plugin
//! cut.json    after it: what the plugin calls the snapshots. Empty until then
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use protocol::DiskSerial;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::proto::Timestamp;
use crate::drivers::folder::{remove_if_there, remove_replaced, replace};
use crate::drivers::{DriverError, Kind, Owner, VolumeSnapshot};

const PLAN: &str = "csi.json";
const CUT: &str = "cut.json";
/// A file that is larger, in bytes, is none of ours.
const LIMIT: u64 = 1 << 20;
/// Room that is set aside before the cut for what a plugin calls one snapshot, in bytes.
const ROOM: u64 = 4096;

/// What is to be cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The version of this text; 1 so far.
    hostsnap: u32,
    /// The plugin's name: what another one calls a snapshot is something else.
    pub(super) plugin: String,
    /// Whether all are cut by one call.
    pub(super) is_group: bool,
    /// In the order of the plan.
    pub(super) volumes: Vec<Member>,
}

/// One volume of the set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) serial: DiskSerial,
    /// As the plugin calls it.
    pub(super) volume: String,
    pub(super) size_bytes: u64,
}

/// What was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cut {
    /// The group, where all were cut by one call.
    pub(super) group: Option<String>,
    /// In the order of the plan.
    pub(super) snapshots: Vec<Made>,
}

/// One snapshot, as the plugin told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) id: String,
    /// When, by the storage's clock, in seconds since 1970.
    pub(super) created_s: Option<i64>,
    /// How large a volume that is made of it must be at least, in bytes; where that was told.
    #[serde(default)]
    pub(super) size_bytes: Option<u64>,
}

impl Made {
    /// Whether this later answer is about the same snapshot. A plugin may make a name out of ours, so that a snapshot which
    /// somebody removed comes back, by our asking, with the same identifier and later contents.
    pub(super) fn is(&self, later: &Self) -> bool {
        let is_later = match (self.created_s, later.created_s) {
            (Some(then), Some(now)) => now > then.saturating_add(2),
            _ => false,
        };
        self.id == later.id && !is_later
    }
}

/// Of a plugin's timestamp.
pub(super) fn seconds(time: Option<Timestamp>) -> Option<i64> {
    time.map(|time| time.seconds)
}

impl Entry {
    pub(super) fn new(plugin: &str, is_group: bool, volumes: Vec<Member>) -> Self {
        Self { hostsnap: 1, plugin: plugin.to_owned(), is_group, volumes }
    }

    /// Writes it into the snapshot's folder, durably, with room for what comes of it.
    pub(super) fn write(&self, folder: &Path) -> Result<File, DriverError> {
        let text = serde_json::to_vec_pretty(self).expect("an entry has no value that JSON lacks");
        let write = || -> io::Result<File> {
            let cut = note_options().create(true).open(folder.join(CUT))?;
            let room = ROOM * (self.volumes.len() as u64 + 1);
            // Where the file system can't set room aside, a full one is noticed after the thaw.
            let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&cut, keep, 0, room) {
                Err(rustix::io::Errno::OPNOTSUPP) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
            cut.sync_all()?;
            Ok(cut)
        };
        let cut = write()
            .map_err(|error| DriverError::io(format!("write {}", folder.join(CUT).display()), error))?;
        replace(&folder.join(PLAN), &text)?;
        Ok(cut)
    }

    /// `None` if there is none: then the plugin was never asked.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, DriverError> {
        read_as(&folder.join(PLAN), |entry: &Self| entry.hostsnap)
    }

    /// What the snapshots are called before the plugin gives them names of its own.
    pub(super) fn snapshots(&self, owner: Owner) -> Vec<VolumeSnapshot> {
        let snapshot = |(n, member): (usize, &Member)| VolumeSnapshot {
            serial: member.serial.clone(),
            handle: name(owner, n),
            size_bytes: member.size_bytes,
        };
        self.volumes.iter().enumerate().map(snapshot).collect()
    }
}

impl Cut {
    /// Whether this is one of those that were cut.
    pub(super) fn has(&self, made: &Made) -> bool {
        self.snapshots.iter().any(|one| one.id == made.id && one.created_s == made.created_s)
    }

    /// Notes it, in a file in which nothing is noted yet: a guest is frozen meanwhile, and giving back the room that was set
    /// aside takes the file system longer than the rest. It survives the end of the service, not a loss of power.
    pub(super) fn note(&self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.text(), 0)
    }

    /// Notes it durably, whatever is noted already.
    pub(super) fn keep(&self, file: &File) -> io::Result<()> {
        let text = self.text();
        file.write_all_at(&text, 0)?;
        file.set_len(text.len() as u64)?;
        file.sync_all()
    }

    fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("no value that JSON lacks")
    }

    /// `None` if nothing was noted, or not all of it.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, DriverError> {
        Ok(read(&folder.join(CUT))?.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// The file for it in a folder where it was.
    pub(super) fn reopen(folder: &Path) -> Result<File, DriverError> {
        let path = folder.join(CUT);
        note_options()
            .create(true)
            .open(&path)
            .map_err(|error| DriverError::io(format!("open {}", path.display()), error))
    }
}

/// Empties a snapshot's folder of what is ours.
pub(super) fn clear(folder: &Path) -> Result<(), DriverError> {
    remove_if_there(&folder.join(CUT))?;
    remove_replaced(&folder.join(PLAN))
}

/// The name of one volume's snapshot, by which a repeated request finds it.
pub(super) fn name(owner: Owner, n: usize) -> String {
    format!("hostsnap-{}-{}", owner.snapshot, n + 1)
}

/// The name of the volume that is made of it, to show it.
pub(super) fn shown_name(owner: Owner, n: usize) -> String {
    format!("hostsnap-shown-{}-{}", owner.snapshot, n + 1)
}

/// The name of the group's.
pub(super) fn group_name(owner: Owner) -> String {
    format!("hostsnap-{}", owner.snapshot)
}

fn note_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false).mode(0o600);
    options
}

/// What a file of ours says, by the version of its text; `None` without such a file.
pub(super) fn read_as<T: DeserializeOwned>(
    path: &Path,
    version: impl Fn(&T) -> u32,
) -> Result<Option<T>, DriverError> {
    let Some(text) = read(path)? else { return Ok(None) };
    match serde_json::from_slice(&text) {
        Ok(said) if version(&said) == 1 => Ok(Some(said)),
        _ => {
            let what = format!("read {}: it is damaged, or of a newer hostsnapd", path.display());
            Err(DriverError::new(Kind::Failed, what))
        }
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, DriverError> {
    let failed = |error| DriverError::io(format!("read {}", path.display()), error);
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
        Ok(meta) if meta.len() > LIMIT => {
            let what = format!("read {}: it has {} bytes, and is none of ours", path.display(), meta.len());
            Err(DriverError::new(Kind::Failed, what))
        }
        Ok(_) => fs::read(path).map(Some).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let member =
            Member { serial: "data".parse().unwrap(), volume: "vol-1".to_owned(), size_bytes: 1 << 20 };
        Entry::new("array.example", false, vec![member])
    }

    #[test]
    fn what_was_written_is_read_and_a_half_written_note_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Entry::read(folder.path()).unwrap(), None);
        let note = entry().write(folder.path()).unwrap();
        assert_eq!(Entry::read(folder.path()).unwrap(), Some(entry()));
        assert_eq!(Cut::read(folder.path()).unwrap(), None);
        let cut = Cut {
            group: None,
            snapshots: vec![Made { id: "s".repeat(300), created_s: Some(7), size_bytes: Some(9) }],
        };
        cut.note(&note).unwrap();
        assert_eq!(Cut::read(folder.path()).unwrap(), Some(cut));
        note.set_len(100).unwrap();
        assert_eq!(Cut::read(folder.path()).unwrap(), None);
        clear(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_entry_that_is_damaged_is_an_error_and_not_an_absence() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "{", "{\"hostsnap\":2,\"plugin\":\"p\",\"is_group\":false,\"volumes\":[]}"] {
            fs::write(folder.path().join(PLAN), text).unwrap();
            assert!(Entry::read(folder.path()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_snapshot_that_was_made_anew_is_not_the_same() {
        let made = |id: &str, created_s| Made { id: id.to_owned(), created_s, size_bytes: None };
        assert!(made("a", Some(100)).is(&made("a", Some(100))));
        assert!(made("a", Some(100)).is(&made("a", None)));
        assert!(!made("a", Some(100)).is(&made("b", Some(100))));
        assert!(!made("a", Some(100)).is(&made("a", Some(160))));
    }
}
