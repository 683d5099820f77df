//! What the administrator may have served to a backup tool: one disk of a whole snapshot.

use protocol::record::{SnapshotRecord, State};
use protocol::{DiskSerial, ErrorCode, WireError};

use super::{Allowed, Compare, compare_as_admin};

/// This disk of this snapshot may be read by whoever the administrator lets.
#[derive(Debug, Clone)]
pub struct Export {
    /// The snapshot.
    pub record: SnapshotRecord,
    /// The disk's place in the record.
    pub index: usize,
    /// With what changed on it since another snapshot.
    pub since: Option<Allowed<Compare>>,
}

/// Decides on an export. Without a name it is of the one disk that there is.
pub fn export_as_admin(
    record: &SnapshotRecord,
    disk: Option<&DiskSerial>,
    since: Option<&SnapshotRecord>,
) -> Result<Allowed<Export>, WireError> {
    let id = record.id;
    if record.state != State::Ready {
        return Err(WireError::new(
            ErrorCode::Busy,
            format!("the snapshot {id} is not ready but {}", record.state.as_str()),
        )
        .hint("hostsnapd list shows which are ready"));
    }
    let serials = || record.disks.iter().map(|disk| disk.serial.as_str()).collect::<Vec<_>>().join(", ");
    let index = match disk {
        Some(wanted) => record.disks.iter().position(|disk| disk.serial == *wanted).ok_or_else(|| {
            WireError::new(ErrorCode::NotFound, format!("no disk {wanted} is in {id}"))
                .hint(format!("it has: {}", serials()))
        })?,
        None if record.disks.len() == 1 => 0,
        None => {
            return Err(WireError::new(
                ErrorCode::BadRequest,
                format!("{id} has {} disks, and one is exported at a time", record.disks.len()),
            )
            .hint(format!("name one: {}", serials())));
        }
    };
    let since = since.map(|since| compare_as_admin(since, record)).transpose()?;
    Ok(Allowed(Export { record: record.clone(), index, since }))
}
