//! What the types can't say: references, uniqueness, reserved CIDs. Pure; finds all mistakes.

use std::collections::HashMap;
use std::hash::Hash;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::time::Duration;

use protocol::attach::AttachedName;

use super::backend::Named;
use super::place::{DiskPlaces, Places, StorePlaces, VmPlaces, start};
use super::{Backend, Config, Disk, PeerId, Source, Vm};
use crate::drivers::zfs::DatasetName;
use crate::drivers::{csi, rbd};

/// How many disks one virtual machine may have; as many as a message can name.
const MAX_DISKS: usize = 64;
/// The longest path of a Unix socket, in bytes: `sun_path` has 108 with its final zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// The longest lease that makes sense. A guest's frozen file systems are thawed long before.
const MAX_LEASE: Duration = Duration::from_secs(3600);
/// The longest that one answer of a storage may be waited for.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// One mistake and where in the text it stands.
pub(super) struct Mistake {
    at: usize,
    what: String,
}

impl Mistake {
    /// `file:line:column: what`, as editors and compilers understand it.
    pub(super) fn tell(&self, path: &Path, text: &str) -> String {
        tell(path, text, self.at, &self.what)
    }
}

/// `file:line:column: what`.
pub(super) fn tell(path: &Path, text: &str, offset: usize, what: &str) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("{}:{}:{column}: {what}", path.display(), line_of(text, offset))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.get(..offset).unwrap_or(text).matches('\n').count() + 1
}

/// All mistakes of a configuration whose keys and types are right, in the order of the text.
pub(super) fn mistakes(config: &Config, text: &str) -> Vec<Mistake> {
    let places = Places::of(text);
    let mut found = Found { text, mistakes: Vec::new() };
    service(config, &places, &mut found);
    stores(config, &places, &mut found);
    libvirt(config, &places, &mut found);
    vms(config, &places, &mut found);
    for (vm, places) in config.vms.iter().zip(&places.vm) {
        one_vm(config, vm, places, &mut found);
    }
    found.mistakes.sort_by_key(|mistake| mistake.at);
    found.mistakes
}

struct Found<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

impl Found<'_> {
    fn say(&mut self, at: usize, what: String) {
        self.mistakes.push(Mistake { at, what });
    }

    /// Whatever is there a second time, with the line of the first.
    fn twice<T: Eq + Hash>(&mut self, all: impl Iterator<Item = (T, usize)>, what: impl Fn(&T) -> String) {
        let mut seen: HashMap<T, usize> = HashMap::new();
        for (one, at) in all {
            match seen.get(&one) {
                Some(first) => {
                    let line = line_of(self.text, *first);
                    self.say(at, format!("{}; the first is on line {line}", what(&one)));
                }
                None => {
                    seen.insert(one, at);
                }
            }
        }
    }

    /// A path means the same whoever reads it, and can be compared with another.
    fn path(&mut self, at: usize, path: &Path, whose: &str) {
        if !path.is_absolute() {
            self.say(at, format!("{whose} must be an absolute path, not {}", path.display()));
        } else if path.components().any(|part| part == Component::ParentDir) {
            self.say(at, format!("{whose} must not hold \"..\": {}", path.display()));
        }
    }

    fn socket(&mut self, at: usize, path: &Path, suffix: &str, whose: &str) {
        self.path(at, path, whose);
        let bytes = path.as_os_str().as_bytes().len() + suffix.len();
        if bytes > MAX_SOCKET_PATH {
            self.say(
                at,
                format!(
                    "{whose} has {bytes} bytes{}; a Unix socket's path has at most {MAX_SOCKET_PATH}",
                    if suffix.is_empty() { String::new() } else { format!(" with {suffix}") }
                ),
            );
        }
    }
}

fn service(config: &Config, places: &Places, found: &mut Found<'_>) {
    let (service, places) = (&config.service, &places.service);
    found.path(start(&places.state_dir), &service.state_dir, "state_dir");
    found.socket(start(&places.control_socket), &service.control_socket, "", "control_socket");
    if service.max_connections_per_vm == 0 {
        found.say(
            start(&places.max_connections_per_vm),
            "max_connections_per_vm must be at least 1".to_owned(),
        );
    }
    if service.max_lease > MAX_LEASE {
        found.say(start(&places.max_lease), format!("max_lease must be at most {}s", MAX_LEASE.as_secs()));
    }
}

fn stores(config: &Config, places: &Places, found: &mut Found<'_>) {
    let stores = || config.stores.iter().zip(&places.store);
    found.twice(stores().map(|(store, place)| (&store.name, start(&place.name))), |name| {
        format!("a second store is named {name:?}")
    });
    // Each would take the other's snapshots for its own.
    found.twice(stores().map(|(store, place)| (store.backend.place(), store_at(place))), |place| {
        format!("a second store is in {place}")
    });
    within_another(config, places, found);
    for (store, place) in stores() {
        if let Some(path) = store.backend.folder() {
            found.path(start(&place.path), path, "the store's path");
        }
        match &store.backend {
            Backend::Rbd(ceph) => pool(ceph, place, found),
            Backend::Csi(csi) => plugin(csi, place, found),
            Backend::Qemu(_)
            | Backend::Reflink(_)
            | Backend::Btrfs(_)
            | Backend::LvmThin(..)
            | Backend::Zfs(_) => {}
        }
        if store.name.is_empty() {
            found.say(start(&place.name), "the store's name is empty".to_owned());
        }
    }
}

