//! The backup jobs of one snapshot: named by it, so that a service that was restarted finds them.

use std::time::{Duration, Instant};

use protocol::SnapshotId;
use serde_json::{Value, json};

use super::{LIMIT, of_qmp};
use crate::drivers::{DriverError, Kind, Progress};
use crate::vmm::qmp::{Qmp, QmpError, Unfinished};

/// How long a job that was told to stop may take for it.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);

/// What a copy's job, and the node that it copies to, are called in QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(String);

impl Name {
    /// A node's name has at most 31 bytes (QEMU `include/block/block-global-state.h`, and
    /// `node_name[32]` in `block_int-common.h`): 24 digits of the snapshot tell them apart.
    pub(super) fn of(snapshot: SnapshotId, index: usize) -> Self {
        let id = snapshot.as_uuid().simple().to_string();
        Self(format!("hs{}-{index}", &id[..24]))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// How far the jobs of a snapshot are.
pub(super) struct State {
    pub(super) progress: Progress,
    pub(super) is_done: bool,
    pub(super) error: Option<String>,
}

/// The transaction's action that starts one copy. An error of source or target ends the job and
/// never pauses the guest.
pub(super) fn backup(name: &Name, source: &str) -> Value {
    json!({
        "type": "blockdev-backup",
        "data": {
            "job-id": name.as_str(),
            "device": source,
            "target": name.as_str(),
            "sync": "full",
            "on-source-error": "report",
            "on-target-error": "report",
            // It stays until it is dismissed: whoever asks later learns how it ended.
            "auto-dismiss": false,
        },
    })
}

/// Has QEMU ready to start them all at one instant.
pub(super) fn ready_all(qmp: Qmp, actions: Vec<Value>) -> Result<Unfinished, QmpError> {
    qmp.say_all_but_the_end("transaction", json!({ "actions": actions }), LIMIT)
}

/// All that QEMU has.
pub(super) fn jobs(qmp: &mut Qmp) -> Result<Vec<Value>, QmpError> {
    match qmp.execute("query-jobs", json!({}), LIMIT)? {
        Value::Array(jobs) => Ok(jobs),
        other => Err(QmpError::Malformed(other.to_string())),
    }
}

/// The one of this name.
pub(super) fn of_name<'a>(jobs: &'a [Value], name: &str) -> Option<&'a Value> {
    jobs.iter().find(|job| job["id"] == name)
}

/// Whether QEMU has the jobs of all these, running or ended.
pub(super) fn all_there(qmp: &mut Qmp, names: &[Name]) -> Result<bool, DriverError> {
    let jobs = jobs(qmp).map_err(|error| of_qmp("ask for the backup jobs".to_owned(), error))?;
    Ok(!names.is_empty() && names.iter().all(|name| of_name(&jobs, name.as_str()).is_some()))
}

/// How far they are.
pub(super) fn state(qmp: &mut Qmp, names: &[Name]) -> Result<State, DriverError> {
    let jobs = jobs(qmp).map_err(|error| of_qmp("ask for the backup jobs".to_owned(), error))?;
    let mut state =
        State { progress: Progress { done_bytes: 0, total_bytes: 0 }, is_done: true, error: None };
    for name in names {
        let job = of_name(&jobs, name.as_str()).ok_or_else(|| {
            DriverError::new(Kind::Failed, format!("QEMU has no backup job {} any more", name.as_str()))
        })?;
        state.progress.done_bytes += job["current-progress"].as_u64().unwrap_or(0);
        state.progress.total_bytes += job["total-progress"].as_u64().unwrap_or(0);
        state.is_done &= job["status"] == "concluded";
        if let Some(error) = job["error"].as_str() {
            state.error.get_or_insert_with(|| error.to_owned());
        }
    }
    Ok(state)
}

/// Ends the jobs, and takes nodes and descriptors back. What is not there needs no taking back.
pub(super) fn release(qmp: &mut Qmp, names: &[Name]) -> Result<(), QmpError> {
    let limit = Instant::now() + CANCEL_LIMIT;
    for name in names {
        loop {
            let jobs = jobs(qmp)?;
            match of_name(&jobs, name.as_str()).map(|job| job["status"].as_str().unwrap_or_default()) {
                None => break,
                Some("concluded") => {
                    ignore_refusal(qmp.execute("job-dismiss", json!({ "id": name.as_str() }), LIMIT))?;
                }
                Some(_) if Instant::now() >= limit => {
                    return Err(QmpError::TimedOut { command: "job-cancel".to_owned() });
                }
                Some(_) => {
                    ignore_refusal(qmp.execute("job-cancel", json!({ "id": name.as_str() }), LIMIT))?;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        ignore_refusal(qmp.execute("blockdev-del", json!({ "node-name": name.as_str() }), LIMIT))?;
    }
    let sets = qmp.execute("query-fdsets", json!({}), LIMIT)?;
    for set in sets.as_array().into_iter().flatten() {
        let is_ours = |fd: &Value| names.iter().any(|name| fd["opaque"] == name.as_str());
        if set["fds"].as_array().is_some_and(|fds| fds.iter().any(is_ours)) {
            ignore_refusal(qmp.execute("remove-fd", json!({ "fdset-id": set["fdset-id"] }), LIMIT))?;
        }
    }
    Ok(())
}

/// What is refused needs no doing.
pub(super) fn ignore_refusal(result: Result<Value, QmpError>) -> Result<(), QmpError> {
    match result {
        Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
