//! Who may do what.

use std::path::Path;

use harness::hostsnapd::{self, Hostsnapd, Machine};
use harness::loopfs::{Kind, LoopFs};
use harness::vm::{Plan, blank_image};

use super::stage::{Stage, Writer};

#[test]
fn a_refused_request_freezes_nothing() {
    let stage = Stage::planned(Plan::new("refused"), "reflink", &["data"], "allow = [\"list\"]");
    stage.mount("/dev/vda", "/data");
    // Every freeze of the guest would be seen by its hook.
    stage.vm.guest.sh(
        "mkdir -p /etc/hostsnap/hooks.d && printf '#!/bin/sh\\ntouch /run/hook-ran\\n' > /etc/hostsnap/hooks.d/see && \
         chmod 755 /etc/hostsnap/hooks.d/see",
    );
    let writer = Writer::start(&stage.vm, "/data/records");
    let output = stage.vm.guest.run("hostsnap create /data");
    assert_eq!(output.status, 4, "{}", output.stderr);
    assert!(output.stderr.contains("does not allow app to create"), "{}", output.stderr);
    assert_ne!(stage.vm.guest.run("test -e /run/hook-ran").status, 0, "the hook ran");
    assert!(stage.on_storage().is_empty());
    writer.goes_on();
}

#[test]
fn a_guest_sees_and_touches_only_what_is_its_own() {
    let store = LoopFs::new(Kind::Xfs, 1024);
    let images = ["a", "b"].map(|name| blank_image(&store.path(), name, 128));
    let vms = ["neighbour-a", "neighbour-b"].map(Plan::new);
    let [a, b] = [0, 1].map(|n| vms[n].clone().disk(&images[n], "data").boot());
    let machines = [
        Machine { vm: &a, name: "a", disks: vec![("data", images[0].as_path())], more: "" },
        Machine {
            vm: &b,
            name: "b",
            disks: vec![("data", images[1].as_path())],
            more: "guest_may_delete = false",
        },
    ];
    let service = Hostsnapd::start(&hostsnapd::config("reflink", &store.path(), &machines));
    for vm in [&a, &b] {
        vm.guest.sh("mkfs.ext4 -q /dev/vda && mkdir -p /data && mount /dev/vda /data");
    }
    let of_a = a.guest.json("hostsnap --json create /data");
    let of_b = b.guest.json("hostsnap --json create /data");
    let (id_a, id_b) = (of_a["id"].as_str().unwrap(), of_b["id"].as_str().unwrap());

    // Of the neighbour's snapshot it is not even told that it is there.
    for command in [
        format!("show {id_a}"),
        format!("delete --yes {id_a}"),
        format!("show {}", &id_a[..10]),
        format!("attach {id_a}"),
        format!("detach {id_a}"),
        format!("mount {id_a} /data"),
        format!("cp {id_a}:/data/file /tmp"),
        format!("ls {id_a}:/data"),
        format!("restore {id_a}"),
        format!("restore {id_a} data --preview"),
    ] {
        let output = b.guest.run(&format!("hostsnap {command}"));
        assert_eq!(output.status, 5, "{command}: {}", output.stderr);
    }
    let listed = b.guest.json("hostsnap --json list");
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert_eq!(listed[0]["id"], id_b);

    // A guest that was taken over can't destroy its history.
    let output = b.guest.run(&format!("hostsnap delete --yes {id_b}"));
    assert_eq!(output.status, 4, "{}", output.stderr);
    assert_eq!(a.guest.json(&format!("hostsnap --json delete --yes {id_a}"))[0]["deleted"], true);
    assert_eq!(service.json(&["list"]).as_array().map(Vec::len), Some(1));
    assert!(!Path::new(&store.path().join(".hostsnap").join(a.uuid())).exists());
}

#[test]
fn a_disk_that_is_not_what_the_host_has_is_refused() {
    let stage = Stage::set("mismatch", &["data"]);
    // What the guest writes to its disk is not in the image that the host would cut.
    let other = blank_image(&stage.store.path(), "other.img", 128);
    let config = std::fs::read_to_string(stage.service.config()).unwrap();
    std::fs::write(stage.service.config(), config.replace("data.img", "other.img")).unwrap();
    stage.service.restart();
    stage.mount("/dev/vda", "/data");
    let output = stage.vm.guest.run("hostsnap create /data");
    assert_eq!(output.status, 4, "{}", output.stderr);
    assert!(output.stderr.contains("differ"), "{}", output.stderr);
    assert!(stage.on_storage().is_empty());
    assert!(other.exists());
}
