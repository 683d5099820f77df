//! qcow2 images given back the bytes of a snapshot: by the QEMU that has them open, whatever happens meanwhile, and by
//! `qemu-img` where nobody has.

mod machine;
mod proxy;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use harness::loopfs::{Kind as Fs, LoopFs};
use host_proxy::drivers::{DriverError, Kind, Others, Owner, Progress};
use serde_json::json;

use super::DISK_BYTES;
use machine::{Machine, Shape, qemu_img};
use proxy::Proxy;

/// Restores, and watches what is told of it.
fn restore(machine: &Machine, owner: Owner, others: Others) -> Result<(), DriverError> {
    let driver = machine.driver();
    let able = driver.restore().expect("it can");
    let mut last = 0;
    able.restore(owner, &machine.volume, others, &mut |progress| {
        assert!(progress.done_bytes >= last, "progress goes back");
        assert_eq!(progress.total_bytes, DISK_BYTES);
        last = progress.done_bytes;
    })?;
    assert_eq!(last, DISK_BYTES, "the end is told");
    Ok(())
}

/// A snapshot of a disk that has data, zeros, and what is in the image below; and then something else there.
fn scene(machine: &Machine) -> (Owner, Vec<u8>) {
    machine.write(0x11, 0, 1 << 20);
    machine.write(0, 2 << 20, 1 << 20);
    let old = machine.take();
    let was = fs::read(machine.snapshot(old)).unwrap();
    assert_eq!([was[0], was[2 << 20], was[5 << 20]], [0x11, 0, 5]);
    machine.write(0x22, (1 << 20) - 4096, 2 << 20);
    machine.write(0x23, (6 << 20) + 512, 4096);
    (old, was)
}

#[test]
fn a_qcow2_image_that_nobody_has_open_goes_back_and_stays_the_same_file() {
    let mut machine = Machine::start(Shape::Blockdev);
    let (old, was) = scene(&machine);
    let newer = machine.take();
    let now = fs::read(machine.snapshot(newer)).unwrap();
    let could = machine.driver().restore().unwrap().can_restore(old, &machine.volume, Others::Nobody);
    assert_eq!(could.expect_err("its QEMU runs").kind, Kind::Busy);
    let busy = restore(&machine, old, Others::Nobody).expect_err("its QEMU runs");
    assert_eq!(busy.kind, Kind::Busy, "{busy}");
    assert!(machine.reads() == now, "it was refused and touched");
    machine.kill();
    let inode = fs::metadata(machine.image()).unwrap().ino();
    machine.driver().restore().unwrap().can_restore(old, &machine.volume, Others::Machine).unwrap();
    machine.holds(&now, inode);
    restore(&machine, old, Others::Nobody).unwrap();
    machine.holds(&was, inode);
    // Forwards, ended in the middle, and done again.
    let stopped = catch_unwind(AssertUnwindSafe(|| {
        let stop = &mut |progress: Progress| match progress.done_bytes {
            0 => {}
            _ => resume_unwind(Box::new("killed")),
        };
        machine.driver().restore().unwrap().restore(newer, &machine.volume, Others::Nobody, stop)
    }));
    assert!(stopped.is_err(), "it came to its end");
    restore(&machine, newer, Others::Machine).unwrap();
    machine.holds(&now, inode);
    assert!(fs::read(machine.snapshot(old)).unwrap() == was, "a snapshot was changed");
}

