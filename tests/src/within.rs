//! A test of this machine's kernel's absent parts: it runs inside of a virtual machine whose kernel
//! has them. The test's own program is copied in and runs that one test; its result is the
//! test's, and what it printed is shown when it fails.
//!
//! ```ignore
//! #[test]
//! fn lvm_keeps_the_contract() {
//!     within::run("lvm_keeps_the_contract", Plan::debian("lvm"), || contract(&Volumes::new()));
//! }
//! ```
//!
//! `HOSTSNAP_WITHIN=here` runs the test itself, without a machine around it: so does the copy, and
//! so may you, as root, where this machine's kernel has all that the test needs.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::loopfs;
use crate::vm::{Plan, Vm};

const HERE: &str = "HOSTSNAP_WITHIN";
/// A program with its debugging symbols is ten times as large, and lives in the guest's memory.
const PROGRAM: &str = "/usr/bin/within";
/// Under emulation of a processor, on a busy machine.
const LIMIT: Duration = Duration::from_secs(900);

/// Runs the test of this name, which is the caller, in a machine: `body` is what it does there.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn run(test: &str, plan: Plan, body: impl FnOnce()) {
    if is_here() {
        return body();
    }
    let vm = with_this_program(plan);
    let script = format!("{HERE}=here RUST_BACKTRACE=1 {PROGRAM} --exact {test} --nocapture 2>&1");
    let output = vm.guest.spawn(&script).wait_within(LIMIT);
    // A name that is not the test's would run nothing, and succeed.
    let one = output.stdout.contains("1 passed; 0 failed");
    assert!(output.status == 0 && one, "within the machine, {test}:\n{}{}", output.stdout, output.stderr);
}

/// Whether this is the copy.
pub fn is_here() -> bool {
    env::var_os(HERE).is_some()
}

/// Runs this program, which is no test, with these arguments in a machine; then the text of a file that it left there.
///
/// # Panics
/// When it fails, or takes longer than `limit`.
pub fn program(plan: Plan, arguments: &str, file: &Path, limit: Duration) -> String {
    let vm = with_this_program(plan);
    let script = format!("{HERE}=here RUST_BACKTRACE=1 {PROGRAM} {arguments} 2>&1");
    let output = vm.guest.spawn(&script).wait_within(limit);
    assert_eq!(output.status, 0, "within the machine, {arguments}:\n{}{}", output.stdout, output.stderr);
    vm.guest.sh(&format!("cat {}", file.display()))
}

fn with_this_program(plan: Plan) -> Vm {
    let scratch = tempfile::tempdir().expect("a folder");
    let stripped = scratch.path().join("program");
    let program = env::current_exe().expect("the path of this program");
    loopfs::run(Command::new("strip").arg("-o").arg(&stripped).arg(program));
    plan.file(&stripped, PROGRAM).boot()
}
