//! A machine that stands still: its processors stopped, its writes done, until it is let go on.

use std::time::Duration;

use serde_json::json;

use super::libvirt;
use super::monitor::{Monitor, MonitorError};
use super::qmp::{Qmp, QmpError};

/// How long a monitor may take to greet, and for a command that does nothing slow.
const LIMIT: Duration = Duration::from_secs(5);

/// Whether a machine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// Its guest runs.
    Runs,
    /// It was paused, by whomever, and can be let go on.
    Paused,
    /// It is on its way to or from another host, or a file: which QEMU has its disks may change at any moment, and it is
    /// nobody else's to pause.
    Moving,
    /// None of these: it crashed, waits for room on the host, sleeps.
    Other(String),
    /// There is none: it was stopped.
    Gone,
}

/// Whether it runs.
pub fn state(monitor: &Monitor) -> Result<RunState, MonitorError> {
    or_gone(match monitor {
        Monitor::Qmp(path) => {
            Qmp::connect(path, LIMIT).and_then(|mut qmp| of_qmp(&mut qmp)).map_err(MonitorError::from)
        }
        Monitor::Libvirt(domain) => libvirt::state(domain).map_err(MonitorError::from),
    })
}

/// Pauses it. What its guest had asked its disks for is done, and flushed, before this ends (QEMU
/// `system/cpus.c`, `do_vm_stop`).
pub fn stop(monitor: &Monitor, limit: Duration) -> Result<(), MonitorError> {
    match monitor {
        Monitor::Qmp(path) => {
            Qmp::connect(path, LIMIT)?.execute("stop", json!({}), limit)?;
        }
        Monitor::Libvirt(domain) => libvirt::suspend(domain, limit)?,
    }
    Ok(())
}

/// Lets it go on if it is paused; what it was.
pub fn go_on(monitor: &Monitor) -> Result<RunState, MonitorError> {
    or_gone(match monitor {
        Monitor::Qmp(path) => go_on_by_qmp(path).map_err(MonitorError::from),
        Monitor::Libvirt(domain) => libvirt::go_on(domain).map_err(MonitorError::from),
    })
}

fn go_on_by_qmp(path: &std::path::Path) -> Result<RunState, QmpError> {
    let mut qmp = Qmp::connect(path, LIMIT)?;
    let state = of_qmp(&mut qmp)?;
    // A migration may have begun since it was paused: one that ends while it is paused leaves it so on the other host.
    if state == RunState::Paused || state == RunState::Moving && status(&mut qmp)? == "paused" {
        qmp.execute("cont", json!({}), LIMIT)?;
    }
    Ok(state)
}

fn of_qmp(qmp: &mut Qmp) -> Result<RunState, QmpError> {
    let status = status(qmp)?;
    Ok(match status.as_str() {
        "running" | "paused" if is_migrating(qmp)? => RunState::Moving,
        "running" => RunState::Runs,
        "paused" => RunState::Paused,
        "inmigrate" | "postmigrate" | "finish-migrate" => RunState::Moving,
        _ => RunState::Other(status),
    })
}

/// Whether it is being moved or saved.
pub(crate) fn is_moving(qmp: &mut Qmp) -> Result<bool, QmpError> {
    of_qmp(qmp).map(|state| state == RunState::Moving)
}

/// In QEMU's words (`qapi/run-state.json`, `RunState`).
fn status(qmp: &mut Qmp) -> Result<String, QmpError> {
    let answer = qmp.execute("query-status", json!({}), LIMIT)?;
    Ok(answer["status"].as_str().unwrap_or("unknown").to_owned())
}

/// What has not begun, and what has ended, is no migration (QEMU `qapi/migration.json`, `MigrationStatus`).
fn is_migrating(qmp: &mut Qmp) -> Result<bool, QmpError> {
    let answer = qmp.execute("query-migrate", json!({}), LIMIT)?;
    let status = answer["status"].as_str();
    Ok(!matches!(status, None | Some("none" | "completed" | "failed" | "cancelled")))
}

fn or_gone(asked: Result<RunState, MonitorError>) -> Result<RunState, MonitorError> {
    match asked {
        Err(error) if error.is_gone() => Ok(RunState::Gone),
        asked => asked,
    }
}
