//! A volume that is given back the bytes of a snapshot, held against all bytes of it.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use host_proxy::drivers::{Driver, Kind, Others, Owner, Progress, Volume};

use super::bench::{Bench, DISK_BYTES};
use super::{delete, owner, take};

/// All bytes that a snapshot has of a volume.
fn bytes(bench: &dyn Bench, owner: Owner, volume: &Volume) -> Vec<u8> {
    bench.bytes(&bench.show(owner, &volume.serial))
}

/// All bytes that the volume has, as its guest reads them. Of QEMU, and where this host has no path of the volume, that
/// can be seen in a snapshot.
fn now(bench: &dyn Bench, volume: &Volume) -> Vec<u8> {
    if let (None, Ok(path)) = (&volume.qmp, volume.path()) {
        return fs::read(path).unwrap();
    }
    let owner = take(bench);
    let bytes = bytes(bench, owner, volume);
    delete(bench, owner);
    bytes
}

#[track_caller]
fn restore(driver: &dyn Driver, owner: Owner, volume: &Volume) {
    let able = driver.restore().expect("it can");
    able.can_restore(owner, volume, Others::Machine).unwrap();
    let mut last = 0;
    able.restore(owner, volume, Others::Machine, &mut |progress| {
        assert!(progress.done_bytes >= last, "progress goes back");
        assert_eq!(progress.total_bytes, DISK_BYTES);
        last = progress.done_bytes;
    })
    .unwrap();
    assert_eq!(last, DISK_BYTES, "the end is told");
}

/// For drivers that can: a volume of each kind.
pub(crate) fn what_was_at_the_cut_is_there_again(bench: &dyn Bench) {
    if bench.driver().restore().is_none() {
        return;
    }
    let volumes = bench.volumes();
    let [one, two] = &volumes[..] else { panic!("a bench has two volumes") };
    of_two(bench, one, two);
    let is_device = |volume: &Volume| {
        volume.path().is_ok_and(|path| fs::metadata(path).unwrap().file_type().is_block_device())
    };
    if is_device(one) != is_device(two) {
        of_two(bench, two, one);
    }
}

fn of_two(bench: &dyn Bench, volume: &Volume, other: &Volume) {
    let driver = bench.driver();
    let able = driver.restore().expect("asked before");
    bench.write(volume, 0x11);
    bench.write_at(volume, 0x13, 6 << 20, 4096);
    bench.write(other, 0x12);
    let old = take(bench);
    bench.write(volume, 0x22);
    let newer = take(bench);
    bench.write(volume, 0x33);
    // Where there was something else, and where there was nothing.
    bench.write_at(volume, 0x35, 6 << 20, 4096);
    bench.write_at(volume, 0x36, (3 << 20) - 4096, 300 << 10);
    bench.write(other, 0x34);
    let [was, was_newer] = [old, newer].map(|owner| bytes(bench, owner, volume));

    restore(&*driver, old, volume);
    assert!(now(bench, volume) == was, "a byte is not what it was at the cut");
    assert_eq!(now(bench, other)[0], 0x34, "another volume was touched");
    restore(&*driver, old, volume);
    assert!(now(bench, volume) == was, "again is not the same");
    if bench.lose_power() {
        assert!(now(bench, volume) == was, "what was restored is lost with the power");
    }
    bench.write(volume, 0x44);
    bench.write_at(volume, 0x45, 5 << 20, 1 << 20);
    is_ended_in_the_middle(bench, old, volume);
    restore(&*bench.driver(), old, volume);
    assert!(now(bench, volume) == was, "what was half done is not finished");
    for (owner, was) in [(old, &was), (newer, &was_newer)] {
        assert!(bytes(bench, owner, volume) == *was, "a snapshot was changed");
    }
    restore(&*driver, newer, volume);
    assert!(now(bench, volume) == was_newer, "forwards is not the same as back");

    // Who must have the volume for itself is refused while a machine has it.
    let could = able.can_restore(old, volume, Others::Nobody);
    let alone = able.restore(old, volume, Others::Nobody, &mut |_| {});
    match volume.qmp {
        Some(_) => {
            for refused in [could, alone] {
                let busy = refused.expect_err("QEMU has it open");
                assert_eq!(busy.kind, Kind::Busy, "{busy}");
            }
            assert!(now(bench, volume) == was_newer, "it was refused and touched");
        }
        None => assert!(could.is_ok() && alone.is_ok() && now(bench, volume) == was, "nobody has it open"),
    }
    if let Some(head) = able.head_then(old, volume, 4096).unwrap() {
        assert!(head == was[..4096], "the beginning is not what it was at the cut");
    }
    let absent = able.can_restore(owner(), volume, Others::Machine).expect_err("there is no such snapshot");
    assert_eq!(absent.kind, Kind::NotFound, "{absent}");
    a_volume_of_another_size_is_refused(bench, old, volume);
    without_room_it_is_done_or_nothing_is_touched(bench, old, volume);
    for owner in [old, newer] {
        delete(bench, owner);
    }
}

/// As by a kill: whatever it holds is let go of, and nothing is undone.
fn is_ended_in_the_middle(bench: &dyn Bench, owner: Owner, volume: &Volume) {
    let driver = bench.unwatched();
    let able = driver.restore().expect("it can");
    let mut stop = |progress: Progress| {
        if progress.done_bytes > DISK_BYTES / 2 {
            resume_unwind(Box::new("killed"));
        }
    };
    let ended = catch_unwind(AssertUnwindSafe(|| able.restore(owner, volume, Others::Machine, &mut stop)));
    assert!(ended.is_err(), "it came to its end");
}

fn a_volume_of_another_size_is_refused(bench: &dyn Bench, owner: Owner, volume: &Volume) {
    let driver = bench.driver();
    let able = driver.restore().expect("it can");
    bench.resize(volume, DISK_BYTES + (4 << 20));
    let refused = able.can_restore(owner, volume, Others::Machine).expect_err("it has grown");
    assert_eq!(refused.kind, Kind::Unsupported, "{refused}");
    let refused = able.restore(owner, volume, Others::Machine, &mut |_| {}).expect_err("it has grown");
    assert_eq!(refused.kind, Kind::Unsupported, "{refused}");
    bench.resize(volume, DISK_BYTES);
}

fn without_room_it_is_done_or_nothing_is_touched(bench: &dyn Bench, owner: Owner, volume: &Volume) {
    let was = bytes(bench, owner, volume);
    bench.write(volume, 0x46);
    let before = now(bench, volume);
    assert!(before != was);
    let Some(filler) = bench.fill() else { return };
    let driver = bench.driver();
    let done = driver.restore().expect("it can").restore(owner, volume, Others::Machine, &mut |_| {});
    drop(filler);
    match done {
        Ok(()) => assert!(now(bench, volume) == was, "a byte is not what it was at the cut"),
        Err(error) => {
            assert_eq!(error.kind, Kind::NoSpace, "{error}: {:?}", error.source);
            assert!(now(bench, volume) == before, "it was refused and touched");
        }
    }
    let needs_room = matches!(driver.name(), "lvm-thin" | "zfs");
    assert!(!needs_room || now(bench, volume) == before, "the pool was filled");
}
