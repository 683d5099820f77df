//! How datasets are named, and ours among them. Pure.
//!
//! ```text
//! <dataset>@hostsnap.<snapshot id>     the snapshot of one dataset of a set; property hostsnap:record.<n>
//! <store>/hostsnap.<snapshot id>.<n>   a clone of the nth volume's snapshot, made to show it
//! <store>                              property hostsnap:<snapshot id>.<n>: what is prepared and not cut
//! ```
//!
//! A name alone makes nothing ours: what lacks the record is somebody else's.

use std::fmt;
use std::str::FromStr;

use protocol::SnapshotId;

/// The longest name of a dataset, snapshot included, in bytes (`ZFS_MAX_DATASET_NAME_LEN`, with its final zero).
const MAX_NAME: usize = 255;

/// A dataset by its name: `tank/vms`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DatasetName(String);

/// A text that names no dataset.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} names no dataset of ZFS; write it as `zfs list` does, such as \"tank/vms\"")]
pub struct NotADataset(String);

impl FromStr for DatasetName {
    type Err = NotADataset;

    /// Names as in zfs(8), "ZFS File System Hierarchy"; no snapshot and no bookmark.
    fn from_str(text: &str) -> Result<Self, NotADataset> {
        let is_part = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.: ".contains(c);
            !part.is_empty() && part != "." && part != ".." && part.chars().all(allowed)
        };
        let begins_well = text.starts_with(|c: char| c.is_ascii_alphabetic());
        if text.len() <= MAX_NAME && begins_well && text.split('/').all(is_part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotADataset(text.to_owned()))
        }
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl DatasetName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The pool that it is in.
    pub(super) fn pool(&self) -> &str {
        self.0.split('/').next().expect("a split has a first part")
    }

    /// Whether that dataset is this one or below it.
    pub fn holds(&self, dataset: &str) -> bool {
        dataset.strip_prefix(&self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// The snapshot of a dataset; `None` if its name would be too long.
pub(super) fn snapshot(dataset: &str, id: SnapshotId) -> Option<String> {
    let name = format!("{dataset}@hostsnap.{id}");
    (name.len() <= MAX_NAME).then_some(name)
}

/// Which snapshot of which dataset a name is, if it is spelled as ours.
pub(super) fn parse_snapshot(name: &str) -> Option<(&str, SnapshotId)> {
    let (dataset, rest) = name.split_once("@hostsnap.")?;
    let id: SnapshotId = rest.parse().ok()?;
    // Only the canonical spelling is ours.
    (id.to_string() == rest).then_some((dataset, id))
}

/// The clone that shows the nth volume.
pub(super) fn clone(store: &DatasetName, id: SnapshotId, index: usize) -> String {
    format!("{store}/hostsnap.{id}.{index}")
}

/// Whether a dataset is named as our clones are.
pub(super) fn is_clone(store: &DatasetName, dataset: &str) -> bool {
    let ours = || {
        let name = dataset.strip_prefix(store.as_str())?.strip_prefix("/hostsnap.")?;
        let (id, index) = name.rsplit_once('.')?;
        let id: SnapshotId = id.parse().ok()?;
        Some(clone(store, id, index.parse().ok()?) == dataset)
    };
    ours() == Some(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_zfs_takes_for_a_dataset_is_one() {
        for good in ["tank", "tank/vms", "rpool/data/vm-100-disk-0", "a/b c/d:e_f.g"] {
            assert_eq!(good.parse::<DatasetName>().unwrap().to_string(), good);
        }
        let long = format!("tank/{}", "x".repeat(MAX_NAME));
        for bad in [
            "",
            "/tank",
            "tank/",
            "tank//vms",
            "tank@now",
            "tank#mark",
            "1tank",
            "tank/..",
            "t\tk",
            "täng",
            &long,
        ] {
            assert!(bad.parse::<DatasetName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_dataset_holds_what_is_below_it_and_nothing_that_only_looks_so() {
        let store: DatasetName = "tank/vms".parse().unwrap();
        assert!(store.holds("tank/vms") && store.holds("tank/vms/db1/data"));
        assert!(!store.holds("tank") && !store.holds("tank/vms2") && !store.holds("other/vms"));
        assert_eq!(store.pool(), "tank");
    }

    proptest! {
        #[test]
        fn our_names_are_read_again(bytes: [u8; 16], index in 0..64_usize) {
            let id: SnapshotId = uuid::Uuid::from_bytes(bytes).to_string().parse().unwrap();
            let store: DatasetName = "tank/vms".parse().unwrap();
            let name = snapshot("tank/vms/db1", id).unwrap();
            prop_assert_eq!(parse_snapshot(&name), Some(("tank/vms/db1", id)));
            let clone = clone(&store, id, index);
            prop_assert!(is_clone(&store, &clone));
            for foreign in [format!("{name}0"), name.to_uppercase(), name.replace("hostsnap.", "hostsnap-")] {
                prop_assert_eq!(parse_snapshot(&foreign), None);
            }
            for foreign in ["tank/vms/db1", "tank/vms/hostsnap.notes", &format!("{clone}x"), &format!("{clone}/x")] {
                prop_assert!(!is_clone(&store, foreign), "{}", foreign);
            }
        }
    }

    #[test]
    fn a_snapshot_whose_name_zfs_would_refuse_has_none() {
        let id = "00000000-0000-0000-0000-0000000000aa".parse().unwrap();
        assert!(snapshot(&format!("tank/{}", "x".repeat(204)), id).is_some());
        assert!(snapshot(&format!("tank/{}", "x".repeat(205)), id).is_none());
    }
}
