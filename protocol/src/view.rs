//! The JSON that both command lines print: one shape, whoever prints it. The wire's own form is
//! `record`'s; this one is for people's scripts and only ever grows.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::record::{SnapshotRecord, Timing, UnixMillis};

/// A snapshot as `--json` shows it.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the fields are named as docs/guide names them
pub struct SnapshotView<'a> {
    pub id: String,
    pub vm: &'a str,
    pub vm_uuid: String,
    pub request_id: String,
    pub created_at: String,
    pub consistency: &'static str,
    pub consistency_reason: &'a str,
    pub state: &'static str,
    pub labels: BTreeMap<&'a str, &'a str>,
    pub note: &'a str,
    pub mounts: Vec<MountView<'a>>,
    pub disks: Vec<DiskView<'a>>,
    pub timing: Timing,
    pub expires_at: Option<String>,
    pub locked_until: Option<String>,
}

/// A file system on the snapshot's disks.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct MountView<'a> {
    pub path: &'a str,
    pub fstype: &'a str,
}

/// A disk of the snapshot.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct DiskView<'a> {
    pub disk: &'a str,
    pub driver: &'a str,
    pub handle: &'a str,
    pub size_bytes: u64,
}

impl<'a> From<&'a SnapshotRecord> for SnapshotView<'a> {
    fn from(record: &'a SnapshotRecord) -> Self {
        Self {
            id: record.id.to_string(),
            vm: record.vm.as_str(),
            vm_uuid: record.vm_uuid.to_string(),
            request_id: record.request.to_string(),
            created_at: rfc3339(record.created_at),
            consistency: record.consistency.as_str(),
            consistency_reason: record.consistency_reason.as_str(),
            state: record.state.as_str(),
            labels: record.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            note: record.note.as_str(),
            mounts: record
                .mounts
                .iter()
                .map(|mount| MountView { path: mount.path.as_str(), fstype: mount.fs_type.as_str() })
                .collect(),
            disks: record
                .disks
                .iter()
                .map(|disk| DiskView {
                    disk: disk.serial.as_str(),
                    driver: disk.driver.as_str(),
                    handle: disk.handle.as_str(),
                    size_bytes: disk.size_bytes,
                })
                .collect(),
            timing: record.timing,
            expires_at: record.expires_at.map(rfc3339),
            locked_until: record.locked_until.map(rfc3339),
        }
    }
}

/// A moment as RFC 3339 has it, in UTC, to the millisecond.
pub fn rfc3339(moment: UnixMillis) -> String {
    i64::try_from(moment.0)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| "out of range".to_owned(), |at| format!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_printed_in_utc_to_the_millisecond() {
        assert_eq!(rfc3339(UnixMillis(1_795_507_200_123)), "2026-11-24T08:00:00.123Z");
        assert_eq!(rfc3339(UnixMillis(u64::MAX)), "out of range");
    }
}
