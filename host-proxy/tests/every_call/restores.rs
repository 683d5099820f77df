//! A restore of a set over the drivers reflink and btrfs. Whenever it is struck, the disks hold the new bytes or the old
//! ones when the service is up again, never half of each; and the request, repeated, comes to its end.

use std::collections::BTreeSet;
use std::fs;

use protocol::message::{Reply, Request};
use protocol::restore::{Layout, Restore, RestorePlan, Safety};
use protocol::{RequestId, WireError};

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
