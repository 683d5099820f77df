//! Disks on thin logical volumes. The machine's own kernel may have no device mapper, so the host is a
//! virtual machine itself.

use std::time::Duration;

use harness::assets;
use harness::initramfs::{self, Tools};
use harness::vm::{Plan, blank_image};
use harness::wait::wait_until;

use super::unit;

const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";

/// The guest in the guest, under emulation of emulation.
const NESTED_LIMIT: Duration = Duration::from_secs(1500);

/// A group with a pool and the disk of one machine.
const POOL: &str = "lvm vgcreate -q vg0 /dev/vda && lvm lvcreate -q --type thin-pool -L 512M -n thin vg0 && \
    lvm lvcreate -q --thin -V 64M -n data vg0/thin";

/// A host's configuration; `peer` is how its one machine comes in.
fn config(service: &str, peer: &str) -> String {
    format!(
        "[service]\n{service}\n\
         [[store]]\nname = \"pool\"\ndriver = \"lvm-thin\"\npool = \"vg0/thin\"\nmin_free = \"1MiB\"\n\
         [[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\n{peer}\n\
         [[vm.disk]]\nserial = \"data\"\nstore = \"pool\"\npath = \"/dev/vg0/data\"\nformat = \"raw\"\n"
    )
}

/// The name that the device mapper gives to a snapshot's volume.
fn device(id: &str) -> String {
    format!("/dev/mapper/vg0-hostsnap.{}.0", id.replace('-', "--"))
}

/// The sandbox of the unit, opened by its drop-in for lvm; udev and systemd: a host as it is installed.
#[test]
fn under_its_unit_the_service_snapshots_thin_volumes() {
    let folder = tempfile::tempdir().unwrap();
    let vm = Plan::debian("lvm-unit")
        .tools([Tools::DeviceMapper])
        .disk(&blank_image(folder.path(), "pv.img", 1024), "pv")
        .file(&assets::guest_program("hostsnapd"), "/usr/bin/hostsnapd")
        .boot();
    unit::install(&vm, "lvm.conf", &config("listen_vsock = false", "socket = \"/run/vm/db1.vsock\""));
    vm.guest.sh(POOL);
    let write = |text: &str| vm.guest.sh(&format!("echo {text} | dd of=/dev/vg0/data conv=fsync 2>&1"));
    write("before");
    unit::start(&vm);
    let snapshot = unit::takes_a_snapshot(&vm, || drop(write("after")));
    let id = snapshot["id"].as_str().unwrap();
    assert_eq!(snapshot["disks"][0]["handle"], format!("hostsnap.{id}.0"));
    unit::loses_its_catalog(&vm, id);

    vm.guest.sh(&format!("lvchange -ay -K vg0/hostsnap.{id}.0 && udevadm settle"));
    assert_eq!(vm.guest.sh(&format!("head -c 6 {}", device(id))), "before");
    let reader = vm.guest.spawn(&format!("exec sleep 600 < {}", device(id)));
    let lv = format!("vg0/hostsnap.{id}.0");
    wait_until("it is open", Duration::from_secs(60), || {
        vm.guest.run(&format!("lvs --noheadings -o lv_device_open {lv}")).stdout.trim() == "open"
    });
    let busy = vm.guest.run(&format!("hostsnapd delete {id}"));
    assert!(busy.status != 0 && busy.stderr.contains("busy"), "{}{}", busy.stdout, busy.stderr);
    vm.guest.sh("kill $(pidof sleep)");
    reader.wait();
    unit::goes_back(&vm, id, &["/dev/vg0/data"]);
    vm.guest.sh(&format!("hostsnapd delete {id}"));
    let left = vm.guest.sh("lvs --noheadings -o lv_name vg0");
    assert_eq!(left.split_whitespace().collect::<Vec<_>>(), ["data", "hostsnap.manifests", "thin"]);
}

