//! The tests in their tiers, and the count of all of them. The last line is `N passed, N failed`.
//!
//! One tier after the other: many tests of the first ones are about time limits, and fail beside others, also where those give way. Most
//! stories wait for states: they go two by two.
//!
//! cargo is always asked for the same packages, all of them: it builds a dependency anew for each set of features that is asked of it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::setup::Zfs;
use crate::{fuzz, setup};

/// What the names of tests hold that need ZFS in their guest.
const ZFS_TESTS: &[&str] = &["zfs_keeps_the_contract", "zfs_faults::", "by_zfs_"];

/// Stories about leases of two seconds: each has the machine for itself.
const ALONE: &str = "disasters::";

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
    let mut count = Count::default();
    let tests = Tests { filter, left_out };
    others(&mut count, tests)?;
    stories(&mut count, tests)?;
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

/// All but the stories.
fn others(count: &mut Count, tests: Tests<'_>) -> Result<()> {
    let mut began = Instant::now();
    let mut say = |what: &str| {
        println!("# {what}: {} s", began.elapsed().as_secs());
        began = Instant::now();
    };
    if tests.filter.is_none() {
        count.step("formatting", setup::cargo(&["fmt", "--all", "--check"], &[]));
        let lints = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
        count.step("lints", setup::cargo(&lints, &[]));
        // For cargo too all targets are all but this one: tests/Cargo.toml.
        let lints = ["clippy", "--quiet", "--workspace", "--test", "stories", "--", "-D", "warnings"];
        count.step("lints of the stories", setup::cargo(&lints, &[]));
        say("formatting and lints");
    }
    // Tiers 0, 1 and 3: units, properties, golden bytes; conversations; drivers on real storage.
    let show = |line: &str| println!("{line}");
    count.tests(tests, &["--workspace"], &[], show)?;
    say("tiers 0, 1 and 3");
    if tests.filter.is_none() {
        count.step("build the fuzz targets", fuzz::build());
        for target in fuzz::TARGETS {
            count.step(target, fuzz::run(target));
        }
        say("tier 2, fuzz targets");
    }
    Ok(())
}

/// Tier 4.
fn stories(count: &mut Count, tests: Tests<'_>) -> Result<()> {
    let began = Instant::now();
    let mut run = |tests: Tests<'_>, how: &[&str]| {
        count.tests(tests, &["--workspace", "--test", "stories"], how, |line| {
            if line.starts_with("test ") && !line.starts_with("test result") {
                println!("{line} (ended at {} s)", began.elapsed().as_secs());
            } else {
                println!("{line}");
            }
        })
    };
    if tests.filter.is_some() {
        run(tests, &["--test-threads", "1"])?;
    } else {
        let alone = run(Tests { filter: Some(ALONE), ..tests }, &["--test-threads", "1"])?;
        run(tests, &["--test-threads", lanes(), "--skip", ALONE])?;
        // They have been run: only that program did not.
        count.ignored = count.ignored.saturating_sub(alone);
    }
    println!("# tier 4, stories in virtual machines: {} s", began.elapsed().as_secs());
    Ok(())
}

/// How many stories run side by side. A virtual machine has one processor.
fn lanes() -> &'static str {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    // There the guests of all stories call the one port of the one host, which one hostsnapd can have.
    let one_host = Path::new("/dev/vhost-vsock").exists();
    if processors == 1 || one_host { "1" } else { "2" }
}

impl Count {
    fn step(&mut self, what: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                self.failed += 1;
                eprintln!("{what}: {error:#}");
            }
        }
    }

    /// Runs libtest's programs and adds up what they say; how many tests that were.
    fn tests(
        &mut self,
        Tests { filter, left_out }: Tests<'_>,
        which: &[&str],
        how: &[&str],
        mut show: impl FnMut(&str),
    ) -> Result<u64> {
        let mut command = Command::new(env!("CARGO"));
        command.args(["test", "--no-fail-fast"]).args(which).args(filter).current_dir(setup::root());
        command.arg("--").args(how).args(left_out.iter().flat_map(|name| ["--skip", name]));
        let mut child = command.stdout(Stdio::piped()).spawn().context("run cargo test")?;
        let output = child.stdout.take().expect("it is piped");
        let (before, failed) = (self.passed + self.failed, self.failed);
        for line in BufReader::new(output).lines() {
            let line = line?;
            show(&line);
            self.add(&line, filter);
        }
        let status = child.wait()?;
        // A program that did not build, or died, printed no count.
        if !status.success() && self.failed == failed {
            self.failed += 1;
        }
        Ok(self.passed + self.failed - before)
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
