//! A state folder without room: a real file system that is full to the last block.

use harness::loopfs::{Kind, LoopFs};
use harness::wait::wait_until;
use host_proxy::catalog::Catalog;
use protocol::message::{List, Reply, Request};
use protocol::{Consistency, ErrorCode};

use super::stage::{LIMIT, Stage, conclude, cut, id_of, request};

/// A small file system for the state.
fn state() -> LoopFs {
    LoopFs::new(Kind::Ext4, 8)
}

/// One that can't set anything aside for what was begun.
fn poor_state() -> LoopFs {
    LoopFs::new(Kind::Ext2, 8)
}

#[test]
fn without_room_for_the_intent_nothing_is_begun_and_what_there_is_can_be_read() {
    nothing_is_begun(&state());
    nothing_is_begun(&poor_state());
}

fn nothing_is_begun(state: &LoopFs) {
    let stage = Stage::with_state(&state.path());
    let before = stage.take(&request(Consistency::Filesystem)).unwrap();
    let filler = state.fill();

    let asked = request(Consistency::Filesystem);
    let mut guest = stage.greeted();
    let error = guest.prepare(&asked).unwrap_err();
    assert_eq!((error.code, error.code.exit_code()), (ErrorCode::NoSpace, 8), "{error}");
    assert!(error.message.as_str().contains("catalog") && error.message.as_str().contains("room"), "{error}");
    assert!(error.hint.as_str().contains("administrator"), "{error}");
    assert_eq!(stage.on_storage(), [before.id.to_string()], "something was begun");

    // The same conversation goes on, and so does the administrator's.
    let list = guest.asks(&Request::List(List { limit: 10, ..List::default() })).unwrap();
    assert!(matches!(&list, Reply::Snapshots(page) if page.snapshots.len() == 1), "{list:?}");
    assert!(guest.asks(&Request::Get("latest".parse().unwrap())).is_ok());
    assert_eq!(stage.listed(), [before.id.to_string()]);
    assert_eq!(stage.admin(&["show", "latest", "--json"]).json()["state"], "ready");
    assert_eq!(stage.admin(&["vms", "--json"]).code, 0);

    drop(filler);
    let after = guest.take(&asked).unwrap();
    assert_eq!(stage.listed(), [after.id.to_string(), before.id.to_string()]);
    assert_eq!(stage.admin(&["reconcile"]).out, "the catalog and the storage agree\n");
}

#[test]
fn without_room_for_the_truth_nothing_is_acknowledged_and_nothing_is_left() {
    for minimum in [Consistency::Crash, Consistency::Filesystem] {
        let state = poor_state();
        let mut stage = Stage::with_state(&state.path());
        let asked = request(minimum);
        let mut guest = stage.greeted();
        let prepared = guest.prepare(&asked).unwrap();
        let filler = state.fill();
        guest.asks(&cut(prepared.ticket)).unwrap();
        let error = guest.asks(&conclude(prepared.ticket)).unwrap_err();
        assert_eq!(error.code, ErrorCode::NoSpace, "{error}");
        assert!(error.message.as_str().contains("not kept"), "{error}");
        assert_eq!(stage.listed(), [""; 0]);
        // What was not acknowledged takes no room on the storage either.
        wait_until("nothing is left", LIMIT, || stage.on_storage().is_empty());

        // What the service can't write down now, it does not forget: nor when it is killed.
        let again = guest.prepare(&asked).unwrap_err();
        assert_eq!(again.code, ErrorCode::Unavailable, "{again}");
        drop(filler);
        stage.restart();
        let record = stage.take(&asked).unwrap();
        assert_eq!(record.id.to_string(), id_of(&asked));
        assert_eq!(record.consistency, Consistency::Filesystem);
        assert_eq!(stage.on_storage(), [id_of(&asked)]);
        assert_eq!(stage.admin(&["reconcile"]).out, "the catalog and the storage agree\n");
    }
}

#[test]
fn a_service_that_starts_without_room_says_so_and_starts_when_there_is_some() {
    let state = state();
    let mut stage = Stage::with_state(&state.path());
    let before = stage.take(&request(Consistency::Filesystem)).unwrap();
    stage.kill();
    // As an orderly stop leaves it: its last user folds the log into the file, so that the next one
    // must make it anew.
    drop(Catalog::open(&stage.catalog()).unwrap());
    assert!(!stage.catalog().with_extension("sqlite-wal").exists());
    let filler = state.fill();
    let run = stage.offline(&["serve"]);
    assert_eq!(run.code, 8, "{}", run.err);
    assert!(run.err.contains("make room"), "{}", run.err);
    drop(filler);
    stage.start();
    assert_eq!(stage.listed(), [before.id.to_string()]);
}

#[test]
fn without_room_nothing_is_deleted_by_half() {
    let state = poor_state();
    let stage = Stage::with_state(&state.path());
    let kept = stage.take(&request(Consistency::Filesystem)).unwrap().id.to_string();
    let filler = state.fill();
    let run = stage.admin(&["delete", "latest", "--json"]);
    assert_eq!((run.code, &run.error()["code"]), (8, &"NoSpace".into()), "{}", run.err);
    assert_eq!((stage.listed(), stage.on_storage()), (vec![kept.clone()], vec![kept]));
    drop(filler);
    assert_eq!(stage.admin(&["delete", "latest"]).code, 0);
    assert_eq!((stage.listed().len(), stage.on_storage().len()), (0, 0));
}

#[test]
fn what_was_begun_before_the_room_ran_out_is_finished() {
    let state = state();
    let mut stage = Stage::with_state(&state.path());
    let asked = request(Consistency::Filesystem);
    let mut guest = stage.greeted();
    let prepared = guest.prepare(&asked).unwrap();
    let filler = state.fill();
    guest.asks(&cut(prepared.ticket)).unwrap();
    let snapshot = guest.asks(&conclude(prepared.ticket)).unwrap();
    assert!(matches!(&snapshot, Reply::Snapshot(one) if one.id.to_string() == id_of(&asked)), "{snapshot:?}");
    assert_eq!(guest.prepare(&request(Consistency::Filesystem)).unwrap_err().code, ErrorCode::NoSpace);
    drop(filler);
    stage.restart();
    assert_eq!(stage.listed(), [id_of(&asked)]);
}

/// The file system of images, snapshots and state was full. To delete a snapshot an intent had to be
/// written down first, for which there was no room, and so there never was any.
#[test]
fn on_a_file_system_that_is_full_snapshots_can_be_deleted_to_make_room() {
    let stage = Stage::with_state_in_its_store();
    let snapshots = [(); 3].map(|()| stage.take(&request(Consistency::Filesystem)).unwrap().id.to_string());
    let filler = stage.store.fill();
    assert_eq!(stage.take(&request(Consistency::Filesystem)).unwrap_err().code, ErrorCode::NoSpace);
    for snapshot in &snapshots {
        let run = stage.admin(&["delete", snapshot, "--json"]);
        assert_eq!(run.code, 0, "{}", run.err);
    }
    assert_eq!((stage.listed().len(), stage.on_storage().len()), (0, 0));
    drop(filler);
    stage.take(&request(Consistency::Filesystem)).unwrap();
}
