//! Who may do what, each rule at its edge.

use std::path::Path;

use protocol::attach::Access;
use protocol::evidence::CutEvidence;
use protocol::fingerprint::Fingerprint;
use protocol::record::{State, Timing};
use protocol::text::{Labels, Line};
use protocol::{BoundedVec, Consistency, RequestId, SnapshotId};

use super::*;
use crate::config::Config;

const HOUR: u64 = 3_600_000;
const NOW: UnixMillis = UnixMillis(1000 * HOUR);

/// Two machines; the first has two disks and these keys more.
fn machines(keys: &str) -> [Vm; 2] {
    let text = format!(
        "[[store]]\nname = \"s\"\ndriver = \"reflink\"\npath = \"/s\"\n\
         [[vm]]\nname = \"db1\"\nuuid = \"3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01\"\ncid = 41\n{keys}\n\
         [[vm.disk]]\nserial = \"data\"\nstore = \"s\"\npath = \"/s/a\"\nformat = \"raw\"\n\
         [[vm.disk]]\nserial = \"log\"\nstore = \"s\"\npath = \"/s/b\"\nformat = \"raw\"\n\
         [[vm]]\nname = \"db2\"\nuuid = \"3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f02\"\ncid = 42\n"
    );
    Config::parse(&text, Path::new("test.toml")).unwrap().vms.try_into().unwrap()
}

fn asked(serials: &[&str]) -> Prepare {
    let disk = |serial: &&str| DiskRequest {
        serial: serial.parse().unwrap(),
        size_bytes: 1000,
        fingerprint: Fingerprint::empty(),
    };
    Prepare {
        request: RequestId::random(),
        disks: serials.iter().map(disk).collect::<Vec<_>>().try_into().unwrap(),
        mounts: BoundedVec::empty(),
        labels: Labels::default(),
        note: "".parse().unwrap(),
        minimum: Consistency::Crash,
        keep_for_s: None,
        lease_ms: 1000,
        dry_run: false,
    }
}

/// A snapshot of an hour ago.
fn snapshot(vm: &Vm) -> SnapshotRecord {
    let request = RequestId::random();
    SnapshotRecord {
        id: SnapshotId::derive(vm.uuid, request),
        vm_uuid: vm.uuid,
        vm: vm.name.clone(),
        request,
        created_at: UnixMillis(NOW.0 - HOUR),
        consistency: Consistency::Crash,
        consistency_reason: Line::lossy(""),
        minimum: Consistency::Crash,
        state: State::Ready,
        labels: Labels::default(),
        note: "".parse().unwrap(),
        mounts: BoundedVec::empty(),
        disks: BoundedVec::empty(),
        timing: Timing::default(),
        expires_at: None,
        locked_until: None,
        evidence: None,
        cut: CutEvidence::Unknown,
    }
}

fn code<T>(decided: Result<Allowed<T>, WireError>) -> Option<ErrorCode> {
    decided.err().map(|error| error.code)
}

#[test]
fn a_guest_cannot_delete_its_neighbours_snapshot_nor_learn_that_it_is_there() {
    let [own, neighbour] = machines("");
    let mine = snapshot(&own);
    assert!(delete(&own, &mine, NOW).is_ok());
    let refused = delete(&neighbour, &mine, NOW).unwrap_err();
    assert_eq!(refused, not_found(&mine.id.to_string()));
    // What it may not do with its own tells nothing of others' either.
    let [own, neighbour] = machines("allow = [\"list\"]\nguest_may_delete = false");
    let theirs = snapshot(&neighbour);
    assert_eq!(delete(&own, &theirs, NOW).unwrap_err(), not_found(&theirs.id.to_string()));
}

#[test]
fn a_guest_does_only_what_its_verbs_allow_and_the_administrator_everything() {
    for (allowed, create_is, read_is, delete_is) in [
        ("\"create\", \"list\", \"delete\"", None, None, None),
        ("\"create\"", None, Some(ErrorCode::Refused), Some(ErrorCode::Refused)),
        ("\"list\"", Some(ErrorCode::Refused), None, Some(ErrorCode::Refused)),
        ("\"delete\"", Some(ErrorCode::Refused), Some(ErrorCode::Refused), None),
        ("", Some(ErrorCode::Refused), Some(ErrorCode::Refused), Some(ErrorCode::Refused)),
    ] {
        let [vm, _] = machines(&format!("allow = [{allowed}]"));
        let wanted = asked(&["data"]);
        assert_eq!(code(create(Asker::Guest, &vm, &wanted, &Usage::default())), create_is, "{allowed}");
        assert_eq!(code(read(Asker::Guest, &vm)), read_is, "{allowed}");
        assert_eq!(code(delete(&vm, &snapshot(&vm), NOW)), delete_is, "{allowed}");
        assert!(create(Asker::Admin, &vm, &wanted, &Usage::default()).is_ok());
        assert!(read(Asker::Admin, &vm).is_ok());
        assert!(delete_as_admin(&snapshot(&vm), NOW).is_ok());
    }
}

