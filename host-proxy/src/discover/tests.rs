//! Which machines come of what libvirt says.

use std::path::Path;

use super::*;
use crate::drivers::Source;

const FILE: &str = r#"
[service]
discover = "libvirt"
[libvirt]
store = "rest"
stores = { "/data/fast" = "fast" }
[[store]]
name = "images"
driver = "reflink"
path = "/var/lib/libvirt/images"
[[store]]
name = "fast"
driver = "btrfs"
path = "/mnt/tree"
[[store]]
name = "rest"
driver = "reflink"
path = "/mnt/rest"
[[store]]
name = "volumes"
driver = "lvm-thin"
pool = "vg0/thin"
[[store]]
name = "tank"
driver = "zfs"
dataset = "tank/vms"
[[store]]
name = "ceph"
driver = "rbd"
pool = "vms"
[[store]]
name = "copies"
driver = "qemu"
path = "/mnt/copies"
[[vm]]
name = "ours"
uuid = "00000000-0000-0000-0000-00000000000a"
cid = 42
[[vm.disk]]
serial = "data"
store = "images"
path = "/var/lib/libvirt/images/ours.img"
format = "raw"
"#;

fn join_to(file: &str, domains: &[Described]) -> Machines {
    let file = Config::parse(file, Path::new("hostsnapd.toml")).unwrap();
    let volumes =
        Volumes::from([(("default".into(), "v.img".into()), "/var/lib/libvirt/images/v.img".into())]);
    join(&file, &file.discovered_by_libvirt().unwrap(), domains, &volumes)
}

fn path(path: &str) -> xml::Source {
    xml::Source::Path(path.to_owned())
}

fn disk(target: &str, serial: &str, source: xml::Source) -> xml::Disk {
    xml::Disk {
        target: target.to_owned(),
        serial: (!serial.is_empty()).then(|| serial.to_owned()),
        alias: None,
        source,
        layout: "raw".to_owned(),
        is_read_only: false,
        is_shared: false,
        reach: String::new(),
    }
}

fn domain(name: &str, number: u128, cid: Option<u32>, disks: Vec<xml::Disk>) -> Described {
    let uuid = VmUuid::from_uuid(uuid::Uuid::from_u128(number));
    Described { name: name.to_owned(), uuid, is_running: true, cid, takes_scsi: false, disks }
}

/// What was left out of a machine that is like a good one but for this.
#[track_caller]
fn left_out(change: impl FnOnce(&mut Described)) -> String {
    let mut one =
        domain("db1", 1, Some(77), vec![disk("vda", "data", path("/var/lib/libvirt/images/a.img"))]);
    change(&mut one);
    let Machines { left_out, .. } = join_to(FILE, &[one]);
    assert_eq!(left_out.len(), 1, "{left_out:?}");
    left_out[0].to_string()
}

#[test]
fn a_disk_is_of_the_store_that_its_path_is_in() {
    let image = "/var/lib/libvirt/images/a.img";
    let table = [
        (path(image), "images", Source::Path(image.into())),
        (path("/data/fast/a.img"), "fast", Source::Path("/data/fast/a.img".into())),
        (path("/elsewhere/a.img"), "rest", Source::Path("/elsewhere/a.img".into())),
        (path("/dev/vg0/a"), "volumes", Source::Path("/dev/vg0/a".into())),
        (path("/dev/zvol/tank/vms/a"), "tank", Source::Path("/dev/zvol/tank/vms/a".into())),
        (path("/dev/zvol/tank/vms2"), "rest", Source::Path("/dev/zvol/tank/vms2".into())),
        (xml::Source::Rbd("vms/a".into()), "ceph", Source::Volume("a".into())),
        (
            xml::Source::Volume { pool: "default".into(), volume: "v.img".into() },
            "images",
            Source::Path("/var/lib/libvirt/images/v.img".into()),
        ),
    ];
    for (source, store, expected) in table {
        let machines = join_to(FILE, &[domain("db1", 1, Some(77), vec![disk("vda", "data", source)])]);
        assert_eq!(machines.left_out, []);
        let vm = &machines.vms[1];
        assert_eq!((vm.name.as_str(), &vm.peer, vm.is_discovered), ("db1", &PeerId::Cid(77), true));
        assert_eq!((vm.disks[0].store.as_str(), &vm.disks[0].source), (store, &expected));
        assert!(vm.monitor().is_some());
    }
}

#[test]
fn an_entry_of_the_file_wins_and_knows_that_it_is_libvirts() {
    let theirs = domain("other-name", 10, Some(77), vec![disk("vda", "x", path("/elsewhere/x.img"))]);
    let machines = join_to(FILE, &[theirs]);
    assert_eq!((machines.vms.len(), machines.left_out.len()), (1, 0));
    let vm = &machines.vms[0];
    assert_eq!((vm.name.as_str(), &vm.peer, vm.is_discovered), ("ours", &PeerId::Cid(42), false));
    assert_eq!(vm.disks[0].serial.as_str(), "data");
    assert_eq!(vm.domain.as_ref().map(|domain| domain.uri.as_str()), Some("qemu:///system"));
}

