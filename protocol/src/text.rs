//! Text that crosses the wire: bounded in bytes and free of control characters, so that it can be
//! printed on a terminal or put on one line of a log as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::BoundedVec;

/// Why a text was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It has more bytes than allowed.
    #[error("{what}: {bytes} bytes where at most {max} are allowed")]
    TooLong {
        /// Which kind of text.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// It is empty.
    #[error("{what}: empty")]
    Empty {
        /// Which kind of text.
        what: &'static str,
    },
    /// It holds a character that is not allowed there.
    #[error("{what}: the character {found:?} is not allowed; use {allowed}")]
    BadCharacter {
        /// Which kind of text.
        what: &'static str,
        /// The first offending character.
        found: char,
        /// What is allowed instead.
        allowed: &'static str,
    },
    /// There are more labels than allowed.
    #[error("{0} labels where at most 32 are allowed")]
    TooManyLabels(usize),
}

/// Unicode's bidirectional overrides can make a line read as what it is not (CVE-2021-42574).
fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $min:literal..=$max:literal, $accept:expr, $allowed:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The most bytes that it may have.
            pub const MAX_BYTES: usize = $max;

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = TextError;

            fn try_from(text: String) -> Result<Self, TextError> {
                if text.is_empty() && !($min..=$max).contains(&0usize) {
                    return Err(TextError::Empty { what: $what });
                }
                if text.len() > $max {
                    return Err(TextError::TooLong { what: $what, bytes: text.len(), max: $max });
                }
                let accept: fn(char) -> bool = $accept;
                match text.chars().find(|c| !accept(*c)) {
                    Some(found) => Err(TextError::BadCharacter { what: $what, found, allowed: $allowed }),
                    None => Ok(Self(text)),
                }
            }
        }

        impl FromStr for $name {
            type Err = TextError;

            fn from_str(text: &str) -> Result<Self, TextError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> String {
                text.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text!(
    /// One line for people: reasons, messages, versions. Control characters are not allowed; see
    /// [`Line::lossy`] for text from elsewhere.
    Line, "text", 0..=1024, is_printable, "printable characters"
);
text!(
    /// A name: of a virtual machine, a driver, a hook, a kind of file system.
    Name, "name", 1..=64, |c| c.is_ascii_alphanumeric() || "._-:@+".contains(c), "letters, digits and ._-:@+"
);
text!(
    /// A mount point in the guest, as the agent saw it (escaped where it was not printable).
    MountPath, "mount point", 1..=1024, is_printable, "printable characters"
);
text!(
    /// What the storage calls a snapshot. The driver chose it; never a path on the host.
    Handle, "handle", 1..=256, |c| c.is_ascii_graphic(), "printable ASCII"
);
text!(
    /// The key of a label.
    LabelKey, "label key", 1..=63, |c| c.is_ascii_alphanumeric() || "._-/".contains(c), "letters, digits and ._-/"
);
text!(
    /// The value of a label.
    LabelValue, "label value", 0..=255, is_printable, "printable characters"
);
text!(
    /// A remark that the user gave a snapshot.
    Note, "note", 0..=1024, is_printable, "printable characters"
);
text!(
    /// How a user names a snapshot: its identifier, any unique prefix of it, or `latest`.
    SnapshotRef, "snapshot", 1..=36, |c| c.is_ascii_alphanumeric() || c == '-', "an identifier, a unique prefix of it, or latest"
);
text!(
    /// The serial number by which guest and host both know a disk.
    ///
    /// virtio-blk hands the guest only the first 20 bytes (VIRTIO 1.2 §5.2.6.2, `VIRTIO_BLK_T_GET_ID`);
    /// compare with [`DiskSerial::same_disk`].
    DiskSerial, "disk serial", 1..=64, |c| c.is_ascii_graphic(), "printable ASCII without blanks"
);

impl Line {
    /// Makes a line of foreign text: what is not printable is replaced, what is too long is cut.
    pub fn lossy(text: &str) -> Self {
        let mut line = String::with_capacity(text.len().min(Self::MAX_BYTES));
        for c in text.chars().map(|c| if is_printable(c) { c } else { '\u{fffd}' }) {
            if line.len() + c.len_utf8() > Self::MAX_BYTES {
                break;
            }
            line.push(c);
        }
        Self(line)
    }
}

impl MountPath {
    /// Makes a mount point of a path's bytes as the kernel gave them; what is not printable is
    /// escaped, what is too long is cut.
    pub fn lossy(path: &str) -> Self {
        let mut text = String::new();
        for c in path.chars() {
            let before = text.len();
            if is_printable(c) {
                text.push(c);
            } else {
                text.extend(c.escape_unicode());
            }
            if text.len() > Self::MAX_BYTES {
                text.truncate(before);
                break;
            }
        }
        Self(if text.is_empty() { "?".to_owned() } else { text })
    }
}

impl DiskSerial {
    /// How many bytes of a serial virtio-blk carries (Linux `VIRTIO_BLK_ID_BYTES`).
    pub const VIRTIO_BYTES: usize = 20;

    /// What a virtio-blk guest reads of this serial.
    pub fn virtio(&self) -> &str {
        // A serial is ASCII, so every index is a character's boundary.
        &self.0[..self.0.len().min(Self::VIRTIO_BYTES)]
    }

    /// Whether both serials may name one disk: equal in the bytes that virtio carries. Whoever
    /// compares must refuse when this holds for two different disks.
    pub fn same_disk(&self, other: &Self) -> bool {
        self.virtio() == other.virtio()
    }
}

/// What a user attached to a snapshot to find it again: at most 32 keys with values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LabelPairs", into = "LabelPairs")]
pub struct Labels(BTreeMap<LabelKey, LabelValue>);

type LabelPairs = BoundedVec<(LabelKey, LabelValue), 32>;

impl Labels {
    /// How many labels a snapshot may have.
    pub const MAX: usize = 32;

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The labels, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = (&LabelKey, &LabelValue)> {
        self.0.iter()
    }

    /// Whether every label of `wanted` is here with the same value.
    pub fn contains(&self, wanted: &Self) -> bool {
        wanted.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }
}

impl TryFrom<BTreeMap<LabelKey, LabelValue>> for Labels {
    type Error = TextError;

    fn try_from(labels: BTreeMap<LabelKey, LabelValue>) -> Result<Self, TextError> {
        match labels.len() {
            count if count > Self::MAX => Err(TextError::TooManyLabels(count)),
            _ => Ok(Self(labels)),
        }
    }
}

impl From<LabelPairs> for Labels {
    fn from(pairs: LabelPairs) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl From<Labels> for LabelPairs {
    fn from(labels: Labels) -> Self {
        let pairs: Vec<_> = labels.0.into_iter().collect();
        LabelPairs::try_from(pairs).expect("a Labels never holds more than its bound")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_longer_than_virtio_carries_is_the_same_disk_as_its_cut_form() {
        let whole: DiskSerial = "pvc-7286dfe6-7c44-4057-9b5c".parse().unwrap();
        let cut: DiskSerial = "pvc-7286dfe6-7c44-40".parse().unwrap();
        assert!(whole.same_disk(&cut));
        assert_eq!(whole.virtio(), cut.as_str());
    }

    #[test]
    fn a_serial_with_a_blank_is_refused_and_the_error_says_what_is_allowed() {
        let error = "my disk".parse::<DiskSerial>().unwrap_err().to_string();
        assert!(error.contains("' '") && error.contains("ASCII"), "{error}");
    }

    #[test]
    fn foreign_text_cannot_carry_an_escape_sequence_or_reorder_a_line() {
        assert_eq!(Line::lossy("a\u{1b}[31mb\u{202e}").as_str(), "a\u{fffd}[31mb\u{fffd}");
        assert!("x\u{202e}".parse::<Note>().is_err());
        assert!(Line::lossy(&"é".repeat(4000)).as_str().len() <= Line::MAX_BYTES);
    }

    #[test]
    fn a_thirty_third_label_is_refused() {
        let labels = |n: usize| -> BTreeMap<LabelKey, LabelValue> {
            (0..n).map(|i| (format!("k{i}").parse().unwrap(), "v".parse().unwrap())).collect()
        };
        assert!(Labels::try_from(labels(32)).is_ok());
        assert_eq!(Labels::try_from(labels(33)), Err(TextError::TooManyLabels(33)));
    }
}
