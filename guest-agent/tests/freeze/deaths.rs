//! Processes that are killed or stopped while frozen.
//!
//! The flow that dies must be a process of its own: this test program, started again for its first
//! test alone.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use guest_agent::freeze::{Emergency, FreezeLock, NotHeld, arm, emergency_thaw};
use harness::loopfs::{Kind, LoopFs};
use harness::wait::wait_until;

use crate::bench::{
    Bench, LIMIT, LONG, all_is_restored, is_frozen, plan, run_folder, setting, signal, was_held,
};

const PATHS: &str = "HOSTSNAP_TEST_PATHS";
const BUDGET_MS: &str = "HOSTSNAP_TEST_BUDGET_MS";

/// Started again by another test, it says when it has frozen, waits to be told to go on, and says how
/// it went.
#[test]
fn a_flow_that_nobody_disturbs_holds_its_freeze() {
    let told = std::env::var(PATHS).ok();
    let own = told.is_none().then(|| LoopFs::new(Kind::Ext4, 64));
    let paths: Vec<PathBuf> = match (&told, &own) {
        (Some(paths), _) => paths.split(':').map(PathBuf::from).collect(),
        (None, own) => own.iter().map(LoopFs::path).collect(),
    };
    let budget = std::env::var(BUDGET_MS).map_or(LONG, |ms| Duration::from_millis(ms.parse().unwrap()));
    let lock = FreezeLock::take(&run_folder(), LIMIT).unwrap();
    let frozen = arm(plan(&paths, budget), &lock).unwrap().freeze().unwrap();
    if told.is_none() {
        return was_held(&frozen.thaw());
    }
    println!("\nfrozen {}", frozen.keeper_pid());
    std::io::stdin().read_line(&mut String::new()).unwrap();
    println!("\nheld {:?}", frozen.thaw().held);
}

struct Flow {
    process: Child,
    says: std::io::Lines<BufReader<std::process::ChildStdout>>,
    keeper: u32,
}

impl Flow {
    fn frozen(paths: &[&Path], budget: Duration) -> Self {
        let paths: Vec<_> = paths.iter().map(|path| path.to_str().unwrap()).collect();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "deaths::a_flow_that_nobody_disturbs_holds_its_freeze", "--nocapture"])
            .env(PATHS, paths.join(":"))
            .env(BUDGET_MS, budget.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut flow = Self { process, says, keeper: 0 };
        flow.keeper = flow.next("frozen ").parse().unwrap();
        flow
    }

    /// What follows after this word in the next line that begins with it.
    fn next(&mut self, word: &str) -> String {
        let line = self.says.by_ref().map(Result::unwrap).find(|line| line.starts_with(word));
        line.unwrap_or_else(|| panic!("the flow ended before it said {word:?}"))[word.len()..].to_owned()
    }

    fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    fn goes_on(&mut self) -> String {
        drop(self.process.stdin.take());
        self.next("held ")
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn sigkill_of_the_flow_while_frozen_thaws_at_once() {
    let [a, b] = [LoopFs::new(Kind::Ext4, 64), LoopFs::new(Kind::Xfs, 300)];
    let flow = Flow::frozen(&[&a.path(), &b.path()], LONG);
    assert!(is_frozen(&a.path()) && is_frozen(&b.path()));
    flow.signal("-KILL");
    // The deadline is minutes away: it is the end of the flow that is noticed.
    wait_until("thawed", LIMIT, || !is_frozen(&a.path()) && !is_frozen(&b.path()));
    wait_until("the keeper ends", LIMIT, || !is_alive(flow.keeper));
    all_is_restored();
}

/// What nobody is left to do. `rcu_expedited` stayed on until somebody noticed.
#[test]
fn when_both_are_killed_at_once_the_emergency_exit_puts_all_right() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let mut flow = Flow::frozen(&[&fs.path()], LONG);
    for name in ["-STOP", "-KILL"] {
        flow.signal(name);
        signal(flow.keeper, name);
    }
    flow.process.wait().unwrap();
    wait_until("the keeper is gone", LIMIT, || !has_mappings(flow.keeper));
    assert!(is_frozen(&fs.path()), "or this test sees nothing");
    let report = emergency_thaw(&run_folder(), &[fs.path()]);
    assert_eq!(report.file_systems, [(fs.path(), Emergency::Thawed)]);
    assert_eq!(setting(), "0");
    all_is_restored();
}

/// A zombie has none (proc_pid_maps(5)); in a container nobody may take notice of it.
fn has_mappings(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/maps")).is_ok_and(|maps| !maps.is_empty())
}

