//! What a configuration may say, and how its mistakes are told.

use std::path::Path;

use super::{Backend, Config};

const GOOD: &str = r#"
[[store]]
name = "images"
driver = "reflink"
path = "/srv/images"
min_free = "1GiB"

[[vm]]
name = "db1"
uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01"
cid = 42
[[vm.disk]]
serial = "data"
store = "images"
path = "/srv/images/data.img"
format = "raw"
"#;

fn errors(text: &str) -> String {
    Config::parse(text, Path::new("hostsnapd.toml")).unwrap_err().to_string()
}

#[test]
fn a_good_configuration_has_sane_defaults() {
    let config = Config::parse(GOOD, Path::new("x")).unwrap();
    assert_eq!(config.stores[0].min_free, 1 << 30);
    assert!(config.service.require_privileged_port && !config.service.allow_local_cid);
    assert_eq!(config.vms[0].quota.snapshots, 100);
}

#[test]
fn mistakes_name_file_line_and_what_is_allowed() {
    for (from, to, line, words) in [
        ("min_free", "min_fre", 6, "expected one of `name`, `driver`, `min_free`, `path`, `pool`"),
        ("\"reflink\"", "\"zfs2\"", 4, "expected one of `qemu`, `reflink`, `btrfs`, `lvm-thin`"),
        ("cid = 42", "cid = 2", 11, "reserved"),
        ("cid = 42", "", 8, "exactly one of `cid`"),
        ("store = \"images\"", "store = \"image\"", 14, "there are: images"),
        ("1GiB", "1GB", 6, "10GiB"),
        ("\"/srv/images/data.img\"", "\"data.img\"", 15, "absolute"),
        ("3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01", "00000000-0000-0000-0000-000000000000", 10, "nil"),
        ("cid = 42", "cid = 4294967295", 11, "reserved"),
        ("cid = 42", "socket = \"run/db1\"", 11, "absolute"),
        ("\"/srv/images\"", "\"/srv/../images\"", 5, "\"..\""),
        ("\"data\"", "\"my data\"", 13, "ASCII"),
        ("data.img", ".hostsnap/x/data.img", 15, ".hostsnap"),
        ("\"raw\"", "\"vmdk\"", 16, "expected `raw` or `qcow2`"),
        ("\"reflink\"", "\"qemu\"", 14, "add qmp"),
        ("\n[[store]]", "[service]\nmax_lease = \"soon\"\n[[store]]", 2, "90s"),
        ("\n[[store]]", "[service]\nmax_lease = \"2h\"\n[[store]]", 2, "at most 3600s"),
        ("\n[[store]]", "[service]\nmax_connections_per_vm = 0\n[[store]]", 2, "at least 1"),
        ("\n[[store]]", "[service]\nstate_dir = \"var\"\n[[store]]", 2, "absolute"),
        ("path = \"/srv/images\"", "", 2, "path = \"/…\""),
        ("path = \"/srv/images/data.img\"", "", 12, "needs `path`"),
        ("path = \"/srv/images/data.img\"", "volume = \"data\"", 15, "the driver reflink needs the path"),
        ("cid = 42", "cid = 42\nallow = [\"revert\"]", 12, "expected one of `create`, `list`, `delete`"),
    ] {
        let told = errors(&GOOD.replacen(from, to, 1));
        assert!(told.contains(words), "{from} → {to}: {told}");
        assert!(told.contains(&format!("hostsnapd.toml:{line}:")), "{from} → {to}: {told}");
    }
}

const CEPH: &str = r#"
[[store]]
name = "ceph"
driver = "rbd"
pool = "vms"

[[vm]]
name = "db1"
uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01"
cid = 42
[[vm.disk]]
serial = "data"
store = "ceph"
volume = "db1-data"
format = "raw"
"#;