fn libvirt(config: &Config, places: &Places, found: &mut Found<'_>) {
    let (Some(libvirt), places) = (&config.libvirt, &places.libvirt) else { return };
    let at = start(
        [&places.stores, &places.store, &places.uri].into_iter().find(|key| key.is_some()).unwrap_or(&None),
    );
    if config.service.discover.is_none() {
        let what = "[libvirt] is of no use without discover = \"libvirt\" in [service]";
        found.say(start(&places.uri).max(at), what.to_owned());
    }
    for store in libvirt.named_stores() {
        if config.stores.iter().all(|one| one.name != *store) {
            found.say(at, format!("[libvirt] names the store {store:?}, which is not there"));
        }
    }
    for folder in libvirt.stores.keys() {
        found.path(at, folder, "a folder of [libvirt] stores");
    }
    if libvirt.uri.is_empty() || libvirt.uri.starts_with('-') {
        found.say(
            start(&places.uri),
            format!("{:?} is no URI of libvirt's, such as qemu:///system", libvirt.uri),
        );
    }
}

/// A dataset below another store's is that one's too: each would list and remove the other's snapshots.
fn within_another(config: &Config, places: &Places, found: &mut Found<'_>) {
    let datasets =
        config.stores.iter().zip(&places.store).filter_map(|(store, place)| match &store.backend {
            Backend::Zfs(dataset) => Some((dataset, store_at(place))),
            _ => None,
        });
    let mut before: Vec<&DatasetName> = Vec::new();
    for (dataset, at) in datasets {
        let related = |one: &&&DatasetName| {
            **one != dataset && (one.holds(dataset.as_str()) || dataset.holds(one.as_str()))
        };
        if let Some(one) = before.iter().find(related) {
            found.say(
                at,
                format!("a second store is in {dataset}, and the first in {one}: one is within the other"),
            );
        }
        before.push(dataset);
    }
}

fn pool(ceph: &rbd::Place, place: &StorePlaces, found: &mut Found<'_>) {
    found.path(start(&place.conf), &ceph.conf, "the path of Ceph's configuration");
    if ceph.pool.is_empty() || ceph.pool.contains(['/', '@']) {
        let what = format!("{:?} is no name of a pool; a namespace has a key of its own", ceph.pool);
        found.say(start(&place.pool), what);
    }
    timeout(ceph.timeout, place, found);
}

fn plugin(csi: &csi::Place, place: &StorePlaces, found: &mut Found<'_>) {
    found.socket(start(&place.endpoint), &csi.endpoint, "", "the endpoint of the CSI plugin");
    if let Some(path) = &csi.node_endpoint {
        found.socket(start(&place.node_endpoint), path, "", "the endpoint of the CSI plugin's node service");
    }
    if let Some(path) = &csi.secrets_file {
        found.path(start(&place.secrets_file), path, "the path of the secrets");
    }
    timeout(csi.timeout, place, found);
}

/// It must end before whoever asked has given up.
fn timeout(timeout: Duration, place: &StorePlaces, found: &mut Found<'_>) {
    if timeout > MAX_TIMEOUT {
        found.say(start(&place.timeout), format!("timeout must be at most {}s", MAX_TIMEOUT.as_secs()));
    }
}

/// What no two virtual machines may share. Each would get at what is the other's.
fn vms(config: &Config, places: &Places, found: &mut Found<'_>) {
    let vms = || config.vms.iter().zip(&places.vm);
    found.twice(vms().map(|(vm, place)| (&vm.name, start(&place.name))), |name| {
        format!("a second virtual machine is named {name}")
    });
    found.twice(vms().map(|(vm, place)| (vm.uuid, start(&place.uuid))), |uuid| {
        format!("a second virtual machine has the UUID {uuid}")
    });
    found.twice(vms().map(|(vm, place)| (&vm.peer, peer_at(vm, place))), |peer| {
        format!("a second virtual machine comes in by {peer}")
    });
    found.twice(vms().filter_map(|(vm, place)| Some((vm.qmp.as_ref()?, start(&place.qmp)))), |path| {
        format!("a second virtual machine has the QMP socket {}", path.display())
    });
    let disks = || vms().flat_map(|(vm, place)| vm.disks.iter().zip(&place.disk));
    found.twice(disks().filter_map(|(disk, place)| Some((path_of(disk)?, start(&place.path)))), |path| {
        format!("a second disk is {}", path.display())
    });
    // A volume's name means something only in its store.
    found.twice(
        disks().filter_map(|(disk, place)| Some(((volume_of(disk)?, &disk.store), start(&place.volume)))),
        |(volume, _)| format!("a second disk is {volume}"),
    );
}

