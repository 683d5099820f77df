//! What is wrong, in plain words, and what to do. `gather` looks, `diagnose` decides; only the first
//! touches the system.

use std::fs;
use std::path::Path;

use protocol::message::DiskInfo;
use protocol::{ErrorCode, WireError};
use serde::Serialize;

use crate::client::{Client, HostAddress, Limits};
use crate::hooks::{self, Hooks};
use crate::topology::capture;
use crate::topology::select::{self, DiskOverview};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A name for programs.
    pub id: &'static str,
    /// How it is.
    pub status: Status,
    /// In plain words.
    pub text: String,
    /// What to do; may be empty.
    pub remedy: String,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Well.
    Ok,
    /// Snapshots work, but not as well as they could.
    Warn,
    /// Snapshots do not work.
    Fail,
}

/// What was seen.
#[derive(Debug, Clone)]
struct Facts {
    is_root: bool,
    /// Only for a vsock address.
    vsock: Option<Vsock>,
    host: Result<(String, Result<Vec<DiskInfo>, WireError>), WireError>,
    disks: Result<Vec<DiskOverview>, String>,
    hooks: Result<usize, WireError>,
    can_expedite: bool,
}

#[derive(Debug, Clone)]
struct Vsock {
    has_device_file: bool,
    has_transport: bool,
}

/// Looks at everything.
pub fn examine(host: &HostAddress) -> Vec<Finding> {
    diagnose(&gather(host))
}

/// 0 if snapshots work, 3 if the host can't be reached, 6 for anything else.
pub fn exit_code(findings: &[Finding]) -> u8 {
    let failed = |id: Option<&str>| {
        findings.iter().any(|finding| finding.status == Status::Fail && id.is_none_or(|id| finding.id == id))
    };
    if failed(Some("host")) {
        ErrorCode::Unreachable.exit_code()
    } else if failed(None) {
        ErrorCode::Unsupported.exit_code()
    } else {
        0
    }
}

fn gather(host: &HostAddress) -> Facts {
    let vsock = matches!(host, HostAddress::Vsock { .. }).then(|| Vsock {
        has_device_file: Path::new("/dev/vsock").exists(),
        has_transport: Path::new("/sys/module/vmw_vsock_virtio_transport").exists()
            || Path::new("/sys/bus/virtio/drivers/vmw_vsock_virtio_transport").exists()
            || Path::new("/sys/module/vsock_loopback").exists(),
    });
    Facts {
        is_root: rustix::process::geteuid().is_root(),
        vsock,
        host: Client::connect(host, Limits::default())
            .map(|mut client| (client.welcome.vm.to_string(), client.disks().map_err(WireError::from)))
            .map_err(WireError::from),
        disks: capture::live().map(|capture| select::overview(&capture)).map_err(|error| error.to_string()),
        hooks: Hooks::find(Path::new(hooks::FOLDER), hooks::LIMIT)
            .map(|hooks| hooks.len())
            .map_err(WireError::from),
        can_expedite: fs::metadata("/sys/kernel/rcu_expedited").is_ok(),
    }
}

fn diagnose(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |id, status, text: String, remedy: &str| {
        findings.push(Finding { id, status, text, remedy: remedy.to_owned() });
    };
    match facts.is_root {
        true => say("root", Status::Ok, "running as root".to_owned(), ""),
        false => say(
            "root",
            Status::Fail,
            "not running as root: the host refuses, and nothing can be frozen".to_owned(),
            "run it as root: sudo hostsnap doctor",
        ),
    }
    match &facts.vsock {
        None => {}
        Some(Vsock { has_device_file: true, has_transport: true }) => {
            say("vsock", Status::Ok, "there is a vsock device with its driver".to_owned(), "");
        }
        Some(Vsock { has_device_file: false, .. }) => say(
            "vsock",
            Status::Fail,
            "there is no /dev/vsock: the kernel's vsock module is not loaded, or is missing".to_owned(),
            "modprobe vsock; a kernel without it needs CONFIG_VSOCKETS and CONFIG_VIRTIO_VSOCKETS",
        ),
        Some(Vsock { has_transport: false, .. }) => say(
            "vsock",
            Status::Fail,
            "the driver of the virtual machine's vsock device is not loaded".to_owned(),
            "modprobe vmw_vsock_virtio_transport; if that changes nothing, the host's administrator adds the \
             device (QEMU: -device vhost-vsock-pci,guest-cid=N)",
        ),
    }
    match &facts.host {
        Err(error) => say("host", Status::Fail, error.message.to_string(), error.hint.as_str()),
        Ok((name, known)) => {
            say("host", Status::Ok, format!("the host answers, and knows this machine as {name}"), "");
            if let Err(error) = known {
                say("policy", Status::Fail, error.message.to_string(), error.hint.as_str());
            }
        }
    }
    match &facts.disks {
        Err(error) => say("disks", Status::Fail, error.clone(), ""),
        Ok(disks) => {
            let known = facts.host.as_ref().ok().and_then(|(_, known)| known.as_ref().ok());
            for disk in disks {
                findings.push(of_disk(disk, known));
            }
            if disks.is_empty() {
                findings.push(Finding {
                    id: "disks",
                    status: Status::Fail,
                    text: "this machine has no disk".to_owned(),
                    remedy: String::new(),
                });
            }
        }
    }
    let mut say = |id, status, text: String, remedy: &str| {
        findings.push(Finding { id, status, text, remedy: remedy.to_owned() });
    };
    match &facts.hooks {
        Err(error) => say("hooks", Status::Fail, error.message.to_string(), error.hint.as_str()),
        Ok(0) => say(
            "hooks",
            Status::Warn,
            format!(
                "there is no hook in {}: file systems are consistent, applications recover",
                hooks::FOLDER
            ),
            "add one that quiesces the application, for --consistency application",
        ),
        Ok(count) => say("hooks", Status::Ok, format!("{count} hooks"), ""),
    }
    if !facts.can_expedite {
        say(
            "rcu",
            Status::Warn,
            "this kernel has no /sys/kernel/rcu_expedited: a freeze takes several times longer".to_owned(),
            "",
        );
    }
    findings
}

