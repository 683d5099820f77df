//! Restoring by what differs: both are read, and only what is not the same is written. For storage that shares no bytes between
//! a volume and its snapshot at our word: block devices, and images where cloning would be a copy.
//!
//! A block device is read and written with O_DIRECT. Whoever else has it open, with or without a cache, is coherent with that: the
//! kernel writes back what it caches of a range before it is read, and drops it before and after it is written (Linux
//! `block/fops.c`, `kiocb_write_and_wait`, `kiocb_invalidate_pages`); a discard drops it too (`truncate_bdev_range`).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::ioctl::{self, Setter, opcode};

use super::{CHUNK, begun, lock, same_size, size};
use crate::drivers::{DriverError, Extent, Others, Progress, Volume, extents};

/// What is compared at once, and written whole if it differs, in bytes. No storage keeps track of less than a sector.
const GRAIN: usize = 64 << 10;
/// What O_DIRECT asks of a buffer's address, on any device, in bytes.
const ALIGNMENT: usize = 4096;

/// A snapshot and its volume, both open.
pub(in crate::drivers) struct Pair {
    from: Side,
    to: Side,
    doing: String,
    total_bytes: u64,
}

struct Side {
    file: File,
    is_device: bool,
}

/// Proves that the volume could be written to now; nothing is. Under systemd an image may lie outside of what the unit may write
/// to, and be read all the same.
pub(in crate::drivers) fn can_be_written(volume: &Volume, others: Others) -> Result<(), DriverError> {
    Side::to_write(volume, others).map(drop)
}

impl Side {
    /// `flags` are for a device. With O_EXCL it is `Busy` while this host has mounted it or made another device of it.
    fn open(path: &Path, options: &mut OpenOptions, flags: i32) -> Result<Self, DriverError> {
        let io = |error| DriverError::io(format!("open {}", path.display()), error);
        let is_device = std::fs::metadata(path).map_err(io)?.file_type().is_block_device();
        let flags = if is_device { libc::O_DIRECT | flags } else { 0 };
        let file = options.read(true).custom_flags(flags).open(path).map_err(io)?;
        Ok(Self { file, is_device })
    }

    /// The volume, which is kept from others until it is closed, where nobody else may have it.
    fn to_write(volume: &Volume, others: Others) -> Result<Self, DriverError> {
        let side = Self::open(volume.path()?, OpenOptions::new().write(true), libc::O_EXCL)?;
        if others == Others::Nobody {
            lock(&side.file, volume)?;
        }
        Ok(side)
    }
}

impl Pair {
    /// Opens both; nothing is changed. With `Others::Nobody` whoever honours QEMU's locks can't open the volume while this lives.
    pub(in crate::drivers) fn open(
        snapshot: &Path,
        volume: &Volume,
        others: Others,
    ) -> Result<Self, DriverError> {
        Self::open_first(snapshot, u64::MAX, volume, others)
    }

    /// As [`Pair::open`], where what shows the snapshot may be larger: only so many bytes of it are the snapshot's.
    pub(in crate::drivers) fn open_first(
        snapshot: &Path,
        snapshot_bytes: u64,
        volume: &Volume,
        others: Others,
    ) -> Result<Self, DriverError> {
        let from = Side::open(snapshot, &mut OpenOptions::new(), 0)?;
        let to = Side::to_write(volume, others)?;
        let total_bytes = size(&to.file, volume)?;
        same_size(volume, size(&from.file, volume)?.min(snapshot_bytes), total_bytes)?;
        Ok(Self { from, to, doing: format!("restore {}", volume.source), total_bytes })
    }

    /// Hands to the storage what the host still holds of the volume.
    pub(in crate::drivers) fn flush(&self) -> Result<(), DriverError> {
        self.to.file.sync_all().map_err(|error| DriverError::io(&self.doing, error))
    }

    /// All of the volume.
    pub(in crate::drivers) fn whole(&self) -> Vec<Extent> {
        vec![Extent { offset: 0, length: self.total_bytes }]
    }

