//! What lvm alone can do wrong: each ends with a clear error, nothing left, nothing suspended.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::initramfs::Tools;
use harness::loopfs::run;
use harness::vm::Plan;
use harness::within;
use host_proxy::drivers::lvm_thin::{LvmThin, Watermarks};
use host_proxy::drivers::{Driver, Exposed, Format, Found, Kind, Recovered, Volume};
use host_proxy::exec::Tool;

use crate::bench::{Bench, DISK_BYTES, volume};
use crate::lvm::{ThinVolumes, lvm};
use crate::{delete, owner, plan, prepare, settle, soon, take};

#[test]
fn what_lvm_does_wrong_ends_with_an_error_and_leaves_nothing() {
    let plan = Plan::debian("lvm-faults").tools([Tools::DeviceMapper]);
    within::run("lvm_faults::what_lvm_does_wrong_ends_with_an_error_and_leaves_nothing", plan, || {
        let bench = ThinVolumes::new();
        what_is_no_thin_volume_of_the_pool_is_refused(&bench);
        an_lvm_that_hangs_in_the_cut_leaves_no_volume_suspended(&bench);
        an_lvm_that_fails_for_the_second_volume_leaves_none_of_the_first(&bench);
        a_volume_that_got_anothers_name_is_not_taken_for_it(&bench);
        what_was_not_noted_as_cut_is_not_cut(&bench);
        without_the_manifests_what_is_whole_stays_whole(&bench);
        what_is_concealed_is_active_no_longer_than_it_is_read(&bench);
        a_group_that_takes_no_changes_is_told(&bench);
    });
}

fn nothing_is_left(bench: &ThinVolumes) {
    assert_eq!(bench.driver().list().unwrap(), []);
    let names = bench.names();
    assert!(
        !names.iter().any(|name| name.starts_with("hostsnap.") && name != "hostsnap.manifests"),
        "{names:?}"
    );
    let told = run(Command::new("dmsetup").args(["info", "-c", "--noheadings", "-o", "name,suspended"]));
    assert!(!told.contains("Suspended"), "{told}");
}

