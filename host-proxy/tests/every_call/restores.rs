//! A restore of a set over the drivers reflink and btrfs. Whenever it is struck, the disks hold the new bytes or the old
//! ones when the service is up again, never half of each; and the request, repeated, comes to its end. So it is if the
//! catalog is lost besides.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use harness::loopfs::run;
use protocol::message::{Reply, Request};
use protocol::restore::{Layout, Restore, RestorePlan, Safety};
use protocol::{RequestId, WireError};
use serde_json::{Value, json};

use super::host::{Host, IMAGE_BYTES};
use super::scene::Snapshot;
use super::tracer::{Before, Fault};

#[test]
fn killed_before_any_call_a_restore_is_finished_or_was_never_begun() {
    before_every_call(Safety::Snapshot, |host| {
        host.kill();
        host.must_start();
    });
}

#[test]
fn without_power_before_any_call_a_restore_is_finished_or_was_never_begun() {
    before_every_call(Safety::None, |host| {
        host.lose_power();
        host.must_start();
    });
}

#[test]
fn killed_before_any_call_and_its_catalog_lost_a_restore_is_finished_or_was_never_begun() {
    before_every_call(Safety::None, |host| {
        host.kill();
        host.lose_catalog();
        host.must_start();
    });
}

/// What only the catalog knew was lost with it: the disk stayed half of each, and its guest held it and was told nothing.
#[test]
fn a_restore_that_is_not_finished_outlives_its_catalog_and_keeps_its_snapshot_until_it_is() {
    let mut host = Host::new();
    host.must_start();
    host.write(1);
    let old = Snapshot::new(1);
    old.take(&host);
    host.write(2);
    host.kill();
    let before = fs::read(host.catalog()).unwrap();
    host.must_start();
    let wanted = wanted(&old, 2, Safety::Snapshot);
    host.service().arm(Before::Having(&["clone into", "/two.img"]), Fault::Kill(Box::new(|| ())));
    assert!(ask(&host, &wanted).is_none(), "it was killed");
    host.kill();
    assert_eq!(filled_with(&host), None, "the one disk has the old bytes, the other has not");

    // It can't be finished yet, and nothing is known of it but what stands beside its snapshot.
    let two = &host.images()[1];
    run(Command::new("chattr").arg("+i").arg(two));
    for catalog in [None, Some(&before)] {
        host.lose_catalog();
        if let Some(older) = catalog {
            fs::write(host.catalog(), older).unwrap();
        }
        host.must_start();
        assert!(host.folder.printed().contains("is not finished"), "{}", host.folder.printed());
        let id = old.id();
        for (arguments, words) in [
            (["delete", &id].as_slice(), "a restore that is not finished needs"),
            (&["create", "db1", "--no-agent"], "is being restored from the snapshot"),
        ] {
            let refused = host.folder.admin(arguments);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.status.code() == Some(6) && said.contains(words), "{said}");
        }
        // What else is written there leaves it be.
        assert!(host.folder.admin(&["lock", &id, "--for", "1d"]).status.success());
        assert!(host.folder.admin(&["unlock", &id]).status.success());
        host.kill();
    }
    run(Command::new("chattr").arg("-i").arg(two));
    host.lose_catalog();
    let rebuilt = host.folder.offline(&["rebuild-catalog", "--json"]);
    let report: Value = serde_json::from_slice(&rebuilt.stdout).unwrap();
    assert_eq!(report["restored"], json!([old.id()]), "{report}");
    assert_eq!(filled_with(&host), Some(1));

    // Done it stays done, and whoever asked for it is told so, also of a catalog that was lost once more.
    host.write(3);
    host.lose_catalog();
    host.must_start();
    let done = ask(&host, &wanted).expect("it is up").unwrap();
    assert_eq!((done.id.to_string(), filled_with(&host)), (old.id(), Some(3)));
    assert!(host.restores(&done.safety.expect("it was not left out").to_string(), 2));
}

fn before_every_call(safety: Safety, strike: impl Fn(&mut Host)) {
    let mut host = Host::new();
    host.must_start();
    host.write(1);
    let old = Snapshot::new(1);
    old.take(&host);
    let mut struck = BTreeSet::new();
    for n in 1.. {
        let byte = u8::try_from(n % 200 + 2).expect("below 202");
        host.write(byte);
        let wanted = wanted(&old, byte, safety);
        let power = host.power();
        let cut = move || {
            if safety == Safety::None {
                power.cut()
            }
        };
        host.service().arm(Before::Nth(n), Fault::Kill(Box::new(cut)));
        let told = ask(&host, &wanted).and_then(Result::ok);
        let (call, _) = host.service().disarm();
        let when = format!("before the call {n}, {call:?}");
        if call.is_some() {
            strike(&mut host);
            let found = filled_with(&host);
            assert!(
                found == Some(1) || found == Some(byte),
                "{when}: half of each\n{}",
                host.folder.printed()
            );
            assert!(found == Some(1) || told.is_none(), "{when}: it was told to be done");
        }
        let done = ask(&host, &wanted).expect("it is up").unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(filled_with(&host), Some(1), "{when}");
        if let Some(safety) = done.safety {
            assert!(host.restores(&safety.to_string(), byte), "{when}: what was overwritten is lost");
            assert!(host.folder.admin(&["delete", &safety.to_string()]).status.success(), "{when}");
        }
        assert!(host.restores(&old.id(), 1), "{when}: the snapshot was changed");
        assert_eq!(host.listed().len(), 1, "{when}: something is left\n{}", host.folder.printed());
        match call {
            Some(call) => struck.insert(call),
            None => break,
        };
    }
    println!("{safety:?}: before each of {} different calls", struck.len());
    let images = ["xfs/one.img", "btrfs/two.img"];
    let overwrites = |call: &&String| {
        call.starts_with("clone into ")
            && images.iter().any(|image| call.ends_with(image))
            && !call.contains(".hostsnap")
    };
    let clones = struck.iter().filter(overwrites);
    assert_eq!(clones.count(), 2, "both disks are overwritten: {struck:#?}");
}

fn wanted(of: &Snapshot, byte: u8, safety: Safety) -> Restore {
    Restore {
        request: RequestId::random(),
        id: of.id().parse().unwrap(),
        disks: Snapshot::new(byte).disks(),
        safety,
        layout: Layout::Any,
        dry_run: false,
    }
}

/// `None` where the host was gone before the end.
fn ask(host: &Host, wanted: &Restore) -> Option<Result<RestorePlan, WireError>> {
    let mut guest = host.greeted()?;
    guest.send(&Request::Restore(wanted.clone()));
    loop {
        match guest.hears()? {
            Reply::Progress(_) => {}
            Reply::Restored(plan) => return Some(Ok(plan)),
            Reply::Error(error) => return Some(Err(error)),
            other => panic!("{other:?}"),
        }
    }
}

/// The one byte that fills both disks.
fn filled_with(host: &Host) -> Option<u8> {
    let images = host.images().map(|image| fs::read(image).unwrap());
    let byte = images[0][0];
    let whole = vec![byte; usize::try_from(IMAGE_BYTES).unwrap()];
    images.iter().all(|image| *image == whole).then_some(byte)
}