    /// Where the bytes are not the same, within these extents. It is the first half of the work: `progress` is told so.
    pub(in crate::drivers) fn differing(
        &self,
        within: &[Extent],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Extent>, DriverError> {
        let (mut one, mut other) = (Aligned::new(), Aligned::new());
        let mut differing = Vec::new();
        let half = self.total_bytes / 2;
        let look = Told { from_bytes: 0, part_bytes: half, total_bytes: self.total_bytes };
        each_chunk(within, |offset, len, done, of| {
            let (one, other) = (one.first(len), other.first(len));
            self.from.file.read_exact_at(one, offset)?;
            self.to.file.read_exact_at(other, offset)?;
            if one != other {
                let grains = one.chunks(GRAIN).zip(other.chunks(GRAIN)).enumerate();
                for (index, (one, other)) in grains.filter(|(_, (one, other))| one != other) {
                    debug_assert_eq!(one.len(), other.len());
                    let offset = offset + (index * GRAIN) as u64;
                    differing.push(Extent { offset, length: one.len() as u64 });
                }
            }
            progress(look.at(done, of));
            Ok(())
        })
        .map_err(|error| DriverError::io(&self.doing, error))?;
        Ok(extents::in_order(differing, self.total_bytes))
    }

    /// Gives the volume the snapshot's bytes there, durably.
    pub(in crate::drivers) fn write(
        &self,
        differing: &[Extent],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        let (mut buffer, zeros) = (Aligned::new(), Aligned::new());
        let half = self.total_bytes / 2;
        let told =
            Told { from_bytes: half, part_bytes: self.total_bytes - half, total_bytes: self.total_bytes };
        let mut hole = Extent { offset: 0, length: 0 };
        let copied = each_chunk(differing, |offset, len, done, of| {
            let bytes = buffer.first(len);
            self.from.file.read_exact_at(bytes, offset)?;
            // What is to be zero is cleared in pieces as large as can be: storage takes back whole blocks only.
            if *bytes == *zeros.get(len) {
                if hole.end() != offset {
                    self.clear(hole)?;
                    hole = Extent { offset, length: 0 };
                }
                hole.length += len as u64;
            } else {
                self.to.file.write_all_at(bytes, offset)?;
            }
            progress(told.at(done, of));
            Ok(())
        });
        copied
            .and_then(|()| self.clear(hole))
            .and_then(|()| self.to.file.sync_all())
            .map_err(|error| begun(&self.doing, error))?;
        progress(Progress { done_bytes: self.total_bytes, total_bytes: self.total_bytes });
        Ok(())
    }

    /// Makes a range read as zeros, and gives back its room where the storage can. A discard leaves what it likes of blocks
    /// that are not whole in the range (`drivers/md/dm-thin.c`, `process_discard_bio`): what is not zero then is written.
    fn clear(&self, range: Extent) -> std::io::Result<()> {
        let Extent { offset, length } = range;
        if length == 0 {
            return Ok(());
        }
        let cleared = if self.to.is_device {
            // SAFETY: BLKDISCARD is _IO(0x12, 119) (Linux `linux/fs.h`) and reads two u64: where it begins, and how long it is.
            unsafe {
                ioctl::ioctl(
                    &self.to.file,
                    Setter::<{ opcode::none(0x12, 119) }, [u64; 2]>::new([offset, length]),
                )
            }
        } else {
            fallocate(&self.to.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
        };
        match cleared {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY) => {}
            Err(error) => return Err(error.into()),
        }
        let (mut buffer, zeros) = (Aligned::new(), Aligned::new());
        each_chunk(&[range], |offset, len, _, _| {
            let bytes = buffer.first(len);
            self.to.file.read_exact_at(bytes, offset)?;
            let grains = bytes.chunks(GRAIN).enumerate();
            for (index, grain) in grains.filter(|(_, grain)| **grain != *zeros.get(grain.len())) {
                self.to.file.write_all_at(zeros.get(grain.len()), offset + (index * GRAIN) as u64)?;
            }
            Ok(())
        })
    }
}

/// How much room writing these extents takes at most, on storage that takes it by blocks of this size.
pub(in crate::drivers) fn room(differing: &[Extent], block_bytes: u64) -> u64 {
    let mut bytes = 0;
    let mut behind = 0;
    for extent in differing {
        let first = (extent.offset / block_bytes).max(behind);
        behind = behind.max(extent.end().div_ceil(block_bytes));
        bytes += (behind - first.min(behind)) * block_bytes;
    }
    bytes
}

/// Calls it with the offset and length of each piece of these extents, and how many bytes of all are done after it.
fn each_chunk(
    extents: &[Extent],
    mut call: impl FnMut(u64, usize, u64, u64) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let of = extents.iter().map(|extent| extent.length).sum();
    let mut done = 0;
    for extent in extents {
        let mut at = extent.offset;
        while at < extent.end() {
            let len = usize::try_from(extent.end() - at).unwrap_or(CHUNK).min(CHUNK);
            done += len as u64;
            call(at, len, done, of)?;
            at += len as u64;
        }
    }
    Ok(())
}

/// A part of the work, as a part of all bytes.
struct Told {
    from_bytes: u64,
    part_bytes: u64,
    total_bytes: u64,
}

impl Told {
    fn at(&self, done: u64, of: u64) -> Progress {
        let done_bytes = self.from_bytes + Progress::share(self.part_bytes, done, of);
        Progress { done_bytes, total_bytes: self.total_bytes }
    }
}

/// A chunk of memory that O_DIRECT takes.
struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
}

