//! What stands in the user properties of our snapshots: whose, of which volumes, the manifest. Pure.
//!
//! A record is JSON, in as many properties as it needs. From prepare to the cut it is on the store's own
//! dataset; the cut puts it on each snapshot, in the same transaction; sealing writes it anew on the first
//! volume's snapshot, with the GUID of each snapshot: that makes the set whole.

use std::collections::BTreeMap;

use protocol::{DiskSerial, SnapshotId, VmUuid};
use serde::{Deserialize, Serialize};

use crate::drivers::common::manifest_text;
use crate::drivers::{DriverError, Kind, Owner, VolumeSnapshot};

/// Before all names of our properties.
const PREFIX: &str = "hostsnap:";
/// On a snapshot.
const RECORD: &str = "record";
/// The property that says whose a snapshot is, for `zfs list -o name,hostsnap:vm`.
const VM: &str = "hostsnap:vm";
/// Bytes of one value: what all versions take (`ZFS_MAXPROPLEN` was 4096, its final zero included).
const CHUNK: usize = 4000;
/// No record has more properties than this.
const MAX_CHUNKS: usize = 256;

/// One snapshot of a set of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The version of this text; 1 so far.
    hostsnap: u32,
    vm: VmUuid,
    snapshot: SnapshotId,
    pub(super) parts: Vec<Part>,
    pub(super) manifest: String,
}

/// One volume of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) serial: DiskSerial,
    pub(super) size_bytes: u64,
    /// The GUID of the dataset that was to be cut: names may change hands.
    pub(super) dataset: u64,
    /// The image, from the dataset's root; none for a zvol.
    pub(super) file: Option<String>,
    /// The GUID of its snapshot, once it is whole.
    pub(super) cut: Option<u64>,
}

impl Record {
    pub(super) fn new(owner: Owner, parts: Vec<Part>, manifest: &[u8]) -> Result<Self, DriverError> {
        let mut record =
            Self { hostsnap: 1, vm: owner.vm, snapshot: owner.snapshot, parts, manifest: String::new() };
        record.set_manifest(manifest)?;
        Ok(record)
    }

    pub(super) fn set_manifest(&mut self, manifest: &[u8]) -> Result<(), DriverError> {
        self.manifest = manifest_text(manifest)?;
        Ok(())
    }

    pub(super) fn owner(&self) -> Owner {
        Owner { vm: self.vm, snapshot: self.snapshot }
    }

    /// Whether all of it was sealed; whether its snapshots are still there is not in here.
    pub(super) fn is_sealed(&self) -> bool {
        self.parts.iter().all(|part| part.cut.is_some())
    }

    /// As the service knows its volumes.
    pub(super) fn volumes(&self) -> Vec<VolumeSnapshot> {
        let volume = |part: &Part| VolumeSnapshot {
            serial: part.serial.clone(),
            handle: format!(
                "hostsnap.{}/{}",
                self.snapshot,
                crate::drivers::folder::file_name(&part.serial, "")
            ),
            size_bytes: part.size_bytes,
        };
        self.parts.iter().map(volume).collect()
    }

    /// The properties of a snapshot.
    pub(super) fn on_snapshot(&self) -> Result<Vec<(String, String)>, DriverError> {
        let mut properties = self.chunks(RECORD)?;
        properties.push((VM.to_owned(), self.vm.to_string()));
        Ok(properties)
    }

    /// The properties of the store's dataset.
    pub(super) fn on_store(&self) -> Result<Vec<(String, String)>, DriverError> {
        self.chunks(&self.snapshot.to_string())
    }

    fn chunks(&self, name: &str) -> Result<Vec<(String, String)>, DriverError> {
        let text = serde_json::to_string(self).expect("a record has no value that JSON lacks");
        let pieces = pieces(&text);
        if pieces.len() > MAX_CHUNKS {
            return Err(DriverError::new(Kind::Failed, "store a manifest of more than a MiB in properties"));
        }
        let count = pieces.len();
        let property = |(n, piece): (usize, &&str)| {
            let value = if n == 0 { format!("{count}:{piece}") } else { (*piece).to_owned() };
            (format!("{PREFIX}{name}.{n}"), value)
        };
        Ok(pieces.iter().enumerate().map(property).collect())
    }

    /// The record on a snapshot of this identifier. `None` for what is not of our making.
    pub(super) fn of_snapshot(id: SnapshotId, properties: &Properties) -> Option<Self> {
        Self::read(properties, RECORD).filter(|record| record.snapshot == id)
    }

