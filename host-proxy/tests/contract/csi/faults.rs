//! What a CSI plugin can do wrong: each ends in its time with a clear error, and nothing on the storage that nobody knows.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::wait::wait_until;
use host_proxy::drivers::csi::proto::{
    BlockMetadata, CreateSnapshotResponse, DeltaResponse, Snapshot, method,
};
use host_proxy::drivers::csi::{Csi, Place};
use host_proxy::drivers::{
    Continue, CutSet, Driver, DriverError, Found, Kind, Owner, Plan, ROOM_UNKNOWN, Recovered,
};
use prost::Message;

use super::Array;
use super::server::{ABORTED, FAILED_PRECONDITION, Fault, Offers};
use crate::bench::Bench;
use crate::{delete, first_byte, owner, plan, prepare, settle, soon, take};

/// How long a plugin that hangs is waited for in these tests.
const SHORT: Duration = Duration::from_millis(700);
const SINGLES: Offers = Offers { groups: false, ..Offers::EVERYTHING };
const NO_LISTS: Offers = Offers { lists: false, ..SINGLES };

pub(super) fn told(error: &DriverError) -> String {
    format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default())
}

pub(super) fn refuses(code: i32) -> Fault {
    Fault::Refuses(code, "as told".to_owned())
}

/// One volume: one call.
fn one(array: &Array, owner: Owner) -> Plan {
    plan(owner, &array.volumes()[..1])
}

fn recover(array: &Array, owner: Owner) -> Recovered {
    array.driver().recover(owner, &array.volumes()).unwrap()
}

fn nothing_is_left(array: &Array) {
    assert_eq!(array.driver().list().unwrap(), []);
    assert_eq!(array.count(), 0);
}

/// The folder of this snapshot, by its ending.
fn folder(array: &Array, owner: Owner, ending: &str) -> PathBuf {
    array.folder().join(".hostsnap").join(owner.vm.to_string()).join(format!("{}{ending}", owner.snapshot))
}

/// What each of gRPC's codes means, in their order, from 1: docs/decisions/0014-csi.md.
pub(super) const KINDS: [Kind; 16] = [
    Kind::Cancelled,
    Kind::Failed,
    Kind::Unsupported,
    Kind::DeadlinePassed,
    Kind::NotFound,
    Kind::Exists,
    Kind::Failed,
    Kind::NoSpace,
    Kind::Busy,
    Kind::Busy,
    Kind::Failed,
    Kind::Unsupported,
    Kind::Failed,
    Kind::Unreachable,
    Kind::Failed,
    Kind::Failed,
];

#[test]
fn every_code_has_its_kind_and_leaves_either_nothing_or_an_open_question() {
    let array = Array::start(SINGLES);
    for (code, kind) in (1..).zip(KINDS) {
        let owner = owner();
        let ready = array.driver().prepare(&one(&array, owner), soon()).unwrap();
        // A lost way is tried once more, and work of others waited for.
        for _ in 0..100 {
            array.server.fault(method::CREATE_SNAPSHOT, refuses(code));
        }
        let error = ready.cut(Instant::now() + SHORT).err().expect("it was refused");
        array.server.state().faults.clear();
        assert_eq!(error.kind, kind, "{code}: {}", told(&error));
        assert!(told(&error).contains("as told"), "{code}: {}", told(&error));
        let is_open = matches!(code, 1 | 4 | 10 | 11 | 14);
        assert_eq!(error.undo_failed.is_some(), is_open, "{code}: {}", told(&error));
        if is_open {
            let listed = array.driver().list().unwrap();
            assert!(matches!(&listed[..], [Found { whole: false, .. }]), "{code}: {listed:?}");
            assert!(matches!(recover(&array, owner), Recovered::Nothing), "{code}");
        }
        nothing_is_left(&array);
    }
}

#[test]
fn work_of_others_on_the_volume_is_waited_for_and_a_lost_way_found_again() {
    let array = Array::start(Offers::EVERYTHING);
    for (method, volumes) in [(method::CREATE_SNAPSHOT, 1), (method::CREATE_GROUP_SNAPSHOT, 2)] {
        for faults in [vec![refuses(ABORTED); 4], vec![Fault::WorksAndDies]] {
            let owner = owner();
            let ready = array.driver().prepare(&plan(owner, &array.volumes()[..volumes]), soon()).unwrap();
            faults.into_iter().for_each(|fault| array.server.fault(method, fault));
            let mut cut = ready.cut(soon()).unwrap();
            settle(&mut *cut).unwrap();
            cut.seal(b"final").unwrap();
            assert_eq!(array.count(), volumes);
            delete(&array, owner);
        }
    }
    nothing_is_left(&array);
}