impl Aligned {
    fn new() -> Self {
        let bytes = vec![0; CHUNK + ALIGNMENT];
        let begin = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, begin }
    }

    fn get(&self, len: usize) -> &[u8] {
        &self.bytes[self.begin..][..len]
    }

    fn first(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.begin..][..len]
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::volume;
    use super::*;

    /// Two images of 8 MiB and a bit: the old one has holes, and the new one differs here and there.
    fn images(folder: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
        let (old, new) = (folder.join("old"), folder.join("new"));
        let size = (8 << 20) + 512;
        for (path, pieces) in [
            (&old, &[(0, 1), (3 << 20, 2), (size - 512, 3)][..]),
            (&new, &[(0, 1), (1 << 20, 9), (3 << 20, 9), (5 << 20, 9), (size - 512, 9)]),
        ] {
            let file = File::create_new(path).unwrap();
            file.set_len(size).unwrap();
            for (at, byte) in pieces {
                let len = 200_000.min(size - at);
                file.write_all_at(&vec![*byte; usize::try_from(len).unwrap()], *at).unwrap();
            }
        }
        (old, new)
    }

    #[test]
    fn only_what_differs_is_written_and_then_nothing_differs() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = images(folder.path());
        let pair = Pair::open(&old, &volume(&new), Others::Nobody).unwrap();
        let mut last = 0;
        let mut progress = |told: Progress| {
            assert!(told.done_bytes >= last && told.done_bytes <= told.total_bytes, "{told:?}");
            last = told.done_bytes;
        };
        let differing = pair.differing(&pair.whole(), &mut progress).unwrap();
        let four_grains = 256 << 10;
        let expected =
            [(1 << 20, four_grains), (3 << 20, four_grains), (5 << 20, four_grains), (8 << 20, 512)];
        assert_eq!(differing, expected.map(|(offset, length)| Extent { offset, length }));
        pair.write(&differing, &mut progress).unwrap();
        assert_eq!(last, pair.total_bytes);
        assert!(fs::read(&old).unwrap() == fs::read(&new).unwrap());
        assert_eq!(pair.differing(&pair.whole(), &mut |_| {}).unwrap(), []);
        pair.write(&[], &mut |told| assert_eq!(told.done_bytes, told.total_bytes)).unwrap();
    }

    #[test]
    fn one_that_ends_in_the_middle_is_finished_by_doing_it_again() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = images(folder.path());
        let pair = Pair::open(&old, &volume(&new), Others::Machine).unwrap();
        let differing = pair.differing(&pair.whole(), &mut |_| {}).unwrap();
        pair.write(&differing[..2], &mut |_| {}).unwrap();
        assert!(fs::read(&old).unwrap() != fs::read(&new).unwrap());
        let rest = pair.differing(&pair.whole(), &mut |_| {}).unwrap();
        assert_eq!(rest, differing[2..]);
        pair.write(&rest, &mut |_| {}).unwrap();
        assert!(fs::read(&old).unwrap() == fs::read(&new).unwrap());
    }

    #[test]
    fn another_size_is_refused_and_what_others_locked_is_busy() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = images(folder.path());
        let held = Pair::open(&old, &volume(&new), Others::Nobody).unwrap();
        let kind = |others| Pair::open(&old, &volume(&new), others).map(drop).map_err(|error| error.kind);
        assert_eq!(kind(Others::Nobody), Err(crate::drivers::Kind::Busy));
        assert_eq!(kind(Others::Machine), Ok(()));
        drop(held);
        File::options().write(true).open(&new).unwrap().set_len(8 << 20).unwrap();
        assert_eq!(kind(Others::Machine), Err(crate::drivers::Kind::Unsupported));
    }

    #[test]
    fn room_is_counted_in_whole_blocks_each_once() {
        let extents = |pairs: &[(u64, u64)]| -> Vec<Extent> {
            pairs.iter().map(|(offset, length)| Extent { offset: *offset, length: *length }).collect()
        };
        for (pairs, expected) in
            [(&[][..], 0), (&[(0, 1)], 8), (&[(7, 2)], 16), (&[(1, 1), (3, 2), (7, 3), (40, 8)], 24)]
        {
            assert_eq!(room(&extents(pairs), 8), expected, "{pairs:?}");
        }
    }
}
