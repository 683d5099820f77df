//! A snapshot's disks in this machine: asks the host to plug them in or to take them out, and waits
//! until the kernel has them. What is on them is others' business.
//!
//! The host names each disk by a serial that is made from the snapshot; the guest finds it by that
//! serial in /sys, whatever the kernel calls it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::attach::{Access, Attach, Attachment, DetachOutcome};
use protocol::{DiskSerial, ErrorCode, SnapshotId, WireError};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::client::Client;
use crate::topology::capture;

/// How long the kernel may take for a disk that the host has plugged in. PCIe hot plug waits five
/// seconds for a second press of the attention button (PCIe 6.7.1.5).
const APPEAR_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A disk of a snapshot that is in this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttachedDisk {
    /// The disk that the snapshot is of.
    pub disk: DiskSerial,
    /// The serial of the attached disk.
    pub serial: DiskSerial,
    /// Its device.
    pub path: PathBuf,
    /// Whether it may be written to.
    pub access: Access,
    /// In bytes.
    pub size_bytes: u64,
}

/// Attaches disks of a snapshot, all if none is named, and waits until they are there. What is
/// attached already is given again.
///
/// # Errors
/// The host's; `TimedOut` when the kernel does not take a disk: it is given back then.
pub fn attach(
    client: &mut Client,
    snapshot: SnapshotId,
    disks: &[DiskSerial],
    access: Access,
) -> Result<Vec<AttachedDisk>, WireError> {
    let disks = disks.to_vec().try_into().map_err(|error: protocol::bounded::TooMany| {
        WireError::new(ErrorCode::BadRequest, format!("disks to attach: {error}"))
    })?;
    let before = client.attachments()?;
    let attached = client.attach(Attach { id: snapshot, disks, access })?;
    let deadline = Instant::now() + APPEAR_LIMIT;
    let appeared: Result<Vec<_>, _> =
        attached.iter().map(|attachment| wait_for(attachment, deadline)).collect();
    appeared.map_err(|error| {
        // What somebody uses already stays.
        if before.iter().any(|attachment| attachment.snapshot == snapshot) {
            return error;
        }
        match client.detach(snapshot) {
            Ok(_) => error,
            Err(undo) => {
                let text = format!("{}; and giving it back failed too: {undo}", error.message);
                WireError::new(error.code, text).hint(format!("hostsnap detach {snapshot}"))
            }
        }
    })
}

/// Gives back everything that is attached of a snapshot.
///
/// # Errors
/// `Busy` while something in this machine uses it; the host's.
pub fn detach(client: &mut Client, snapshot: SnapshotId) -> Result<DetachOutcome, WireError> {
    let attached = client.attachments()?;
    for attachment in attached.iter().filter(|attachment| attachment.snapshot == snapshot) {
        if let Some(path) = device_of(&attachment.serial)?
            && is_held(&path)
        {
            let path = path.display();
            return Err(WireError::new(
                ErrorCode::Busy,
                format!("{path}, attached from the snapshot {snapshot}, is in use"),
            )
            .hint(format!("unmount what is mounted from it; lsblk {path} shows what uses it")));
        }
    }
    Ok(client.detach(snapshot)?)
}

/// What the host has attached, and its device; none if this machine's kernel does not have it.
///
/// # Errors
/// When /sys can't be read.
pub fn here_or_not(attachment: &Attachment) -> Result<(Attachment, Option<PathBuf>), WireError> {
    Ok((attachment.clone(), device_of(&attachment.serial)?))
}

fn wait_for(attachment: &Attachment, deadline: Instant) -> Result<AttachedDisk, WireError> {
    loop {
        if let Some(path) = device_of(&attachment.serial)? {
            let Attachment { disk, serial, access, size_bytes, .. } = attachment.clone();
            return Ok(AttachedDisk { disk, serial, path, access, size_bytes });
        }
        if Instant::now() >= deadline {
            return Err(WireError::new(
                ErrorCode::TimedOut,
                format!(
                    "the host plugged {} in, but this kernel shows no such disk after {} s",
                    attachment.serial,
                    APPEAR_LIMIT.as_secs()
                ),
            )
            .hint("dmesg says why; it needs PCI hot plug (acpiphp, pciehp) and virtio_blk or virtio_scsi"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The device with this serial, once its node is in /dev.
fn device_of(serial: &DiskSerial) -> Result<Option<PathBuf>, WireError> {
    let name = capture::disk_with_serial(serial)?;
    Ok(name.map(|name| Path::new("/dev").join(name)).filter(|path| path.exists()))
}

/// Whether a mount, a mapping or swap holds the device or a partition of it: an exclusive open fails
/// then (open(2), O_EXCL on block devices). It is given back at once.
fn is_held(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    matches!(rustix::fs::open(path, flags, Mode::empty()), Err(Errno::BUSY))
}
