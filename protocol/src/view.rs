//! The JSON that both command lines print: one shape, whoever prints it. The wire's own form is
//! `record`'s; this one is for people's scripts and only ever grows.

mod restore;

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

pub use restore::{RestoreView, RestoredView};

use crate::record::{SnapshotRecord, Timing, UnixMillis};
use crate::{ErrorCode, WireError};

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

/// An error as `--json` shows it, on stderr.
#[derive(Debug, Serialize)]
pub struct ErrorView<'a> {
    error: ErrorBody<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorBody<'a> {
    code: ErrorCode,
    message: &'a str,
    hint: &'a str,
    exit_code: u8,
}

impl<'a> ErrorView<'a> {
    /// What kind, what happened, what to do.
    pub const fn new(code: ErrorCode, message: &'a str, hint: &'a str) -> Self {
        Self { error: ErrorBody { code, message, hint, exit_code: code.exit_code() } }
    }
}

impl<'a> From<&'a WireError> for ErrorView<'a> {
    fn from(error: &'a WireError) -> Self {
        Self::new(error.code, error.message.as_str(), error.hint.as_str())
    }
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

/// A number of bytes for people, in binary units: `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let exponent = usize::try_from(bytes.ilog2() / 10).expect("at most 6");
    #[allow(clippy::cast_precision_loss)] // one decimal is shown
    let value = bytes as f64 / (1u64 << (10 * exponent)) as f64;
    format!("{value:.1} {}", UNITS[exponent - 1])
}

/// What a storage can do, for people.
pub fn abilities(words: &[impl AsRef<str>]) -> String {
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    if words.is_empty() { "nothing more".to_owned() } else { words.join(", ") }
}

/// One snapshot for people, a line for each fact.
pub fn block(record: &SnapshotRecord) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "{name:<12} {value}").expect("writing to a String");
    };
    line("snapshot", &record.id);
    line("machine", &record.vm);
    line("created", &rfc3339(record.created_at));
    line("state", &record.state.as_str());
    line("consistency", &format_args!("{}: {}", record.consistency, record.consistency_reason));
    for disk in &record.disks {
        line(
            "disk",
            &format_args!("{}  {}  {}  {}", disk.serial, size(disk.size_bytes), disk.driver, disk.handle),
        );
    }
    for mount in &record.mounts {
        line("file system", &format_args!("{}  {}", mount.path, mount.fs_type));
    }
    for (key, value) in record.labels.iter() {
        line("label", &format_args!("{key}={value}"));
    }
    if !record.note.as_str().is_empty() {
        line("note", &record.note);
    }
    if let Some(end) = record.expires_at {
        line("expires", &rfc3339(end));
    }
    if let Some(until) = record.locked_until {
        line("locked until", &rfc3339(until));
    }
    #[allow(clippy::cast_precision_loss)] // shown in milliseconds with one decimal
    let ms = |us: u64| us as f64 / 1000.0;
    let Timing { freeze_us, cut_us, thaw_us, stall_us, .. } = record.timing;
    if stall_us > 0 {
        let parts = format_args!(
            "{:.1} ms (freeze {:.1}, cut {:.1}, thaw {:.1})",
            ms(stall_us),
            ms(freeze_us),
            ms(cut_us),
            ms(thaw_us)
        );
        line("stall", &parts);
    }
    text
}

/// Snapshots for people, a line each; identifiers are cut where they stay unique.
pub fn table(records: &[SnapshotRecord]) -> String {
    let ids: Vec<String> = records.iter().map(|record| record.id.as_uuid().simple().to_string()).collect();
    let length = (8..=32)
        .find(|length| {
            let cut: std::collections::BTreeSet<_> = ids.iter().map(|id| &id[..*length]).collect();
            cut.len() == ids.len()
        })
        .unwrap_or(32);
    let mut text = format!(
        "{:<length$}  {:<24}  {:<12}  {:<11}  {:<8}  {}\n",
        "ID", "CREATED", "MACHINE", "CONSISTENCY", "STATE", "DISKS"
    );
    for (record, id) in records.iter().zip(&ids) {
        let disks: Vec<_> = record.disks.iter().map(|disk| disk.serial.as_str()).collect();
        writeln!(
            text,
            "{:<length$}  {:<24}  {:<12}  {:<11}  {:<8}  {}",
            &id[..length],
            rfc3339(record.created_at),
            record.vm,
            record.consistency,
            record.state.as_str(),
            disks.join(" ")
        )
        .expect("writing to a String");
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_shown_in_binary_units() {
        for (bytes, shown) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (u64::MAX, "16.0 EiB")] {
            assert_eq!(size(bytes), shown);
        }
    }

    use super::*;

    #[test]
    fn moments_are_printed_in_utc_to_the_millisecond() {
        assert_eq!(rfc3339(UnixMillis(1_795_507_200_123)), "2026-11-24T08:00:00.123Z");
        assert_eq!(rfc3339(UnixMillis(u64::MAX)), "out of range");
    }
}
