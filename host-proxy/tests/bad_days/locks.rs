//! What is locked is deleted by nobody before its day, whatever happens to the catalog and the service meanwhile.

use harness::wait::wait_until;
use protocol::message::{Reply, Request};
use protocol::{Consistency, ErrorCode, SnapshotId};

use super::stage::{LIMIT, Run, Stage, request};

/// Taken to be deleted in a second, and locked.
fn locked(stage: &Stage) -> (SnapshotId, String) {
    let mut prepare = request(Consistency::Filesystem);
    prepare.keep_for_s = Some(1);
    let id = stage.take(&prepare).unwrap().id;
    let locked = stage.admin(&["lock", &id.to_string()[..8], "--for", "30d", "--json"]).json();
    assert_eq!(locked["id"], id.to_string());
    let until = locked["locked_until"].as_str().expect("it is locked").to_owned();
    (id, until)
}

#[track_caller]
fn is_refused(run: &Run, id: SnapshotId) {
    let error = run.error();
    assert_eq!((run.code, error["code"].as_str()), (4, Some("Locked")), "{error}");
    assert!(error["hint"].as_str().unwrap().contains(&format!("hostsnapd unlock {id}")), "{error}");
}

#[test]
fn a_locked_snapshot_is_deleted_by_nobody_and_stays_locked_when_its_catalog_is_lost() {
    let mut stage = Stage::set();
    let (id, until) = locked(&stage);
    let text = id.to_string();
    let untouched = |stage: &Stage| {
        is_refused(&stage.admin(&["delete", "--json", &text]), id);
        match stage.greeted().ask(&Request::Delete(id)) {
            Reply::Error(error) => assert_eq!(error.code, ErrorCode::Locked, "{error}"),
            other => panic!("the guest deleted it: {other:?}"),
        }
        assert_eq!(stage.admin(&["show", "--json", &text]).json()["locked_until"], until);
        assert_eq!(stage.on_storage(), std::slice::from_ref(&text));
    };
    untouched(&stage);
    // Its manifest is all that is left of what the service knew.
    stage.kill();
    let rebuilt = stage.offline(&["rebuild-catalog", "--json"]);
    assert_eq!(rebuilt.json()["adopted"][0], text);
    stage.start();
    untouched(&stage);

    assert!(stage.admin(&["unlock", "--json", &text]).json()["locked_until"].is_null());
    // Its time was over long ago, but for the lock: the next look removes it, if we do not.
    let gone = stage.admin(&["delete", "--json", &text]);
    assert!(gone.code == 0 || gone.code == 5, "{}", gone.err);
    wait_until("it is gone", LIMIT, || stage.on_storage().is_empty());

    let audit = stage.offline(&["audit", "--json"]);
    let verbs: Vec<_> = audit
        .out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["verb"].as_str().is_some_and(|verb| verb.ends_with("lock")))
        .map(|line| (line["verb"].as_str().unwrap().to_owned(), line["snapshot"].as_str() == Some(&text)))
        .collect();
    assert_eq!(verbs, [("lock".to_owned(), true), ("unlock".to_owned(), true)]);
}

#[test]
fn a_lock_that_makes_no_sense_is_refused_with_what_does() {
    let stage = Stage::set();
    let id = stage.take(&request(Consistency::Filesystem)).unwrap().id.to_string();
    for (arguments, code, words) in [
        (&["lock", &id, "--until", "2020-01-31"][..], 2, "--until 2030-01-31"),
        (&["lock", &id, "--until", "soon"], 2, "--help"),
        (&["lock", &id], 2, "--help"),
        (&["lock", &id, "--for", "1d", "--until", "2030-01-31"], 2, "--help"),
        (&["lock", "nonsense", "--for", "1d"], 5, "list"),
        (&["unlock", "nonsense"], 5, "list"),
    ] {
        let run = stage.admin(&[arguments, &["--json"]].concat());
        let error = run.error();
        assert_eq!(run.code, code, "{arguments:?}: {error}");
        assert!(error["hint"].as_str().unwrap().contains(words), "{arguments:?}: {error}");
    }
    // What the storage lost, no lock can keep.
    std::fs::remove_dir_all(stage.store.path().join(".hostsnap")).unwrap();
    assert_eq!(stage.admin(&["reconcile", "--json"]).json()["lost"][0], id);
    let run = stage.admin(&["lock", "--json", &id, "--for", "1d"]);
    assert_eq!(run.code, 6, "{}", run.err);
}
