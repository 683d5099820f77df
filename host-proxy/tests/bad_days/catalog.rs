//! A catalog that is damaged, and a state folder that another service has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use protocol::Consistency;
use protocol::message::{Prepare, Reply, Request};
use serde_json::Value;

use super::stage::{Stage, request};

#[test]
fn a_damaged_catalog_is_said_kept_and_rebuilt_on_command_with_all_that_was_in_it() {
    let mut stage = Stage::set();
    // All that a record can say: labels, a note, an end, evidence, and one that claims no more than a crash.
    let labels = BTreeMap::from([("why".parse().unwrap(), "upgrade".parse().unwrap())]);
    let wanted = Prepare {
        labels: labels.try_into().unwrap(),
        note: "before the upgrade".parse().unwrap(),
        keep_for_s: Some(86_400),
        ..request(Consistency::Filesystem)
    };
    let snapshot = stage.take(&wanted).unwrap();
    stage.take(&request(Consistency::Crash)).unwrap();
    let shown = |stage: &Stage| -> Vec<Value> {
        stage.listed().iter().map(|id| stage.admin(&["show", id, "--json"]).json()).collect()
    };
    let before = shown(&stage);
    assert!(before.len() == 2 && before[1]["labels"]["why"] == "upgrade", "{before:?}");
    assert!(before[1]["expires_at"].is_string(), "{before:?}");
    stage.kill();

    // Both halves of what a crash of the disk may leave: the log with it.
    let _ = fs::remove_file(stage.catalog().with_extension("sqlite-wal"));
    let garbled = vec![0xa5; 20_000];
    fs::write(stage.catalog(), &garbled).unwrap();
    let refused = stage.offline(&["serve"]);
    assert_eq!(refused.code, 8, "{}", refused.err);
    assert!(refused.err.contains("is damaged") && refused.err.contains("rebuild-catalog"), "{}", refused.err);
    assert!(fs::read(stage.catalog()).unwrap() == garbled, "it was overwritten");

    let rebuilt = stage.offline(&["rebuild-catalog", "--json"]);
    assert_eq!(rebuilt.json()["adopted"].as_array().unwrap().len(), 2, "{}", rebuilt.err);
    let (_, aside) = rebuilt.err.trim().split_once("the old catalog is now ").expect("it says where it is");
    assert!(fs::read(aside).unwrap() == garbled, "it was overwritten");

    stage.start();
    assert_eq!(shown(&stage), before);
    // The same request is still the same snapshot, with the evidence that is not shown.
    let Reply::Existing(again) = stage.greeted().ask(&Request::Prepare(wanted)) else {
        panic!("a second one")
    };
    assert!(again.evidence.is_some() && again == snapshot, "{again:?}\n{snapshot:?}");
    stage.take(&request(Consistency::Filesystem)).unwrap();
}

#[test]
fn a_snapshot_whose_manifest_is_broken_is_as_it_was_until_its_catalog_is_lost_and_then_named() {
    let mut stage = Stage::set();
    let ids: Vec<_> = (0..4).map(|_| stage.take(&request(Consistency::Filesystem)).unwrap().id).collect();
    let manifest = |id| stage.kept(id).with_file_name("manifest.json");
    for broken in [&ids[0], &ids[2]] {
        fs::write(manifest(broken), b"{ \"hostsnap_manifest\": 1, \"rec").unwrap();
    }
    fs::remove_file(manifest(&ids[1])).unwrap();
    stage.restart();
    assert_eq!(stage.listed().len(), 4, "{}", stage.printed());
    // This one gets its manifest back: a restore from it stands there.
    assert_eq!(stage.admin(&["restore", "db1", &ids[2].to_string(), "--no-safety"]).code, 0);

    stage.kill();
    let rebuilt = stage.offline(&["rebuild-catalog", "--json"]);
    let told: Value = serde_json::from_str(&rebuilt.out).unwrap();
    let adopted: BTreeSet<&str> =
        told["adopted"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    let whole: Vec<String> = ids[2..].iter().map(ToString::to_string).collect();
    assert_eq!(adopted, whole.iter().map(String::as_str).collect(), "{told}");
    for id in &ids[..2] {
        let problems = told["problems"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
        assert!(
            problems.clone().any(|one| one.contains(&id.to_string()) && one.contains("manifest")),
            "{told}"
        );
        assert!(stage.kept(id).exists(), "its bytes are there still");
    }
    stage.start();
    assert_eq!(stage.listed().len(), 2);
}

#[test]
fn a_second_service_on_the_same_state_is_refused_and_the_first_goes_on() {
    let stage = Stage::set();
    let second = stage.offline(&["serve"]);
    assert_eq!(second.code, 6, "{}", second.err);
    assert!(second.err.contains("another hostsnapd") && second.err.contains("stop it"), "{}", second.err);
    let rebuild = stage.offline(&["rebuild-catalog", "--json"]);
    assert_eq!(rebuild.code, 6);
    assert!(rebuild.error()["message"].as_str().unwrap().contains("stop it first"), "{}", rebuild.err);
    stage.take(&request(Consistency::Filesystem)).unwrap();
}
