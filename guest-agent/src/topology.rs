//! From paths to virtual disks: path → mount → block stack → disks, and the file systems on those
//! disks in the order in which they must be frozen.
//!
//! | module | idea |
//! |---|---|
//! | [`capture`] | what /proc and /sys say, as one value; the only part that reads the system |
//! | [`mountinfo`] | `/proc/self/mountinfo`, parsed |
//! | [`serial`] | a disk's serial, from what virtio-blk, SCSI and NVMe show |
//! | [`stack`] | partitions, LVM, LUKS, md, loop: down to the disks |
//! | [`select`] | which disks and file systems a request is about, and what can't be covered |
//!
//! Everything but `capture::live` is pure, and tested on captures of real guests.

pub mod capture;
pub mod mountinfo;
pub mod select;
pub mod serial;
pub mod stack;

use std::path::PathBuf;

use protocol::{ErrorCode, WireError};

/// Why a request can't be covered. Nothing was sent and nothing frozen when it is found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The system's own tables could not be read.
    #[error("read {what}: {why}")]
    Read {
        /// Which file.
        what: String,
        /// Why.
        why: String,
    },
    /// There is no such path.
    #[error("{}: {why}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The path is on no disk.
    #[error("{} is on {fs_type}, {why}", path.display())]
    NotOnDisk {
        /// The path.
        path: PathBuf,
        /// The kind of file system.
        fs_type: String,
        /// What that means and what to do.
        why: &'static str,
    },
    /// The block device beneath is unknown to the kernel's tables.
    #[error("{}: its block device {device} is not in /sys/class/block", path.display())]
    UnknownDevice {
        /// The path.
        path: PathBuf,
        /// The device, by number or by name.
        device: String,
    },
    /// The disk can't be named to the host.
    #[error(
        "the disk {disk} has no serial, so the host can't know it; the host's administrator gives it \
         one (libvirt: <serial>data</serial> in its <disk>; QEMU: -device virtio-blk-pci,serial=data)"
    )]
    NoSerial {
        /// The disk's name in the guest.
        disk: String,
    },
    /// Two disks have one serial.
    #[error(
        "the disks {first} and {second} both have the serial {serial}: the host could not tell them apart"
    )]
    AmbiguousSerial {
        /// One disk.
        first: String,
        /// The other.
        second: String,
        /// Their serial.
        serial: String,
    },
    /// A file system on the disk can't be reached to freeze it.
    #[error(
        "{} is hidden under another mount, so it can't be frozen; unmount what covers it",
        mount_point.display()
    )]
    Hidden {
        /// Where it is mounted.
        mount_point: PathBuf,
    },
    /// There is no disk at all.
    #[error("no disk of this machine has a mounted file system and a serial")]
    NoDisks,
}

impl TopologyError {
    /// What kind of error a user sees.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Read { .. } => ErrorCode::Internal,
            Self::Path { .. } | Self::NotOnDisk { .. } => ErrorCode::BadRequest,
            Self::UnknownDevice { .. } | Self::NoDisks => ErrorCode::UnknownDisk,
            Self::NoSerial { .. } | Self::AmbiguousSerial { .. } => ErrorCode::Unsupported,
            Self::Hidden { .. } => ErrorCode::NotFreezable,
        }
    }

    /// What to do, where the text does not say it.
    const fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "hostsnap disks --capture shows what could be read",
            Self::Path { .. } | Self::UnknownDevice { .. } | Self::NoDisks => {
                "hostsnap disks shows this machine's disks and what is mounted on them"
            }
            Self::AmbiguousSerial { .. } => {
                "the host's administrator gives each disk a serial of its own; virtio carries the first 20 bytes"
            }
            Self::NotOnDisk { .. } | Self::NoSerial { .. } | Self::Hidden { .. } => "",
        }
    }
}

impl From<TopologyError> for WireError {
    fn from(error: TopologyError) -> Self {
        Self::new(error.code(), error.to_string()).hint(error.hint())
    }
}
