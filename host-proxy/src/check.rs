//! `hostsnapd check`: proves a configuration without changing anything and without the service.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use protocol::view;
use serde::Serialize;

use crate::cli::Output;
use crate::config::{Config, PeerId, Vm};
use crate::discover;
use crate::drivers::{ROOM_UNKNOWN, VolumeFacts};
use crate::failure;
use crate::service::chain;
use crate::world::{Store, World};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    ok: bool,
    says: String,
    #[serde(flatten)]
    disk: Option<DiskFacts>,
}

/// What the storage of a disk can do.
#[derive(Debug, Serialize)]
struct DiskFacts {
    driver: &'static str,
    abilities: Vec<&'static str>,
    limits: &'static str,
    free_bytes: Option<u64>,
    floor_bytes: u64,
}

/// Looks at everything; exit code 0 if all is well, 6 if something would fail, 2 if the
/// configuration can't be used, 8 if a store is not there.
pub fn run(config: &Path, output: Output) -> ExitCode {
    let world = Config::load(config)
        .map_err(anyhow::Error::from)
        .and_then(|config| World::new(config, None).map_err(anyhow::Error::from));
    let mut world = match world {
        Ok(world) => world,
        Err(error) => return failure::of(&error, output.json),
    };
    let mut findings = look_at_libvirt(&mut world);
    findings.splice(0..0, look(&world));
    if output.json {
        println!("{}", serde_json::to_string_pretty(&findings).expect("no value that JSON lacks"));
    } else {
        for finding in &findings {
            println!("{:<4}  {:<40}  {}", if finding.ok { "ok" } else { "FAIL" }, finding.what, finding.says);
            if let Some(disk) = &finding.disk {
                println!("      {:<40}  {}", "", disk.line());
            }
        }
    }
    if findings.iter().all(|finding| finding.ok) { ExitCode::SUCCESS } else { ExitCode::from(6) }
}

impl DiskFacts {
    fn of(store: &Store, free_bytes: Option<u64>) -> Self {
        Self {
            driver: store.driver.name(),
            abilities: store.driver.abilities().words(),
            limits: store.driver.limits(),
            free_bytes,
            floor_bytes: store.config.min_free,
        }
    }

    fn line(&self) -> String {
        let room = self.free_bytes.map_or_else(|| "?".to_owned(), view::size);
        let Self { driver, abilities, limits, .. } = self;
        format!("{driver}, {room} free; can: {}; {limits}", view::abilities(abilities))
    }
}

/// Asks libvirt for its machines, where that is asked for; they are looked at as those of the file.
fn look_at_libvirt(world: &mut World) -> Vec<Finding> {
    let Some(libvirt) = world.config.discovered_by_libvirt() else { return Vec::new() };
    let what = format!("libvirt at {}", libvirt.uri);
    let finding = |what, ok, says| Finding { what, ok, says, disk: None };
    match discover::look(&world.config, &libvirt) {
        Ok(machines) => {
            world.config.vms = machines.vms;
            let count = discover::discovered(&world.config).len();
            let mut findings =
                vec![finding(what, true, format!("{count} machines that the file does not name"))];
            let left_out = machines.left_out.into_iter();
            findings.extend(left_out.map(|one| finding(one.what, false, format!("left out: {}", one.why))));
            findings
        }
        Err(error) => vec![finding(what, false, chain(&error))],
    }
}

fn look(world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut rooms = BTreeMap::new();
    for store in world.stores() {
        let free = store.driver.free_bytes();
        let floor = store.config.min_free;
        let (ok, says) = match free {
            Ok(ROOM_UNKNOWN) => {
                (true, "its storage does not tell its room; min_free is of no use".to_owned())
            }
            Ok(free) if free >= floor => (true, format!("{} free", view::size(free))),
            Ok(free) => {
                (false, format!("{} free, less than the floor of {}", view::size(free), view::size(floor)))
            }
            Err(ref error) => (false, chain(error)),
        };
        let offers = store.driver.offers().map(|says| Finding {
            what: format!("storage of {}", store.config.name),
            ok: true,
            says,
            disk: None,
        });
        rooms.insert(store.config.name.as_str(), free.ok().filter(|free| *free != ROOM_UNKNOWN));
        findings.push(Finding { what: format!("store {}", store.config.name), ok, says, disk: None });
        findings.extend(offers);
    }
    if world.config.service.listen_vsock {
        let there = Path::new("/dev/vhost-vsock").exists();
        let says = if there {
            "/dev/vhost-vsock is there"
        } else {
            "there is no /dev/vhost-vsock: load the module vhost_vsock, or set listen_vsock = false"
        };
        findings.push(Finding { what: "AF_VSOCK".to_owned(), ok: there, says: says.to_owned(), disk: None });
    }
    for vm in &world.config.vms {
        findings.extend(look_at_peer(vm));
        for disk in &vm.disks {
            let store = world.store(disk);
            let checked = store.driver.check(&World::volume(vm, disk));
            let (ok, says) = match checked {
                Ok(VolumeFacts { size_bytes }) => (true, view::size(size_bytes)),
                Err(error) => (false, chain(&error)),
            };
            let facts = DiskFacts::of(store, rooms.get(disk.store.as_str()).copied().flatten());
            findings.push(Finding {
                what: format!("disk {} of {}", disk.serial, vm.name),
                ok,
                says,
                disk: Some(facts),
            });
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
    Some(Finding { what: format!("socket of {}", vm.name), ok: folder.is_some(), says, disk: None })
}
