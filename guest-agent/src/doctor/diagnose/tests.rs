use std::collections::BTreeSet;

use crate::doctor::exit_code;
use crate::topology::select::FileSystem;
use crate::topology::stack::SuperBlock;

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
        missing_capabilities: Vec::new(),
        vsock: Some(Vsock { has_socket_family: true, driver: Driver::Loaded, has_device: true }),
        host: Ok(Host {
            vm: "db1".to_owned(),
            version: "0.1.0".to_owned(),
            disks: Ok(vec![info]),
            attached: 1,
        }),
        disks: Ok(vec![disk]),
        file_systems: Ok(vec![file_system("/data", "ext4")]),
        hooks: Ok(1),
        rule: Rule::Installed,
        expedited: Expedited::Writable,
    }
}

fn file_system(at: &str, kind: &str) -> FileSystem {
    FileSystem {
        mount_point: at.into(),
        mount_id: 1,
        fs_type: kind.to_owned(),
        disks: BTreeSet::from(["vdb".to_owned()]),
        read_only: false,
        rank: 0,
        super_block: SuperBlock::Btrfs("any".to_owned()),
    }
}

fn host_with(disks: Result<Vec<DiskInfo>, WireError>) -> Result<Host, WireError> {
    healthy().host.map(|host| Host { disks, ..host })
}

#[test]
fn a_healthy_machine_has_nothing_to_complain_about() {
    let findings = diagnose(&healthy());
    assert!(findings.iter().all(|finding| finding.status == Status::Ok), "{findings:?}");
    assert_eq!(exit_code(&findings), 0);
}

/// The facts, the first thing that is wrong, a word of the remedy, the exit code.
#[test]
fn each_ailment_is_named_with_what_to_do_and_its_exit_code() {
    let vsock = |has_socket_family, driver, has_device| Facts {
        vsock: Some(Vsock { has_socket_family, driver, has_device }),
        ..healthy()
    };
    let host_error = |code| Facts { host: Err(WireError::new(code, "no").hint("ask")), ..healthy() };
    let with_disk = |change: fn(&mut DiskOverview)| {
        let mut facts = healthy();
        change(&mut facts.disks.as_mut().unwrap()[0]);
        facts
    };
    let mut broken = healthy().host.unwrap().disks.unwrap();
    broken[0].problem = "the image is gone".parse().unwrap();
    let table = [
        (Facts { is_root: false, ..healthy() }, "root", "sudo", 6),
        (Facts { rule: Rule::Missing, ..healthy() }, "udev-rule", "10-hostsnap.rules", 0),
        (Facts { missing_capabilities: vec!["CAP_SYS_ADMIN"], ..healthy() }, "root", "container", 6),
        (Facts { missing_capabilities: vec!["CAP_IPC_LOCK"], ..healthy() }, "root", "container", 0),
        (vsock(false, Driver::NotLoaded, false), "vsock", "vhost-vsock-pci", 6),
        (vsock(false, Driver::Missing, true), "vsock", "CONFIG_VIRTIO_VSOCKETS", 6),
        (vsock(true, Driver::NotLoaded, true), "vsock", "modprobe vmw_vsock_virtio_transport", 6),
        (vsock(false, Driver::Loaded, true), "vsock", "modprobe vsock", 6),
        (host_error(ErrorCode::Unreachable), "host", "ask", 3),
        (host_error(ErrorCode::TimedOut), "host", "ask", 3),
        (host_error(ErrorCode::Refused), "refused", "ask", 6),
        (
            Facts { host: host_with(Err(WireError::new(ErrorCode::Refused, "no").hint("ask"))), ..healthy() },
            "policy",
            "ask",
            6,
        ),
        (Facts { disks: Err("no /sys".to_owned()), ..healthy() }, "disks", "", 6),
        (Facts { disks: Ok(Vec::new()), ..healthy() }, "disks", "", 6),
        (Facts { host: host_with(Ok(Vec::new())), ..healthy() }, "disk", "[[vm.disk]]", 6),
        (Facts { host: host_with(Ok(broken)), ..healthy() }, "disk", "hostsnapd check", 6),
        (with_disk(|disk| disk.problem = Some("vdb has no serial".to_owned())), "disk", "", 6),
        (
            Facts { file_systems: Ok(vec![file_system("/boot/efi", "vfat")]), ..healthy() },
            "file-system",
            "remount,ro /boot/efi",
            0,
        ),
        (Facts { file_systems: Err("/a is hidden".to_owned()), ..healthy() }, "file-system", "", 0),
        (
            Facts { hooks: Err(WireError::new(ErrorCode::HookFailed, "bad").hint("chmod")), ..healthy() },
            "hooks",
            "chmod",
            6,
        ),
        (Facts { hooks: Ok(0), ..healthy() }, "hooks", "--consistency application", 0),
        (Facts { expedited: Expedited::ReadOnly, ..healthy() }, "rcu", "ProtectKernelTunables", 0),
        (Facts { expedited: Expedited::Absent, ..healthy() }, "rcu", "", 0),
    ];
    for (facts, id, remedy, code) in table {
        let findings = diagnose(&facts);
        let first = findings.iter().find(|finding| finding.status != Status::Ok).expect("a complaint");
        assert_eq!(first.id, id, "{findings:?}");
        assert!(first.remedy.contains(remedy), "{remedy} in {first:?}");
        assert!(!first.text.is_empty());
        assert_eq!(exit_code(&findings), code, "{findings:?}");
    }
}

#[test]
fn an_unused_disk_that_the_host_does_not_know_is_only_a_warning() {
    let mut facts = healthy();
    let mut spare = facts.disks.as_ref().unwrap()[0].clone();
    spare.mounts.clear();
    spare.serial = Some("spare".to_owned());
    facts.disks.as_mut().unwrap().push(spare);
    let findings = diagnose(&facts);
    assert!(findings.iter().any(|finding| finding.text.contains("spare")), "{findings:?}");
    assert_eq!(exit_code(&findings), 0);
}

/// With a snapshot mounted, the doctor asked the host's administrator to add the attached disk to the configuration.
#[test]
fn a_mounted_snapshot_is_no_disk_that_the_host_should_know() {
    let mut facts = healthy();
    let mut copy = facts.disks.as_ref().unwrap()[0].clone();
    copy.serial = Some("hs-bf77abd9d60d54.0".to_owned());
    copy.mounts = vec![("/mnt".into(), "ext4".to_owned())];
    facts.disks.as_mut().unwrap().push(copy);
    let findings = diagnose(&facts);
    assert!(findings.iter().all(|finding| finding.status == Status::Ok), "{findings:?}");
}

#[test]
fn a_machine_of_which_nothing_can_be_taken_is_not_well() {
    let mut facts = healthy();
    facts.disks.as_mut().unwrap()[0].mounts.clear();
    facts.host = host_with(Ok(Vec::new()));
    assert_eq!(exit_code(&diagnose(&facts)), 6);
}

#[test]
fn what_is_read_only_needs_no_freeze() {
    let mut efi = file_system("/boot/efi", "vfat");
    efi.read_only = true;
    let facts = Facts { file_systems: Ok(vec![efi]), ..healthy() };
    assert!(diagnose(&facts).iter().all(|finding| finding.status == Status::Ok));
}
