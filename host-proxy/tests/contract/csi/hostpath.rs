//! The Kubernetes CSI host-path driver, by hand: no registry has it, so no run of all tests does. How to get it is in
//! docs/decisions/0014-csi.md. As root:
//!
//! ```sh
//! HOSTSNAP_HOSTPATHPLUGIN=/path/to/hostpathplugin \
//!     cargo test -p host-proxy --test contract hostpath -- --ignored
//! ```

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use harness::process::Process;
use harness::wait::wait_until;
use host_proxy::drivers::csi::{Csi, Place};
use host_proxy::drivers::{Driver, Format, Recovered, Source, Volume};
use serde_json::{Value, json};

use crate::DISK_BYTES;
use crate::bench::{Bench, Filler, Foreign, ForeignFiles};

/// All of the contract but what this driver does not know: a full pool.
#[test]
#[ignore = "needs the Kubernetes CSI host-path driver: HOSTSNAP_HOSTPATHPLUGIN"]
fn the_kubernetes_hostpath_driver_keeps_the_contract() {
    for (lists, group_snapshots) in [(true, true), (true, false), (false, false)] {
        let bench = HostPath::start(lists, group_snapshots);
        crate::what_is_cut_is_what_was_there_and_nothing_later(&bench);
        crate::a_repeat_finds_what_is_there(&bench);
        crate::only_ours_is_listed_and_what_is_foreign_stays(&bench);
        crate::what_is_deleted_twice_was_absent(&bench);
        crate::what_is_not_there_can_not_be_snapshot(&bench);
        crate::after_the_deadline_nothing_is_begun_and_nothing_left(&bench);
        crate::what_was_concealed_is_shown_again(&bench);
        crate::export::what_is_served_is_the_snapshot_and_what_changed_is_marked(&bench);
        crate::restore::what_was_at_the_cut_is_there_again(&bench);
        crate::what_is_in_use_is_busy(&bench);
        crate::what_is_abandoned_leaves_nothing(&bench);
        crate::what_a_crash_leaves_is_recovered(&bench);
        assert!(bench.driver().changes().is_some(), "it has the service");
        crate::changes::what_changed_between_two_snapshots_is_told(&bench);
        bench.nothing_is_left();
        a_lost_note_costs_nothing_where_it_lists(&bench, lists);
        two_snapshots_of_one_volume_are_both_whole(&bench);
        bench.nothing_is_left();
    }
}

fn a_lost_note_costs_nothing_where_it_lists(bench: &HostPath, lists: bool) {
    let owner = crate::owner();
    drop(crate::prepare(bench, owner).cut(crate::soon()).unwrap());
    let partial = format!(".hostsnap/{}/{}.partial/cut.json", owner.vm, owner.snapshot);
    fs::write(bench.place.folder.join(partial), b"").unwrap();
    match bench.driver().recover(owner, &bench.volumes()).unwrap() {
        Recovered::Cut(cut) => cut.abandon().unwrap(),
        Recovered::Nothing => assert!(!lists),
        Recovered::Whole => panic!("it was never sealed"),
    }
}

fn two_snapshots_of_one_volume_are_both_whole(bench: &HostPath) {
    let taken = [crate::take(bench), crate::take(bench)];
    assert_eq!(bench.driver().list().unwrap().iter().filter(|found| found.whole).count(), 2);
    taken.into_iter().for_each(|owner| crate::delete(bench, owner));
}

/// The driver, with two block volumes that it believes it has made.
struct HostPath {
    place: Place,
    state: PathBuf,
    _process: Process,
    _folder: tempfile::TempDir,
}

/// By the serials of the disks.
const VOLUMES: [(&str, &str); 2] = [("one", "vol-1"), ("../two", "vol-2")];

impl HostPath {
    fn start(lists: bool, group_snapshots: bool) -> Self {
        let program =
            env::var_os("HOSTSNAP_HOSTPATHPLUGIN").expect("HOSTSNAP_HOSTPATHPLUGIN names the program");
        let folder = tempfile::Builder::new().prefix("hscsi-").tempdir_in("/tmp").unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("store")).unwrap();
        fs::create_dir(at("state")).unwrap();
        let volumes = VOLUMES.map(|(_, id)| {
            let file = at("state").join(id);
            File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
            json!({ "VolName": id, "VolID": id, "VolSize": DISK_BYTES, "VolPath": file, "VolAccessType": 1 })
        });
        fs::write(at("state").join("state.json"), json!({ "Volumes": volumes }).to_string()).unwrap();
        let mut command = Command::new(program);
        command.arg("--endpoint").arg(format!("unix://{}", at("csi.sock").display()));
        command.arg("--statedir").arg(at("state"));
        command.args(["--drivername", "hostpath.csi.k8s.io", "--nodeid", "node", "-v", "5"]);
        command.arg(format!("--enable-list-snapshots={lists}"));
        // It refuses then what comes in the wrong order.
        command.args(["--check-volume-lifecycle=true", &format!("--enable-attach={lists}")]);
        command.arg(format!("--enable-topology={lists}"));
        // Both of the ways in which CSI lets a plugin tell ranges.
        let blocks = if lists { "FIXED_LENGTH" } else { "VARIABLE_LENGTH" };
        command.args(["--enable-snapshot-metadata=true", "--snapshot-metadata-block-type", blocks]);
        let mut process = Process::start(&mut command, &at("log"));
        wait_until("the plugin", Duration::from_secs(20), || {
            process.must_live();
            UnixStream::connect(at("csi.sock")).is_ok()
        });
        let place = Place {
            endpoint: at("csi.sock"),
            node_endpoint: None,
            folder: at("store"),
            parameters: BTreeMap::new(),
            volume_parameters: BTreeMap::new(),
            secrets_file: None,
            timeout: Duration::from_secs(20),
            group_snapshots,
        };
        Self { place, state: at("state"), _process: process, _folder: folder }
    }

    /// What the driver itself says that it has.
    fn has(&self, what: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.state.join("state.json")).unwrap();
        let state: Value = serde_json::from_str(&text).unwrap();
        state[what].as_array().cloned().unwrap_or_default()
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.driver().list().unwrap(), []);
        assert_eq!(self.has("Snapshots"), [] as [Value; 0]);
        assert_eq!(self.has("Volumes").len(), VOLUMES.len());
    }
}

impl Bench for HostPath {
    fn driver(&self) -> Box<dyn Driver> {
        Box::new(Csi::new(self.place.clone()).unwrap())
    }

    fn volumes(&self) -> Vec<Volume> {
        let volume = |(serial, id): &(&str, &str)| Volume {
            serial: serial.parse().unwrap(),
            source: Source::Published { volume: (*id).to_owned(), path: self.state.join(id) },
            format: Format::Raw,
            qmp: None,
        };
        VOLUMES.iter().map(volume).collect()
    }

    fn absent(&self) -> Source {
        Source::Published { volume: "absent".to_owned(), path: self.state.join("vol-1") }
    }

    fn leave_foreign(&self) -> Box<dyn Foreign + '_> {
        ForeignFiles::leave(&self.place.folder)
    }

    fn write(&self, volume: &Volume, byte: u8) {
        let file = File::options().write(true).open(volume.path().unwrap()).unwrap();
        file.write_all_at(&[byte; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
    }

    fn fill(&self) -> Option<Box<dyn Filler + '_>> {
        None
    }
}