#[test]
fn a_guest_reads_what_is_its_own_and_the_administrator_what_is_asked_for() {
    let [vm, _] = machines("");
    assert_eq!(*read(Asker::Guest, &vm).unwrap().get(), Scope(Some(vm.uuid)));
    assert_eq!(read_as_admin(None).into_inner(), Scope(None));
    assert_eq!(read_as_admin(Some(vm.uuid)).into_inner(), Scope(Some(vm.uuid)));
}

#[test]
fn a_guest_that_may_not_delete_deletes_nothing_however_its_verbs_are() {
    let [vm, _] = machines("guest_may_delete = false");
    let refused = delete(&vm, &snapshot(&vm), NOW).unwrap_err();
    assert_eq!((refused.code, refused.code.exit_code()), (ErrorCode::Refused, 4));
    assert!(refused.hint.as_str().contains("guest_may_delete"), "{refused}");
    assert!(delete_as_admin(&snapshot(&vm), NOW).is_ok());
}

#[test]
fn disks_that_are_not_its_own_none_or_one_twice_are_refused_and_the_others_are_as_configured() {
    let [vm, neighbour] = machines("");
    let decide = |vm: &Vm, serials: &[&str]| create(Asker::Guest, vm, &asked(serials), &Usage::default());
    assert_eq!(code(decide(&vm, &[])), Some(ErrorCode::BadRequest));
    assert_eq!(code(decide(&vm, &["data", "data"])), Some(ErrorCode::BadRequest));
    assert_eq!(code(decide(&vm, &["data", "other"])), Some(ErrorCode::UnknownDisk));
    assert_eq!(code(decide(&neighbour, &["data"])), Some(ErrorCode::UnknownDisk));
    let allowed = decide(&vm, &["log", "data"]).unwrap().into_inner();
    let paths: Vec<_> = allowed.disks.iter().map(|(disk, _)| disk.source.to_string()).collect();
    assert_eq!((allowed.vm.uuid, paths), (vm.uuid, vec!["/s/b".to_owned(), "/s/a".to_owned()]));
}

#[test]
fn a_quota_is_used_up_to_its_last_snapshot_and_byte_and_not_beyond() {
    let [vm, _] = machines("quota = { snapshots = 3, per_hour = 5, bytes = 10000 }");
    let decide = |snapshots, created_last_hour, bytes, asker| {
        let usage = Usage { snapshots, bytes, created_last_hour };
        code(create(asker, &vm, &asked(&["data", "log"]), &usage))
    };
    let over = Some(ErrorCode::QuotaExceeded);
    assert_eq!(decide(2, 4, 8000, Asker::Guest), None);
    assert_eq!(decide(3, 0, 0, Asker::Guest), over);
    assert_eq!(decide(0, 5, 0, Asker::Guest), over);
    assert_eq!(decide(0, 0, 8001, Asker::Guest), over);
    assert_eq!(decide(0, 0, u64::MAX, Asker::Guest), over);
    // The administrator asks for the guest: its quota is kept.
    assert_eq!(decide(3, 0, 0, Asker::Admin), over);
    let [unlimited, _] = machines("quota = { snapshots = 3 }");
    let usage = Usage { snapshots: 2, bytes: u64::MAX, created_last_hour: 0 };
    assert!(create(Asker::Guest, &unlimited, &asked(&["data"]), &usage).is_ok());
}

#[test]
fn the_floor_of_a_pool_stays_free_to_its_last_byte() {
    assert!(room("s", 100, 100).is_ok());
    let refused = room("s", 99, 100).unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
}