#[test]
fn what_is_left_out_is_told_with_what_to_write() {
    let cases: [(&str, String); 12] = [
        ("add <serial>vda</serial>", left_out(|one| one.disks[0].serial = None)),
        ("can't be used", left_out(|one| one.disks[0].serial = Some("my disk".into()))),
        ("<vsock model='virtio'><cid auto='yes'/></vsock>", left_out(|one| one.cid = None)),
        ("a [[vm]] has its CID 42", left_out(|one| one.cid = Some(42))),
        ("a [[vm]] has its name", left_out(|one| one.name = "ours".into())),
        ("nil", left_out(|one| one.uuid = VmUuid::from_uuid(uuid::Uuid::nil()))),
        (
            "/var/lib/libvirt/images/ours.img",
            left_out(|one| {
                one.disks[0].source = path("/var/lib/libvirt/images/ours.img");
            }),
        ),
        ("<shareable/>", left_out(|one| one.disks[0].is_shared = true)),
        ("its layout is luks", left_out(|one| one.disks[0].layout = "luks".into())),
        (
            "none that a driver has",
            left_out(|one| one.disks[0].source = xml::Source::Other("network iscsi".into())),
        ),
        ("libvirt keeps QEMU's to itself", left_out(|one| one.disks[0].source = path("/mnt/copies/a.img"))),
        (
            "in no store of the driver rbd",
            left_out(|one| one.disks[0].source = xml::Source::Rbd("other/a".into())),
        ),
    ];
    for (words, told) in cases {
        assert!(told.contains(words) && told.contains("db1") | told.contains("ours"), "{words}: {told}");
    }
    let without_rest = FILE.replace("store = \"rest\"", "");
    let one = domain("db1", 1, Some(77), vec![disk("vda", "data", path("/elsewhere/a.img"))]);
    let told = join_to(&without_rest, &[one]).left_out[0].to_string();
    assert!(told.contains("add its folder to [libvirt] stores"), "{told}");
}

#[test]
fn disks_that_virtio_cannot_tell_apart_are_both_left_out() {
    let image = |name: &str| path(&format!("/var/lib/libvirt/images/{name}.img"));
    let disks = vec![
        disk("vda", "pvc-7286dfe6-7c44-40-A", image("a")),
        disk("vdb", "pvc-7286dfe6-7c44-40-B", image("b")),
        disk("vdc", "log", image("c")),
        disk("vdd", "hs-bf77abd9d60d54.0", image("d")),
    ];
    let machines = join_to(FILE, &[domain("db1", 1, Some(77), disks)]);
    let serials: Vec<_> = machines.vms[1].disks.iter().map(|disk| disk.serial.as_str()).collect();
    assert_eq!(serials, ["log"], "and a snapshot of ours is no disk of its own");
    assert_eq!(machines.left_out.len(), 2);
}

#[test]
fn two_domains_that_seem_to_have_one_cid_have_none() {
    let mut domains = [domain("db1", 1, Some(77), Vec::new()), domain("db2", 2, Some(77), Vec::new())];
    let peers = |machines: &Machines| machines.vms[1..].iter().map(|vm| vm.peer.clone()).collect::<Vec<_>>();
    assert_eq!(peers(&join_to(FILE, &domains)), [PeerId::Nobody, PeerId::Nobody]);
    domains[0].is_running = false;
    assert_eq!(peers(&join_to(FILE, &domains)), [PeerId::Nobody, PeerId::Cid(77)]);
}

#[test]
fn an_image_of_two_domains_is_the_ones_that_runs_and_of_none_if_both_do() {
    let image = || vec![disk("vda", "data", path("/var/lib/libvirt/images/a.img"))];
    let mut domains = [domain("db1", 1, Some(77), image()), domain("copy", 2, Some(78), image())];
    let disks = |machines: &Machines| machines.vms[1..].iter().map(|vm| vm.disks.len()).collect::<Vec<_>>();
    let both = join_to(FILE, &domains);
    assert_eq!((disks(&both), both.left_out.len()), (vec![0, 0], 2));
    domains[1].is_running = false;
    let one = join_to(FILE, &domains);
    assert_eq!((disks(&one), one.left_out.len()), (vec![1, 0], 1));
    assert_eq!(
        one.vms[2].peer,
        PeerId::Nobody,
        "what does not run comes in by no CID, whatever its XML says"
    );
}

#[test]
fn what_libvirt_allows_in_a_name_and_we_do_not_is_named_by_its_uuid() {
    let machines = join_to(FILE, &[domain("my database (old)", 1, Some(77), Vec::new())]);
    assert_eq!(machines.vms[1].name.as_str(), "00000000-0000-0000-0000-000000000001");
}
