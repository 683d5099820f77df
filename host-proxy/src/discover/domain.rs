//! One domain as a machine, and what can't be taken of it.

use std::path::{Component, PathBuf};

use protocol::DiskSerial;
use protocol::attach::AttachedName;

use super::{LeftOut, Taken, Volumes, stores};
use crate::config::{Backend, Config, Disk, LibvirtConfig, PeerId, Vm};
use crate::drivers::{Format, Source};
use crate::vmm::libvirt::Domain;
use crate::vmm::libvirt::xml::{self, Described};

/// The first CID of a guest.
const FIRST_CID: u32 = 3;
/// How many disks one virtual machine may have; as many as a message can name.
const MAX_DISKS: usize = 64;

pub(super) struct Reader<'a> {
    pub(super) file: &'a Config,
    pub(super) libvirt: &'a LibvirtConfig,
    pub(super) volumes: &'a Volumes,
    pub(super) taken: &'a Taken<'a>,
    pub(super) domain: &'a Described,
    pub(super) left_out: Vec<LeftOut>,
}

impl Reader<'_> {
    fn leave_out(&mut self, why: String) {
        self.left_out.push(LeftOut { what: self.domain.name.clone(), why });
    }

    pub(super) fn machine(&mut self) -> Option<Vm> {
        let Described { name, uuid, .. } = self.domain;
        if uuid.as_uuid().is_nil() {
            self.leave_out("its UUID is nil; give it its own (uuidgen)".to_owned());
            return None;
        }
        if self.taken.names.contains(name.as_str()) {
            self.leave_out(format!("a [[vm]] has its name and another UUID than {uuid}"));
            return None;
        }
        // libvirt allows what ours do not; a UUID is a name as well.
        let name = name.parse().unwrap_or_else(|_| uuid.to_string().parse().expect("a UUID is a valid name"));
        let peer = self.peer();
        Some(Vm {
            name,
            uuid: *uuid,
            peer,
            qmp: None,
            domain: Some(Domain { uri: self.libvirt.uri.clone(), uuid: *uuid }),
            is_discovered: true,
            allow: self.libvirt.allow.clone(),
            guest_may_delete: self.libvirt.guest_may_delete,
            quota: self.libvirt.quota,
            disks: self.disks(),
        })
    }

    fn peer(&mut self) -> PeerId {
        let Described { cid, is_running, .. } = *self.domain;
        match cid {
            // A CID is a domain's only while it runs.
            _ if !is_running => PeerId::Nobody,
            Some(cid) if self.taken.cids.contains(&cid) => {
                self.leave_out(format!("its guest can't ask: a [[vm]] has its CID {cid}"));
                PeerId::Nobody
            }
            Some(cid) if self.taken.is_cid_of_two(cid) => {
                self.leave_out(format!("its guest can't ask: two domains that run have the CID {cid}"));
                PeerId::Nobody
            }
            Some(cid @ FIRST_CID..) => PeerId::Cid(cid),
            _ => {
                self.leave_out(
                    "its guest can't ask, for want of a vsock device: add <vsock model='virtio'><cid auto='yes'/></vsock> \
                     to its <devices>"
                        .to_owned(),
                );
                PeerId::Nobody
            }
        }
    }

    fn disks(&mut self) -> Vec<Disk> {
        let mut disks: Vec<Disk> = Vec::new();
        let domain = self.domain;
        for disk in &domain.disks {
            // A snapshot of ours.
            if disk.serial.as_deref().is_some_and(|serial| serial.parse::<AttachedName>().is_ok()) {
                continue;
            }
            match self.disk(disk) {
                Ok(_) if disks.len() == MAX_DISKS => {
                    self.leave_out_disk(&disk.target, format!("at most {MAX_DISKS} disks are supported"));
                }
                Ok(read) => disks.push(read),
                Err(why) => self.leave_out_disk(&disk.target, why),
            }
        }
        disks
    }

    /// Whether the guest could take two disks for the one of this serial.
    fn has_twin(&self, serial: &DiskSerial) -> bool {
        let serials = self.domain.disks.iter().filter_map(|disk| disk.serial.as_deref()?.parse().ok());
        serials.filter(|one: &DiskSerial| one.same_disk(serial)).count() > 1
    }

    fn leave_out_disk(&mut self, target: &str, why: String) {
        self.left_out.push(LeftOut { what: format!("{target} of {}", self.domain.name), why });
    }

    fn disk(&self, disk: &xml::Disk) -> Result<Disk, String> {
        if disk.is_shared {
            return Err("it is <shareable/>: other machines write to it too".to_owned());
        }
        let serial = disk.serial.as_deref().ok_or_else(|| {
            format!(
                "neither its guest nor the host could name it: add <serial>{}</serial> to its <disk>, then stop and start \
                 the machine",
                disk.target
            )
        })?;
        let serial: DiskSerial =
            serial.parse().map_err(|error| format!("its <serial> can't be used: {error}"))?;
        if self.has_twin(&serial) {
            return Err(format!(
                "another of its disks has the serial {} in the 20 bytes that virtio carries",
                serial.virtio()
            ));
        }
        let (source, store) = self.source(disk)?;
        if self.taken.sources.contains(&source.to_string()) {
            return Err(format!("a [[vm]] has a disk that is {source}"));
        }
        if self.taken.is_anothers_too(&disk.source, self.domain.is_running) {
            return Err(format!("another domain has a disk that is {source}"));
        }
        let format = match disk.layout.as_str() {
            "raw" => Format::Raw,
            "qcow2" => Format::Qcow2,
            other => return Err(format!("its layout is {other}; raw and qcow2 are supported")),
        };
        Ok(Disk { serial, store, source, format })
    }

    fn source(&self, disk: &xml::Disk) -> Result<(Source, String), String> {
        let path = match &disk.source {
            xml::Source::Path(path) => PathBuf::from(path),
            xml::Source::Volume { pool, volume } => {
                let known = self.volumes.get(&(pool.clone(), volume.clone())).cloned();
                known.ok_or_else(|| {
                    format!("libvirt knows no path of the volume {volume} of its pool {pool}")
                })?
            }
            xml::Source::Rbd(name) => return stores::of_image(self.file, name),
            xml::Source::Other(kind) => {
                return Err(format!("its storage ({kind}) is none that a driver has"));
            }
        };
        let is_plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        if !is_plain || path.components().any(|part| part.as_os_str() == ".hostsnap") {
            return Err(format!("{} is no path of a disk", path.display()));
        }
        let store = stores::of_path(self.file, self.libvirt, &path).ok_or_else(|| {
            format!(
                "{} is in no store: add its folder to [libvirt] stores, or a store = … for all that are in none",
                path.display()
            )
        })?;
        let backend = self.file.stores.iter().find(|one| one.name == store).map(|one| &one.backend);
        match backend {
            Some(Backend::Qemu(_)) => Err(format!(
                "the store {store} is of the driver qemu, which needs a QMP socket of its own, and libvirt keeps QEMU's to \
                 itself: use reflink, btrfs, lvm-thin, zfs or rbd, or write a [[vm]] with qmp"
            )),
            Some(Backend::Rbd(_) | Backend::Csi(_)) => {
                Err(format!("the store {store} names its disks by volume: write a [[vm]] for this machine"))
            }
            _ => Ok((Source::Path(path), store)),
        }
    }
}