#[test]
fn a_pool_of_cephs_needs_its_name_and_its_disks_are_named_as_images() {
    let Backend::Rbd(place) = &Config::parse(CEPH, Path::new("x")).unwrap().stores[0].backend else {
        panic!("another driver")
    };
    assert_eq!((place.conf.to_str(), place.user.as_str()), (Some("/etc/ceph/ceph.conf"), "hostsnap"));
    assert_eq!(place.to_string(), "the pool vms of /etc/ceph/ceph.conf");
    for (from, to, line, words) in [
        ("pool = \"vms\"", "", 2, "pool = \"…\""),
        ("pool = \"vms\"", "pool = \"vms/db\"", 5, "a namespace has a key of its own"),
        ("pool = \"vms\"", "pool = \"vms\"\nconf = \"ceph.conf\"", 6, "absolute"),
        ("pool = \"vms\"", "pool = \"vms\"\ntimeout = \"2m\"", 6, "at most 60s"),
        ("pool = \"vms\"", "pool = \"vms\"\npath = \"/srv\"", 2, "has the key path, which the driver rbd"),
        ("volume = \"db1-data\"", "path = \"/dev/rbd0\"", 14, "volume = \"…\" instead of path"),
    ] {
        let told = errors(&CEPH.replacen(from, to, 1));
        assert!(told.contains(words), "{from} → {to}: {told}");
        assert!(told.contains(&format!("hostsnapd.toml:{line}:")), "{from} → {to}: {told}");
    }
    let second = CEPH.split("[[vm]]").next().unwrap().replace("\"ceph\"", "\"again\"");
    assert!(errors(&format!("{CEPH}{second}")).contains("a second store is in the pool vms"));
}

const CSI: &str = r#"
[[store]]
name = "array"
driver = "csi"
endpoint = "/run/csi/csi.sock"
path = "/var/lib/hostsnap/csi/array"

[[vm]]
name = "db1"
uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01"
cid = 42
[[vm.disk]]
serial = "data"
store = "array"
volume = "vol-1"
path = "/dev/sdx"
format = "raw"
"#;

#[test]
fn a_csi_plugin_needs_its_socket_and_a_folder_and_its_disks_both_their_names() {
    let Backend::Csi(place) = &Config::parse(CSI, Path::new("x")).unwrap().stores[0].backend else {
        panic!("another driver")
    };
    assert!(place.group_snapshots && place.secrets_file.is_none() && place.parameters.is_empty());
    assert!(place.node_endpoint.is_none() && place.volume_parameters.is_empty());
    let endpoint = "endpoint = \"/run/csi/csi.sock\"";
    let long = format!("endpoint = \"/run/{}\"", "v".repeat(110));
    for (from, to, line, words) in [
        (endpoint, "", 2, "endpoint = "),
        (endpoint, "endpoint = \"csi.sock\"", 5, "absolute"),
        (endpoint, &long, 5, "at most 107"),
        (endpoint, "endpoint = \"/run/c\"\nnode_endpoint = \"n.sock\"", 6, "absolute"),
        ("path = \"/var/lib/hostsnap/csi/array\"", "", 2, "needs a folder"),
        (endpoint, "endpoint = \"/run/c\"\nsecrets_file = \"s\"", 6, "absolute"),
        (endpoint, "endpoint = \"/run/c\"\ntimeout = \"2m\"", 6, "at most 60s"),
        (endpoint, "endpoint = \"/run/c\"\npool = \"p\"", 2, "has the key pool, which the driver csi"),
        ("volume = \"vol-1\"", "", 16, "volume = \"…\" beside path"),
        ("path = \"/dev/sdx\"", "", 15, "path = \"/…\" beside volume"),
    ] {
        let told = errors(&CSI.replacen(from, to, 1));
        assert!(told.contains(words), "{from} → {to}: {told}");
        assert!(told.contains(&format!("hostsnapd.toml:{line}:")), "{from} → {to}: {told}");
    }
    let disk = CSI.split("[[vm.disk]]").nth(1).unwrap().replace("\"data\"", "\"log\"");
    let again = |from, to| errors(&format!("{CSI}[[vm.disk]]{}", disk.replace(from, to)));
    assert!(again("vol-1", "vol-2").contains("a second disk is /dev/sdx; the first is on line 16"));
    assert!(again("/dev/sdx", "/dev/sdy").contains("a second disk is vol-1; the first is on line 15"));
}

