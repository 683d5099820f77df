//! AF_VSOCK for real, as production uses it: over vsock loopback, and with a guest of its own in a
//! virtual machine that is itself the host.

use std::time::Duration;

use harness::assets;
use harness::initramfs;
use harness::initramfs::Tools;
use harness::vm::{Plan, Vm};
use harness::wait::wait_until;

/// The guest in the guest boots in half a minute by KVM (QEMU emulates SVM too, so it works where the
/// machine has no KVM of its own), in minutes under emulation of emulation.
const NESTED_LIMIT: Duration = Duration::from_secs(1500);

fn serve(vm: &Vm, config: &str) {
    vm.guest.sh(&format!("mkdir -p /run/store && cat > /run/hostsnapd.toml <<'END'\n{config}\nEND\n"));
    vm.guest.spawn("exec hostsnapd serve --config /run/hostsnapd.toml > /run/hostsnapd.log 2>&1");
    wait_until("hostsnapd answers", Duration::from_secs(60), || {
        vm.guest.run("hostsnapd vms --control /run/control.sock").status == 0
    });
}

fn config(driver: &str, machine: &str) -> String {
    format!(
        "[service]\nallow_local_cid = true\nstate_dir = \"/run/state\"\ncontrol_socket = \"/run/control.sock\"\n\
         [[store]]\nname = \"store\"\ndriver = \"{driver}\"\npath = \"/run/store\"\nmin_free = \"1MiB\"\n\
         [[vm]]\nname = \"guest\"\n{machine}\n\
         [[vm.disk]]\nserial = \"data\"\nstore = \"store\"\npath = \"/run/data.img\"\nformat = \"raw\"\n"
    )
}

#[test]
fn over_vsock_loopback_the_kernel_says_who_comes_and_only_its_root_is_heard() {
    let hostsnapd = assets::guest_program("hostsnapd");
    let probe = assets::guest_program("vsock-probe");
    let vm = Plan::new("loopback")
        .tools([Tools::VsockLoopback])
        .file(&hostsnapd, "/usr/bin/hostsnapd")
        .file(&probe, "/usr/bin/vsock-probe")
        .boot();
    serve(&vm, &config("reflink", &format!("uuid = \"{}\"\ncid = 1", vm.uuid())));

    // Root's port is below 1024: heard.
    assert_eq!(vm.guest.json("hostsnap --json --host vsock:1:989 list"), serde_json::json!([]));
    // Anybody's port is not: told why.
    let told = vm.guest.sh("vsock-probe 1 989");
    assert!(told.contains("Refused") && told.contains("not below 1024"), "{told}");
    let log = vm.guest.sh("cat /run/hostsnapd.log");
    assert!(log.contains("vsock:1:"), "{log}");

    // A machine that says it is another one: its CID was given to a new machine.
    let other = config("reflink", "uuid = \"3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01\"\ncid = 1");
    vm.guest.sh(&format!("cat > /run/hostsnapd.toml <<'END'\n{other}\nEND\nkill -HUP $(pidof hostsnapd)"));
    wait_until("the new configuration is in force", Duration::from_secs(60), || {
        vm.guest.run("hostsnap --host vsock:1:989 list").stderr.contains("this machine's is")
    });
}

#[test]
fn on_real_vhost_vsock_a_guest_in_a_guest_snapshots_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let autorun = folder.path().join("autorun");
    std::fs::write(
        &autorun,
        "export PATH=/bin:/sbin:/usr/bin:/usr/sbin\n\
         mkfs.ext4 -q /dev/vda && mkdir -p /data && mount /dev/vda /data && echo written > /data/file\n\
         hostsnap create /data --label from=within\necho ended $?\n",
    )
    .unwrap();
    let inner = initramfs::of(&[].into(), &[(autorun, "/autorun".to_owned())], &[]).unwrap();
    let vm = Plan::new("nested")
        .memory_mib(2048)
        .tools([Tools::Host])
        .file(&assets::guest_program("hostsnapd"), "/usr/bin/hostsnapd")
        .file(&assets::kernel(), "/inner/vmlinuz")
        .file(&inner, "/inner/initramfs")
        .boot();
    vm.guest.sh("truncate -s 64M /run/data.img && test -c /dev/vhost-vsock");
    let uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
    serve(&vm, &config("qemu", &format!("uuid = \"{uuid}\"\ncid = 77\nqmp = \"/run/qmp\"")));
    vm.guest.spawn(&format!(
        "exec qemu-system-x86_64 -nodefaults -no-user-config -nographic -no-reboot -nic none -accel kvm -accel tcg -cpu max \
         -machine q35 -m 384M -uuid {uuid} -kernel /inner/vmlinuz -initrd /inner/initramfs \
         -append 'console=ttyS0 panic=-1 quiet mitigations=off' -serial file:/run/inner.log \
         -device vhost-vsock-pci,guest-cid=77 -qmp unix:/run/qmp,server=on,wait=off \
         -blockdev driver=raw,node-name=disk0,file.driver=file,file.filename=/run/data.img \
         -device virtio-blk-pci,drive=disk0,serial=data > /run/qemu.log 2>&1"
    ));
    let log = || vm.guest.run("cat /run/inner.log /run/qemu.log").stdout;
    wait_until("the guest in the guest is done", NESTED_LIMIT, || log().contains("ended "));
    assert!(log().contains("ended 0"), "{}\n{}", log(), vm.guest.sh("cat /run/hostsnapd.log"));

    let listed = vm.guest.json("hostsnapd list --json --control /run/control.sock");
    assert_eq!(listed[0]["consistency"], "filesystem", "{listed}");
    assert_eq!(listed[0]["labels"]["from"], "within");
    // It came by its CID, which the host's kernel reported.
    assert!(vm.guest.sh("cat /run/hostsnapd.log").contains("vsock:77:"));
    // The host reads what was in the disk.
    let id = listed[0]["id"].as_str().unwrap();
    let image = format!("/run/store/.hostsnap/{uuid}/{id}/data.img");
    assert_eq!(
        vm.guest
            .sh(&format!("mkdir -p /mnt && mount -o ro,loop,noload {image} /mnt && cat /mnt/file"))
            .trim(),
        "written"
    );
}
