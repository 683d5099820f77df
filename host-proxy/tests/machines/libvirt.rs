//! Machines of a real libvirtd: found, followed, paused, and disks plugged into them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::slice;
use std::time::{Duration, Instant};

use harness::wait::wait_until;
use protocol::attach::{Access, Attach, DetachOutcome};
use protocol::message::{Prepare, Reply, Request};
use protocol::{BoundedVec, Consistency, ErrorCode, PORT, RequestId, SnapshotId, WireError};
use rustix::process::Signal;

use super::domains::{Domains, IMAGE_BYTES, UUID};
use super::guest::{Guest, hello, request_for};
use super::stage::LIMIT;

const OTHER: &str = "4f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f02";
const THIRD: &str = "5f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f03";
const VSOCK: &str = "<vsock model='virtio'><cid auto='no' address='42'/></vsock>";

#[test]
fn machines_of_libvirt_need_no_entry_and_are_followed_paused_and_let_go_on() {
    let mut host = Domains::new("");
    assert_eq!(host.machines(), [""; 0]);
    host.libvirtd.define(&host.xml("db1", UUID, &[("vda", "data"), ("vdb", "log"), ("vdc", "")], ""));
    host.libvirtd.define(&host.xml("db2", OTHER, &[("vda", "data")], VSOCK));
    host.wait_for_machines(&["db1: nowhere, data log", "db2: nowhere, data"]);
    host.libvirtd.must(&["start", "db1"]);
    let failing = host.failing().join("\n");
    assert!(failing.contains("vdc of db1: left out: neither its guest nor the host"), "{failing}");
    assert!(failing.contains("add <serial>vdc</serial> to its <disk>"), "{failing}");
    assert!(failing.contains("db1: left out: its guest can't ask"), "{failing}");

    let snapshot = host.json(&["create", "db1", "--no-agent"]);
    let reason = snapshot["consistency_reason"].as_str().unwrap();
    assert!(reason.contains("the machine was paused for"), "{reason}");
    assert_eq!(host.state_of("db1"), "running");
    host.libvirtd.must(&["suspend", "db1"]);
    let snapshot = host.json(&["create", "db1", "--no-agent"]);
    assert!(snapshot["consistency_reason"].as_str().unwrap().contains("somebody else"), "{snapshot}");
    assert_eq!(host.state_of("db1"), "paused");
    host.libvirtd.must(&["resume", "db1"]);

    // A libvirtd that hangs holds nobody up for longer than its limit, and takes nothing away.
    host.libvirtd.signal(Signal::STOP);
    let output = host.folder.admin(&["create", "db1", "--no-agent"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(9) && said.contains("nothing was cut"), "{said}");
    assert_eq!(host.machines().len(), 2);
    host.libvirtd.signal(Signal::CONT);
    host.libvirtd.restart();
    // It is the UUID that counts, not the name.
    host.json(&["create", "db2", "--no-agent"]);
    host.libvirtd.must(&["domrename", "db2", "db3"]);
    host.wait_for_machines(&["db1: nowhere, data log", "db3: nowhere, data"]);
    assert_eq!(host.json(&["list", "--vm", "db3"]).as_array().unwrap().len(), 1);
    host.libvirtd.must(&["undefine", "db3"]);
    host.libvirtd.define(&host.xml("db3", THIRD, &[("vda", "data")], VSOCK));
    wait_until("it is another machine", LIMIT, || {
        host.machines().len() == 2 && host.json(&["list", "--vm", "db3"]) == serde_json::json!([])
    });
    host.libvirtd.must(&["undefine", "db3"]);
    host.wait_for_machines(&["db1: nowhere, data log"]);
    assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 3, "no snapshot is lost with its machine");

    host.kill_while_paused();
    assert_eq!(host.state_of("db1"), "running", "{}", host.folder.printed());
}

