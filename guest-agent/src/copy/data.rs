//! A file's bytes. Holes stay holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, SeekFrom, copy_file_range, fadvise, seek};
use rustix::io::Errno;

use super::{Listener, Told};

/// Large enough that the calls cost nothing beside the copying, small enough for the processor's cache: what coreutils found best
/// for `cp` (src/ioblksize.h).
const BUFFER: usize = 256 << 10;
/// What the kernel copies at once, at most: between two pieces progress is told.
const PIECE: usize = 8 << 20;

/// The way that works between these two file systems, once it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// In the kernel.
    Range,
    /// Through a buffer.
    Buffer,
}

/// Copies bytes; what it learns about the two file systems it keeps.
#[derive(Debug)]
pub(super) struct Bytes {
    way: Way,
    buffer: Vec<u8>,
}

impl Bytes {
    pub(super) fn new() -> Self {
        Self { way: Way::Range, buffer: Vec::new() }
    }

    /// All of a file, which may be cut short by the listener's wish to end.
    pub(super) fn copy(&mut self, from: &File, to: &File, listener: &mut dyn Listener) -> io::Result<()> {
        let size = from.metadata()?.len();
        // A hint: it may be ignored.
        let _ = fadvise(from, 0, None, Advice::Sequential);
        let mut at = 0;
        while at < size {
            let (begin, end) = match next_data(from, at, size)? {
                Some(range) => range,
                None => (size, size),
            };
            listener.hear(Told::Bytes(begin - at));
            self.range(from, to, begin, end, listener)?;
            at = end;
        }
        to.set_len(size)
    }

    /// A part of a file that has no holes.
    pub(super) fn range(
        &mut self,
        from: &File,
        to: &File,
        begin: u64,
        end: u64,
        listener: &mut dyn Listener,
    ) -> io::Result<()> {
        let mut at = begin;
        while at < end {
            if listener.wants_end() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE);
            let copied = match self.way {
                Way::Range => match self.in_kernel(from, to, at, wanted)? {
                    Some(copied) => copied,
                    None => continue,
                },
                Way::Buffer => self.through_buffer(from, to, at, wanted.min(BUFFER))?,
            };
            if copied == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
            }
            at += copied as u64;
            listener.hear(Told::Bytes(copied as u64));
        }
        Ok(())
    }

    /// `None` if it does not work between these file systems.
    fn in_kernel(&mut self, from: &File, to: &File, at: u64, wanted: usize) -> io::Result<Option<usize>> {
        let (mut source, mut target) = (at, at);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
            // Some file systems answer so where they should say that they can't (copy_file_range(2)).
            Ok(0) | Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                self.way = Way::Buffer;
                Ok(None)
            }
            copied => Ok(Some(copied?)),
        }
    }

    fn through_buffer(&mut self, from: &File, to: &File, at: u64, wanted: usize) -> io::Result<usize> {
        self.buffer.resize(BUFFER, 0);
        let read = from.read_at(&mut self.buffer[..wanted], at)?;
        to.write_all_at(&self.buffer[..read], at)?;
        Ok(read)
    }
}

/// The next bytes that are no hole.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(begin) => Ok(Some((begin, seek(file, SeekFrom::Hole(begin))?.min(size)))),
        // Behind the last data.
        Err(Errno::NXIO) => Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some((at, size))),
        Err(errno) => Err(errno.into()),
    }
}
