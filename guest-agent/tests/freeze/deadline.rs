//! The deadline, and a FIFREEZE that does not come back.

use std::fs;
use std::time::Duration;

use guest_agent::freeze::{FreezeLock, NotHeld, arm};
use harness::loopfs::{Kind, LoopFs};
use harness::wait::wait_until;

use crate::bench::{Bench, LIMIT, TheirFreeze, all_is_restored, is_frozen, plan, run_folder};

#[test]
fn at_the_deadline_it_is_thawed_and_nobody_claims_that_it_was_held() {
    for kind in Kind::ALL {
        let fs = LoopFs::new(kind, 300);
        let bench = Bench::new();
        let frozen = bench.freeze(&[fs.path()], Duration::from_secs(1));
        wait_until("the keeper thaws by itself", LIMIT, || !is_frozen(&fs.path()));
        assert_eq!(frozen.remaining(), Duration::ZERO);
        let report = frozen.thaw();
        assert_eq!(report.held, Err(NotHeld::Deadline), "{report:?}");
        assert_eq!(report.file_systems[0].thaw.unwrap().errno, 0, "the evidence is there all the same");
        bench.ends();
    }
}

#[test]
fn a_deadline_of_no_time_freezes_nothing_for_long() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    if let Ok(frozen) = bench.arm(&[fs.path()], Duration::ZERO).freeze() {
        assert!(frozen.thaw().held.is_err());
    }
    bench.ends();
    assert!(!is_frozen(&fs.path()));
}

#[test]
fn a_freeze_that_blocks_in_the_kernel_blocks_neither_the_flow_nor_the_other_file_systems() {
    // oVirt/vdsm#160: a time limit of 480 s was noticed after 27,905 s, since the call that froze
    // had blocked. Here it blocks, because its disk is a file on what somebody else has frozen.
    let other = LoopFs::new(Kind::Ext4, 64);
    let outer = LoopFs::new(Kind::Ext4, 256);
    let inner = LoopFs::within(&outer.path(), Kind::Ext4, 64);
    fs::write(inner.path().join("dirty"), vec![1; 1 << 20]).unwrap();
    let bench = Bench::new();
    let armed = bench.arm(&[other.path(), inner.path()], Duration::from_secs(1));
    let theirs = TheirFreeze::of(outer.path());

    let report = armed.freeze().err().expect("the deadline came first");
    assert_eq!(report.held, Err(NotHeld::DeadlineWhileFreezing(inner.path())));
    assert_eq!(report.file_systems[1].freeze, None, "it is in the kernel still: {report:?}");
    assert!(!is_frozen(&other.path()), "what was frozen is thawed at the deadline");
    // The next snapshot has to wait until the late one is thawed.
    drop(bench);
    assert!(FreezeLock::take(&run_folder(), Duration::ZERO).is_err(), "the keeper has the lock");

    drop(theirs);
    all_is_restored();
    assert!(!is_frozen(&inner.path()), "the late one is thawed when it comes back");
}

#[test]
fn where_one_cannot_be_written_back_no_other_is_frozen_in_vain() {
    let outer = LoopFs::new(Kind::Ext4, 256);
    let inner = LoopFs::within(&outer.path(), Kind::Ext4, 64);
    let equals: [LoopFs; 2] = [(); 2].map(|()| LoopFs::new(Kind::Ext4, 64));
    fs::write(inner.path().join("dirty"), vec![1; 1 << 20]).unwrap();
    let lock = FreezeLock::take(&run_folder(), LIMIT).unwrap();
    let mut plan = plan(&[inner.path(), equals[0].path(), equals[1].path()], Duration::from_secs(2));
    plan.targets.iter_mut().for_each(|target| target.rank = 0);
    let armed = arm(plan, &lock).unwrap();
    let theirs = TheirFreeze::of(outer.path());

    let report = armed.freeze().err().expect("the deadline came first");
    assert_eq!(report.held, Err(NotHeld::DeadlineWhileFreezing(inner.path())));
    for fs in &report.file_systems[1..] {
        assert_eq!((fs.freeze, fs.thaw), (None, None), "{report:?}");
    }
    drop(theirs);
    drop(lock);
    all_is_restored();
    assert!(!is_frozen(&inner.path()));
}

#[test]
fn the_wrong_order_ends_at_the_deadline_with_nothing_frozen() {
    // vmware/open-vm-tools#6, on purpose: the inner one waits for the outer one that we froze.
    let outer = LoopFs::new(Kind::Ext4, 256);
    let inner = LoopFs::within(&outer.path(), Kind::Ext4, 64);
    fs::write(inner.path().join("dirty"), vec![1; 1 << 20]).unwrap();
    let bench = Bench::new();
    let report =
        bench.arm(&[outer.path(), inner.path()], Duration::from_secs(1)).freeze().err().expect("no freeze");
    assert!(matches!(report.held, Err(NotHeld::DeadlineWhileFreezing(_) | NotHeld::Deadline)), "{report:?}");
    bench.ends();
    assert!(!is_frozen(&outer.path()) && !is_frozen(&inner.path()));
}