#[test]
fn without_room_for_a_qcow2_image_nothing_is_touched_or_it_is_finished_when_there_is() {
    let images = LoopFs::in_memory(Fs::Ext4, 48);
    let machine = Machine::start_in(Shape::Blockdev, &images.path());
    let (old, was) = scene(&machine);
    let now = machine.reads();
    // That it grows by more than there is can be told.
    let filler = images.fill();
    let refused = restore(&machine, old, Others::Machine).expect_err("there is no room");
    assert_eq!(refused.kind, Kind::NoSpace, "{refused}");
    assert!(machine.reads() == now, "it was refused and touched");
    machine.has_nothing_left();
    drop(filler);
    // That an internal snapshot keeps its clusters can't.
    machine.write(0x24, 0, 8 << 20);
    machine.ask("blockdev-snapshot-internal-sync", json!({ "device": "one", "name": "full" }));
    let filler = images.fill();
    let stopped = restore(&machine, old, Others::Machine).expect_err("there is no room");
    assert_eq!(stopped.kind, Kind::Failed, "{stopped}");
    assert!(stopped.to_string().contains("No space left"), "{stopped}");
    assert!(machine.is_covered(), "its guest reads what is half done");
    drop(filler);
    restore(&machine, old, Others::Machine).unwrap();
    assert!(machine.reads() == was, "a byte is not what it was at the cut");
    machine.has_nothing_left();
}

#[test]
fn a_qcow2_disk_that_its_qemu_may_not_write_to_is_refused_untouched() {
    let mut machine = Machine::start(Shape::Blockdev);
    let (old, _) = scene(&machine);
    machine.kill();
    let before = fs::read(machine.image()).unwrap();
    machine.boot(Shape::ReadOnly);
    let driver = machine.driver();
    let could = driver.restore().unwrap().can_restore(old, &machine.volume, Others::Machine);
    for error in [could, restore(&machine, old, Others::Machine)] {
        let error = error.expect_err("it is read-only");
        assert_eq!(error.kind, Kind::Unsupported, "{error}");
        assert!(error.told.is_some_and(|told| told.contains("read-only")), "{error}");
    }
    machine.has_nothing_left();
    assert!(fs::read(machine.image()).unwrap() == before, "it was refused and touched");
}

#[test]
fn a_qcow2_image_that_can_not_take_the_bytes_is_refused_untouched() {
    let mut machine = Machine::start(Shape::Blockdev);
    let (old, _) = scene(&machine);
    machine.kill();
    let image = machine.image().to_str().unwrap().to_owned();
    let refused = |kind: Kind, why: &str, told: &str| {
        let before = fs::read(&image).unwrap();
        let driver = machine.driver();
        let could = driver.restore().unwrap().can_restore(old, &machine.volume, Others::Machine);
        for error in [could, restore(&machine, old, Others::Nobody), restore(&machine, old, Others::Machine)]
        {
            let error = error.expect_err(why);
            assert_eq!(error.kind, kind, "{why}: {error}: {:?}", error.source);
            assert!(error.told.is_some_and(|words| words.contains(told)), "{why}: {error}: {:?}", error.told);
        }
        assert!(fs::read(&image).unwrap() == before, "{why}: it was touched");
    };
    let kept = machine.at("kept.qcow2");
    fs::copy(&image, &kept).unwrap();
    qemu_img(&["resize", "-q", &image, "+4M"]);
    refused(Kind::Unsupported, "it has grown", "another size");
    fs::copy(&kept, &image).unwrap();
    fs::rename(machine.at("base.qcow2"), machine.at("elsewhere")).unwrap();
    refused(Kind::Unsupported, "what it stands on is away", "can't open");
    fs::rename(machine.at("elsewhere"), machine.at("base.qcow2")).unwrap();
    fs::write(&image, vec![0; 8 << 20]).unwrap();
    refused(Kind::Unsupported, "it is no qcow2 image", "can't open");
    let secret = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
    let size = DISK_BYTES.to_string();
    qemu_img(&[
        "create",
        "-q",
        "--object",
        "secret,id=key,data=x",
        "-f",
        "qcow2",
        "-o",
        secret,
        &image,
        &size,
    ]);
    refused(Kind::Unsupported, "its key is not here", "encrypted");
    fs::remove_file(&image).unwrap();
    let gone = restore(&machine, old, Others::Nobody).expect_err("it is gone");
    assert_eq!(gone.kind, Kind::NotFound, "{gone}");
}

