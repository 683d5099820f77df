//! The host itself loses power, in the middle of making and deleting snapshots, several times. It is a
//! virtual machine with a store on XFS and one on btrfs, on disks of its own: the reset button takes its
//! memory, and with it whatever its kernel had not given to the disks.
//!
//! What was acknowledged is told over a serial port before the next thing is done, so the test knows of
//! each promise that was made before the power went.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::assets;
use harness::initramfs::Tools;
use harness::vm::{Plan, Vm, blank_image};
use harness::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(180);
const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
/// How many promises are waited for before each power cut. They differ, so that the power goes at another
/// point each time.
const ROUNDS: [usize; 3] = [7, 12, 9];

const CONFIG: &str = r#"
[service]
listen_vsock = false
state_dir = "/x/state"
control_socket = "/run/control.sock"
[[store]]
name = "x"
driver = "reflink"
path = "/x"
min_free = "1MiB"
[[store]]
name = "b"
driver = "btrfs"
path = "/b"
min_free = "1MiB"
[[vm]]
name = "app"
uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01"
socket = "/run/nobody"
quota = { snapshots = 1000, per_hour = 100000 }
disk = [
    { serial = "data", store = "x", path = "/x/data.img", format = "raw" },
    { serial = "log", store = "b", path = "/b/log.img", format = "raw" },
]
"#;

/// Changes both disks, takes a snapshot, tells; deletes every third one, tells. For ever.
const WORK: &str = r#"
exec 3> "$1"
made=""
i=0
while :; do
    i=$((i + 1))
    for image in /x/data.img /b/log.img; do
        head -c 8192 /dev/urandom | dd of=$image bs=8192 seek=$((i % 64)) conv=notrunc 2> /dev/null
    done
    sums=$(sha256sum /x/data.img /b/log.img | cut -c 1-64 | tr '\n' ' ')
    id=$(hostsnapd create app --consistency crash --json --control /run/control.sock 2> /run/create.err \
        | tr ',{' '\n\n' | sed -n 's/^ *"id": *"\([^"]*\)".*/\1/p' | head -n 1)
    test -n "$id" || { echo "failed $(tr '\n' ' ' < /run/create.err)" >&3; continue; }
    echo "made $id $sums" >&3
    made="$made $id"
    if test $((i % 3)) = 0; then
        set -- $made
        echo "asked $1" >&3
        hostsnapd delete $1 --control /run/control.sock > /dev/null 2>&1 && echo "gone $1" >&3
        shift
        made="$*"
    fi
done
"#;

/// What the host was told, over all its lives.
#[derive(Default)]
struct Told {
    /// Each acknowledged snapshot, and what the disks held when it was taken.
    made: BTreeMap<String, String>,
    asked: BTreeSet<String>,
    gone: BTreeSet<String>,
    failed: Vec<String>,
}

impl Told {
    fn hear(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["made", id, data, log] => drop(self.made.insert(id.to_owned(), format!("{data} {log}"))),
            ["asked", id] => drop(self.asked.insert(id.to_owned())),
            ["gone", id] => drop(self.gone.insert(id.to_owned())),
            // The power went in the middle of a line: it was not told.
            ["failed", ..] => self.failed.push(line.to_owned()),
            _ => {}
        }
    }

    fn promises(&self) -> usize {
        self.made.len() + self.gone.len()
    }
}

fn listen(vm: &Vm) -> Arc<Mutex<Told>> {
    let told = Arc::new(Mutex::new(Told::default()));
    let hearing = Arc::clone(&told);
    let port = UnixStream::connect(vm.port("told")).unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(port).lines().map_while(Result::ok) {
            hearing.lock().unwrap().hear(&line);
        }
    });
    told
}

/// Mounts both stores and starts the service, which compares its catalog with them.
fn start(vm: &Vm) {
    vm.guest.sh(&format!(
        "mkdir -p /x /b && mount -t xfs /dev/vda /x && mount -t btrfs /dev/vdb /b &&
         cat > /run/hostsnapd.toml <<'END'\n{CONFIG}\nEND\n
         cat > /run/work <<'END'\n{WORK}\nEND"
    ));
    vm.guest.spawn("exec hostsnapd serve --config /run/hostsnapd.toml > /run/hostsnapd.log 2>&1");
    wait_until("hostsnapd answers", LIMIT, || {
        vm.guest.run("hostsnapd vms --control /run/control.sock").status == 0
    });
}

