//! What the facts mean, in plain words, and what to do about them.

use protocol::message::DiskInfo;
use protocol::{DiskSerial, ErrorCode, WireError};

use super::facts::{Driver, Expedited, Facts, Host, Vsock};
use super::{Finding, Status};
use crate::hooks;
use crate::mount::Rule;
use crate::topology::select::DiskOverview;

/// The finding that is about reaching the host.
pub(super) const HOST: &str = "host";

/// Kinds that have no freeze in Linux (no `freeze_fs` in their super operations) and yet lie on
/// disks of ordinary machines.
const NOT_FREEZABLE: [&str; 9] =
    ["vfat", "msdos", "exfat", "ntfs3", "udf", "hfsplus", "minix", "fuseblk", "ufs"];

pub(super) fn diagnose(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![root(facts)];
    findings.extend(facts.vsock.map(vsock));
    findings.extend(host(&facts.host));
    findings.extend(disks(facts));
    findings.extend(file_systems(facts));
    findings.push(hooks(&facts.hooks));
    findings.extend(attached(facts));
    findings.extend(expedited(facts.expedited));
    findings
}

fn ok(id: &'static str, text: impl Into<String>) -> Finding {
    finding(id, Status::Ok, text, "")
}

fn finding(id: &'static str, status: Status, text: impl Into<String>, remedy: &str) -> Finding {
    Finding { id, status, text: text.into(), remedy: remedy.to_owned() }
}

fn of_error(id: &'static str, status: Status, error: &WireError) -> Finding {
    finding(id, status, error.message.as_str(), error.hint.as_str())
}

fn root(facts: &Facts) -> Finding {
    if !facts.is_root {
        return finding(
            "root",
            Status::Fail,
            "not running as root: the host refuses, and nothing can be frozen",
            "run it as root: sudo hostsnap doctor",
        );
    }
    if facts.missing_capabilities.is_empty() {
        return ok("root", "running as root");
    }
    let without = facts.missing_capabilities.join(", ");
    // Without locked memory it works until memory is short.
    let status = match facts.missing_capabilities[..] {
        ["CAP_IPC_LOCK"] => Status::Warn,
        _ => Status::Fail,
    };
    finding(
        "root",
        status,
        format!("running as root, but without {without}"),
        "run it in the virtual machine itself, not in a container, or give the container these capabilities",
    )
}

fn vsock(vsock: Vsock) -> Finding {
    let fail = |text: &str, remedy: &str| finding("vsock", Status::Fail, text, remedy);
    match vsock {
        Vsock { has_socket_family: true, driver: Driver::Loaded, has_device: true } => {
            ok("vsock", "there is a vsock device, and its driver is loaded")
        }
        Vsock { has_device: false, .. } => fail(
            "this machine has no virtio vsock device",
            "the host's administrator adds one: libvirt <vsock model='virtio'><cid auto='yes'/></vsock>, QEMU \
             -device vhost-vsock-pci,guest-cid=N",
        ),
        Vsock { driver: Driver::Missing, .. } => fail(
            "this kernel has no driver for the vsock device (module vmw_vsock_virtio_transport)",
            "install the package with the kernel's further modules, such as linux-modules-extra; a kernel of \
             your own needs CONFIG_VSOCKETS and CONFIG_VIRTIO_VSOCKETS",
        ),
        Vsock { driver: Driver::NotLoaded, .. } => fail(
            "the driver of the vsock device is not loaded",
            "modprobe vmw_vsock_virtio_transport; for every boot, put that name into \
             /etc/modules-load.d/hostsnap.conf",
        ),
        Vsock { has_socket_family: false, .. } => {
            fail("there is no /dev/vsock: the kernel's vsock module is not loaded", "modprobe vsock")
        }
    }
}

fn host(host: &Result<Host, WireError>) -> Vec<Finding> {
    match host {
        Err(error) => {
            let id = match error.code {
                ErrorCode::Unreachable | ErrorCode::TimedOut | ErrorCode::Unavailable => HOST,
                // It is there, and said no.
                _ => "refused",
            };
            vec![of_error(id, Status::Fail, error)]
        }
        Ok(Host { vm, version, disks, .. }) => {
            let text = format!("the host answers (hostsnapd {version}) and knows this machine as {vm}");
            let refused = disks.as_ref().err().map(|error| of_error("policy", Status::Fail, error));
            std::iter::once(ok(HOST, text)).chain(refused).collect()
        }
    }
}

fn disks(facts: &Facts) -> Vec<Finding> {
    let disks = match &facts.disks {
        Err(error) => return vec![finding("disks", Status::Fail, error, "")],
        Ok(disks) if disks.is_empty() => {
            return vec![finding("disks", Status::Fail, "this machine has no disk", "")];
        }
        Ok(disks) => disks,
    };
    let known = facts.host.as_ref().ok().and_then(|host| host.disks.as_deref().ok());
    let own = disks.iter().filter(|disk| !disk.is_attached());
    let mut findings: Vec<_> = own.map(|disk| of_disk(disk, known)).collect();
    if !findings.iter().any(|finding| finding.status == Status::Ok) && known.is_some() {
        let text = "no disk of this machine can be snapshotted";
        findings.push(finding(
            "disks",
            Status::Fail,
            text,
            "see above; hostsnap disks shows them side by side",
        ));
    }
    findings
}

