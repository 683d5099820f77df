//! The machines that libvirt has and the configuration's file does not name. What libvirt says becomes what a `[[vm]]`
//! would; an entry of the file wins, and learns only that libvirt has its machine. [`join`] is pure.
//!
//! What can't be taken is left out and told, with what to write into the domain: nothing is guessed, because a wrong
//! guess cuts another's disk.
//!
//! | module | idea |
//! |---|---|
//! | this one | asking, and what only one machine may have |
//! | `domain` | one domain as a machine, and what can't be taken of it |
//! | `stores` | which store a disk is in |

mod domain;
mod stores;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use protocol::VmUuid;

use crate::config::{Config, LibvirtConfig, PeerId, Vm};
use crate::vmm::libvirt::xml::{self, Described};
use crate::vmm::libvirt::{self, Domain, LibvirtError};
use domain::Reader;

/// All machines, and what was left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machines {
    /// Those of the file, then those that libvirt has beside them.
    pub vms: Vec<Vm>,
    /// What is not taken.
    pub left_out: Vec<LeftOut>,
}

/// Something of a domain that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// The domain, or one of its disks: `db1`, `vdb of db1`.
    pub what: String,
    /// Why, and what to do.
    pub why: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// The paths of volumes in libvirt's storage pools.
type Volumes = BTreeMap<(String, String), PathBuf>;

/// Asks libvirt, and joins what it says to the file's machines. It blocks.
pub fn look(file: &Config, libvirt: &LibvirtConfig) -> Result<Machines, LibvirtError> {
    let uuids = libvirt::domains(&libvirt.uri)?;
    let mut domains = Vec::with_capacity(uuids.len());
    let mut left_out = Vec::new();
    for text in libvirt::dump(&libvirt.uri, &uuids)? {
        match xml::read(&text) {
            Ok(domain) => domains.push(domain),
            Err(error) => left_out.push(LeftOut { what: "a domain".to_owned(), why: error.to_string() }),
        }
    }
    let of_pools: BTreeSet<(String, String)> = domains
        .iter()
        .flat_map(|domain| &domain.disks)
        .filter_map(|disk| match &disk.source {
            xml::Source::Volume { pool, volume } => Some((pool.clone(), volume.clone())),
            _ => None,
        })
        .collect();
    let volumes = libvirt::volume_paths(&libvirt.uri, of_pools)?;
    let mut machines = join(file, libvirt, &domains, &volumes);
    machines.left_out.extend(left_out);
    Ok(machines)
}

/// Joins the domains to the file's machines.
pub fn join(file: &Config, libvirt: &LibvirtConfig, domains: &[Described], volumes: &Volumes) -> Machines {
    let mut machines = Machines { vms: file.vms.clone(), left_out: Vec::new() };
    for vm in &mut machines.vms {
        let is_there = domains.iter().any(|domain| domain.uuid == vm.uuid);
        vm.domain = is_there.then(|| Domain { uri: libvirt.uri.clone(), uuid: vm.uuid });
    }
    let taken = Taken::of(file, domains);
    for domain in domains.iter().filter(|domain| file.vms.iter().all(|vm| vm.uuid != domain.uuid)) {
        let mut reader = Reader { file, libvirt, volumes, taken: &taken, domain, left_out: Vec::new() };
        if let Some(vm) = reader.machine() {
            machines.vms.push(vm);
        }
        machines.left_out.extend(reader.left_out);
    }
    machines
}

/// What only one machine may have.
struct Taken<'a> {
    names: BTreeSet<&'a str>,
    /// The file's.
    cids: BTreeSet<u32>,
    /// Of domains that run. What was looked at one after another need not be of one moment.
    running_cids: Vec<u32>,
    /// The file's.
    sources: BTreeSet<String>,
    /// How many domains that run, and how many in all, have a disk with this behind it.
    shared: BTreeMap<&'a xml::Source, (usize, usize)>,
}

impl<'a> Taken<'a> {
    fn of(file: &'a Config, domains: &'a [Described]) -> Self {
        let mut shared: BTreeMap<_, (usize, usize)> = BTreeMap::new();
        for domain in domains {
            for disk in &domain.disks {
                let (running, all) = shared.entry(&disk.source).or_default();
                *running += usize::from(domain.is_running);
                *all += 1;
            }
        }
        Self {
            names: file.vms.iter().map(|vm| vm.name.as_str()).collect(),
            cids: file
                .vms
                .iter()
                .filter_map(|vm| match vm.peer {
                    PeerId::Cid(cid) => Some(cid),
                    _ => None,
                })
                .collect(),
            sources: file.vms.iter().flat_map(|vm| &vm.disks).map(|disk| disk.source.to_string()).collect(),
            running_cids: domains.iter().filter(|one| one.is_running).filter_map(|one| one.cid).collect(),
            shared,
        }
    }

    fn is_cid_of_two(&self, cid: u32) -> bool {
        self.running_cids.iter().filter(|one| **one == cid).count() > 1
    }

    /// Whether a disk is another machine's as well: what does not run may have it, as a copy of a definition has.
    fn is_anothers_too(&self, source: &xml::Source, is_running: bool) -> bool {
        let (running, all) = self.shared.get(source).copied().unwrap_or_default();
        if is_running { running > 1 } else { all > 1 }
    }
}

/// The file's machines alone.
pub fn of_the_file(config: &Config) -> Config {
    let mut file = config.clone();
    file.vms.retain(|vm| !vm.is_discovered);
    file.vms.iter_mut().for_each(|vm| vm.domain = None);
    file
}

/// The machines that libvirt was said to have, as UUIDs: for a log.
pub fn discovered(config: &Config) -> BTreeSet<VmUuid> {
    config.vms.iter().filter(|vm| vm.is_discovered).map(|vm| vm.uuid).collect()
}

#[cfg(test)]
mod tests;
