//! The ability to give a volume back the bytes that it had in a snapshot, in place: the image stays the same file, so
//! that whatever has it open reads the old bytes from then on. What drivers that keep images share is here too.
//!
//! Raw images are cloned or copied here. Of those QEMU caches nothing but where data is known to be (`block/io.c`,
//! `bdrv_co_block_status`), and of data that has become a hole it reads zeros all the same. It does cache the tables of a
//! qcow2 image (docs/interop/qcow2.rst, "cache"), and would go on with them: `qemu/restore.rs` has it write the image itself.
//! `differing` is for block devices.

pub(super) mod differing;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::{DriverError, Expose, Format, Kind, Owner, Progress, Volume};

/// How much is copied at once, in bytes.
const CHUNK: usize = 1 << 20;

/// The ability to give a volume back the bytes of one of its snapshots.
pub trait Restore {
    /// Proves, without changing anything, that [`Restore::restore`] would work. `NotFound` without such a snapshot,
    /// `Unsupported` where the volume can't take it, such as one that has another size now; `Busy` as `restore` has it.
    fn can_restore(&self, owner: Owner, volume: &Volume, others: Others) -> Result<(), DriverError>;

    /// The first bytes of the snapshot, as [`Driver::read_head`](super::Driver::read_head) tells those of the volume. `None` where the
    /// ability to show it gives this host a path of it.
    fn head_then(
        &self,
        _owner: Owner,
        _volume: &Volume,
        _len: usize,
    ) -> Result<Option<Vec<u8>>, DriverError> {
        Ok(None)
    }

    /// Gives the volume all bytes of the snapshot, which stays as it is, as all others do. After `Ok` that survives power
    /// loss. One that was ended in the middle is finished by doing it again. `Busy`, where `others` says that nobody may have
    /// the volume open and somebody has. Nothing was touched after `Busy`, `NoSpace`, `NotFound` and `Unsupported`: what fails
    /// later is `Failed`.
    fn restore(
        &self,
        owner: Owner,
        volume: &Volume,
        others: Others,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError>;
}

/// Who may have the volume open meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// A running machine, whose guest does not use the disk.
    Machine,
    /// Nobody, and nobody gets it until it is done.
    Nobody,
}

/// How many bytes there are.
fn size(file: &File, volume: &Volume) -> Result<u64, DriverError> {
    seek(file, SeekFrom::End(0)).map_err(|error| DriverError::io(format!("look at {}", volume.source), error))
}

/// Refuses where the volume has another size than it had in the snapshot.
pub(super) fn same_size(volume: &Volume, snapshot_bytes: u64, now_bytes: u64) -> Result<(), DriverError> {
    if snapshot_bytes == now_bytes {
        return Ok(());
    }
    let told = "the disk has another size than it had in the snapshot; it has to have that size again first";
    let more = format!(" ({now_bytes} bytes now, {snapshot_bytes} then)");
    Err(DriverError::not_restored(volume, told, &more))
}

/// What became of a restore, once what showed its snapshot here is taken back. If that fails it harms nobody: who deletes the
/// snapshot does it.
pub(super) fn concealed(
    show: &dyn Expose,
    owner: Owner,
    volume: &Volume,
    restored: Result<(), DriverError>,
) -> Result<(), DriverError> {
    if let Err(error) = show.conceal(owner, &volume.serial) {
        tracing::warn!("after a restore: {}", crate::service::chain(&error));
    }
    restored
}

/// A failure after which the volume may hold neither the old bytes nor the new, whatever the cause.
pub(super) fn begun(doing: &str, error: impl Into<std::io::Error>) -> DriverError {
    DriverError { kind: Kind::Failed, ..DriverError::io(doing, error) }
}

/// Opens both and compares their sizes. The volume is kept from others until it is closed, where nobody else may have it.
fn open(snapshot: &Path, volume: &Volume, others: Others) -> Result<(File, File, u64), DriverError> {
    if volume.format != Format::Raw {
        return Err(DriverError::not_restored(
            volume,
            "its image is not a raw one, and this driver takes no other",
            "",
        ));
    }
    let io = |path: &Path, error: std::io::Error| DriverError::io(format!("open {}", path.display()), error);
    let from = File::open(snapshot).map_err(|error| io(snapshot, error))?;
    let path = volume.path()?;
    let to = OpenOptions::new().read(true).write(true).open(path).map_err(|error| io(path, error))?;
    let size_bytes = size(&to, volume)?;
    same_size(volume, size(&from, volume)?, size_bytes)?;
    if others == Others::Nobody {
        lock(&to, volume)?;
    }
    Ok((from, to, size_bytes))
}

/// [`Restore::can_restore`] of an image by another.
pub(super) fn can_restore_image(snapshot: &Path, volume: &Volume, others: Others) -> Result<(), DriverError> {
    open(snapshot, volume, others).map(drop)
}

/// [`Restore::restore`] of an image by another: its extents are shared where the file system can, else copied.
///
/// The kernel writes back and drops what it caches of the target (Linux `generic_remap_file_range_prep` and the file
/// systems' own), so that QEMU reads the new bytes whether it opened the image with O_DIRECT or not.
pub(super) fn restore_image(
    snapshot: &Path,
    volume: &Volume,
    others: Others,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DriverError> {
    let (from, to, total_bytes) = open(snapshot, volume, others)?;
    let doing = format!("restore {}", volume.source);
    progress(Progress { done_bytes: 0, total_bytes });
    match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => {}
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            copy(&from, &to, total_bytes, progress).map_err(|error| begun(&doing, error))?;
        }
        Err(error) => return Err(begun(&doing, error)),
    }
    to.sync_all().map_err(|error| begun(&doing, error))?;
    progress(Progress { done_bytes: total_bytes, total_bytes });
    Ok(())
}

