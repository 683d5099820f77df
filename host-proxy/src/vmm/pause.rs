//! A machine that stands still: its processors stopped, its writes done, until it is let go on.

use std::time::Duration;

use serde_json::json;

use super::libvirt;
use super::monitor::{Monitor, MonitorError};
use super::qmp::Qmp;

/// How long a monitor may take to greet, and for a command that does nothing slow.
const LIMIT: Duration = Duration::from_secs(5);

/// Whether a machine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// Its guest runs.
    Runs,
    /// It was paused, by whomever, and can be let go on.
    Paused,
    /// Neither: it crashed, waits for room on the host, sleeps, is migrated.
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
        Monitor::Libvirt(domain) => libvirt::state(domain)
            .and_then(|state| match state {
                RunState::Paused => libvirt::resume(domain).map(|()| state),
                _ => Ok(state),
            })
            .map_err(MonitorError::from),
    })
}

fn go_on_by_qmp(path: &std::path::Path) -> Result<RunState, super::qmp::QmpError> {
    let mut qmp = Qmp::connect(path, LIMIT)?;
    let state = of_qmp(&mut qmp)?;
    if state == RunState::Paused {
        qmp.execute("cont", json!({}), LIMIT)?;
    }
    Ok(state)
}

fn of_qmp(qmp: &mut Qmp) -> Result<RunState, super::qmp::QmpError> {
    let answer = qmp.execute("query-status", json!({}), LIMIT)?;
    Ok(match answer["status"].as_str() {
        Some("running") => RunState::Runs,
        Some("paused") => RunState::Paused,
        other => RunState::Other(other.unwrap_or("unknown").to_owned()),
    })
}

fn or_gone(asked: Result<RunState, MonitorError>) -> Result<RunState, MonitorError> {
    match asked {
        Err(error) if error.is_gone() => Ok(RunState::Gone),
        asked => asked,
    }
}
