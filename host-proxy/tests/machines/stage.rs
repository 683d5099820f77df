//! A QEMU with two disks in a store of the driver reflink, which cuts one after the other; and the service.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::loopfs::{Kind, LoopFs};
use harness::monitor::Monitor;
use harness::process::Process;
use harness::wait::wait_until;
use protocol::PORT;
use protocol::message::Reply;
use serde_json::{Value, json};

use super::guest::{Guest, hello};
use super::served::{Folder, Served};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";

pub(crate) struct Stage {
    pub(crate) qemu: Process,
    pub(crate) served: Served,
    monitor: Monitor,
    store: LoopFs,
}

impl Stage {
    /// With disks of these serials.
    pub(crate) fn new(serials: &[&str]) -> Self {
        let folder = Folder::new("hsm-");
        let at = |name: &str| folder.at(name);
        let store = LoopFs::in_memory(Kind::Xfs, 320);
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-nic",
            "none",
            "-accel",
            "tcg",
            "-m",
            "32M",
        ]);
        let mut disks = String::new();
        for serial in serials {
            let image = store.path().join(format!("{serial}.img"));
            fs::write(&image, vec![7; 1 << 20]).unwrap();
            let node =
                format!("driver=raw,node-name={serial},file.driver=file,file.filename={}", image.display());
            command.args([
                "-blockdev",
                &node,
                "-device",
                &format!("virtio-blk-pci,drive={serial},serial={serial}"),
            ]);
            disks += &format!(
                "[[vm.disk]]\nserial = \"{serial}\"\nstore = \"files\"\npath = \"{}\"\nformat = \"raw\"\n",
                image.display()
            );
        }
        for name in ["qmp", "second", "third"] {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", at(name).display()));
        }
        let mut qemu = Process::start(&mut command, &at("qemu.log"));
        wait_until("QEMU listens", LIMIT, || {
            qemu.must_live();
            at("third").exists()
        });
        let text = format!(
            "[service]\nlisten_vsock = false\nstate_dir = \"{0}/state\"\ncontrol_socket = \"{0}/control\"\n\
             [[store]]\nname = \"files\"\ndriver = \"reflink\"\npath = \"{1}\"\nmin_free = \"1MiB\"\n\
             [[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"{0}/vsock\"\nqmp = \"{0}/qmp\"\n\
             [vm.quota]\nsnapshots = 1000\nper_hour = 100000\n{disks}",
            folder.path().display(),
            store.path().display(),
        );
        folder.configure(&text);
        let monitor = Monitor::at(&at("second"));
        Self { qemu, served: Served::start_in(folder), monitor, store }
    }

    /// Takes a snapshot without the guest; its record.
    #[track_caller]
    pub(crate) fn cut_alone(&self) -> Value {
        let output = self.served.admin(&["create", "db1", "--no-agent", "--json"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{}", self.served.printed());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Its guest, which has greeted.
    pub(crate) fn guest(&self) -> Guest {
        let mut guest = Guest::connect(&self.served.at(&format!("vsock_{PORT}")));
        assert!(matches!(guest.ask(&hello(None)), Reply::Hello(_)));
        guest
    }

    /// What QEMU says of itself: `running`, `paused`.
    pub(crate) fn status(&self) -> String {
        self.monitor.ask("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn ask(&self, command: &str) {
        self.tell(command, json!({}));
    }

    pub(crate) fn tell(&self, command: &str, arguments: Value) {
        self.monitor.ask(command, arguments);
    }

    /// Where the disks and their snapshots are.
    pub(crate) fn store(&self) -> PathBuf {
        self.store.path()
    }

    pub(crate) fn events(&self) -> Events {
        Events::of(&self.served.at("third"))
    }

    /// How many snapshots, whole or not, the storage has.
    pub(crate) fn on_storage(&self) -> usize {
        let folder = self.store.path().join(".hostsnap").join(UUID);
        fs::read_dir(folder).map_or(0, Iterator::count)
    }
}

/// What happens to a machine.
pub(crate) struct Events(UnixStream);

impl Events {
    fn of(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        writeln!(stream, "{}", json!({ "execute": "qmp_capabilities" })).unwrap();
        Self(stream)
    }

    /// The names of all events until now.
    pub(crate) fn until_now(mut self) -> Vec<String> {
        writeln!(self.0, "{}", json!({ "execute": "query-name", "id": "end" })).unwrap();
        let mut names = Vec::new();
        for line in BufReader::new(self.0).lines() {
            let said: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if said["id"] == "end" {
                break;
            }
            names.extend(said["event"].as_str().map(str::to_owned));
        }
        names
    }
}
