use super::*;

const ROOT: &str = "20 1 254:0 / / rw - ext4 /dev/vda rw\n";
const DATA: &str = "30 20 254:16 / /data rw - ext4 /dev/vdb rw\n";
const LOG: &str = "31 20 254:32 / /log rw - xfs /dev/vdc rw\n";
const IN_DATA: &str = "40 20 7:0 / /inner rw - ext4 /dev/loop0 rw\n";
const IN_INNER: &str = "41 20 7:1 / /innermost rw - ext4 /dev/loop1 rw\n";

fn disk(name: &str, dev: &str) -> Device {
    Device {
        name: name.to_owned(),
        dev: dev.to_owned(),
        size_bytes: 1 << 30,
        serial: Some(format!("serial-{name}")),
        ..Device::default()
    }
}

fn file_as_disk(name: &str, dev: &str, file: &str) -> Device {
    Device { serial: None, loop_file: Some(file.into()), ..disk(name, dev) }
}

fn capture(mounts: &[&str]) -> Capture {
    Capture {
        mountinfo: mounts.concat(),
        devices: vec![
            disk("vda", "254:0"),
            disk("vdb", "254:16"),
            disk("vdc", "254:32"),
            file_as_disk("loop0", "7:0", "/data/image"),
            file_as_disk("loop1", "7:1", "/inner/image"),
        ],
        btrfs: Vec::new(),
    }
}

/// Mount points with their ranks, in the order of the freeze.
fn order(mounts: &[&str]) -> Vec<(String, u32)> {
    let selection = select(&capture(mounts), &Wish::All(Vec::new())).unwrap();
    let of = |fs: FileSystem| (fs.mount_point.display().to_string(), fs.rank);
    selection.file_systems.into_iter().map(of).collect()
}

fn expected(order: &[(&str, u32)]) -> Vec<(String, u32)> {
    order.iter().map(|(path, rank)| ((*path).to_owned(), *rank)).collect()
}

#[test]
fn file_systems_that_dont_depend_on_each_other_are_of_one_rank_and_the_root_comes_last() {
    assert_eq!(order(&[ROOT, DATA, LOG]), expected(&[("/data", 0), ("/log", 0), ("/", 1)]));
}

#[test]
fn a_file_system_in_a_file_of_another_comes_before_it() {
    // vmware/open-vm-tools#6: the other way round, the freeze waits for itself.
    let all = [ROOT, DATA, LOG, IN_DATA, IN_INNER];
    let inside_out = [("/innermost", 0), ("/log", 0), ("/inner", 1), ("/data", 2), ("/", 3)];
    assert_eq!(order(&all), expected(&inside_out));
    // And what is in a file on a chosen disk is on that disk.
    let selection = select(&capture(&all), &Wish::Paths(vec!["/data".into()])).unwrap();
    let points: Vec<_> = selection.file_systems.iter().map(|fs| fs.mount_point.to_str().unwrap()).collect();
    assert_eq!(points, ["/innermost", "/inner", "/data"]);
    assert_eq!(selection.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["vdb"]);
}

/// A disk was cut while a file system on it was written to, and the record said that all were frozen.
#[test]
fn what_has_come_to_a_disk_since_the_plan_is_noticed() {
    const DATA_READ_ONLY: &str = "30 20 254:16 / /data rw - ext4 /dev/vdb ro\n";
    const DATA_ELSEWHERE: &str = "50 20 254:16 /d /x rw - ext4 /dev/vdb rw\n";
    let table: [(&[&str], &[&str], Option<&str>); 6] = [
        (&[ROOT, DATA], &[ROOT, DATA], None),
        (&[ROOT, DATA], &[ROOT, DATA, IN_DATA], Some("/inner")),
        (&[ROOT, DATA_READ_ONLY], &[ROOT, DATA], Some("/data")),
        (&[ROOT, DATA], &[ROOT, DATA_READ_ONLY], None),
        // The same file system once more, and another disk's.
        (&[ROOT, DATA], &[ROOT, DATA, DATA_ELSEWHERE], None),
        (&[ROOT, DATA], &[ROOT, DATA, LOG], None),
    ];
    for (plan, now, expected) in table {
        let planned = select(&capture(plan), &Wish::Paths(vec!["/data".into()])).unwrap();
        let found = joined(&capture(now), &BTreeSet::from(["vdb"]), &planned.file_systems);
        assert_eq!(found, expected.map(PathBuf::from), "{now:?}");
    }
}

/// The host would refuse all, since it knows no such disk of the machine's.
#[test]
fn what_is_mounted_from_an_attached_snapshot_is_not_among_all_disks() {
    let mut capture = capture(&[ROOT, DATA]);
    capture.devices[1].serial = Some("hs-bf77abd9d60d54.0".to_owned());
    let selection = select(&capture, &Wish::All(Vec::new())).unwrap();
    assert_eq!(selection.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["vda"]);
}
