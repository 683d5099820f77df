//! Where manifests are: a thin volume of ours in the same pool, `hostsnap.manifests`, cut into slots.
//!
//! ```text
//! slot n at n * 256 KiB:   4 KiB     header: what follows, whose it is, how far the snapshot is
//!                          252 KiB   the manifest
//! ```
//!
//! A manifest is replaced by a newer one in another slot; the older is emptied when the newer is on
//! the disk. Checksums tell a slot that power loss ended in the middle. Why not tags, nor a file
//! system: docs/decisions/0010-lvm-thin.md.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::{SnapshotId, VmUuid};
use uuid::Uuid;

use crate::drivers::{DriverError, Kind, Owner};

/// How large the volume is made, in bytes: 2048 slots. The pool gives room only to those in use.
pub(super) const VOLUME_BYTES: u64 = 2048 * SLOT_BYTES;
const SLOT_BYTES: u64 = 256 << 10;
const HEADER_BYTES: usize = 4096;
const MANIFEST_LIMIT: usize = (SLOT_BYTES as usize) - HEADER_BYTES;
const MAGIC: [u8; 8] = *b"hostsnap";
const VERSION: u32 = 1;

/// Who changes slots looks for free ones first: one at a time. There is one service for a pool.
static CHANGING: Mutex<()> = Mutex::new(());

/// How far a snapshot is, as far as its volumes can't tell. Whether it is whole, they can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Prepared,
    /// All volumes are cut.
    Cut,
    Deleting,
}

/// What is known of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) owner: Owner,
    pub(super) phase: Phase,
    pub(super) manifest: Option<Vec<u8>>,
    generation: u64,
    slot: u64,
    len: usize,
    sum: u32,
}

/// The volume, open.
pub(super) struct Manifests {
    device: File,
    slots: u64,
    name: String,
}

impl Manifests {
    /// Opens it.
    pub(super) fn open(path: &Path) -> Result<Self, DriverError> {
        let name = path.display().to_string();
        let open = || -> io::Result<_> {
            let device = fs::OpenOptions::new().read(true).write(true).open(path)?;
            // A block device's metadata has no size.
            let bytes = rustix::fs::seek(&device, rustix::fs::SeekFrom::End(0))?;
            Ok((device, bytes / SLOT_BYTES))
        };
        match open() {
            Ok((device, slots)) => Ok(Self { device, slots, name }),
            Err(error) => Err(DriverError::io(format!("open the manifests {name}"), error)),
        }
    }

    fn io(&self, doing: &str) -> impl Fn(io::Error) -> DriverError {
        let doing = format!("{doing} {}", self.name);
        move |error| DriverError::io(doing.clone(), error)
    }

    /// All snapshots that have a manifest, or had one that is damaged.
    pub(super) fn all(&self) -> Result<Vec<Record>, DriverError> {
        let mut newest: Vec<Record> = Vec::new();
        for record in self.slots()? {
            match newest.iter_mut().find(|other| other.owner == record.owner) {
                None => newest.push(record),
                // A newer one without its manifest was being written when the power went.
                Some(other)
                    if (record.manifest.is_some(), record.generation)
                        > (other.manifest.is_some(), other.generation) =>
                {
                    *other = record;
                }
                Some(_) => {}
            }
        }
        Ok(newest)
    }

    /// One snapshot's.
    pub(super) fn find(&self, owner: Owner) -> Result<Option<Record>, DriverError> {
        Ok(self.all()?.into_iter().find(|record| record.owner == owner))
    }

    /// Writes a manifest durably; an older one of this snapshot is gone afterwards.
    pub(super) fn put(&self, owner: Owner, phase: Phase, manifest: &[u8]) -> Result<Record, DriverError> {
        if manifest.len() > MANIFEST_LIMIT {
            let doing = format!("write a manifest of {} bytes; at most {MANIFEST_LIMIT} fit", manifest.len());
            return Err(DriverError::new(Kind::Unsupported, doing));
        }
        let _changing = changing();
        let taken = self.slots()?;
        let is_taken = |slot: &u64| taken.iter().any(|record| record.slot == *slot);
        let Some(slot) = (0..self.slots).find(|slot| !is_taken(slot)) else {
            let doing = format!("write a manifest: all {} slots are taken; delete snapshots", self.slots);
            return Err(DriverError::new(Kind::NoSpace, doing));
        };
        let older: Vec<&Record> = taken.iter().filter(|record| record.owner == owner).collect();
        let generation = older.iter().map(|record| record.generation + 1).max().unwrap_or(1);
        let (len, sum) = (manifest.len(), crc32(manifest));
        let header = Header { phase, generation, owner, len, sum };
        let at = slot * SLOT_BYTES;
        self.device
            .write_all_at(manifest, at + HEADER_BYTES as u64)
            .and_then(|()| self.device.write_all_at(&header.encode(), at))
            .and_then(|()| self.device.sync_all())
            .map_err(self.io("write a manifest to"))?;
        self.clear(older.into_iter())?;
        Ok(Record { owner, phase, manifest: Some(manifest.to_vec()), generation, slot, len, sum })
    }

