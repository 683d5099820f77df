//! XML of real libvirts, of Debian 12 and its backports, as `virsh dumpxml` printed it; and what it may be beside that.

use super::*;

const RUNNING: [&str; 2] = [include_str!("9.0.0-running.xml"), include_str!("11.3.0-running.xml")];
const DEFINED: &str = include_str!("11.3.0-defined.xml");

fn domain(devices: &str) -> Described {
    let text = format!(
        "<domain type='kvm'><name>db1</name><uuid>3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01</uuid><devices>{devices}</devices></domain>"
    );
    read(&text).unwrap()
}

fn source_of(disk: &str) -> Source {
    domain(disk).disks.remove(0).source
}

#[test]
fn a_domain_that_runs_is_read_as_each_version_prints_it() {
    for text in RUNNING {
        let domain = read(text).unwrap();
        assert_eq!((domain.name.as_str(), domain.is_running, domain.cid), ("db1", true, None));
        assert_eq!(domain.uuid.to_string(), "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01");
        assert!(domain.takes_scsi);
        let [data, nameless] = &domain.disks[..] else { panic!("{domain:?}") };
        assert_eq!(data.source, Source::Path("/var/lib/libvirt/images/a.img".to_owned()));
        assert_eq!((data.target.as_str(), data.layout.as_str()), ("vda", "raw"));
        assert_eq!((data.serial.as_deref(), data.alias.as_deref()), (Some("data"), Some("virtio-disk0")));
        assert!(!data.is_read_only && !data.is_shared);
        assert_eq!((nameless.target.as_str(), &nameless.serial), ("vdb", &None));
    }
}

#[test]
fn one_that_is_defined_has_its_cid_and_does_not_run() {
    let domain = read(DEFINED).unwrap();
    assert_eq!((domain.name.as_str(), domain.is_running, domain.cid), ("db2", false, Some(42)));
    assert_eq!(domain.disks.len(), 2);
}

#[test]
fn what_is_behind_a_disk_is_what_its_type_says() {
    let disk = |kind: &str, source: &str| {
        source_of(&format!("<disk type='{kind}' device='disk'><source {source}/><target dev='vda'/></disk>"))
    };
    let path = |path: &str| Source::Path(path.to_owned());
    let volume = Source::Volume { pool: "default".to_owned(), volume: "a b.img".to_owned() };
    assert_eq!(disk("file", "file='/srv/a &amp; b.img'"), path("/srv/a & b.img"));
    assert_eq!(disk("block", "dev='/dev/vg0/db1'"), path("/dev/vg0/db1"));
    assert_eq!(disk("volume", "pool='default' volume='a b.img'"), volume);
    assert_eq!(disk("network", "protocol='rbd' name='vms/db1'"), Source::Rbd("vms/db1".to_owned()));
    assert_eq!(disk("network", "protocol='iscsi' name='x'"), Source::Other("network iscsi".to_owned()));
    assert_eq!(disk("vhostuser", "type='unix' path='/run/x'"), Source::Other("vhostuser".to_owned()));
    assert_eq!(disk("file", "dev='/srv/a.img'"), Source::Other("file".to_owned()));
}

#[test]
fn how_a_disk_is_reached_is_kept_as_it_is_written() {
    let disk = "<disk type='network' device='disk'><auth username='a&amp;b'><secret type='ceph' uuid='u'/></auth>\
                <source protocol='rbd' name='vms/db1'><host name='10.0.0.1' port='3300'/><host name='[::1]'/>\
                <snapshot name='x'/><config file='/etc/ceph/it&apos;s'/></source><target dev='vda'/></disk>";
    let reach = &domain(disk).disks[0].reach;
    assert_eq!(
        reach,
        "<host name='10.0.0.1' port='3300'></host><host name='[::1]'></host><config file='/etc/ceph/it&apos;s'></config>\
         <auth username='a&amp;b'><secret type='ceph' uuid='u'></secret></auth>"
    );
    let plain = "<disk type='file'><source file='/a' index='1'/><target dev='vda'/></disk>";
    assert_eq!(domain(plain).disks[0].reach, "");
}

#[test]
fn a_cd_is_no_disk_and_what_is_said_of_a_disk_is_heard() {
    let domain = domain(
        "<disk type='file' device='cdrom'><target dev='sda'/></disk>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a'/><target dev='vda'/>\
         <readonly/><shareable/><serial>  </serial></disk>\
         <vsock model='virtio'><cid auto='yes' address='3'/></vsock><controller type='scsi' model='lsilogic'/>",
    );
    let [disk] = &domain.disks[..] else { panic!("{domain:?}") };
    assert!(disk.is_read_only && disk.is_shared && disk.serial.is_none());
    assert_eq!((disk.layout.as_str(), domain.cid, domain.takes_scsi), ("qcow2", Some(3), false));
}

#[test]
fn what_is_no_domain_is_an_error_and_a_large_one_is_not_even_parsed() {
    let long = format!("<domain>{}</domain>", "x".repeat(XML_LIMIT));
    let laughs = "<!DOCTYPE domain [<!ENTITY a 'ha'>]><domain><name>&a;</name></domain>";
    let nodes = format!("<domain>{}</domain>", "<a/>".repeat(MAX_NODES as usize));
    for (text, words) in [
        ("", "not understood"),
        ("<network><name>n</name></network>", "<network>"),
        ("<domain><uuid>3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01</uuid></domain>", "no name"),
        ("<domain><name>n</name><uuid>x</uuid></domain>", "no UUID"),
        (laughs, "DTD"),
        (&long, "more than"),
        (&nodes, "nodes"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    for end in (0..DEFINED.len()).filter(|end| DEFINED.is_char_boundary(*end)) {
        let _ = read(&DEFINED[..end]);
    }
}
