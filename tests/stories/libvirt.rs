//! A machine that libvirt runs, whose monitor is libvirt's.

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::domain::Domain;
use harness::hostsnapd::Hostsnapd;
use harness::libvirt::Libvirtd;
use harness::link::Link;
use harness::loopfs::{self, Kind, LoopFs};
use harness::vm::blank_image;
use harness::wait::wait_until;

use super::stage::LIMIT;

const UUID: &str = "6f0b6f3e-8f0c-4c6e-9a55-00000000a11b";

#[test]
fn a_guest_of_libvirt_takes_a_snapshot_reads_it_beside_its_disk_and_gives_it_back() {
    let store = LoopFs::new(Kind::Xfs, 1024);
    loopfs::run(
        Command::new("chmod").arg("755").arg(store.path()).arg(store.path().parent().expect("a folder")),
    );
    let image = blank_image(&store.path(), "data.img", 128);
    let log = blank_image(&store.path(), "log.img", 16);
    let libvirtd = Libvirtd::start();
    let domain = Domain::boot(&libvirtd, "db1", UUID, &[(&image, "data"), (&log, "log")]);
    // A machine without the kernel's vsock device has one that libvirt knows nothing of: its way in is written down.
    let entry = match &domain.link {
        Link::Kernel(_) => String::new(),
        link @ Link::Hybrid { .. } => format!(
            "[[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\n{}\n\
             [[vm.disk]]\nserial = \"data\"\nstore = \"images\"\npath = \"{}\"\nformat = \"raw\"\n\
             [[vm.disk]]\nserial = \"log\"\nstore = \"images\"\npath = \"{}\"\nformat = \"raw\"\n",
            link.config(),
            image.display(),
            log.display()
        ),
    };
    let service = Hostsnapd::start(&format!(
        "[service]\nlisten_vsock = {}\ndiscover = \"libvirt\"\nstate_dir = \"@STATE@\"\n\
         control_socket = \"@STATE@/control.sock\"\n[libvirt]\nuri = \"{}\"\n\
         [[store]]\nname = \"images\"\ndriver = \"reflink\"\npath = \"{}\"\nmin_free = \"1MiB\"\n{entry}",
        matches!(domain.link, Link::Kernel(_)),
        libvirtd.uri(),
        store.path().display(),
    ));
    let guest = &domain.guest;
    guest.sh(
        "mkfs.ext4 -q /dev/vda && mkdir -p /data /there && mount /dev/vda /data && echo old > /data/word",
    );
    let snapshot = guest.json("hostsnap --json create /data");
    assert_eq!(snapshot["consistency"], "filesystem", "{snapshot}");
    let id = snapshot["id"].as_str().expect("an id");
    guest.sh("echo new > /data/word; sync");

    let attached = guest.json(&format!("hostsnap --json attach {id}"));
    let path = attached["disks"][0]["path"].as_str().expect("a path").to_owned();
    assert_eq!(guest.sh(&format!("mount -o ro {path} /there && cat /there/word")).trim(), "old");
    let disks = libvirtd.must(&["domblklist", "db1"]);
    let device = disks.split_whitespace().find(|word| word.starts_with("/dev/hostsnap/hs-"));
    let device = fs::read_link(device.expect("its name is in the domain")).expect("it leads to a device");
    guest.sh("umount /there");
    guest.sh(&format!("hostsnap detach {id}"));
    let disks = libvirtd.must(&["domblklist", "db1"]);
    assert!(!disks.contains("/dev/hostsnap"), "{disks}");
    let backing = Path::new("/sys/block").join(device.file_name().expect("a name")).join("loop/backing_file");
    wait_until("the loop device is free", LIMIT, || !backing.exists());

    // A clone of its own, with more written to it than its file had when QEMU opened it.
    let clone = guest.json(&format!("hostsnap --json attach {id} --writable"));
    let path = clone["disks"][0]["path"].as_str().expect("a path").to_owned();
    guest.sh(&format!("mount {path} /there && echo mine > /there/word && dd if=/dev/urandom of=/there/fill bs=1M count=64 && sync"));
    guest.sh("md5sum /there/fill > /run/sum && echo 3 > /proc/sys/vm/drop_caches && md5sum -c /run/sum && umount /there");
    guest.sh(&format!("hostsnap detach {id}"));
    assert_eq!(fs::read_dir(store.path().join(".hostsnap/clones")).expect("a folder").count(), 0);
    assert_eq!(service.json(&["reconcile"])["detached"], serde_json::json!([]));

    // All disks, and nobody in the guest is asked: it stands still, and goes on.
    let snapshot = service.json(&["create", "db1", "--no-agent"]);
    let reason = snapshot["consistency_reason"].as_str().expect("a reason");
    assert!(reason.contains("the machine was paused for"), "{reason}");
    assert_eq!(libvirtd.must(&["domstate", "db1"]), "running");
    assert_eq!(guest.sh("cat /data/word").trim(), "new");
}
