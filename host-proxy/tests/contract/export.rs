//! A snapshot that is served over NBD, held against all its bytes; and what changed, against what the driver tells.

use std::path::Path;
use std::process::Command;

use harness::loopfs::run;
use host_proxy::drivers::{Extent, Owner, Volume};
use host_proxy::export::{self, CHANGED, Content, Server, node};
use serde_json::Value;

use super::bench::{Bench, DISK_BYTES};
use super::{delete, take};

/// For QEMU's tools: the same for all drivers, and in the virtual machines too.
fn client(socket: &Path, name: &str, context: Option<&str>) -> String {
    let mut text = format!("driver=nbd,server.type=unix,server.path={},export={name}", socket.display());
    if let Some(context) = context {
        text += &format!(",x-dirty-bitmap={context}");
    }
    text
}

/// What QEMU calls no data is what the bitmap marks (nbd.c, "x-dirty-bitmap").
fn marked(socket: &Path, name: &str) -> Vec<Extent> {
    let image = client(socket, name, Some(CHANGED));
    let map = run(Command::new("qemu-img").args(["map", "--output=json", "--image-opts", &image]));
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let dirty = map.iter().filter(|one| one["data"] == false);
    dirty
        .map(|one| Extent { offset: one["start"].as_u64().unwrap(), length: one["length"].as_u64().unwrap() })
        .collect()
}

pub(crate) fn what_is_served_is_the_snapshot_and_what_changed_is_marked(bench: &dyn Bench) {
    let driver = bench.driver();
    let Some(able) = driver.expose() else { return };
    let volume = &bench.volumes()[0];
    bench.write(volume, 0x11);
    let first = take(bench);
    bench.write(volume, 0x22);
    let second = take(bench);
    bench.write(volume, 0x33);
    let changed = driver.changes().map(|able| able.changes(first, second, &volume.serial).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nbd");
    let shown = |owner: Owner, volume: &Volume| able.expose(owner, &volume.serial).unwrap();
    let content = Content {
        name: "disk".to_owned(),
        node: node(&shown(second, volume)),
        size_bytes: DISK_BYTES,
        changed: changed.clone(),
    };
    let server = Server::start(&content, &socket).unwrap_or_else(|error| panic!("{error}: {error:?}"));
    let read = folder.path().join("read");
    let image = client(&socket, "disk", None);
    run(Command::new("qemu-img").args(["convert", "--image-opts", "-O", "raw", &image]).arg(&read));
    assert!(
        std::fs::read(&read).unwrap() == bench.bytes(&shown(second, volume)),
        "other bytes are served than there are"
    );
    if let Some(changed) = changed {
        let marked = marked(&socket, "disk");
        let is_in =
            |extents: &[Extent], byte| extents.iter().any(|one| (one.offset..one.end()).contains(&byte));
        for block in (0..DISK_BYTES).step_by(4096) {
            let is_told = changed.iter().any(|one| one.offset < block + 4096 && block < one.end());
            assert_eq!(is_in(&marked, block), is_told, "at {block}: {marked:?}, {changed:?}");
        }
    }
    // Nobody can write to it.
    let written =
        Command::new("qemu-io").args(["--image-opts", "-c", "write 0 512", &image]).output().unwrap();
    assert!(!written.status.success(), "it was written to");
    assert!(matches!(Server::start(&content, &socket), Err(export::ExportError::NotFree { .. })));
    drop(server);
    assert!(!socket.exists(), "the socket is left");
    able.conceal(second, &volume.serial).unwrap();
    delete(bench, second);
    delete(bench, first);
}