#[test]
fn of_a_set_whose_second_volume_fails_nothing_is_left_of_the_first() {
    let array = Array::start(SINGLES);
    let ready = prepare(&array, owner());
    array.server.fault(method::CREATE_SNAPSHOT, refuses(8));
    let error = ready.cut(soon()).err().expect("one of both failed");
    assert_eq!(error.kind, Kind::NoSpace, "{}", told(&error));
    assert!(error.undo_failed.is_none(), "{error}");
    nothing_is_left(&array);
}

#[test]
fn a_plugin_that_hangs_ends_no_call_later_than_its_limit() {
    let array = Array { timeout: SHORT, ..Array::start(SINGLES) };
    let [volume, ..] = &array.volumes()[..] else { panic!("no volume") };
    for method in [method::PROBE, method::GET_PLUGIN_INFO, method::GET_VOLUME] {
        array.server.fault(method, Fault::Hangs);
        let began = Instant::now();
        let error = array.driver().check(volume).expect_err("it hangs");
        assert_eq!(error.kind, Kind::DeadlinePassed, "{}", told(&error));
        assert!(began.elapsed() < SHORT * 4, "{:?}", began.elapsed());
    }
    array.server.fault(method::CREATE_SNAPSHOT, Fault::Hangs);
    let owner = owner();
    let ready = array.driver().prepare(&one(&array, owner), soon()).unwrap();
    let error = ready.cut(soon()).err().expect("it hangs");
    assert_eq!(error.kind, Kind::DeadlinePassed, "{}", told(&error));
    assert!(!error.left_nothing());
    assert!(matches!(recover(&array, owner), Recovered::Nothing));
    nothing_is_left(&array);
}

/// The answer was lost, the snapshot was not: where the plugin lists, that can be told.
#[test]
fn a_cut_whose_answer_never_came_is_found_where_the_plugin_lists_and_removed_where_it_does_not() {
    for offers in [Offers::EVERYTHING, SINGLES, NO_LISTS] {
        let array = Array { timeout: SHORT, ..Array::start(offers) };
        let owner = owner();
        for volume in &array.volumes() {
            array.write(volume, 0x44);
        }
        let ready = prepare(&array, owner);
        array.server.fault(method::CREATE_SNAPSHOT, Fault::WorksAndHangs);
        array.server.fault(method::CREATE_SNAPSHOT, Fault::WorksAndHangs);
        array.server.fault(method::CREATE_GROUP_SNAPSHOT, Fault::WorksAndHangs);
        let error = ready.cut(soon()).err().expect("no answer");
        assert_eq!(error.kind, Kind::DeadlinePassed, "{}", told(&error));
        assert_eq!(array.count(), 2);
        for volume in &array.volumes() {
            array.write(volume, 0x55);
        }
        array.server.state().faults.clear();
        match recover(&array, owner) {
            Recovered::Cut(mut cut) => {
                assert!(offers.lists);
                settle(&mut *cut).unwrap();
                cut.seal(b"final").unwrap();
                for volume in &array.volumes() {
                    assert_eq!(first_byte(&array, owner, volume), 0x44);
                }
                delete(&array, owner);
            }
            Recovered::Nothing => assert!(!offers.lists),
            Recovered::Whole => panic!("it was never sealed"),
        }
        nothing_is_left(&array);
    }
}

/// Power was lost before what the plugin calls the snapshots reached the disk.
#[test]
fn a_note_that_was_lost_with_the_power_costs_no_snapshot_where_the_plugin_lists() {
    for offers in [Offers::EVERYTHING, SINGLES, NO_LISTS] {
        let array = Array::start(offers);
        let owner = owner();
        drop(prepare(&array, owner).cut(soon()).unwrap());
        fs::write(folder(&array, owner, ".partial").join("cut.json"), b"").unwrap();
        match recover(&array, owner) {
            Recovered::Cut(cut) => cut.abandon().unwrap(),
            Recovered::Nothing => assert!(!offers.lists),
            Recovered::Whole => panic!("it was never sealed"),
        }
        nothing_is_left(&array);
    }
}