/// Keeps whoever honours QEMU's locks from opening the image, until `file` is closed. QEMU holds open-file-description
/// locks on single bytes of it (`block/file-posix.c`, `raw_apply_lock_bytes`); one on all bytes meets each of them.
pub(super) fn lock(file: &File, volume: &Volume) -> Result<(), DriverError> {
    // SAFETY: all fields of a `flock` may be zero: from the first byte to the end of the file, wherever that is.
    let mut all: libc::flock = unsafe { std::mem::zeroed() };
    all.l_type = libc::F_WRLCK as libc::c_short;
    all.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open and `all` lives through the call, which keeps no pointer to it. rustix has no
    // F_OFD_SETLK; a POSIX lock would be lost as soon as anything in this process closes the file.
    let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const all) };
    if locked == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(DriverError::new(
            Kind::Busy,
            format!(
                "restore {}: a process has it open and locked, such as a machine that runs",
                volume.source
            ),
        )),
        _ => Err(DriverError::io(format!("lock {}", volume.source), error)),
    }
}

/// Copies what is data, and makes holes of the rest.
fn copy(from: &File, to: &File, total_bytes: u64, progress: &mut dyn FnMut(Progress)) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < total_bytes {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data.min(total_bytes),
            // There is no more of it.
            Err(Errno::NXIO) => total_bytes,
            Err(error) => return Err(error.into()),
        };
        clear(to, at, data - at, &mut buffer)?;
        at = data;
        let end = if at < total_bytes { seek(from, SeekFrom::Hole(at))?.min(total_bytes) } else { at };
        while at < end {
            let part = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            from.read_exact_at(&mut buffer[..part], at)?;
            to.write_all_at(&buffer[..part], at)?;
            at += part as u64;
            progress(Progress { done_bytes: at, total_bytes });
        }
    }
    Ok(())
}

/// Makes a range read as zeros: a hole where that can be, else zeros.
fn clear(to: &File, mut at: u64, mut length: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    match fallocate(to, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, length) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    buffer.fill(0);
    while length > 0 {
        let part = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        to.write_all_at(&buffer[..part], at)?;
        at += part as u64;
        length -= part as u64;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::drivers::Source;

    pub(in crate::drivers) fn volume(path: &Path) -> Volume {
        Volume {
            serial: "data".parse().unwrap(),
            source: Source::Path(path.to_owned()),
            format: Format::Raw,
            qmp: None,
        }
    }

    #[test]
    fn what_is_copied_is_the_same_byte_for_byte_holes_too() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let size: u64 = 8 << 20;
        let file = File::create_new(&old).unwrap();
        file.set_len(size).unwrap();
        for (at, byte) in [(0, 1), (3 << 20, 2), (size - 4096, 3)] {
            file.write_all_at(&[byte; 4096], at).unwrap();
        }
        fs::write(&new, vec![9; usize::try_from(size).unwrap()]).unwrap();
        let (from, to, total) = open(&old, &volume(&new), Others::Nobody).unwrap();
        let mut last = 0;
        copy(&from, &to, total, &mut |told| last = told.done_bytes).unwrap();
        assert_eq!(last, size);
        assert!(fs::read(&old).unwrap() == fs::read(&new).unwrap());
        to.sync_all().unwrap();
        assert!(fs::metadata(&new).unwrap().blocks() * 512 < size / 2, "holes were filled");
        clear(&to, 1, 5, &mut [7; 3]).unwrap();
        assert_eq!(fs::read(&new).unwrap()[..8], [1, 0, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn an_image_of_another_size_or_format_and_one_that_is_locked_is_refused_untouched() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::write(&old, [1; 4096]).unwrap();
        fs::write(&new, [2; 4096]).unwrap();
        let restore = |volume: &Volume, others| restore_image(&old, volume, others, &mut |_| {});
        let held = File::options().read(true).write(true).open(&new).unwrap();
        lock(&held, &volume(&new)).unwrap();
        let busy = restore(&volume(&new), Others::Nobody).unwrap_err();
        assert_eq!(busy.kind, Kind::Busy, "{busy}");
        drop(held);
        let qcow2 = Volume { format: Format::Qcow2, ..volume(&new) };
        assert_eq!(restore(&qcow2, Others::Machine).unwrap_err().kind, Kind::Unsupported);
        assert_eq!(fs::read(&new).unwrap(), [2; 4096]);
        restore(&volume(&new), Others::Nobody).unwrap();
        assert_eq!(fs::read(&new).unwrap(), [1; 4096]);
        fs::write(&new, [2; 8192]).unwrap();
        let refused = restore(&volume(&new), Others::Machine).unwrap_err();
        assert_eq!(refused.kind, Kind::Unsupported);
        assert!(refused.to_string().contains("8192 bytes now, 4096 then"), "{refused}");
        assert_eq!(fs::read(&new).unwrap(), [2; 8192]);
    }
}