    /// Notes how far it is, in the page cache only: it survives the end of this process, and is
    /// durable with the next `flush`. The cut has no time for more.
    pub(super) fn mark(&self, record: &Record, phase: Phase) -> Result<(), DriverError> {
        let Record { owner, generation, len, sum, .. } = *record;
        let header = Header { phase, generation, owner, len, sum }.encode();
        self.device.write_all_at(&header, record.slot * SLOT_BYTES).map_err(self.io("write a manifest to"))
    }

    /// Makes durable what was marked, and with it what the pool holds: a flush of one of its volumes
    /// is one of all (Linux `process_deferred_flush_bios`, dm-thin.c).
    pub(super) fn flush(&self) -> Result<(), DriverError> {
        self.device.sync_all().map_err(self.io("flush"))
    }

    /// Forgets a snapshot durably; whether it was known.
    pub(super) fn remove(&self, owner: Owner) -> Result<bool, DriverError> {
        let _changing = changing();
        let taken = self.slots()?;
        let ours: Vec<_> = taken.iter().filter(|record| record.owner == owner).collect();
        let was_known = !ours.is_empty();
        self.clear(ours.into_iter())?;
        self.flush()?;
        Ok(was_known)
    }

    fn clear<'a>(&self, mut records: impl Iterator<Item = &'a Record>) -> Result<(), DriverError> {
        records
            .try_for_each(|record| self.device.write_all_at(&[0; HEADER_BYTES], record.slot * SLOT_BYTES))
            .map_err(self.io("empty a slot of"))
    }

    fn slots(&self) -> Result<Vec<Record>, DriverError> {
        let mut found = Vec::new();
        let mut block = [0; HEADER_BYTES];
        for slot in 0..self.slots {
            let at = slot * SLOT_BYTES;
            self.device.read_exact_at(&mut block, at).map_err(self.io("read"))?;
            let Some(Header { phase, generation, owner, len, sum }) = Header::decode(&block) else {
                continue;
            };
            let mut manifest = vec![0; len];
            self.device
                .read_exact_at(&mut manifest, at + HEADER_BYTES as u64)
                .map_err(self.io("read a manifest of"))?;
            let manifest = (crc32(&manifest) == sum).then_some(manifest);
            found.push(Record { owner, phase, manifest, generation, slot, len, sum });
        }
        Ok(found)
    }
}

fn changing() -> MutexGuard<'static, ()> {
    // It guards no data: a panic of its holder spoilt nothing.
    CHANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy)]
struct Header {
    phase: Phase,
    generation: u64,
    owner: Owner,
    len: usize,
    sum: u32,
}

impl Header {
    /// Little-endian: magic 8, version 4, phase 4, generation 8, machine 16, snapshot 16, length 4,
    /// checksum of the manifest 4, checksum of all before 4; the rest is zero. One sector, so that it is written whole.
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let phase: u32 = match self.phase {
            Phase::Prepared => 1,
            Phase::Cut => 2,
            Phase::Deleting => 3,
        };
        let len = u32::try_from(self.len).expect("a manifest fits into its slot");
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(phase.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.owner.vm.as_uuid().as_bytes());
        bytes.extend(self.owner.snapshot.as_uuid().as_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(self.sum.to_le_bytes());
        bytes.extend(crc32(&bytes).to_le_bytes());
        bytes.resize(HEADER_BYTES, 0);
        bytes.try_into().expect("it was made that long")
    }

    fn decode(block: &[u8; HEADER_BYTES]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"));
        let uuid = |at: usize| Uuid::from_bytes(block[at..at + 16].try_into().expect("sixteen bytes"));
        if block[..8] != MAGIC || number(8) != VERSION || number(64) != crc32(&block[..64]) {
            return None;
        }
        let phase = match number(12) {
            1 => Phase::Prepared,
            2 => Phase::Cut,
            3 => Phase::Deleting,
            _ => return None,
        };
        let owner = Owner { vm: VmUuid::from_uuid(uuid(24)), snapshot: SnapshotId::from_uuid(uuid(40)) };
        let len = usize::try_from(number(56)).ok().filter(|len| *len <= MANIFEST_LIMIT)?;
        let generation = u64::from_le_bytes(block[16..24].try_into().expect("eight bytes"));
        Some(Self { phase, generation, owner, len, sum: number(60) })
    }
}