impl Domains {
    /// Kills the service while the domain stands still, and starts it again.
    fn kill_while_paused(&mut self) {
        for _ in 0..20 {
            std::thread::scope(|scope| {
                let create = scope.spawn(|| self.folder.admin(&["create", "db1", "--no-agent"]));
                let paused = || self.state_of("db1") == "paused";
                while !create.is_finished() && !paused() {}
                self.signal_service(Signal::KILL);
            });
            let was_paused = self.state_of("db1") == "paused";
            self.kill_service();
            self.start();
            if was_paused {
                return;
            }
            wait_until("it runs", LIMIT, || self.state_of("db1") == "running");
        }
        panic!("it was never killed while the domain was paused");
    }
}

#[test]
fn disks_are_plugged_in_and_taken_out_through_libvirt_which_knows_of_them() {
    let entry = format!(
        "[[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"@FOLDER@/vsock\"\n\
         [[vm.disk]]\nserial = \"data\"\nstore = \"files\"\npath = \"@STORE@/db1-vda.img\"\nformat = \"raw\"\n"
    );
    let mut host = Domains::new(&entry);
    let scsi = "<controller type='scsi' model='virtio-scsi'/>";
    host.libvirtd.define(&host.xml("db1", UUID, &[("vda", "data")], scsi));
    host.start_full("db1");
    // The entry wins, and learns that libvirt has its machine.
    wait_until("the service knows", LIMIT, || host.folder.printed().contains("libvirt"));
    let request = request_for(&[("data", IMAGE_BYTES, 7)], Consistency::Filesystem);
    let id = SnapshotId::derive(UUID.parse().unwrap(), request.request);
    host.guest().take(&request).unwrap();

    let serial = host.attach(id, Access::ReadOnly).unwrap().remove(0);
    assert_eq!(host.attach(id, Access::ReadOnly).unwrap(), slice::from_ref(&serial), "a repeat");
    let device = format!("/dev/hostsnap/{serial}");
    let disks = host.libvirtd.must(&["domblklist", "db1"]);
    assert!(disks.contains(&device), "{disks}");
    let looped = fs::read_link(&device).unwrap();
    let xml = host.libvirtd.must(&["dumpxml", "db1"]);
    let alias = format!("ua-{}", serial.replace('.', "_"));
    for words in [&serial, &alias] {
        assert!(xml.contains(words.as_str()), "{words} in {xml}");
    }

    // The kernel clears the loop device with its last user, whoever was killed meanwhile.
    host.kill_service();
    host.start();
    assert_eq!(host.attached(), slice::from_ref(&serial));
    host.a_machine_that_comes_with_a_snapshot_is_known_to_have_it(&serial);
    host.libvirtd.must(&["destroy", "db1"]);
    wait_until("it is over with its machine", LIMIT, || host.attached().is_empty());
    is_free(&looped);
    host.start_full("db1");
    host.attach(id, Access::ReadOnly).unwrap();
    host.libvirtd.must(&["reset", "db1"]);
    assert_eq!(host.attached(), slice::from_ref(&serial));
    host.detach(id).unwrap();

    host.a_clone_is_written_to_and_thrown_away(id);
    host.killed_in_the_middle_the_service_leaves_nothing(id);
    host.a_libvirtd_that_hangs_in_the_middle_leaves_nothing(id);
    host.where_no_port_is_free_it_is_said(id, &request);
}

/// Files of a folder whose names begin so are removed.
fn remove_files(folder: &Path, beginning: &str) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(beginning) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// The loop device at this path is nobody's any more.
#[track_caller]
fn is_free(device: &Path) {
    let backing = Path::new("/sys/block").join(device.file_name().unwrap()).join("loop/backing_file");
    wait_until("the loop device is free", LIMIT, || !backing.exists());
}

impl Domains {
    pub(crate) fn guest(&self) -> Guest {
        let mut guest = Guest::connect(&self.folder.at(&format!("vsock_{PORT}")));
        assert!(matches!(guest.ask(&hello(None)), Reply::Hello(_)));
        guest
    }