fn of_disk(disk: &DiskOverview, known: Option<&[DiskInfo]>) -> Finding {
    let name = &disk.name;
    // A disk that holds nothing mounted may be none that a user wants snapshots of.
    let matters = if disk.mounts.is_empty() { Status::Warn } else { Status::Fail };
    let of_disk = |status, text: String, remedy: &str| finding("disk", status, text, remedy);
    if let Some(problem) = &disk.problem {
        return of_disk(matters, problem.clone(), "");
    }
    let serial = disk.serial.as_deref().unwrap_or_default();
    let Some(known) = known else {
        return of_disk(
            Status::Warn,
            format!("{name} has the serial {serial}; the host could not be asked about it"),
            "",
        );
    };
    let of_host = known
        .iter()
        .find(|known| serial.parse::<DiskSerial>().is_ok_and(|serial| serial.same_disk(&known.serial)));
    match of_host {
        None => of_disk(
            matters,
            format!("the host does not know the disk {name} with the serial {serial}"),
            "the host's administrator adds it as [[vm.disk]] of this machine; where libvirt tells of it, hostsnapd check says \
             why it is left out",
        ),
        Some(host) if !host.problem.as_str().is_empty() => of_disk(
            matters,
            format!("{name}: {}", host.problem),
            "the host's administrator runs hostsnapd check",
        ),
        Some(host) => ok("disk", format!("{name} is {serial}, by the driver {}", host.driver)),
    }
}

/// A warning each: a snapshot of other disks may still be wanted.
fn file_systems(facts: &Facts) -> Vec<Finding> {
    let not_freezable = |kind: &str| NOT_FREEZABLE.contains(&kind);
    let file_systems = match &facts.file_systems {
        Err(hidden) => return vec![finding("file-system", Status::Warn, hidden, "")],
        Ok(file_systems) => file_systems,
    };
    file_systems
        .iter()
        .filter(|fs| !fs.read_only && not_freezable(&fs.fs_type))
        .map(|fs| {
            let at = fs.mount_point.display();
            let disks: Vec<_> = fs.disks.iter().map(String::as_str).collect();
            finding(
                "file-system",
                Status::Warn,
                format!(
                    "{at} is {}, which can't be frozen: snapshots of the disk {} are refused, or only \
                     crash-consistent",
                    fs.fs_type,
                    disks.join(", ")
                ),
                &format!("what is read-only needs no freeze: mount -o remount,ro {at}; or unmount it"),
            )
        })
        .collect()
}

fn hooks(hooks: &Result<usize, WireError>) -> Finding {
    match hooks {
        Err(error) => of_error("hooks", Status::Fail, error),
        Ok(0) => finding(
            "hooks",
            Status::Warn,
            format!(
                "there is no hook in {}: file systems are consistent, applications recover",
                hooks::FOLDER
            ),
            "add one that quiesces the application, for --consistency application",
        ),
        Ok(1) => ok("hooks", "1 hook quiesces applications"),
        Ok(count) => ok("hooks", format!("{count} hooks quiesce applications")),
    }
}

/// What nothing keeps from being mounted in its original's place at the next boot.
fn attached(facts: &Facts) -> Option<Finding> {
    let count = facts.host.as_ref().map_or(0, |host| host.attached);
    if count == 0 || facts.rule != Rule::Missing {
        return None;
    }
    let disks = if count == 1 {
        "1 disk of a snapshot is".to_owned()
    } else {
        format!("{count} disks of snapshots are")
    };
    Some(finding(
        "udev-rule",
        Status::Warn,
        format!(
            "{disks} attached, and the udev rule of hostsnap is not installed: at the next boot a copy may be mounted \
             in the place of its original"
        ),
        "install 10-hostsnap.rules into /usr/lib/udev/rules.d, and into the initramfs where root is found by UUID; or \
         hostsnap umount --all, and hostsnap detach what hostsnap list shows as attached, before this machine boots",
    ))
}

fn expedited(state: Expedited) -> Option<Finding> {
    let slow = |text: &str, remedy: &str| Some(finding("rcu", Status::Warn, text, remedy));
    match state {
        Expedited::Writable => None,
        Expedited::Absent => {
            slow("this kernel has no /sys/kernel/rcu_expedited: a freeze takes several times longer", "")
        }
        Expedited::ReadOnly => slow(
            "/sys/kernel/rcu_expedited can't be written: a freeze takes several times longer",
            "run it as root, outside of containers and of units with ProtectKernelTunables=",
        ),
    }
}

#[cfg(test)]
mod tests;