#[test]
fn what_is_not_ready_is_asked_for_again_and_can_be_left_and_picked_up() {
    for offers in [Offers::EVERYTHING, SINGLES] {
        let array = Array::start(offers);
        array.server.state().unready = 3;
        let first = take(&array);
        delete(&array, first);
        array.server.state().unready = u32::MAX;
        let owner = owner();
        let mut cut = prepare(&array, owner).cut(soon()).unwrap();
        let mut asked = 0;
        let error = cut.settle(&mut |progress| {
            assert_eq!(progress.done_bytes, 0);
            asked += 1;
            if asked < 4 { Continue::Yes } else { Continue::No }
        });
        assert_eq!(error.unwrap_err().kind, Kind::Cancelled);
        drop(cut);
        let Recovered::Cut(cut) = recover(&array, owner) else { panic!("it was cut") };
        cut.abandon().unwrap();
        nothing_is_left(&array);
    }
}

#[test]
fn a_plugin_that_is_away_or_fails_for_a_while_does_not_cost_the_snapshot() {
    let array = Array::start(SINGLES);
    array.server.state().unready = 2;
    let mut cut = array.driver().prepare(&one(&array, owner()), soon()).unwrap().cut(soon()).unwrap();
    for code in [14, 13, 10, 2] {
        array.server.fault(method::CREATE_SNAPSHOT, refuses(code));
    }
    settle(&mut *cut).unwrap();
    cut.abandon().unwrap();
    nothing_is_left(&array);
}

/// Asked again, a plugin makes anew what somebody removed: of a later time, and perhaps by the same identifier.
#[test]
fn a_snapshot_that_somebody_removed_before_it_was_ready_is_lost_and_not_made_anew() {
    for offers in [Offers::EVERYTHING, SINGLES] {
        let array = Array::start(offers);
        array.server.state().unready = 5;
        let mut cut = prepare(&array, owner()).cut(soon()).unwrap();
        array.server.state().forget(|_| true);
        let error = settle(&mut *cut).expect_err("it is gone");
        assert_eq!(error.kind, Kind::NotFound, "{}", told(&error));
        assert!(error.undo_failed.is_none(), "{error}");
        cut.abandon().unwrap();
        nothing_is_left(&array);
    }
}

#[test]
fn garbage_is_no_snapshot_and_leaves_the_question_open() {
    let array = Array::start(SINGLES);
    let snapshot = |id: &str, volume: &str| {
        let snapshot = Snapshot {
            snapshot_id: id.to_owned(),
            source_volume_id: volume.to_owned(),
            ..Default::default()
        };
        CreateSnapshotResponse { snapshot: Some(snapshot) }.encode_to_vec()
    };
    let too_large = snapshot(&"x".repeat(5 << 20), "vol-1");
    let answers: [(&str, Vec<u8>); 6] = [
        ("no snapshot", Vec::new()),
        ("without an identifier", snapshot("", "vol-1")),
        ("without an identifier", snapshot("a\nb", "vol-1")),
        ("another volume", snapshot("id", "vol-other")),
        ("INTERNAL", vec![0xff; 64]),
        ("OUT_OF_RANGE", too_large),
    ];
    for (words, bytes) in answers {
        let owner = owner();
        let ready = array.driver().prepare(&one(&array, owner), soon()).unwrap();
        array.server.fault(method::CREATE_SNAPSHOT, Fault::WorksAndAnswers(bytes));
        let error = ready.cut(soon()).err().expect("garbage");
        assert_eq!(error.kind, Kind::Failed, "{}", told(&error));
        assert!(told(&error).contains(words), "{words}: {}", told(&error));
        assert!(!error.left_nothing(), "{words}: the plugin may have made it");
        let Recovered::Cut(cut) = recover(&array, owner) else { panic!("{words}: it was cut") };
        cut.abandon().unwrap();
        nothing_is_left(&array);
    }
}

