//! Images that are not where the configuration says, stores without room, serials that virtio cuts.

use std::fs;
use std::process::Command;

use harness::loopfs;
use protocol::message::{DiskRequest, Prepare, Request};
use protocol::{Consistency, ErrorCode};

use super::stage::{Stage, conclude, cut, id_of, request};

/// The same request for a disk of this serial.
fn of_disk(serial: &str) -> Prepare {
    let prepare = request(Consistency::Filesystem);
    let disk = DiskRequest { serial: serial.parse().unwrap(), ..prepare.disks[0].clone() };
    Prepare { disks: vec![disk].try_into().unwrap(), ..prepare }
}

#[test]
fn a_disk_that_the_host_does_not_know_is_named_with_what_to_do() {
    let stage = Stage::set();
    let error = stage.take(&of_disk("other")).unwrap_err();
    assert_eq!((error.code, error.code.exit_code()), (ErrorCode::UnknownDisk, 5), "{error}");
    assert!(error.message.as_str().contains("other"), "{error}");
    assert!(error.hint.as_str().contains("[[vm.disk]]"), "{error}");
    assert_eq!((stage.listed().len(), stage.on_storage().len()), (0, 0));
}

#[test]
fn a_serial_of_more_than_20_bytes_is_the_disk_whose_first_20_the_guest_reads() {
    let mut stage = Stage::set();
    stage.kill();
    let whole = "pvc-7286dfe6-7c44-4057-9b5c";
    stage.configure(&stage.config_text().replace("\"data\"", &format!("{whole:?}")));
    stage.start();
    let snapshot = stage.take(&of_disk("pvc-7286dfe6-7c44-40")).unwrap();
    assert_eq!(snapshot.disks[0].serial.as_str(), whole);
    let error = stage.take(&of_disk("pvc-7286dfe6-7c44-4")).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownDisk, "19 bytes are another serial: {error}");
}

#[test]
fn an_image_that_moved_is_said_and_taken_again_when_it_is_back() {
    let stage = Stage::set();
    let aside = stage.store.path().join("moved.img");
    fs::rename(stage.image(), &aside).unwrap();
    let asked = request(Consistency::Filesystem);
    let error = stage.take(&asked).unwrap_err();
    assert_eq!((error.code, error.code.exit_code()), (ErrorCode::StorageFailed, 8), "{error}");
    assert!(error.message.as_str().contains("data"), "{error}");
    assert!(error.hint.as_str().contains("hostsnapd check"), "{error}");
    assert!(!error.to_string().contains("data.img"), "the guest is told no path: {error}");
    assert!(stage.printed().contains("data.img: No such file"), "{}", stage.printed());
    let check = stage.offline(&["check"]);
    assert_eq!(check.code, 6, "{}", check.out);
    assert!(check.out.contains("data.img"), "{}", check.out);

    // Another image in its place is not the guest's disk.
    fs::write(stage.image(), vec![7; 1 << 20]).unwrap();
    loopfs::run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(stage.image()));
    let error = stage.take(&asked).unwrap_err();
    assert_eq!((error.code, error.code.exit_code()), (ErrorCode::DiskMismatch, 4), "{error}");
    assert_eq!((stage.listed().len(), stage.on_storage().len()), (0, 0));

    fs::rename(&aside, stage.image()).unwrap();
    stage.take(&asked).unwrap();
}

#[test]
fn an_image_that_moves_after_it_was_prepared_is_cut_all_the_same() {
    let stage = Stage::set();
    let asked = request(Consistency::Filesystem);
    let mut guest = stage.greeted();
    let ticket = guest.prepare(&asked).unwrap().ticket;
    fs::rename(stage.image(), stage.store.path().join("moved.img")).unwrap();
    fs::write(stage.image(), vec![8; 1 << 20]).unwrap();
    guest.asks(&cut(ticket)).unwrap();
    guest.asks(&conclude(ticket)).unwrap();
    let folder = stage.store.path().join(".hostsnap").join(stage.uuid()).join(id_of(&asked));
    assert!(fs::read(folder.join("data.img")).unwrap() == vec![7; 1 << 20], "it cut another image");
}

#[test]
fn a_store_without_room_is_told_whether_by_its_floor_or_by_its_last_block() {
    let mut stage = Stage::set();
    stage.kill();
    stage.configure(&stage.config_text().replace("1MiB", "1TiB"));
    stage.start();
    let error = stage.take(&request(Consistency::Filesystem)).unwrap_err();
    assert_eq!((error.code, error.code.exit_code()), (ErrorCode::QuotaExceeded, 4), "{error}");
    assert!(error.message.as_str().contains("must stay free"), "{error}");

    stage.kill();
    stage.configure(&stage.config_text());
    stage.start();
    let filler = stage.store.fill();
    let asked = request(Consistency::Filesystem);
    let mut guest = stage.greeted();
    let error = guest.take(&asked).unwrap_err();
    assert_eq!((error.code, error.code.exit_code()), (ErrorCode::NoSpace, 8), "{error}");
    assert!(error.hint.as_str().contains("delete snapshots"), "{error}");
    assert_eq!((stage.listed().len(), stage.on_storage().len()), (0, 0));
    assert!(stage.admin(&["vms", "--json"]).code == 0 && guest.asks(&Request::Disks).is_ok());

    drop(filler);
    guest.take(&asked).unwrap();
    assert_eq!(stage.admin(&["reconcile"]).out, "the catalog and the storage agree\n");
}

#[test]
fn a_monitor_that_is_gone_is_said_with_what_to_do() {
    let mut stage = Stage::set();
    stage.kill();
    let qmp = stage.store.path().join("qmp");
    let config = stage.config_text().replace("\"reflink\"", "\"qemu\"");
    stage.configure(&config.replace("[[vm.disk]]", &format!("qmp = {qmp:?}\n[[vm.disk]]")));
    stage.start();
    let error = stage.take(&request(Consistency::Filesystem)).unwrap_err();
    assert_eq!((error.code, error.code.exit_code()), (ErrorCode::StorageFailed, 8), "{error}");
    assert!(error.message.as_str().contains("QEMU's monitor"), "{error}");
    assert!(error.hint.as_str().contains("hostsnapd check"), "{error}");
    let check = stage.offline(&["check"]);
    assert_eq!(check.code, 6, "{}", check.out);
    assert!(check.out.contains(&*qmp.to_string_lossy()), "{}", check.out);
    assert_eq!((stage.listed().len(), stage.on_storage().len()), (0, 0));
}
