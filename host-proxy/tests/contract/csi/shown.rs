//! Snapshots that are shown by volumes made of them: every step may fail, and nothing of it is left.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::{Duration, Instant};

use host_proxy::drivers::csi::proto::{CreateVolumeResponse, Volume as Told, method};
use host_proxy::drivers::csi::{Csi, Place};
use host_proxy::drivers::{Driver, DriverError, Exposed, Found, Kind, Others, Owner, Source, Volume};
use prost::Message;

use super::Array;
use super::faults::{KINDS, refuses, told};
use super::server::volumes::{NODE, Publishing, Puts};
use super::server::{Fault, Offers, Server};
use crate::bench::Bench;
use crate::{DISK_BYTES, delete, first_byte, take};

/// How long a plugin that hangs is waited for in these tests.
const SHORT: Duration = Duration::from_millis(300);
const SINGLES: Offers = Offers { groups: false, ..Offers::EVERYTHING };
/// The steps, in their order.
const THERE: [&str; 4] = [method::CREATE_VOLUME, method::PUBLISH, method::NODE_STAGE, method::NODE_PUBLISH];
const BACK: [&str; 4] =
    [method::NODE_UNPUBLISH, method::NODE_UNSTAGE, method::UNPUBLISH, method::DELETE_VOLUME];

fn expose(array: &Array, owner: Owner, volume: &Volume) -> Result<Exposed, DriverError> {
    array.driver().exposes().expect("it may").expose(owner, &volume.serial)
}

fn conceal(array: &Array, owner: Owner, volume: &Volume) -> Result<(), DriverError> {
    array.driver().exposes().expect("it may").conceal(owner, &volume.serial)
}

