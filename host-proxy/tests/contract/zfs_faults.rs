//! What ZFS alone can do wrong, and what others do to our snapshots: each ends with a clear error, and nothing left.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::initramfs::Tools;
use harness::loopfs::run;
use harness::vm::Plan;
use harness::wait::wait_until;
use harness::within;
use host_proxy::drivers::{Driver, Exposed, Format, Kind, Plan as Volumes, Recovered, Volume};

use crate::bench::{Bench, volume};
use crate::zfs::{Tank, zfs, zpool};
use crate::{delete, first_byte, owner, plan, prepare, settle, soon, take};

#[test]
fn what_zfs_and_others_do_wrong_ends_with_an_error_and_leaves_nothing() {
    let plan = Plan::debian("zfs-faults").tools([Tools::Zfs, Tools::DeviceMapper]);
    let test = "zfs_faults::what_zfs_and_others_do_wrong_ends_with_an_error_and_leaves_nothing";
    within::run(test, plan, || {
        let bench = Tank::new();
        a_set_is_cut_at_one_instant_under_a_writer(&bench);
        what_is_no_volume_of_the_store_is_refused(&bench);
        what_has_no_room_is_refused_before_the_freeze(&bench);
        a_volume_that_is_gone_or_got_anothers_name_is_not_cut(&bench);
        what_is_renamed_or_promoted_afterwards_stays_what_it_is(&bench);
        what_is_whole_is_held_and_anothers_hold_is_respected(&bench);
        a_set_that_lost_a_part_is_not_whole(&bench);
        what_a_crash_leaves_in_between_is_recovered(&bench);
        a_pool_that_is_read_only_is_told(&bench);
        a_pool_that_is_suspended_in_the_cut_ends_it_and_nothing_appears_later();
    });
}

/// Destroys a dataset or a snapshot; udev may look at a volume's device for a moment still.
fn destroy(name: &str) {
    let destroyed = || Command::new("zfs").args(["destroy", name]).output().unwrap().status.success();
    wait_until(&format!("{name} is destroyed"), Duration::from_secs(30), destroyed);
}

fn nothing_is_left(bench: &Tank) {
    assert_eq!(bench.driver().list().unwrap(), []);
    let names = bench.names();
    assert!(!names.iter().any(|name| name.contains("hostsnap")), "{names:?}");
    assert_eq!(bench.notes(), "");
}

/// The writer numbers its writes: first the number to one volume, then to the other.
fn a_set_is_cut_at_one_instant_under_a_writer(bench: &Tank) {
    let volumes = bench.volumes();
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let stopper = Stopper(&stop);
        let writer = scope.spawn(|| {
            let open = |volume: &Volume| File::options().write(true).open(volume.path().unwrap()).unwrap();
            let (first, second) = (open(&volumes[0]), open(&volumes[1]));
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                for file in [&first, &second] {
                    file.write_all_at(&number.to_le_bytes(), 4096).unwrap();
                    file.sync_data().unwrap();
                }
            }
            number
        });
        for _ in 0..3 {
            let owner = take(bench);
            let driver = bench.driver();
            let [first, second] = [0, 1].map(|n| {
                let exposed = driver.expose().unwrap().expose(owner, &volumes[n].serial).unwrap();
                let Exposed::Path { path, .. } = exposed else { panic!("{exposed:?} is no path") };
                let mut number = [0; 8];
                File::open(path).unwrap().read_exact_at(&mut number, 4096).unwrap();
                u64::from_le_bytes(number)
            });
            assert!(first == second || first == second + 1, "{first} and {second} are of two instants");
            delete(bench, owner);
        }
        drop(stopper);
        writer.join().unwrap()
    });
    assert!(written > 10, "the writer wrote {written} numbers only");
    nothing_is_left(bench);
}

