//! A machine whose disk is an image in a pool of Ceph's, which two hosts share.

use std::fs;
use std::process::Command;

use harness::ceph::{Ceph, POOL, USER};
use harness::hostsnapd::Hostsnapd;
use harness::loopfs::run;
use harness::vm::{Plan, Vm};
use harness::wait::wait_until;
use serde_json::{Value, json};

use super::stage::{LIMIT, Writer, records_in};

const IMAGE: &str = "app-data";

/// What a host says of the pool, and of the machine if it is here.
fn config(ceph: &Ceph, vm: Option<&Vm>) -> String {
    let mut text = format!(
        "[service]\nlisten_vsock = false\nstate_dir = \"@STATE@\"\ncontrol_socket = \"@STATE@/control.sock\"\n\n\
         [[store]]\nname = \"ceph\"\ndriver = \"rbd\"\npool = \"{POOL}\"\nuser = \"{USER}\"\n\
         conf = \"{}\"\nmin_free = \"1MiB\"\n",
        ceph.conf().display()
    );
    if let Some(vm) = vm {
        text += &format!(
            "\n[[vm]]\nname = \"app\"\nuuid = \"{}\"\n{}\nqmp = \"{}\"\n\n\
             [[vm.disk]]\nserial = \"data\"\nstore = \"ceph\"\nvolume = \"{IMAGE}\"\nformat = \"raw\"\n",
            vm.uuid(),
            vm.link.config(),
            vm.qmp().display()
        );
    }
    text
}

fn boot(ceph: &Ceph) -> Vm {
    Plan::new("ceph").slots(1).blockdev(&ceph.blockdev(IMAGE), "data").boot()
}

#[track_caller]
fn ids(listed: &Value) -> Vec<&Value> {
    listed.as_array().expect("a list").iter().map(|snapshot| &snapshot["id"]).collect()
}

#[test]
fn by_rbd_a_snapshot_under_load_holds_every_acknowledged_record_and_is_there_on_the_host_that_its_machine_moves_to()
 {
    // The first QEMU is killed: the second must not wait half a minute for its lock.
    let ceph =
        Ceph::with("paxos_propose_interval = 0.02\npaxos_min_wait = 0.01\nosd_client_watch_timeout = 3\n");
    ceph.rbd(&["create", IMAGE, "--size", "128M"]);
    let vm = boot(&ceph);
    let here = Hostsnapd::start(&config(&ceph, Some(&vm)));
    let there = Hostsnapd::start(&config(&ceph, None));
    vm.guest.sh("mkfs.ext4 -q /dev/vda && mkdir -p /data && mount /dev/vda /data");
    let writer = Writer::start(&vm, "/data/records");

    let before = writer.acknowledged();
    let snapshot = vm.guest.json("hostsnap --json create /data --label why=test");
    let after = writer.acknowledged();
    assert_eq!(snapshot["consistency"], "filesystem", "{snapshot}");
    assert_eq!(snapshot["state"], "ready", "{snapshot}");
    let id = snapshot["id"].as_str().expect("an id");
    assert_eq!(snapshot["disks"][0]["handle"], format!("{IMAGE}@hostsnap.{id}"));
    writer.goes_on();
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("copy");
    fs::write(&copy, ceph.read(&format!("{IMAGE}@hostsnap.{id}"))).expect("a copy");
    let held = records_in(&copy, "records");
    assert!(held >= before && held <= after + 1, "{before} ≤ {held} ≤ {after}");

    // QEMU reads it from the cluster by itself, beside its original; a clone of it is a file of this host's.
    for more in ["", "--writable"] {
        vm.guest.sh(&format!("mkdir -p /mnt && hostsnap mount {id} /mnt --path /data {more}"));
        let held_inside = vm.guest.sh("stat -c %s /mnt/records");
        assert!(held_inside.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0), "{held_inside}");
        assert_eq!(vm.guest.run("touch /mnt/mine").status == 0, !more.is_empty(), "{more}");
        vm.guest.sh("hostsnap umount /mnt");
        assert_eq!(here.json(&["reconcile"])["detached"], json!([]));
    }
    writer.goes_on();

    // The machine moves. The other host has run all the time and knows nothing of it.
    drop(vm);
    let vm = boot(&ceph);
    there.reload(&config(&ceph, Some(&vm)));
    here.reload(&config(&ceph, None));
    let listed = vm.guest.json("hostsnap --json list");
    assert_eq!(ids(&listed), [&snapshot["id"]]);
    assert_eq!(vm.guest.json("hostsnap --json show latest")["labels"]["why"], "test");
    vm.guest.sh("mkdir -p /data && mount /dev/vda /data && touch /data/moved");
    let second = vm.guest.json("hostsnap --json create /data");
    the_guest_goes_back(&ceph, &vm, second["id"].as_str().expect("an id"));
    vm.guest.sh(&format!("hostsnap delete {id}"));
    assert_eq!(ceph.snapshots(IMAGE), [format!("hostsnap.{}", second["id"].as_str().expect("an id"))]);

    // The first host's catalog follows.
    assert_eq!(ids(&here.json(&["list"])), [&second["id"]]);
    assert_eq!(here.json(&["reconcile"])["lost"], json!([]));
    assert!(here.admin(&["delete", second["id"].as_str().expect("an id")]).status.success());
    wait_until("the other host notices", LIMIT, || vm.guest.json("hostsnap --json list") == json!([]));
    assert_eq!(ceph.snapshots(IMAGE), Vec::<String>::new());
}

/// Its QEMU has the image open, with the exclusive lock, and caches of it. Then every byte that the guest reads is the
/// snapshot's.
fn the_guest_goes_back(ceph: &Ceph, vm: &Vm, id: &str) {
    let disks = vm.guest.json("hostsnap --json disks");
    assert!(disks[0]["abilities"].as_array().expect("a list").contains(&json!("restore")), "{disks}");
    vm.guest.sh("dd if=/dev/urandom of=/data/later bs=1M count=20 && echo new > /data/moved && umount /data");
    vm.guest.sh(&format!("hostsnap restore {id} data --no-safety"));
    let read = vm.guest.sh("md5sum < /dev/vda");
    let folder = tempfile::tempdir().expect("a folder");
    let then = folder.path().join("then");
    fs::write(&then, ceph.read(&format!("{IMAGE}@hostsnap.{id}"))).expect("a copy");
    let sum = run(Command::new("md5sum").arg(&then));
    assert_eq!(
        read.split(' ').next(),
        sum.split(' ').next(),
        "the guest reads something else than the snapshot"
    );
    vm.guest.sh("mount /dev/vda /data && ! test -e /data/later && ! test -s /data/moved && echo newer > /data/moved && sync");
    // And with the disk in use: it is let go of, and taken into use again.
    vm.guest.sh(&format!("hostsnap restore {id} /data --no-safety --remount && ! test -s /data/moved"));
}
