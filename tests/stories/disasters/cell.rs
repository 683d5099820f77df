//! One disaster after one step: inflicted, survived, and looked at from both sides.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::guest::Running;
use harness::wait::wait_until;
use rustix::process::Signal;
use serde_json::Value;

use super::scene::Scene;
use super::table::{Disaster, Expected, Kept, Step};
use crate::stage::{LIMIT, records_in};

/// The host's lease where it is to pass.
pub(crate) const HOST_LEASE: Duration = Duration::from_secs(3);

/// One cell of the table.
pub(crate) struct Cell<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) disaster: Disaster,
    pub(crate) step: Step,
    pub(crate) expected: Expected,
}

/// What the application has done so far.
struct Written {
    records: u64,
    longest_wait: Duration,
}

impl Cell<'_> {
    /// What came of it, in short; or all that is wrong with it.
    pub(crate) fn rehearse(&self) -> Result<String, Vec<String>> {
        self.start_application();
        let before = self.written().records;
        let create = self.scene.create(self.step, self.disaster.lease());
        if !self.scene.reached() {
            let (out, err) = self.scene.printed();
            return Err(vec![format!("it never came to this step: {:?}\n{out}{err}", create.wait())]);
        }
        self.inflict(&create);
        self.writes_again();
        let code = create.wait().status;
        let (out, err) = self.scene.printed();

        let mut wrong = self.left_in_the_guest();
        let kept = self.left_on_the_host(&mut wrong);
        let waited = self.written().longest_wait;
        let mut require = |is_so: bool, what: String| {
            if !is_so {
                wrong.push(what);
            }
        };
        require(self.expected.codes.contains(&code), format!("exit code {code}: {err}"));
        require(err.contains(self.expected.word), format!("{:?} is not said: {err}", self.expected.word));
        require(waited <= self.disaster.longest_wait(), format!("an application waited {waited:?}"));
        let wanted = match self.expected.kept {
            Kept::Nothing => 0,
            Kept::Frozen => 1,
            Kept::IfDone => usize::from(code == 0),
        };
        require(kept.len() == wanted, format!("{} snapshots are kept: {kept:?}", kept.len()));
        for snapshot in &kept {
            require(snapshot["consistency"] == "application", format!("it is worth less: {snapshot}"));
            self.holds_what_was_written(snapshot, before);
        }
        if code == 0 {
            let told: Value = serde_json::from_str(&out).unwrap_or_default();
            require(Some(&told["id"]) == kept.first().map(|kept| &kept["id"]), format!("it told {out:?}"));
        }
        self.delete(&kept);
        if wrong.is_empty() { Ok(format!("{code} {}ms", waited.as_millis())) } else { Err(wrong) }
    }

    fn start_application(&self) {
        let files: Vec<_> = self.scene.files().iter().map(|(file, _)| *file).collect();
        let how = if files.len() == 1 { "run" } else { "pair" };
        self.scene.vm.guest.sh(&format!(
            "kill $(pidof app-writer) 2>/dev/null; rm -f /run/r/status /run/r/hooks; touch /run/r/hooks; \
             app-writer {how} {} /run/r/status >/dev/null 2>&1 & true",
            files.join(" ")
        ));
        wait_until("the application writes", LIMIT, || self.written().records > 3);
    }

    fn written(&self) -> Written {
        let text = self.scene.vm.guest.run("cat /run/r/status").stdout;
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Written { records: next(), longest_wait: Duration::from_micros(next()) }
    }

    fn writes_again(&self) {
        let before = self.written().records;
        wait_until("the application goes on", LIMIT, || self.written().records > before);
    }

    fn inflict(&self, create: &Running) {
        let scene = self.scene;
        let command = |signal: &str| drop(scene.vm.guest.sh(&format!("kill {signal} $(cat /run/r/pid)")));
        let keeper = |signal: &str| {
            let pid = "$(sed -n 's/keeper //p' /run/hostsnap/freeze.lock)";
            scene.vm.guest.sh(&format!("kill {signal} {pid}"));
        };
        match self.disaster {
            Disaster::Killed => return command("-KILL"),
            Disaster::Panics => return scene.tell('p'),
            Disaster::OutOfMemory => return scene.tell('m'),
            Disaster::Terminated => {
                command("-TERM");
            }
            Disaster::Stopped => {
                command("-STOP");
                self.writes_again();
                command("-CONT");
            }
            Disaster::KeeperKilled => {
                keeper("-KILL");
                self.writes_again();
            }
            Disaster::KeeperStopped => keeper("-STOP"),
            Disaster::HostKilled => {
                scene.service.signal(Signal::KILL);
                scene.service.restart();
            }
            Disaster::HostStalls => {
                scene.service.signal(Signal::STOP);
                scene.tell('g');
                self.outlast_the_freeze();
                return scene.service.signal(Signal::CONT);
            }
            Disaster::HostIsAway => {
                scene.service.signal(Signal::STOP);
                scene.tell('g');
                std::thread::sleep(Duration::from_secs(60));
                return scene.service.signal(Signal::CONT);
            }
            Disaster::LinkCut => {
                let refused = scene.relay.refused();
                scene.relay.cut();
                scene.tell('g');
                // It may have its answer already.
                wait_until("the command calls again", LIMIT, || {
                    scene.relay.refused() > refused || create.has_ended()
                });
                return scene.relay.mend();
            }
            Disaster::LeasePasses => self.outlast_the_lease(),
        }
        scene.tell('g');
    }

    /// As long as the host stalls, so long that a freeze which waits for it is over. Not by how long an application waited: after
    /// `Armed` the lease runs already, and on a busy machine little of it is left for the freeze.
    fn outlast_the_freeze(&self) {
        match self.step {
            Step::Prepared | Step::Quiesced | Step::Flushed => {
                wait_until("the freeze begins", LIMIT, || self.keeper_lives());
                wait_until("the freeze is over", LIMIT, || !self.keeper_lives());
            }
            Step::Armed | Step::Frozen => {
                wait_until("the freeze is over", LIMIT, || !self.keeper_lives());
            }
            _ => std::thread::sleep(self.disaster.lease()),
        }
    }

    fn keeper_lives(&self) -> bool {
        let look = "pid=$(sed -n 's/keeper //p' /run/hostsnap/freeze.lock) && \
             grep -q '^State:.[^XZ]' /proc/${pid:-none}/status";
        self.scene.vm.guest.run(look).status == 0
    }

    fn outlast_the_lease(&self) {
        match self.step {
            Step::Prepared | Step::Quiesced | Step::Flushed | Step::Armed | Step::Frozen => {
                wait_until("the host gave up", LIMIT, || self.scene.on_storage().is_empty());
            }
            Step::CutSent | Step::CutDone => self.writes_again(),
            // No lease is open: this is how long one would be.
            _ => std::thread::sleep(HOST_LEASE),
        }
    }

    /// What a disaster must not leave: processes, a lock, a setting, a mount, a hook that is not released.
    fn left_in_the_guest(&self) -> Vec<String> {
        let look = || {
            // The first process of these guests takes no notice of the orphans that end.
            let script = "ps -o pid,stat,args | grep '[h]ostsnap' | grep -v ' Z'; grep FLOCK /proc/locks; \
                 grep -v 0 /sys/kernel/rcu_expedited; grep -c . /proc/mounts; true";
            self.scene.vm.guest.run(script).stdout
        };
        let mounts = self.scene.mounts.to_string();
        let mut left = String::new();
        for _ in 0..50 {
            left = look();
            if left.trim() == mounts {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut wrong = Vec::new();
        if left.trim() != mounts {
            wrong.push(format!("something is left: {left}"));
        }
        let hooks = self.scene.vm.guest.run("cat /run/r/hooks").stdout;
        let count = |call: &str| hooks.lines().filter(|line| *line == call).count();
        if self.disaster.releases() && count("pre-freeze") != count("post-thaw") {
            wrong.push(format!("the application was not released: {hooks}"));
        }
        wrong
    }

    /// Waits until the host is done too. The snapshots that it knows: those that the storage holds.
    fn left_on_the_host(&self, wrong: &mut Vec<String>) -> Vec<Value> {
        let list = || self.scene.service.json(&["list"]).as_array().cloned().unwrap_or_default();
        for _ in 0..100 {
            let known = list();
            let ids: BTreeSet<_> = known.iter().filter_map(|one| one["id"].as_str()).collect();
            let stored = self.scene.on_storage();
            let is_done = known.iter().all(|one| one["state"] == "ready");
            if is_done && ids == stored.iter().map(String::as_str).collect() {
                return known;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        wrong.push(format!("the host knows {:?}, the storage holds {:?}", list(), self.scene.on_storage()));
        Vec::new()
    }

    /// The journal of what was frozen is empty, and everything that was acknowledged is there.
    fn holds_what_was_written(&self, snapshot: &Value, before: u64) {
        for (file, serial) in self.scene.files() {
            let image = self.scene.image(snapshot["id"].as_str().expect("an id"), serial);
            let name = file.rsplit('/').next().expect("a name");
            let held = records_in(&image, name);
            assert!(held >= before, "{serial}: {held} of {before} records");
        }
    }

    fn delete(&self, snapshots: &[Value]) {
        for snapshot in snapshots {
            self.scene.service.json(&["delete", snapshot["id"].as_str().expect("an id")]);
        }
    }
}