    pub(crate) fn attach(&self, id: SnapshotId, access: Access) -> Result<Vec<String>, WireError> {
        let wish = Request::Attach(Attach { id, disks: BoundedVec::empty(), access });
        self.guest().asks(&wish).map(serials)
    }

    pub(crate) fn attached(&self) -> Vec<String> {
        serials(self.guest().asks(&Request::Attachments).unwrap())
    }

    pub(crate) fn detach(&self, id: SnapshotId) -> Result<DetachOutcome, WireError> {
        match self.guest().asks(&Request::Detach(id))? {
            Reply::Detached(outcome) => Ok(outcome),
            other => panic!("{other:?}"),
        }
    }

    /// Writes the first 4 KiB of an attached clone as the domain would. QEMU fills the rest of the cluster with what is below.
    pub(crate) fn write_to(&self, serial: &str, byte: u8) {
        let alias = format!("ua-{}", serial.replace('.', "_"));
        for command in [format!("write -P {byte} 0 4k"), "flush".to_owned()] {
            let ask = format!("qemu-io -d {alias} \"{command}\"");
            let said = self.libvirtd.must(&["qemu-monitor-command", "db1", "--hmp", &ask]);
            assert_eq!(said, "", "{command}");
        }
    }

    fn a_clone_is_written_to_and_thrown_away(&self, id: SnapshotId) {
        let serial = self.attach(id, Access::Writable).unwrap().remove(0);
        let (top, base) = (format!("/dev/hostsnap/{serial}"), format!("/dev/hostsnap/{serial}.base"));
        let looped = [&top, &base].map(|name| fs::read_link(name).unwrap());
        self.write_to(&serial, 9);
        let clones = self.store().join(".hostsnap/clones");
        let kept = clones.join(format!("{serial}.qcow2"));
        let read = ["-r", "-U", "-f", "qcow2", "-c", "read -P 9 0 4k", "-c", "read -P 7 4k 60k"];
        let said = harness::loopfs::run(Command::new("qemu-io").args(read).arg(&kept));
        assert!(said.contains("read 61440") && !said.contains("verification failed"), "{said}");
        let kept = fs::metadata(&kept).unwrap();
        assert!(
            kept.len() > IMAGE_BYTES && kept.blocks() * 512 < kept.len() / 2,
            "not only what was written: {kept:?}"
        );
        let error = self.attach(id, Access::ReadOnly).unwrap_err();
        assert!(error.message.as_str().contains("attached already, writable"), "{error}");
        self.detach(id).unwrap();
        assert_eq!(fs::read_dir(&clones).unwrap().count(), 0);
        assert!(!Path::new(&top).exists() && !Path::new(&base).exists());
        looped.iter().for_each(|device| is_free(device));
        let image = self.store().join(".hostsnap").join(UUID).join(id.to_string()).join("data.img");
        assert!(fs::read(image).unwrap().iter().all(|byte| *byte == 7), "the snapshot was changed");
    }

    fn killed_in_the_middle_the_service_leaves_nothing(&mut self, id: SnapshotId) {
        let attaching: [&[&str]; 4] = [
            &["resize ", "/clones/"],
            &["link ", "/dev/hostsnap/"],
            // The XML for virsh, before the domain has the disk and after.
            &["create ", "/tmp/.tmp"],
            &["remove ", "/tmp/.tmp"],
        ];
        for call in attaching {
            self.killed_before(call, |host, arm| {
                let mut guest = host.guest();
                arm();
                guest.send(&Request::Attach(Attach {
                    id,
                    disks: BoundedVec::empty(),
                    access: Access::Writable,
                }));
                assert!(guest.hears().is_none(), "{call:?}");
            });
            self.nothing_is_left(&format!("killed before {call:?}"));
        }
        let detaching: [&[&str]; 2] = [&["remove ", "/dev/hostsnap/"], &["remove ", "/clones/"]];
        for call in detaching {
            self.killed_before(call, |host, arm| {
                host.attach(id, Access::Writable).unwrap();
                let mut guest = host.guest();
                arm();
                guest.send(&Request::Detach(id));
                assert!(guest.hears().is_none(), "{call:?}");
            });
            self.nothing_is_left(&format!("killed before {call:?}"));
        }
    }

