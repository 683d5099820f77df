//! How long applications wait for the freeze and the thaw alone, with no cut between them, beside the
//! floor: FIFREEZE and FITHAW of the same file systems, called directly with expedited RCU.
//! `cargo bench -p guest-agent --bench freeze_window`, as root. It reports; nothing is asserted.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use guest_agent::freeze::{FreezeLock, Plan, THIS_PROGRAM, Target, arm, flush, keeper};
use harness::loopfs::{Kind, LoopFs};
use rustix::ioctl::{IntegerSetter, Opcode, ioctl, opcode};

const RUNS: usize = 50;
const EXPEDITED: &str = "/sys/kernel/rcu_expedited";

fn main() -> std::process::ExitCode {
    if keeper::is_asked_for() {
        return keeper::run();
    }
    println!("{RUNS} runs, microseconds, min/median/p95/max; one write before each, then syncfs");
    for (name, kinds) in [
        ("ext4", vec![Kind::Ext4]),
        ("xfs", vec![Kind::Xfs]),
        ("btrfs", vec![Kind::Btrfs]),
        ("four ext4", vec![Kind::Ext4; 4]),
    ] {
        let all: Vec<LoopFs> = kinds.into_iter().map(|kind| LoopFs::new(kind, 300)).collect();
        // Alternately, so that both see the same machine.
        let (mut bare, mut ours) = (Vec::new(), Vec::new());
        for run in 0..RUNS {
            bare.push(after_a_write(&all, run, bare_stall));
            ours.push(after_a_write(&all, run, our_stall));
        }
        println!("{name:>10}  bare {}   hostsnap {}", summary(bare), summary(ours));
    }
    std::process::ExitCode::SUCCESS
}

fn after_a_write(all: &[LoopFs], run: usize, stall: fn(&[LoopFs]) -> Duration) -> Duration {
    for fs in all {
        std::fs::write(fs.path().join("file"), run.to_string()).expect("a write");
    }
    let paths: Vec<_> = all.iter().map(LoopFs::path).collect();
    flush::flush(&paths, Duration::from_secs(10)).expect("a flush");
    stall(all)
}

fn bare_stall(all: &[LoopFs]) -> Duration {
    const FIFREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
    const FITHAW: Opcode = opcode::read_write::<i32>(b'X', 120);
    let files: Vec<File> = all.iter().map(|fs| File::open(fs.path()).expect("a mount point")).collect();
    set_expedited("1");
    let began = Instant::now();
    for file in &files {
        // SAFETY: the kernel ignores the argument (fs/ioctl.c, ioctl_fsfreeze).
        unsafe { ioctl(file, IntegerSetter::<FIFREEZE>::new_usize(0)) }.expect("FIFREEZE");
    }
    for file in files.iter().rev() {
        // SAFETY: as above.
        unsafe { ioctl(file, IntegerSetter::<FITHAW>::new_usize(0)) }.expect("FITHAW");
    }
    let stall = began.elapsed();
    set_expedited("0");
    stall
}

fn our_stall(all: &[LoopFs]) -> Duration {
    let folder = std::env::temp_dir().join("hostsnap-test-run");
    let lock = FreezeLock::take(&folder, Duration::from_secs(60)).expect("the freeze lock");
    let target =
        |fs: &LoopFs| Target { mount_point: fs.path(), fs_type: "bench".to_owned(), mount_id: None, rank: 0 };
    let targets = all.iter().map(target).collect();
    let plan = Plan { targets, budget: Duration::from_secs(30), keeper: THIS_PROGRAM.into() };
    let frozen = arm(plan, &lock).expect("a keeper").freeze().unwrap_or_else(|report| panic!("{report:?}"));
    let report = frozen.thaw();
    assert_eq!(report.held, Ok(()));
    Duration::from_micros(report.stall_us)
}

fn set_expedited(value: &str) {
    if Path::new(EXPEDITED).exists() {
        std::fs::write(EXPEDITED, value).expect("rcu_expedited");
    }
}

fn summary(mut stalls: Vec<Duration>) -> String {
    stalls.sort();
    let at = |percent: usize| stalls[(stalls.len() - 1) * percent / 100].as_micros();
    format!("{:>5}/{:>5}/{:>5}/{:>6}", at(0), at(50), at(95), at(100))
}
