//! A QEMU, a service with one snapshot of its disk, and what both know.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::loopfs::{Kind, LoopFs};
use harness::monitor::Monitor;
use harness::process::Process;
use harness::wait::wait_until;
use protocol::attach::{Access, Attach, Attachment, DetachOutcome};
use protocol::message::{Reply, Request};
use protocol::{BoundedVec, Consistency, PORT, SnapshotId, WireError};
use serde_json::{Value, json};

use super::guest::{Guest, hello, request_for};
use super::served::{Folder, Served};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
pub(crate) const IMAGE_BYTES: u64 = 1 << 20;

/// A machine whose service has taken one snapshot.
pub(crate) struct Machine {
    pub(crate) qemu: Process,
    pub(crate) served: Served,
    pub(crate) id: SnapshotId,
    pub(crate) monitor: Monitor,
    nodes_before: BTreeSet<String>,
    store: LoopFs,
}

impl Machine {
    /// A QEMU with these arguments, running without a guest.
    pub(crate) fn new(arguments: &[&str], quota: &str) -> Self {
        Self::with(LoopFs::in_memory(Kind::Xfs, 320), arguments, quota, "driver = \"reflink\"", "")
    }

    /// As `new`, with a disk and its store in this file system, and with lines for each in the configuration.
    pub(crate) fn with(
        store: LoopFs,
        arguments: &[&str],
        quota: &str,
        of_store: &str,
        of_disk: &str,
    ) -> Self {
        let folder = Folder::new("hsa-");
        let at = |name: &str| folder.at(name);
        let image = store.path().join("data.img");
        fs::write(&image, vec![7; usize::try_from(IMAGE_BYTES).unwrap()]).unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-nographic", "-nic", "none"]);
        command.args(["-accel", "tcg", "-m", "32M"]).args(arguments);
        for name in ["qmp", "second"] {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", at(name).display()));
        }
        let mut qemu = Process::start(&mut command, &at("qemu.log"));
        wait_until("QEMU listens", LIMIT, || {
            qemu.must_live();
            at("second").exists()
        });
        let text = format!(
            "[service]\nlisten_vsock = false\nstate_dir = \"{0}/state\"\ncontrol_socket = \"{0}/control\"\n\
             [[store]]\nname = \"files\"\n{of_store}\npath = \"{1}\"\nmin_free = \"1MiB\"\n\
             [[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"{0}/vsock\"\nqmp = \"{0}/qmp\"\n\
             [vm.quota]\n{quota}\n\
             [[vm.disk]]\nserial = \"data\"\nstore = \"files\"\npath = \"{2}\"\nformat = \"raw\"\n{of_disk}\n",
            folder.path().display(),
            store.path().display(),
            image.display(),
        );
        folder.configure(&text);
        let request = request_for(&[("data", IMAGE_BYTES, 7)], Consistency::Filesystem);
        let id = SnapshotId::derive(UUID.parse().unwrap(), request.request);
        let monitor = Monitor::at(&at("second"));
        let nodes_before = BTreeSet::new();
        let served = Served::start_in(folder);
        let mut machine = Self { qemu, served, id, monitor, nodes_before, store };
        machine.nodes_before = machine.nodes();
        machine.guest().take(&request).unwrap();
        machine
    }

    /// The guest, greeted.
    pub(crate) fn guest(&self) -> Guest {
        let mut guest = Guest::connect(&self.served.at(&format!("vsock_{PORT}")));
        assert!(matches!(guest.ask(&hello(None)), Reply::Hello(_)));
        guest
    }

    pub(crate) fn wish(&self, access: Access) -> Request {
        Request::Attach(Attach { id: self.id, disks: BoundedVec::empty(), access })
    }

    pub(crate) fn attach(&self, access: Access) -> Result<Vec<Attachment>, WireError> {
        self.guest().asks(&self.wish(access)).map(attached)
    }

    pub(crate) fn detach(&self) -> Result<DetachOutcome, WireError> {
        match self.guest().asks(&Request::Detach(self.id))? {
            Reply::Detached(outcome) => Ok(outcome),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn attachments(&self) -> Vec<Attachment> {
        attached(self.guest().asks(&Request::Attachments).unwrap())
    }

    /// The block nodes of QEMU that have a name of somebody's.
    fn nodes(&self) -> BTreeSet<String> {
        let nodes = self.monitor.ask("query-named-block-nodes", json!({ "flat": true }));
        let name = |node: &Value| node["node-name"].as_str().unwrap().to_owned();
        nodes.as_array().unwrap().iter().map(name).collect()
    }

    /// The devices of QEMU that are of ours, by name.
    pub(crate) fn devices(&self) -> Vec<String> {
        let list = self.monitor.ask("qom-list", json!({ "path": "/machine/peripheral" }));
        let names = list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned());
        names.filter(|name| name.starts_with("hs-")).collect()
    }

    /// A path in the file system of its store.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.store.path().join(name)
    }

    pub(crate) fn clones(&self) -> usize {
        let folder = self.store.path().join(".hostsnap/clones");
        fs::read_dir(folder).map_or(0, Iterator::count)
    }

    /// What the storage has of the snapshot.
    pub(crate) fn image(&self) -> PathBuf {
        self.store.path().join(".hostsnap").join(UUID).join(self.id.to_string()).join("data.img")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.served.at("state")
    }

    /// Everything is as if nothing had ever been attached.
    #[track_caller]
    pub(crate) fn nothing_is_left(&self, when: &str) {
        assert_eq!(self.attachments(), [], "{when}");
        assert_eq!(self.devices(), [""; 0], "{when}");
        assert_eq!(self.nodes(), self.nodes_before, "{when}");
        assert_eq!(self.monitor.ask("query-fdsets", json!({})), json!([]), "{when}");
        assert_eq!(self.clones(), 0, "{when}");
        let reconciled = self.served.admin(&["reconcile"]);
        let said = String::from_utf8_lossy(&reconciled.stdout);
        assert_eq!(said, "the catalog and the storage agree\n", "{when}\n{}", self.served.printed());
    }
}

fn attached(reply: Reply) -> Vec<Attachment> {
    match reply {
        Reply::Attached(attachments) => attachments.into_inner(),
        other => panic!("{other:?}"),
    }
}

/// Files of a folder whose names begin so are removed.
pub(crate) fn remove_files(folder: &Path, beginning: &str) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(beginning) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}