/// Ends the writer also when the test fails.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn what_is_no_volume_of_the_store_is_refused(bench: &Tank) {
    let outside = format!("{}/outside", bench.pool());
    zfs(&["create", "-s", "-V", "8M", &outside]);
    let zvol = Path::new("/dev/zvol").join(&outside);
    wait_until("udev names the volume", Duration::from_secs(60), || zvol.exists());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"x").unwrap();
    let whole = take(bench);
    let driver = bench.driver();
    let shown = driver.expose().unwrap().expose(whole, &bench.volumes()[0].serial).unwrap();
    let Exposed::Path { path: clone, .. } = shown else { panic!("{shown:?} is no path") };
    let of = |path: &Path| volume(path, "x", None);
    for (volume, words) in [
        (of(&zvol), "is not in the store's dataset"),
        (of(Path::new("/dev/loop7")), "it is no zvol"),
        (of(file.path()), "on no file system of ZFS's"),
        (of(&clone), "a snapshot of ours"),
        (Volume { format: Format::Qcow2, ..bench.volumes()[0].clone() }, "use the driver qemu"),
    ] {
        let error = driver.check(&volume).expect_err(words);
        assert_eq!(error.kind, Kind::Unsupported, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(driver.prepare(&plan(owner(), &[volume]), soon()).is_err());
    }
    // The clone was made to show it, and goes when nobody reads it any more.
    let is_shown = || bench.names().iter().any(|name| name.contains("hostsnap.") && !name.contains('@'));
    assert!(is_shown(), "{:?}", bench.names());
    driver.expose().unwrap().conceal(whole, &bench.volumes()[0].serial).unwrap();
    assert!(!is_shown(), "{:?}", bench.names());
    delete(bench, whole);
    for absent in ["hostsnap-no-such-pool/vms".to_owned(), format!("{}/absent", bench.pool())] {
        let nowhere = host_proxy::drivers::zfs::Zfs::new(absent.parse().unwrap()).unwrap();
        assert_eq!(nowhere.free_bytes().unwrap_err().kind, Kind::NotFound);
        assert_eq!(nowhere.list().unwrap_err().kind, Kind::NotFound);
    }
    destroy(&outside);
    nothing_is_left(bench);
}

