//! Hooks in real machines: Hostsnap's own for what systemd runs, bad ones, and what becomes of all that is
//! held when hostsnap is killed.

use harness::guest::Running;
use harness::vm::{Plan, Vm};
use harness::wait::wait_until;
use serde_json::Value;

use super::servers::{Servers, install, install_hook, install_hooks};
use super::stage::{LIMIT, Stage, Writer, records_in};

/// Hooks that were called before this one hold what they hold, until it is told to go on.
fn install_waiting_hook(vm: &Vm) {
    install_hook(
        vm,
        "99-wait",
        "[ $1 = pre-freeze ] || exit 0\ntouch /run/in-hook\nwhile [ ! -e /run/go ]; do sleep 0.1; done",
    );
}

/// A snapshot that waits in that hook.
fn start_waiting(vm: &Vm) -> Running {
    vm.guest.sh("rm -f /run/in-hook /run/go");
    let create = vm.guest.spawn("echo $$ > /run/create; exec hostsnap --json create /data");
    wait_until("the hooks hold", LIMIT, || vm.guest.run("test -e /run/in-hook").status == 0);
    create
}

fn kill(vm: &Vm, create: Running) {
    vm.guest.sh("kill -9 $(cat /run/create)");
    assert_eq!(create.wait().status, 128 + 9);
}

#[test]
fn units_of_systemd_are_held_through_the_cut_and_come_back_also_when_hostsnap_is_killed() {
    let stage = Stage::planned(Plan::debian("units"), "reflink", &["data"], "");
    let vm = &stage.vm;
    stage.mount("/dev/vda", "/data");
    let count = "i=0; while :; do i=$$((i + 1)); echo $$i > /run/count; sleep 0.05; done";
    for (unit, command) in [
        ("app", "/usr/bin/app-writer run /data/records /run/status".to_owned()),
        ("worker", format!("/bin/sh -c '{count}'")),
        ("idle", "/bin/false".to_owned()),
    ] {
        let text = format!("[Service]\nExecStart={command}\n");
        install(vm, &format!("/run/systemd/system/{unit}.service"), "644", &text);
    }
    vm.guest.sh("systemctl daemon-reload && systemctl start app worker");
    install_hooks(vm, &[("50-units", "systemd-units")]);
    let settings =
        "# what writes, then what reads\nstop app.service\npause worker.service\nstop idle.service";
    install(vm, "/etc/hostsnap/systemd-units.conf", "644", settings);
    // What is so last before the freeze, and first after the thaw.
    install_hook(
        vm,
        "99-note",
        "{ systemctl is-active app worker; grep frozen /sys/fs/cgroup/system.slice/worker.service/cgroup.events; \
         cut -d ' ' -f 1 /run/status; cat /run/count; } > /run/at-$1",
    );
    let lives = || {
        let acknowledged = vm.guest.sh("cat /run/status /run/count");
        wait_until("both units go on", LIMIT, || {
            let now = vm.guest.sh("cat /run/status /run/count");
            now.lines().zip(acknowledged.lines()).all(|(now, before)| now != before)
        });
    };
    lives();

    let snapshot = stage.create("/data --consistency application");
    assert_eq!(snapshot["consistency"], "application", "{snapshot}");
    let before = vm.guest.sh("cat /run/at-pre-freeze");
    assert_eq!(before, vm.guest.sh("cat /run/at-post-thaw"), "something ran while it was to be held");
    let noted: Vec<&str> = before.lines().collect();
    assert_eq!(noted[..3], ["inactive", "active", "frozen 1"]);
    let acknowledged: u64 = noted[3].parse().expect("a number");
    let held = records_in(&stage.image(&snapshot, "data"), "records");
    assert!(held == acknowledged || held == acknowledged + 1, "{held}, of {acknowledged}");
    lives();
    assert_eq!(vm.guest.run("systemctl is-active idle").stdout.trim(), "inactive");

    // Killed, hostsnap can't bring them back: their guard does.
    vm.guest.sh("rm /etc/hostsnap/hooks.d/99-note");
    install_waiting_hook(vm);
    let create = start_waiting(vm);
    assert_eq!(vm.guest.run("systemctl is-active app").stdout.trim(), "inactive");
    kill(vm, create);
    wait_until("the application is back", LIMIT, || vm.guest.run("systemctl is-active app").status == 0);
    lives();
    vm.guest.sh("touch /run/go");

    // A typing error must not be found out by an application that was not stopped.
    install(vm, "/etc/hostsnap/systemd-units.conf", "644", "stop app.service\nstop aap.service");
    let output = vm.guest.run("hostsnap create /data");
    assert_eq!(output.status, 7, "{}", output.stderr);
    assert!(output.stderr.contains("no unit aap.service"), "{}", output.stderr);
    lives();
}

