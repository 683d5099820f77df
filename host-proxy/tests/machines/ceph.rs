//! A domain whose disk is an image of Ceph's: libvirt reaches its snapshot as it reaches the image, by a secret of its own.

use std::fs;
use std::process::Command;

use harness::ceph::{Ceph, POOL, USER};
use harness::loopfs::run;
use harness::wait::wait_until;
use protocol::attach::Access;
use protocol::{Consistency, SnapshotId};

use super::domains::{Domains, IMAGE_BYTES, UUID};
use super::guest::request_for;
use super::stage::LIMIT;

const IMAGE: &str = "db1-data";
const SECRET: &str = "7f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f0c";

/// What QEMU, another user, reads of the cluster: where it is, and nothing of ours.
fn conf_for_all(ceph: &Ceph, host: &Domains) -> String {
    let theirs = fs::read_to_string(ceph.conf()).unwrap();
    let wanted = ["[global]", "fsid", "mon_host", "ms_bind_msgr1"];
    let lines = theirs.lines().filter(|line| wanted.iter().any(|word| line.starts_with(word)));
    let path = host.libvirtd.folder().join("ceph.conf");
    fs::write(&path, lines.collect::<Vec<_>>().join("\n") + "\n").unwrap();
    path.display().to_string()
}

fn keep_the_secret(ceph: &Ceph, host: &Domains) {
    let path = host.libvirtd.folder().join("secret.xml");
    let text = format!(
        "<secret ephemeral='no' private='yes'><uuid>{SECRET}</uuid><usage type='ceph'><name>{USER}</name></usage></secret>"
    );
    fs::write(&path, text).unwrap();
    host.libvirtd.must(&["secret-define", &path.to_string_lossy()]);
    let key = ceph.ceph(&["auth", "get-key", &format!("client.{USER}")]);
    host.libvirtd.must(&["secret-set-value", SECRET, key.trim()]);
}

/// A pool with one image, full of sevens, and the store that it is.
fn pool_with_an_image(ceph: &Ceph) -> String {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, vec![7; usize::try_from(IMAGE_BYTES).unwrap()]).unwrap();
    ceph.rbd(&["import", "--no-progress", &image.to_string_lossy(), IMAGE]);
    format!(
        "[[store]]\nname = \"ceph\"\ndriver = \"rbd\"\npool = \"{POOL}\"\nuser = \"{USER}\"\nconf = \"{}\"\n\
         min_free = \"1MiB\"\n",
        ceph.conf().display()
    )
}

/// A domain with that image.
fn define(ceph: &Ceph, host: &Domains) {
    keep_the_secret(ceph, host);
    let more = format!(
        "<controller type='scsi' model='virtio-scsi'/><disk type='network' device='disk'><driver name='qemu' type='raw'/>\
         <auth username='{USER}'><secret type='ceph' uuid='{SECRET}'/></auth>\
         <source protocol='rbd' name='{POOL}/{IMAGE}'><config file='{}'/></source>\
         <target dev='vda' bus='virtio'/><serial>data</serial></disk>",
        conf_for_all(ceph, host)
    );
    host.libvirtd.define(&host.xml("db1", UUID, &[], &more));
}

#[test]
fn a_disk_in_ceph_that_only_libvirt_names_is_given_back_the_bytes_of_a_snapshot() {
    let ceph = Ceph::start();
    let host = Domains::new(&pool_with_an_image(&ceph));
    define(&ceph, &host);
    host.start_full("db1");
    host.wait_for_machines(&["db1: nowhere, data"]);
    let snapshot = host.json(&["create", "db1", "--no-agent"]);
    let id = snapshot["id"].as_str().unwrap();
    let restore = |more: &[&str]| host.folder.admin(&[&["restore", "db1", id, "--json"], more].concat());
    let refused = restore(&[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(6) && said.contains("db1 is running"), "{said}");
    host.libvirtd.must(&["destroy", "db1"]);
    let image = format!("rbd:{POOL}/{IMAGE}:id={USER}:conf={}", ceph.conf().display());
    let io = |command: &str| run(Command::new("qemu-io").args(["-f", "raw", "-c", command]).arg(&image));
    io("write -P 9 0 1M");
    for more in [["--preview"], ["--no-safety"]] {
        let done = restore(&more);
        assert!(
            done.status.success(),
            "{}\n{}",
            String::from_utf8_lossy(&done.stderr),
            host.folder.printed()
        );
    }
    let said = io("read -P 7 0 1M");
    assert!(said.contains("read 1048576") && !said.contains("verification failed"), "{said}");
}

#[test]
fn a_snapshot_in_ceph_is_attached_by_the_way_that_its_domain_has_to_its_own_disk_and_moves_with_it() {
    let ceph = Ceph::start();
    let pool = pool_with_an_image(&ceph);
    let host = Domains::new(&format!(
        "{pool}[[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"@FOLDER@/vsock\"\n\
         [[vm.disk]]\nserial = \"data\"\nstore = \"ceph\"\nvolume = \"{IMAGE}\"\nformat = \"raw\"\n"
    ));
    define(&ceph, &host);
    host.start_full("db1");
    let request = request_for(&[("data", IMAGE_BYTES, 7)], Consistency::Filesystem);
    let id = SnapshotId::derive(UUID.parse().unwrap(), request.request);
    host.guest().take(&request).unwrap();
    wait_until("the service knows that libvirt has it", LIMIT, || {
        host.attach(id, Access::ReadOnly).is_ok_and(|attached| attached.len() == 1)
    });
    let xml = host.libvirtd.must(&["dumpxml", "db1"]);
    assert!(xml.contains(&format!("<snapshot name='hostsnap.{id}'/>")), "{xml}");
    assert_eq!(xml.matches(SECRET).count(), 2, "{xml}");
    host.detach(id).unwrap();

    // A clone of it: what is not written comes from the cluster.
    let serial = host.attach(id, Access::Writable).unwrap().remove(0);
    host.write_to(&serial, 9);
    let clone = host.folder.at("state").join("clones").join(format!("{serial}.qcow2"));
    let read = ["-r", "-U", "-f", "qcow2", "-c", "read -P 9 0 4k", "-c", "read -P 7 4k 60k"];
    let said = run(Command::new("qemu-io").args(read).arg(&clone));
    assert!(said.contains("read 61440") && !said.contains("verification failed"), "{said}");
    host.detach(id).unwrap();
    assert!(!clone.exists());
    assert_eq!(host.attached(), [""; 0]);

    // Read-only it moves with its machine: the other host reads the cluster too, and knows that the snapshot is in use.
    let there = host.beside(&pool);
    keep_the_secret(&ceph, &there);
    host.attach(id, Access::ReadOnly).unwrap();
    let moved = host.moves("db1", &there);
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    wait_until("it is over here", LIMIT, || host.attached().is_empty());
    let delete = || there.folder.admin(&["delete", &id.to_string()]);
    wait_until("the other host knows of it", LIMIT, || {
        there.folder.printed().contains("is attached to it, and is entered")
    });
    let refused = delete();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(6) && said.contains("is attached to db1"), "{said}");
    assert!(there.folder.admin(&["detach", &id.to_string()]).status.success());
    assert!(delete().status.success());
    assert_eq!(ceph.snapshots(IMAGE), Vec::<String>::new());
}
