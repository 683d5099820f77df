//! The freeze on real file systems, with everything that can go wrong while they are frozen.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use guest_agent::freeze::{self, Armed, Emergency, FreezeLock, Frozen, LockError, Plan, Report, Target};
use harness::loopfs::{Kind, LoopFs};
use harness::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(20);

fn target(path: &Path) -> Target {
    Target { mount_point: path.to_owned(), fs_type: "test".to_owned() }
}

struct Bench {
    _folder: tempfile::TempDir,
    lock: FreezeLock,
}

fn lock() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let lock = FreezeLock::take(folder.path(), Duration::ZERO).unwrap();
    Bench { _folder: folder, lock }
}

fn arm(bench: &Bench, paths: &[PathBuf], budget: Duration) -> Armed {
    let plan = Plan {
        targets: paths.iter().map(|path| target(path)).collect(),
        budget,
        keeper: env!("CARGO_BIN_EXE_hostsnap").into(),
    };
    freeze::arm(plan, &bench.lock).unwrap()
}

fn freeze_all(bench: &Bench, paths: &[PathBuf], budget: Duration) -> Frozen {
    arm(bench, paths, budget).freeze().unwrap_or_else(|report| panic!("{report:?}"))
}

/// Whether somebody holds a file system frozen: a freeze of ours would fail with EBUSY.
fn is_frozen(path: &Path) -> bool {
    let froze = Command::new("fsfreeze").arg("-f").arg(path).output().unwrap().status.success();
    if froze {
        assert!(Command::new("fsfreeze").arg("-u").arg(path).status().unwrap().success());
    }
    !froze
}

/// Appends and syncs as fast as it can, and counts what was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
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

    /// Waits until it has written more.
    fn goes_on(&self) {
        let before = self.count();
        wait_until("the writer goes on", LIMIT, || self.count() > before + 1);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn held(report: &Report) {
    assert_eq!(report.held, Ok(()), "{report:?}");
    assert!(report.stall_us >= report.freeze_us, "{report:?}");
    for fs in &report.file_systems {
        assert_eq!(fs.freeze.unwrap().errno, 0);
        assert_eq!(fs.thaw.unwrap().errno, 0);
    }
}

#[test]
fn a_writer_waits_while_frozen_and_goes_on_when_thawed() {
    for kind in Kind::ALL {
        let fs = LoopFs::new(kind, 300);
        let writer = Writer::start(&fs.path());
        writer.goes_on();
        let bench = lock();
        let frozen = freeze_all(&bench, &[fs.path()], Duration::from_secs(30));
        // One write may have been acknowledged before the freeze and be counted only now.
        let at_freeze = writer.count();
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(5));
            assert!(writer.count() <= at_freeze + 1, "{kind:?}: a write got through");
        }
        assert!(is_frozen(&fs.path()));
        assert!(frozen.remaining() > Duration::from_secs(1));
        held(&frozen.thaw());
        writer.goes_on();
    }
}

#[test]
fn what_is_dropped_without_a_word_is_thawed() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = lock();
    drop(freeze_all(&bench, &[fs.path()], Duration::from_secs(60)));
    assert!(!is_frozen(&fs.path()));
}

#[test]
fn at_the_deadline_it_is_thawed_and_nobody_claims_that_it_was_held() {
    let fs = LoopFs::new(Kind::Xfs, 300);
    let bench = lock();
    let frozen = freeze_all(&bench, &[fs.path()], Duration::from_millis(300));
    wait_until("the keeper thaws by itself", LIMIT, || !is_frozen(&fs.path()));
    let report = frozen.thaw();
    assert!(report.held.clone().unwrap_err().contains("deadline"), "{report:?}");
}

#[test]
fn sigkill_of_the_keeper_while_frozen_leaves_nothing_frozen() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = lock();
    let before = keepers();
    let frozen = freeze_all(&bench, &[fs.path()], Duration::from_secs(60));
    let keeper = keepers().into_iter().find(|pid| !before.contains(pid)).expect("a keeper");
    assert!(Command::new("kill").args(["-9", &keeper.to_string()]).status().unwrap().success());
    let report = frozen.thaw();
    assert!(!is_frozen(&fs.path()));
    held(&report);
}

#[test]
fn the_keeper_does_not_end_on_the_signals_that_stop_a_service() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = lock();
    let before = keepers();
    let frozen = freeze_all(&bench, &[fs.path()], Duration::from_secs(60));
    let keeper = keepers().into_iter().find(|pid| !before.contains(pid)).expect("a keeper");
    for signal in ["-HUP", "-INT", "-TERM", "-QUIT", "-PIPE"] {
        assert!(Command::new("kill").args([signal, &keeper.to_string()]).status().unwrap().success());
    }
    assert!(is_frozen(&fs.path()));
    held(&frozen.thaw());
}

