//! Changed extents as a bitmap of QEMU's. It has no command that sets bits: a bitmap learns what is written while it looks.
//! So zeros are written, of which nothing is kept but the note, into an empty qcow2 image that nobody reads. That
//! is in memory, and gone with whoever holds it.

use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

use super::ExportError;
use crate::drivers::Extent;
use crate::exec::{ExecError, Tool};

/// The bitmap's name, in the image and where it is served.
pub(super) const NAME: &str = "changed";
/// How long each program may take.
const LIMIT: Duration = Duration::from_secs(300);
/// How many extents one `qemu-io` is told.
const AT_ONCE: usize = 20_000;
/// The longest that `qemu-io` writes at once, in bytes, is a little below 2 GiB.
const LONGEST: u64 = 1 << 30;
/// A disk that is larger, in bytes, has a coarser bitmap: one bit for each 4 KiB of it would take 32 MiB.
const LARGE_BYTES: u64 = 1 << 40;
const FINE_BYTES: u64 = 4096;
const COARSE_BYTES: u64 = 65_536;

/// An image in memory that holds the bitmap.
pub(super) struct Bitmap {
    image: OwnedFd,
    pub(super) granularity: u64,
}

impl Bitmap {
    /// One for a disk of this size, in bytes.
    pub(super) fn of(extents: &[Extent], size_bytes: u64) -> Result<Self, ExportError> {
        // Not closed at exec: the programs open it by its number.
        let image = rustix::fs::memfd_create("hostsnap-changes", MemfdFlags::empty()).map_err(|error| {
            ExportError::Io { doing: "make room in memory for what changed".to_owned(), source: error.into() }
        })?;
        let granularity = if size_bytes > LARGE_BYTES { COARSE_BYTES } else { FINE_BYTES };
        let bitmap = Self { image, granularity };
        bitmap.fill(extents, size_bytes).map_err(|source| {
            let doing = "make a bitmap of what changed (qemu-img and qemu-io; install qemu-utils)";
            ExportError::Tool { doing, source }
        })?;
        Ok(bitmap)
    }

    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.image.as_raw_fd())
    }

    fn fill(&self, extents: &[Extent], size_bytes: u64) -> Result<(), ExecError> {
        let (qemu_img, qemu_io) = (Tool::find("qemu-img")?, Tool::find("qemu-io")?);
        let (path, granularity) = (self.path(), self.granularity.to_string());
        // QEMU knows no part of a sector.
        let size = size_bytes.next_multiple_of(512).to_string();
        for arguments in [
            &["create", "-q", "-f", "qcow2", &path, &size][..],
            &["bitmap", "--add", "-g", &granularity, "-f", "qcow2", &path, NAME],
        ] {
            qemu_img.run(qemu_img.command().args(arguments), LIMIT)?;
        }
        for some in pieces(extents).chunks(AT_ONCE) {
            let failed = |source| ExecError::Io { program: qemu_io.name(), source };
            let mut script = tempfile::tempfile().map_err(failed)?;
            let lines: String =
                some.iter().map(|piece| format!("write -z {} {}\n", piece.offset, piece.length)).collect();
            script.write_all(lines.as_bytes()).and_then(|()| script.rewind()).map_err(failed)?;
            let mut command = qemu_io.command();
            let told = qemu_io.run(command.args(["-f", "qcow2", &path]).stdin(script), LIMIT)?;
            // Its exit status says nothing of what it was told on its standard input.
            if told.matches("wrote ").count() != some.len() {
                let why = told.lines().find(|line| !line.contains("wrote ")).unwrap_or("nothing").to_owned();
                return Err(failed(std::io::Error::other(format!("it says {why}"))));
            }
        }
        Ok(())
    }

    /// What QEMU opens to read it.
    pub(super) fn node(&self) -> Value {
        json!({ "driver": "qcow2", "read-only": true,
                "file": { "driver": "file", "filename": self.path(), "read-only": true } })
    }
}

/// The same bytes in pieces that `qemu-io` takes.
fn pieces(extents: &[Extent]) -> Vec<Extent> {
    let of_one = |extent: &Extent| {
        let (offset, end) = (extent.offset, extent.end());
        let starts = (0..extent.length.div_ceil(LONGEST)).map(move |n| offset + n * LONGEST);
        starts.map(move |start| Extent { offset: start, length: LONGEST.min(end - start) })
    };
    extents.iter().flat_map(of_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_extent_is_told_in_pieces_that_are_the_same_bytes() {
        let long = Extent { offset: 512, length: 2 * LONGEST + 1 };
        let told = pieces(&[Extent { offset: 0, length: 0 }, long]);
        let lengths: Vec<_> = told.iter().map(|piece| piece.length).collect();
        assert_eq!(lengths, [LONGEST, LONGEST, 1]);
        assert_eq!(told.last().unwrap().end(), long.end());
        assert!(told.windows(2).all(|two| two[0].end() == two[1].offset));
    }
}
