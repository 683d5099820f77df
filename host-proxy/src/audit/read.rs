//! The audit log read again: for `hostsnapd audit`. It needs no running service.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use protocol::DiskSerial;
use protocol::text::{Line as Text, Name};
use serde::{Deserialize, Serialize};

use super::{Decision, FILE};

/// A line that is longer, in bytes, is none of ours: 64 disks and a reason are about 6 KiB.
const LONGEST: usize = 64 * 1024;

/// Which lines.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this machine's.
    pub vm: Option<Name>,
    /// Only from then on.
    pub since: Option<Timestamp>,
}

/// One decision, as it was written down. What a newer hostsnapd adds is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // named as in the file
pub struct Entry {
    pub time: Timestamp,
    pub verb: String,
    pub vm: Option<Name>,
    pub vm_uuid: Option<String>,
    pub peer: Text,
    pub disks: Vec<DiskSerial>,
    pub snapshot: Option<String>,
    pub decision: Decision,
    pub code: Option<String>,
    pub reason: Option<Text>,
    pub took_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u64>,
}

/// What was found, the oldest first.
#[derive(Debug, Default)]
pub struct Log {
    /// The decisions.
    pub entries: Vec<Entry>,
    /// How many lines could not be read: torn by a crash, or not ours.
    pub unreadable: u64,
}

/// Reads the log in a state folder, with the files that it was rotated to (`audit.log.1`, …; not
/// those that were compressed).
pub fn read(folder: &Path, filter: &Filter) -> io::Result<Log> {
    let mut log = Log::default();
    for path in files(folder)? {
        let mut file = BufReader::new(File::open(path)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            if file.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            if text.is_empty() {
                continue;
            }
            match parse(text) {
                Some(entry) if filter.takes(&entry) => log.entries.push(entry),
                Some(_) => {}
                None => log.unreadable += 1,
            }
        }
    }
    Ok(log)
}

fn parse(line: &[u8]) -> Option<Entry> {
    if line.len() > LONGEST { None } else { serde_json::from_slice(line).ok() }
}

impl Filter {
    fn takes(&self, entry: &Entry) -> bool {
        self.vm.as_ref().is_none_or(|vm| entry.vm.as_ref() == Some(vm))
            && self.since.is_none_or(|since| entry.time >= since)
    }
}

/// The log's files, the oldest first.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut numbered: Vec<(u32, PathBuf)> = fs::read_dir(folder)?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let rest = path.file_name()?.to_str()?.strip_prefix(FILE)?;
            let age = if rest.is_empty() { 0 } else { rest.strip_prefix('.')?.parse().ok()? };
            Some((age, path))
        })
        .collect();
    numbered.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
    Ok(numbered.into_iter().map(|(_, path)| path).collect())
}

/// What people write after `--since`: a moment, or how long ago.
pub fn since(text: &str) -> Result<Timestamp, String> {
    let explain = || {
        format!("{text:?} is neither a duration such as 2h or 7d nor a moment such as 2026-11-24T08:00:00Z")
    };
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment);
    }
    let span: jiff::Span = text.parse().map_err(|_| explain())?;
    let ago: SignedDuration =
        span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| explain())?;
    Timestamp::now().checked_sub(ago.abs()).map_err(|_| explain())
}

/// One line for people.
pub fn line(entry: &Entry) -> String {
    let name = |name: &Option<Name>| name.as_ref().map_or("-", Name::as_str).to_owned();
    let mut line = format!(
        "{:.3}  {:<12}  {:<9} {:<7}",
        entry.time,
        name(&entry.vm),
        Text::lossy(&entry.verb).as_str(),
        match entry.decision {
            Decision::Done => "done",
            Decision::Refused => "refused",
            Decision::Failed => "failed",
        },
    );
    let mut add = |what: &str| {
        line.push_str("  ");
        line.push_str(what);
    };
    if let Some(snapshot) = &entry.snapshot {
        add(Text::lossy(snapshot).as_str());
    }
    if !entry.disks.is_empty() {
        let disks: Vec<_> = entry.disks.iter().map(DiskSerial::as_str).collect();
        add(&disks.join(","));
    }
    if let Some(reason) = &entry.reason {
        add(reason.as_str());
    }
    if entry.vm.is_none() {
        add(&format!("from {}", entry.peer));
    }
    if let Some(count) = entry.left_out {
        add(&format!("({count} more before this one were left out)"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"time":"2026-11-24T08:00:00.000Z","verb":"prepare","vm":"db1","vm_uuid":null,"peer":"vsock:42:7","disks":["data"],"snapshot":null,"decision":"done","code":null,"reason":null,"took_ms":3}
{"time":"2026-11-24T09:00:00.000Z","verb":"delete","vm":"db2","vm_uuid":null,"peer":"vsock:43:7","disks":[],"snapshot":null,"decision":"refused","code":"ACodeOfTheFuture","reason":"not yours","took_ms":3,"a_field_of_the_future":1}
"#;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = LINES.split_once('\n').unwrap();
        // Rotated ten times: 10 is older than 2, and what was compressed is passed over.
        fs::write(folder.path().join("audit.log.10"), first).unwrap();
        fs::write(folder.path().join("audit.log.2"), second).unwrap();
        fs::write(folder.path().join("audit.log.11.gz"), b"\x1f\x8b").unwrap();
        folder
    }

    #[test]
    fn rotated_files_are_read_the_oldest_first() {
        let log = read(folder().path(), &Filter::default()).unwrap();
        let verbs: Vec<_> = log.entries.iter().map(|entry| entry.verb.as_str()).collect();
        assert_eq!((verbs, log.unreadable), (vec!["prepare", "delete"], 0));
    }

    #[test]
    fn filters_take_one_machine_or_one_time() {
        let folder = folder();
        let count = |filter| read(folder.path(), &filter).unwrap().entries.len();
        let vm = |name: &str| Filter { vm: Some(name.parse().unwrap()), since: None };
        assert_eq!((count(vm("db1")), count(vm("db3"))), (1, 0));
        let since = |text: &str| Filter { vm: None, since: Some(since(text).unwrap()) };
        assert_eq!(count(since("2026-11-24T08:30:00Z")), 1);
        assert_eq!(count(since("2026-11-24T09:00:00Z")), 1);
        assert_eq!(count(since("2026-11-24T09:00:01Z")), 0);
    }

    #[test]
    fn since_is_a_moment_or_how_long_ago() {
        let ago = Timestamp::now().duration_since(since("2h").unwrap());
        assert!((ago.as_secs() - 7200).abs() < 60, "{ago}");
        assert!(since("7d").is_ok());
        assert!(since("yesterday").unwrap_err().contains("7d"));
    }

    #[test]
    fn a_line_tells_who_what_and_why() {
        let entry: Entry = serde_json::from_str(LINES.lines().nth(1).unwrap()).unwrap();
        assert_eq!(line(&entry), "2026-11-24T09:00:00.000Z  db2           delete    refused  not yours");
    }
}
