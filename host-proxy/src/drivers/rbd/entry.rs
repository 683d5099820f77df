//! What stands in the metadata of each image of a set, under `hostsnap.<snapshot id>`.
//!
//! The entry of the set's first image decides for all: it is written first, changed first when the set is removed,
//! changed last when it becomes whole, and removed last.

use protocol::{DiskSerial, SnapshotId, VmUuid};
use serde::{Deserialize, Serialize};

use super::ffi::image::Snapshot;
use super::worker::Worker;
use crate::drivers::common::manifest_text;
use crate::drivers::{DriverError, Owner, VolumeSnapshot};

/// Before the identifier, in keys and in the names of snapshots.
pub(super) const PREFIX: &str = "hostsnap.";

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// From prepare on. Cut, if all snapshots are there.
    Prepared,
    /// From seal on.
    Whole,
    /// From delete on.
    Deleting,
}

/// One image's part of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The version of this text; 1 so far.
    hostsnap: u32,
    pub(super) vm: VmUuid,
    /// The image that it was written to. A clone or a copy of it carries the text too, and is not meant.
    pub(super) image: String,
    /// All images of the set, in the order of the plan.
    pub(super) set: Vec<String>,
    pub(super) serial: DiskSerial,
    pub(super) handle: String,
    pub(super) size_bytes: u64,
    pub(super) state: State,
    /// The snapshot's number, once it is whole: a later one of the same name is not ours.
    pub(super) snapshot: Option<u64>,
    /// Who works on it.
    pub(super) worker: Worker,
    pub(super) manifest: String,
}

impl Entry {
    /// A prepared image's.
    pub(super) fn new(
        owner: Owner,
        set: &[String],
        image: &str,
        snapshot: &VolumeSnapshot,
        worker: Worker,
        manifest: &[u8],
    ) -> Result<Self, DriverError> {
        Ok(Self {
            hostsnap: 1,
            vm: owner.vm,
            image: image.to_owned(),
            set: set.to_vec(),
            serial: snapshot.serial.clone(),
            handle: snapshot.handle.clone(),
            size_bytes: snapshot.size_bytes,
            state: State::Prepared,
            snapshot: None,
            worker,
            manifest: manifest_text(manifest)?,
        })
    }

    /// As the metadata has it.
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("an entry has no value that JSON lacks")
    }

    /// The entry of this image in its metadata. `None` for what is not of our making.
    pub(super) fn parse(image: &str, key: &str, text: &str) -> Option<(Owner, Self)> {
        let name = key.strip_prefix(PREFIX)?;
        let snapshot: SnapshotId = name.parse().ok()?;
        let entry: Self = serde_json::from_str(text).ok()?;
        // Only the canonical spelling is ours.
        let ours = snapshot.to_string() == name && entry.hostsnap == 1 && entry.image == image;
        ours.then_some((Owner { vm: entry.vm, snapshot }, entry))
    }

    /// Whether this is the snapshot that the entry is about.
    pub(super) fn is_of(&self, owner: Owner, snapshot: &Snapshot) -> bool {
        match self.snapshot {
            Some(id) => snapshot.id == id,
            None => snapshot.name == key(owner.snapshot),
        }
    }

    /// As the service knows it.
    pub(super) fn volume(&self) -> VolumeSnapshot {
        VolumeSnapshot {
            serial: self.serial.clone(),
            handle: self.handle.clone(),
            size_bytes: self.size_bytes,
        }
    }
}

/// The key of a snapshot's entries, and the name of its snapshots.
pub(super) fn key(snapshot: SnapshotId) -> String {
    format!("{PREFIX}{snapshot}")
}

/// How far a set is, by what its images' metadata says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// There is nothing of it.
    Absent,
    /// Prepared; whether it was cut, its snapshots say.
    Prepared,
    /// Whole, if its snapshots are all there.
    Whole,
    /// Half removed.
    Deleting,
}

/// Decides by the first image's entry.
pub(super) fn stage<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Stage {
    let mut stage = Stage::Absent;
    for entry in entries {
        if entry.set.first() != Some(&entry.image) {
            // Without the first, that would be removed last, it is nothing but a remainder.
            if stage == Stage::Absent {
                stage = Stage::Deleting;
            }
            continue;
        }
        return match entry.state {
            State::Prepared => Stage::Prepared,
            State::Whole => Stage::Whole,
            State::Deleting => Stage::Deleting,
        };
    }
    stage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner {
            vm: "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01".parse().unwrap(),
            snapshot: "00000000-0000-0000-0000-0000000000aa".parse().unwrap(),
        }
    }

    fn entry(image: &str, state: State) -> Entry {
        let snapshot =
            VolumeSnapshot { serial: "data".parse().unwrap(), handle: "data@x".to_owned(), size_bytes: 1 };
        let worker = Worker::this_process(7);
        let set = ["first".to_owned(), "second".to_owned()];
        Entry { state, ..Entry::new(owner(), &set, image, &snapshot, worker, b"{}").unwrap() }
    }

    #[test]
    fn only_entries_of_our_making_and_of_this_very_image_are_ours() {
        let text = entry("first", State::Prepared).text();
        let key = key(owner().snapshot);
        assert_eq!(Entry::parse("first", &key, &text).unwrap().0, owner());
        // A clone of the image carries all of its metadata.
        assert_eq!(Entry::parse("a-clone", &key, &text), None);
        for foreign in ["hostsnap.notes", "hostsnap.00000000-0000-0000-0000-0000000000AA", "conf_rbd_cache"] {
            assert_eq!(Entry::parse("first", foreign, &text), None, "{foreign}");
        }
        assert_eq!(Entry::parse("first", &key, "somebody else's text"), None);
        assert_eq!(Entry::parse("first", &key, &text.replace("\"hostsnap\":1", "\"hostsnap\":2")), None);
    }

    #[test]
    fn the_first_images_entry_decides() {
        use State::{Deleting, Prepared, Whole};
        let of = |states: &[(&str, State)]| {
            let entries: Vec<_> = states.iter().map(|(image, state)| entry(image, *state)).collect();
            stage(&entries)
        };
        assert_eq!(of(&[]), Stage::Absent);
        assert_eq!(of(&[("first", Prepared), ("second", Whole)]), Stage::Prepared);
        assert_eq!(of(&[("second", Whole), ("first", Whole)]), Stage::Whole);
        assert_eq!(of(&[("first", Deleting), ("second", Whole)]), Stage::Deleting);
        assert_eq!(of(&[("second", Whole)]), Stage::Deleting);
    }
}