/// The main job on the real thing: a guest's disk is a thin volume, and the guest asks by vsock.
#[test]
fn by_lvm_thin_a_guest_in_a_guest_snapshots_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let autorun = folder.path().join("autorun");
    std::fs::write(
        &autorun,
        "export PATH=/bin:/sbin:/usr/bin:/usr/sbin\n\
         mkfs.ext4 -q /dev/vda && mkdir -p /data && mount /dev/vda /data && echo before > /data/file\n\
         hostsnap create /data\necho ended $?\necho after > /data/file && sync\n\
         mkdir -p /mnt && hostsnap mount latest /mnt --path /data && echo inside $(cat /mnt/file /data/file)\n\
         hostsnap umount /mnt && echo unmounted\n\
         hostsnap restore latest /data --remount --no-safety && echo restored $(cat /data/file)\necho went on\n",
    )
    .unwrap();
    let inner = initramfs::of(&[].into(), &[(autorun, "/autorun".to_owned())], &[]).unwrap();
    let vm = Plan::new("lvm-nested")
        .memory_mib(2048)
        .tools([Tools::Host, Tools::DeviceMapper])
        .disk(&blank_image(folder.path(), "pv.img", 1024), "pv")
        .file(&assets::guest_program("hostsnapd"), "/usr/bin/hostsnapd")
        .file(&assets::kernel(), "/inner/vmlinuz")
        .file(&inner, "/inner/initramfs")
        .boot();
    // There is no udev here: lvm makes the nodes itself.
    vm.guest
        .sh("mkdir -p /etc/lvm && echo 'activation { udev_sync = 0 udev_rules = 0 }' > /etc/lvm/lvm.conf");
    vm.guest.sh(POOL);
    let service = "state_dir = \"/run/state\"\ncontrol_socket = \"/run/control.sock\"";
    let config = config(service, "cid = 77\nqmp = \"/run/inner.qmp\"");
    vm.guest.sh(&format!("cat > /run/hostsnapd.toml <<'END'\n{config}\nEND"));
    vm.guest.spawn("exec hostsnapd serve --config /run/hostsnapd.toml > /run/hostsnapd.log 2>&1");
    vm.guest.spawn(&format!(
        "exec qemu-system-x86_64 -nodefaults -no-user-config -nographic -no-reboot -nic none -accel kvm -accel tcg -cpu max \
         -machine q35 -m 384M -uuid {UUID} -kernel /inner/vmlinuz -initrd /inner/initramfs \
         -append 'console=ttyS0 panic=-1 quiet mitigations=off' -serial file:/run/inner.log \
         -device vhost-vsock-pci,guest-cid=77 -qmp unix:/run/inner.qmp,server=on,wait=off \
         -device pcie-root-port,id=slot1,chassis=1,slot=1 \
         -blockdev driver=raw,node-name=disk0,cache.direct=on,file.driver=host_device,file.filename=/dev/vg0/data \
         -device virtio-blk-pci,drive=disk0,serial=data > /run/qemu.log 2>&1"
    ));
    let log = || vm.guest.run("cat /run/inner.log /run/qemu.log /run/hostsnapd.log").stdout;
    wait_until("the guest in the guest is done", NESTED_LIMIT, || {
        let log = log();
        log.contains("went on") || log.contains("Kernel panic")
    });
    assert!(log().contains("ended 0"), "{}", log());
    // It was looked into beside its original, and the volume is shut again.
    assert!(log().contains("inside before after") && log().contains("unmounted"), "{}", log());
    // QEMU has the volume open with O_DIRECT.
    assert!(log().contains("restored before"), "{}", log());
    let active = vm.guest.sh("lvm lvs --noheadings -o lv_name,lv_active vg0");
    let is_shown =
        |line: &str| line.contains("hostsnap.") && !line.contains("manifests") && line.contains("active");
    assert!(!active.lines().any(is_shown), "{active}");
    let listed = vm.guest.json("hostsnapd list --json --control /run/control.sock");
    assert_eq!(listed[0]["consistency"], "filesystem", "{listed}");
    assert_eq!(listed[0]["state"], "ready", "{listed}");
    let id = listed[0]["id"].as_str().unwrap();
    vm.guest.sh(&format!("lvm lvchange -ay -K vg0/hostsnap.{id}.0 && mkdir -p /snap"));
    vm.guest.sh(&format!("mount -o ro,noload {} /snap", device(id)));
    assert_eq!(vm.guest.sh("cat /snap/file").trim(), "before");
}
