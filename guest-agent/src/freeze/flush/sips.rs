//! Much that is dirty is written back in sips, before `syncfs` writes the rest.
//!
//! `syncfs` queues all of it at the disk at once, and an application's own small writes wait behind:
//! with 200 MiB, for as long as the freeze that was to be short. Here the next few MiB follow when the
//! disk is nearly done with those before; an application waits for one sip at most.
//!
//! Only for files that are open: nobody tells which closed file has dirty pages. Only started, never
//! waited for by `sync_file_range`: that would take the file's error from the process whose descriptor
//! it is (Linux `mm/filemap.c`, `file_check_and_advance_wb_err`). Errors are for `syncfs` to tell.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::libc;

use super::open_files::{self, OpenFile};

/// Less dirty memory than this, `syncfs` writes back in no time.
const MUCH_KIB: u64 = 16 * 1024;
/// What is queued at the disk at once, about; a disk writes it in a few milliseconds.
const SIP_BYTES: u64 = 4 << 20;
/// The next sip follows when no more writes than this are in flight.
const NEARLY_DONE: u64 = 2;
/// How often is looked.
const PAUSE: Duration = Duration::from_micros(500);
/// More open files than these are left to `syncfs`.
const MOST_FILES: usize = 4096;

/// Writes back what is open on these file systems, if much is dirty.
pub(super) fn write_back(file_systems: &[&File], deadline: Instant) {
    if dirty_kib().is_none_or(|dirty| dirty < MUCH_KIB) {
        return;
    }
    let devices: HashSet<u64> =
        file_systems.iter().filter_map(|file| Some(file.metadata().ok()?.dev())).collect();
    for file in open_files::of(&devices, MOST_FILES) {
        if Instant::now() >= deadline {
            return;
        }
        write_back_file(&file, deadline);
    }
}

fn write_back_file(file: &OpenFile, deadline: Instant) {
    let disk = Disk::of(file.device);
    let mut offset = 0;
    while offset < file.size_bytes && Instant::now() < deadline {
        if !start(file, offset) {
            return;
        }
        offset += SIP_BYTES;
        while disk.in_flight().is_some_and(|writes| writes > NEARLY_DONE) && Instant::now() < deadline {
            sleep(PAUSE);
        }
    }
}

/// `false` where it makes no sense to go on.
fn start(file: &OpenFile, offset: u64) -> bool {
    let (Ok(offset), Ok(length)) = (offset.try_into(), SIP_BYTES.try_into()) else { return false };
    // SAFETY: it takes numbers only; the descriptor is open. Neither rustix nor nix has it.
    unsafe { libc::sync_file_range(file.fd.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) == 0 }
}

/// What is to be written back by all file systems together, in KiB.
fn dirty_kib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Dirty:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// The disk or partition of a file system.
struct Disk(Option<String>);

impl Disk {
    /// btrfs gives a number that is no disk's: it is paced by nothing but the calls themselves.
    fn of(device: u64) -> Self {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let path = format!("/sys/dev/block/{major}:{minor}/inflight");
        Self(fs::exists(&path).unwrap_or(false).then_some(path))
    }

    /// Writes that the disk has not finished: the second number (Linux `Documentation/block/stat.rst`).
    fn in_flight(&self) -> Option<u64> {
        fs::read_to_string(self.0.as_ref()?).ok()?.split_whitespace().nth(1)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_tells_how_much_is_dirty() {
        assert!(dirty_kib().is_some());
    }

    #[test]
    fn a_number_that_is_no_disk_has_nothing_in_flight() {
        assert_eq!(Disk::of(0).in_flight(), None);
    }
}
