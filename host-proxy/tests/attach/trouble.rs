//! A guest that does not let go, a QEMU that does not answer or is gone, a lost catalog.

use std::time::Duration;

use harness::wait::wait_until;
use protocol::ErrorCode;
use protocol::attach::{Access, DetachOutcome};
use protocol::message::Reply;
use rustix::process::Signal;
use serde_json::json;

use super::machine::{LIMIT, Machine, remove_files};

const SCSI: [&str; 4] = ["-machine", "q35", "-device", "virtio-scsi-pci,id=scsi"];

/// No guest runs behind this port, so nobody hears that the disk is to be released.
#[test]
fn a_guest_that_never_releases_its_disk_is_told_of_and_the_machines_reset_ends_it() {
    let port = "pcie-root-port,id=port1,chassis=1,slot=1";
    let machine = Machine::new(&["-machine", "q35", "-device", port], "");
    let attached = machine.attach(Access::Writable).unwrap();
    let error = machine.detach().unwrap_err();
    assert_eq!(error.code, ErrorCode::Busy, "{error}");
    assert!(error.message.as_str().contains("db1 has not released hs-"), "{error}");
    // It is there still, and told; and nobody is given it as if it would stay.
    assert_eq!(machine.attachments(), attached);
    let error = machine.attach(Access::Writable).unwrap_err();
    assert!(error.message.as_str().contains("is being taken out"), "{error}");

    machine.monitor.ask("system_reset", json!({}));
    wait_until("the reset takes the disk out", LIMIT, || machine.devices().is_empty());
    machine.nothing_is_left("the machine was reset");
}

#[test]
fn a_qemu_that_does_not_answer_is_told_of_and_what_was_begun_is_undone_when_it_does() {
    let machine = Machine::new(&SCSI, "");
    machine.qemu.signal(Signal::STOP);
    let error = machine.attach(Access::Writable).unwrap_err();
    assert_eq!(error.code, ErrorCode::Busy, "{error}");
    machine.qemu.signal(Signal::CONT);
    machine.nothing_is_left("QEMU answers again");
    machine.attach(Access::Writable).unwrap();
}

/// It was told that no port is free.
#[test]
fn a_qemu_that_migrates_neither_takes_a_disk_nor_gives_one_up_and_says_so() {
    let machine = Machine::new(&SCSI, "");
    let slow = || {
        machine.monitor.ask("migrate-set-parameters", json!({ "max-bandwidth": 1000 }));
        machine.monitor.ask("migrate", json!({ "uri": "exec:cat > /dev/null" }));
    };
    let cancel = || {
        machine.monitor.ask("migrate_cancel", json!({}));
        wait_until("it stays here", LIMIT, || {
            machine.monitor.ask("query-migrate", json!({}))["status"] == "cancelled"
        });
    };
    slow();
    let error = machine.attach(Access::Writable).unwrap_err();
    assert_eq!(error.code, ErrorCode::Busy, "{error}");
    assert!(error.message.as_str().contains("db1 is being moved"), "{error}");
    cancel();
    machine.nothing_is_left("it was not attached");
    let attached = machine.attach(Access::Writable).unwrap();
    slow();
    let error = machine.detach().unwrap_err();
    assert!(error.message.as_str().contains("db1 is being moved"), "{error}");
    cancel();
    // It is known still, and taken out as soon as anybody asks.
    assert_eq!(attached.len(), 1);
    wait_until("it is taken out", LIMIT, || machine.detach().is_ok());
    machine.nothing_is_left("it was detached");
}

#[test]
fn with_its_qemu_an_attachment_is_over_and_its_snapshot_can_be_deleted() {
    let mut machine = Machine::new(&SCSI, "");
    machine.attach(Access::Writable).unwrap();
    let id = machine.id.to_string();
    let refused = machine.served.admin(&["delete", &id]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(6), "{said}");
    assert!(said.contains(&format!("hostsnapd detach {id}")), "{said}");

    machine.qemu.kill();
    assert_eq!(machine.attachments(), []);
    assert_eq!(machine.clones(), 0);
    assert_eq!(machine.detach().unwrap(), DetachOutcome::WasNotAttached);
    assert!(machine.served.admin(&["delete", &id]).status.success());
}

#[test]
fn two_wishes_at_once_are_one_attachment() {
    let machine = Machine::new(&SCSI, "");
    let mut guests = [machine.guest(), machine.guest()];
    guests.iter_mut().for_each(|guest| guest.send(&machine.wish(Access::ReadOnly)));
    let answers = guests.each_mut().map(|guest| guest.hears().unwrap());
    assert!(matches!(answers[0], Reply::Attached(_)), "{answers:?}");
    assert_eq!(answers[0], answers[1]);
    assert_eq!(machine.devices().len(), 1);
}

#[test]
fn what_a_lost_catalog_no_longer_knows_is_entered_again_and_what_no_snapshot_knows_is_taken_out() {
    let mut machine = Machine::new(&SCSI, "");
    let attached = machine.attach(Access::Writable).unwrap();
    machine.served.kill();
    remove_files(&machine.state(), "catalog.sqlite");
    let stranger = "hs-00000000000000.0";
    machine.monitor.ask("blockdev-add", json!({ "driver": "null-co", "node-name": stranger }));
    machine.monitor.ask(
        "device_add",
        json!({ "driver": "scsi-hd", "id": stranger, "drive": stranger, "bus": "scsi.0" }),
    );
    machine.served.start();
    assert_eq!(machine.attachments(), attached);
    assert_eq!(machine.devices(), [attached[0].serial.as_str()]);
    assert_eq!(machine.clones(), 1, "its clone is in use");
    assert_eq!(machine.detach().unwrap(), DetachOutcome::Detached);
    machine.nothing_is_left("it was detached");
}

#[test]
fn a_disk_that_the_guest_itself_threw_out_is_over() {
    let machine = Machine::new(&SCSI, "");
    let attached = machine.attach(Access::Writable).unwrap();
    machine.monitor.ask("device_del", json!({ "id": attached[0].serial }));
    wait_until("it is out", Duration::from_secs(20), || machine.devices().is_empty());
    machine.nothing_is_left("its device is gone");
    assert_eq!(machine.attach(Access::ReadOnly).unwrap().len(), 1);
}
