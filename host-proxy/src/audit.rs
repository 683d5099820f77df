//! One line per decision, refusals too: in the log and, as JSON, in a file of its own that only
//! root reads. What is written down never stops what it is about. `read` shows it again.
//!
//! A guest can be refused as often as it likes, but not fill the host's disk with it: what goes beyond
//! [`REFUSALS_A_MINUTE`] is counted, and the next line that is written tells how many there were.

pub mod read;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use protocol::text::{Line as Text, Name};
use protocol::{DiskSerial, ErrorCode, SnapshotId, VmUuid, WireError};
use serde::{Deserialize, Serialize};

/// The file's name in the state folder.
pub const FILE: &str = "audit.log";
/// How many lines a minute one machine gets for what was refused or failed; all peers that are no
/// machine's share as many.
pub const REFUSALS_A_MINUTE: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// How a decision stands in the file. Fields are only added.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    verb: &'a str,
    vm: Option<&'a str>,
    vm_uuid: Option<String>,
    peer: Text,
    disks: Vec<&'a str>,
    snapshot: Option<String>,
    decision: Decision,
    code: Option<ErrorCode>,
    reason: Option<&'a str>,
    took_ms: u64,
    /// How many lines like this were left out since the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<u64>,
}

/// The audit log.
pub struct Audit {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    /// Whether the file does not end with a whole line.
    torn: bool,
    refusals: HashMap<Option<VmUuid>, Refusals>,
}

/// What one machine was refused.
struct Refusals {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Audit {
    /// Opens `audit.log` in this folder, to append.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE);
        let (file, torn) = append_to(&path)?;
        Ok(Self { path, state: Mutex::new(State { file, torn, refusals: HashMap::new() }) })
    }

    /// Writes one decision down.
    pub fn note(&self, event: &Event<'_>) {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let Some(left_out) = state.admit(event, Instant::now()) else { return };
        let line = Line {
            time: protocol::view::rfc3339(crate::service::now()),
            verb: event.verb,
            vm: event.vm.map(Name::as_str),
            vm_uuid: event.vm_uuid.map(|uuid| uuid.to_string()),
            peer: Text::lossy(event.peer),
            disks: event.disks.iter().map(DiskSerial::as_str).collect(),
            snapshot: event.snapshot.map(|id| id.to_string()),
            decision: event.decision,
            code: event.error.map(|error| error.code),
            reason: event.error.map(|error| error.message.as_str()),
            took_ms: u64::try_from(event.took.as_millis()).unwrap_or(u64::MAX),
            left_out: Some(left_out).filter(|count| *count > 0),
        };
        let mut json = serde_json::to_string(&line).expect("a line has no value that JSON lacks");
        tracing::info!(target: "audit", "{json}");
        json.push('\n');
        if let Err(error) = state.append(&self.path, &json) {
            tracing::error!("write to {}: {error}", self.path.display());
        }
    }
}

impl State {
    /// Whether this line is written, and how many like it were not since the last one.
    fn admit(&mut self, event: &Event<'_>, now: Instant) -> Option<u64> {
        if event.decision == Decision::Done {
            return Some(0);
        }
        let fresh = || Refusals { since: now, lines: 0, left_out: 0 };
        let refusals = self.refusals.entry(event.vm_uuid).or_insert_with(fresh);
        if now.duration_since(refusals.since) >= MINUTE {
            *refusals = Refusals { left_out: refusals.left_out, ..fresh() };
        }
        if refusals.lines == REFUSALS_A_MINUTE {
            refusals.left_out += 1;
            return None;
        }
        refusals.lines += 1;
        Some(std::mem::take(&mut refusals.left_out))
    }

    /// A log that was rotated away is followed to its new file.
    fn append(&mut self, path: &Path, line: &str) -> io::Result<()> {
        let ours = self.file.metadata().map(|meta| (meta.dev(), meta.ino()))?;
        let there = fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
        if there.ok() != Some(ours) {
            (self.file, self.torn) = append_to(path)?;
        }
        // One write: lines of two writers never mix. After one that stopped in the middle (no room)
        // a new line is begun, so that it spoils no other.
        let whole = if self.torn { format!("\n{line}") } else { line.to_owned() };
        let written = self.file.write_all(whole.as_bytes());
        self.torn = written.is_err();
        written
    }
}

/// The file, and whether its last line is torn.
fn append_to(path: &Path) -> io::Result<(File, bool)> {
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    let len = file.metadata()?.len();
    let mut last = [b'\n'];
    if len > 0 {
        file.read_exact_at(&mut last, len - 1)?;
    }
    Ok((file, last != *b"\n"))
}

#[cfg(test)]
mod tests;