#[test]
fn databases_write_again_when_hostsnap_is_killed_and_a_lock_that_was_lost_is_told() {
    let stage = Stage::sized(Plan::debian("killed-hooks"), "reflink", &["data"], "", 512);
    let vm = &stage.vm;
    Servers(vm).start_new("/dev/vda");
    install_hooks(vm, &[("50-postgresql", "postgresql"), ("80-redis", "redis"), ("90-mariadb", "mariadb")]);
    install_waiting_hook(vm);
    let write = "mariadb -e 'CREATE DATABASE IF NOT EXISTS app; CREATE OR REPLACE TABLE app.t (n int)' && \
                 redis-cli set key value && redis-cli -p 6380 set key value";

    let create = start_waiting(vm);
    for write in write.split(" && ") {
        // coreutils' timeout ends with 124.
        assert_eq!(vm.guest.run(&format!("timeout 2 {write}")).status, 124, "it is not held: {write}");
    }
    kill(vm, create);
    vm.guest.sh(&format!("timeout 100 sh -c \"{write}\""));
    vm.guest.sh("touch /run/go");

    // All servers lose what was held, by somebody's hand.
    let create = start_waiting(vm);
    vm.guest.sh("for id in $(mariadb -BNe \"SELECT id FROM information_schema.processlist WHERE command = 'Sleep'\"); do \
                     mariadb -e \"KILL $id\"; done; \
                 setpriv --reuid postgres --regid postgres --init-groups psql -qc \"SELECT pg_terminate_backend(pid) \
                     FROM pg_stat_activity WHERE application_name = 'hostsnap'\"; \
                 redis-cli client unpause && redis-cli set key other");
    vm.guest.sh("touch /run/go");
    let output = create.wait();
    assert_eq!(output.status, 0, "{}", output.stderr);
    let snapshot: Value = serde_json::from_str(&output.stdout).expect("a snapshot");
    assert_eq!(snapshot["consistency"], "filesystem", "{snapshot}");
    for told in ["50-postgresql", "80-redis", "90-mariadb"] {
        assert!(output.stderr.contains(told), "{told} said nothing: {}", output.stderr);
    }
    vm.guest.sh(write);
}

#[test]
fn hooks_that_hang_fork_print_and_fail_end_within_their_limits_and_harm_nothing() {
    let stage = Stage::set("bad-hooks", &["data"]);
    let vm = &stage.vm;
    stage.mount("/dev/vda", "/data");
    let writer = Writer::start(vm, "/data/records");
    for (name, script) in [
        ("10-good", "echo $1 >> /run/good"),
        // It hangs, and so does what it started, in a session of its own too.
        ("20-hangs", "# hostsnap: timeout=2s\nsleep 7771 & setsid sleep 7772 & sleep 7773"),
        ("30-fails", "[ $1 != pre-freeze ] || exit 3"),
        ("40-prints", "yes 'much' | head -c 20000000; yes 'more' | head -c 20000000 >&2; exit 4"),
        ("50-forks", "for i in 1 2 3 4 5 6 7 8 9; do sleep 888$i & done; kill -9 $$"),
    ] {
        install_hook(vm, name, script);
    }
    let snapshot = stage.create("/data");
    assert_eq!(snapshot["consistency"], "filesystem", "{snapshot}");
    assert_eq!(vm.guest.sh("cat /run/good"), "pre-freeze\npost-thaw\n");
    assert_eq!(vm.guest.sh("ps -o args | grep '[s]leep 777' || true"), "", "it outlived its limit");
    let output = vm.guest.run("hostsnap create /data --consistency application");
    assert_eq!(output.status, 7, "{}", output.stderr);
    assert!(output.stderr.contains("20-hangs"), "{}", output.stderr);
    writer.goes_on();
}