#[test]
fn a_locked_snapshot_is_removed_by_nobody_until_the_very_moment() {
    let [vm, _] = machines("");
    let locked = SnapshotRecord {
        locked_until: Some(UnixMillis(NOW.0 + 1)),
        expires_at: Some(UnixMillis(NOW.0 - 1)),
        ..snapshot(&vm)
    };
    let by_all = |now: UnixMillis| {
        let expired = expire(&locked, now, u64::MAX).is_some();
        [code(delete(&vm, &locked, now)).is_none(), code(delete_as_admin(&locked, now)).is_none(), expired]
    };
    assert_eq!(by_all(NOW), [false; 3]);
    assert_eq!(by_all(UnixMillis(NOW.0 + 1)), [true; 3]);
    let refused = delete_as_admin(&locked, NOW).unwrap_err();
    assert_eq!((refused.code, refused.code.exit_code()), (ErrorCode::Locked, 4));
    assert!(refused.hint.as_str().contains(&format!("hostsnapd unlock {}", locked.id)), "{refused}");
}

#[test]
fn the_administrator_locks_what_is_ready_until_a_moment_to_come_and_unlocks_anything() {
    let [vm, _] = machines("");
    let ready = snapshot(&vm);
    let after = Some(UnixMillis(NOW.0 + 1));
    assert_eq!(lock_as_admin(&ready, after, NOW).unwrap().get().until, after);
    assert_eq!(code(lock_as_admin(&ready, Some(NOW), NOW)), Some(ErrorCode::BadRequest));
    for (state, refused) in [(State::Settling, ErrorCode::Busy), (State::Failed, ErrorCode::Unsupported)] {
        let other = SnapshotRecord { state, locked_until: after, ..ready.clone() };
        assert_eq!(code(lock_as_admin(&other, after, NOW)), Some(refused));
        assert!(lock_as_admin(&other, None, NOW).unwrap().get().until.is_none());
    }
}

#[test]
fn a_snapshot_expires_at_its_end_and_without_one_never() {
    let [vm, _] = machines("");
    let ends = |at: u64| SnapshotRecord { expires_at: Some(UnixMillis(at)), ..snapshot(&vm) };
    assert!(expire(&ends(NOW.0 + 1), NOW, 0).is_none());
    assert_eq!(expire(&ends(NOW.0), NOW, 0).unwrap().get().0.vm_uuid, vm.uuid);
    assert!(expire(&snapshot(&vm), UnixMillis(u64::MAX), u64::MAX).is_none());
    // To be kept for an hour from a moment far ahead.
    let ahead = SnapshotRecord { created_at: UnixMillis(NOW.0 * 9), ..ends(NOW.0 * 9 + HOUR) };
    assert!(expire(&ahead, NOW, HOUR - 1).is_none());
    assert!(expire(&ahead, NOW, HOUR).is_some());
}

fn wish(record: &SnapshotRecord, serials: &[&str]) -> protocol::attach::Attach {
    let disks: Vec<_> = serials.iter().map(|serial| serial.parse().unwrap()).collect();
    protocol::attach::Attach { id: record.id, disks: disks.try_into().unwrap(), access: Access::ReadOnly }
}

fn with_disks(vm: &Vm) -> SnapshotRecord {
    let disk = |serial: &str| protocol::record::DiskRecord {
        serial: serial.parse().unwrap(),
        driver: "reflink".parse().unwrap(),
        handle: "h".parse().unwrap(),
        size_bytes: 1000,
    };
    SnapshotRecord { disks: vec![disk("data"), disk("log")].try_into().unwrap(), ..snapshot(vm) }
}

#[test]
fn a_guest_attaches_its_own_whole_snapshots_by_its_verb_and_learns_nothing_of_others() {
    let [vm, neighbour] = machines("");
    let record = with_disks(&vm);
    assert!(attach(&vm, &record, &wish(&record, &[])).is_ok());
    let theirs = attach(&neighbour, &record, &wish(&record, &[])).unwrap_err();
    assert_eq!(theirs, not_found(&record.id.to_string()));

    let [silent, _] = machines("allow = [\"create\", \"list\", \"delete\"]");
    assert_eq!(attach(&silent, &record, &wish(&record, &[])).unwrap_err().code, ErrorCode::Refused);
    for (state, code) in [(State::Settling, ErrorCode::Busy), (State::Failed, ErrorCode::StorageFailed)] {
        let record = SnapshotRecord { state, ..record.clone() };
        assert_eq!(attach(&vm, &record, &wish(&record, &[])).unwrap_err().code, code);
    }
}