/// No volume, no mount, no note.
#[track_caller]
fn nothing_is_shown(array: &Array) {
    assert_eq!(array.made(), 0);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let shown = array.folder().join(".hostsnap/shown");
    assert!(!mounts.contains(shown.to_str().unwrap()), "{mounts}");
    let left: Vec<_> = fs::read_dir(&shown).map_or(Vec::new(), |read| read.flatten().collect());
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn whatever_the_plugin_wants_between_a_snapshot_and_a_path_is_done_and_undone() {
    for (controller, stages, topology, puts) in [
        (true, true, true, Puts::Device),
        (false, true, false, Puts::Device),
        (true, false, false, Puts::File),
        (false, false, true, Puts::File),
    ] {
        let publishing = Publishing { controller, stages, topology, puts };
        let array = Array::start(Offers { volumes: Some(publishing), ..SINGLES });
        let [one, two] = &array.volumes()[..] else { panic!("two volumes") };
        array.write(one, 0x21);
        let owner = take(&array);
        array.write(one, 0x22);
        assert_eq!(first_byte(&array, owner, one), 0x21, "{publishing:?}");
        let Exposed::Path { path, .. } = expose(&array, owner, two).unwrap() else { panic!("a path") };
        assert_eq!(fs::metadata(&path).unwrap().file_type().is_block_device(), puts == Puts::Device);
        assert_eq!(array.made(), 2);
        // After a boot of this host the volume is there, and its path is not.
        array.server.state().boot();
        assert_eq!(first_byte(&array, owner, one), 0x21);
        conceal(&array, owner, one).unwrap();
        conceal(&array, owner, one).unwrap();
        assert_eq!(array.made(), 1);
        // What is shown and not read does not keep a snapshot.
        delete(&array, owner);
        nothing_is_shown(&array);
        assert_eq!(array.count(), 0);
    }
}

/// As a service that is killed at that step, or a plugin that is: what was asked for may be done.
#[test]
fn what_is_left_of_any_step_is_taken_back_and_can_be_shown_all_the_same() {
    let array = Array { timeout: SHORT, ..Array::start(SINGLES) };
    let volume = &array.volumes()[0];
    let mut ways = ["conceal", "show", "delete"].iter().cycle();
    for method in THERE {
        for fault in [Fault::Hangs, Fault::WorksAndHangs, Fault::WorksAndDies, refuses(14), refuses(10)] {
            let owner = take(&array);
            // However often it asks.
            (0..40).for_each(|_| array.server.fault(method, fault.clone()));
            let began = Instant::now();
            let error = expose(&array, owner, volume).expect_err("no answer");
            assert!(began.elapsed() < SHORT * 8, "{method} {fault:?}: {:?}", began.elapsed());
            let expected = [Kind::DeadlinePassed, Kind::Unreachable, Kind::Busy];
            assert!(expected.contains(&error.kind), "{method} {fault:?}: {}", told(&error));
            array.server.state().faults.clear();
            match ways.next() {
                Some(&"conceal") => conceal(&array, owner, volume).unwrap(),
                Some(&"show") => {
                    expose(&array, owner, volume).unwrap();
                    conceal(&array, owner, volume).unwrap();
                }
                _ => {}
            }
            delete(&array, owner);
            nothing_is_shown(&array);
        }
    }
}

#[test]
fn every_code_at_every_step_has_its_kind_and_leaves_nothing_or_what_is_taken_back() {
    let array = Array { timeout: SHORT, ..Array::start(SINGLES) };
    let volume = &array.volumes()[0];
    let owner = take(&array);
    for method in THERE {
        for (code, kind) in (1..).zip(KINDS) {
            (0..40).for_each(|_| array.server.fault(method, refuses(code)));
            let error = expose(&array, owner, volume).expect_err("it was refused");
            array.server.state().faults.clear();
            assert_eq!(error.kind, kind, "{method} {code}: {}", told(&error));
            assert!(error.undo_failed.is_none(), "{method} {code}: {}", told(&error));
            // Of a volume 11 is the plugin's word for a size; elsewhere it is tonic's, for an answer that is too large.
            let is_open = matches!(code, 1 | 4 | 10 | 14) || code == 11 && method != method::CREATE_VOLUME;
            if is_open {
                conceal(&array, owner, volume).unwrap();
            }
            nothing_is_shown(&array);
        }
    }
    delete(&array, owner);
}

#[test]
fn what_can_not_be_taken_back_now_is_taken_back_later() {
    let array = Array { timeout: SHORT, ..Array::start(SINGLES) };
    let volume = &array.volumes()[0];
    for method in BACK {
        for fault in [Fault::WorksAndHangs, Fault::WorksAndDies, refuses(13), refuses(9)] {
            let owner = take(&array);
            expose(&array, owner, volume).unwrap();
            array.server.fault(method, fault.clone());
            let error = conceal(&array, owner, volume).expect_err("no answer");
            assert_eq!(error.kind == Kind::Busy, matches!(fault, Fault::Refuses(9, _)), "{}", told(&error));
            array.server.fault(method, fault.clone());
            array.driver().delete(owner).expect_err("no answer");
            // At work on it: waited for. Gone already: fine.
            array.server.fault(method, refuses(10));
            array.server.fault(method, refuses(5));
            if method == method::DELETE_VOLUME {
                array.server.state().faults.clear();
            }
            conceal(&array, owner, volume).unwrap_or_else(|error| {
                // "Gone" was a lie of the step: what comes after it says so, and again is fine.
                assert_eq!(error.kind, Kind::Busy, "{method} {fault:?}: {}", told(&error));
                conceal(&array, owner, volume).unwrap();
            });
            array.server.state().faults.clear();
            array.driver().delete(owner).unwrap();
            nothing_is_shown(&array);
        }
    }
    assert_eq!(array.driver().list().unwrap(), []);
}

#[test]
fn a_volume_that_is_not_the_snapshots_is_refused_and_removed() {
    let array = Array::start(SINGLES);
    let volume = &array.volumes()[0];
    let owner = take(&array);
    array.server.state().makes_empty = true;
    let error = expose(&array, owner, volume).expect_err("it is empty");
    assert_eq!(error.kind, Kind::Unsupported, "{}", told(&error));
    assert!(told(&error).contains("does not say that it is made of the snapshot"), "{}", told(&error));
    nothing_is_shown(&array);
    array.server.state().makes_empty = false;
    let answer = |volume| CreateVolumeResponse { volume }.encode_to_vec();
    let unnamed = Told { volume_id: "a\nb".to_owned(), ..Default::default() };
    for bytes in [answer(None), answer(Some(unnamed)), vec![0xff; 64]] {
        array.server.fault(method::CREATE_VOLUME, Fault::WorksAndAnswers(bytes));
        let error = expose(&array, owner, volume).expect_err("garbage");
        assert_eq!(error.kind, Kind::Failed, "{}", told(&error));
        assert_eq!(array.made(), 1, "it was made");
        conceal(&array, owner, volume).unwrap();
        nothing_is_shown(&array);
    }
    delete(&array, owner);
}

#[test]
fn what_is_read_stays_shown_and_whole_until_it_is_not() {
    for volumes in [Offers::EVERYTHING.volumes, Some(Publishing::SIMPLY)] {
        let array = Array::start(Offers { volumes, ..Offers::EVERYTHING });
        let volume = &array.volumes()[0];
        let owner = take(&array);
        let held = array.hold(&expose(&array, owner, volume).unwrap());
        for error in [conceal(&array, owner, volume).unwrap_err(), array.driver().delete(owner).unwrap_err()]
        {
            assert_eq!(error.kind, Kind::Busy, "{}", told(&error));
        }
        assert!(matches!(&array.driver().list().unwrap()[..], [Found { whole: true, .. }]));
        drop(held);
        harness::wait::wait_until("it is concealed", Duration::from_secs(30), || {
            conceal(&array, owner, volume).is_ok()
        });
        delete(&array, owner);
        nothing_is_shown(&array);
    }
}

#[test]
fn who_makes_no_volumes_or_has_no_node_service_here_shows_nothing_and_says_why() {
    let array = Array::start(SINGLES);
    let volume = &array.volumes()[0];
    let owner = take(&array);
    let second = array.folder().join("node.sock");
    let place = || Place { node_endpoint: Some(second.clone()), ..array.place() };
    let told_by = |place: Place| {
        let driver = Csi::new(place).unwrap();
        let able = (driver.expose().is_some(), driver.abilities().expose, driver.abilities().restore);
        let tried = driver.exposes().unwrap().expose(owner, &volume.serial).map(drop);
        (able, driver.limits(), driver.offers().unwrap(), tried)
    };
    let (able, limits, offers, tried) = told_by(array.place());
    assert!(able.0 && able.1 && able.2 && tried.is_ok(), "{tried:?}");
    assert!(limits.contains("a volume is made of a snapshot"), "{limits}");
    assert!(offers.contains("CREATE_DELETE_VOLUME") && offers.contains(NODE), "{offers}");
    conceal(&array, owner, volume).unwrap();

    let nobody = |place, words: &str, kind| {
        let (able, limits, offers, tried) = told_by(place);
        assert_eq!(able, (false, false, false), "{words}");
        let error = tried.unwrap_err();
        assert_eq!(error.kind, kind, "{}", told(&error));
        assert!(offers.contains(words), "{offers}");
        assert!(!limits.contains('/'), "{limits}");
        limits
    };
    let limits = nobody(place(), "No such file", Kind::Unreachable);
    assert!(limits.contains("no node service"), "{limits}");
    array.server.state().is_node = false;
    nobody(array.place(), "no node service", Kind::Unsupported);
    // Where it has a socket of its own it is found there, and nobody else's is taken for it.
    let node = Server::start(&second, &array.folder(), SINGLES);
    node.state().name = "other.example".to_owned();
    nobody(place(), "node_endpoint", Kind::Unsupported);
    node.state().name = array.server.state().name.clone();
    let (able, ..) = told_by(place());
    assert!(able.0 && able.1);
    array.server.state().is_node = true;
    array.server.state().offers.volumes = None;
    let limits = nobody(array.place(), "CREATE_DELETE_VOLUME", Kind::Unsupported);
    assert!(limits.contains("makes no volumes"), "{limits}");
    array.server.state().offers = SINGLES;
    // The node behind the second socket knew no such volume: whatever was noted of it is taken back.
    conceal(&array, owner, volume).unwrap();
    delete(&array, owner);
    nothing_is_shown(&array);
}

#[test]
fn secrets_and_the_volumes_parameters_reach_the_plugin_and_no_file() {
    let array = Array::start(SINGLES);
    let volume = &array.volumes()[0];
    let secrets = array.folder().join("secrets.toml");
    fs::write(&secrets, "password = \"geheim-123\"\n").unwrap();
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o600)).unwrap();
    let parameters = |tier: &str| [("tier".to_owned(), tier.to_owned())].into();
    let place = |tier| Place {
        secrets_file: Some(secrets.clone()),
        volume_parameters: parameters(tier),
        ..array.place()
    };
    let owner = take(&array);
    let driver = Csi::new(place("gold")).unwrap();
    driver.expose().unwrap().expose(owner, &volume.serial).unwrap();
    assert_eq!(array.server.state().secrets["password"], "geheim-123");
    assert_eq!(array.server.state().volume_parameters["tier"], "gold");
    let spot = array.folder().join(format!(".hostsnap/shown/{}.1", owner.snapshot));
    let note = fs::read_to_string(spot.join("shown.json")).unwrap();
    assert!(note.contains("gold") && !note.contains("geheim"), "{note}");
    assert_eq!(fs::metadata(&spot).unwrap().permissions().mode() & 0o777, 0o700);
    // With others, and as another node, it is made anew.
    array.server.state().node = "node-2".to_owned();
    let driver = Csi::new(place("silver")).unwrap();
    driver.expose().unwrap().expose(owner, &volume.serial).unwrap();
    assert_eq!(array.server.state().volume_parameters["tier"], "silver");
    assert_eq!(array.made(), 1);
    driver.delete(owner).unwrap();
    nothing_is_shown(&array);
}