#[test]
fn who_is_no_such_plugin_is_told_in_time_with_what_to_do() {
    let array = Array { timeout: SHORT, ..Array::start(SINGLES) };
    let at = |name: &str| array.folder().join(name);
    let check = |endpoint: &Path| {
        let driver = Csi::new(Place { endpoint: endpoint.to_owned(), ..array.place() }).unwrap();
        let began = Instant::now();
        let error = driver.check(&array.volumes()[0]).expect_err("nobody who takes snapshots");
        assert!(began.elapsed() < SHORT * 4, "{:?}", began.elapsed());
        error
    };
    let absent = check(&at("absent.sock"));
    assert_eq!(absent.kind, Kind::Unreachable, "{}", told(&absent));
    assert!(told(&absent).contains("is the plugin running?"), "{}", told(&absent));
    assert!(told(&absent).contains("No such file"), "{}", told(&absent));

    let silent = UnixListener::bind(at("silent.sock")).unwrap();
    let error = check(&at("silent.sock"));
    assert_eq!(error.kind, Kind::DeadlinePassed, "{}", told(&error));
    drop(silent);

    let rude = UnixListener::bind(at("rude.sock")).unwrap();
    let talking = std::thread::spawn(move || {
        let (mut stream, _) = rude.accept().unwrap();
        // Whoever hears it may have hung up.
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let error = check(&at("rude.sock"));
    assert!(matches!(error.kind, Kind::Unreachable | Kind::Failed), "{}", told(&error));
    talking.join().unwrap();

    array.server.fault(method::GET_PLUGIN_INFO, refuses(12));
    let error = check(&array.server.socket);
    assert_eq!(error.kind, Kind::Unsupported, "{}", told(&error));
    array.server.state().offers.snapshots = false;
    let error = check(&array.server.socket);
    assert!(told(&error).contains("CREATE_DELETE_SNAPSHOT"), "{}", told(&error));
}

#[test]
fn another_plugin_behind_the_socket_gets_none_of_the_firsts_snapshots() {
    let array = Array::start(SINGLES);
    let whole = take(&array);
    array.server.state().name = "other.example".to_owned();
    for error in [array.driver().list().unwrap_err(), array.driver().delete(whole).unwrap_err()] {
        assert_eq!(error.kind, Kind::Unsupported, "{}", told(&error));
        assert!(told(&error).contains("test.hostsnap.example"), "{}", told(&error));
    }
    assert_eq!(array.count(), 2);
    array.server.state().name = "test.hostsnap.example".to_owned();
    delete(&array, whole);
    nothing_is_left(&array);
}

#[test]
fn what_the_storage_lost_is_not_whole_and_can_be_deleted() {
    for offers in [Offers::EVERYTHING, SINGLES] {
        let array = Array::start(offers);
        let lost = take(&array);
        let kept = take(&array);
        array
            .server
            .state()
            .forget(|one| one.name.contains(&lost.snapshot.to_string()) && one.volume == "vol-2");
        let mut listed = array.driver().list().unwrap();
        listed.sort_by_key(|found| found.whole);
        assert!(
            matches!(&listed[..], [Found { whole: false, owner, .. }, Found { whole: true, .. }] if *owner == lost)
        );
        delete(&array, lost);
        delete(&array, kept);
        nothing_is_left(&array);
    }
}

#[test]
fn a_list_of_many_pages_is_read_to_its_end_and_one_without_an_end_is_refused() {
    let array = Array::start(SINGLES);
    for n in 0..40 {
        array.server.state().strange(&format!("nightly-{n}"), "vol-1");
    }
    array.server.state().page = 7;
    let owner = take(&array);
    assert!(matches!(&array.driver().list().unwrap()[..], [Found { whole: true, .. }]));
    array.server.state().page = 0;
    let error = array.driver().list().unwrap_err();
    assert!(told(&error).contains("pages without an end"), "{}", told(&error));
    array.server.state().page = 100;
    delete(&array, owner);
    assert_eq!(array.count(), 40, "strangers' stay");
}

/// The Kubernetes host-path driver tells one snapshot of a volume, however many there are.
#[test]
fn a_plugin_that_tells_too_little_of_a_volume_costs_no_snapshot() {
    let array = Array::start(SINGLES);
    array.server.state().tells_one = true;
    let taken = [take(&array), take(&array)];
    assert_eq!(array.driver().list().unwrap().iter().filter(|found| found.whole).count(), 2);
    let third = owner();
    drop(prepare(&array, third).cut(soon()).unwrap());
    fs::write(folder(&array, third, ".partial").join("cut.json"), b"").unwrap();
    let Recovered::Cut(cut) = recover(&array, third) else { panic!("it was cut") };
    cut.abandon().unwrap();
    taken.into_iter().for_each(|owner| delete(&array, owner));
    nothing_is_left(&array);
}

#[test]
fn a_deletion_that_stops_in_the_middle_is_finished_later() {
    let array = Array::start(SINGLES);
    let owner = take(&array);
    let second = array.server.find(&format!("hostsnap-{}", owner.snapshot), "vol-2").unwrap().id;
    array.server.state().in_use.insert(second);
    let error = array.driver().delete(owner).unwrap_err();
    assert_eq!(error.kind, Kind::Busy, "{}", told(&error));
    // Half of it is gone: it is no snapshot any more.
    assert!(matches!(&array.driver().list().unwrap()[..], [Found { whole: false, .. }]));
    array.server.state().in_use.clear();
    assert!(matches!(recover(&array, owner), Recovered::Nothing));
    nothing_is_left(&array);

    let away = take(&array);
    array.server.fault(method::DELETE_SNAPSHOT, refuses(14));
    assert_eq!(array.driver().delete(away).unwrap_err().kind, Kind::Unreachable);
    delete(&array, away);
    nothing_is_left(&array);

    let refused = take(&array);
    array.server.fault(method::DELETE_SNAPSHOT, refuses(FAILED_PRECONDITION));
    assert_eq!(array.driver().delete(refused).unwrap_err().kind, Kind::Busy);
    assert!(matches!(&array.driver().list().unwrap()[..], [Found { whole: true, .. }]));
    delete(&array, refused);
    nothing_is_left(&array);
}

#[test]
fn secrets_and_parameters_reach_the_plugin_and_nobody_else() {
    let array = Array::start(SINGLES);
    let secrets = array.folder().join("secrets.toml");
    fs::write(&secrets, "password = \"geheim-123\"\n").unwrap();
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o600)).unwrap();
    let place = Place {
        secrets_file: Some(secrets.clone()),
        parameters: [("tier".to_owned(), "gold".to_owned())].into(),
        ..array.place()
    };
    assert!(!format!("{place:?}").contains("geheim"));
    let driver = Csi::new(place).unwrap();
    let owner = owner();
    let cut = driver.prepare(&one(&array, owner), soon()).unwrap().cut(soon()).unwrap();
    assert_eq!(array.server.state().secrets["password"], "geheim-123");
    assert_eq!(array.server.state().parameters["tier"], "gold");
    let kept: Vec<_> = fs::read_dir(folder(&array, owner, ".partial")).unwrap().collect();
    assert_eq!(kept.len(), 3);
    for file in kept {
        assert!(!fs::read_to_string(file.unwrap().path()).unwrap().contains("geheim"));
    }
    cut.abandon().unwrap();

    let text = "login admin with geheim-123 failed".to_owned();
    array.server.fault(method::CREATE_SNAPSHOT, Fault::Refuses(16, text));
    let error = driver.prepare(&one(&array, owner), soon()).unwrap().cut(soon()).err().expect("refused");
    assert!(told(&error).contains("login admin with *** failed"), "{}", told(&error));
    assert!(told(&error).contains("secrets_file"), "{}", told(&error));

    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o644)).unwrap();
    let error = driver.check(&array.volumes()[0]).unwrap_err();
    assert!(told(&error).contains("chmod 600"), "{}", told(&error));
    nothing_is_left(&array);
}

