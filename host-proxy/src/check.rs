//! `hostsnapd check`: proves a configuration without changing anything and without the service.

use std::path::Path;
use std::process::ExitCode;

use protocol::view;
use serde::Serialize;

use crate::cli::Output;
use crate::config::{Config, PeerId, Vm};
use crate::drivers::VolumeFacts;
use crate::failure;
use crate::service::chain;
use crate::world::World;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    ok: bool,
    says: String,
}

/// Looks at everything; exit code 0 if all is well, 6 if something would fail, 2 if the
/// configuration can't be used, 8 if a store is not there.
pub fn run(config: &Path, output: Output) -> ExitCode {
    let world = Config::load(config)
        .map_err(anyhow::Error::from)
        .and_then(|config| World::new(config, None).map_err(anyhow::Error::from));
    let world = match world {
        Ok(world) => world,
        Err(error) => return failure::of(&error, output.json),
    };
    let findings = look(&world);
    if output.json {
        println!("{}", serde_json::to_string_pretty(&findings).expect("no value that JSON lacks"));
    } else {
        for finding in &findings {
            println!("{:<4}  {:<40}  {}", if finding.ok { "ok" } else { "FAIL" }, finding.what, finding.says);
        }
    }
    if findings.iter().all(|finding| finding.ok) { ExitCode::SUCCESS } else { ExitCode::from(6) }
}

fn look(world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    for store in world.stores() {
        let free = store.driver.free_bytes();
        let floor = store.config.min_free;
        let (ok, says) = match free {
            Ok(free) if free >= floor => (true, format!("{} free", view::size(free))),
            Ok(free) => {
                (false, format!("{} free, less than the floor of {}", view::size(free), view::size(floor)))
            }
            Err(error) => (false, chain(&error)),
        };
        findings.push(Finding { what: format!("store {}", store.config.name), ok, says });
    }
    if world.config.service.listen_vsock {
        let there = Path::new("/dev/vhost-vsock").exists();
        let says = if there {
            "/dev/vhost-vsock is there"
        } else {
            "there is no /dev/vhost-vsock: load the module vhost_vsock, or set listen_vsock = false"
        };
        findings.push(Finding { what: "AF_VSOCK".to_owned(), ok: there, says: says.to_owned() });
    }
    for vm in &world.config.vms {
        findings.extend(look_at_peer(vm));
        for disk in &vm.disks {
            let checked = world.store(disk).driver.check(&World::volume(vm, disk));
            let (ok, says) = match checked {
                Ok(VolumeFacts { size_bytes }) => (true, view::size(size_bytes)),
                Err(error) => (false, chain(&error)),
            };
            findings.push(Finding { what: format!("disk {} of {}", disk.serial, vm.name), ok, says });
        }
    }
    findings
}

fn look_at_peer(vm: &Vm) -> Option<Finding> {
    let PeerId::Socket(path) = &vm.peer else { return None };
    let folder = path.parent().filter(|folder| folder.is_dir());
    let says = match folder {
        Some(_) => format!("{}_{}", path.display(), protocol::PORT),
        None => format!("the folder of {} does not exist", path.display()),
    };
    Some(Finding { what: format!("socket of {}", vm.name), ok: folder.is_some(), says })
}
