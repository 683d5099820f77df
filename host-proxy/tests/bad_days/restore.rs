//! Going back: a disk has its old bytes and what it held before is kept; what can't be is refused, and nothing touched.

use std::fs;

use protocol::message::{DiskRequest, Reply, Request};
use protocol::restore::{Layout, Restore, RestorePlan, Safety};
use protocol::{Consistency, ErrorCode, RequestId, SnapshotId, WireError};
use serde_json::{Value, json};

use super::stage::{Stage, request};

/// Fills the disk with this byte, as its guest would.
fn write(stage: &Stage, byte: u8) {
    let size = fs::metadata(stage.image()).unwrap().len();
    let file = fs::File::options().write(true).open(stage.image()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![byte; usize::try_from(size).unwrap()], 0).unwrap();
    file.sync_all().unwrap();
}

/// The byte that fills the disk.
#[track_caller]
fn byte(stage: &Stage) -> u8 {
    let bytes = fs::read(stage.image()).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "it is neither the old bytes nor the new");
    bytes[0]
}

fn wanted(id: SnapshotId) -> Restore {
    let disk: Vec<DiskRequest> = request(Consistency::Crash).disks.into_inner();
    Restore {
        request: RequestId::random(),
        id,
        disks: disk.try_into().unwrap(),
        safety: Safety::Snapshot,
        layout: Layout::Same,
        dry_run: false,
    }
}

fn ask(stage: &Stage, wanted: &Restore) -> Result<RestorePlan, WireError> {
    let mut guest = stage.greeted();
    guest.send(&Request::Restore(wanted.clone()));
    loop {
        match guest.hears().expect("an answer") {
            Reply::Progress(_) => {}
            Reply::RestorePlanned(plan) if wanted.dry_run => return Ok(plan),
            Reply::Restored(plan) if !wanted.dry_run => return Ok(plan),
            Reply::Error(error) => return Err(error),
            other => panic!("{other:?}"),
        }
    }
}

