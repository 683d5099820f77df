//! qcow2 images given back the bytes of a snapshot: by `qemu-img` where nobody has them open.

mod machine;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use host_proxy::drivers::{DriverError, Kind, Others, Owner, Progress};

use super::DISK_BYTES;
use machine::{Machine, Shape, qemu_img};

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
    let busy = restore(&machine, old, Others::Nobody).expect_err("its QEMU runs");
    assert_eq!(busy.kind, Kind::Busy, "{busy}");
    assert!(machine.reads() == now, "it was refused and touched");
    machine.kill();
    let inode = fs::metadata(machine.image()).unwrap().ino();
    machine.driver().restore().unwrap().can_restore(old, &machine.volume).unwrap();
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
    for shape in [Shape::Drive, Shape::Scsi, Shape::IoThread] {
        machine.boot(shape);
        assert!(machine.reads() == now, "a guest reads something else");
        machine.kill();
    }
}

#[test]
fn a_qcow2_image_that_can_not_take_the_bytes_is_refused_untouched() {
    let mut machine = Machine::start(Shape::Blockdev);
    let (old, _) = scene(&machine);
    machine.kill();
    let image = machine.image().to_str().unwrap().to_owned();
    let refused = |kind: Kind, why: &str| {
        let before = fs::read(&image).unwrap();
        let driver = machine.driver();
        let could = driver.restore().unwrap().can_restore(old, &machine.volume);
        for error in [could, restore(&machine, old, Others::Nobody), restore(&machine, old, Others::Machine)]
        {
            let error = error.expect_err(why);
            assert_eq!(error.kind, kind, "{why}: {error}: {:?}", error.source);
        }
        assert!(fs::read(&image).unwrap() == before, "{why}: it was touched");
    };
    let kept = machine.at("kept.qcow2");
    fs::copy(&image, &kept).unwrap();
    qemu_img(&["resize", "-q", &image, "+4M"]);
    refused(Kind::Unsupported, "it has grown");
    fs::copy(&kept, &image).unwrap();
    fs::rename(machine.at("base.qcow2"), machine.at("elsewhere")).unwrap();
    refused(Kind::Unsupported, "what it stands on is away");
    fs::rename(machine.at("elsewhere"), machine.at("base.qcow2")).unwrap();
    fs::write(&image, vec![0; 8 << 20]).unwrap();
    refused(Kind::Unsupported, "it is no qcow2 image");
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
    refused(Kind::Unsupported, "its key is not here");
    fs::remove_file(&image).unwrap();
    let gone = restore(&machine, old, Others::Nobody).expect_err("it is gone");
    assert_eq!(gone.kind, Kind::NotFound, "{gone}");
}
