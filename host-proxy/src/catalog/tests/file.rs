//! The catalog's file: power cuts, damage, older and newer schemas, no room.

use super::*;

#[test]
fn what_was_committed_is_there_after_a_power_cut() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let record = record(vm(1), 1);
    catalog.begin(&record, &[0; 16]).unwrap();
    // What a power cut leaves: the files as they are, without SQLite's orderly close.
    let after = tempfile::tempdir().unwrap();
    for file in ["catalog.sqlite", "catalog.sqlite-wal"] {
        fs::copy(scratch.path.with_file_name(file), after.path().join(file)).unwrap();
    }
    let survivor = Catalog::open(&after.path().join("catalog.sqlite")).unwrap();
    assert_eq!(survivor.get(record.id).unwrap().unwrap().record, record);
}

#[test]
fn a_damaged_catalog_is_refused_left_as_it_is_and_the_error_says_what_to_do() {
    let scratch = scratch();
    {
        let catalog = Catalog::open(&scratch.path).unwrap();
        (0..200).for_each(|n| ready(&catalog, &record(vm(1), n)));
    }
    let whole = fs::read(&scratch.path).unwrap();
    let mut torn = whole.clone();
    // The middle of the file: the header stays good, the trees do not.
    torn[whole.len() / 3..whole.len() / 2].fill(0xa5);
    let cut_off = whole[..whole.len() / 2].to_vec();
    let no_database = b"this is no database, it is a text of some length".to_vec();
    for bad in [torn, cut_off, no_database] {
        fs::write(&scratch.path, &bad).unwrap();
        let error = Catalog::open(&scratch.path).err().expect("a damaged catalog was opened");
        assert!(matches!(error, CatalogError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("rebuild-catalog"), "{error}");
        assert_eq!(fs::read(&scratch.path).unwrap(), bad, "the damaged file was changed");
    }
}

#[test]
fn a_catalog_of_a_newer_hostsnapd_is_refused_and_left_as_it_is() {
    let scratch = scratch();
    Catalog::open(&scratch.path).unwrap();
    Connection::open(&scratch.path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = fs::read(&scratch.path).unwrap();
    let error = Catalog::open(&scratch.path).err().unwrap();
    assert!(matches!(error, CatalogError::TooNew { found: 99, .. }), "{error:?}");
    assert!(error.to_string().contains("update hostsnapd"), "{error}");
    assert_eq!(fs::read(&scratch.path).unwrap(), before);
}

/// `fixtures/schema-1.sqlite` was written by the first hostsnapd that had a catalog: an intent, one
/// that settles, and one that is ready and locked.
#[test]
fn a_catalog_of_the_first_schema_is_brought_up_to_date_with_all_that_is_in_it() {
    let scratch = scratch();
    fs::write(&scratch.path, include_bytes!("../fixtures/schema-1.sqlite")).unwrap();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let entries = catalog.all().unwrap();
    let phases: Vec<_> = entries.iter().map(|entry| entry.phase).collect();
    assert_eq!(phases, [Phase::Intent, Phase::Settling, Phase::Ready]);
    assert_eq!(entries[2].digest, [2; 16]);
    assert_eq!(entries[2].record.locked_until, Some(UnixMillis(4_000_000_000_000)));
    assert_eq!(entries[0].record.locked_until, None);
    assert!(catalog.drop_intent(entries[0].record.id).unwrap());
    assert_eq!(catalog.usage(vm(1), UnixMillis(2000)).unwrap().created_last_hour, 3);
    assert_eq!(catalog.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn a_record_that_cannot_be_read_hides_no_other_and_is_told() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let [bad, good] = [1, 2].map(|at| record(vm(1), at));
    ready(&catalog, &bad);
    ready(&catalog, &good);
    let spoil = "UPDATE snapshots SET record = '{\"id\":' WHERE id = ?1";
    catalog.connection().execute(spoil, [key(bad.id)]).unwrap();
    let listed = catalog.list(None, &list(9, None)).unwrap();
    assert_eq!(listed.iter().map(|entry| entry.record.id).collect::<Vec<_>>(), [good.id]);
    assert_eq!(catalog.all().unwrap().len(), 1);
    assert!(matches!(catalog.get(bad.id), Err(CatalogError::Record { .. })));
    let told = catalog.integrity().unwrap();
    assert!(told.len() == 1 && told[0].contains(&key(bad.id)), "{told:?}");
    assert_eq!(catalog.usage(vm(1), UnixMillis(9)).unwrap().snapshots, 2, "it still counts");
}

#[test]
fn without_room_nothing_is_begun_and_nothing_is_lost() {
    let scratch = scratch();
    let catalog = Catalog::open(&scratch.path).unwrap();
    let pages: i64 = catalog.connection().query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    // As far as SQLite is concerned, the device ends here (SQLITE_FULL).
    let limit = |pages: i64| {
        let pragma = format!("PRAGMA max_page_count = {pages}");
        catalog.connection().query_row(&pragma, [], |row| row.get::<_, i64>(0)).unwrap();
    };
    limit(pages);
    let mut kept = Vec::new();
    let refused = loop {
        let record = record(vm(1), 1);
        match catalog.begin(&record, &[0; 16]) {
            Ok(_) => kept.push(record.id),
            Err(error) => break (record, error),
        }
        assert!(kept.len() < 10_000, "the catalog never was full");
    };
    let told = crate::service::chain(&refused.1);
    assert!(told.contains("full"), "{told}");
    assert_eq!(catalog.get(refused.0.id).unwrap(), None);
    limit(pages + 1000);
    assert_eq!(catalog.begin(&refused.0, &[0; 16]).unwrap(), Begun::New);
    assert!(kept.iter().all(|id| catalog.get(*id).unwrap().is_some()));
}

#[test]
fn a_catalog_that_was_set_aside_is_whole_and_makes_way_for_a_new_one() {
    let scratch = scratch();
    let record = record(vm(1), 1);
    let catalog = Catalog::open(&scratch.path).unwrap();
    ready(&catalog, &record);
    // As a crash leaves it: the log was never folded into the file.
    std::mem::forget(catalog);
    let aside = Catalog::set_aside(&scratch.path, UnixMillis(5)).unwrap().unwrap();
    assert!(Catalog::open(&scratch.path).unwrap().all().unwrap().is_empty());
    assert_eq!(Catalog::open(&aside).unwrap().all().unwrap().len(), 1);
    fs::remove_file(&scratch.path).unwrap();
    assert_eq!(Catalog::set_aside(&scratch.path, UnixMillis(6)).unwrap(), None);
}

#[test]
fn only_root_reads_the_catalog_and_its_log() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let scratch = scratch();
    fs::write(&scratch.path, b"").unwrap();
    fs::set_permissions(&scratch.path, fs::Permissions::from_mode(0o644)).unwrap();
    let catalog = Catalog::open(&scratch.path).unwrap();
    ready(&catalog, &record(vm(1), 1));
    for file in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"] {
        let mode = fs::metadata(scratch.path.with_file_name(file)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}
