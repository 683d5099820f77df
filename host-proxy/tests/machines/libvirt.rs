//! Machines of a real libvirtd: found, followed, paused, and disks plugged into them.

use std::slice;

use harness::wait::wait_until;
use protocol::attach::{Access, Attach};
use protocol::message::{Reply, Request};
use protocol::{BoundedVec, Consistency, ErrorCode, PORT, SnapshotId, WireError};
use rustix::process::Signal;

use super::domains::{Domains, IMAGE_BYTES, UUID};
use super::guest::{Guest, hello, request_for};
use super::stage::LIMIT;

const OTHER: &str = "4f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f02";
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
    host.libvirtd.must(&["undefine", "db2"]);
    host.wait_for_machines(&["db1: nowhere, data log"]);
    assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 2);

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
    host.libvirtd.must(&["start", "db1"]);
    // The entry wins, and learns that libvirt has its machine.
    wait_until("the service knows", LIMIT, || host.folder.printed().contains("libvirt"));
    let request = request_for(&[("data", IMAGE_BYTES, 7)], Consistency::Filesystem);
    let id = SnapshotId::derive(UUID.parse().unwrap(), request.request);
    host.guest().take(&request).unwrap();

    let error = host.attach(id, Access::Writable).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unsupported, "{error}");
    let serial = host.attach(id, Access::ReadOnly).unwrap().remove(0);
    assert_eq!(host.attach(id, Access::ReadOnly).unwrap(), slice::from_ref(&serial), "a repeat");
    let disks = host.libvirtd.must(&["domblklist", "db1"]);
    assert!(disks.contains("/dev/loop"), "{disks}");
    let xml = host.libvirtd.must(&["dumpxml", "db1"]);
    let alias = format!("ua-{}", serial.replace('.', "_"));
    for words in [&serial, &alias] {
        assert!(xml.contains(words.as_str()), "{words} in {xml}");
    }

    // The kernel clears the loop device with its last user, whoever was killed meanwhile.
    host.kill_service();
    host.start();
    assert_eq!(host.attached(), slice::from_ref(&serial));
    host.libvirtd.must(&["destroy", "db1"]);
    wait_until("it is over with its machine", LIMIT, || host.attached().is_empty());
    host.libvirtd.must(&["start", "db1"]);
    host.attach(id, Access::ReadOnly).unwrap();
    host.libvirtd.must(&["reset", "db1"]);
    assert_eq!(host.attached(), [serial]);
}

impl Domains {
    fn guest(&self) -> Guest {
        let mut guest = Guest::connect(&self.folder.at(&format!("vsock_{PORT}")));
        assert!(matches!(guest.ask(&hello(None)), Reply::Hello(_)));
        guest
    }

    fn attach(&self, id: SnapshotId, access: Access) -> Result<Vec<String>, WireError> {
        let wish = Request::Attach(Attach { id, disks: BoundedVec::empty(), access });
        self.guest().asks(&wish).map(serials)
    }

    fn attached(&self) -> Vec<String> {
        serials(self.guest().asks(&Request::Attachments).unwrap())
    }
}

fn serials(reply: Reply) -> Vec<String> {
    match reply {
        Reply::Attached(attached) => attached.into_inner().iter().map(|one| one.serial.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}