    /// Everything is as if nothing had ever been attached.
    #[track_caller]
    fn nothing_is_left(&self, when: &str) {
        let began = Instant::now();
        loop {
            let (attached, disks) = (self.attached(), self.libvirtd.must(&["domblklist", "db1"]));
            if attached.is_empty() && !disks.contains("/dev/hostsnap") {
                break;
            }
            let printed = self.folder.printed();
            assert!(began.elapsed() < LIMIT, "{when}: {attached:?} are left\n{disks}\n{printed}");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(fs::read_dir(self.store().join(".hostsnap/clones")).unwrap().count(), 0, "{when}");
        let reconciled = self.folder.admin(&["reconcile"]);
        let said = String::from_utf8_lossy(&reconciled.stdout);
        assert_eq!(said, "the catalog and the storage agree\n", "{when}\n{}", self.folder.printed());
    }

    /// As from another host: the service is up, and libvirt has it later.
    fn a_machine_that_comes_with_a_snapshot_is_known_to_have_it(&mut self, serial: &str) {
        self.kill_service();
        remove_files(&self.folder.at("state"), "catalog.sqlite");
        let (socket, aside) = (self.libvirtd.socket(), self.folder.at("aside"));
        fs::rename(&socket, &aside).unwrap();
        self.start();
        assert_eq!(self.attached(), [""; 0]);
        fs::rename(&aside, &socket).unwrap();
        wait_until("it is known", LIMIT, || self.attached() == [serial]);
    }

    /// What it had begun, or does when it goes on, is undone.
    fn a_libvirtd_that_hangs_in_the_middle_leaves_nothing(&mut self, id: SnapshotId) {
        self.libvirtd.signal(Signal::STOP);
        let error = self.attach(id, Access::Writable).unwrap_err();
        assert_eq!(error.code, ErrorCode::TimedOut, "{error}");
        self.libvirtd.signal(Signal::CONT);
        self.libvirtd.restart();
        self.nothing_is_left("libvirtd answers again");
    }

    /// And where one is, nobody in the domain hears that its disk is to be released.
    fn where_no_port_is_free_it_is_said(&self, first: SnapshotId, request: &Prepare) {
        self.libvirtd.must(&["destroy", "db1"]);
        self.libvirtd.define(&self.xml("db1", UUID, &[("vda", "data")], ""));
        let again = Prepare { request: RequestId::random(), ..request.clone() };
        let second = SnapshotId::derive(UUID.parse().unwrap(), again.request);
        self.guest().take(&again).unwrap();
        self.start_full("db1");
        let full = self.attach(second, Access::Writable).unwrap_err();
        assert_eq!(full.code, ErrorCode::Unsupported, "{full}");
        assert!(full.message.as_str().contains("no port of db1 is free"), "{full}");
        assert!(full.hint.as_str().contains("model='pcie-root-port'"), "{full}");
        self.nothing_is_left("no port was free");

        self.libvirtd.must(&["destroy", "db1"]);
        self.libvirtd.must(&["start", "db1"]);
        let attached = self.attach(first, Access::ReadOnly).unwrap();
        let error = self.detach(first).unwrap_err();
        assert_eq!(error.code, ErrorCode::Busy, "{error}");
        assert!(error.message.as_str().contains("db1 has not released hs-"), "{error}");
        assert_eq!(self.attached(), attached);
        self.libvirtd.must(&["destroy", "db1"]);
        wait_until("it is over with its machine", LIMIT, || self.attached().is_empty());
    }
}

fn serials(reply: Reply) -> Vec<String> {
    match reply {
        Reply::Attached(attached) => attached.into_inner().iter().map(|one| one.serial.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}
