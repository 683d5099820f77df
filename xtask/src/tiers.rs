//! The tests in their tiers, and the count of all of them. The last line is `N passed, N failed`.
//!
//! The stories leave a good part of two processors idle: the other tiers run beside them, and give way to them.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::process::setpriority_process;

use crate::setup::Zfs;
use crate::{fuzz, setup};

/// What the names of tests hold that need ZFS in their guest.
const ZFS_TESTS: &[&str] = &["zfs_keeps_the_contract", "zfs_faults::", "by_zfs_"];

/// nice(2): a process that has this much gets what others leave.
const GIVES_WAY: i32 = 19;

/// What was counted.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// Which tests.
#[derive(Clone, Copy)]
struct Tests<'a> {
    filter: Option<&'a str>,
    /// Those whose names hold one of these can't be run here: they are skipped, and counted as that.
    left_out: &'static [&'static str],
}

/// Sets up what is missing, then runs everything.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    let zfs = setup::for_tests()?;
    let left_out = match zfs {
        Zfs::Ready => &[],
        Zfs::Absent(_) => ZFS_TESTS,
    };
    let tests = Tests { filter, left_out };
    let count = thread::scope(|scope| {
        let (begun, begins) = mpsc::channel();
        let stories = scope.spawn(move || stories(tests, begun));
        // Two cargos build one after the other; an error means that the stories have ended already.
        let _ = begins.recv();
        let others = beside(tests)?;
        let stories = stories.join().expect("it does not panic")?;
        anyhow::Ok(others.and(&stories))
    })?;
    zfs.say();
    let Count { passed, failed, ignored } = count;
    if ignored > 0 {
        println!("{ignored} skipped");
    }
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("{failed} tests failed");
    }
    Ok(())
}

/// Tier 4. Says when its programs are built.
fn stories(tests: Tests<'_>, begun: mpsc::Sender<()>) -> Result<Count> {
    let mut count = Count::default();
    let began = Instant::now();
    let mut since = began;
    // One at a time: beside the other tiers, more would fall short of their time limits.
    count.tests(tests, &["-p", "tests", "--test", "stories"], &["--test-threads", "1"], |line| {
        let _ = begun.send(());
        if line.starts_with("test ") && !line.starts_with("test result") {
            println!("{line} ({} s)", since.elapsed().as_secs());
            since = Instant::now();
        } else {
            println!("{line}");
        }
    })?;
    println!("# tier 4, stories in virtual machines: {} s", began.elapsed().as_secs());
    Ok(count)
}

/// Everything else.
fn beside(tests: Tests<'_>) -> Result<Count> {
    // Of this thread, and of all that it starts.
    setpriority_process(None, GIVES_WAY).context("give way to the stories")?;
    let mut count = Count::default();
    let mut began = Instant::now();
    let mut say = |what: &str| {
        println!("# {what}: {} s", began.elapsed().as_secs());
        began = Instant::now();
    };
    // A program's lines are shown together when it ends, so that nothing comes between them.
    let mut lines = String::new();
    let mut gather = |line: &str| {
        lines.extend([line, "\n"]);
        if line.starts_with("test result: ") {
            print!("{}", std::mem::take(&mut lines));
        }
    };
    count.tests(tests, &["--workspace", "--exclude", "tests"], &[], &mut gather)?;
    count.tests(tests, &["-p", "tests", "--lib"], &[], &mut gather)?;
    // Of one that died.
    print!("{lines}");
    say("tiers 0, 1 and 3");
    if tests.filter.is_none() {
        count.step("formatting", setup::cargo(&["fmt", "--all", "--check"], &[]));
        let lints = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
        count.step("lints", setup::cargo(&lints, &[]));
        say("formatting and lints");
        count.step("build the fuzz targets", fuzz::build());
        for target in fuzz::TARGETS {
            count.step(target, fuzz::run(target));
        }
        say("tier 2, fuzz targets");
    }
    Ok(count)
}

impl Count {
    fn and(self, other: &Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }

    fn step(&mut self, what: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                self.failed += 1;
                eprintln!("{what}: {error:#}");
            }
        }
    }

    /// Runs libtest's programs and adds up what they say.
    fn tests(
        &mut self,
        Tests { filter, left_out }: Tests<'_>,
        which: &[&str],
        how: &[&str],
        mut show: impl FnMut(&str),
    ) -> Result<()> {
        let mut command = Command::new(env!("CARGO"));
        command.args(["test", "--no-fail-fast"]).args(which).args(filter).current_dir(setup::root());
        command.arg("--").args(how).args(left_out.iter().flat_map(|name| ["--skip", name]));
        let mut child = command.stdout(Stdio::piped()).spawn().context("run cargo test")?;
        let output = child.stdout.take().expect("it is piped");
        let before = self.failed;
        for line in BufReader::new(output).lines() {
            let line = line?;
            show(&line);
            self.add(&line, filter);
        }
        let status = child.wait()?;
        // A program that did not build, or died, printed no count.
        if !status.success() && self.failed == before {
            self.failed += 1;
        }
        Ok(())
    }

    /// `test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; …`: without a filter
    /// only what can't be run here is filtered out.
    fn add(&mut self, line: &str, filter: Option<&str>) {
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        for part in counts.split([';', '.']) {
            let mut words = part.split_whitespace();
            if let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) {
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.ignored += number,
                    "filtered" if filter.is_none() => self.ignored += number,
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn what_the_test_programs_say_is_added_up() {
        let mut count = Count::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.8s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
            "running 3 tests",
        ] {
            count.add(line, Some("a filter"));
        }
        assert_eq!((count.passed, count.failed, count.ignored), (15, 2, 1));
    }

    #[test]
    fn what_is_left_out_for_want_of_something_counts_as_skipped() {
        let mut count = Count::default();
        let line =
            "test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 1s";
        count.add(line, None);
        assert_eq!((count.passed, count.ignored), (7, 2));
    }
}
