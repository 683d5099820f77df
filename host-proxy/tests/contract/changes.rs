//! What changed between two snapshots, held against all bytes of both.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use harness::loopfs::run;
use host_proxy::drivers::{Extent, Kind, Owner, Volume};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::FallocateFlags;

use super::bench::{Bench, DISK_BYTES, Files};
use super::{delete, owner, take};

/// What the driver tells, which must be in order and hold every byte that differs.
#[track_caller]
fn changes(bench: &dyn Bench, from: Owner, to: Owner, volume: &Volume) -> Vec<Extent> {
    let driver = bench.driver();
    let told = driver.changes().expect("it can tell").changes(from, to, &volume.serial).unwrap();
    let bytes = |owner| bench.bytes(&bench.show(owner, &volume.serial));
    let (old, new) = (bytes(from), bytes(to));
    assert!(told.iter().all(|extent| extent.length > 0 && extent.end() <= new.len() as u64), "{told:?}");
    assert!(told.windows(2).all(|two| two[0].end() < two[1].offset), "{told:?}");
    let mut at = 0;
    for extent in told.iter().chain([&Extent { offset: new.len() as u64, length: 0 }]) {
        let outside = at..usize::try_from(extent.offset).unwrap();
        let is_same = outside.is_empty() || old.get(outside.clone()) == new.get(outside.clone());
        assert!(is_same, "something differs in {outside:?}: {told:?}");
        at = usize::try_from(extent.end()).unwrap();
    }
    told
}

fn sum(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.length).sum()
}

/// For drivers that can.
pub(crate) fn what_changed_between_two_snapshots_is_told(bench: &dyn Bench) {
    let driver = bench.driver();
    let Some(able) = driver.changes() else { return };
    let volumes = bench.volumes();
    let [volume, other] = &volumes[..] else { panic!("a bench has two volumes") };
    bench.write(volume, 0x11);
    let first = take(bench);
    bench.write_at(volume, 0x22, 3 << 20, 100_000);
    bench.write_at(volume, 0x33, 6 << 20, 512);
    let second = take(bench);
    let third = take(bench);
    let told = changes(bench, first, second, volume);
    // Ceph tells of what lay between the end of an object and what was written behind it, too.
    assert!((100_512..DISK_BYTES).contains(&sum(&told)), "all of it is no answer: {told:?}");
    assert_eq!(changes(bench, second, first, volume), told, "both ways are the same");
    for same in [changes(bench, second, third, volume), changes(bench, first, second, other)] {
        assert_eq!(same, [], "nothing was written");
    }
    assert_eq!(changes(bench, first, third, volume), told);
    let absent = able.changes(first, owner(), &volume.serial).unwrap_err();
    assert_eq!(absent.kind, Kind::NotFound, "{absent}");
    for owner in [first, second, third] {
        delete(bench, owner);
    }
}

/// What a guest does with its disk.
#[derive(Debug, Clone, Copy)]
enum Step {
    Write(u8),
    Punch,
    Zero,
    Allocate,
}

fn step(file: &File, (step, offset, length): (Step, u64, u64)) {
    let fallocate = |flags| rustix::fs::fallocate(file, flags, offset, length).unwrap();
    match step {
        Step::Write(byte) => {
            let bytes: Vec<u8> = (0..length).map(|n| byte.wrapping_add((n / 7) as u8)).collect();
            file.write_all_at(&bytes, offset).unwrap();
        }
        Step::Punch => fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
        Step::Zero => fallocate(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
        Step::Allocate => fallocate(FallocateFlags::KEEP_SIZE),
    }
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64, u64)>> {
    let kind = prop_oneof![
        4 => any::<u8>().prop_map(Step::Write),
        2 => Just(Step::Punch),
        1 => Just(Step::Zero),
        1 => Just(Step::Allocate),
    ];
    let place = prop_oneof![0..DISK_BYTES - 1, (0..DISK_BYTES / 4096).prop_map(|block| block * 4096)];
    let length = prop_oneof![1..20_000_u64, (1..64_u64).prop_map(|blocks| blocks * 4096), 1..DISK_BYTES];
    let one = (kind, place, length);
    proptest::collection::vec(
        one.prop_map(|(kind, at, length)| (kind, at, length.min(DISK_BYTES - at))),
        0..12,
    )
}

/// Random steps before and between two snapshots.
fn whatever_was_written(bench: &Files, cases: u32) {
    let volumes = bench.volumes();
    let path = volumes[0].path().unwrap();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(steps(), steps()), |(before, between)| {
        let file = File::options().write(true).open(path).unwrap();
        before.iter().for_each(|one| step(&file, *one));
        let first = take(bench);
        between.iter().for_each(|one| step(&file, *one));
        let second = take(bench);
        let told = changes(bench, first, second, &volumes[0]);
        if between.is_empty() {
            prop_assert_eq!(told, []);
        }
        delete(bench, first);
        delete(bench, second);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn whatever_was_written_between_two_clones_is_told() {
    whatever_was_written(&Files::reflink(), 24);
}

#[test]
fn whatever_was_written_between_two_subvolume_snapshots_is_told() {
    whatever_was_written(&Files::btrfs(), 24);
}

/// A compressed extent's place is that of its whole, of which a file may have any part: it is read.
#[test]
fn compressed_blocks_are_compared_by_their_bytes() {
    let bench = Files::btrfs();
    run(Command::new("mount").args(["-o", "remount,compress-force=zstd"]).arg(bench.folder()));
    let volume = &bench.volumes()[0];
    bench.write_at(volume, 0x11, 0, 4 << 20);
    let first = take(&bench);
    bench.write_at(volume, 0x22, 1 << 20, 5000);
    let second = take(&bench);
    let told = changes(&bench, first, second, volume);
    assert!((5000..1 << 20).contains(&sum(&told)), "what is compressed and the same is the same: {told:?}");
    whatever_was_written(&bench, 8);
}

/// A disk that grew: what is behind the old end is new.
#[test]
fn a_disk_that_grew_or_shrank_is_compared_to_its_end() {
    let bench = Files::reflink();
    let volume = &bench.volumes()[0];
    let file = File::options().write(true).open(volume.path().unwrap()).unwrap();
    let small = take(&bench);
    file.set_len(2 * DISK_BYTES).unwrap();
    let large = take(&bench);
    let told = changes(&bench, small, large, volume);
    assert_eq!(told, [Extent { offset: DISK_BYTES, length: DISK_BYTES }]);
    assert_eq!(changes(&bench, large, small, volume), []);
}