    /// What is on the store's dataset: for each identifier the names of its properties, and the record if
    /// it can be read. One that was removed in part can't.
    pub(super) fn on_store_of(properties: &Properties) -> Vec<(SnapshotId, Vec<String>, Option<Self>)> {
        let mut names: BTreeMap<SnapshotId, Vec<String>> = BTreeMap::new();
        for name in properties.keys() {
            let id = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('.'));
            let Some((id, index)) = id else { continue };
            // Only the canonical spelling is ours.
            if let (Ok(parsed), Ok(_)) = (id.parse::<SnapshotId>(), index.parse::<usize>())
                && parsed.to_string() == id
            {
                names.entry(parsed).or_default().push(name.clone());
            }
        }
        let read = |id: SnapshotId| Self::read(properties, &id.to_string()).filter(|one| one.snapshot == id);
        names.into_iter().map(|(id, names)| (id, names, read(id))).collect()
    }

    fn read(properties: &Properties, name: &str) -> Option<Self> {
        let value = |n: usize| properties.get(&format!("{PREFIX}{name}.{n}"));
        let (count, first) = value(0)?.split_once(':')?;
        let count: usize = count.parse().ok().filter(|count| (1..=MAX_CHUNKS).contains(count))?;
        let mut text = first.to_owned();
        for n in 1..count {
            text += value(n)?;
        }
        serde_json::from_str(&text)
            .ok()
            .filter(|record: &Self| record.hostsnap == 1 && !record.parts.is_empty())
    }
}

/// The user properties of one dataset or snapshot: its own, none that it inherits.
pub(super) type Properties = BTreeMap<String, String>;

/// Cuts a text into pieces that a property can hold.
fn pieces(mut text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    while text.len() > CHUNK {
        let (piece, rest) = text.split_at(text.floor_char_boundary(CHUNK));
        pieces.push(piece);
        text = rest;
    }
    pieces.push(text);
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owner() -> Owner {
        Owner {
            vm: "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01".parse().unwrap(),
            snapshot: "00000000-0000-0000-0000-0000000000aa".parse().unwrap(),
        }
    }

    fn record(manifest: &str) -> Record {
        let part = Part {
            serial: "../two".parse().unwrap(),
            size_bytes: 1,
            dataset: u64::MAX,
            file: Some("a\tb/ü.img".to_owned()),
            cut: None,
        };
        Record::new(owner(), vec![part], manifest.as_bytes()).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again_and_zfs_takes_it(manifest in "[ -~äß€\n\t]{0,20000}") {
            let record = record(&manifest);
            let properties = record.on_snapshot().unwrap();
            for (name, value) in &properties {
                let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.:".contains(c);
                prop_assert!(name.len() < 256 && name.chars().all(allowed), "{}", name);
                // `zfs get` prints one property a line.
                prop_assert!(value.len() < 4096 && !value.contains(['\n', '\t']), "{}", value);
            }
            let properties: Properties = properties.into_iter().collect();
            let read = Record::of_snapshot(owner().snapshot, &properties);
            prop_assert_eq!(read.as_ref(), Some(&record));
            let on_store: Properties = record.on_store().unwrap().into_iter().collect();
            let names: Vec<String> = on_store.keys().cloned().collect();
            prop_assert_eq!(Record::on_store_of(&on_store), [(owner().snapshot, names, Some(record))]);
        }
    }

    #[test]
    fn what_is_not_all_of_a_record_or_names_another_snapshot_is_not_ours() {
        let good: Properties = record(&"x".repeat(9000)).on_snapshot().unwrap().into_iter().collect();
        let id = owner().snapshot;
        assert!(Record::of_snapshot(id, &good).is_some());
        // A property that somebody set on the dataset is seen on all of its snapshots.
        assert_eq!(Record::of_snapshot("00000000-0000-0000-0000-0000000000ab".parse().unwrap(), &good), None);
        for missing in good.keys().filter(|name| *name != VM) {
            let mut properties = good.clone();
            properties.remove(missing);
            assert_eq!(Record::of_snapshot(id, &properties), None, "{missing}");
        }
        let changed = |from: &str, to: &str| {
            let text = good["hostsnap:record.0"].replacen(from, to, 1);
            let properties =
                good.clone().into_iter().chain([("hostsnap:record.0".to_owned(), text)]).collect();
            Record::of_snapshot(id, &properties)
        };
        assert_eq!(changed("\"hostsnap\":1", "\"hostsnap\":2"), None);
        assert_eq!(changed("3:", "99999999999:"), None);
        assert_eq!(changed("3:", ""), None);
    }

    #[test]
    fn what_is_left_of_a_note_on_the_store_is_known_by_its_names() {
        let record = record(&"x".repeat(9000));
        let mut properties: Properties = record.on_store().unwrap().into_iter().collect();
        properties.insert("hostsnap:notes.0".to_owned(), "1:x".to_owned());
        properties.remove("hostsnap:00000000-0000-0000-0000-0000000000aa.0");
        let names = [1, 2].map(|n| format!("hostsnap:00000000-0000-0000-0000-0000000000aa.{n}"));
        assert_eq!(Record::on_store_of(&properties), [(owner().snapshot, names.to_vec(), None)]);
    }
}
