//! Tier 2: each fuzz target for a short while, with libFuzzer's coverage, on the stable toolchain.
//! `cargo fuzz` gives the same with sanitizers: fuzz/README.md.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::setup;

/// The targets, one for each kind of hostile bytes.
pub(crate) const TARGETS: [&str; 3] = ["frames", "requests", "replies"];

/// How long each runs, in seconds.
const SECONDS: u32 = 10;

/// What `cargo fuzz` tells the compiler, but for the sanitizer.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table";

/// Builds all targets.
pub(crate) fn build() -> Result<()> {
    let folder = setup::root().join("target/fuzz").to_string_lossy().into_owned();
    // With a target named, the flags are not for build scripts and macros.
    let triple = concat!(env!("XTASK_ARCH"), "-unknown-linux-gnu");
    let arguments = ["build", "--quiet", "--manifest-path", "fuzz/Cargo.toml", "--bins", "--target", triple];
    setup::cargo(&arguments, &[("CARGO_TARGET_DIR", &folder), ("RUSTFLAGS", COVERAGE)])
}

/// Runs one target. What it found stays beside it.
pub(crate) fn run(target: &str) -> Result<()> {
    let folder = setup::root().join("target/fuzz");
    let program = folder.join(concat!(env!("XTASK_ARCH"), "-unknown-linux-gnu")).join("debug").join(target);
    let corpus = folder.join("corpus").join(target);
    fs::create_dir_all(&corpus)?;
    let output = Command::new(program)
        .arg(format!("-max_total_time={SECONDS}"))
        .arg(format!("-artifact_prefix={}/", corpus.display()))
        .arg(&corpus)
        .output()
        .context("run the target")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