#[test]
fn a_store_of_logical_volumes_has_a_pool_and_watermarks() {
    let good = GOOD
        .replace("\"reflink\"\npath = \"/srv/images\"", "\"lvm-thin\"\npool = \"vg0/thin\"")
        .replace("/srv/images/data.img", "/dev/vg0/db1-data");
    let config = Config::parse(&good, Path::new("x")).unwrap();
    assert_eq!(config.stores[0].backend.driver(), "lvm-thin");
    for (from, to, line, words) in [
        ("pool = \"vg0/thin\"", "", 2, "pool = \"vg0/thin\""),
        ("\"vg0/thin\"", "\"thin\"", 2, "names no thin pool"),
        ("\"vg0/thin\"", "\"vg0/-x\"", 2, "names no thin pool"),
        ("\"vg0/thin\"", "\"vg0/thin\"\ndata_watermark = 101", 2, "from 1 to 100"),
        ("\"vg0/thin\"", "\"vg0/thin\"\nmetadata_watermark = 0", 2, "from 1 to 100"),
        ("\"vg0/thin\"", "\"vg0/thin\"\npath = \"/srv\"", 2, "has the key path"),
        ("\"lvm-thin\"", "\"reflink\"\npath = \"/srv\"", 2, "has the key pool"),
    ] {
        let told = errors(&good.replacen(from, to, 1));
        assert!(told.contains(words), "{from} → {to}: {told}");
        assert!(told.contains(&format!("hostsnapd.toml:{line}:")), "{from} → {to}: {told}");
    }
    let second = format!("[[store]]\nname = \"b\"\ndriver = \"lvm-thin\"\npool = \"vg0/thin\"\n{good}");
    assert!(errors(&second).contains("a second store is in vg0/thin"), "{}", errors(&second));
}

#[test]
fn a_store_of_zfs_has_a_dataset_and_none_is_within_another() {
    let good = GOOD
        .replace("\"reflink\"\npath = \"/srv/images\"", "\"zfs\"\ndataset = \"tank/vms\"")
        .replace("path = \"/srv/images/data.img\"", "path = \"/dev/zvol/tank/vms/db1\"");
    let config = Config::parse(&good, Path::new("hostsnapd.toml")).unwrap();
    assert_eq!(config.stores[0].backend.driver(), "zfs");
    for (from, to, says) in [
        ("dataset = \"tank/vms\"", "", "dataset = \"tank/vms\""),
        ("\"tank/vms\"", "\"tank/vms@now\"", "names no dataset of ZFS"),
        ("\"tank/vms\"", "\"/tank/vms\"", "names no dataset of ZFS"),
        ("dataset = \"tank/vms\"", "dataset = \"tank/vms\"\npool = \"tank\"", "has the key pool"),
    ] {
        let errors = errors(&good.replace(from, to));
        assert!(errors.contains(says), "{to}: {errors}");
    }
    // Each would list and remove the other's snapshots.
    for dataset in ["tank/vms", "tank", "tank/vms/db1"] {
        let second = format!("[[store]]\nname = \"b\"\ndriver = \"zfs\"\ndataset = \"{dataset}\"\n{good}");
        let errors = errors(&second);
        assert!(errors.contains("a second store is in"), "{dataset}: {errors}");
    }
    let beside = format!("[[store]]\nname = \"b\"\ndriver = \"zfs\"\ndataset = \"tank/vms2\"\n{good}");
    Config::parse(&beside, Path::new("hostsnapd.toml")).unwrap();
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = GOOD.replace("cid = 42", "cid = 1").replace("store = \"images\"", "store = \"x\"");
    let told = errors(&text);
    assert!(told.contains("reserved") && told.contains("no store"), "{told}");
}

#[test]
fn two_disks_that_virtio_cannot_tell_apart_are_refused() {
    let second = GOOD.split("[[vm.disk]]").nth(1).unwrap();
    let text = format!(
        "{}[[vm.disk]]{}",
        GOOD.replace("\"data\"", "\"pvc-7286dfe6-7c44-40-A\""),
        second.replace("\"data\"", "\"pvc-7286dfe6-7c44-40-B\"").replace("data.img", "b.img"),
    );
    assert!(errors(&text).contains("could not tell them apart"), "{}", errors(&text));
}

#[test]
fn a_disk_with_the_serial_of_an_attached_snapshot_is_refused() {
    let told = errors(&GOOD.replace("\"data\"", "\"hs-bf77abd9d60d54.0\""));
    assert!(told.contains("as those of attached snapshots"), "{told}");
}