/// CRC-32 as in zlib, bit by bit: manifests are small.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn scratch(slots: u64) -> (tempfile::NamedTempFile, Manifests) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(slots * SLOT_BYTES).unwrap();
        let manifests = Manifests::open(file.path()).unwrap();
        (file, manifests)
    }

    fn owner(n: u128) -> Owner {
        let vm = VmUuid::from_uuid(Uuid::from_u128(7));
        Owner { vm, snapshot: SnapshotId::from_uuid(Uuid::from_u128(n)) }
    }

    #[test]
    fn the_checksum_is_the_one_that_everybody_has() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_full_volume_says_so_and_has_room_again_after_a_deletion() {
        let (_file, manifests) = scratch(2);
        manifests.put(owner(1), Phase::Prepared, b"one").unwrap();
        manifests.put(owner(2), Phase::Prepared, b"two").unwrap();
        let error = manifests.put(owner(3), Phase::Prepared, b"three").unwrap_err();
        assert_eq!(error.kind, Kind::NoSpace, "{error}");
        assert!(manifests.remove(owner(1)).unwrap());
        assert!(!manifests.remove(owner(1)).unwrap());
        manifests.put(owner(3), Phase::Prepared, b"three").unwrap();
        let error = manifests.put(owner(4), Phase::Prepared, &vec![0; MANIFEST_LIMIT + 1]).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported, "{error}");
    }

    #[test]
    fn a_manifest_that_power_loss_ended_in_the_middle_leaves_the_one_before() {
        let (file, manifests) = scratch(4);
        manifests.put(owner(1), Phase::Cut, b"intent").unwrap();
        let old = manifests.find(owner(1)).unwrap().unwrap();
        let mut before = [0; HEADER_BYTES];
        manifests.device.read_exact_at(&mut before, old.slot * SLOT_BYTES).unwrap();
        manifests.put(owner(1), Phase::Cut, b"final").unwrap();
        let new = manifests.find(owner(1)).unwrap().unwrap();
        assert_eq!((new.manifest.as_deref(), new.slot != old.slot), (Some(&b"final"[..]), true));
        // Both headers reached the disk, of the newer manifest only a part.
        manifests.device.write_all_at(&before, old.slot * SLOT_BYTES).unwrap();
        manifests.device.write_all_at(b"fi\0\0\0", new.slot * SLOT_BYTES + HEADER_BYTES as u64).unwrap();
        let again = Manifests::open(file.path()).unwrap();
        assert_eq!(again.find(owner(1)).unwrap().unwrap(), old);
        assert!(again.remove(owner(1)).unwrap());
        assert_eq!(again.all().unwrap(), []);
    }

    #[test]
    fn a_header_that_is_not_ours_is_a_free_slot() {
        let (_file, manifests) = scratch(1);
        for at in 0..68 {
            manifests.put(owner(1), Phase::Deleting, b"x").unwrap();
            let mut byte = [0];
            manifests.device.read_exact_at(&mut byte, at).unwrap();
            manifests.device.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
            assert_eq!(manifests.all().unwrap(), [], "byte {at}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn it_holds_what_a_map_would(steps in prop::collection::vec((0..6_u128, 0..4_u8, 0..9000_usize), 1..20)) {
            let (file, manifests) = scratch(16);
            let mut model = BTreeMap::new();
            for (n, what, len) in steps {
                let bytes = vec![u8::try_from(n).unwrap(); len];
                match what {
                    0 | 1 => {
                        let phase = if what == 0 { Phase::Prepared } else { Phase::Cut };
                        manifests.put(owner(n), phase, &bytes).unwrap();
                        model.insert(owner(n), (phase, bytes));
                    }
                    2 => {
                        if let Some(record) = manifests.find(owner(n)).unwrap() {
                            manifests.mark(&record, Phase::Deleting).unwrap();
                        }
                        model.entry(owner(n)).and_modify(|(phase, _)| *phase = Phase::Deleting);
                    }
                    _ => prop_assert_eq!(manifests.remove(owner(n)).unwrap(), model.remove(&owner(n)).is_some()),
                }
                let all = Manifests::open(file.path()).unwrap().all().unwrap();
                let held: BTreeMap<_, _> =
                    all.into_iter().map(|one| (one.owner, (one.phase, one.manifest.unwrap()))).collect();
                prop_assert_eq!(&held, &model);
            }
        }
    }
}
