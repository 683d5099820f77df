//! From the freeze to the thaw nobody allocates: memory that has to be freed first may have to be
//! written to what is frozen.
//!
//! This program counts its allocations. It is also the keeper, and ends itself at the first
//! allocation after it is ready, which the freeze would notice.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use guest_agent::freeze::{FreezeLock, Plan, THIS_PROGRAM, Target, arm, keeper};
use harness::loopfs::{Kind, LoopFs};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static IS_FORBIDDEN: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    fn count() {
        ALLOCATIONS.fetch_add(1, SeqCst);
        if IS_FORBIDDEN.load(SeqCst) {
            std::process::abort();
        }
    }
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

fn main() -> std::process::ExitCode {
    if keeper::is_asked_for() {
        return keeper::run_calling(|| IS_FORBIDDEN.store(true, SeqCst));
    }
    if std::env::args().any(|argument| argument == "--list") {
        println!("nobody_allocates_from_the_freeze_to_the_thaw: test");
        return std::process::ExitCode::SUCCESS;
    }
    let all: Vec<LoopFs> = [Kind::Ext4, Kind::Xfs].map(|kind| LoopFs::new(kind, 300)).into();
    let folder = std::env::temp_dir().join("hostsnap-test-run");
    let lock = FreezeLock::take(&folder, Duration::from_secs(60)).expect("the freeze lock");
    let targets = all.iter().map(|fs| Target {
        mount_point: fs.path(),
        fs_type: "testfs".to_owned(),
        mount_id: None,
        rank: 0,
    });
    let plan =
        Plan { targets: targets.collect(), budget: Duration::from_secs(300), keeper: THIS_PROGRAM.into() };
    let armed = arm(plan, &lock).expect("a keeper");

    let before = ALLOCATIONS.load(SeqCst);
    let frozen = armed.freeze();
    let remaining = frozen.as_ref().map_or(Duration::ZERO, |frozen| frozen.remaining());
    let after = ALLOCATIONS.load(SeqCst);

    let frozen =
        frozen.unwrap_or_else(|report| panic!("the keeper allocated, or there was no freeze: {report:?}"));
    let report = frozen.thaw();
    assert!(remaining > Duration::ZERO);
    assert_eq!(after - before, 0, "the flow allocated while frozen");
    assert_eq!(report.held, Ok(()));
    assert!(report.file_systems.iter().all(|fs| fs.thaw.is_some()));
    // As the usual test programs say it: they are counted.
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    std::process::ExitCode::SUCCESS
}
