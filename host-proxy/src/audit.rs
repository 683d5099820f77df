//! One line per decision, refusals too: in the log and, as JSON, in a file of its own that only
//! root reads. What is written down never stops what it is about.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use protocol::text::Name;
use protocol::{DiskSerial, ErrorCode, SnapshotId, VmUuid, WireError};
use serde::Serialize;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It was allowed and is done.
    Done,
    /// It was not allowed.
    Refused,
    /// It was allowed and failed.
    Failed,
}

impl Decision {
    /// Whether an error is a refusal or a failure.
    pub const fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Refused
            | ErrorCode::QuotaExceeded
            | ErrorCode::Locked
            | ErrorCode::DiskMismatch
            | ErrorCode::UnknownDisk
            | ErrorCode::NotFound
            | ErrorCode::RequestReused
            | ErrorCode::TooManySessions
            | ErrorCode::BadRequest => Self::Refused,
            _ => Self::Failed,
        }
    }
}

/// One decision.
#[derive(Debug)]
pub struct Event<'a> {
    /// What was asked: `prepare`, `conclude`, `delete`, `connect`, …
    pub verb: &'static str,
    /// Which machine, where it is known.
    pub vm: Option<&'a Name>,
    /// Its UUID.
    pub vm_uuid: Option<VmUuid>,
    /// How it came.
    pub peer: &'a str,
    /// Which disks it named.
    pub disks: Vec<DiskSerial>,
    /// Which snapshot it is about.
    pub snapshot: Option<SnapshotId>,
    /// What was decided.
    pub decision: Decision,
    /// Why not.
    pub error: Option<&'a WireError>,
    /// How long it took.
    pub took: Duration,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    verb: &'a str,
    vm: Option<&'a str>,
    vm_uuid: Option<String>,
    peer: &'a str,
    disks: Vec<&'a str>,
    snapshot: Option<String>,
    decision: Decision,
    code: Option<ErrorCode>,
    reason: Option<&'a str>,
    took_ms: u64,
}

/// The audit log.
pub struct Audit {
    path: PathBuf,
    file: Mutex<File>,
}

impl Audit {
    /// Opens `audit.log` in this folder, to append.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join("audit.log");
        let file = Mutex::new(append_to(&path)?);
        Ok(Self { path, file })
    }

    /// Writes one decision down.
    pub fn note(&self, event: &Event<'_>) {
        let line = Line {
            time: protocol::view::rfc3339(crate::service::now()),
            verb: event.verb,
            vm: event.vm.map(Name::as_str),
            vm_uuid: event.vm_uuid.map(|uuid| uuid.to_string()),
            peer: event.peer,
            disks: event.disks.iter().map(DiskSerial::as_str).collect(),
            snapshot: event.snapshot.map(|id| id.to_string()),
            decision: event.decision,
            code: event.error.map(|error| error.code),
            reason: event.error.map(|error| error.message.as_str()),
            took_ms: u64::try_from(event.took.as_millis()).unwrap_or(u64::MAX),
        };
        let mut json = serde_json::to_string(&line).expect("a line has no value that JSON lacks");
        tracing::info!(target: "audit", "{json}");
        json.push('\n');
        if let Err(error) = self.append(json.as_bytes()) {
            tracing::error!("write to {}: {error}", self.path.display());
        }
    }

    /// A log that was rotated away is followed to its new file.
    fn append(&self, line: &[u8]) -> io::Result<()> {
        let mut file = self.file.lock().expect("no holder of this lock panics");
        let ours = file.metadata().map(|meta| (meta.dev(), meta.ino()))?;
        let there = fs::metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        if there.ok() != Some(ours) {
            *file = append_to(&self.path)?;
        }
        // One write: lines of two writers never mix.
        file.write_all(line)
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line_and_a_rotated_log_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::open(folder.path()).unwrap();
        let error = WireError::new(ErrorCode::Refused, "no\nsecond line");
        let event = Event {
            verb: "delete",
            vm: None,
            vm_uuid: None,
            peer: "vsock:42:1023",
            disks: Vec::new(),
            snapshot: None,
            decision: Decision::of(error.code),
            error: Some(&error),
            took: Duration::from_millis(3),
        };
        audit.note(&event);
        let path = folder.path().join("audit.log");
        fs::rename(&path, folder.path().join("audit.log.1")).unwrap();
        audit.note(&event);
        for file in ["audit.log.1", "audit.log"] {
            let text = fs::read_to_string(folder.path().join(file)).unwrap();
            assert_eq!(text.lines().count(), 1, "{text}");
            let line: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(line["decision"], "refused");
            assert_eq!(line["peer"], "vsock:42:1023");
        }
    }
}
