//! A snapshot of a CSI plugin's: QEMU reads a volume that the plugin makes of it, for as long as it is attached.

use std::fs;
use std::os::unix::fs::FileExt;

use harness::loopfs::{Kind, LoopFs};
use protocol::ErrorCode;
use protocol::attach::Access;
use serde_json::json;

use super::kills;
use super::machine::{IMAGE_BYTES, Machine};
use super::server::volumes::{Publishing, Puts};
use super::server::{Fault, Offers, Server};
use host_proxy::drivers::csi::proto::method;

const SCSI: [&str; 4] = ["-machine", "q35", "-device", "virtio-scsi-pci,id=scsi"];

fn machine() -> (Machine, Server) {
    let store = LoopFs::in_memory(Kind::Xfs, 320);
    let at = |name: &str| store.path().join(name);
    let publishing = Publishing { controller: true, stages: true, topology: false, puts: Puts::Device };
    let offers = Offers { groups: false, changes: false, volumes: Some(publishing), ..Offers::EVERYTHING };
    let server = Server::start(&at("csi.sock"), &store.path(), offers);
    server.state().volumes.insert("vol-1".to_owned(), at("data.img"));
    let plugin = format!("driver = \"csi\"\nendpoint = \"{}\"", at("csi.sock").display());
    (Machine::with(store, &SCSI, "", &plugin, "volume = \"vol-1\""), server)
}

/// The first bytes that QEMU reads of what is attached.
fn is_read(machine: &Machine, byte: u8) -> bool {
    let device = &machine.devices()[0];
    let line = format!("qemu-io -d {device} \"read -P {byte} 0 64k\"");
    let said = machine.monitor.ask("human-monitor-command", json!({ "command-line": line }));
    let said = said.as_str().unwrap();
    assert!(!said.contains("rror"), "{said}");
    !said.contains("failed")
}

#[test]
fn a_volume_is_made_of_it_and_gone_when_it_is_detached_and_the_disk_goes_back_to_it() {
    let (mut machine, server) = machine();
    let image = machine.at("data.img");
    let disk = fs::File::options().write(true).open(&image).unwrap();
    disk.write_all_at(&[9; 1 << 16], 0).unwrap();
    disk.sync_all().unwrap();

    // Without the node service it is refused, with the reason in the log, and nothing is noted.
    server.state().is_node = false;
    let error = machine.attach(Access::ReadOnly).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unsupported, "{error}");
    assert!(machine.served.printed().contains("no node service"), "{}", machine.served.printed());
    server.state().is_node = true;

    for access in [Access::ReadOnly, Access::Writable] {
        assert_eq!(machine.attach(access).unwrap()[0].size_bytes, IMAGE_BYTES);
        assert!(is_read(&machine, 7) && server.state().made.len() == 1);
        let id = machine.id.to_string();
        let deleted = machine.served.admin(&["delete", &id]);
        assert_eq!(deleted.status.code(), Some(6), "{deleted:?}");
        machine.served.kill();
        machine.served.start();
        assert!(machine.attachments().len() == 1 && is_read(&machine, 7));
        // A plugin that is away keeps it, and it can be taken out when it is back.
        server.fault(method::DELETE_VOLUME, Fault::Refuses(14, "away".to_owned()));
        machine.detach().unwrap_err();
        assert_eq!(server.state().made.len(), 1);
        machine.detach().unwrap();
        assert_eq!(server.state().made.len(), 0);
        machine.nothing_is_left("it was detached");
    }

    machine.qemu.kill();
    // What could not be hidden after it is hidden later, and so is what a service had shown that was killed.
    server.fault(method::DELETE_VOLUME, Fault::Refuses(14, "away".to_owned()));
    server.fault(method::DELETE_VOLUME, Fault::Refuses(14, "away".to_owned()));
    let restored = machine.served.admin(&["restore", "db1", &machine.id.to_string(), "--changed-layout"]);
    assert!(restored.status.success(), "{restored:?}\n{}", machine.served.printed());
    assert!(fs::read(&image).unwrap().iter().all(|byte| *byte == 7), "it is not as it was");
    assert_eq!(server.state().made.len(), 1);
    assert!(machine.served.admin(&["reconcile"]).status.success());
    assert_eq!(server.state().made.len(), 0);
}

#[test]
fn killed_at_any_step_of_a_plugin_nothing_is_left_on_the_storage() {
    let (mut machine, server) = machine();
    kills::whenever_it_is_killed_it_keeps_its_word(&mut machine, 3);
    let state = server.state();
    assert_eq!((state.made.len(), state.snapshots.len()), (0, 1));
}
