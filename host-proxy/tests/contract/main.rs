//! What every driver promises, on real storage: `contract()` is run against each.

#[path = "../common/asking.rs"]
mod asking;
mod bench;
mod ceph;
mod changes;
mod cluster;
mod csi;
mod export;
mod lvm;
mod lvm_faults;
mod monitor;
mod qcow2;
mod restore;
mod several_stores;
mod sins;
mod watched;
mod zfs;
mod zfs_faults;

use std::fs;
use std::time::{Duration, Instant};

use bench::{Bench, DISK_BYTES, Files, PausedQemu};
use ceph::Pool;
use csi::server::Offers;
use csi::server::volumes::Publishing;
use harness::initramfs::Tools;
use harness::loopfs::{Kind as Fs, LoopFs};
use harness::vm::Plan;
use harness::within;
use host_proxy::drivers::{
    Continue, CutSet, Deleted, Driver, DriverError, Found, Kind, Owner, Plan as Volumes, Ready, Recovered,
    Volume,
};
use protocol::{RequestId, SnapshotId, VmUuid};
use watched::{CALL_LIMIT, Watched};

#[test]
fn reflink_keeps_the_contract() {
    contract(&Files::reflink());
}

#[test]
fn btrfs_keeps_the_contract() {
    contract(&Files::btrfs());
}

#[test]
fn csi_keeps_the_contract() {
    let groups = Offers::EVERYTHING;
    let singles = Offers { groups: false, volumes: Some(Publishing::SIMPLY), ..groups };
    let little = Offers { lists: false, room: false, changes: false, volumes: None, ..singles };
    for offers in [groups, singles, little] {
        let array = csi::Array::start(offers);
        contract(&array);
        let left = (array.count(), array.made());
        assert_eq!(left, (0, 0), "the storage has no more than the driver knows of: {offers:?}");
    }
}

#[test]
fn rbd_keeps_the_contract() {
    contract(&Pool::start());
}

#[test]
fn qemu_keeps_the_contract() {
    contract(&PausedQemu::start());
}

#[test]
fn lvm_thin_keeps_the_contract() {
    let plan = Plan::debian("contract-lvm").tools([Tools::DeviceMapper, Tools::Nbd]);
    within::run("lvm_thin_keeps_the_contract", plan, || contract(&lvm::ThinVolumes::new()));
}

#[test]
fn zfs_keeps_the_contract() {
    let plan = Plan::debian("contract-zfs").tools([Tools::Zfs, Tools::Nbd]);
    within::run("zfs_keeps_the_contract", plan, || contract(&zfs::Tank::new()));
}

/// The whole of it.
fn contract(bench: &dyn Bench) {
    let watched = Watched::new(bench, CALL_LIMIT);
    promises(&watched);
}

fn promises(bench: &dyn Bench) {
    what_it_can_do_is_told(bench);
    what_is_cut_is_what_was_there_and_nothing_later(bench);
    a_repeat_finds_what_is_there(bench);
    only_ours_is_listed_and_what_is_foreign_stays(bench);
    what_is_written_beside_a_snapshot_can_be_replaced(bench);
    what_is_deleted_twice_was_absent(bench);
    what_is_in_use_is_busy(bench);
    what_was_concealed_is_shown_again(bench);
    what_is_not_there_can_not_be_snapshot(bench);
    after_the_deadline_nothing_is_begun_and_nothing_left(bench);
    what_is_abandoned_leaves_nothing(bench);
    what_a_crash_leaves_is_recovered(bench);
    what_is_done_survives_the_loss_of_power(bench);
    changes::what_changed_between_two_snapshots_is_told(bench);
    export::what_is_served_is_the_snapshot_and_what_changed_is_marked(bench);
    restore::what_was_at_the_cut_is_there_again(bench);
    a_full_store_is_told_and_left_as_it_was(bench);
    assert_eq!(bench.driver().list().unwrap(), [], "the contract leaves nothing behind");
}

