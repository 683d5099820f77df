//! Arming, freezing and looking, for one test at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use guest_agent::freeze::{self, Armed, FreezeLock, Frozen, Plan, Report, Target};

/// How long a state is waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// A deadline that no test waits for.
pub(crate) const LONG: Duration = Duration::from_secs(300);

const SETTING: &str = "/sys/kernel/rcu_expedited";

/// The freeze lock: `rcu_expedited` is the whole machine's, so tests take turns.
pub(crate) struct Bench {
    lock: FreezeLock,
}

/// One folder for all test processes.
pub(crate) fn run_folder() -> PathBuf {
    std::env::temp_dir().join("hostsnap-test-run")
}

pub(crate) fn target(path: &Path) -> Target {
    Target { mount_point: path.to_owned(), fs_type: "testfs".to_owned(), mount_id: None, rank: 0 }
}

/// One after the other.
pub(crate) fn plan(paths: &[PathBuf], budget: Duration) -> Plan {
    let keeper = env!("CARGO_BIN_EXE_hostsnap").into();
    let mut targets: Vec<Target> = paths.iter().map(|path| target(path)).collect();
    (0..).zip(&mut targets).for_each(|(rank, target)| target.rank = rank);
    Plan { targets, budget, keeper }
}

impl Bench {
    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests freeze file systems: run them as root");
        let bench = Self { lock: FreezeLock::take(&run_folder(), LIMIT).unwrap() };
        assert_eq!(setting(), "0", "{SETTING}: an earlier freeze did not restore it");
        bench
    }

    pub(crate) fn arm(&self, paths: &[PathBuf], budget: Duration) -> Armed {
        freeze::arm(plan(paths, budget), &self.lock).unwrap()
    }

    pub(crate) fn freeze(&self, paths: &[PathBuf], budget: Duration) -> Frozen {
        let frozen = self.arm(paths, budget).freeze().unwrap_or_else(|report| panic!("{report:?}"));
        assert_eq!(setting(), expedited(), "{SETTING} while frozen");
        frozen
    }

    /// Waits until the keeper has ended as well, and looks whether all is as it was.
    pub(crate) fn ends(self) {
        drop(self.lock);
        all_is_restored();
    }
}

/// Waits until nobody has the lock, and looks whether all is as it was.
pub(crate) fn all_is_restored() {
    drop(FreezeLock::take(&run_folder(), LIMIT).unwrap());
    assert_eq!(setting(), "0", "{SETTING} was not restored");
}

/// `rcu_expedited`; where a kernel lacks it, as if it were never set.
pub(crate) fn setting() -> String {
    fs::read_to_string(SETTING).map_or_else(|_| "0".to_owned(), |text| text.trim().to_owned())
}

fn expedited() -> &'static str {
    if Path::new(SETTING).exists() { "1" } else { "0" }
}

/// Whether somebody holds a file system frozen: a freeze of ours would fail with EBUSY.
pub(crate) fn is_frozen(path: &Path) -> bool {
    let froze = fsfreeze("-f", path);
    if froze {
        assert!(fsfreeze("-u", path));
    }
    !froze
}

/// Somebody else's freeze (`-f`) or thaw (`-u`).
pub(crate) fn fsfreeze(option: &str, path: &Path) -> bool {
    Command::new("fsfreeze").arg(option).arg(path).output().unwrap().status.success()
}

/// Somebody else's freeze, over when dropped. Left behind by a test that fails, it would hold up all that is in
/// a file on it, and then whoever needs memory: the whole machine.
pub(crate) struct TheirFreeze(PathBuf);

impl TheirFreeze {
    pub(crate) fn of(path: PathBuf) -> Self {
        assert!(fsfreeze("-f", &path));
        Self(path)
    }
}

impl Drop for TheirFreeze {
    fn drop(&mut self) {
        fsfreeze("-u", &self.0);
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// Everything was frozen and held.
#[track_caller]
pub(crate) fn was_held(report: &Report) {
    assert_eq!(report.held, Ok(()), "{report:?}");
    for fs in &report.file_systems {
        let (freeze, thaw) = (fs.freeze.unwrap(), fs.thaw.unwrap());
        assert_eq!((freeze.errno, thaw.errno), (0, 0), "{report:?}");
        assert!(freeze.at_us + freeze.took_us <= thaw.at_us, "{report:?}");
    }
    assert!(report.stall_us >= report.freeze_us + report.thaw_us, "{report:?}");
}