#[track_caller]
fn is_refused(stage: &Stage, wanted: &Restore, code: ErrorCode, words: &str) {
    let error = ask(stage, wanted).expect_err("it can't be");
    assert_eq!(error.code, code, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn a_disk_is_given_back_its_old_bytes_once_and_what_it_held_is_kept() {
    let mut stage = Stage::set();
    let id = stage.take(&request(Consistency::Filesystem)).unwrap().id;
    write(&stage, 8);
    let asked = wanted(id);
    let planned = ask(&stage, &Restore { dry_run: true, ..asked.clone() }).unwrap();
    assert_eq!((byte(&stage), stage.listed().len()), (8, 1), "a preview changes nothing");

    let done = ask(&stage, &asked).unwrap();
    assert_eq!((&done, byte(&stage)), (&planned, 7));
    let safety = done.safety.expect("it was not left out").to_string();
    let kept = stage.admin(&["show", "--json", &safety]).json();
    assert_eq!(kept["labels"]["hostsnap/before-restore-of"], id.to_string(), "{kept}");
    assert_eq!((&kept["consistency"], &kept["state"]), (&json!("crash"), &json!("ready")));

    // A repeat, by a guest that lost the answer, tells it again and touches nothing.
    write(&stage, 9);
    stage.restart();
    assert_eq!((ask(&stage, &asked).unwrap(), byte(&stage)), (done, 9));
    let other = Restore { id: safety.parse().unwrap(), ..asked };
    is_refused(&stage, &other, ErrorCode::RequestReused, "used before");

    // Forwards again, and nothing is kept where nobody wants it.
    let forwards = Restore { safety: Safety::None, ..wanted(safety.parse().unwrap()) };
    let forwards = ask(&stage, &Restore { layout: Layout::Any, ..with_byte(forwards, 9) }).unwrap();
    assert_eq!((forwards.safety, byte(&stage), stage.listed().len()), (None, 8, 2));
    let audit = stage.offline(&["audit", "--json"]).out;
    let restores = audit.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let restores: Vec<_> = restores.filter(|line| line["verb"] == "restore").collect();
    assert_eq!(restores.len(), 4, "{restores:?}");
    assert!(restores[0]["snapshot"] == id.to_string() && restores[2]["decision"] == "refused");
}

/// As the guest reads a disk that is filled with this byte.
fn with_byte(wanted: Restore, byte: u8) -> Restore {
    let mut disks = wanted.disks.clone().into_inner();
    let head = [byte; protocol::fingerprint::HEAD_BYTES];
    disks[0].fingerprint = protocol::fingerprint::of_head(&head);
    Restore { disks: disks.try_into().unwrap(), ..wanted }
}

#[test]
fn what_can_not_be_restored_is_refused_with_the_reason_and_nothing_is_touched() {
    let stage = Stage::set();
    let id = stage.take(&request(Consistency::Filesystem)).unwrap().id;
    write(&stage, 8);
    let right = wanted(id);
    let changed = |change: &dyn Fn(&mut DiskRequest)| {
        let mut disks = right.disks.clone().into_inner();
        change(&mut disks[0]);
        Restore { disks: disks.try_into().unwrap(), ..right.clone() }
    };
    let absent = SnapshotId::from_uuid(*RequestId::random().as_uuid());
    let no_disk = Restore { disks: Vec::new().try_into().unwrap(), ..right.clone() };
    let cases = [
        (wanted(absent), ErrorCode::NotFound, "no snapshot"),
        (no_disk, ErrorCode::BadRequest, "names no disk"),
        (changed(&|disk| disk.serial = "other".parse().unwrap()), ErrorCode::UnknownDisk, "it has: data"),
        (changed(&|disk| disk.size_bytes += 512), ErrorCode::DiskMismatch, "resized"),
    ];
    for (wanted, code, words) in cases {
        is_refused(&stage, &wanted, code, words);
        is_refused(&stage, &Restore { dry_run: true, ..wanted }, code, words);
    }
    // A file system was made on it since.
    let mut head = fs::read(stage.image()).unwrap();
    head[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    fs::write(stage.image(), &head).unwrap();
    is_refused(&stage, &right, ErrorCode::DiskMismatch, "the guest reads");
    let seen = changed(&|disk| disk.fingerprint = protocol::fingerprint::of_head(&head));
    is_refused(&stage, &seen, ErrorCode::DiskMismatch, "--changed-layout");
    // The image has grown.
    fs::File::options().write(true).open(stage.image()).unwrap().set_len(2 << 20).unwrap();
    is_refused(&stage, &seen, ErrorCode::Unsupported, "another size");
    assert_eq!(stage.listed().len(), 1, "nothing was kept for nothing");

    stage.configure(&stage.config_text().replace("\nsocket =", "\nallow = [\"create\", \"list\"]\nsocket ="));
    stage.signal(rustix::process::Signal::HUP);
    harness::wait::wait_until("it is reloaded", super::stage::LIMIT, || {
        stage.printed().contains("configuration reloaded")
    });
    is_refused(&stage, &seen, ErrorCode::Refused, "does not allow db1 to restore");
}

/// It was told that the disk has another size than the snapshot.
#[test]
fn a_damaged_snapshot_is_told_of_and_the_disk_is_not_touched() {
    let stage = Stage::set();
    let id = stage.take(&request(Consistency::Filesystem)).unwrap().id;
    write(&stage, 8);
    let kept = stage.kept(&id);
    let whole = fs::read(&kept).unwrap();
    let right = Restore { layout: Layout::Any, ..with_byte(wanted(id), 8) };
    for (left, words) in
        [(Some(whole.len() - 512), "is damaged"), (Some(0), "is damaged"), (None, "does not have it")]
    {
        match left {
            Some(left) => fs::write(&kept, &whole[..left]).unwrap(),
            None => fs::remove_file(&kept).unwrap(),
        }
        is_refused(&stage, &right, ErrorCode::StorageFailed, words);
        is_refused(&stage, &Restore { dry_run: true, ..right.clone() }, ErrorCode::StorageFailed, words);
        let by_admin = stage.admin(&["restore", "db1", &id.to_string(), "--changed-layout", "--json"]);
        assert_eq!(by_admin.code, 8, "{}", by_admin.err);
        let exported = stage.admin(&["export", &id.to_string(), "--json"]);
        assert_eq!(exported.code, 8, "{}", exported.err);
        assert_eq!((byte(&stage), stage.listed().len()), (8, 1), "nothing was kept for nothing");
    }
    fs::write(&kept, &whole).unwrap();
    ask(&stage, &right).unwrap();
    assert_eq!(byte(&stage), 7);
}

#[test]
fn without_room_for_what_the_disk_holds_now_nothing_is_restored() {
    let stage = Stage::set();
    stage.configure(&stage.config_text().replace("[[vm.disk]]", "[vm.quota]\nsnapshots = 1\n[[vm.disk]]"));
    stage.signal(rustix::process::Signal::HUP);
    harness::wait::wait_until("it is reloaded", super::stage::LIMIT, || {
        stage.printed().contains("configuration reloaded")
    });
    let id = stage.take(&request(Consistency::Filesystem)).unwrap().id;
    write(&stage, 8);
    is_refused(&stage, &wanted(id), ErrorCode::QuotaExceeded, "--no-safety");
    assert_eq!(byte(&stage), 8);
    ask(&stage, &Restore { safety: Safety::None, ..wanted(id) }).unwrap();
    assert_eq!(byte(&stage), 7);
}

#[test]
fn the_administrator_restores_a_machine_that_is_stopped_and_no_other() {
    let stage = Stage::set();
    let id = stage.take(&request(Consistency::Filesystem)).unwrap().id.to_string();
    write(&stage, 8);
    let preview = stage.admin(&["restore", "db1", "latest", "--preview", "--json"]).json();
    assert_eq!((&preview["preview"], &preview["id"]), (&json!(true), &json!(id)), "{preview}");
    assert_eq!((&preview["disks"][0]["disk"], byte(&stage)), (&json!("data"), 8));

    // Its device waits for who is wanted: it runs.
    let device = std::os::unix::net::UnixListener::bind(stage.device()).unwrap();
    let running = stage.admin(&["restore", "db1", &id, "--json"]);
    assert_eq!(running.error()["code"], "Busy");
    assert!(running.err.contains("db1 is running"), "{}", running.err);
    // One that closes what it accepts waits for a machine.
    std::thread::spawn(move || device.incoming().for_each(drop));
    // Its QEMU has the image open, as its lock shows.
    let held = fs::File::options().read(true).write(true).open(stage.image()).unwrap();
    rustix::fs::fcntl_lock(&held, rustix::fs::FlockOperation::NonBlockingLockShared).unwrap();
    let locked = stage.admin(&["restore", "db1", &id, "--no-safety", "--json"]);
    assert_eq!((locked.code, locked.error()["code"].as_str()), (6, Some("Busy")), "{}", locked.err);
    let locked = stage.admin(&["restore", "db1", &id, "--preview", "--json"]);
    assert_eq!((locked.code, locked.error()["code"].as_str()), (6, Some("Busy")), "{}", locked.err);
    let locked = stage.admin(&["restore", "db1", &id, "--json"]);
    assert_eq!((locked.code, stage.listed().len()), (6, 1), "nothing was kept for nothing: {}", locked.err);
    assert_eq!(byte(&stage), 8);
    drop(held);

    let done = stage.admin(&["restore", "db1", &id, "data"]);
    assert_eq!((done.code, byte(&stage)), (0, 7), "{}", done.err);
    assert!(done.out.contains("restored") && done.out.contains("kept"), "{}", done.out);
    assert_eq!(stage.listed().len(), 2);
    let absent = stage.admin(&["restore", "db1", &id, "other", "--json"]);
    assert_eq!(absent.code, 5, "{}", absent.err);
}