#[test]
fn two_machines_that_share_a_way_in_or_a_disk_are_refused_and_both_lines_are_named() {
    let vm = GOOD.split("[[vm]]").nth(1).unwrap();
    let second = vm
        .replace("\"db1\"", "\"db2\"")
        .replace("3f1f54c2", "4f1f54c2")
        .replace("cid = 42", "cid = 43")
        .replace("data.img", "other.img");
    let good = format!("{GOOD}[[vm]]{second}");
    Config::parse(&good, Path::new("x")).unwrap();
    for (from, to, line, words) in [
        ("\"db2\"", "\"db1\"", 18, "named db1; the first is on line 9"),
        ("4f1f54c2", "3f1f54c2", 19, "the first is on line 10"),
        ("cid = 43", "cid = 42", 20, "comes in by cid 42; the first is on line 11"),
        ("other.img", "data.img", 24, "data.img; the first is on line 15"),
        // The same file, written differently.
        ("/srv/images/other.img", "/srv//images/./data.img", 24, "the first is on line 15"),
    ] {
        let told = errors(&good.replace(from, to));
        assert!(told.contains(words), "{from} → {to}: {told}");
        assert!(told.contains(&format!("hostsnapd.toml:{line}:")), "{from} → {to}: {told}");
    }
    let qmp = good
        .replace("cid = 42", "cid = 42\nqmp = \"/run/q\"")
        .replace("cid = 43", "cid = 43\nqmp = \"/run/q\"");
    assert!(errors(&qmp).contains("QMP socket /run/q; the first is on line 12"), "{}", errors(&qmp));
}

#[test]
fn a_machine_with_a_cid_needs_somebody_who_listens_on_vsock() {
    let deaf = format!("[service]\nlisten_vsock = false\n{GOOD}");
    assert!(errors(&deaf).contains("could never come in"), "{}", errors(&deaf));
    let hybrid = deaf.replace("cid = 42", "socket = \"/run/vm/db1.vsock\"");
    Config::parse(&hybrid, Path::new("x")).unwrap();
}

#[test]
fn a_socket_whose_path_no_kernel_takes_is_refused_with_the_port_counted() {
    let with = |len: usize| {
        let path = format!("/run/{}", "v".repeat(len - "/run/".len()));
        GOOD.replace("cid = 42", &format!("socket = {path:?}"))
    };
    Config::parse(&with(103), Path::new("x")).unwrap();
    assert!(errors(&with(104)).contains("108 bytes with _989"), "{}", errors(&with(104)));
}

#[test]
fn what_holds_for_libvirts_machines_is_checked_and_needs_libvirt_to_be_asked() {
    let good = format!(
        "[service]\ndiscover = \"libvirt\"\n[libvirt]\nuri = \"qemu:///system\"\nstore = \"images\"\n\
         stores = {{ \"/data\" = \"images\" }}\nallow = [\"list\"]\n{GOOD}"
    );
    let config = Config::parse(&good, Path::new("x")).unwrap();
    let libvirt = config.discovered_by_libvirt().unwrap();
    assert_eq!((libvirt.allow.len(), libvirt.guest_may_delete, libvirt.quota.snapshots), (1, true, 100));
    assert_eq!(Config::parse(GOOD, Path::new("x")).unwrap().discovered_by_libvirt(), None);
    for (from, to, line, words) in [
        ("discover = \"libvirt\"", "", 6, "of no use without discover = \"libvirt\""),
        ("\"libvirt\"", "\"xen\"", 2, "expected `libvirt`"),
        ("store = \"images\"", "store = \"x\"", 6, "names the store \"x\""),
        ("\"/data\" = \"images\"", "\"/data\" = \"x\"", 6, "names the store \"x\""),
        ("\"/data\"", "\"data\"", 6, "absolute"),
        ("qemu:///system", "--connect", 4, "no URI"),
        ("allow = [\"list\"]", "cid = 42", 7, "unknown field"),
    ] {
        let told = errors(&good.replacen(from, to, 1));
        assert!(told.contains(words), "{from} → {to}: {told}");
        assert!(told.contains(&format!("hostsnapd.toml:{line}:")), "{from} → {to}: {told}");
    }
}

#[test]
fn no_text_however_broken_makes_it_panic() {
    for cut in (0..GOOD.len()).filter(|at| GOOD.is_char_boundary(*at)) {
        let _ = Config::parse(&GOOD[..cut], Path::new("x"));
    }
    assert!(errors("name = \"é\"\n[[vm").contains("hostsnapd.toml:"));
}
