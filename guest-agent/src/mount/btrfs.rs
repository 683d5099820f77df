//! btrfs' super block, and how a copy gets an identity of its own.
//!
//! The kernel knows a btrfs by its UUID, and devices that show the same one as parts of one file system:
//! beside its original a copy can't be mounted (before Linux 6.7 not at all, and several devices not
//! since then either), and one that was scanned may take the original's place. So the copy's UUID is
//! changed before the kernel sees it, in the super blocks only: its trees keep the old one, which is noted
//! as `metadata_uuid` (Linux 5.0; btrfstune(8), `-m`). It is done here because btrfstune looks
//! for the other devices of the UUID itself, and would find the original's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use super::bytes::{text, u16_le, u64_le};
use super::checksum;
use super::place::Place;
use super::probe::{FileSystem, Kind};

/// The first super block and its copies (Linux `fs/btrfs/disk-io.h`, `btrfs_sb_offset`).
const PLACES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const SIZE: usize = 4096;
const MAGIC: &[u8] = b"_BHRfS_M";

// Linux `include/uapi/linux/btrfs_tree.h`, `struct btrfs_super_block`.
const CHECKSUM: usize = 0x20;
const FSID: usize = 0x20;
const OWN_PLACE: usize = 0x30;
const MAGIC_AT: usize = 0x40;
const LOG_ROOT: usize = 0x60;
const DEVICES: usize = 0x88;
const INCOMPATIBLE: usize = 0xbc;
const CHECKSUM_KIND: usize = 0xc4;
const LABEL: usize = 0x12b;
const METADATA_UUID: usize = 0x23b;
const HAS_METADATA_UUID: u64 = 1 << 10;

/// Why a copy got no identity of its own.
#[derive(Debug, thiserror::Error)]
pub enum NewIdentity {
    /// It can't be read or written.
    #[error("give the copy of a btrfs an UUID of its own: {0}")]
    Io(#[from] io::Error),
    /// It has a checksum that is not known here.
    #[error("this btrfs uses a checksum other than CRC-32C (number {0}), which hostsnap can't compute")]
    Checksum(u16),
    /// There is none.
    #[error("there is no super block of btrfs")]
    Missing,
}

/// What the first super block says.
pub(super) fn read(place: &Place) -> io::Result<Option<FileSystem>> {
    let block = place.bytes::<SIZE>(PLACES[0])?.filter(|block| is_one(block, PLACES[0]));
    Ok(block.map(|block| FileSystem {
        kind: Kind::Btrfs,
        // The one that its trees have: a copy keeps it when it gets another one for the kernel.
        uuid: uuid_at(&block, if has_metadata_uuid(&block) { METADATA_UUID } else { FSID }),
        label: text(&block[LABEL..LABEL + 256]),
        last_mounted: String::new(),
        needs_recovery: u64_le(&block, LOG_ROOT) != 0,
        devices: u64_le(&block, DEVICES),
    }))
}

fn uuid_at(block: &[u8], at: usize) -> Uuid {
    Uuid::from_slice(&block[at..at + 16]).expect("sixteen bytes")
}

fn has_metadata_uuid(block: &[u8]) -> bool {
    u64_le(block, INCOMPATIBLE) & HAS_METADATA_UUID != 0
}

fn is_one(block: &[u8], place: u64) -> bool {
    block[MAGIC_AT..].starts_with(MAGIC) && u64_le(block, OWN_PLACE) == place
}

/// Gives this device of a copy another UUID; all devices of one copy need the same. The device must be a
/// throw-away one, open for writing, and unknown to the kernel's btrfs.
pub(super) fn identify(device: &File, size_bytes: u64, uuid: Uuid) -> Result<(), NewIdentity> {
    let mut found = false;
    for place in PLACES.into_iter().filter(|place| place + SIZE as u64 <= size_bytes) {
        let mut block = [0; SIZE];
        device.read_exact_at(&mut block, place)?;
        if is_one(&block, place) {
            device.write_all_at(&changed(block, uuid)?, place)?;
            found = true;
        }
    }
    device.sync_all()?;
    if found { Ok(()) } else { Err(NewIdentity::Missing) }
}

fn changed(mut block: [u8; SIZE], uuid: Uuid) -> Result<[u8; SIZE], NewIdentity> {
    let kind = u16_le(&block, CHECKSUM_KIND);
    if kind != 0 {
        return Err(NewIdentity::Checksum(kind));
    }
    // A copy of a copy has the oldest UUID in its trees still.
    if !has_metadata_uuid(&block) {
        block.copy_within(FSID..FSID + 16, METADATA_UUID);
        let flags = u64_le(&block, INCOMPATIBLE) | HAS_METADATA_UUID;
        block[INCOMPATIBLE..INCOMPATIBLE + 8].copy_from_slice(&flags.to_le_bytes());
    }
    block[FSID..FSID + 16].copy_from_slice(uuid.as_bytes());
    let sum = checksum::of_btrfs(&block[CHECKSUM..]);
    block[..4].copy_from_slice(&sum.to_le_bytes());
    Ok(block)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_copy_with_another_uuid_is_whole_and_can_be_copied_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(128 << 20).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).arg(file.path()).output().unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run("mkfs.btrfs", &["-q"]);
        let place = Place::open(file.path().to_owned()).unwrap();
        let before = read(&place).unwrap().unwrap();
        for _ in 0..2 {
            let uuid = Uuid::new_v4();
            identify(file.as_file(), 128 << 20, uuid).unwrap();
            assert_eq!(uuid_at(&place.bytes::<SIZE>(PLACES[0]).unwrap().unwrap(), FSID), uuid);
            assert_eq!(read(&place).unwrap().unwrap(), before, "it is known for a copy of the same");
            // It compares the trees' UUIDs, and the copies of the super block, with it.
            run("btrfs", &["check", "--readonly"]);
        }
        assert!(matches!(identify(file.as_file(), 0, Uuid::nil()), Err(NewIdentity::Missing)));
    }
}
