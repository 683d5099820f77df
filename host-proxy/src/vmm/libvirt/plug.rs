//! Plugging a snapshot's disk into a domain and taking it out, through libvirt, whose own account of the domain so
//! stays true. A disk of ours is known by its alias (`ua-…`, which libvirt leaves to users) and by its serial.

use std::time::{Duration, Instant};

use protocol::attach::AttachedName;

use super::behind::{self, Behind};
use super::xml::{self, Described, Disk};
use super::{Domain, LibvirtError, description, of_domain, state, with_file};
use crate::vmm::pause::RunState;
use crate::vmm::plug::{Content, Found, PlugError, SCSI_PRODUCT};

/// How long libvirt may take to plug one in: QEMU opens it meanwhile.
const PLUG_LIMIT: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(10);
/// libvirt is asked by a process of its own each time.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// What a refusal says where the domain has no more room for a device of that bus.
const FULL: [&str; 3] = ["No more available PCI slots", "no usable target port", "No available unit"];

/// A bus that a domain may take a disk on.
#[derive(Debug, Clone, Copy)]
enum Bus {
    Virtio,
    Scsi,
}

/// Plugs a disk in. A failure leaves nothing behind, unless libvirt no longer answers.
pub(in crate::vmm) fn plug(domain: &Domain, name: &AttachedName, content: &Content) -> Result<(), PlugError> {
    // libvirt would wait for its end, and do it then.
    if state(domain)? == RunState::Moving {
        return Err(PlugError::Moving);
    }
    let described = description(domain)?;
    // Kept until QEMU has opened what it is given.
    let plugged = Behind::of(name, content, &described)
        .and_then(|behind| plug_what_is(&behind, domain, name, &described));
    if plugged.is_err() {
        behind::forget(name);
    }
    plugged
}

