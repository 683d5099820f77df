//! What happens when something dies or hangs while the guest is frozen. The host is made to hang for
//! real: its service is stopped (SIGSTOP) while the guest's hook runs, so that the guest freezes and
//! then waits for a cut that does not come.

use std::time::Duration;

use harness::guest::Running;
use harness::wait::wait_until;
use rustix::process::Signal;
use serde_json::Value;

use super::stage::{LIMIT, Stage, Writer, records_after_recovery};

/// A guest that is frozen, in the middle of a snapshot, with a host that hangs.
struct Hanging<'a> {
    stage: &'a Stage,
    create: Running,
}

impl<'a> Hanging<'a> {
    fn start(stage: &'a Stage, arguments: &str) -> Self {
        stage.vm.guest.sh("mkdir -p /etc/hostsnap/hooks.d && rm -f /run/in-hook /run/go && \
             printf '#!/bin/sh\\n\
             if [ $1 = post-thaw ]; then while [ -e /run/hold ]; do sleep 0.1; done; exit 0; fi\\n\
             [ -e /run/go ] && exit 0\\ntouch /run/in-hook\\n\
             while [ ! -e /run/go ]; do sleep 0.1; done\\n' > /etc/hostsnap/hooks.d/wait && \
             chmod 755 /etc/hostsnap/hooks.d/wait");
        let create =
            stage.vm.guest.spawn(&format!("echo $$ > /run/create; exec hostsnap --json create {arguments}"));
        wait_until("the hook runs", LIMIT, || stage.vm.guest.run("test -e /run/in-hook").status == 0);
        stage.service.signal(Signal::STOP);
        stage.vm.guest.sh("touch /run/go");
        wait_until("the guest is frozen", LIMIT, || is_frozen(stage));
        Self { stage, create }
    }

    fn signal_the_command(&self, signal: &str) {
        self.stage.vm.guest.sh(&format!("kill {signal} $(cat /run/create)"));
    }

    fn host_goes_on(&self) {
        self.stage.service.signal(Signal::CONT);
    }

    /// Waits until the command ends; its exit code, what it printed, what it complained about.
    fn ends(self) -> (i32, Value, String) {
        let output = self.create.wait();
        (output.status, serde_json::from_str(&output.stdout).unwrap_or(Value::Null), output.stderr)
    }
}

/// The application waits where only a frozen file system lets it wait (Linux `sb_start_write`).
/// A freeze of our own would tell too, but could come before the one that is looked for.
fn is_frozen(stage: &Stage) -> bool {
    stage.vm.guest.run("cat /proc/$(pidof app-writer)/wchan").stdout.contains("percpu_rwsem_wait")
}

fn stage(name: &str) -> Stage {
    let stage = Stage::set(name, &["data"]);
    stage.mount("/dev/vda", "/data");
    stage
}

#[test]
fn a_guest_survives_sigkill_of_the_command_while_it_is_frozen() {
    let stage = stage("sigkill");
    let writer = Writer::start(&stage.vm, "/data/records");
    let hanging = Hanging::start(&stage, "/data --freeze-timeout 60s");
    hanging.signal_the_command("-9");
    writer.goes_on();
    hanging.host_goes_on();
    assert_eq!(hanging.ends().0, 128 + 9);
    // The host cut, and concludes for itself: less than what was asked for is not kept.
    wait_until("nothing is left on the storage", LIMIT, || stage.on_storage().is_empty());
    assert_eq!(stage.service.json(&["list"]).as_array().map(Vec::len), Some(0));
    stage.create("/data");
}

#[test]
fn a_guest_survives_a_host_that_hangs_and_a_command_that_is_stopped() {
    let stage = stage("sigstop");
    let writer = Writer::start(&stage.vm, "/data/records");
    let hanging = Hanging::start(&stage, "/data --freeze-timeout 2s");
    hanging.signal_the_command("-STOP");
    writer.goes_on();
    hanging.signal_the_command("-CONT");
    hanging.host_goes_on();
    let (status, _, told) = hanging.ends();
    // Stopped after it asked for the cut, it learns that less was reached; before, that time is up.
    assert!(matches!(status, 7 | 9), "{status}: {told}");
}