#[test]
fn a_qcow2_disk_goes_back_while_its_machine_runs_however_qemu_has_it() {
    for shape in [Shape::Blockdev, Shape::Drive, Shape::Scsi, Shape::IoThread] {
        let mut machine = Machine::start(shape);
        let inode = fs::metadata(machine.image()).unwrap().ino();
        let (old, was) = scene(&machine);
        machine.driver().restore().unwrap().can_restore(old, &machine.volume, Others::Machine).unwrap();
        machine.has_nothing_left();
        restore(&machine, old, Others::Machine).unwrap_or_else(|error| panic!("{shape:?}: {error:?}"));
        assert!(machine.reads() == was, "{shape:?}: a byte is not what it was at the cut");
        machine.has_nothing_left();
        // What its guest writes from then on is in the image.
        machine.write(0x77, 3 << 20, 4096);
        let mut now = was.clone();
        now[3 << 20..][..4096].fill(0x77);
        assert!(fs::read(machine.snapshot(old)).unwrap() == was, "a snapshot was changed");
        machine.kill();
        machine.holds(&now, inode);
    }
}

/// As soon as a disk shows the old bytes its guest may use it; the host is not done by then.
#[test]
fn what_a_guest_writes_while_its_disk_goes_back_is_not_lost() {
    let machine = Machine::start(Shape::Blockdev);
    let (old, mut was) = scene(&machine);
    let mut writes = 0;
    let driver = machine.driver();
    let write = &mut |progress: Progress| {
        if progress.done_bytes > 0 && writes < 8 {
            machine.write(0x77, (1 << 20) + 4096 * writes, 4096);
            writes += 1;
        }
    };
    driver.restore().unwrap().restore(old, &machine.volume, Others::Machine, write).unwrap();
    assert!(writes > 0);
    was[1 << 20..][..4096 * usize::try_from(writes).unwrap()].fill(0x77);
    assert!(machine.reads() == was);
}

/// The service is killed after each of the commands that it gives QEMU: QEMU does it, and nobody knows.
#[test]
fn whenever_the_service_is_killed_a_restore_in_a_running_machine_is_finished_by_doing_it_again() {
    let mut machine = Machine::start(Shape::Drive);
    let (old, was) = scene(&machine);
    let inode = fs::metadata(machine.image()).unwrap().ino();
    let proxy = Proxy::start(&machine.at("proxy"), &machine.at("qmp"));
    machine.volume.qmp = Some(machine.at("proxy"));
    let mut covered = Vec::new();
    // Those before only ask.
    let mut commands = 9;
    loop {
        commands += 1;
        machine.write(0x22, 1 << 20, 2 << 20);
        proxy.hang_up_after(commands);
        let ended = restore(&machine, old, Others::Machine);
        if !proxy.has_hung_up() {
            ended.expect("nobody was in its way");
            break;
        }
        if machine.is_covered() {
            covered.push(commands);
            let error = machine.driver().check(&machine.direct()).expect_err("it shows something else");
            assert_eq!(error.kind, Kind::Busy, "{error}");
        }
        proxy.go_on();
        restore(&machine, old, Others::Machine).unwrap_or_else(|error| panic!("after {commands}: {error:?}"));
        assert!(machine.reads() == was, "a byte is not what it was at the cut, after {commands} commands");
        machine.has_nothing_left();
    }
    // QEMU ends too, in the middle.
    let [first, ..] = covered[..] else { panic!("it was never in place") };
    machine.write(0x22, 1 << 20, 2 << 20);
    proxy.hang_up_after(first);
    restore(&machine, old, Others::Machine).expect_err("the service was killed");
    machine.kill();
    machine.volume.qmp = Some(machine.at("qmp"));
    restore(&machine, old, Others::Machine).unwrap();
    machine.holds(&was, inode);
}
