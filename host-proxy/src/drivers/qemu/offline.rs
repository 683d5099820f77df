//! A qcow2 image that no QEMU has open is given the bytes of a snapshot by `qemu-img`, in place: the file stays, with what
//! it is made of beside the bytes, such as its backing file, its options and its internal snapshots.
//!
//! Whoever has the image open is met twice: its locks are looked at here, and `qemu-img` takes them, so that a QEMU that is
//! started meanwhile does not get the image.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::drivers::common::tool_failed;
use crate::drivers::restore::{begun, lock, same_size};
use crate::drivers::{DriverError, Kind, Progress, Volume, folder};
use crate::exec::{ExecError, Tool};

/// How long it may take to look at an image.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// `qemu-img` tells each hundredth of its way (`qemu-img.c`, `qemu_progress_init`). How long it may take for one, beside what a
/// slow storage needs for its bytes.
const SILENCE: Duration = Duration::from_secs(300);
/// What is slow, in bytes a second.
const SLOW: u64 = 1 << 20;

/// Proves, without changing anything, that the image could be given these bytes; how many there are.
pub(super) fn fits(snapshot: &Path, volume: &Volume) -> Result<u64, DriverError> {
    let io = |path: &Path, error| DriverError::io(format!("look at {}", path.display()), error);
    let old = fs::metadata(snapshot).map_err(|error| io(snapshot, error))?;
    let image = fs::metadata(volume.path()?).map_err(|error| io(snapshot, error))?;
    same_size(volume, old.len(), size_bytes(volume)?)?;
    if image.is_file() {
        let free_bytes = folder::free_bytes(volume.path()?)?;
        room(volume, old.blocks() * 512, image.blocks() * 512, free_bytes)?;
    }
    Ok(old.len())
}

/// An image holds all data of the snapshot afterwards. What of it had other places before is not known, so more may be needed.
fn room(volume: &Volume, data_bytes: u64, has_bytes: u64, free_bytes: u64) -> Result<(), DriverError> {
    let needed = data_bytes.saturating_sub(has_bytes);
    if needed <= free_bytes {
        return Ok(());
    }
    let text =
        format!("restore {}: it grows by {needed} bytes at least, and {free_bytes} are free", volume.source);
    Err(DriverError::new(Kind::NoSpace, text))
}

/// How large its guest sees it. `Unsupported` where it, or what it stands on, can't be opened.
fn size_bytes(volume: &Volume) -> Result<u64, DriverError> {
    let doing = || format!("ask qemu-img what {} is", volume.source);
    let malformed = |why: &str| DriverError::new(Kind::Failed, format!("{}: {why}", doing()));
    let tool = qemu_img(volume)?;
    let mut command = tool.command();
    command
        .args(["info", "-U", "-f", "qcow2", "--output=json", "--backing-chain"])
        .arg(absolute(volume.path()?)?);
    let told = tool.run(&mut command, LOOK_LIMIT).map_err(|error| DriverError {
        told: Some("the host can't open its image, or what that stands on"),
        ..tool_failed(doing(), error, |_| Kind::Unsupported)
    })?;
    let chain: Value = serde_json::from_str(&told).map_err(|error| malformed(&error.to_string()))?;
    let images = chain.as_array().map(Vec::as_slice).unwrap_or_default();
    if images.iter().any(|image| image["encrypted"] == true) {
        let told = "its image is encrypted, and only its QEMU has the key";
        return Err(DriverError::not_restored(volume, told, ""));
    }
    let size_bytes = images.first().and_then(|image| image["virtual-size"].as_u64());
    size_bytes.ok_or_else(|| malformed("no virtual-size"))
}

/// Opens the image. `Busy` while somebody else has it open; its locks are looked at only, since `qemu-img` takes them.
pub(super) fn open(volume: &Volume) -> Result<File, DriverError> {
    let path = volume.path()?;
    let open = || {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        opened.map_err(|error| DriverError::io(format!("open {}", volume.source), error))
    };
    lock(&open()?, volume)?;
    open()
}

