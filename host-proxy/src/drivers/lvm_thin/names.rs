//! How our logical volumes are named and tagged. Pure.
//!
//! ```text
//! hostsnap.<snapshot id>.<n>     tags  hostsnap
//!                                      hostsnap.vm=<vm uuid>
//!                                      hostsnap.serial=<serial>
//!                                      hostsnap.origin=<uuid of the volume that was to be cut>
//!                                      hostsnap.whole            on volume 0, from seal on
//! hostsnap.manifests             the volume that `manifests` describes; tag hostsnap
//! ```
//!
//! A name alone makes nothing ours: what lacks the tags is somebody else's.

use std::fmt::Write;

use protocol::{DiskSerial, SnapshotId, VmUuid};

use crate::drivers::Owner;

/// On everything that is ours.
pub(super) const TAG: &str = "hostsnap";
/// On the first volume of a snapshot that is whole.
pub(super) const WHOLE: &str = "hostsnap.whole";
/// The volume that holds the manifests.
pub(super) const MANIFESTS: &str = "hostsnap.manifests";

const VM: &str = "hostsnap.vm=";
const SERIAL: &str = "hostsnap.serial=";
const ORIGIN: &str = "hostsnap.origin=";

/// One of our snapshots of one volume, as its name and tags say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ours {
    pub(super) owner: Owner,
    /// Its place in the set.
    pub(super) index: usize,
    pub(super) serial: DiskSerial,
    /// The UUID of the volume that it was to be a snapshot of.
    pub(super) origin_uuid: String,
    pub(super) is_whole: bool,
}

/// The name of the nth volume's snapshot.
pub(super) fn snapshot(id: SnapshotId, index: usize) -> String {
    format!("{}{index}", prefix(id))
}

/// What all volumes of a snapshot begin with.
pub(super) fn prefix(id: SnapshotId) -> String {
    format!("hostsnap.{id}.")
}

/// The tags of a volume's snapshot.
pub(super) fn tags(owner: Owner, serial: &DiskSerial, origin_uuid: &str) -> [String; 4] {
    [
        TAG.to_owned(),
        format!("{VM}{}", owner.vm),
        format!("{SERIAL}{}", escaped(serial)),
        format!("{ORIGIN}{origin_uuid}"),
    ]
}

impl Ours {
    /// Reads a name and its tags.
    pub(super) fn of<'a>(name: &str, tags: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (id, index) = name.strip_prefix("hostsnap.")?.rsplit_once('.')?;
        let id: SnapshotId = id.parse().ok()?;
        let index: usize = index.parse().ok()?;
        // Only the canonical spelling is ours.
        if snapshot(id, index) != name {
            return None;
        }
        let (mut is_ours, mut is_whole) = (false, false);
        let (mut vm, mut serial, mut origin_uuid) = (None::<VmUuid>, None, None);
        for tag in tags {
            match tag {
                TAG => is_ours = true,
                WHOLE => is_whole = true,
                _ => {
                    vm = tag.strip_prefix(VM).and_then(|vm| vm.parse().ok()).or(vm);
                    serial = tag.strip_prefix(SERIAL).and_then(unescaped).or(serial);
                    origin_uuid = tag.strip_prefix(ORIGIN).map(str::to_owned).or(origin_uuid);
                }
            }
        }
        let owner = Owner { vm: vm?, snapshot: id };
        is_ours.then_some(Self { owner, index, serial: serial?, origin_uuid: origin_uuid?, is_whole })
    }
}

/// A serial as a tag may hold it (lvm(8), "VALID NAMES"; `validate_tag`): what is not plain is `#hh`.
fn escaped(serial: &DiskSerial) -> String {
    let mut text = String::new();
    for byte in serial.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => text.push(char::from(byte)),
            _ => write!(text, "#{byte:02x}").expect("writing to a String"),
        }
    }
    text
}

fn unescaped(text: &str) -> Option<DiskSerial> {
    let mut parts = text.split('#');
    let mut serial = parts.next()?.to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        serial.push(char::from(u8::from_str_radix(code, 16).ok()?));
        serial += rest;
    }
    serial.parse().ok()
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

    fn read(name: &str, tags: &[String]) -> Option<Ours> {
        Ours::of(name, tags.iter().map(String::as_str))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again_and_lvm_takes_it(serial in "[!-~]{1,64}", index in 0..64_usize) {
            let serial: DiskSerial = serial.parse().unwrap();
            let tags = tags(owner(), &serial, "gbS0ip-5Jk0-2RQr-CilD-byZC-nhl7-RLpr1k");
            for tag in &tags {
                let allowed = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:&#".contains(c);
                prop_assert!(tag.len() <= 1024 && tag.chars().all(allowed), "{}", tag);
            }
            let name = snapshot(owner().snapshot, index);
            prop_assert!(name.len() < 127);
            let ours = read(&name, &tags).unwrap();
            prop_assert_eq!((ours.owner, ours.index, ours.serial), (owner(), index, serial));
            prop_assert!(!ours.is_whole);
        }
    }

    #[test]
    fn what_lacks_our_tags_or_our_spelling_is_somebody_elses() {
        let name = snapshot(owner().snapshot, 0);
        let good = tags(owner(), &"../two".parse().unwrap(), "uuid").to_vec();
        assert!(read(&name, &good).is_some());
        assert!(read(&name, &[good.clone(), vec![WHOLE.to_owned()]].concat()).unwrap().is_whole);
        for missing in 0..good.len() {
            let mut tags = good.clone();
            tags.remove(missing);
            assert_eq!(read(&name, &tags), None, "{tags:?}");
        }
        for name in
            [MANIFESTS, "vm1-data", "hostsnap.00000000-0000-0000-0000-0000000000aa", &format!("{name}0")]
        {
            assert_eq!(read(name, &good), None, "{name}");
        }
        assert_eq!(read(&name.to_uppercase(), &good), None);
        assert_eq!(read(&name.replace("aa.0", "AA.0"), &good), None);
    }
}