/// The names of all snapshots in both stores; of those that are not whole they have endings.
fn on_storage(vm: &Vm) -> BTreeSet<String> {
    let names = vm.guest.sh(&format!("ls /x/.hostsnap/{UUID} /b/.hostsnap/{UUID} 2> /dev/null || true"));
    names.lines().filter(|line| !line.is_empty() && !line.starts_with('/')).map(str::to_owned).collect()
}

fn list(vm: &Vm) -> BTreeMap<String, serde_json::Value> {
    let listed = vm.guest.json("hostsnapd list --json --control /run/control.sock");
    let entry = |record: &serde_json::Value| (record["id"].as_str().unwrap().to_owned(), record.clone());
    listed.as_array().unwrap().iter().map(entry).collect()
}

fn sums(vm: &Vm, id: &str) -> String {
    let script = format!(
        "sha256sum /x/.hostsnap/{UUID}/{id}/data.img /b/.hostsnap/{UUID}/{id}/disk-log | cut -c 1-64 | tr '\\n' ' '"
    );
    vm.guest.sh(&script).trim().to_owned()
}

#[test]
fn a_host_that_loses_power_again_and_again_keeps_every_snapshot_that_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = Plan::new("power")
        .tools([Tools::Xfs, Tools::Btrfs])
        .file(&assets::guest_program("hostsnapd"), "/usr/bin/hostsnapd")
        .disk(&blank_image(folder.path(), "x.img", 400), "x")
        .disk(&blank_image(folder.path(), "b.img", 400), "b")
        .port("told")
        .boot();
    vm.guest.sh(
        "mkfs.xfs -q /dev/vda && mkfs.btrfs -q /dev/vdb && mkdir -p /x /b && mount -t btrfs /dev/vdb /b &&
         mount -t xfs /dev/vda /x &&
         head -c 1048576 /dev/urandom > /x/data.img && head -c 1048576 /dev/urandom > /b/log.img &&
         sync && umount /x && umount /b",
    );
    let told = listen(&vm);
    for promises in ROUNDS {
        start(&vm);
        let before = told.lock().unwrap().promises();
        vm.guest.spawn(
            "port=/dev/$(basename $(dirname $(grep -lx told /sys/class/virtio-ports/*/name))); exec sh /run/work $port",
        );
        wait_until("promises are made", LIMIT, || {
            let told = told.lock().unwrap();
            assert!(told.failed.is_empty(), "{:?}", told.failed);
            told.promises() >= before + promises
        });
        vm.reset();

        start(&vm);
        let told = told.lock().unwrap();
        let mut listed = BTreeMap::new();
        // Nothing is half there, and nothing that nobody knows.
        wait_until("what was interrupted is finished or undone", LIMIT, || {
            listed = list(&vm);
            let ready = listed.values().all(|record| record["state"] == "ready");
            ready && on_storage(&vm) == listed.keys().cloned().collect()
        });
        for (id, held) in told.made.iter().filter(|(id, _)| !told.asked.contains(*id)) {
            let record =
                listed.get(id.as_str()).unwrap_or_else(|| panic!("{id} was acknowledged and is lost"));
            assert_eq!(record["state"], "ready", "{record}");
            assert_eq!(sums(&vm, id), *held, "{id} is not what was cut");
        }
        for id in &told.gone {
            assert!(!listed.contains_key(id), "{id} was deleted and is back");
        }
        drop(told);
        let report = vm.guest.json("hostsnapd reconcile --json --control /run/control.sock");
        let clean = report.as_object().unwrap().values().all(|found| found.as_array().unwrap().is_empty());
        assert!(clean, "{report}");
        vm.guest.sh("kill $(pidof hostsnapd); sleep 1; umount /x; umount /b");
    }
    let told = told.lock().unwrap();
    assert!(
        told.made.len() >= 18 && told.gone.len() >= 3,
        "{} made, {} gone",
        told.made.len(),
        told.gone.len()
    );
}