#[test]
fn a_volume_that_is_smaller_on_the_storage_than_its_device_is_not_that_disk() {
    let array = Array::start(SINGLES);
    let [volume, ..] = &array.volumes()[..] else { panic!("no volume") };
    let other = array.folder().join("other");
    fs::write(&other, b"small").unwrap();
    array.server.state().volumes.insert("vol-1".to_owned(), other);
    let error = array.driver().check(volume).unwrap_err();
    assert!(told(&error).contains("not the same disk"), "{}", told(&error));
}

#[test]
fn room_that_is_not_told_is_unknown_and_groups_can_be_left_unused() {
    let array = Array::start(Offers { room: false, ..Offers::EVERYTHING });
    assert_eq!(array.driver().free_bytes().unwrap(), ROOM_UNKNOWN);
    let driver = Csi::new(Place { group_snapshots: false, ..array.place() }).unwrap();
    let owner = owner();
    let cut = driver.prepare(&plan(owner, &array.volumes()), soon()).unwrap().cut(soon()).unwrap();
    assert!(array.server.state().snapshots.iter().all(|one| one.group.is_empty()));
    cut.abandon().unwrap();
    let cut: Box<dyn CutSet> = prepare(&array, owner).cut(soon()).unwrap();
    assert!(array.server.state().snapshots.iter().all(|one| !one.group.is_empty()));
    cut.abandon().unwrap();
    nothing_is_left(&array);
}