#[test]
fn a_flow_that_is_stopped_is_thawed_at_the_deadline_and_learns_it() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let mut flow = Flow::frozen(&[&fs.path()], Duration::from_secs(2));
    flow.signal("-STOP");
    wait_until("thawed", LIMIT, || !is_frozen(&fs.path()));
    flow.signal("-CONT");
    assert_eq!(flow.goes_on(), format!("{:?}", Err::<(), _>(NotHeld::Deadline)));
    all_is_restored();
}

#[test]
fn a_terminal_that_hangs_up_does_not_take_the_keeper_along() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let flow = Flow::frozen(&[&fs.path()], LONG);
    // A session of its own, so no signal to the flow's group or terminal reaches it; and its control
    // group is not the flow's, so `systemctl kill` does not either.
    let session = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().parse::<u32>().unwrap()
    };
    assert_eq!(session(flow.keeper), flow.keeper);
    assert_ne!(session(flow.process.id()), flow.keeper);
    flow.signal("-HUP");
    wait_until("thawed", LIMIT, || !is_frozen(&fs.path()));
    all_is_restored();
}

#[test]
fn sigkill_of_the_keeper_while_frozen_thaws_at_once() {
    let [a, b] = [LoopFs::new(Kind::Ext4, 64), LoopFs::new(Kind::Btrfs, 300)];
    let bench = Bench::new();
    let frozen = bench.freeze(&[a.path(), b.path()], LONG);
    signal(frozen.keeper_pid(), "-KILL");
    // Nobody has called `thaw`: without a keeper, nothing may stay frozen.
    wait_until("thawed", LIMIT, || !is_frozen(&a.path()) && !is_frozen(&b.path()));
    assert_eq!(frozen.remaining(), Duration::ZERO);
    assert_eq!(frozen.thaw().held, Err(NotHeld::KeeperDied));
    bench.ends();
}

/// It was killed only after two seconds. A command that had ended by then left it behind, with the lock, and
/// no snapshot could be taken any more.
#[test]
fn a_keeper_that_is_stopped_neither_holds_up_the_thaw_nor_is_left_behind() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    let frozen = bench.freeze(&[fs.path()], LONG);
    let keeper = frozen.keeper_pid();
    signal(keeper, "-STOP");
    was_held(&frozen.thaw());
    assert!(!is_frozen(&fs.path()));
    assert!(!is_alive(keeper), "it is killed, since nothing depends on it");
    bench.ends();
}

#[test]
fn with_the_keeper_stopped_the_deadline_is_kept_all_the_same() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    let frozen = bench.freeze(&[fs.path()], Duration::from_secs(1));
    signal(frozen.keeper_pid(), "-STOP");
    wait_until("thawed", LIMIT, || !is_frozen(&fs.path()));
    assert_eq!(frozen.thaw().held, Err(NotHeld::Deadline));
    bench.ends();
}

#[test]
fn the_keeper_does_not_end_on_the_signals_that_stop_a_service() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    let frozen = bench.freeze(&[fs.path()], LONG);
    for name in ["-HUP", "-INT", "-TERM", "-QUIT", "-PIPE"] {
        signal(frozen.keeper_pid(), name);
    }
    assert!(is_frozen(&fs.path()));
    was_held(&frozen.thaw());
    bench.ends();
}

#[test]
fn the_keeper_is_out_of_reach_of_memory_pressure() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    let armed = bench.arm(&[fs.path()], LONG);
    let of = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", armed.keeper_pid())).unwrap();
    // To lower it needs CAP_SYS_RESOURCE (bit 24), which root may lack in a container.
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = own.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    let is_allowed = u64::from_str_radix(capabilities, 16).unwrap() & (1 << 24) != 0;
    let inherited = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(of("oom_score_adj").trim(), if is_allowed { "-1000" } else { inherited.trim() });
    let status = of("status");
    let kib = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    assert!(kib("VmLck:") > 0 && kib("VmLck:") >= kib("VmData:"), "{status}");
    drop(armed);
    bench.ends();
}

#[test]
fn without_a_keeper_nothing_is_frozen() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let lock = FreezeLock::take(&run_folder(), LIMIT).unwrap();
    let mut broken = plan(&[fs.path()], LONG);
    broken.keeper = "/bin/false".into();
    let error = arm(broken, &lock).err().expect("no keeper");
    assert!(error.to_string().contains("without which nothing is frozen"), "{error}");
    assert!(!is_frozen(&fs.path()));
}

#[test]
fn a_keeper_that_dies_before_the_freeze_leaves_nothing_frozen() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let bench = Bench::new();
    let armed = bench.arm(&[fs.path()], LONG);
    signal(armed.keeper_pid(), "-KILL");
    let report = armed.freeze().err().expect("no freeze");
    assert_eq!(report.held, Err(NotHeld::KeeperDied));
    assert!(!is_frozen(&fs.path()));
    bench.ends();
}
