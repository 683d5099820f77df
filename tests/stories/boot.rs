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