#[test]
fn a_guest_goes_back_to_its_own_whole_snapshots_by_its_verb_and_learns_nothing_of_others() {
    let [vm, neighbour] = machines("");
    let record = with_disks(&vm);
    let wanted = protocol::restore::Restore {
        request: RequestId::random(),
        id: record.id,
        disks: asked(&["data"]).disks,
        safety: protocol::restore::Safety::None,
        layout: protocol::restore::Layout::Same,
        dry_run: false,
    };
    assert_eq!(restore(Asker::Guest, &vm, &record, &wanted).unwrap().get().disks.len(), 1);
    for asker in [Asker::Guest, Asker::Admin] {
        let theirs = restore(asker, &neighbour, &record, &wanted).unwrap_err();
        assert_eq!(theirs, not_found(&record.id.to_string()));
    }
    let [silent, _] = machines("allow = [\"create\", \"list\", \"attach\"]");
    let refused = restore(Asker::Guest, &silent, &record, &wanted).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Refused);
    let unready = SnapshotRecord { state: State::Settling, ..record };
    assert_eq!(restore(Asker::Guest, &vm, &unready, &wanted).unwrap_err().code, ErrorCode::Busy);
}

#[test]
fn the_disks_of_a_snapshot_are_attached_each_once_by_its_place_in_it() {
    let [vm, _] = machines("");
    let record = with_disks(&vm);
    let places = |serials: &[&str]| -> Vec<usize> {
        let allowed = attach(&vm, &record, &wish(&record, serials)).unwrap().into_inner();
        allowed.disks.iter().map(|(place, _)| *place).collect()
    };
    assert_eq!(places(&[]), [0, 1]);
    assert_eq!(places(&["log"]), [1]);
    assert_eq!(places(&["log", "data", "log"]), [0, 1]);
    let error = attach(&vm, &record, &wish(&record, &["log", "swap"])).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownDisk);
    assert!(error.message.as_str().contains("has no disk swap; it has: data, log"), "{error}");
}

#[test]
fn clones_have_the_bytes_that_the_quota_leaves_and_what_is_read_only_needs_none() {
    let [vm, _] = machines("[vm.quota]\nbytes = 3000\n");
    let used = Usage { bytes: 2000, ..Usage::default() };
    assert!(clones(&vm, 1000, &used).is_ok());
    assert_eq!(clones(&vm, 1001, &used).unwrap_err().code, ErrorCode::QuotaExceeded);
    assert!(clones(&vm, 0, &Usage { bytes: 9000, ..used }).is_ok());
}

#[test]
fn one_disk_of_a_whole_snapshot_is_exported_with_what_changed_since_another_of_the_same_machine() {
    let [db1, db2] = machines("");
    let disk = |serial: &str| protocol::record::DiskRecord {
        serial: serial.parse().unwrap(),
        driver: "reflink".parse().unwrap(),
        handle: "h".parse().unwrap(),
        size_bytes: 1000,
    };
    let both = |vm: &Vm| SnapshotRecord {
        state: State::Ready,
        disks: vec![disk("data"), disk("log")].try_into().unwrap(),
        ..snapshot(vm)
    };
    let (record, older) = (both(&db1), both(&db1));
    let log = "log".parse().unwrap();
    let allowed = export_as_admin(&record, Some(&log), Some(&older)).unwrap().into_inner();
    assert_eq!((allowed.index, allowed.since.unwrap().get().from.id), (1, older.id));
    let single = SnapshotRecord { disks: vec![disk("data")].try_into().unwrap(), ..both(&db1) };
    assert_eq!(export_as_admin(&single, None, None).unwrap().get().index, 0);
    let unready = SnapshotRecord { state: State::Settling, ..both(&db1) };
    for (refused, code, words) in [
        (export_as_admin(&record, None, None), ErrorCode::BadRequest, "has 2 disks"),
        (export_as_admin(&record, Some(&"x".parse().unwrap()), None), ErrorCode::NotFound, "no disk x"),
        (export_as_admin(&unready, Some(&log), None), ErrorCode::Busy, "is not ready"),
        (export_as_admin(&record, Some(&log), Some(&unready)), ErrorCode::Busy, "is not ready"),
        (export_as_admin(&record, Some(&log), Some(&both(&db2))), ErrorCode::BadRequest, "one machine"),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.as_str().contains(words), "{error}");
    }
}
