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
use std::time::Duration;

use crate::vm::Plan;

const HERE: &str = "HOSTSNAP_WITHIN";
/// A program with its debugging symbols is ten times as large, and lives in the guest's memory.
const PROGRAM: &str = "/usr/bin/test-within";
/// Under emulation of a processor, on a busy machine.
const LIMIT: Duration = Duration::from_secs(900);

/// Runs the test of this name, which is the caller, in a machine: `body` is what it does there.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn run(test: &str, plan: Plan, body: impl FnOnce()) {
    if env::var_os(HERE).is_some() {
        return body();
    }
    let scratch = tempfile::tempdir().expect("a folder");
    let stripped = scratch.path().join("test");
    let program = env::current_exe().expect("the path of this program");
    crate::loopfs::run(std::process::Command::new("strip").arg("-o").arg(&stripped).arg(program));
    let vm = plan.file(&stripped, PROGRAM).boot();
    let script = format!("{HERE}=here RUST_BACKTRACE=1 {PROGRAM} --exact {test} --nocapture 2>&1");
    let output = vm.guest.spawn(&script).wait_within(LIMIT);
    // A name that is not the test's would run nothing, and succeed.
    let one = output.stdout.contains("1 passed; 0 failed");
    assert!(output.status == 0 && one, "within the machine, {test}:\n{}{}", output.stdout, output.stderr);
}
