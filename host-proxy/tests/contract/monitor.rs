//! QEMU's monitor on its bad days, and what of a disk QEMU and the configuration may disagree on.

use std::error::Error;
use std::fs;
use std::time::Duration;

use host_proxy::drivers::{Continue, DriverError, Kind, Volume};
use host_proxy::vmm::qmp::Qmp;

use super::bench::{Bench, PausedQemu, volume};
use super::{DISK_BYTES, first_byte, owner, plan, prepare, settle, soon};

fn told(error: &DriverError) -> String {
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

#[test]
fn a_monitor_that_is_gone_between_check_and_create_is_said_and_nothing_is_begun() {
    let bench = PausedQemu::start();
    let [first, ..] = &bench.volumes()[..] else { panic!("no volume") };
    bench.driver().check(first).unwrap();
    bench.hide_monitor();
    for error in [
        bench.driver().check(first).unwrap_err(),
        bench.driver().prepare(&plan(owner(), &bench.volumes()), soon()).err().expect("nobody is there"),
    ] {
        assert_eq!(error.kind, Kind::Unreachable, "{}", told(&error));
        assert!(told(&error).contains("qmp") && told(&error).contains("connect"), "{}", told(&error));
    }
    assert_eq!(bench.driver().list().unwrap(), []);
    bench.show_monitor();
    let abandoned = prepare(&bench, owner());
    abandoned.abandon().unwrap();
}

#[test]
fn a_monitor_that_is_gone_between_prepare_and_cut_does_not_matter_to_the_cut() {
    let bench = PausedQemu::start();
    let owner = owner();
    for volume in &bench.volumes() {
        bench.write(volume, 0x66);
    }
    let ready = prepare(&bench, owner);
    bench.hide_monitor();
    let mut cut = ready.cut(soon()).unwrap();
    for volume in &bench.volumes() {
        bench.write(volume, 0x77);
    }
    bench.show_monitor();
    settle(&mut *cut).unwrap();
    cut.seal(b"final").unwrap();
    for volume in &bench.volumes() {
        assert_eq!(first_byte(&bench, owner, volume), 0x66);
    }
}

#[test]
fn a_monitor_that_is_gone_while_it_settles_ends_in_an_error_and_leaves_nothing_on_the_storage() {
    let bench = PausedQemu::start();
    let mut cut = prepare(&bench, owner()).cut(soon()).unwrap();
    bench.hide_monitor();
    let error = settle(&mut *cut).expect_err("nobody can say how far it is");
    assert_eq!(error.kind, Kind::Unreachable, "{}", told(&error));
    cut.abandon().unwrap();
    assert_eq!(bench.driver().list().unwrap(), []);
    // What QEMU itself still has of it is not in the way of the next one.
    bench.show_monitor();
    let mut cut = prepare(&bench, owner()).cut(soon()).unwrap();
    settle(&mut *cut).unwrap();
    cut.seal(b"final").unwrap();
}

/// As long as somebody had it, a copy could neither be given up nor told of.
#[test]
fn a_monitor_that_somebody_else_has_keeps_no_copy_from_being_given_up() {
    let bench = PausedQemu::start();
    let mut cut = prepare(&bench, owner()).cut(soon()).unwrap();
    let monitor = bench.volumes()[0].qmp.clone().expect("it has one");
    let theirs = Qmp::connect(&monitor, Duration::from_secs(20)).unwrap();
    let mut asked = 0;
    let given_up = cut.settle(&mut |_| {
        asked += 1;
        if asked < 2 { Continue::Yes } else { Continue::No }
    });
    assert_eq!(given_up.expect_err("it was given up").kind, Kind::Cancelled);
    drop(theirs);
    cut.abandon().unwrap();
    assert_eq!(bench.driver().list().unwrap(), []);
}

/// `check` looked at QEMU only, which has the image open whatever it is called now: it said that all
/// was well, and every snapshot failed.
#[test]
fn an_image_that_moved_is_found_by_the_check() {
    let bench = PausedQemu::start();
    let [first, ..] = &bench.volumes()[..] else { panic!("no volume") };
    fs::rename(first.path().unwrap(), first.path().unwrap().with_extension("moved")).unwrap();
    let error = bench.driver().check(first).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{}", told(&error));
    assert!(told(&error).contains(&first.source.to_string()), "{}", told(&error));
    assert!(bench.driver().prepare(&plan(owner(), &bench.volumes()), soon()).is_err());
    assert_eq!(bench.driver().list().unwrap(), []);
}

/// The administrator writes the serial that the guest reads, of which virtio has carried 20 bytes;
/// QEMU has the whole, and was found to have no such disk.
#[test]
fn serials_are_compared_by_the_20_bytes_that_virtio_carries() {
    let serials = ["pvc-7286dfe6-7c44-4057-9b5c", "pvc-1111dfe6-7c44-40-one", "pvc-1111dfe6-7c44-40-two"];
    let bench = PausedQemu::with_disks(&serials);
    let volumes = bench.volumes();
    let named = |index: usize, serial: &str| -> Volume {
        volume(volumes[index].path().unwrap(), serial, volumes[index].qmp.clone())
    };
    for serial in [serials[0], &serials[0][..20]] {
        assert_eq!(bench.driver().check(&named(0, serial)).unwrap().size_bytes, DISK_BYTES, "{serial}");
    }
    let error = bench.driver().check(&named(0, &serials[0][..19])).unwrap_err();
    assert!(told(&error).contains("no disk with the serial"), "{}", told(&error));
    // The guest can't tell these apart: which of them it means is not to be guessed.
    let error = bench.driver().check(&named(1, serials[1])).unwrap_err();
    assert!(told(&error).contains("2 disks with the serial"), "{}", told(&error));
}

#[test]
fn a_store_that_fills_up_while_qemu_copies_is_told_as_that_and_nothing_is_left() {
    let bench = PausedQemu::start();
    for volume in &bench.volumes() {
        bench.write(volume, 0x66);
    }
    let ready = prepare(&bench, owner());
    let filler = bench.fill_to_the_last_block();
    let mut cut = ready.cut(soon()).unwrap();
    let error = settle(&mut *cut).expect_err("there is no room for the copy");
    assert_eq!(error.kind, Kind::NoSpace, "{}", told(&error));
    cut.abandon().unwrap();
    assert_eq!(bench.driver().list().unwrap(), []);
    drop(filler);
    let mut cut = prepare(&bench, owner()).cut(soon()).unwrap();
    settle(&mut *cut).unwrap();
    cut.seal(b"final").unwrap();
}
