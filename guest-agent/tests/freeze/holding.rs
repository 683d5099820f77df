//! Writers wait while frozen, and go on when thawed.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use guest_agent::freeze::{FreezeError, FreezeLock, NotHeld, OpenError, arm};
use harness::loopfs::{Kind, LoopFs, run};
use harness::wait::wait_until;

use crate::bench::{Bench, LIMIT, LONG, all_is_restored, is_frozen, plan, run_folder, was_held};

/// Appends and syncs as fast as it can, and counts what was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(path: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut file = File::create(path.join("written")).unwrap();
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let thread = std::thread::spawn(move || {
            while !stopped.load(SeqCst) {
                file.write_all(b"x").unwrap();
                file.sync_data().unwrap();
                count.fetch_add(1, SeqCst);
            }
        });
        Self { stop, acknowledged, thread: Some(thread) }
    }

    fn count(&self) -> u64 {
        self.acknowledged.load(SeqCst)
    }

    fn goes_on(&self) {
        let before = self.count();
        wait_until("the writer goes on", LIMIT, || self.count() > before + 1);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_writer_waits_while_frozen_and_goes_on_when_thawed() {
    for kind in Kind::ALL {
        let fs = LoopFs::new(kind, 300);
        let writer = Writer::start(&fs.path());
        writer.goes_on();
        let bench = Bench::new();
        let frozen = bench.freeze(&[fs.path()], LONG);
        // One write may have been acknowledged before the freeze and be counted only now.
        let at_freeze = writer.count();
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(5));
            assert!(writer.count() <= at_freeze + 1, "{kind:?}: a write got through");
        }
        assert!(is_frozen(&fs.path()));
        assert!(frozen.remaining() > Duration::ZERO && frozen.remaining() <= LONG);
        was_held(&frozen.thaw());
        writer.goes_on();
        bench.ends();
    }
}

#[test]
fn several_file_systems_are_frozen_together() {
    let all: Vec<LoopFs> = Kind::ALL.iter().map(|kind| LoopFs::new(*kind, 300)).collect();
    let paths: Vec<_> = all.iter().map(LoopFs::path).collect();
    let bench = Bench::new();
    let frozen = bench.freeze(&paths, LONG);
    assert!(paths.iter().all(|path| is_frozen(path)));
    let report = frozen.thaw();
    was_held(&report);
    let order: Vec<_> = report.file_systems.iter().map(|fs| fs.target.mount_point.clone()).collect();
    assert_eq!(order, paths);
    bench.ends();
}

#[test]
fn a_lower_rank_comes_first_and_equals_are_frozen_together() {
    let all: Vec<LoopFs> = [(); 4].map(|()| LoopFs::new(Kind::Ext4, 64)).into();
    let paths: Vec<_> = all.iter().map(LoopFs::path).collect();
    let lock = FreezeLock::take(&run_folder(), LIMIT).unwrap();
    let mut plan = plan(&paths, LONG);
    plan.targets.iter_mut().zip([2, 1, 1, 0]).for_each(|(target, rank)| target.rank = rank);
    let report = arm(plan, &lock).unwrap().freeze().unwrap_or_else(|report| panic!("{report:?}")).thaw();
    was_held(&report);
    let order: Vec<_> = report.file_systems.iter().map(|fs| fs.target.rank).collect();
    assert_eq!(order, [0, 1, 1, 2]);
    for [before, after] in [[0, 1], [0, 2], [1, 3], [2, 3]] {
        let call = |n: usize| report.file_systems[n].freeze.unwrap();
        assert!(call(before).at_us + call(before).took_us <= call(after).at_us, "{report:?}");
    }
    drop(lock);
    all_is_restored();
}

#[test]
fn a_file_system_in_a_file_of_another_is_frozen_from_the_inside_out() {
    // vmware/open-vm-tools#6: frozen from the outside in, the inner freeze waits for ever for the
    // frozen outer file system to take its dirty pages.
    let outer = LoopFs::new(Kind::Ext4, 256);
    let inner = LoopFs::within(&outer.path(), Kind::Ext4, 64);
    fs::write(inner.path().join("dirty"), vec![1; 1 << 20]).unwrap();
    let bench = Bench::new();
    let frozen = bench.freeze(&[inner.path(), outer.path()], LONG);
    was_held(&frozen.thaw());
    fs::write(inner.path().join("dirty"), vec![2; 1 << 20]).unwrap();
    bench.ends();
}

#[test]
fn a_read_only_mount_can_be_frozen_too() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let remount = ["-o", "remount,ro"];
    assert!(Command::new("mount").args(remount).arg(fs.path()).status().unwrap().success());
    let bench = Bench::new();
    was_held(&bench.freeze(&[fs.path()], LONG).thaw());
    bench.ends();
}

#[test]
fn what_is_dropped_without_a_word_is_thawed() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    drop(bench.arm(&[fs.path()], LONG));
    drop(bench.freeze(&[fs.path()], LONG));
    assert!(!is_frozen(&fs.path()));
    bench.ends();
}

#[test]
fn afterwards_a_file_system_can_be_unmounted_at_once() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    was_held(&bench.freeze(&[fs.path()], LONG).thaw());
    run(Command::new("umount").arg(fs.path()));
    run(Command::new("mount").args(["-o", "loop"]).arg(fs.image()).arg(fs.path()));
    bench.ends();
}

#[test]
fn a_panic_while_frozen_thaws() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    let frozen = bench.freeze(&[fs.path()], LONG);
    let panicked = std::thread::spawn(move || {
        let _frozen = frozen;
        panic!("a bug between freeze and thaw");
    });
    assert!(panicked.join().is_err());
    assert!(!is_frozen(&fs.path()));
    bench.ends();
}

#[test]
fn memory_cannot_be_frozen_and_the_report_says_which() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    let report = bench.arm(&[fs.path(), "/dev/shm".into()], LONG).freeze().err().expect("no freeze");
    assert_eq!(
        report.held,
        Err(NotHeld::NotFreezable { mount_point: "/dev/shm".into(), fs_type: "testfs".to_owned() })
    );
    assert!(!is_frozen(&fs.path()), "what came before it is thawed");
    bench.ends();
}

#[test]
fn a_mount_point_that_leads_elsewhere_now_is_refused_before_anything_is_frozen() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let number = |path: &Path| {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().rfind(|line| line.split(' ').nth(4) == path.to_str()).unwrap();
        line.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let lock = FreezeLock::take(&run_folder(), LIMIT).unwrap();
    let mut right = plan(&[fs.path()], LONG);
    right.targets[0].mount_id = Some(number(&fs.path()));
    let mut wrong = right.clone();
    wrong.targets[0].mount_id = Some(number(Path::new("/proc")));
    drop(arm(right, &lock).unwrap());
    let error = arm(wrong, &lock).err().expect("another mount");
    assert!(matches!(error, FreezeError::Open(OpenError::Covered(path)) if path == fs.path()));
}

#[test]
fn a_device_as_mount_point_is_not_opened() {
    let lock = FreezeLock::take(&run_folder(), LIMIT).unwrap();
    let error = arm(plan(&["/dev/null".into()], LONG), &lock).err().expect("a device");
    assert!(matches!(error, FreezeError::Open(OpenError::Special(_))), "{error}");
}
