//! The harness itself.

use harness::vm::Plan;

#[test]
fn a_guest_boots_and_runs_commands() {
    let vm = Plan::new("boot").boot();
    assert_eq!(vm.guest.sh("echo hello").trim(), "hello");
    assert_eq!(vm.guest.run("exit 3").status, 3);
    assert!(vm.guest.sh("ls /dev/vsock").contains("vsock"));
    assert_eq!(vm.guest.sh("cat /sys/class/dmi/id/product_uuid").trim(), vm.uuid());
}

#[test]
fn a_whole_debian_boots_into_systemd() {
    let vm = Plan::debian("boot-debian").boot();
    assert_eq!(vm.guest.sh("cat /proc/1/comm").trim(), "systemd");
    assert_eq!(vm.guest.sh("findmnt -no FSTYPE /").trim(), "ext4");
    assert_eq!(vm.guest.sh("systemctl list-units --failed --plain --no-legend").trim(), "");
    vm.guest.sh("hostsnap --version && test -e /dev/vsock");
    // What a test starts, and what it writes, is its own.
    vm.guest.sh("systemctl start redis-server && redis-cli ping && touch /written && sync");
}