/// The contract fills the pool; here a quota is full, and a volume that is not sparse has no room for a second time.
fn what_has_no_room_is_refused_before_the_freeze(bench: &Tank) {
    let refused = |volumes: &[Volume], words: &str| {
        let error = bench.driver().check(&volumes[0]).expect_err(words);
        assert_eq!(error.kind, Kind::NoSpace, "{error}");
        let error = bench.driver().prepare(&plan(owner(), volumes), soon()).err().expect(words);
        assert_eq!(error.kind, Kind::NoSpace, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        nothing_is_left(bench);
    };
    zpool(&["sync", bench.pool()]);
    let used = zfs(&["get", "-H", "-p", "-o", "value", "used", &bench.store()]);
    zfs(&["set", &format!("quota={}", used.trim()), &bench.store()]);
    refused(&bench.volumes(), "is full");
    zfs(&["set", "quota=none", &bench.store()]);

    let thick = bench.at("thick");
    zfs(&["create", "-V", "16M", &thick]);
    let path = Path::new("/dev/zvol").join(&thick);
    wait_until("udev names the volume", Duration::from_secs(60), || path.exists());
    let disk = volume(&path, "thick", None);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&vec![7; 12 << 20], 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    zpool(&["sync", bench.pool()]);
    bench.driver().check(&disk).unwrap();
    let used: u64 = zfs(&["get", "-H", "-p", "-o", "value", "used", &bench.store()]).trim().parse().unwrap();
    zfs(&["set", &format!("quota={}", used + (4 << 20)), &bench.store()]);
    refused(std::slice::from_ref(&disk), "refreservation=none");
    // What we say before the freeze is what ZFS would say in it.
    let bare = Command::new("zfs").args(["snapshot", &format!("{thick}@bare")]).output().unwrap();
    let said = String::from_utf8_lossy(&bare.stderr).into_owned();
    assert!(!bare.status.success() && said.contains("out of space"), "{said}");
    zfs(&["set", "refreservation=none", &thick]);
    bench.driver().check(&disk).unwrap();
    zfs(&["set", "quota=none", &bench.store()]);
    destroy(&thick);
}

fn a_volume_that_is_gone_or_got_anothers_name_is_not_cut(bench: &Tank) {
    let (one, moved) = (bench.at("one"), bench.at("moved"));
    let ready = prepare(bench, owner());
    zfs(&["rename", &one, &moved]);
    let error = ready.cut(soon()).err().expect("it has no such name any more");
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    assert!(error.undo_failed.is_none(), "{error}");
    nothing_is_left(bench);

    zfs(&["rename", &moved, &one]);
    let ready = prepare(bench, owner());
    zfs(&["rename", &one, &moved]);
    zfs(&["create", "-s", "-V", "8M", &one]);
    let mut cut = ready.cut(soon()).unwrap();
    let error = settle(&mut *cut).expect_err("that is another volume");
    assert!(error.to_string().contains("another volume"), "{error}");
    cut.abandon().unwrap();
    nothing_is_left(bench);
    destroy(&one);
    zfs(&["rename", &moved, &one]);
    let path = bench.volumes()[0].path().unwrap().to_owned();
    wait_until("udev names the volume", Duration::from_secs(60), || path.exists());
}

fn what_is_renamed_or_promoted_afterwards_stays_what_it_is(bench: &Tank) {
    let volumes = bench.volumes();
    bench.write(&volumes[0], 0x61);
    let owner = take(bench);
    let name = format!("hostsnap.{}", owner.snapshot);
    let (one, moved, mine) = (bench.at("one"), bench.at("moved"), bench.at("mine"));
    zfs(&["rename", &one, &moved]);
    assert!(bench.driver().list().unwrap()[0].whole);
    assert_eq!(first_byte(bench, owner, &volumes[0]), 0x61);
    // Somebody's clone takes the snapshot over, so that the volume itself depends on it.
    zfs(&["clone", &format!("{moved}@{name}"), &mine]);
    zfs(&["promote", &mine]);
    assert!(bench.names().contains(&format!("{mine}@{name}")), "{:?}", bench.names());
    assert!(bench.driver().list().unwrap()[0].whole);
    assert_eq!(first_byte(bench, owner, &volumes[0]), 0x61);
    let error = bench.driver().delete(owner).expect_err("the volume depends on it");
    assert_eq!(error.kind, Kind::Busy, "{error}");
    assert!(error.to_string().contains("zfs promote"), "{error}");
    assert!(bench.driver().list().unwrap()[0].whole);
    zfs(&["promote", &moved]);
    destroy(&mine);
    delete(bench, owner);
    zfs(&["rename", &moved, &one]);
    let path = volumes[0].path().unwrap();
    wait_until("udev names the volume", Duration::from_secs(60), || path.exists());
    nothing_is_left(bench);
}

fn what_is_whole_is_held_and_anothers_hold_is_respected(bench: &Tank) {
    let owner = take(bench);
    let snapshot = format!("{}@hostsnap.{}", bench.at("one"), owner.snapshot);
    let by_hand = Command::new("zfs").args(["destroy", &snapshot]).output().unwrap();
    assert!(!by_hand.status.success(), "it is held");
    zfs(&["hold", "mine", &snapshot]);
    let error = bench.driver().delete(owner).expect_err("somebody holds it");
    assert_eq!(error.kind, Kind::Busy, "{error}");
    assert!(error.to_string().contains(&format!("zfs release mine {snapshot}")), "{error}");
    assert!(zfs(&["holds", "-H", &snapshot]).contains("\thostsnap\t"), "we hold it no more");
    zfs(&["release", "mine", &snapshot]);
    delete(bench, owner);
    nothing_is_left(bench);
}

fn a_set_that_lost_a_part_is_not_whole(bench: &Tank) {
    let owner = take(bench);
    let snapshot = format!("{}@hostsnap.{}", bench.at("images"), owner.snapshot);
    zfs(&["release", "hostsnap", &snapshot]);
    destroy(&snapshot);
    let listed = bench.driver().list().unwrap();
    assert!(listed.len() == 1 && !listed[0].whole, "{listed:?}");
    let recovered = bench.driver().recover(owner, &bench.volumes()).unwrap();
    assert!(matches!(recovered, Recovered::Nothing));
    nothing_is_left(bench);
}

fn what_a_crash_leaves_in_between_is_recovered(bench: &Tank) {
    let manifest = "m".repeat(60_000).into_bytes();
    let large = |owner| Volumes { manifest: manifest.clone(), ..plan(owner, &bench.volumes()) };
    // Its note on the store is removed property by property.
    let half = owner();
    drop(bench.driver().prepare(&large(half), soon()).unwrap());
    assert_eq!(bench.driver().list().unwrap()[0].manifest.as_ref(), Some(&manifest));
    zfs(&["inherit", &format!("hostsnap:{}.0", half.snapshot), &bench.store()]);
    assert!(matches!(bench.driver().recover(half, &bench.volumes()).unwrap(), Recovered::Nothing));
    nothing_is_left(bench);

    // Held in part, and not whole yet.
    let held = owner();
    drop(bench.driver().prepare(&large(held), soon()).unwrap().cut(soon()).unwrap());
    let of = |name: &str| format!("{}@hostsnap.{}", bench.at(name), held.snapshot);
    zfs(&["hold", "hostsnap", &of("one")]);
    let Recovered::Cut(cut) = bench.driver().recover(held, &bench.volumes()).unwrap() else {
        panic!("what was cut is not found");
    };
    cut.seal(&manifest).unwrap();
    let listed = bench.driver().list().unwrap();
    assert!(listed[0].whole && listed[0].manifest.as_ref() == Some(&manifest));
    assert_eq!(bench.notes(), "", "the note of what was prepared is left");
    assert!(zfs(&["holds", "-H", &of("images")]).contains("hostsnap"), "it is held in part");
    zfs(&["release", "hostsnap", &of("one")]);
    delete(bench, held);
    nothing_is_left(bench);
}

fn a_pool_that_is_read_only_is_told(bench: &Tank) {
    let owner = take(bench);
    bench.import_again(&["-o", "readonly=on"]);
    let error = bench.driver().check(&bench.volumes()[0]).expect_err("nothing can be written");
    assert_eq!(error.kind, Kind::Unsupported, "{error}");
    assert!(error.to_string().contains("imported read-only"), "{error}");
    assert!(bench.driver().prepare(&plan(crate::owner(), &bench.volumes()), soon()).is_err());
    assert!(bench.driver().list().unwrap()[0].whole, "what was there can be listed");
    assert!(bench.driver().delete(owner).is_err());
    bench.import_again(&[]);
    delete(bench, owner);
    nothing_is_left(bench);
}

/// The kernel does not come back from a pool whose device is gone, until it is there again: then what was
/// asked for long ago is made, and must not stay.
fn a_pool_that_is_suspended_in_the_cut_ends_it_and_nothing_appears_later() {
    let (bench, device) = Tank::on_the_device_mapper();
    let table = run(Command::new("dmsetup").args(["table", &device])).trim().to_owned();
    let load = |table: &str| {
        run(Command::new("dmsetup").args(["suspend", "--nolockfs", "--noflush", &device]));
        run(Command::new("dmsetup").args(["reload", &device, "--table", table]));
        run(Command::new("dmsetup").args(["resume", &device]));
    };
    let ready = prepare(&bench, owner());
    let sectors = table.split(' ').nth(1).unwrap();
    load(&format!("0 {sectors} error"));
    let began = Instant::now();
    let error = ready.cut(began + Duration::from_secs(1)).err().expect("nothing can be written");
    assert_eq!(error.kind, Kind::DeadlinePassed, "{error}");
    assert!(!error.left_nothing(), "{error}");
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    let error = bench.driver().check(&bench.volumes()[0]).expect_err("it is suspended");
    assert!(error.to_string().contains("SUSPENDED"), "{error}");
    load(&table);
    zpool(&["clear", bench.pool()]);
    wait_until("what came too late is removed", Duration::from_secs(60), || {
        !bench.names().iter().any(|name| name.contains("@hostsnap."))
    });
    let owner = bench.driver().list().unwrap()[0].owner;
    assert!(matches!(bench.driver().recover(owner, &bench.volumes()).unwrap(), Recovered::Nothing));
    nothing_is_left(&bench);
}
