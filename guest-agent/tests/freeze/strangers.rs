//! Somebody else freezes or thaws; and `hostsnap thaw`, which thaws whoever froze.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use guest_agent::freeze::{Emergency, FreezeLock, NotHeld, arm, emergency_thaw};
use harness::loopfs::{Kind, LoopFs};
use harness::wait::wait_until;

use crate::bench::{Bench, LONG, TheirFreeze, fsfreeze, is_frozen, plan, run_folder};

#[test]
fn somebody_elses_freeze_is_reported_and_not_released() {
    let [before, theirs, after] = [(); 3].map(|()| LoopFs::new(Kind::Ext4, 64));
    assert!(fsfreeze("-f", &theirs.path()));
    let bench = Bench::new();
    let paths = [before.path(), theirs.path(), after.path()];
    let report = bench.arm(&paths, LONG).freeze().err().expect("no freeze");
    assert_eq!(report.held, Err(NotHeld::AlreadyFrozen(theirs.path())));
    assert_eq!(report.file_systems[0].thaw.unwrap().errno, 0);
    assert_eq!(report.file_systems[1].thaw, None);
    assert_eq!(report.file_systems[2].freeze, None);
    bench.ends();
    assert!(!is_frozen(&before.path()) && !is_frozen(&after.path()));
    assert!(is_frozen(&theirs.path()), "theirs stays frozen");
    assert!(fsfreeze("-u", &theirs.path()));
}

#[test]
fn if_somebody_else_thaws_meanwhile_it_was_not_held() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    let frozen = bench.freeze(&[fs.path()], LONG);
    assert!(fsfreeze("-u", &fs.path()));
    assert_eq!(frozen.thaw().held, Err(NotHeld::ThawedBySomebodyElse(fs.path())));
    bench.ends();
}

#[test]
fn the_emergency_exit_thaws_whoever_froze_and_ends_the_keeper() {
    let [ours, theirs, nobodys] = [(); 3].map(|()| LoopFs::new(Kind::Ext4, 64));
    let bench = Bench::new();
    let frozen = bench.freeze(&[ours.path()], LONG);
    assert!(fsfreeze("-f", &theirs.path()));
    let paths = [ours.path(), theirs.path(), nobodys.path(), "/no/such/folder".into()];
    let report = emergency_thaw(&run_folder(), &paths);
    assert_eq!(report.keeper, Some(frozen.keeper_pid()));
    let what: Vec<Emergency> = report.file_systems.into_iter().map(|(_, what)| what).collect();
    assert_eq!(what[..3], [Emergency::Thawed, Emergency::Thawed, Emergency::WasNotFrozen]);
    assert!(matches!(&what[3], Emergency::Failed(why) if why.contains("/no/such/folder")), "{what:?}");
    assert!(frozen.thaw().held.is_err(), "it can't be claimed");
    bench.ends();
}

#[test]
fn the_emergency_exit_does_not_wait_for_its_order() {
    // The inner thaw waits for the outer one: one after the other, it would never come to it.
    let outer = LoopFs::new(Kind::Ext4, 256);
    let inner = LoopFs::within(&outer.path(), Kind::Ext4, 64);
    fs::write(inner.path().join("dirty"), vec![1; 1 << 20]).unwrap();
    let _inner = TheirFreeze::of(inner.path());
    let _outer = TheirFreeze::of(outer.path());
    let folder = tempfile::tempdir().unwrap();
    let paths: [PathBuf; 2] = [inner.path(), outer.path()];
    let report = emergency_thaw(folder.path(), &paths);
    assert_eq!(report.keeper, None);
    let thawed = report.file_systems.iter().all(|(_, what)| *what == Emergency::Thawed);
    assert!(thawed, "{report:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn the_emergency_exit_stops_a_keeper_that_is_still_freezing() {
    let outer = LoopFs::new(Kind::Ext4, 256);
    let inner = LoopFs::within(&outer.path(), Kind::Ext4, 64);
    let other = LoopFs::new(Kind::Ext4, 64);
    fs::write(inner.path().join("dirty"), vec![1; 1 << 20]).unwrap();
    let lock = FreezeLock::take(&run_folder(), crate::bench::LIMIT).unwrap();
    // The inner one blocks, since the outer one is frozen; the other one would come next.
    let paths = [inner.path(), other.path()];
    let armed = arm(plan(&paths, Duration::from_secs(120)), &lock).unwrap();
    let _outer = TheirFreeze::of(outer.path());
    let keeper = armed.keeper_pid();
    let held = move || armed.freeze().map_or_else(|report| report.held, |frozen| frozen.thaw().held);
    let freezing = std::thread::spawn(held);
    wait_until("FIFREEZE is in the kernel", crate::bench::LIMIT, || waits_in_the_kernel(keeper));

    let all = [outer.path(), inner.path(), other.path()];
    let report = emergency_thaw(&run_folder(), &all);
    assert_eq!(report.file_systems[0].1, Emergency::Thawed);
    assert!(freezing.join().unwrap().is_err());
    drop(lock);
    crate::bench::all_is_restored();
    assert!(all.iter().all(|path| !is_frozen(path)));
}

/// Whether one of its threads sleeps and can't be interrupted.
fn waits_in_the_kernel(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .map(|task| fs::read_to_string(task.path().join("stat")).unwrap_or_default())
        .any(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('D')))
}
