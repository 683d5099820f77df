//! Tables on what a real guest said: `captures/layouts.json`, made by the story `layouts` of the
//! tests (a partition, LVM on LUKS, an md mirror, btrfs over two disks with a subvolume, bind
//! mounts, a file system in a file, an overlay).

use protocol::WireError;

use super::*;

fn layouts() -> Capture {
    serde_json::from_str(include_str!("../captures/layouts.json")).unwrap()
}

fn of_paths(capture: &Capture, paths: &[&str]) -> Result<Selection, TopologyError> {
    select(capture, &Wish::Paths(paths.iter().map(Into::into).collect()))
}

fn serials(selection: &Selection) -> Vec<&str> {
    let mut serials: Vec<_> = selection.disks.iter().map(|disk| disk.serial.as_str()).collect();
    serials.sort_unstable();
    serials
}

#[test]
fn a_path_leads_to_its_disks_through_every_layer() {
    let capture = layouts();
    for (path, expected) in [
        ("/part/x", &["part"][..]),
        ("/luks", &["luks"]),
        ("/md/deep/er", &["md0", "md1"]),
        ("/bt", &["bt0", "bt1"]),
        ("/sub/x", &["bt0", "bt1"]),
        ("/plain/d", &["plain"]),
        ("/bound/x", &["plain"]),
        ("/run/f", &["plain"]),
        ("/inner/x", &["plain"]),
    ] {
        assert_eq!(serials(&of_paths(&capture, &[path]).unwrap()), expected, "{path}");
    }
    assert_eq!(serials(&of_paths(&capture, &["/part", "/luks"]).unwrap()), ["luks", "part"]);
}

#[test]
fn what_is_on_no_disk_is_named_with_its_kind_and_what_to_do() {
    let capture = layouts();
    for (path, words) in [
        ("/tmp/x", "tmpfs, which lives in memory"),
        ("/over/x", "overlay, which has no disk of its own"),
        ("/proc/1", "proc, which is on no disk"),
    ] {
        let told = of_paths(&capture, &[path]).unwrap_err().to_string();
        assert!(told.contains(words), "{path}: {told}");
    }
    // One path that can't be covered spoils the request: nothing is taken in part.
    assert!(of_paths(&capture, &["/part", "/tmp"]).is_err());
}

#[test]
fn a_disk_without_serial_and_two_of_one_serial_are_refused() {
    let mut capture = layouts();
    let disk = |capture: &mut Capture, name: &str, serial: Option<&str>| {
        let device = capture.devices.iter_mut().find(|device| device.name == name).unwrap();
        device.serial = serial.map(str::to_owned);
    };
    disk(&mut capture, "vda", None);
    let told = of_paths(&capture, &["/part"]).unwrap_err().to_string();
    assert!(told.contains("vda has no serial") && told.contains("<serial>"), "{told}");
    disk(&mut capture, "vda", Some("plain"));
    let told = of_paths(&capture, &["/part"]).unwrap_err().to_string();
    assert!(told.contains("vda") && told.contains("vdg") && told.contains("plain"), "{told}");

    // NVMe and SCSI show the whole serial; the host may know only what virtio carries of it.
    disk(&mut capture, "vda", Some("pvc-7286dfe6-7c44-40-one"));
    disk(&mut capture, "vdg", Some("pvc-7286dfe6-7c44-40-two"));
    let error = WireError::from(of_paths(&capture, &["/part"]).unwrap_err());
    assert_eq!(error.code.exit_code(), 6, "{error}");
    assert!(error.message.as_str().contains("vda") && error.message.as_str().contains("vdg"), "{error}");
    assert!(error.hint.as_str().contains("first 20 bytes"), "{error}");
}

#[test]
fn all_takes_every_disk_that_holds_a_file_system() {
    let selection = select(&layouts(), &Wish::All(Vec::new())).unwrap();
    assert_eq!(serials(&selection), ["bt0", "bt1", "luks", "md0", "md1", "part", "plain"]);
    let overview = overview(&layouts());
    assert_eq!(overview.len(), 7);
    assert!(overview.iter().all(|disk| disk.problem.is_none()), "{overview:?}");
}