fn of_disk(disk: &DiskOverview, known: Option<&Vec<DiskInfo>>) -> Finding {
    let name = &disk.name;
    let matters = if disk.mounts.is_empty() { Status::Warn } else { Status::Fail };
    let finding =
        |status, text: String, remedy: &str| Finding { id: "disk", status, text, remedy: remedy.to_owned() };
    if let Some(problem) = &disk.problem {
        return finding(matters, problem.clone(), "");
    }
    let serial = disk.serial.as_deref().unwrap_or_default();
    let Some(known) = known else {
        return finding(
            Status::Warn,
            format!("{name} has the serial {serial}; the host could not be asked"),
            "",
        );
    };
    let of_host = known.iter().find(|known| {
        serial.parse::<protocol::DiskSerial>().is_ok_and(|serial| serial.same_disk(&known.serial))
    });
    match of_host {
        None => finding(
            matters,
            format!("the host does not know the disk {name} with the serial {serial}"),
            "the host's administrator adds it as [[vm.disk]] of this machine",
        ),
        Some(host) if !host.problem.as_str().is_empty() => finding(
            matters,
            format!("{name}: {}", host.problem),
            "the host's administrator runs hostsnapd check",
        ),
        Some(host) => finding(Status::Ok, format!("{name} is {serial}, by the driver {}", host.driver), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Facts {
        let info = DiskInfo {
            serial: "data".parse().unwrap(),
            driver: "qemu".parse().unwrap(),
            size_bytes: Some(1),
            problem: "".parse().unwrap(),
        };
        let disk = DiskOverview {
            name: "vdb".to_owned(),
            serial: Some("data".to_owned()),
            size_bytes: 1,
            mounts: vec![("/data".into(), "ext4".to_owned())],
            problem: None,
        };
        Facts {
            is_root: true,
            vsock: Some(Vsock { has_device_file: true, has_transport: true }),
            host: Ok(("db1".to_owned(), Ok(vec![info]))),
            disks: Ok(vec![disk]),
            hooks: Ok(1),
            can_expedite: true,
        }
    }

    fn first_failure(facts: &Facts) -> Finding {
        diagnose(facts).into_iter().find(|finding| finding.status == Status::Fail).expect("a failure")
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_complain_about() {
        let findings = diagnose(&healthy());
        assert!(findings.iter().all(|finding| finding.status == Status::Ok), "{findings:?}");
        assert_eq!(exit_code(&findings), 0);
    }

    #[test]
    fn each_ailment_is_named_with_its_remedy() {
        let facts = Facts { is_root: false, ..healthy() };
        assert!(first_failure(&facts).remedy.contains("sudo"));

        let facts =
            Facts { vsock: Some(Vsock { has_device_file: false, has_transport: false }), ..healthy() };
        assert!(first_failure(&facts).remedy.contains("modprobe vsock"));

        let facts = Facts { vsock: Some(Vsock { has_device_file: true, has_transport: false }), ..healthy() };
        assert!(first_failure(&facts).remedy.contains("vmw_vsock_virtio_transport"));

        let refused = WireError::new(ErrorCode::Unreachable, "nobody listens").hint("start hostsnapd");
        let facts = Facts { host: Err(refused), ..healthy() };
        assert_eq!(first_failure(&facts).id, "host");
        assert_eq!(exit_code(&diagnose(&facts)), 3);

        let facts = Facts { host: Ok(("db1".to_owned(), Ok(Vec::new()))), ..healthy() };
        assert!(first_failure(&facts).text.contains("does not know the disk vdb"));
        assert_eq!(exit_code(&diagnose(&facts)), 6);

        let facts = Facts { hooks: Err(WireError::new(ErrorCode::HookFailed, "bad hook")), ..healthy() };
        assert_eq!(first_failure(&facts).text, "bad hook");
    }

    #[test]
    fn an_unused_disk_that_the_host_does_not_know_is_only_a_warning() {
        let mut facts = healthy();
        facts.disks.as_mut().unwrap()[0].mounts.clear();
        facts.host = Ok(("db1".to_owned(), Ok(Vec::new())));
        assert_eq!(exit_code(&diagnose(&facts)), 0);
    }
}
