//! A volume that is given back the bytes of a snapshot, held against all bytes of it.

use std::fs::File;

use host_proxy::drivers::{Driver, Kind, Others, Owner, Volume};

use super::bench::{Bench, DISK_BYTES};
use super::{delete, owner, take};

/// All bytes that a snapshot has of a volume.
fn bytes(bench: &dyn Bench, owner: Owner, volume: &Volume) -> Vec<u8> {
    bench.bytes(&bench.show(owner, &volume.serial))
}

/// All bytes that the volume has, as its guest reads them.
fn now(bench: &dyn Bench, volume: &Volume) -> Vec<u8> {
    let owner = take(bench);
    let bytes = bytes(bench, owner, volume);
    delete(bench, owner);
    bytes
}

#[track_caller]
fn restore(driver: &dyn Driver, owner: Owner, volume: &Volume) {
    let able = driver.restore().expect("it can");
    able.can_restore(owner, volume).unwrap();
    let mut last = 0;
    able.restore(owner, volume, Others::Machine, &mut |progress| {
        assert!(progress.done_bytes >= last, "progress goes back");
        assert_eq!(progress.total_bytes, DISK_BYTES);
        last = progress.done_bytes;
    })
    .unwrap();
    assert_eq!(last, DISK_BYTES, "the end is told");
}

/// For drivers that can.
pub(crate) fn what_was_at_the_cut_is_there_again(bench: &dyn Bench) {
    let driver = bench.driver();
    let Some(able) = driver.restore() else { return };
    let volumes = bench.volumes();
    let [volume, other] = &volumes[..] else { panic!("a bench has two volumes") };
    bench.write(volume, 0x11);
    bench.write(other, 0x12);
    let old = take(bench);
    bench.write(volume, 0x22);
    let newer = take(bench);
    bench.write(volume, 0x33);
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
    // The same as after one that was ended in the middle.
    restore(&*bench.driver(), old, volume);
    assert!(now(bench, volume) == was, "what was half done is not finished");
    for (owner, was) in [(old, &was), (newer, &was_newer)] {
        assert!(bytes(bench, owner, volume) == *was, "a snapshot was changed");
    }
    restore(&*driver, newer, volume);
    assert!(now(bench, volume) == was_newer, "forwards is not the same as back");

    // Who must have the volume for itself is refused while a machine has it.
    let alone = able.restore(old, volume, Others::Nobody, &mut |_| {});
    match volume.qmp {
        Some(_) => {
            let busy = alone.expect_err("QEMU has it open");
            assert_eq!(busy.kind, Kind::Busy, "{busy}");
            assert!(now(bench, volume) == was_newer, "it was refused and touched");
        }
        None => assert!(alone.is_ok() && now(bench, volume) == was, "nobody has it open"),
    }
    let absent = able.can_restore(owner(), volume).expect_err("there is no such snapshot");
    assert_eq!(absent.kind, Kind::NotFound, "{absent}");
    a_volume_of_another_size_is_refused(bench, old, volume);
    for owner in [old, newer] {
        delete(bench, owner);
    }
}

fn a_volume_of_another_size_is_refused(bench: &dyn Bench, owner: Owner, volume: &Volume) {
    let driver = bench.driver();
    let able = driver.restore().expect("it can");
    let resize = |bytes| {
        File::options().write(true).open(volume.path().unwrap()).unwrap().set_len(bytes).unwrap();
    };
    resize(DISK_BYTES + 4096);
    let refused = able.can_restore(owner, volume).expect_err("it has grown");
    assert_eq!(refused.kind, Kind::Unsupported, "{refused}");
    let refused = able.restore(owner, volume, Others::Machine, &mut |_| {}).expect_err("it has grown");
    assert_eq!(refused.kind, Kind::Unsupported, "{refused}");
    resize(DISK_BYTES);
}