/// Keepers that are children of this process.
fn keepers() -> Vec<u32> {
    let own = std::process::id().to_string();
    let is_ours = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut behind_name = stat.rsplit(')').next().unwrap_or("").split_whitespace();
        behind_name.nth(1) == Some(own.as_str())
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(is_ours)
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.contains("__thaw-keeper"))
        })
        .collect()
}

#[test]
fn somebody_elses_freeze_is_reported_and_not_released() {
    let ours = LoopFs::new(Kind::Ext4, 64);
    let theirs = LoopFs::new(Kind::Ext4, 64);
    assert!(Command::new("fsfreeze").arg("-f").arg(theirs.path()).status().unwrap().success());
    let bench = lock();
    let plan = [ours.path(), theirs.path()];
    let Err(report) = arm(&bench, &plan, Duration::from_secs(30)).freeze() else { panic!("it froze") };
    assert!(report.held.clone().unwrap_err().contains("by somebody else"), "{report:?}");
    assert!(!is_frozen(&ours.path()), "what came before it is thawed");
    assert!(is_frozen(&theirs.path()), "theirs stays frozen");
    assert_eq!(
        freeze::thaw_all(&plan).into_iter().map(|(_, what)| what).collect::<Vec<_>>(),
        [Emergency::WasNotFrozen, Emergency::Thawed]
    );
}

#[test]
fn if_somebody_else_thaws_meanwhile_it_was_not_held() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = lock();
    let frozen = freeze_all(&bench, &[fs.path()], Duration::from_secs(30));
    assert!(Command::new("fsfreeze").arg("-u").arg(fs.path()).status().unwrap().success());
    let report = frozen.thaw();
    assert!(report.held.clone().unwrap_err().contains("thawed by somebody else"), "{report:?}");
}

#[test]
fn a_file_system_in_a_file_of_another_is_frozen_from_the_inside_out() {
    // vmware/open-vm-tools#6: frozen from the outside in, the inner freeze waits for ever for the
    // frozen outer file system to take its dirty pages.
    let outer = LoopFs::new(Kind::Ext4, 256);
    let inner = LoopFs::within(&outer.path(), Kind::Ext4, 64);
    fs::write(inner.path().join("dirty"), vec![1; 1 << 20]).unwrap();
    let bench = lock();
    let frozen = freeze_all(&bench, &[inner.path(), outer.path()], Duration::from_secs(30));
    held(&frozen.thaw());
}

#[test]
fn a_freeze_that_blocks_in_the_kernel_does_not_block_the_deadline() {
    // oVirt/vdsm#160: a time limit noticed after hours, since the call that froze had blocked.
    let outer = LoopFs::new(Kind::Ext4, 256);
    let inner = LoopFs::within(&outer.path(), Kind::Ext4, 64);
    fs::write(inner.path().join("dirty"), vec![1; 1 << 20]).unwrap();
    let bench = lock();
    // The wrong order, on purpose: FIFREEZE of the inner one waits for the outer one.
    let armed = arm(&bench, &[outer.path(), inner.path()], Duration::from_millis(500));
    let report = armed.freeze().err().expect("the deadline came first");
    assert!(report.held.is_err(), "{report:?}");
    wait_until("nothing is frozen", LIMIT, || !is_frozen(&outer.path()) && !is_frozen(&inner.path()));
}

#[test]
fn memory_cannot_be_frozen_and_the_report_says_which() {
    let bench = lock();
    let report = arm(&bench, &["/proc".into()], Duration::from_secs(30)).freeze().err().expect("no freeze");
    assert!(report.held.clone().unwrap_err().contains("/proc is test, which can't be frozen"), "{report:?}");
}

#[test]
fn a_second_freeze_waits_for_the_lock_and_is_told_who_holds_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = FreezeLock::take(folder.path(), Duration::ZERO).unwrap();
    let Err(LockError::Held { holder, .. }) = FreezeLock::take(folder.path(), Duration::from_millis(50))
    else {
        panic!("two hold the lock");
    };
    assert_eq!(holder, std::process::id().to_string());
    drop(first);
    FreezeLock::take(folder.path(), Duration::ZERO).unwrap();
}

#[test]
fn the_kernels_setting_is_restored() {
    let path = Path::new("/sys/kernel/rcu_expedited");
    let Ok(before) = fs::read_to_string(path) else {
        // A kernel without the setting: then there is nothing to restore, and it must stay so.
        assert!(!path.exists());
        return;
    };
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = lock();
    freeze_all(&bench, &[fs.path()], Duration::from_secs(30)).thaw();
    assert_eq!(fs::read_to_string(path).unwrap(), before);
    drop(freeze_all(&bench, &[fs.path()], Duration::from_millis(50)));
    assert_eq!(fs::read_to_string(path).unwrap(), before);
}
