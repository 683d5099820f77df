//! Which disks of this machine a restore is about: named by serial, by a path on them, or all of the snapshot.

use std::path::{Path, PathBuf};

use protocol::{DiskSerial, ErrorCode, SnapshotRecord, WireError};

use crate::topology::TopologyError;
use crate::topology::capture::Capture;
use crate::topology::select::{self, Disk, Wish};

/// Each once, in the order in which they were named.
pub(super) fn disks(
    capture: &Capture,
    record: &SnapshotRecord,
    what: &[PathBuf],
) -> Result<Vec<Disk>, WireError> {
    let mut disks = Vec::new();
    if what.is_empty() {
        for disk in &record.disks {
            disks.push(with_serial(capture, &disk.serial)?);
        }
    }
    for what in what {
        if what.is_absolute() {
            disks.extend(beneath(capture, what)?);
        } else {
            let serial = what.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
                WireError::new(ErrorCode::BadRequest, format!("{} is no serial and no path", what.display()))
                    .hint("name a disk by its serial (hostsnap disks), or a path that begins with /")
            })?;
            disks.push(with_serial(capture, &serial)?);
        }
    }
    let mut each: Vec<Disk> = Vec::with_capacity(disks.len());
    for disk in disks {
        if !each.iter().any(|known| known.name == disk.name) {
            each.push(disk);
        }
    }
    match each.iter().find(|disk| !record.disks.iter().any(|one| one.serial.same_disk(&disk.serial))) {
        None => Ok(each),
        Some(disk) => {
            let there: Vec<_> = record.disks.iter().map(|disk| disk.serial.as_str()).collect();
            let text = format!(
                "the snapshot {} does not hold the disk {} ({}); it has: {}",
                record.id,
                disk.name,
                disk.serial,
                there.join(", ")
            );
            Err(WireError::new(ErrorCode::UnknownDisk, text).hint("hostsnap list --disk shows which do"))
        }
    }
}

fn with_serial(capture: &Capture, serial: &DiskSerial) -> Result<Disk, WireError> {
    let is_it = |text: &String| text.parse::<DiskSerial>().is_ok_and(|one| one.same_disk(serial));
    let all = select::overview(capture);
    let mut of_it = all.iter().filter(|disk| disk.serial.as_ref().is_some_and(is_it));
    match (of_it.next(), of_it.next()) {
        (Some(disk), None) => {
            Ok(Disk { name: disk.name.clone(), serial: serial.clone(), size_bytes: disk.size_bytes })
        }
        (Some(first), Some(second)) => Err(TopologyError::AmbiguousSerial {
            first: first.name.clone(),
            second: second.name.clone(),
            serial: serial.to_string(),
        }
        .into()),
        (None, _) => Err(WireError::new(
            ErrorCode::UnknownDisk,
            format!("this machine has no disk with the serial {serial}"),
        )
        .hint("hostsnap disks shows those there are")),
    }
}

fn beneath(capture: &Capture, path: &Path) -> Result<Vec<Disk>, WireError> {
    let canonical = path
        .canonicalize()
        .map_err(|error| TopologyError::Path { path: path.to_owned(), why: error.to_string() })?;
    Ok(select::select(capture, &Wish::Paths(vec![canonical]))?.disks)
}