fn store_at(place: &StorePlaces) -> usize {
    let named = [&place.path, &place.pool, &place.dataset].into_iter().find(|key| key.is_some());
    start(named.unwrap_or(&place.driver))
}

fn path_of(disk: &Disk) -> Option<&Path> {
    match &disk.source {
        Source::Path(path) | Source::Published { path, .. } => Some(path),
        Source::Volume(_) => None,
    }
}

fn volume_of(disk: &Disk) -> Option<&str> {
    match &disk.source {
        Source::Path(_) => None,
        Source::Volume(volume) | Source::Published { volume, .. } => Some(volume),
    }
}

fn peer_at(vm: &Vm, place: &VmPlaces) -> usize {
    match vm.peer {
        PeerId::Cid(_) => start(&place.cid),
        PeerId::Socket(_) => start(&place.socket),
        PeerId::Nobody => start(&place.name),
    }
}

fn one_vm(config: &Config, vm: &Vm, places: &VmPlaces, found: &mut Found<'_>) {
    if vm.uuid.as_uuid().is_nil() {
        found.say(start(&places.uuid), format!("the UUID of {} is nil; give it its own (uuidgen)", vm.name));
    }
    match &vm.peer {
        PeerId::Cid(_) if !config.service.listen_vsock => found.say(
            start(&places.cid),
            format!("{} has a CID, but [service] listen_vsock is false: it could never come in", vm.name),
        ),
        PeerId::Cid(1) if config.service.allow_local_cid => {}
        PeerId::Cid(cid @ (0..=2 | u32::MAX)) => found.say(
            start(&places.cid),
            format!("{} has the CID {cid}, which is reserved; guests have 3 and above", vm.name),
        ),
        PeerId::Cid(_) | PeerId::Nobody => {}
        PeerId::Socket(path) => {
            let suffix = format!("_{}", protocol::PORT);
            found.socket(start(&places.socket), path, &suffix, &format!("the socket of {}", vm.name));
        }
    }
    if let Some(path) = &vm.qmp {
        found.socket(start(&places.qmp), path, "", &format!("the QMP socket of {}", vm.name));
    }
    if vm.disks.len() > MAX_DISKS {
        let count = vm.disks.len();
        found.say(
            start(&places.name),
            format!("{} has {count} disks; at most {MAX_DISKS} are supported", vm.name),
        );
    }
    let disks = || vm.disks.iter().zip(&places.disk);
    found.twice(disks().map(|(disk, place)| (disk.serial.virtio(), start(&place.serial))), |serial| {
        format!(
            "two disks of {} have the serial {serial} in the 20 bytes that virtio carries; \
             the guest could not tell them apart",
            vm.name
        )
    });
    for (disk, places) in disks() {
        one_disk(config, vm, disk, places, found);
    }
}

fn one_disk(config: &Config, vm: &Vm, disk: &Disk, places: &DiskPlaces, found: &mut Found<'_>) {
    if disk.serial.virtio().parse::<AttachedName>().is_ok() {
        let what = format!("the serial {} is as those of attached snapshots: choose another", disk.serial);
        found.say(start(&places.serial), what);
    }
    if let Some(path) = path_of(disk) {
        found.path(start(&places.path), path, &format!("the path of the disk {}", disk.serial));
        // Cutting a snapshot as if it were a disk would never end.
        if path.components().any(|part| part.as_os_str() == ".hostsnap") {
            let what = format!("the disk {} is in a store's folder of snapshots (.hostsnap)", disk.serial);
            found.say(start(&places.path), what);
        }
    }
    let Some(store) = config.stores.iter().find(|store| store.name == disk.store) else {
        let names: Vec<_> = config.stores.iter().map(|store| store.name.as_str()).collect();
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        found.say(start(&places.store), format!("there is no store {:?}; there are: {there}", disk.store));
        return;
    };
    let driver = store.backend.driver();
    if store.backend.needs_qmp() && vm.qmp.is_none() {
        found.say(
            start(&places.store),
            format!("the driver {driver} needs the QMP socket of {}: add qmp = \"/path\"", vm.name),
        );
    }
    let serial = &disk.serial;
    match (store.backend.named(), &disk.source) {
        (Named::Path, Source::Path(_))
        | (Named::Volume, Source::Volume(_))
        | (Named::Both, Source::Published { .. }) => {}
        (Named::Path, _) => found.say(
            start(&places.volume),
            format!("the driver {driver} needs the path of the disk {serial}: path = \"/…\" instead of volume"),
        ),
        (Named::Volume, _) => found.say(
            start(&places.path),
            format!("the driver {driver} needs the name of the disk {serial} on the storage: volume = \"…\" instead of path"),
        ),
        (Named::Both, Source::Path(_)) => found.say(
            start(&places.path),
            format!("the driver {driver} also needs the name of the disk {serial} on the storage: volume = \"…\" beside path"),
        ),
        (Named::Both, Source::Volume(_)) => found.say(
            start(&places.volume),
            format!("the driver {driver} also needs the device that the disk {serial} is on this host: path = \"/…\" beside volume"),
        ),
    }
}
