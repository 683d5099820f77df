//! Where bytes are: a device, or one that is put together of others. It can be read before anything is
//! made of it, so that a file system is found without touching the names of this machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// The device mapper's unit, whatever the disk's own is (Linux `include/linux/blk_types.h`).
pub const SECTOR: u64 = 512;

/// Something that can be read like a disk.
#[derive(Debug)]
pub enum Place {
    /// A block device of the kernel's; in tests, an image.
    Device {
        /// Its path.
        path: PathBuf,
        /// Open for reading.
        file: File,
        /// In bytes.
        size_bytes: u64,
    },
    /// Parts of others, side by side.
    Mapped {
        /// A name for it, such as `data-lv0`.
        name: String,
        /// In the order of `start`, without gaps.
        targets: Vec<Target>,
    },
}

/// A run of sectors, as the device mapper's targets `linear` and `striped` mean it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where it begins.
    pub start: u64,
    /// How many sectors it has.
    pub sectors: u64,
    /// How many sectors come from one stripe before the next one follows.
    pub chunk: u64,
    /// Each with the sector at which it begins there; one is `linear`.
    pub stripes: Vec<(Arc<Place>, u64)>,
}

impl Place {
    /// Opens a device. It is not held: others may use it.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        let size_bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
        Ok(Self::Device { path, file, size_bytes })
    }

    /// In bytes.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Device { size_bytes, .. } => *size_bytes,
            Self::Mapped { targets, .. } => targets
                .last()
                .map_or(0, |last| last.start.saturating_add(last.sectors).saturating_mul(SECTOR)),
        }
    }

    /// For people.
    pub fn name(&self) -> String {
        match self {
            Self::Device { path, .. } => path.display().to_string(),
            Self::Mapped { name, .. } => name.clone(),
        }
    }

    /// Reads all of `buffer` at this byte.
    pub fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        let targets = match self {
            Self::Device { file, .. } => return file.read_exact_at(buffer, offset),
            Self::Mapped { targets, .. } => targets,
        };
        while !buffer.is_empty() {
            let sector = offset / SECTOR;
            let target = targets
                .iter()
                .find(|target| (target.start..target.start.saturating_add(target.sectors)).contains(&sector))
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            let (place, there, run) = target.locate(offset - target.start * SECTOR);
            let now = buffer.len().min(usize::try_from(run).unwrap_or(usize::MAX));
            let (part, rest) = buffer.split_at_mut(now);
            place.read_at(there, part)?;
            buffer = rest;
            offset += now as u64;
        }
        Ok(())
    }

    /// As `read_at`; `None` where there is not so much.
    pub fn bytes<const N: usize>(&self, offset: u64) -> io::Result<Option<[u8; N]>> {
        if offset.checked_add(N as u64).is_none_or(|end| end > self.size_bytes()) {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.read_at(offset, &mut bytes)?;
        Ok(Some(bytes))
    }
}

impl Target {
    /// The place and byte of a byte of this target, and how many follow there.
    fn locate(&self, offset: u64) -> (&Place, u64, u64) {
        // What a super block says may be nonsense; what is too far away is not there to be read.
        let at = |begin: u64, offset: u64| begin.saturating_mul(SECTOR).saturating_add(offset);
        let count = self.stripes.len() as u64;
        if count == 1 {
            let (place, begin) = &self.stripes[0];
            return (place, at(*begin, offset), self.sectors.saturating_mul(SECTOR) - offset);
        }
        let chunk = self.chunk.saturating_mul(SECTOR);
        let (number, within) = (offset / chunk, offset % chunk);
        let (place, begin) = &self.stripes[usize::try_from(number % count).expect("less than the stripes")];
        (place, at(*begin, number / count * chunk + within), chunk - within)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// An image with these bytes, for the tests of the rooms beside this one.
    pub(in crate::mount) fn image(bytes: &[u8]) -> Arc<Place> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(Place::open(file.path().to_owned()).unwrap())
    }

    fn sectors(letters: &str) -> Vec<u8> {
        letters.bytes().flat_map(|letter| [letter; SECTOR as usize]).collect()
    }

    fn letters(place: &Place) -> String {
        let mut bytes = vec![0; usize::try_from(place.size_bytes()).unwrap()];
        place.read_at(0, &mut bytes).unwrap();
        bytes.chunks(SECTOR as usize).map(|sector| char::from(sector[0])).collect()
    }

    #[test]
    fn parts_of_others_are_read_as_one() {
        let (first, second) = (image(&sectors("xabcdx")), image(&sectors("yABCDy")));
        let linear = |start, sectors, place: &Arc<Place>, at| Target {
            start,
            sectors,
            chunk: 0,
            stripes: vec![(Arc::clone(place), at)],
        };
        let joined = Place::Mapped {
            name: "joined".to_owned(),
            targets: vec![linear(0, 2, &second, 1), linear(2, 3, &first, 2)],
        };
        assert_eq!(letters(&joined), "ABbcd");
        let striped = Target { start: 0, sectors: 8, chunk: 2, stripes: vec![(first, 1), (second, 1)] };
        let striped = Arc::new(Place::Mapped { name: "striped".to_owned(), targets: vec![striped] });
        assert_eq!(letters(&striped), "abABcdCD");
        let upon = Place::Mapped { name: "upon".to_owned(), targets: vec![linear(0, 4, &striped, 3)] };
        assert_eq!(letters(&upon), "BcdC");
        assert!(upon.bytes::<600>(3 * SECTOR).unwrap().is_none(), "it ends before");
    }
}
