//! A snapshot in the machine that it is of: attached, read, written to as a clone, taken out.

use std::collections::BTreeSet;
use std::fs;

use harness::monitor::Monitor;
use harness::vm::Plan;
use serde_json::{Value, json};

use super::stage::Stage;

/// A machine that takes one disk by PCIe and any number by SCSI, and what QEMU had before anything was
/// attached to it.
struct Scene {
    stage: Stage,
    monitor: Monitor,
    before: BTreeSet<String>,
}

impl Scene {
    fn set(driver: &'static str, name: &str) -> Self {
        let plan = Plan::new(name).slots(1).takes_scsi();
        let stage = Stage::planned(plan, driver, &["data"], "");
        stage.mount("/dev/vda", "/data");
        let monitor = Monitor::at(&stage.vm.second_monitor());
        let mut scene = Self { stage, monitor, before: BTreeSet::new() };
        scene.before = scene.nodes();
        scene
    }

    /// A snapshot of a file that holds this word.
    fn snapshot_of(&self, word: &str) -> String {
        self.sh(&format!("echo {word} > /data/word"));
        self.stage.create("/data")["id"].as_str().expect("an id").to_owned()
    }

    fn sh(&self, script: &str) -> String {
        self.stage.vm.guest.sh(script)
    }

    #[track_caller]
    fn attach(&self, arguments: &str) -> Value {
        self.stage.vm.guest.json(&format!("hostsnap --json attach {arguments}"))
    }

    /// What the file holds in an attached disk.
    #[track_caller]
    fn word_in(&self, attached: &Value) -> String {
        let path = attached["disks"][0]["path"].as_str().expect("a path");
        self.sh(&format!("mkdir -p /there && mount -o ro {path} /there && cat /there/word && umount /there"))
            .trim()
            .to_owned()
    }

    #[track_caller]
    fn detach(&self, id: &str) {
        let outcome = self.stage.vm.guest.json(&format!("hostsnap --json detach {id}"));
        assert_eq!(outcome[0]["detached"], true, "{outcome}");
    }

    /// The block nodes that QEMU has.
    fn nodes(&self) -> BTreeSet<String> {
        let nodes = self.monitor.ask("query-named-block-nodes", json!({ "flat": true }));
        let name = |node: &Value| node["node-name"].as_str().expect("a name").to_owned();
        nodes.as_array().expect("a list").iter().map(name).collect()
    }

    fn clones(&self) -> usize {
        fs::read_dir(self.stage.store.path().join(".hostsnap/clones")).map_or(0, Iterator::count)
    }

    /// Everything is as if nothing had ever been attached.
    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(self.nodes(), self.before);
        assert_eq!(self.monitor.ask("query-fdsets", json!({})), json!([]));
        assert_eq!(self.clones(), 0);
        assert_eq!(self.sh("cat /sys/block/*/serial 2>/dev/null | grep -c hs- || true").trim(), "0");
        let listed = self.stage.vm.guest.json("hostsnap --json list");
        assert!(listed.as_array().unwrap().iter().all(|one| one["attached"] == json!([])), "{listed}");
        assert_eq!(self.stage.service.json(&["reconcile"])["detached"], json!([]));
    }
}

#[test]
fn a_snapshot_is_attached_beside_its_disk_read_over_a_reboot_and_taken_out_with_nothing_left() {
    let mut scene = Scene::set("btrfs", "attach");
    let old = scene.snapshot_of("old");
    let new = scene.snapshot_of("new");
    scene.sh("echo later > /data/word; sync");

    // The first takes the PCIe slot, the second the SCSI controller, and each is what it was.
    let first = scene.attach(&old);
    assert_eq!(scene.attach(&old), first, "a repeat gives what is there");
    let second = scene.attach(&new);
    assert_eq!((scene.word_in(&first), scene.word_in(&second)), ("old".to_owned(), "new".to_owned()));
    let path = first["disks"][0]["path"].as_str().unwrap().to_owned();
    assert!(path.starts_with("/dev/vd"), "{first}");
    assert!(second["disks"][0]["path"].as_str().unwrap().starts_with("/dev/sd"), "{second}");
    assert_ne!(scene.stage.vm.guest.run(&format!("dd if=/dev/zero of={path} bs=4k count=1")).status, 0);

    // What is mounted from it is none of the machine's own disks.
    scene.sh(&format!("mount -o ro {path} /there"));
    let all = scene.stage.create("--all");
    assert_eq!(all["disks"].as_array().map(Vec::len), Some(1), "{all}");

    // In use it is neither taken out nor deleted; each says what to do.
    let busy = scene.stage.vm.guest.run(&format!("hostsnap detach {old}"));
    assert_eq!(busy.status, 6, "{}", busy.stderr);
    assert!(busy.stderr.contains(&path) && busy.stderr.contains("unmount"), "{}", busy.stderr);
    let refused = scene.stage.vm.guest.run(&format!("hostsnap delete --yes {old}"));
    assert_eq!(refused.status, 6, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("hostsnap detach {old}")), "{}", refused.stderr);
    assert_eq!(scene.stage.service.admin(&["delete", &old]).status.code(), Some(6));

    // A reboot keeps it attached, and the original is what it was.
    scene.stage.vm.reset();
    scene.sh("mkdir -p /data && mount /dev/vda /data && grep later /data/word");
    let listed = scene.stage.vm.guest.json("hostsnap --json list");
    let shown = listed.as_array().unwrap().iter().find(|one| one["id"] == *old).unwrap();
    assert_eq!(shown["attached"][0]["serial"], first["disks"][0]["serial"]);
    assert_eq!(scene.word_in(&scene.attach(&old)), "old");

    scene.detach(&old);
    scene.detach(&new);
    scene.nothing_is_left();
    let again = scene.stage.vm.guest.json(&format!("hostsnap --json detach {old}"));
    assert_eq!(again[0]["detached"], false, "{again}");
    scene.sh(&format!("hostsnap delete --yes {old}"));

    a_clone_is_written_to_and_thrown_away(&scene, &new);
    a_machine_that_is_stopped_has_nothing_attached(&mut scene, &new);
}

fn a_clone_is_written_to_and_thrown_away(scene: &Scene, id: &str) {
    let clone = scene.attach(&format!("{id} data --writable"));
    let path = clone["disks"][0]["path"].as_str().unwrap();
    scene.sh(&format!("mount {path} /there && echo mine > /there/word && sync"));
    assert_eq!(scene.sh("cat /there/word").trim(), "mine");
    assert_eq!(scene.clones(), 1);
    let other_way = scene.stage.vm.guest.run(&format!("hostsnap attach {id}"));
    assert_eq!(other_way.status, 6, "{}", other_way.stderr);
    assert!(other_way.stderr.contains("attached already, writable"), "{}", other_way.stderr);
    scene.sh("umount /there");
    scene.detach(id);
    scene.nothing_is_left();
    assert_eq!(scene.word_in(&scene.attach(id)), "new", "the snapshot itself is as it was");
    // The administrator's way out.
    let out = scene.stage.service.json(&["detach", id]);
    assert_eq!(out[0]["detached"], true, "{out}");
    scene.nothing_is_left();
}

fn a_machine_that_is_stopped_has_nothing_attached(scene: &mut Scene, id: &str) {
    scene.attach(&format!("{id} --writable"));
    assert_eq!(scene.clones(), 1);
    scene.stage.vm.kill();
    let report = scene.stage.service.json(&["reconcile"]);
    assert_eq!(report["detached"], json!([id]), "{report}");
    assert_eq!(scene.clones(), 0);
    assert!(scene.stage.service.admin(&["delete", id]).status.success());
}