/// Whatever keeps it from being shown, the volume is as it was, and whoever asked is to try again.
#[test]
fn a_restore_whose_snapshot_can_not_be_shown_has_touched_nothing_and_leaves_nothing() {
    let array = Array { timeout: SHORT, ..Array::start(SINGLES) };
    let volume = &array.volumes()[0];
    array.write(volume, 0x51);
    let owner = take(&array);
    array.write(volume, 0x52);
    let driver = array.driver();
    let able = driver.restore().expect("it can");
    for (method, code, kind) in [
        (method::CREATE_VOLUME, 8, Kind::NoSpace),
        (method::CREATE_VOLUME, 14, Kind::Busy),
        (method::NODE_STAGE, 13, Kind::Busy),
        (method::NODE_PUBLISH, 4, Kind::Busy),
    ] {
        (0..40).for_each(|_| array.server.fault(method, refuses(code)));
        let error =
            able.restore(owner, volume, Others::Machine, &mut |_| panic!("nothing is done")).unwrap_err();
        array.server.state().faults.clear();
        assert_eq!(error.kind, kind, "{}", told(&error));
        assert_eq!(array.driver().read_head(volume, 1).unwrap(), [0x52]);
    }
    // What could not be taken back after it harms nobody: who deletes the snapshot does it.
    array.server.fault(method::DELETE_VOLUME, refuses(14));
    able.restore(owner, volume, Others::Machine, &mut |_| {}).unwrap();
    assert_eq!(array.driver().read_head(volume, 1).unwrap(), [0x51]);
    assert_eq!(array.made(), 1);
    let other = Volume {
        source: Source::Published { volume: "vol-other".to_owned(), path: volume.path().unwrap().to_owned() },
        ..volume.clone()
    };
    let error = able.can_restore(owner, &other, Others::Machine).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported, "{}", told(&error));
    delete(&array, owner);
    nothing_is_shown(&array);
}

/// A storage that makes only volumes of whole gibibytes, say.
#[test]
fn what_the_storage_rounds_up_is_shown_and_restored_as_what_was_cut() {
    let array = Array::start(SINGLES);
    let volume = &array.volumes()[0];
    array.server.state().rounds_up_to = DISK_BYTES + (1 << 20);
    array.write(volume, 0x51);
    let owner = take(&array);
    array.write(volume, 0x52);
    let driver = array.driver();
    driver.restore().expect("it can").restore(owner, volume, Others::Nobody, &mut |_| {}).unwrap();
    assert_eq!(driver.read_head(volume, 1).unwrap(), [0x51]);
    assert_eq!(fs::metadata(volume.path().unwrap()).unwrap().len(), DISK_BYTES);
    delete(&array, owner);
    nothing_is_shown(&array);
}
