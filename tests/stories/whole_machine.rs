//! A whole Debian freezes all of itself: the program, its folder, what it prints, its log, the journal. Its
//! daemon is the packaged unit, and what becomes of the freeze when systemd, or somebody else, ends it.
//!
//! The harness lives in memory there and looks on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use harness::assets;
use harness::hostsnapd::{self, Hostsnapd, Machine};
use harness::loopfs::{Kind, LoopFs, run};
use harness::vm::{Plan, Vm};
use harness::wait::wait_until;
use serde_json::Value;

use super::stage::{LIMIT, records_in};

const STORE_MIB: u64 = 6144;
/// Half of the default lease: what ends by this did not wait for the deadline.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

struct Whole {
    vm: Vm,
    service: Hostsnapd,
    store: LoopFs,
}

impl Whole {
    fn set(name: &str) -> Self {
        let store = LoopFs::new(Kind::Xfs, STORE_MIB);
        let image = store.path().join("root.img");
        run(Command::new("cp").arg("--sparse=always").arg(assets::debian()).arg(&image));
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd/hostsnap-agent.service");
        let vm = Plan::debian_on(name, &image, "root")
            .file(&unit, "/usr/bin/hostsnap-agent.service")
            .file(&assets::guest_program("hostsnap-rehearsal"), "/usr/bin/hostsnap-rehearsal")
            .boot();
        let machine = Machine { vm: &vm, name: "app", disks: vec![("root", &image)], more: "" };
        let service = Hostsnapd::start(&hostsnapd::config("reflink", &store.path(), &[machine]));
        vm.guest.sh("mv /usr/bin/hostsnap-agent.service /usr/lib/systemd/system/ && \
             mkdir -p /var/log/journal /run/r && systemctl restart systemd-journald && \
             mkfifo /run/r/said /run/r/go && systemctl daemon-reload");
        vm.guest.spawn("exec app-writer run /records /run/r/status");
        let whole = Self { vm, service, store };
        wait_until("the application writes", LIMIT, || whole.written().0 > 10);
        whole
    }

    /// How many records were acknowledged, and the longest wait for one of them.
    fn written(&self) -> (u64, Duration) {
        let text = self.vm.guest.run("cat /run/r/status").stdout;
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap_or(0));
        let records = numbers.next().unwrap_or(0);
        (records, Duration::from_micros(numbers.next().unwrap_or(0)))
    }

    /// Nothing had to wait for the deadline of the freeze.
    #[track_caller]
    fn writes_on(&self) {
        let (before, _) = self.written();
        wait_until("the application goes on", LIMIT, || self.written().0 > before);
        let (_, longest) = self.written();
        assert!(longest < LONGEST_WAIT, "an application waited {longest:?}");
    }

    /// No process of ours, no lock, no setting.
    #[track_caller]
    fn nothing_is_left(&self) {
        wait_until("nothing is left", LIMIT, || {
            let left = "ps -C hostsnap-thaw -o pid,stat --no-headers; grep -v 0 /sys/kernel/rcu_expedited; \
                        flock -n /run/hostsnap/freeze.lock true || echo locked";
            self.vm.guest.run(left).stdout.is_empty()
        });
    }

    fn image(&self, snapshot: &Value) -> PathBuf {
        let folder = self.store.path().join(".hostsnap").join(self.vm.uuid());
        folder.join(snapshot["id"].as_str().expect("an id")).join("root.img")
    }

    /// The daemon of this program, with more lines for its unit.
    fn start_daemon(&self, program: &str, more: &str) {
        self.vm.guest.sh(&format!(
            "mkdir -p /run/systemd/system/hostsnap-agent.service.d && \
             printf '[Service]\\nExecStart=\\nExecStart=/usr/bin/{program} daemon\\n{more}' \
             > /run/systemd/system/hostsnap-agent.service.d/test.conf && \
             systemctl daemon-reload && systemctl restart hostsnap-agent"
        ));
        self.daemon_answers();
    }

    fn daemon_answers(&self) {
        wait_until("the daemon answers", LIMIT, || self.service.admin(&["ping", "app"]).status.success());
    }

    fn ask(&self) -> Output {
        self.service.admin(&["create", "app", "/", "--json"])
    }

    /// The host asks; as soon as everything is frozen, this happens. What the host says of it.
    fn while_frozen(&self, happens: impl FnOnce()) -> Output {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| self.ask());
            assert_eq!(self.vm.guest.sh("timeout 60 head -c 1 /run/r/said"), "!");
            happens();
            asked.join().expect("it was asked")
        })
    }
}

#[test]
fn a_machine_that_freezes_its_own_program_log_and_journal_writes_nothing_until_the_thaw() {
    let whole = Whole::set("whole-machine");
    for _ in 0..3 {
        let (before, _) = whole.written();
        let command = "cd /root && RUST_LOG=trace hostsnap --json create / > /root/out 2> /root/err";
        let output = whole.vm.guest.run(command);
        assert_eq!(output.status, 0, "{}", whole.vm.guest.run("cat /root/err").stdout);
        let snapshot = whole.vm.guest.json("cat /root/out");
        assert_eq!(snapshot["consistency"], "filesystem", "{snapshot}");
        assert_eq!(snapshot["mounts"][0]["path"], "/", "{snapshot}");
        whole.writes_on();
        assert!(records_in(&whole.image(&snapshot), "records") >= before);
    }
    // The same as a service, whose log is the journal, on the frozen disk too.
    whole.start_daemon("hostsnap", "Environment=RUST_LOG=trace\\n");
    for _ in 0..3 {
        let output = whole.ask();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let snapshot: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(snapshot["consistency"], "filesystem", "{snapshot}");
        whole.writes_on();
    }
    whole.nothing_is_left();
}

#[test]
fn whoever_ends_the_daemon_while_all_is_frozen_the_machine_goes_on() {
    let whole = Whole::set("whole-machine-ends");
    whole.start_daemon(
        "hostsnap-rehearsal",
        "Environment=HOSTSNAP_REHEARSAL=/run/r:frozen\\nTimeoutStopSec=1s\\n",
    );
    for ends in [
        // The keeper has left the control group.
        "systemctl kill --signal=KILL hostsnap-agent",
        // SIGTERM is noted, and since nothing comes of it SIGKILL follows.
        "systemctl restart hostsnap-agent",
        // A bug.
        "printf p 1<>/run/r/go",
    ] {
        let asked = whole.while_frozen(|| {
            whole.vm.guest.sh(ends);
        });
        assert!(!asked.status.success(), "{ends}: {asked:?}");
        whole.writes_on();
        whole.nothing_is_left();
        // systemd has started it anew.
        whole.daemon_answers();
    }

    // When all else is gone: both killed at the same moment, as only somebody who means it can.
    let asked = whole.while_frozen(|| {
        let both = "$(systemctl show -P MainPID hostsnap-agent) $(pgrep -x hostsnap-thaw)";
        let script = format!("set -- {both}; kill -STOP $* && kill -KILL $*");
        whole.vm.guest.sh(&script);
        assert!(whole.vm.guest.sh("cat /proc/$(pidof app-writer)/wchan").contains("percpu_rwsem_wait"));
        let told = whole.vm.guest.sh("hostsnap thaw");
        assert!(told.contains("/: was frozen, writes again"), "{told}");
    });
    assert!(!asked.status.success(), "{asked:?}");
    whole.writes_on();
    whole.nothing_is_left();

    whole.start_daemon("hostsnap", "");
    let output = whole.ask();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
