//! Where a disk goes, and where it does not.

use protocol::ErrorCode;
use protocol::attach::{Access, DetachOutcome};

use super::machine::Machine;

#[test]
fn where_no_port_is_free_the_error_says_what_qemu_lacks_and_nothing_is_left() {
    // A port without an id is none that can be named.
    let machine = Machine::new(&["-machine", "q35", "-device", "pcie-root-port,chassis=1,slot=1"], "");
    for access in [Access::ReadOnly, Access::Writable] {
        let error = machine.attach(access).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unsupported, "{error}");
        assert!(error.message.as_str().contains("no port of db1 is free"), "{error}");
        for words in ["-device pcie-root-port,id=", "-device virtio-scsi-pci"] {
            assert!(error.hint.as_str().contains(words), "{error}");
        }
        machine.nothing_is_left("there was no port");
    }
}

#[test]
fn a_machine_of_the_kind_pc_takes_a_disk_on_its_main_bus() {
    let machine = Machine::new(&["-machine", "pc"], "");
    let attached = machine.attach(Access::ReadOnly).unwrap();
    assert_eq!(machine.devices(), [attached[0].serial.as_str()]);
    assert_eq!(attached[0].size_bytes, 1 << 20);
}

#[test]
fn a_controller_without_an_id_takes_disks_too() {
    let machine = Machine::new(&["-machine", "q35", "-device", "virtio-scsi-pci"], "");
    let attached = machine.attach(Access::ReadOnly).unwrap();
    assert_eq!(machine.devices(), [attached[0].serial.as_str()]);
    assert_eq!(machine.detach().unwrap(), DetachOutcome::Detached);
    assert_eq!(machine.detach().unwrap(), DetachOutcome::WasNotAttached);
    machine.nothing_is_left("it was detached");
}

#[test]
fn a_clone_counts_as_bytes_of_the_quota_as_long_as_it_is_there() {
    let arguments = ["-machine", "q35", "-device", "virtio-scsi-pci"];
    let machine = Machine::new(&arguments, "bytes = \"2MiB\"");
    let clone = machine.attach(Access::Writable).unwrap();
    assert_eq!(machine.attach(Access::Writable).unwrap(), clone, "a repeat asks for nothing more");
    machine.detach().unwrap();
    machine.nothing_is_left("it was detached");

    let machine = Machine::new(&arguments, "bytes = \"1MiB\"");
    let error = machine.attach(Access::Writable).unwrap_err();
    assert_eq!(error.code, ErrorCode::QuotaExceeded, "{error}");
    machine.attach(Access::ReadOnly).unwrap();
}
