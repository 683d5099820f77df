//! The catalog's promises.

mod file;
mod model;

use protocol::evidence::CutEvidence;
use protocol::message::List;
use protocol::record::{DiskRecord, State, Timing};
use protocol::text::{Labels, Line, SnapshotRef};
use protocol::{Consistency, RequestId, VmUuid};
use uuid::Uuid;

use super::*;

fn vm(n: u128) -> VmUuid {
    VmUuid::from_uuid(Uuid::from_u128(n))
}

fn record(owner: VmUuid, at: u64) -> SnapshotRecord {
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
    let find = |owner, text: &str| catalog.find(owner, &text.parse::<SnapshotRef>().unwrap());
    assert_eq!(find(Some(vm(1)), "latest").unwrap().record.id, new.id);
    assert_eq!(find(Some(vm(1)), &old.id.to_string()).unwrap().record.id, old.id);
    assert_eq!(find(None, &old.id.to_string()[..12]).unwrap().record.id, old.id);
    assert!(matches!(find(Some(vm(2)), &old.id.to_string()), Err(FindError::NotFound)));
    assert!(matches!(find(Some(vm(2)), "latest"), Err(FindError::NotFound)));
    assert_eq!(find(None, &old.id.to_string().to_uppercase()).unwrap().record.id, old.id);
}

#[test]
fn an_ambiguous_prefix_names_five_candidates_and_never_a_neighbours() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    // Identifiers that share their first digits can't be had by asking for them: these are made up.
    for (owner, n) in [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 7)] {
        let id = SnapshotId::from_uuid(Uuid::from_u128((0xabcd << 112) + n));
        ready(&catalog, &SnapshotRecord { id, ..record(vm(owner), 10) });
    }
    let find = |owner, text: &str| catalog.find(owner, &text.parse().unwrap());
    for text in ["abcd", "ABCD0000-0000", "a"] {
        let Err(FindError::Ambiguous { candidates }) = find(Some(vm(1)), text) else { panic!("{text}") };
        assert_eq!(candidates.len(), 5);
    }
    assert_eq!(find(Some(vm(2)), "abcd").unwrap().record.vm_uuid, vm(2));
    assert!(matches!(find(Some(vm(2)), "abce"), Err(FindError::NotFound)));
    assert!(matches!(find(Some(vm(2)), "zebra"), Err(FindError::NotFound)));
}

#[test]
fn what_is_begun_later_comes_first_and_what_is_entered_stands_where_its_date_says() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let [first, dated_back, entered] = [500, 100, 300].map(|at| record(vm(1), at));
    ready(&catalog, &first);
    ready(&catalog, &dated_back);
    assert_eq!(catalog.enter(&entered, &[0; 16]).unwrap(), Begun::New);
    catalog.record(&entered, Phase::Ready).unwrap();
    let ids = || -> Vec<_> {
        let entries = catalog.list(Some(vm(1)), &list(9, None)).unwrap();
        entries.iter().map(|entry| entry.record.id).collect()
    };
    assert_eq!(ids(), [dated_back.id, first.id, entered.id]);
    // What is in the list stays where it is.
    catalog.record(&SnapshotRecord { created_at: UnixMillis(9000), ..first.clone() }, Phase::Failed).unwrap();
    assert_eq!(ids(), [dated_back.id, first.id, entered.id]);
}

#[test]
fn latest_is_the_first_of_the_list_also_among_snapshots_of_one_moment() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    (0..5).for_each(|_| ready(&catalog, &record(vm(1), 7)));
    let first = catalog.list(Some(vm(1)), &list(1, None)).unwrap().remove(0);
    assert_eq!(catalog.find(Some(vm(1)), &"latest".parse().unwrap()).unwrap(), first);
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
fn a_list_goes_on_behind_a_snapshot_that_was_removed_between_two_pages() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let records: Vec<_> = (0..4).map(|n| record(vm(1), n)).collect();
    records.iter().for_each(|record| ready(&catalog, record));
    let first = catalog.list(Some(vm(1)), &list(2, None)).unwrap();
    let last = first.last().unwrap().record.id;
    catalog.begin_delete(last).unwrap();
    catalog.remove(last).unwrap();
    let second = catalog.list(Some(vm(1)), &list(9, Some(last))).unwrap();
    let seen: Vec<_> = second.iter().map(|entry| entry.record.id).collect();
    assert_eq!(seen, [records[1].id, records[0].id]);
}

#[test]
fn a_cursor_that_was_never_there_or_is_a_neighbours_is_an_error_and_not_an_empty_page() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let [mine, neighbours] = [1, 2].map(|owner| record(vm(owner), 5));
    ready(&catalog, &mine);
    ready(&catalog, &neighbours);
    let behind = |id| catalog.list(Some(vm(1)), &list(9, Some(id)));
    assert!(behind(mine.id).unwrap().is_empty());
    for stranger in [neighbours.id, record(vm(1), 5).id] {
        assert!(matches!(behind(stranger), Err(CatalogError::UnknownCursor(_))));
    }
}

