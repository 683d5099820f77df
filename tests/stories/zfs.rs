//! Disks on ZFS. The machine's own kernel has none, so the host is a virtual machine itself.

use std::process::Command;
use std::time::Duration;

use harness::hostsnapd;
use harness::initramfs::Tools;
use harness::loopfs::run;
use harness::vm::{Plan, blank_image};
use harness::wait::wait_until;

use super::unit;

const CONFIG: &str = "\
[service]
listen_vsock = false
[[store]]
name = \"tank\"
driver = \"zfs\"
dataset = \"tank/vms\"
min_free = \"1MiB\"
[[vm]]
name = \"db1\"
uuid = \"3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01\"
socket = \"/run/vm/db1.vsock\"
[[vm.disk]]
serial = \"data\"
store = \"tank\"
path = \"/dev/zvol/tank/vms/data\"
format = \"raw\"
[[vm.disk]]
serial = \"logs\"
store = \"tank\"
path = \"/tank/vms/logs.img\"
format = \"raw\"
";

/// The sandbox of the unit, opened by its drop-in for ZFS; udev and systemd: a host as it is installed.
#[test]
fn by_zfs_under_its_unit_the_service_snapshots_a_volume_and_an_image() {
    let folder = tempfile::tempdir().unwrap();
    // libzfs_core is loaded at run time, which a static program can't.
    let program = folder.path().join("hostsnapd");
    run(Command::new("strip").arg("-o").arg(&program).arg(hostsnapd::program()));
    let vm = Plan::debian("zfs-unit")
        .tools([Tools::Zfs])
        .disk(&blank_image(folder.path(), "pool.img", 512), "pool")
        .file(&program, "/usr/bin/hostsnapd")
        .boot();
    unit::install(&vm, "zfs.conf", CONFIG);
    vm.guest
        .sh("zpool create tank /dev/vda && zfs create tank/vms && zfs create -s -V 16M tank/vms/data && \
         truncate -s 16M /tank/vms/logs.img && udevadm settle");
    let disks = ["/dev/zvol/tank/vms/data", "/tank/vms/logs.img"];
    let write = |text: &str| {
        for disk in disks {
            vm.guest.sh(&format!("echo {text} | dd of={disk} conv=fsync,notrunc 2>&1"));
        }
    };
    write("before");
    unit::start(&vm);
    let snapshot = unit::takes_a_snapshot(&vm, || write("after"));
    let id = snapshot["id"].as_str().unwrap();
    assert_eq!(snapshot["disks"].as_array().unwrap().len(), 2, "{snapshot}");
    unit::loses_its_catalog(&vm, id);

    // Read as the guide says.
    vm.guest.sh(&format!("zfs clone -o readonly=on tank/vms/data@hostsnap.{id} tank/look"));
    wait_until("udev names the clone", Duration::from_secs(60), || {
        vm.guest.run("test -e /dev/zvol/tank/look").status == 0
    });
    assert_eq!(vm.guest.sh("head -c 6 /dev/zvol/tank/look"), "before");
    assert_eq!(vm.guest.sh(&format!("head -c 6 /tank/vms/.zfs/snapshot/hostsnap.{id}/logs.img")), "before");
    let whose = vm.guest.sh(&format!("zfs get -H -o value hostsnap:vm tank/vms/data@hostsnap.{id}"));
    assert_eq!(whose.trim(), "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01");
    let busy = vm.guest.run(&format!("hostsnapd delete {id}"));
    assert!(busy.status != 0 && busy.stderr.contains("busy"), "{}{}", busy.stdout, busy.stderr);
    vm.guest.sh("zfs destroy tank/look");
    let refused = vm.guest.run(&format!("hostsnapd restore db1 {id} --no-safety"));
    assert!(
        refused.status != 0 && !refused.stderr.contains("neither the old bytes"),
        "the unit may not write to the image, and this is seen before anything is changed: {}",
        refused.stderr
    );
    vm.guest.sh(
        "printf '[Service]\\nReadWritePaths=/tank/vms\\n' > /etc/systemd/system/hostsnapd.service.d/images.conf && \
         systemctl daemon-reload && systemctl restart hostsnapd",
    );
    unit::goes_back(&vm, id, &disks);
    vm.guest.sh(&format!("hostsnapd delete {id}"));
    assert_eq!(vm.guest.sh("zfs list -H -t snapshot -o name"), "", "{}", unit::log(&vm));
}
