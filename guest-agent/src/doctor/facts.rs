//! Looking, without changing anything.

use std::fs;
use std::path::Path;

use protocol::WireError;
use protocol::message::DiskInfo;

use crate::client::{Client, HostAddress, Limits};
use crate::hooks::{self, Hooks};
use crate::mount::{self, Rule};
use crate::topology::select::{self, DiskOverview, FileSystem, Wish};
use crate::topology::{TopologyError, capture};

/// The number of a vsock device among virtio's (VIRTIO 1.2 §5).
const VIRTIO_VSOCK: &str = "0x0013";
/// The guest's driver of it.
const TRANSPORT: &str = "vmw_vsock_virtio_transport";
const EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// What was seen.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) is_root: bool,
    /// The names of those that are needed and missing.
    pub(super) missing_capabilities: Vec<&'static str>,
    /// Only where the host is reached by vsock.
    pub(super) vsock: Option<Vsock>,
    pub(super) host: Result<Host, WireError>,
    pub(super) disks: Result<Vec<DiskOverview>, String>,
    /// Those on all disks, where the disks can be told; or which can't be reached.
    pub(super) file_systems: Result<Vec<FileSystem>, String>,
    pub(super) hooks: Result<usize, WireError>,
    /// Whether a boot can take an attached copy for its original.
    pub(super) rule: Rule,
    pub(super) expedited: Expedited,
}

/// What the host said.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// What it calls this machine.
    pub(super) vm: String,
    pub(super) version: String,
    pub(super) disks: Result<Vec<DiskInfo>, WireError>,
    /// How many disks of snapshots are attached to this machine.
    pub(super) attached: usize,
}

/// The way to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vsock {
    /// `/dev/vsock`.
    pub(super) has_socket_family: bool,
    pub(super) driver: Driver,
    /// A virtio device of that kind; unknown where there is no virtio bus at all.
    pub(super) has_device: bool,
}

/// The driver of the vsock device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    Loaded,
    /// This kernel has it as a module.
    NotLoaded,
    /// This kernel does not have it.
    Missing,
}

/// `/sys/kernel/rcu_expedited`, which makes a freeze several times shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expedited {
    Writable,
    ReadOnly,
    Absent,
}

pub(super) fn gather(host: &HostAddress) -> Facts {
    let vsock = matches!(host, HostAddress::Vsock { .. }).then(vsock);
    let capture = capture::live();
    let file_systems = match capture.as_ref().map(|capture| select::select(capture, &Wish::All(Vec::new()))) {
        Ok(Ok(selection)) => Ok(selection.file_systems),
        Ok(Err(hidden @ TopologyError::Hidden { .. })) => Err(hidden.to_string()),
        // What else is wrong is said of the disks.
        Ok(Err(_)) | Err(_) => Ok(Vec::new()),
    };
    Facts {
        is_root: rustix::process::geteuid().is_root(),
        missing_capabilities: fs::read_to_string("/proc/self/status")
            .map(|status| missing_capabilities(&status))
            .unwrap_or_default(),
        vsock,
        host: ask(host),
        disks: capture.map(|capture| select::overview(&capture)).map_err(|error| error.to_string()),
        file_systems,
        hooks: Hooks::find(Path::new(hooks::FOLDER), hooks::LIMIT)
            .map(|hooks| hooks.len())
            .map_err(WireError::from),
        rule: mount::rule(),
        expedited: expedited(Path::new(EXPEDITED)),
    }
}

fn ask(host: &HostAddress) -> Result<Host, WireError> {
    let mut client = Client::connect(host, Limits::default())?;
    Ok(Host {
        vm: client.welcome.vm.to_string(),
        version: client.welcome.host_version.to_string(),
        disks: client.disks().map_err(WireError::from),
        // Asked last: an older host, which attaches nothing, ends the conversation for it.
        attached: client.attachments().map_or(0, |attached| attached.len()),
    })
}

fn vsock() -> Vsock {
    let driver = if Path::new("/sys/bus/virtio/drivers").join(TRANSPORT).exists() {
        Driver::Loaded
    } else if kernel_has(TRANSPORT) {
        Driver::NotLoaded
    } else {
        Driver::Missing
    };
    let devices = fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten();
    let is_vsock = |path: &Path| {
        fs::read_to_string(path.join("device")).is_ok_and(|number| number.trim() == VIRTIO_VSOCK)
    };
    Vsock {
        has_socket_family: Path::new("/dev/vsock").exists(),
        driver,
        has_device: devices.map(|entry| entry.path()).any(|path| is_vsock(&path)),
    }
}

/// Whether the running kernel has this module, built in or not.
fn kernel_has(module: &str) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        ["/lib/modules", "/usr/lib/modules"].iter().any(|folder| {
            let list = Path::new(folder).join(release.trim()).join(list);
            fs::read_to_string(list).is_ok_and(|list| list.contains(&format!("/{module}.ko")))
        })
    })
}

/// What root may lack in a container (capabilities(7), `CapEff` in proc(5)).
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    const NEEDED: [(u32, &str); 3] =
        [(21, "CAP_SYS_ADMIN"), (10, "CAP_NET_BIND_SERVICE"), (14, "CAP_IPC_LOCK")];
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(mask) = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) else {
        return Vec::new();
    };
    NEEDED.iter().filter(|(bit, _)| mask & (1 << bit) == 0).map(|(_, name)| *name).collect()
}

fn expedited(path: &Path) -> Expedited {
    match (path.exists(), fs::File::options().write(true).open(path)) {
        (false, _) => Expedited::Absent,
        (true, Ok(_)) => Expedited::Writable,
        (true, Err(_)) => Expedited::ReadOnly,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let with = |mask: &str| missing_capabilities(&format!("Name:\tx\nCapEff:\t{mask}\nCapBnd:\t0\n"));
        assert!(with("000001ffffffffff").is_empty());
        assert_eq!(with("00000000a80425fb"), ["CAP_SYS_ADMIN", "CAP_IPC_LOCK"], "docker's default");
        assert_eq!(with("0").len(), 3);
        assert!(missing_capabilities("").is_empty(), "unknown is not missing");
    }
}