fn plug_what_is(
    behind: &Behind,
    domain: &Domain,
    name: &AttachedName,
    described: &Described,
) -> Result<(), PlugError> {
    let mut refusals = Vec::new();
    for bus in buses(described) {
        let xml = disk(name, behind, &free_target(described, bus), bus);
        match with_file(domain, "attach-device", &xml, PLUG_LIMIT) {
            Ok(()) => return Ok(()),
            Err(LibvirtError::Refused { source, .. }) if is_full(&source.to_string()) => {
                refusals.push(source.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(PlugError::NoPort(refusals))
}

/// Takes a disk out: asks its guest for it and waits. What is not there is out already.
pub(in crate::vmm) fn unplug(domain: &Domain, name: &AttachedName, limit: Duration) -> Result<(), PlugError> {
    let unplugged = unplug_it(domain, name, limit);
    if unplugged.as_ref().err().is_none_or(PlugError::is_gone) {
        behind::forget(name);
    }
    unplugged
}

fn unplug_it(domain: &Domain, name: &AttachedName, limit: Duration) -> Result<(), PlugError> {
    let deadline = Instant::now() + limit;
    let alias = alias(name);
    let mut asked = false;
    while description(domain)?.disks.iter().any(|disk| disk.alias.as_deref() == Some(&alias)) {
        if !asked {
            if state(domain)? == RunState::Moving {
                return Err(PlugError::Moving);
            }
            // Refused where its guest was asked before, and has not answered.
            match of_domain(domain, &["detach-device-alias"], &[&alias, "--live"], LIMIT) {
                Ok(_) | Err(LibvirtError::Refused { .. }) => asked = true,
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        if Instant::now() >= deadline {
            return Err(PlugError::NotReleased(name.clone(), limit));
        }
        std::thread::sleep(POLL_EVERY);
    }
    Ok(())
}

/// Every disk of ours in this domain.
pub(in crate::vmm) fn found(domain: &Domain) -> Result<Vec<Found>, LibvirtError> {
    let described = description(domain)?;
    if !described.is_running {
        return Err(LibvirtError::Gone(domain.clone()));
    }
    let ours = |disk: &Disk| {
        let name: AttachedName = disk.serial.as_deref()?.parse().ok()?;
        let is_ours = disk.alias.as_deref() == Some(&alias(&name));
        is_ours.then_some(Found { name, is_whole: true, is_writable: !disk.is_read_only })
    };
    Ok(described.disks.iter().filter_map(ours).collect())
}

/// What libvirt takes: letters, digits, `-` and `_` (`src/conf/domain_validate.c`).
fn alias(name: &AttachedName) -> String {
    format!("ua-{}", name.to_string().replace('.', "_"))
}

fn buses(described: &Described) -> Vec<Bus> {
    if described.takes_scsi { vec![Bus::Virtio, Bus::Scsi] } else { vec![Bus::Virtio] }
}

fn is_full(refusal: &str) -> bool {
    FULL.iter().any(|words| refusal.contains(words))
}

/// The first of `vda`, `vdb`, … `vdzz` that no disk of the domain has.
fn free_target(described: &Described, bus: Bus) -> String {
    let prefix = match bus {
        Bus::Virtio => "vd",
        Bus::Scsi => "sd",
    };
    let letters = || ('a'..='z').map(String::from);
    let pairs = letters().flat_map(|first| letters().map(move |second| format!("{first}{second}")));
    let mut all = letters().chain(pairs).map(|letters| format!("{prefix}{letters}"));
    all.find(|target| described.disks.iter().all(|disk| disk.target != *target))
        .unwrap_or_else(|| format!("{prefix}aaa"))
}

fn disk(name: &AttachedName, behind: &Behind, target: &str, bus: Bus) -> String {
    let (serial, alias) = (xml::escaped(&name.to_string()), alias(name));
    let (kind, elements) = (behind.kind(), behind.elements());
    let (bus, product) = match bus {
        Bus::Virtio => ("virtio", String::new()),
        Bus::Scsi => ("scsi", format!("<product>{SCSI_PRODUCT}</product>")),
    };
    format!(
        "<disk type='{kind}' device='disk'>{elements}<target dev='{target}' bus='{bus}'/>\
         <serial>{serial}</serial>{product}<alias name='{alias}'/></disk>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::plug::Base;

    #[test]
    fn a_disk_that_we_plug_in_is_known_again_and_takes_a_free_name() {
        let name: AttachedName = "hs-bf77abd9d60d54.0".parse().unwrap();
        let others = "<disk><target dev='vda'/></disk><disk><target dev='vdc'/></disk>";
        let domain = |disks: &str| {
            let text = format!(
                "<domain id='1'><name>n</name><uuid>3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01</uuid>\
                 <devices>{disks}</devices></domain>"
            );
            xml::read(&text).unwrap()
        };
        let target = free_target(&domain(others), Bus::Virtio);
        assert_eq!(target, "vdb");
        assert_eq!(free_target(&domain(others), Bus::Scsi), "sda");
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[0; 4096]).unwrap();
        let base = || Base::File(file.try_clone().unwrap(), "raw");
        let behind = Behind::of(&name, &Content::ReadOnly(base()), &domain("")).unwrap();
        let ours = disk(&name, &behind, &target, Bus::Virtio);
        let described = domain(&format!("{others}{ours}"));
        let disk = &described.disks[2];
        assert_eq!(disk.alias.as_deref(), Some("ua-hs-bf77abd9d60d54_0"));
        assert_eq!(disk.serial.as_deref(), Some("hs-bf77abd9d60d54.0"));
        let device = "/dev/hostsnap/hs-bf77abd9d60d54.0";
        assert_eq!(disk.source, xml::Source::Path(device.to_owned()));
        assert!(disk.is_read_only && std::fs::read(device).unwrap() == [0; 4096]);
        behind::forget(&name);
        assert!(!std::path::Path::new(device).exists());
    }
}