fn owner() -> Owner {
    let vm: VmUuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01".parse().unwrap();
    Owner { vm, snapshot: SnapshotId::derive(vm, RequestId::random()) }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn plan(owner: Owner, volumes: &[Volume]) -> Volumes {
    Volumes { owner, volumes: volumes.to_vec(), manifest: b"intent".to_vec() }
}

fn prepare(bench: &dyn Bench, owner: Owner) -> Box<dyn Ready> {
    bench.driver().prepare(&plan(owner, &bench.volumes()), soon()).unwrap()
}

fn settle(cut: &mut dyn CutSet) -> Result<(), DriverError> {
    let mut last = 0;
    cut.settle(&mut |progress| {
        assert!(progress.done_bytes >= last, "progress goes back");
        last = progress.done_bytes;
        Continue::Yes
    })
}

fn take(bench: &dyn Bench) -> Owner {
    let owner = owner();
    let mut cut = prepare(bench, owner).cut(soon()).unwrap();
    settle(&mut *cut).unwrap();
    cut.seal(b"final").unwrap();
    owner
}

fn delete(bench: &dyn Bench, owner: Owner) {
    assert_eq!(bench.driver().delete(owner).unwrap(), Deleted::Gone);
}

/// The first byte of a disk in a snapshot.
fn first_byte(bench: &dyn Bench, owner: Owner, volume: &Volume) -> u8 {
    let (byte, size_bytes) = bench.read(&bench.show(owner, &volume.serial));
    assert_eq!(size_bytes, DISK_BYTES);
    byte
}

fn what_it_can_do_is_told(bench: &dyn Bench) {
    let driver = bench.driver();
    let told = driver.abilities();
    assert_eq!((told.expose, told.changes), (driver.expose().is_some(), driver.changes().is_some()));
    assert_eq!(told.restore, driver.restore().is_some());
    let limits = driver.limits();
    let is_a_line = !limits.is_empty() && limits.len() <= 256 && limits.chars().all(|c| !c.is_control());
    assert!(is_a_line, "what it takes is to be told in one line: {limits:?}");
}

/// What became of its disks after a failure: a guest that is not frozen must be able to write.
fn its_guest_writes_again(bench: &dyn Bench) {
    for volume in &bench.volumes() {
        bench.write(volume, 0x66);
    }
}

fn what_is_cut_is_what_was_there_and_nothing_later(bench: &dyn Bench) {
    let owner = owner();
    let volumes = bench.volumes();
    for volume in &volumes {
        assert_eq!(bench.driver().check(volume).unwrap().size_bytes, DISK_BYTES);
        bench.write(volume, 0x11);
    }
    assert_eq!(bench.driver().read_head(&volumes[0], 4096).unwrap()[..2], [0x11; 2]);
    let ready = prepare(bench, owner);
    let promised = ready.volumes().to_vec();
    for volume in &volumes {
        bench.write(volume, 0x22);
    }
    let mut cut = ready.cut(soon()).unwrap();
    for volume in &volumes {
        bench.write(volume, 0x33);
    }
    assert_eq!(cut.volumes(), promised);
    settle(&mut *cut).unwrap();
    cut.seal(b"final").unwrap();
    for volume in &volumes {
        assert_eq!(first_byte(bench, owner, volume), 0x22, "{}", volume.serial);
        assert!(promised.iter().any(|one| one.serial == volume.serial && one.size_bytes == DISK_BYTES));
    }
    let found = Found { owner, whole: true, manifest: Some(b"final".to_vec()) };
    assert_eq!(bench.driver().list().unwrap(), [found]);
    delete(bench, owner);
}

fn a_repeat_finds_what_is_there(bench: &dyn Bench) {
    let owner = take(bench);
    let again = bench.driver().prepare(&plan(owner, &bench.volumes()), soon()).err().expect("a second one");
    assert_eq!(again.kind, Kind::Exists, "{again}");
    assert!(matches!(bench.driver().recover(owner, &bench.volumes()).unwrap(), Recovered::Whole));
    delete(bench, owner);
}

fn only_ours_is_listed_and_what_is_foreign_stays(bench: &dyn Bench) {
    let owner = take(bench);
    let foreign = bench.leave_foreign();
    let listed = bench.driver().list().unwrap();
    assert!(matches!(&listed[..], [one] if one.owner == owner), "it lists what strangers made: {listed:?}");
    delete(bench, owner);
    assert_eq!(bench.driver().list().unwrap(), []);
    foreign.is_untouched();
}

fn what_is_written_beside_a_snapshot_can_be_replaced(bench: &dyn Bench) {
    let owner = take(bench);
    // Longer and shorter than before.
    for manifest in ["until tomorrow ".repeat(400), "none".to_owned()] {
        bench.driver().rewrite(owner, manifest.as_bytes()).unwrap();
        let found = Found { owner, whole: true, manifest: Some(manifest.into_bytes()) };
        assert_eq!(bench.driver().list().unwrap(), [found]);
    }
    for volume in &bench.volumes() {
        first_byte(bench, owner, volume);
    }
    delete(bench, owner);
    // What is not there, or not whole, is not made by it.
    let error = bench.driver().rewrite(owner, b"none").expect_err("it is gone");
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    let ready = prepare(bench, owner);
    let error = bench.driver().rewrite(owner, b"none").expect_err("it is not whole");
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    ready.abandon().unwrap();
    assert_eq!(bench.driver().list().unwrap(), []);
}

fn what_is_deleted_twice_was_absent(bench: &dyn Bench) {
    let owner = take(bench);
    delete(bench, owner);
    assert_eq!(bench.driver().delete(owner).unwrap(), Deleted::WasAbsent);
    assert!(matches!(bench.driver().recover(owner, &bench.volumes()).unwrap(), Recovered::Nothing));
}

fn what_is_in_use_is_busy(bench: &dyn Bench) {
    let owner = take(bench);
    let driver = bench.driver();
    let held = bench.hold(&bench.show(owner, &bench.volumes()[0].serial));
    let refused = driver.delete(owner).expect_err("it is in use");
    assert_eq!(refused.kind, Kind::Busy, "{refused}");
    assert_eq!(driver.list().unwrap().len(), 1);
    drop(held);
    // The kernel lets go of a loop device a moment after its last user.
    harness::wait::wait_until("it is deleted", Duration::from_secs(30), || driver.delete(owner).is_ok());
}

fn what_was_concealed_is_shown_again(bench: &dyn Bench) {
    if bench.driver().expose().is_none() {
        return;
    }
    let owner = take(bench);
    let volume = &bench.volumes()[0];
    let conceal = || bench.driver().expose().unwrap().conceal(owner, &volume.serial).unwrap();
    conceal();
    let byte = first_byte(bench, owner, volume);
    conceal();
    conceal();
    assert_eq!(first_byte(bench, owner, volume), byte);
    delete(bench, owner);
    conceal();
}

fn what_is_not_there_can_not_be_snapshot(bench: &dyn Bench) {
    let absent =
        Volume { source: bench.absent(), serial: "absent".parse().unwrap(), ..bench.volumes()[0].clone() };
    let error = bench.driver().check(&absent).expect_err("there is no such disk");
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    assert!(bench.driver().prepare(&plan(owner(), &[absent]), soon()).is_err());
    assert_eq!(bench.driver().list().unwrap(), []);
}

fn after_the_deadline_nothing_is_begun_and_nothing_left(bench: &dyn Bench) {
    let error = prepare(bench, owner()).cut(Instant::now()).err().expect("it is too late");
    assert_eq!(error.kind, Kind::DeadlinePassed, "{error}");
    assert!(error.undo_failed.is_none(), "{error}");
    assert_eq!(bench.driver().list().unwrap(), []);
    its_guest_writes_again(bench);
}

fn what_is_abandoned_leaves_nothing(bench: &dyn Bench) {
    prepare(bench, owner()).abandon().unwrap();
    assert_eq!(bench.driver().list().unwrap(), []);
    prepare(bench, owner()).cut(soon()).unwrap().abandon().unwrap();
    assert_eq!(bench.driver().list().unwrap(), []);
    let mut cut = prepare(bench, owner()).cut(soon()).unwrap();
    settle(&mut *cut).unwrap();
    cut.abandon().unwrap();
    assert_eq!(bench.driver().list().unwrap(), []);
}

/// Dropping a stage is what a crash of the service does; a fresh driver comes after it.
fn what_a_crash_leaves_is_recovered(bench: &dyn Bench) {
    let prepared = owner();
    drop(prepare(bench, prepared));
    let listed = bench.driver().list().unwrap();
    assert!(matches!(&listed[..], [Found { whole: false, .. }]), "{listed:?}");
    assert!(matches!(bench.driver().recover(prepared, &bench.volumes()).unwrap(), Recovered::Nothing));
    assert_eq!(bench.driver().list().unwrap(), []);

    let cut = owner();
    for volume in &bench.volumes() {
        bench.write(volume, 0x44);
    }
    drop(prepare(bench, cut).cut(soon()).unwrap());
    for volume in &bench.volumes() {
        bench.write(volume, 0x55);
    }
    let Recovered::Cut(mut again) = bench.driver().recover(cut, &bench.volumes()).unwrap() else {
        panic!("what was cut is not found");
    };
    settle(&mut *again).unwrap();
    again.seal(b"recovered").unwrap();
    for volume in &bench.volumes() {
        assert_eq!(first_byte(bench, cut, volume), 0x44);
    }
    delete(bench, cut);

    let given_up = owner();
    drop(prepare(bench, given_up).cut(soon()).unwrap());
    let Recovered::Cut(again) = bench.driver().recover(given_up, &bench.volumes()).unwrap() else {
        panic!("what was cut is not found");
    };
    again.abandon().unwrap();
    assert_eq!(bench.driver().list().unwrap(), []);
}

/// `seal` promises that.
fn what_is_done_survives_the_loss_of_power(bench: &dyn Bench) {
    for volume in &bench.volumes() {
        bench.write(volume, 0x77);
    }
    let owner = take(bench);
    if bench.lose_power() {
        let found = bench.driver().list().unwrap();
        let is_whole = found == [Found { owner, whole: true, manifest: Some(b"final".to_vec()) }];
        assert!(is_whole, "it was reported done and is lost with the power: {found:?}");
        for volume in &bench.volumes() {
            assert_eq!(first_byte(bench, owner, volume), 0x77, "the contents are lost with the power");
        }
    }
    bench.driver().rewrite(owner, b"locked").unwrap();
    if bench.lose_power() {
        let found = bench.driver().list().unwrap();
        let is_there = found == [Found { owner, whole: true, manifest: Some(b"locked".to_vec()) }];
        assert!(is_there, "what was written anew is lost with the power: {found:?}");
    }
    delete(bench, owner);
}

fn a_full_store_is_told_and_left_as_it_was(bench: &dyn Bench) {
    let Some(filler) = bench.fill() else { return };
    let outcome = bench.driver().prepare(&plan(owner(), &bench.volumes()), soon());
    let error = match outcome {
        Err(error) => error,
        Ok(ready) => ready.cut(soon()).err().expect("there is no room"),
    };
    assert_eq!(error.kind, Kind::NoSpace, "{error}: {:?}", error.source);
    drop(filler);
    assert_eq!(bench.driver().list().unwrap(), []);
    assert!(bench.driver().check(&bench.volumes()[0]).is_ok());
    its_guest_writes_again(bench);
}

#[test]
fn when_qemu_dies_while_it_copies_the_snapshot_is_lost_and_nothing_is_left() {
    let mut bench = PausedQemu::start();
    let owner = owner();
    let mut cut = prepare(&bench, owner).cut(soon()).unwrap();
    bench.kill();
    let error = settle(&mut *cut).expect_err("nobody copies any more");
    assert!(matches!(error.kind, Kind::Failed | Kind::Unreachable | Kind::DeadlinePassed), "{error}");
    drop(cut);
    assert!(matches!(bench.driver().recover(owner, &bench.volumes()).unwrap(), Recovered::Nothing));
    assert_eq!(bench.driver().list().unwrap(), []);
}

/// XFS and btrfs clone extent by extent and let the target grow as they go (Linux
/// `xfs_reflink_remap_extent`, `clone_finish_inode_update`); SIGKILL ends that in the middle
/// (`fatal_signal_pending`). What was left so was once taken for a snapshot.
#[test]
fn a_clone_that_was_killed_in_the_middle_is_no_snapshot() {
    let bench = Files::reflink();
    let owner = owner();
    drop(prepare(&bench, owner).cut(soon()).unwrap());
    let folder = bench.folder().join(".hostsnap").join(owner.vm.to_string());
    let half = folder.join(format!("{}.partial/one.img", owner.snapshot));
    fs::File::options().write(true).open(half).unwrap().set_len(DISK_BYTES / 2).unwrap();
    let recovered = bench.driver().recover(owner, &bench.volumes()).unwrap();
    assert!(matches!(recovered, Recovered::Nothing));
    assert_eq!(bench.driver().list().unwrap(), []);
}

#[test]
fn a_store_that_the_driver_cannot_use_is_refused_with_a_reason() {
    let ext4 = LoopFs::new(Fs::Ext4, 64);
    let image = ext4.path().join("disk.img");
    fs::write(&image, vec![1; 1 << 20]).unwrap();
    let volume = bench::volume(&image, "disk", None);
    let reflink = host_proxy::drivers::reflink::Reflink::new(ext4.path()).unwrap();
    let error = reflink.check(&volume).expect_err("ext4 shares no extents");
    assert_eq!(error.kind, Kind::Unsupported, "{error}");
    let error = host_proxy::drivers::btrfs::Btrfs::new(ext4.path()).err().expect("ext4 is not btrfs");
    assert_eq!(error.kind, Kind::Unsupported, "{error}");
    assert!(host_proxy::drivers::reflink::Reflink::new(ext4.path().join("absent")).is_err());
}
