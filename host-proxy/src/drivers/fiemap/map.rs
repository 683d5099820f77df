//! One file's map: FIEMAP until its end, and what each of its flags means for comparing.
//!
//! Unsafe, because an ioctl's number decides how the kernel reads and writes its argument; there is no
//! well-kept crate for this one.

use std::ffi::c_void;
use std::fs::File;
use std::io;

use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, opcode};

/// How many extents one call gives.
const AT_ONCE: usize = 512;
/// `FIEMAP_FLAG_SYNC`: what is not on the disk yet has no place on it.
const SYNC: u32 = 1;

const LAST: u32 = 0x1;
const UNWRITTEN: u32 = 0x800;
const MERGED: u32 = 0x1000;
const SHARED: u32 = 0x2000;

/// `struct fiemap_extent`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap`, with room behind it.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; AT_ONCE],
}

const HEADER: usize = 32;
const _: () = assert!(size_of::<Extent>() == 56 && size_of::<Request>() == HEADER + 56 * AT_ONCE);

struct Fiemap(Box<Request>);

// SAFETY: FS_IOC_FIEMAP is _IOWR('f', 11, struct fiemap), whose size does not count the extents; it reads the header and writes
// at most `count` extents behind it, for which there is room.
unsafe impl Ioctl for Fiemap {
    type Output = Box<Request>;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<[u8; HEADER]>(b'f', 11)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, pointer: *mut c_void) -> rustix::io::Result<Self::Output> {
        let request: *const Request = pointer.cast();
        // SAFETY: it is what `as_ptr` gave, and was written by the kernel.
        Ok(Box::new(unsafe { request.read() }))
    }
}

/// Where bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: they are zeros.
    Zeros,
    /// There on the device, in blocks that other files have too.
    Shared(u64),
    /// There on the device, in blocks of this file alone.
    Alone(u64),
    /// The map does not say it well enough.
    Unclear,
}

/// A range of a file's bytes that are at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) place: Place,
}

impl Mapped {
    /// Where the byte is that this range has at `at`.
    pub(super) const fn place_at(&self, at: u64) -> Place {
        match self.place {
            Place::Shared(place) => Place::Shared(place + (at - self.begin)),
            Place::Alone(place) => Place::Alone(place + (at - self.begin)),
            other => other,
        }
    }
}

/// Where the first `size` bytes of a file are: ranges that follow one another, from 0 to `size`.
pub(super) fn of(file: &File, size: u64) -> io::Result<Vec<Mapped>> {
    let mut map = Vec::new();
    let mut at = 0;
    while at < size {
        let found = extents(file, at, size - at)?;
        let is_last = found.last().is_none_or(|extent| extent.flags & LAST != 0);
        let begun_at = at;
        for extent in found {
            let begin = extent.logical.max(at);
            let end = extent.logical.saturating_add(extent.length).min(size);
            if end <= begin {
                continue;
            }
            if begin > at {
                map.push(Mapped { begin: at, end: begin, place: Place::Zeros });
            }
            let skipped = begin - extent.logical;
            map.push(Mapped {
                begin,
                end,
                place: place(extent.flags, extent.physical.saturating_add(skipped)),
            });
            at = end;
        }
        if is_last && at < size {
            map.push(Mapped { begin: at, end: size, place: Place::Zeros });
            at = size;
        } else if at == begun_at {
            return Err(io::Error::other("the file system's map of it does not go on"));
        }
    }
    Ok(map)
}

fn extents(file: &File, start: u64, length: u64) -> io::Result<Vec<Extent>> {
    let request = Request {
        start,
        length,
        flags: SYNC,
        mapped: 0,
        count: u32::try_from(AT_ONCE).expect("a few hundred"),
        reserved: 0,
        extents: [Extent::default(); AT_ONCE],
    };
    // SAFETY: `Fiemap` is declared as the kernel reads and writes it.
    let answer = unsafe { ioctl::ioctl(file, Fiemap(Box::new(request)))? };
    let count = usize::try_from(answer.mapped).map_or(AT_ONCE, |count| count.min(AT_ONCE));
    Ok(answer.extents[..count].to_vec())
}

/// What an extent's flags say. Only flags whose meaning is known here are trusted.
const fn place(flags: u32, physical: u64) -> Place {
    match flags & !(LAST | MERGED) {
        UNWRITTEN => Place::Zeros,
        flags if flags == UNWRITTEN | SHARED => Place::Zeros,
        SHARED => Place::Shared(physical),
        0 => Place::Alone(physical),
        _ => Place::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_extents_have_a_place() {
        // UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE, DATA_TAIL, and what may come.
        for unclear in [0x2, 0x4, 0x8, 0x80, 0x100, 0x200, 0x400, 0x8000, 0x8000_0000] {
            for with in [0, LAST, SHARED, UNWRITTEN, SHARED | LAST] {
                assert_eq!(place(unclear | with, 4096), Place::Unclear, "{unclear:x} {with:x}");
            }
        }
        assert_eq!(place(LAST | MERGED, 4096), Place::Alone(4096));
        assert_eq!(place(LAST | SHARED, 4096), Place::Shared(4096));
        assert_eq!(place(UNWRITTEN | SHARED, 4096), Place::Zeros);
    }
}
