//! A machine on its way from one host to another, or to a file: which of the two has its disks is not for us to guess.

use std::process::{Command, Output, Stdio};

use harness::wait::wait_until;
use protocol::attach::Access;
use protocol::{Consistency, ErrorCode, SnapshotId};
use serde_json::json;

use super::domains::{Domains, IMAGE_BYTES, UUID};
use super::guest::{conclude, cut, request_for};
use super::stage::{LIMIT, Stage};

/// Bytes of the machine's memory that are no zeros: at a MiB a second it is half a minute on its way, unless it is hurried.
const BALLAST_BYTES: usize = 32 << 20;

impl Domains {
    /// A domain whose memory has something in it.
    fn define_heavy(&self, name: &str, disks: &[(&str, &str)]) {
        let ballast = self.store().join("ballast");
        let bytes: Vec<u8> = (0..BALLAST_BYTES / 8)
            .flat_map(|n| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        std::fs::write(&ballast, bytes).unwrap();
        let argument = format!("loader,file={},addr=0x1000000,force-raw=on", ballast.display());
        let scsi = "<controller type='scsi' model='virtio-scsi'/>";
        let xml = self.xml(name, UUID, disks, scsi).replace(
            "<domain type='qemu'>",
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>",
        );
        let arguments = format!(
            "<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='{argument}'/></qemu:commandline></domain>"
        );
        self.libvirtd.define(&xml.replace("</domain>", &arguments));
    }

    pub(crate) fn moves(&self, name: &str, to: &Self) -> Output {
        let way = to.libvirtd.folder().join("way");
        let _ = std::fs::create_dir(&way);
        // The other host's QEMU makes a socket there.
        harness::loopfs::run(Command::new("chmod").arg("777").arg(&way));
        Command::new("virsh")
            .env("LC_ALL", "C")
            .args([
                "--quiet",
                "--connect",
                &self.libvirtd.uri(),
                "migrate",
                "--live",
                "--persistent",
                "--undefinesource",
            ])
            .args(["--unsafe", "--bandwidth", "1", name, &to.libvirtd.uri()])
            .arg(format!("unix://{}/socket", way.display()))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Asks for a snapshot without the guest; what it says of why not.
    #[track_caller]
    fn cuts_nothing(&self, name: &str, words: &str) {
        let output = self.folder.admin(&["create", name, "--no-agent"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(6) && said.contains(words), "{said}\n{}", self.folder.printed());
    }
}

#[test]
fn a_machine_that_moves_is_cut_by_neither_host_meanwhile_and_afterwards_by_the_one_that_has_it() {
    let entry = format!(
        "[[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"@FOLDER@/vsock\"\n\
         [[vm.disk]]\nserial = \"data\"\nstore = \"files\"\npath = \"@STORE@/db1-vda.img\"\nformat = \"raw\"\n\
         [[vm.disk]]\nserial = \"log\"\nstore = \"files\"\npath = \"@STORE@/db1-vdb.img\"\nformat = \"raw\"\n"
    );
    let here = Domains::new(&entry);
    let there = here.beside("");
    here.define_heavy("db1", &[("vda", "data"), ("vdb", "log")]);
    here.start_full("db1");
    let request = request_for(&[("data", IMAGE_BYTES, 7)], Consistency::Filesystem);
    let id = SnapshotId::derive(UUID.parse().unwrap(), request.request);
    here.guest().take(&request).unwrap();

    // A snapshot in it is this host's: by its name nobody takes another host's device for it.
    wait_until("the service knows that libvirt has it", LIMIT, || here.attach(id, Access::ReadOnly).is_ok());
    let serial = here.attached().remove(0);
    here.one_that_was_saved_with_it_does_not_start_with_another_device(&serial);
    here.attach(id, Access::ReadOnly).unwrap();
    let refused = here.moves("db1", &there);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains(&format!("/dev/hostsnap/{serial}")), "{said}");
    assert_eq!(here.state_of("db1"), "running");
    here.detach(id).unwrap();

    std::thread::scope(|scope| {
        let moving = scope.spawn(|| here.moves("db1", &there));
        there.wait_for_machines(&["db1: nowhere, data log"]);
        there.cuts_nothing("db1", "is being moved to or from another host");
        here.cuts_nothing("db1", "is being moved to or from another host");
        // Nor where its guest asks itself.
        let own = request_for(&[("data", IMAGE_BYTES, 7)], Consistency::Filesystem);
        let error = here.guest().prepare(&own).unwrap_err();
        assert_eq!(error.code, ErrorCode::Busy, "{error}");
        assert!(error.message.as_str().contains("is being moved to or from another host"), "{error}");
        let error = here.attach(id, Access::ReadOnly).unwrap_err();
        assert_eq!(error.code, ErrorCode::Busy, "{error}");
        assert!(error.message.as_str().contains("is being moved to another host"), "{error}");
        assert!(!moving.is_finished(), "it was too fast to be looked at");
        here.libvirtd.must(&["migrate-setspeed", "db1", "1000"]);
        let moved = moving.join().unwrap();
        assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    });
    assert_eq!(here.attached(), [""; 0]);
    let snapshot = there.json(&["create", "db1", "--no-agent"]);
    assert!(snapshot["consistency_reason"].as_str().unwrap().contains("was paused for"), "{snapshot}");
    assert_eq!(there.state_of("db1"), "running");
    // Its disks are in use, if not here.
    let restored = here.folder.admin(&["restore", "db1", &id.to_string(), "data", "--no-safety"]);
    let said = String::from_utf8_lossy(&restored.stderr).into_owned();
    assert_eq!(restored.status.code(), Some(6), "{said}");

    there.one_that_is_saved_is_not_restored(snapshot["id"].as_str().unwrap());
}

impl Domains {
    fn one_that_was_saved_with_it_does_not_start_with_another_device(&self, serial: &str) {
        self.libvirtd.must(&["managedsave", "db1"]);
        wait_until("it is over with its machine", LIMIT, || self.attached().is_empty());
        let refused = self.libvirtd.virsh(&["start", "db1"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(&format!("/dev/hostsnap/{serial}")), "{said}");
        self.libvirtd.must(&["managedsave-remove", "db1"]);
        self.start_full("db1");
    }

    /// It would go on with what it knows of the disk.
    fn one_that_is_saved_is_not_restored(&self, id: &str) {
        self.libvirtd.must(&["managedsave", "db1"]);
        let restore = || self.folder.admin(&["restore", "db1", id, "data", "--no-safety"]);
        let refused = restore();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(6) && said.contains("db1 is saved"), "{said}");
        assert!(said.contains("virsh managedsave-remove"), "{said}");
        self.libvirtd.must(&["managedsave-remove", "db1"]);
        let done = restore();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

#[test]
fn a_qemu_that_migrates_or_has_done_so_is_not_cut_until_it_goes_on() {
    for serials in [["data"].as_slice(), &["data", "log"]] {
        let stage = Stage::new(serials);
        let refused = || {
            let output = stage.served.admin(&["create", "db1", "--no-agent"]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(6) && said.contains("is being moved"), "{said}");
            assert_eq!(stage.on_storage(), 0);
        };
        let disks: Vec<_> = serials.iter().map(|serial| (*serial, 1 << 20, 7)).collect();
        let request = request_for(&disks, Consistency::Crash);
        let mut its_guest = stage.guest();
        let ticket = its_guest.prepare(&request).unwrap().ticket;
        stage.tell("migrate-set-parameters", json!({ "max-bandwidth": 1000 }));
        stage.tell("migrate", json!({ "uri": "exec:cat > /dev/null" }));
        // It began after the host had looked: what was cut is kept neither for a guest that says how it was frozen, nor for
        // one that is not heard of again.
        its_guest.asks(&cut(ticket)).unwrap();
        if serials.len() == 1 {
            let error = its_guest.asks(&conclude(ticket)).unwrap_err();
            assert_eq!(error.code, ErrorCode::Busy, "{error}");
            assert!(error.message.as_str().contains("was not kept"), "{error}");
        }
        drop(its_guest);
        wait_until("nothing is left of it", LIMIT, || stage.on_storage() == 0);
        // It is removed from the storage first, and then forgotten.
        wait_until("it may be asked for again", LIMIT, || {
            let error = stage.guest().prepare(&request).unwrap_err();
            assert_eq!(error.code, ErrorCode::Busy, "{error}");
            error.message.as_str().contains("is being moved")
        });
        refused();
        assert_eq!(stage.status(), "running", "it is not paused, and would stay so where it arrives");
        stage.tell("migrate-set-parameters", json!({ "max-bandwidth": 1_000_000_000 }));
        wait_until("it has moved", LIMIT, || stage.status() == "postmigrate");
        refused();
        // Whoever moved it lets it go on here, since it did not arrive.
        stage.ask("cont");
        assert_eq!(stage.cut_alone()["state"], "ready");
        assert_eq!(stage.status(), "running");
        assert_eq!(stage.guest().take(&request).unwrap().consistency, Consistency::Filesystem);
    }
}
