//! A snapshot's disks, attached to the machine that it is of: what is asked, what there is, and the
//! serials by which the guest finds them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::BoundedVec;
use crate::ids::SnapshotId;
use crate::text::DiskSerial;

/// The most disks that a snapshot has, and that one machine may have attached.
pub const MAX_ATTACHED: usize = 64;

/// Attach disks of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The snapshot.
    pub id: SnapshotId,
    /// Which of its disks; none is all.
    pub disks: BoundedVec<DiskSerial, MAX_ATTACHED>,
    /// Whether they may be written to.
    pub access: Access,
}

/// Whether an attached disk may be written to. The snapshot itself never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Only read.
    ReadOnly,
    /// A clone, thrown away when it is detached.
    Writable,
}

impl Access {
    /// The word that users read.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Writable => "writable",
        }
    }
}

/// A disk of a snapshot that is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The disk that the snapshot is of, by its serial in the host's configuration.
    pub disk: DiskSerial,
    /// The serial of the attached disk; an [`AttachedName`].
    pub serial: DiskSerial,
    /// Whether it may be written to.
    pub access: Access,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// What became of a detachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DetachOutcome {
    /// Something was attached and is no more.
    Detached,
    /// Nothing was attached.
    WasNotAttached,
}

/// What an attached disk is called: its serial in the guest; in QEMU its device and its block node.
/// `hs-`, the snapshot's first 14 hexadecimal digits, a dot, and which of its disks it is: at most the
/// 20 bytes that virtio-blk carries. The same snapshot's same disk always has the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachedName {
    digits: String,
    index: usize,
}

/// How many digits of the snapshot are in a name.
const DIGITS: usize = 14;
const PREFIX: &str = "hs-";

/// It is not the name of an attached disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not of the form hs-<14 hexadecimal digits>.<number below 64>")]
pub struct NotAttachedName;

impl AttachedName {
    /// The name of a snapshot's disk, by its place in the record; below [`MAX_ATTACHED`].
    pub fn new(snapshot: SnapshotId, index: usize) -> Self {
        let digits = snapshot.as_uuid().simple().to_string()[..DIGITS].to_owned();
        Self { digits, index }
    }

    /// Whether it may be a disk of this snapshot.
    pub fn is_of(&self, snapshot: SnapshotId) -> bool {
        Self::new(snapshot, self.index) == *self
    }

    /// The beginning of the snapshot's identifier.
    pub fn digits(&self) -> &str {
        &self.digits
    }

    /// Which of the snapshot's disks it is.
    pub const fn index(&self) -> usize {
        self.index
    }

    /// As the guest reads it.
    pub fn serial(&self) -> DiskSerial {
        self.to_string().parse().expect("digits, a dash and a dot are allowed in a serial")
    }
}

impl fmt::Display for AttachedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}.{}", self.digits, self.index)
    }
}

impl FromStr for AttachedName {
    type Err = NotAttachedName;

    fn from_str(text: &str) -> Result<Self, NotAttachedName> {
        let (digits, index) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).ok_or(NotAttachedName)?;
        let are_digits = digits.len() == DIGITS
            && digits.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        let index = index.parse().ok().filter(|index| *index < MAX_ATTACHED).ok_or(NotAttachedName)?;
        let name = Self { digits: digits.to_owned(), index };
        // One spelling only.
        if are_digits && name.to_string() == text { Ok(name) } else { Err(NotAttachedName) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_what_virtio_carries_and_is_read_back() {
        let id: SnapshotId = "bf77abd9-d60d-5492-9bd0-07059232c906".parse().unwrap();
        let name = AttachedName::new(id, MAX_ATTACHED - 1);
        assert_eq!(name.to_string(), "hs-bf77abd9d60d54.63");
        assert_eq!(name.serial().virtio(), name.to_string());
        assert_eq!(name.to_string().parse(), Ok(name.clone()));
        assert!(name.is_of(id) && !name.is_of("bf77abd9-d60d-4492-9bd0-07059232c906".parse().unwrap()));
    }

    #[test]
    fn what_only_looks_like_a_name_is_none() {
        for text in [
            "hs-bf77abd9d60d54",
            "hs-bf77abd9d60d54.64",
            "hs-bf77abd9d60d54.01",
            "hs-BF77ABD9D60D54.0",
            "hs-bf77abd9d60d5.0",
            "hsbf77abd9d60d54929bd00705-0",
            "data",
            "",
        ] {
            assert!(text.parse::<AttachedName>().is_err(), "{text}");
        }
    }
}