fn what_is_no_thin_volume_of_the_pool_is_refused(bench: &ThinVolumes) {
    let vg = bench.vg();
    lvm(&["lvcreate", "-q", "-y", "-L", "8M", "-n", "thick", vg]);
    lvm(&["lvcreate", "-q", "--type", "thin-pool", "-L", "8M", "-n", "pool2", vg]);
    lvm(&["lvcreate", "-q", "--thin", "-V", "8M", "-n", "other", &bench.lv("pool2")]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let of = |path: &Path| volume(path, "x", None);
    let device = |name: &str| Path::new("/dev").join(vg).join(name);
    for (volume, words) in [
        (of(&device("thick")), "is no thin volume"),
        (of(&device("other")), "in another pool: pool2"),
        (of(Path::new("/dev/loop7")), "no logical volume of the group"),
        (of(file.path()), "but a file"),
        (Volume { format: Format::Qcow2, ..bench.volumes()[0].clone() }, "holds a raw disk"),
    ] {
        let error = bench.driver().check(&volume).expect_err(words);
        assert_eq!(error.kind, Kind::Unsupported, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(bench.driver().prepare(&plan(owner(), &[volume]), soon()).is_err());
    }
    let nowhere =
        LvmThin::new("hostsnap-no-such-group/thin".parse().unwrap(), Watermarks::default()).unwrap();
    assert_eq!(nowhere.check(&bench.volumes()[0]).unwrap_err().kind, Kind::NotFound);
    lvm(&["lvremove", "-q", "-f", &bench.lv("thick"), &bench.lv("pool2")]);
    nothing_is_left(bench);
}

/// An lvm that is the real one, but for what this script does with the commands of its shell: `$line`.
fn with_shell(bench: &ThinVolumes, folder: &Path, script: &str) -> LvmThin {
    let path = folder.join("lvm");
    let real = Tool::find("lvm").unwrap().name();
    let text = format!(
        "#!/bin/sh\n[ $# -gt 0 ] && exec {real} \"$@\"\n\
         while read -r line; do case \"$line\" in\n\
         hostsnap-end*) echo \"  No such command '$line'.\";;\n\
         lvmconfig*|*--test*) eval \"{real} $line\";;\n\
         *) {script};;\n\
         esac 2>&1; done\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let pool = bench.pool().parse().unwrap();
    LvmThin::with_lvm(pool, Watermarks::default(), Tool::at(path), Duration::from_secs(60))
}

/// The incident: LINBIT/linstor-server#138, a failed snapshot left I/O suspended on the host.
fn an_lvm_that_hangs_in_the_cut_leaves_no_volume_suspended(bench: &ThinVolumes) {
    let folder = tempfile::tempdir().unwrap();
    let device = bench.volumes()[0].path().unwrap().canonicalize().unwrap();
    let script = format!("trap '' TERM; dmsetup suspend {}; sleep 600", device.display());
    let driver = with_shell(bench, folder.path(), &script);
    let owner = owner();
    let ready = driver.prepare(&plan(owner, &bench.volumes()), soon()).unwrap();
    let began = Instant::now();
    let error = ready.cut(began + Duration::from_secs(1)).err().expect("it hangs");
    assert_eq!(error.kind, Kind::DeadlinePassed, "{error}");
    assert!(error.undo_failed.is_none(), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    nothing_is_left(bench);
    // A guest writes again.
    bench.write(&bench.volumes()[0], 0x77);
}

fn an_lvm_that_fails_for_the_second_volume_leaves_none_of_the_first(bench: &ThinVolumes) {
    let folder = tempfile::tempdir().unwrap();
    let real = Tool::find("lvm").unwrap().name();
    let script = format!(
        "case \"$line\" in *.1\\ *) echo '  Insufficient free space';; *) eval \"{real} $line\";; esac"
    );
    let driver = with_shell(bench, folder.path(), &script);
    let ready = driver.prepare(&plan(owner(), &bench.volumes()), soon()).unwrap();
    let error = ready.cut(soon()).err().expect("there is no room for the second");
    assert_eq!(error.kind, Kind::NoSpace, "{error}");
    assert!(error.undo_failed.is_none(), "{error}");
    nothing_is_left(bench);
}

fn a_volume_that_got_anothers_name_is_not_taken_for_it(bench: &ThinVolumes) {
    let vg = bench.vg();
    let ready = prepare(bench, owner());
    lvm(&["lvrename", "-q", vg, "one", "moved"]);
    let error = ready.cut(soon()).err().expect("it has no such name any more");
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    let error = bench.driver().check(&bench.volumes()[0]).expect_err("nor a path");
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    lvm(&["lvrename", "-q", vg, "moved", "one"]);
    nothing_is_left(bench);

    let ready = prepare(bench, owner());
    lvm(&["lvrename", "-q", vg, "one", "moved"]);
    bench.make("one", DISK_BYTES);
    let mut cut = ready.cut(soon()).unwrap();
    let error = settle(&mut *cut).expect_err("that is another volume");
    assert!(error.to_string().contains("another volume"), "{error}");
    cut.abandon().unwrap();
    lvm(&["lvremove", "-q", "-f", &bench.lv("one")]);
    lvm(&["lvrename", "-q", vg, "moved", "one"]);
    nothing_is_left(bench);
}

/// lvm writes down a volume before the kernel makes it. Killed in between, it leaves one that the next
/// lvm makes, later than the other volumes of the set.
fn what_was_not_noted_as_cut_is_not_cut(bench: &ThinVolumes) {
    let owner = owner();
    drop(prepare(bench, owner));
    for (index, (name, serial)) in [("one", "one"), ("two", "..#2ftwo")].into_iter().enumerate() {
        let tags = [
            "hostsnap".to_owned(),
            format!("hostsnap.vm={}", owner.vm),
            format!("hostsnap.serial={serial}"),
            format!("hostsnap.origin={}", bench.ask(name, "lv_uuid")),
        ];
        let snapshot = format!("hostsnap.{}.{index}", owner.snapshot);
        let tags: Vec<&str> = tags.iter().flat_map(|tag| ["--addtag", tag]).collect();
        lvm(&[&["lvcreate", "-q", "-s", "-n", &snapshot, &bench.lv(name)], &tags[..]].concat());
    }
    let listed = bench.driver().list().unwrap();
    assert!(matches!(&listed[..], [Found { whole: false, manifest: Some(_), .. }]), "{listed:?}");
    let recovered = bench.driver().recover(owner, &bench.volumes()).unwrap();
    assert!(matches!(recovered, Recovered::Nothing));
    nothing_is_left(bench);
}

fn without_the_manifests_what_is_whole_stays_whole(bench: &ThinVolumes) {
    let owner = take(bench);
    lvm(&["lvremove", "-q", "-f", &bench.lv("hostsnap.manifests")]);
    assert_eq!(bench.driver().list().unwrap(), [Found { owner, whole: true, manifest: None }]);
    let second = take(bench);
    assert_eq!(bench.driver().list().unwrap().iter().filter(|found| found.whole).count(), 2);
    delete(bench, owner);
    delete(bench, second);
    nothing_is_left(bench);
}

fn what_is_concealed_is_active_no_longer_than_it_is_read(bench: &ThinVolumes) {
    let owner = take(bench);
    let name = format!("hostsnap.{}.0", owner.snapshot);
    let driver = bench.driver();
    let (ability, serial) = (driver.expose().unwrap(), &bench.volumes()[0].serial);
    let Exposed::Path { path, .. } = ability.expose(owner, serial).unwrap() else { panic!("no path") };
    let reader = fs::File::open(path).unwrap();
    ability.conceal(owner, serial).unwrap();
    assert_eq!(bench.ask(&name, "lv_active"), "active", "somebody reads it");
    drop(reader);
    ability.conceal(owner, serial).unwrap();
    assert_eq!(bench.ask(&name, "lv_active"), "");
    delete(bench, owner);
    nothing_is_left(bench);
}

fn a_group_that_takes_no_changes_is_told(bench: &ThinVolumes) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("lvm.conf"), "global { metadata_read_only = 1 }\n").unwrap();
    let real = Tool::find("lvm").unwrap().name();
    let path = folder.path().join("lvm");
    fs::write(&path, format!("#!/bin/sh\nLVM_SYSTEM_DIR={} exec {real} \"$@\"\n", folder.path().display()))
        .unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let pool = bench.pool().parse().unwrap();
    let driver = LvmThin::with_lvm(pool, Watermarks::default(), Tool::at(path), Duration::from_secs(60));
    let outcome = driver.prepare(&plan(owner(), &bench.volumes()), soon());
    let error = outcome.err().expect("the group can't be changed, and that is known before the freeze");
    assert!(error.to_string().contains("metadata_read_only"), "{error}");
    assert!(error.undo_failed.is_none(), "{error}");
    nothing_is_left(bench);
}
