//! The catalog's promises.

use protocol::evidence::CutEvidence;
use protocol::record::{DiskRecord, Timing};
use protocol::text::{Labels, Line};
use protocol::{Consistency, RequestId};
use uuid::Uuid;

use super::*;

fn vm(n: u128) -> VmUuid {
    VmUuid::from_uuid(Uuid::from_u128(n))
}

pub(crate) fn record(owner: VmUuid, at: u64) -> SnapshotRecord {
    let request = RequestId::random();
    let disk = DiskRecord {
        serial: "data".parse().unwrap(),
        driver: "reflink".parse().unwrap(),
        handle: "h".parse().unwrap(),
        size_bytes: 1000,
    };
    SnapshotRecord {
        id: SnapshotId::derive(owner, request),
        vm_uuid: owner,
        vm: "db1".parse().unwrap(),
        request,
        created_at: UnixMillis(at),
        consistency: Consistency::Crash,
        consistency_reason: Line::lossy(""),
        minimum: Consistency::Crash,
        state: State::Ready,
        labels: Labels::default(),
        note: "".parse().unwrap(),
        mounts: Vec::new().try_into().unwrap(),
        disks: vec![disk].try_into().unwrap(),
        timing: Timing::default(),
        expires_at: None,
        locked_until: None,
        evidence: None,
        cut: CutEvidence::Unknown,
    }
}

struct Scratch {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn scratch() -> Scratch {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    Scratch { _folder: folder, path }
}

fn ready(catalog: &Catalog, record: &SnapshotRecord) {
    assert_eq!(catalog.begin(record, &[0; 16]).unwrap(), Begun::New);
    catalog.record(record, Phase::Ready).unwrap();
}

fn list(limit: u16, after: Option<SnapshotId>) -> List {
    List { limit, after, ..List::default() }
}

#[test]
fn a_repeated_request_finds_the_first_one_and_keeps_it() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let record = record(vm(1), 1);
    assert_eq!(catalog.begin(&record, &[1; 16]).unwrap(), Begun::New);
    let Begun::Existing(entry) = catalog.begin(&record, &[2; 16]).unwrap() else { panic!("a second intent") };
    assert_eq!(entry.digest, [1; 16]);
    assert_eq!(entry.phase, Phase::Intent);
}

#[test]
fn an_intent_is_unfinished_and_not_listed_until_it_is_concluded() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let record = record(vm(1), 1);
    catalog.begin(&record, &[0; 16]).unwrap();
    assert!(catalog.list(None, &list(9, None)).unwrap().is_empty());
    assert_eq!(catalog.unfinished().unwrap().len(), 1);
    catalog.record(&record, Phase::Ready).unwrap();
    assert_eq!(catalog.list(Some(vm(1)), &list(9, None)).unwrap().len(), 1);
    assert!(catalog.list(Some(vm(2)), &list(9, None)).unwrap().is_empty());
    assert!(catalog.unfinished().unwrap().is_empty());
    assert!(!catalog.drop_intent(record.id).unwrap(), "a concluded snapshot is no intent");
}

#[test]
fn what_was_committed_is_there_after_a_power_cut() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let record = record(vm(1), 1);
    catalog.begin(&record, &[0; 16]).unwrap();
    // What a power cut leaves: the files as they are, without SQLite's orderly close.
    let after = tempfile::tempdir().unwrap();
    for file in ["catalog.sqlite", "catalog.sqlite-wal"] {
        std::fs::copy(scratch.path.with_file_name(file), after.path().join(file)).unwrap();
    }
    let survivor = Catalog::open(&after.path().join("catalog.sqlite")).unwrap();
    assert_eq!(survivor.get(record.id).unwrap().unwrap().record, record);
}

#[test]
fn pages_follow_each_other_without_gaps_while_new_ones_come() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let records: Vec<_> = (0..7).map(|n| record(vm(1), n / 2)).collect();
    records.iter().for_each(|record| ready(&catalog, record));
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = catalog.list(Some(vm(1)), &list(2, after)).unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.record.id);
        seen.extend(page.iter().map(|entry| entry.record.id));
        ready(&catalog, &record(vm(1), 100));
    }
    assert_eq!(seen.len(), 7);
    let wanted: std::collections::BTreeSet<_> = records.iter().map(|record| record.id).collect();
    assert_eq!(seen.into_iter().collect::<std::collections::BTreeSet<_>>(), wanted);
}

#[test]
fn a_snapshot_is_found_by_prefix_and_by_latest_but_not_by_a_neighbour() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let [old, new] = [1, 2].map(|at| record(vm(1), at));
    ready(&catalog, &old);
    ready(&catalog, &new);
    let find = |owner, text: &str| catalog.find(owner, &text.parse().unwrap());
    assert_eq!(find(Some(vm(1)), "latest").unwrap().record.id, new.id);
    assert_eq!(find(Some(vm(1)), &old.id.to_string()).unwrap().record.id, old.id);
    assert_eq!(find(None, &old.id.to_string()[..12]).unwrap().record.id, old.id);
    assert!(matches!(find(Some(vm(2)), &old.id.to_string()), Err(FindError::NotFound)));
    assert!(matches!(find(Some(vm(2)), "latest"), Err(FindError::NotFound)));
    for n in 0..16 {
        ready(&catalog, &record(vm(3), n));
    }
    let several =
        (0..16).any(|n| matches!(find(Some(vm(3)), &format!("{n:x}")), Err(FindError::Ambiguous { .. })));
    let several = several || matches!(find(Some(vm(3)), "-"), Err(FindError::Ambiguous { .. }));
    assert!(several, "sixteen snapshots share no first digit");
}

#[test]
fn usage_counts_what_is_unfinished_too() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let hour = 3_600_000;
    catalog.begin(&record(vm(1), 1), &[0; 16]).unwrap();
    ready(&catalog, &record(vm(1), 2 * hour));
    let usage = catalog.usage(vm(1), UnixMillis(2 * hour + 5)).unwrap();
    assert_eq!(usage, Usage { snapshots: 2, bytes: 2000, created_last_hour: 1 });
}

#[test]
fn a_damaged_or_too_new_catalog_says_what_to_do() {
    let scratch = scratch();
    std::fs::write(&scratch.path, b"this is no database, it is a text of some length").unwrap();
    let error = Catalog::open(&scratch.path).err().unwrap().to_string();
    assert!(error.contains("rebuilt from the storage"), "{error}");

    std::fs::remove_file(&scratch.path).unwrap();
    Catalog::open(&scratch.path).unwrap();
    Connection::open(&scratch.path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Catalog::open(&scratch.path).err().unwrap().to_string();
    assert!(error.contains("update it"), "{error}");
}

#[test]
fn only_root_reads_the_catalog() {
    use std::os::unix::fs::MetadataExt;
    let scratch = scratch();
    let _catalog = Catalog::open(&scratch.path).unwrap();
    assert_eq!(std::fs::metadata(&scratch.path).unwrap().mode() & 0o777, 0o600);
}