/// Gives the image these bytes. `Busy` while somebody has it open.
pub(super) fn restore(
    snapshot: &Path,
    volume: &Volume,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DriverError> {
    let doing = format!("restore {} with qemu-img", volume.source);
    let total_bytes = fits(snapshot, volume)?;
    let path = volume.path()?;
    // Opened before: what can't be written back is told to whoever had it open then.
    let image = open(volume)?;
    let tool = qemu_img(volume)?;
    let mut command = tool.command();
    command.args(["convert", "-n", "-p", "-t", "writeback", "-f", "raw", "-O", "qcow2"]);
    command.arg(absolute(snapshot)?).arg(absolute(path)?);
    let mut told = Told::default();
    progress(Progress { done_bytes: 0, total_bytes });
    let silence = SILENCE + Duration::from_secs(total_bytes / 100 / SLOW);
    let ran = tool.run_while_it_tells(&mut command, silence, &mut |bytes| {
        if let Some(hundredths) = told.hear(bytes) {
            progress(Progress { done_bytes: Progress::share(total_bytes, hundredths, 10_000), total_bytes });
        }
    });
    ran.map_err(|error| {
        let was_kept_away = told.most == 0 && is_locked(&error);
        let kind = if was_kept_away { Kind::Busy } else { Kind::Failed };
        DriverError { kind, ..tool_failed(doing.as_str(), error, |_| kind) }
    })?;
    image.sync_all().map_err(|error| begun(&doing, error))?;
    progress(Progress { done_bytes: total_bytes, total_bytes });
    Ok(())
}

/// Whether a QEMU came first: said when the image is opened, before anything is written (`block/file-posix.c`,
/// `raw_check_lock_bytes`).
fn is_locked(error: &ExecError) -> bool {
    let ExecError::Failed { stderr, .. } = error else { return false };
    stderr.contains("Failed to get") && stderr.contains("lock")
}

/// The program.
pub(super) fn qemu_img(volume: &Volume) -> Result<Tool, DriverError> {
    Tool::find("qemu-img").map_err(|error| {
        tool_failed(format!("restore {} (install qemu-utils)", volume.source), error, |_| Kind::Unsupported)
    })
}

/// What begins with a slash is taken for a path, whatever else is in it (QEMU `block.c`, `path_has_protocol`).
fn absolute(path: &Path) -> Result<PathBuf, DriverError> {
    std::path::absolute(path).map_err(|error| DriverError::io(format!("find {}", path.display()), error))
}

/// How far `qemu-img` said that it is: `    (12.34/100%)` and a carriage return, again and again.
#[derive(Default)]
struct Told {
    /// What may be the beginning of such a word.
    rest: String,
    /// The most that it said, in hundredths of a percent.
    most: u64,
}

impl Told {
    /// How far it is by now, if it says more than before.
    fn hear(&mut self, bytes: &[u8]) -> Option<u64> {
        self.rest.push_str(&String::from_utf8_lossy(bytes));
        let (whole, rest) = self.rest.rsplit_once('\r')?;
        let last = whole.rsplit('(').next().and_then(|word| word.trim_end().strip_suffix("/100%)"));
        let hundredths = last.and_then(|percent| percent.replace('.', "").parse().ok());
        self.rest = rest.to_owned();
        let further = hundredths.filter(|hundredths| *hundredths > self.most)?;
        self.most = further;
        Some(further)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is_is_read_from_what_it_prints_in_whatever_pieces() {
        let mut told = Told::default();
        let heard: Vec<_> =
            ["    (0.00/100%)\r", "    (1.0", "1/100%)\r    (2.02/100%)\r  ", "  (2.02/100%)\r", "x\r"]
                .iter()
                .map(|piece| told.hear(piece.as_bytes()))
                .collect();
        assert_eq!(heard, [None, None, Some(202), None, None]);
        assert_eq!(told.hear(b"    (100.00/100%)\r\n"), Some(10_000));
    }

    #[test]
    fn an_image_that_surely_grows_by_more_than_there_is_is_refused() {
        let volume = crate::drivers::restore::tests::volume(Path::new("/image"));
        assert!(room(&volume, 10, 4, 6).is_ok());
        assert!(room(&volume, 4, 10, 0).is_ok());
        assert_eq!(room(&volume, 10, 4, 5).unwrap_err().kind, Kind::NoSpace);
    }
}