#[test]
fn a_plugin_that_was_started_anew_behind_the_same_socket_is_found() {
    let first = Array::start(SINGLES);
    let [volume, ..] = &first.volumes()[..] else { panic!("no volume") };
    let driver = first.driver();
    driver.check(volume).unwrap();
    let volumes = first.server.state().volumes.clone();
    let socket = first.server.socket.clone();
    fs::remove_file(&socket).unwrap();
    let second = super::server::Server::start(&socket, &first.folder(), SINGLES);
    second.state().volumes = volumes;
    // The old one goes away with its connections.
    first.server.stop();
    wait_until("the new one answers", Duration::from_secs(10), || driver.check(volume).is_ok());
}

/// Run by hand against the Kubernetes host-path driver, `check` took any name for a volume: that driver answers GET_VOLUME for
/// what it does not have, too.
#[test]
fn a_volume_that_the_plugin_does_not_know_is_refused_whatever_it_says_when_asked_for_it() {
    let array = Array::start(Offers::EVERYTHING);
    array.server.state().tells_any = true;
    let mut volume = array.volumes().remove(0);
    array.driver().check(&volume).unwrap();
    // What it says of capabilities is of no interest.
    for code in [3, 9, 12, 13] {
        array.server.fault(method::VALIDATE_VOLUME, refuses(code));
        array.driver().check(&volume).unwrap_or_else(|error| panic!("{code}: {}", told(&error)));
    }
    array.server.fault(method::VALIDATE_VOLUME, refuses(14));
    assert_eq!(array.driver().check(&volume).unwrap_err().kind, Kind::Unreachable);
    volume.source = array.absent();
    let error = array.driver().check(&volume).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{}", told(&error));
}

#[test]
fn of_changes_that_are_none_nothing_is_believed() {
    let array = Array::start(SINGLES);
    let volume = &array.volumes()[0];
    let first = take(&array);
    array.write(volume, 0x22);
    let second = take(&array);
    let ask = || {
        let driver = array.driver();
        driver.changes().expect("it can tell").changes(first, second, &volume.serial)
    };
    let changed: u64 = ask().unwrap().iter().map(|extent| extent.length).sum();
    assert_eq!(changed, 1 << 20);
    let garbage = |ranges: &[(i64, i64)]| {
        let block_metadata = ranges
            .iter()
            .map(|(byte_offset, size_bytes)| BlockMetadata {
                byte_offset: *byte_offset,
                size_bytes: *size_bytes,
            })
            .collect();
        let message = DeltaResponse { block_metadata_type: 2, volume_capacity_bytes: 0, block_metadata };
        Fault::WorksAndAnswers(message.encode_to_vec())
    };
    for (fault, kind, words) in [
        (garbage(&[(0, 0)]), Kind::Failed, "a range that is none"),
        (garbage(&[(-4096, 4096)]), Kind::Failed, "a range that is none"),
        (garbage(&[(0, 8192), (4096, 4096)]), Kind::Failed, "not in order"),
        (Fault::WorksAndAnswers(vec![0xff; 9]), Kind::Failed, "GetMetadataDelta"),
        (Fault::WorksAndDies, Kind::Unreachable, "GetMetadataDelta"),
        (refuses(FAILED_PRECONDITION), Kind::Unsupported, "does not track"),
        (refuses(5), Kind::NotFound, "as told"),
    ] {
        array.server.fault(method::GET_METADATA_DELTA, fault);
        let error = ask().unwrap_err();
        assert_eq!(error.kind, kind, "{words}: {}", told(&error));
        assert!(told(&error).contains(words), "{words}: {}", told(&error));
    }
    // What is behind the end is none of the disk's.
    array.server.fault(method::GET_METADATA_DELTA, garbage(&[(0, i64::MAX)]));
    assert_eq!(ask().unwrap(), [host_proxy::drivers::Extent { offset: 0, length: crate::DISK_BYTES }]);

    let silent = Array { timeout: SHORT, ..array };
    silent.server.fault(method::GET_METADATA_DELTA, Fault::Hangs);
    let began = Instant::now();
    let driver = silent.driver();
    let error = driver.changes().unwrap().changes(first, second, &volume.serial).unwrap_err();
    assert_eq!(error.kind, Kind::DeadlinePassed, "{}", told(&error));
    assert!(began.elapsed() < SHORT * 4, "{:?}", began.elapsed());
    delete(&silent, first);
    delete(&silent, second);
}
