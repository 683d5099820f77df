//! What a storage can do is told, by `check` and to the guest; two snapshots are compared, and what can't be compared is said.

use std::fs::File;
use std::os::unix::fs::FileExt;

use protocol::Consistency;
use protocol::message::{Reply, Request};
use serde_json::json;

use super::stage::{Stage, request};

#[test]
fn what_the_storage_of_a_disk_can_do_is_told_to_the_administrator_and_to_its_guest() {
    let stage = Stage::set();
    let check = stage.offline(&["check", "--json"]).json();
    let disk = check.as_array().unwrap().iter().find(|one| one["what"] == "disk data of db1").unwrap();
    assert_eq!(
        (&disk["driver"], &disk["abilities"]),
        (&json!("reflink"), &json!(["expose", "changes", "restore"]))
    );
    assert_eq!(disk["floor_bytes"], 1 << 20);
    assert!(disk["free_bytes"].as_u64().unwrap() > 1 << 20, "{disk}");
    let limits = disk["limits"].as_str().unwrap();
    let shown = stage.offline(&["check"]).out;
    assert!(shown.contains("can: expose, changes, restore") && shown.contains(limits), "{shown}");

    let Reply::Abilities(told) = stage.greeted().ask(&Request::Abilities) else { panic!("no abilities") };
    let [told] = &told[..] else { panic!("{told:?}") };
    let words: Vec<_> = told.abilities.iter().map(|word| word.as_str()).collect();
    assert_eq!((told.serial.as_str(), words), ("data", vec!["expose", "changes", "restore"]));
    assert_eq!((told.limits.as_str(), told.floor_bytes), (limits, 1 << 20));
    assert!(told.free_bytes.is_some(), "{told:?}");

    // What it may not list, it is not told either.
    stage.configure(&stage.config_text().replace("[[vm]]", "[[vm]]\nallow = [\"create\"]"));
    stage.signal(rustix::process::Signal::HUP);
    harness::wait::wait_until(
        "the new configuration is in force",
        super::stage::LIMIT,
        || matches!(stage.greeted().ask(&Request::Abilities), Reply::Error(error) if error.code.exit_code() == 4),
    );
}

#[test]
fn what_changed_between_two_snapshots_is_told_and_what_can_not_be_compared_is_said() {
    let mut stage = Stage::set();
    let before = stage.take(&request(Consistency::Filesystem)).unwrap().id.to_string();
    let image = File::options().write(true).open(stage.image()).unwrap();
    image.write_all_at(&[8; 10_000], 512 << 10).unwrap();
    image.sync_all().unwrap();
    let after = stage.take(&request(Consistency::Filesystem)).unwrap().id.to_string();

    let told = stage.admin(&["changes", &before, &after, "--json"]).json();
    assert_eq!((&told["from"], &told["to"]), (&json!(before), &json!(after)));
    let [disk] = &told["disks"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!(
        (&disk["disk"], &disk["driver"], &disk["size_bytes"]),
        (&json!("data"), &json!("reflink"), &json!(1 << 20))
    );
    // In whole blocks.
    assert_eq!(disk["extents"], json!([{ "offset": 512 << 10, "length": 12_288 }]));
    assert_eq!(disk["changed_bytes"], 12_288);
    let shown = stage.admin(&["changes", &before, &after, "--disk", "data"]).out;
    assert!(shown.contains("12.0 KiB of 1.0 MiB in 1 extents"), "{shown}");
    let same = stage.admin(&["changes", &after, &after, "--json"]).json();
    assert_eq!(same["disks"][0]["extents"], json!([]));

    for (arguments, code, words) in [
        (["changes", &before, &after, "--disk", "other"].as_slice(), 5, "no disk other is in both"),
        (&["changes", &before, "ffff"], 5, "no snapshot ffff"),
    ] {
        let run = stage.admin(&[arguments, &["--json"]].concat());
        let error = run.error();
        assert_eq!(run.code, code, "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }

    // A disk that is somewhere else now: its snapshots are not looked for in the wrong place.
    stage.kill();
    stage.configure(&stage.config_text().replace("serial = \"data\"", "serial = \"renamed\""));
    stage.start();
    let run = stage.admin(&["changes", &before, &after, "--json"]);
    let error = run.error();
    assert_eq!(run.code, 5, "{error}");
    assert!(error["message"].as_str().unwrap().contains("has no disk data of db1"), "{error}");
}
