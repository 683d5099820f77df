//! A panic while frozen. It was said at once, and where its message went to a file on the frozen file
//! system, the message waited for the thaw, and the thaw for the end of the message: until the deadline.
//!
//! The flow that panics must be a process of its own: this test program, started again for its first test.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use guest_agent::freeze::{FreezeLock, arm, thaw_before_a_panic_is_told};
use harness::loopfs::{Kind, LoopFs};
use harness::wait::wait_until;

use crate::bench::{LIMIT, LONG, all_is_restored, is_frozen, plan, run_folder, was_held};

const PATH: &str = "HOSTSNAP_TEST_PANIC_PATH";

/// Started again by the other test, it panics while everything is frozen.
#[test]
fn a_flow_that_does_not_panic_holds_its_freeze() {
    let told = std::env::var(PATH).ok();
    let own = told.is_none().then(|| LoopFs::new(Kind::Ext4, 64));
    let path = own.as_ref().map_or_else(|| told.clone().unwrap_or_default().into(), LoopFs::path);
    thaw_before_a_panic_is_told();
    let lock = FreezeLock::take(&run_folder(), LIMIT).unwrap();
    let frozen = arm(plan(&[path], LONG), &lock).unwrap().freeze().unwrap();
    assert!(told.is_none(), "the panic that was asked for");
    was_held(&frozen.thaw());
}

#[test]
fn a_panic_while_frozen_thaws_first_and_is_told_then() {
    let fs = LoopFs::new(Kind::Ext4, 64);
    let log = fs.path().join("log");
    let mut flow = panicking(&fs, &log);
    let mut ended = None;
    wait_until("the flow ends, minutes before its deadline", LIMIT, || {
        ended = flow.try_wait().unwrap();
        ended.is_some()
    });
    assert!(!is_frozen(&fs.path()));
    assert_eq!(ended.unwrap().code(), Some(101));
    let told = std::fs::read_to_string(&log).unwrap();
    assert!(told.contains("the panic that was asked for"), "{told}");
    all_is_restored();
}

fn panicking(fs: &LoopFs, log: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "panics::a_flow_that_does_not_panic_holds_its_freeze", "--nocapture"])
        .env(PATH, fs.path())
        .stdout(Stdio::null())
        .stderr(File::create(log).unwrap())
        .spawn()
        .unwrap()
}