#[test]
fn a_guest_that_deletes_what_it_makes_has_made_it_all_the_same() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let now = 10 * 3_600_000;
    let [kept, deleted, given_up] = [1, 2, 3].map(|n| record(vm(1), now - n));
    ready(&catalog, &kept);
    ready(&catalog, &deleted);
    catalog.begin(&given_up, &[0; 16]).unwrap();
    assert!(catalog.remove(deleted.id).unwrap());
    assert!(catalog.drop_intent(given_up.id).unwrap());
    let usage = |at| catalog.usage(vm(1), UnixMillis(at)).unwrap();
    assert_eq!(usage(now), Usage { snapshots: 1, bytes: 1000, created_last_hour: 3 });
    assert_eq!(usage(now + 3_600_000).created_last_hour, 0);
    assert_eq!(catalog.usage(vm(2), UnixMillis(now)).unwrap(), Usage::default());
}

#[test]
fn what_is_remembered_of_what_is_gone_is_bounded_by_an_hour_and_by_a_number() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let come_and_go = |count: u32| {
        let insert = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
             INSERT INTO snapshots (id, vm_uuid, phase, created_at, bytes, digest, record)
                SELECT hex(randomblob(16)), 'vm', 'intent', 1, 1, zeroblob(16), '' FROM n;
             DELETE FROM snapshots;"
        );
        catalog.connection().execute_batch(&insert).unwrap();
        let remembered = |row: &rusqlite::Row<'_>| row.get::<_, u32>(0);
        catalog.connection().query_row("SELECT count(*) FROM gone", [], remembered).unwrap()
    };
    assert_eq!(come_and_go(100), 100);
    let most = come_and_go(20_500);
    assert!((20_000..=20_001).contains(&most), "{most}");
    // The clock is set back by an hour: what is gone is remembered. By a day: it was wrong.
    let passes = |seconds: i64| {
        catalog.connection().execute("UPDATE gone SET gone_at = gone_at - ?1", [seconds]).unwrap();
    };
    passes(-3600);
    assert!(come_and_go(1) >= most);
    passes(-24 * 3600);
    assert_eq!(come_and_go(1), 1);
    passes(3601);
    assert_eq!(come_and_go(1), 1);
}

#[test]
fn a_snapshot_dated_by_a_wrong_clock_does_not_hold_up_its_machine_for_good() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let now = 10 * 3_600_000;
    ready(&catalog, &record(vm(1), now * 1000));
    ready(&catalog, &record(vm(1), now + 5));
    assert_eq!(catalog.usage(vm(1), UnixMillis(now)).unwrap().created_last_hour, 1);
}

#[test]
fn a_lock_outlives_the_settling_of_what_it_locks() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let record = record(vm(1), 1);
    catalog.begin(&record, &[0; 16]).unwrap();
    catalog.record(&record, Phase::Settling).unwrap();
    assert!(catalog.set_lock(record.id, Some(UnixMillis(99))).unwrap());
    catalog.record(&record, Phase::Ready).unwrap();
    let locked = || catalog.get(record.id).unwrap().unwrap().record.locked_until;
    assert_eq!(locked(), Some(UnixMillis(99)));
    assert!(catalog.set_lock(record.id, None).unwrap());
    assert_eq!(locked(), None);
    assert!(!catalog.set_lock(self::record(vm(1), 1).id, None).unwrap());
}

#[test]
fn what_is_being_deleted_is_not_revived_by_whoever_still_settles_it() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let record = record(vm(1), 1);
    ready(&catalog, &record);
    assert_eq!(catalog.begin_delete(record.id).unwrap(), Some(Phase::Ready));
    assert!(matches!(catalog.record(&record, Phase::Ready), Err(CatalogError::NotThere(_))));
    assert_eq!(catalog.get(record.id).unwrap().unwrap().phase, Phase::Deleting);
    assert!(catalog.list(None, &list(9, None)).unwrap().is_empty());
    assert_eq!(catalog.unfinished().unwrap().len(), 1);

    assert!(catalog.cancel_delete(record.id, Phase::Ready).unwrap());
    assert_eq!(catalog.list(None, &list(9, None)).unwrap().len(), 1);
    assert!(!catalog.cancel_delete(record.id, Phase::Ready).unwrap());
}

#[test]
fn the_same_request_from_many_threads_at_once_is_one_intent() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let record = record(vm(1), 1);
    let start = std::sync::Barrier::new(8);
    let begun: Vec<_> = std::thread::scope(|scope| {
        let begin = |n: u8| {
            start.wait();
            catalog.begin(&record, &[n; 16]).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || begin(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(begun.iter().filter(|one| **one == Begun::New).count(), 1);
    let digest = catalog.get(record.id).unwrap().unwrap().digest;
    assert!(begun.iter().all(|one| match one {
        Begun::New => true,
        Begun::Existing(entry) => entry.digest == digest,
    }));
}
