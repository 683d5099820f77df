//! Image files as the drivers see them: opened, measured, flushed. None of it changes a byte.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use super::{DriverError, Kind, Volume};

/// Opens the image of a volume to read it.
pub(super) fn open(volume: &Volume) -> Result<File, DriverError> {
    File::open(volume.path()?).map_err(|error| DriverError::io(format!("open {}", volume.source), error))
}

/// The size of a regular raw image, in bytes.
pub(super) fn regular_size(volume: &Volume) -> Result<u64, DriverError> {
    let doing = || format!("look at {}", volume.source);
    let meta = fs::metadata(volume.path()?).map_err(|error| DriverError::io(doing(), error))?;
    if meta.file_type().is_block_device() {
        return Err(DriverError::new(
            Kind::Unsupported,
            format!("{}: it is a block device, and this driver takes image files", doing()),
        ));
    }
    if !meta.is_file() {
        return Err(DriverError::new(Kind::NotFound, format!("{}: it is no image file", doing())));
    }
    match meta.len() {
        0 => Err(DriverError::new(Kind::NotFound, format!("{}: it is empty", doing()))),
        len => Ok(len),
    }
}

/// The first bytes of a raw image.
pub(super) fn read_head(volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
    let file = open(volume)?;
    let mut head = vec![0; len];
    let mut filled = 0;
    while filled < len {
        let offset = u64::try_from(filled).expect("a head is small");
        match file.read_at(&mut head[filled..], offset) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(DriverError::io(format!("read {}", volume.source), error));
            }
        }
    }
    head.truncate(filled);
    Ok(head)
}

/// Writes back what the host holds of an image, twice: the second round has only what was written
/// during the first. FICLONE and btrfs snapshots would otherwise do it inside the cut.
pub(super) fn flush(file: &File, volume: &Volume) -> Result<(), DriverError> {
    for _ in 0..2 {
        file.sync_data().map_err(|error| DriverError::io(format!("flush {}", volume.source), error))?;
    }
    Ok(())
}

/// Refuses while something has the file open in a way that deleting it would harm: a loop device on
/// it, or a lock (QEMU's and qemu-nbd's).
pub(super) fn refuse_if_used(path: &Path) -> Result<(), DriverError> {
    let busy = |by: &str| DriverError::new(Kind::Busy, format!("{} is in use by {by}", path.display()));
    let Ok(meta) = fs::metadata(path) else { return Ok(()) };
    if let Some(device) = loop_device_on(meta.dev(), meta.ino(), path) {
        return Err(busy(&device));
    }
    let file = File::options().read(true).write(true).open(path);
    let Ok(file) = file else { return Ok(()) };
    // A POSIX write lock meets the open-file-description locks of others (fcntl(2)).
    match rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Err(busy("a process that locked it")),
        _ => Ok(()),
    }
}

fn loop_device_on(dev: u64, ino: u64, path: &Path) -> Option<String> {
    let devices = fs::read_dir("/sys/block").ok()?;
    devices.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let backing = Path::new(backing.trim_end());
        let same =
            backing == path || fs::metadata(backing).is_ok_and(|meta| meta.dev() == dev && meta.ino() == ino);
        same.then_some(name)
    })
}
