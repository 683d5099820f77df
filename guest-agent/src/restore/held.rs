//! The disks, each open for this program alone: while that lasts the kernel refuses mounts, swap and mappings of them and
//! of their partitions (open(2), O_EXCL on block devices).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use protocol::{ErrorCode, WireError};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

use crate::topology::capture::{self, Capture};
use crate::topology::mountinfo;
use crate::topology::select::Disk;

/// Linux `include/uapi/linux/fs.h`: `_IO(0x12, 97)`.
const BLKFLSBUF: Opcode = opcode::none(0x12, 97);
/// Linux `include/uapi/linux/fs.h`: `_IO(0x12, 95)`.
const BLKRRPART: Opcode = opcode::none(0x12, 95);
/// A file system lets its disk go a moment after it was unmounted; udev looks at what was closed.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);

/// The disks, held.
pub(super) struct Held(Vec<Device>);

struct Device {
    name: String,
    file: File,
    is_partitioned: bool,
}

impl Held {
    /// Takes them, and writes back what is cached of them.
    pub(super) fn hold(capture: &Capture, disks: &[Disk]) -> Result<Self, WireError> {
        let mut held = Vec::with_capacity(disks.len());
        for disk in disks {
            let file = open(capture, &disk.name)?;
            let written = file.sync_all().and_then(|()| Ok(drop_cache(&file)?));
            written.map_err(|error| {
                let text = format!("write back what is cached of /dev/{}: {error}", disk.name);
                WireError::new(ErrorCode::Internal, text).hint("dmesg says why; run it as root")
            })?;
            let is_of = |of: &String| *of == disk.name;
            let is_partitioned =
                capture.devices.iter().any(|one| one.partition_of.as_ref().is_some_and(is_of));
            held.push(Device { name: disk.name.clone(), file, is_partitioned });
        }
        Ok(Self(held))
    }

    /// Drops what the kernel cached of the bytes before, reads the partition tables again, and lets go. What did not work.
    pub(super) fn forget_what_was(self) -> Vec<String> {
        let mut notes = Vec::new();
        for Device { name, file, is_partitioned } in &self.0 {
            if let Err(error) = drop_cache(file) {
                notes.push(format!("/dev/{name}: this kernel may still show old bytes of it: {error}"));
            }
            // One that had no partitions may have some now.
            if let Err(error) = read_partitions(file)
                && *is_partitioned
            {
                notes.push(format!(
                    "/dev/{name}: its partition table was not read again: {error}; partprobe /dev/{name}"
                ));
            }
        }
        notes
    }
}

fn open(capture: &Capture, name: &str) -> Result<File, WireError> {
    let path = format!("/dev/{name}");
    let alone = i32::try_from(OFlags::EXCL.bits()).expect("a flag");
    let deadline = Instant::now() + RELEASE_LIMIT;
    loop {
        // Open to write: udev looks at the disk anew when it is closed (udev's watch).
        let opened = OpenOptions::new().read(true).write(true).custom_flags(alone).open(&path);
        match opened {
            Ok(file) => return Ok(file),
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                if Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                let who = elsewhere(capture, name);
                let who = if who.is_empty() { "not seen from here".to_owned() } else { who.join(", ") };
                return Err(WireError::new(
                    ErrorCode::Busy,
                    format!("nothing was restored: something else holds {path}: {who}"),
                )
                .hint("a container or a service with mounts of its own? stop it; lsblk shows what is made of it"));
            }
            Err(error) => {
                return Err(WireError::new(ErrorCode::Internal, format!("hold {path}: {error}"))
                    .hint("run it as root: sudo hostsnap …"));
            }
        }
    }
}

fn drop_cache(disk: &File) -> rustix::io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument (block/ioctl.c, blkdev_flushbuf); the descriptor is open.
    unsafe { ioctl(disk, NoArg::<BLKFLSBUF>::new()) }
}

fn read_partitions(disk: &File) -> rustix::io::Result<()> {
    // SAFETY: BLKRRPART takes no argument (block/ioctl.c, blkdev_common_ioctl); the descriptor is open.
    unsafe { ioctl(disk, NoArg::<BLKRRPART>::new()) }
}

/// Processes in whose own namespace the disk, or a partition of it, is mounted.
fn elsewhere(capture: &Capture, name: &str) -> Vec<String> {
    let is_of = |one: &&capture::Device| one.name == name || one.partition_of.as_deref() == Some(name);
    let devs: Vec<_> = capture.devices.iter().filter(is_of).map(|one| one.dev.clone()).collect();
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen = vec![space("self")];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().into_string() else { continue };
        let namespace = if pid.parse::<u32>().is_ok() { space(&pid) } else { None };
        if namespace.is_none() || seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        let table = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if mountinfo::parse(&table).iter().any(|mount| devs.contains(&mount.dev.to_string())) {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            found.push(format!("{} (pid {pid}) has it mounted in a namespace of its own", comm.trim_end()));
        }
    }
    found
}