#[test]
fn when_the_lease_ran_out_the_guest_is_told_the_truth() {
    let stage = stage("lease");
    let writer = Writer::start(&stage.vm, "/data/records");

    let hanging = Hanging::start(&stage, "/data --freeze-timeout 1s");
    writer.goes_on();
    hanging.host_goes_on();
    let (status, _, told) = hanging.ends();
    assert_eq!(status, 7, "{told}");
    assert!(told.contains("ConsistencyNotReached") && told.contains("not kept"), "{told}");
    assert!(stage.on_storage().is_empty(), "{:?}", stage.on_storage());

    let hanging = Hanging::start(&stage, "/data --freeze-timeout 1s --consistency crash");
    writer.goes_on();
    hanging.host_goes_on();
    let (status, snapshot, told) = hanging.ends();
    assert_eq!(status, 0, "{told}");
    assert_eq!(snapshot["consistency"], "crash");
    assert!(
        snapshot["consistency_reason"].as_str().is_some_and(|why| why.contains("deadline")),
        "{snapshot}"
    );
    assert_eq!(stage.on_storage().len(), 1);
}

#[test]
fn hostsnapd_killed_after_the_cut_gives_the_same_request_the_same_snapshot() {
    let stage = stage("killed");
    let writer = Writer::start(&stage.vm, "/data/records");
    let before = writer.acknowledged();
    let request = "--consistency crash --request-id 6f1d0c9e-4c5f-4c1e-9d43-0c3b1f9a7e21";
    let (status, snapshot, told) =
        kill_after_the_cut(&stage, &format!("/data --freeze-timeout 60s {request}"));
    assert_eq!(status, 0, "{told}");
    assert_eq!(snapshot["consistency"], "crash", "nobody confirmed the freeze: {snapshot}");
    let again = stage.create(&format!("/data {request}"));
    assert_eq!(again["id"], snapshot["id"]);
    assert_eq!(stage.on_storage(), [snapshot["id"].as_str().unwrap()]);
    assert!(records_after_recovery(&stage.image(&snapshot, "data"), "records") >= before, "{snapshot}");
    writer.goes_on();
}

#[test]
fn hostsnapd_killed_after_the_cut_never_passes_off_less_than_was_asked_for() {
    let stage = stage("killed-more");
    let writer = Writer::start(&stage.vm, "/data/records");
    // The command asks again by itself, and gets one that was frozen through its cut.
    let (status, snapshot, told) = kill_after_the_cut(&stage, "/data --freeze-timeout 60s");
    assert_eq!(status, 0, "{told}");
    assert_eq!(snapshot["consistency"], "application", "{snapshot}");
    assert_eq!(stage.on_storage(), [snapshot["id"].as_str().unwrap()]);
    writer.goes_on();
}

/// A reset guest says nothing to its open conversations: what they had begun stayed until its lease was
/// over. And the guest was not heard meanwhile: it called from the port that its earlier boot had used.
#[test]
fn a_guest_that_is_reset_in_the_middle_leaves_nothing_and_is_not_in_its_own_way() {
    let mut stage = stage("reset");
    stage.vm.guest.sh("mkdir -p /etc/hostsnap/hooks.d && \
         printf '#!/bin/sh\\ntouch /run/in-hook\\nexec sleep 1000\\n' > /etc/hostsnap/hooks.d/wait && \
         chmod 755 /etc/hostsnap/hooks.d/wait");
    stage.vm.guest.spawn("exec hostsnap create /data");
    wait_until("the hook runs", LIMIT, || stage.vm.guest.run("test -e /run/in-hook").status == 0);
    assert_eq!(stage.on_storage().len(), 1, "the host has begun");

    stage.vm.reset();
    stage.vm.guest.sh("mkdir -p /data && mount /dev/vda /data");
    let snapshot = stage.create("/data");
    // Well before its lease is over.
    wait_until("nothing of the earlier boot is left", Duration::from_secs(20), || {
        stage.on_storage() == [snapshot["id"].as_str().unwrap()]
    });
    assert_eq!(stage.service.json(&["list"]).as_array().map(Vec::len), Some(1));
    stage.vm.guest.sh("touch /data/written && sync");
}

/// The hook holds the command up after the thaw, so that it can't conclude; the host has cut and is
/// killed. (To stop the command itself while frozen could come before it asked for the cut.)
fn kill_after_the_cut(stage: &Stage, arguments: &str) -> (i32, Value, String) {
    stage.vm.guest.sh("touch /run/hold");
    let hanging = Hanging::start(stage, arguments);
    hanging.host_goes_on();
    wait_until("the host has cut", LIMIT, || stage.was_cut("data"));
    stage.service.signal(Signal::KILL);
    stage.service.restart();
    stage.vm.guest.sh("rm /run/hold");
    hanging.ends()
}
