//! A host as it is installed: a Debian where `hostsnapd` runs under its unit, in its sandbox, opened by a drop-in for
//! the storage.

use std::path::Path;

use harness::vm::Vm;
use serde_json::Value;

/// The unit, its drop-in and the configuration; nothing is started.
pub(crate) fn install(vm: &Vm, drop_in: &str, config: &str) {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    let units = "/etc/systemd/system";
    vm.guest.sh(&format!("mkdir -p {units}/hostsnapd.service.d /etc/hostsnap /run/vm"));
    let put = |at: &str, text: &str| vm.guest.sh(&format!("cat > {at} <<'END'\n{text}\nEND"));
    for (file, at) in
        [("hostsnapd.service", "hostsnapd.service"), (drop_in, &format!("hostsnapd.service.d/{drop_in}"))]
    {
        put(&format!("{units}/{at}"), &std::fs::read_to_string(packaging.join(file)).unwrap());
    }
    put("/etc/hostsnap/hostsnapd.toml", config);
}

pub(crate) fn start(vm: &Vm) {
    vm.guest.sh("systemctl daemon-reload && systemctl start hostsnapd");
}

/// What the service said.
pub(crate) fn log(vm: &Vm) -> String {
    vm.guest.run("journalctl -u hostsnapd --no-pager").stdout
}

/// Takes a snapshot of the machine `db1`, which must be the only one then, and does something before it is looked at.
pub(crate) fn takes_a_snapshot(vm: &Vm, then: impl FnOnce()) -> Value {
    let made = vm.guest.run("hostsnapd create db1 --consistency crash --json");
    assert_eq!(made.status, 0, "{}{}\n{}", made.stdout, made.stderr, log(vm));
    then();
    let mut listed = vm.guest.json("hostsnapd list --json");
    assert_eq!((&listed[0]["state"], listed.as_array().unwrap().len()), (&"ready".into(), 1), "{listed}");
    listed[0].take()
}

/// The catalog is lost, the snapshots are not.
pub(crate) fn loses_its_catalog(vm: &Vm, id: &str) {
    vm.guest.sh(
        "systemctl stop hostsnapd && rm /var/lib/hostsnap/catalog.sqlite* && hostsnapd rebuild-catalog && \
         systemctl start hostsnapd",
    );
    assert_eq!(vm.guest.json("hostsnapd list --json")[0]["id"], id, "{}", log(vm));
}

/// The machine, which does not run, has its old bytes again.
pub(crate) fn goes_back(vm: &Vm, id: &str, disks: &[&str]) {
    for disk in disks {
        assert_eq!(vm.guest.sh(&format!("head -c 5 {disk}")), "after", "{disk}");
    }
    let told = vm.guest.run("hostsnapd check");
    assert!(told.stdout.contains("restore"), "{}{}", told.stdout, told.stderr);
    let back = vm.guest.run(&format!("hostsnapd restore db1 {id} --no-safety --json"));
    assert_eq!(back.status, 0, "{}{}\n{}", back.stdout, back.stderr, log(vm));
    for disk in disks {
        assert_eq!(vm.guest.sh(&format!("head -c 6 {disk}")), "before", "{disk}");
    }
}
