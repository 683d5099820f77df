//! Who works on a snapshot that is not whole: several hosts share one pool, and what one of them makes at this moment
//! must not be taken for the remains of a crash by another.

use std::fs;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ffi::cluster::Pool;
use super::ffi::image::{For, Image};
use crate::drivers::{DriverError, Kind};
use crate::this_host;

/// One process on one machine, connected to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Worker {
    machine: String,
    pid: u32,
    /// When it was started, in clock ticks since its machine's: tells it from a later one of its number.
    started: u64,
    /// By which the cluster knows its connection.
    client: u64,
}

impl Worker {
    /// This process, connected as this client.
    pub(super) fn this_process(client: u64) -> Self {
        let pid = std::process::id();
        Self { machine: this_host::name(), pid, started: started(pid).unwrap_or(0), client }
    }

    /// Whether another process is at work on it now. On this machine the process is looked up. Elsewhere
    /// its connection counts: it holds the image open, and the cluster lets go of a watcher that
    /// is not heard of for 30 s (`osd_client_watch_timeout`).
    pub(super) fn is_another_at_work(&self, pool: &Arc<Pool>, image: &str) -> Result<bool, DriverError> {
        if self.machine == this_host::name() {
            return Ok(self.pid != std::process::id() && started(self.pid) == Some(self.started));
        }
        match Image::by_id(pool, image, For::Reading) {
            Ok(image) => Ok(image.watchers()?.contains(&self.client)),
            Err(error) if error.kind == Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `Busy`, with who it is.
    pub(super) fn busy(&self, doing: String) -> DriverError {
        DriverError::new(
            Kind::Busy,
            format!("{doing}: process {} of the machine {} works on it", self.pid, self.machine),
        )
    }
}

/// `starttime` of proc_pid_stat(5): the 22nd field, the 20th behind the program's name.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind) = stat.rsplit_once(") ")?;
    behind.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let me = started(std::process::id()).expect("we live");
        assert_eq!(started(std::process::id()), Some(me));
        assert_eq!(started(u32::MAX), None);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let theirs = started(child.id()).expect("it lives");
        assert!(theirs >= me, "{theirs} {me}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(started(child.id()), None);
    }
}
