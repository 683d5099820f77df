//! What the administrator configures: read, checked as a whole, and never changed by the service.
//!
//! Keys are refused if unknown. Errors name the file, the line and what is allowed; all mistakes
//! that can be found at once are reported at once.

mod backend;
mod check;
mod disk;
mod libvirt;
mod place;
mod units;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::text::Name;
use protocol::{DiskSerial, VmUuid};
use serde::Deserialize;

pub use backend::Backend;
pub use libvirt::{Discover, LibvirtConfig};

use crate::drivers::{Format, Source};
use crate::vmm::libvirt::Domain;
use crate::vmm::monitor::Monitor;

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The service itself.
    #[serde(default)]
    pub service: ServiceConfig,
    /// The machines that libvirt has.
    pub libvirt: Option<LibvirtConfig>,
    /// Where snapshots are kept.
    #[serde(default, rename = "store")]
    pub stores: Vec<Store>,
    /// The virtual machines.
    #[serde(default, rename = "vm")]
    pub vms: Vec<Vm>,
}

/// `[service]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceConfig {
    /// Whether to listen on AF_VSOCK.
    pub listen_vsock: bool,
    /// Who tells which machines there are, beside the file.
    pub discover: Option<Discover>,
    /// Whether CID 1, the machine itself, may be a virtual machine: for tests.
    pub allow_local_cid: bool,
    /// Whether a guest must connect from a port below 1024, where the transport shows it.
    pub require_privileged_port: bool,
    /// Where the catalog and the audit log are.
    pub state_dir: PathBuf,
    /// The administrator's socket.
    pub control_socket: PathBuf,
    /// How many connections one virtual machine may have open.
    pub max_connections_per_vm: usize,
    /// The longest lease that a guest gets.
    #[serde(deserialize_with = "units::duration")]
    pub max_lease: Duration,
}

/// `[[store]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Its name, for `[[vm.disk]] store`.
    pub name: String,
    /// How it takes snapshots, and where.
    pub backend: Backend,
    /// How many bytes a snapshot must leave free.
    pub min_free: u64,
}

/// `[[vm]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Vm {
    /// Its name.
    pub name: Name,
    /// Its UUID, by its SMBIOS.
    pub uuid: VmUuid,
    /// How it comes in.
    pub peer: PeerId,
    /// Its QMP socket.
    pub qmp: Option<PathBuf>,
    /// What it is to libvirt, where libvirt has it.
    pub domain: Option<Domain>,
    /// Whether it is known from libvirt alone.
    pub is_discovered: bool,
    /// What its guest may do.
    pub allow: BTreeSet<Verb>,
    /// Whether its guest may delete its own snapshots.
    pub guest_may_delete: bool,
    /// How much it may have.
    pub quota: Quota,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// How a virtual machine comes in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerId {
    /// By AF_VSOCK with this CID.
    Cid(u32),
    /// By the hybrid vsock device with this base path.
    Socket(PathBuf),
    /// It does not: it does not run, or has no vsock device.
    Nobody,
}

/// What a guest may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Take snapshots.
    Create,
    /// See its disks and snapshots.
    List,
    /// Delete its snapshots.
    Delete,
    /// Attach its snapshots to itself.
    Attach,
    /// Give its disks the bytes of its snapshots.
    Restore,
}

/// `[vm.quota]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// How many snapshots.
    pub snapshots: u64,
    /// How many bytes of disks in snapshots, each counted whole; unlimited if absent.
    #[serde(deserialize_with = "units::optional_bytes")]
    pub bytes: Option<u64>,
    /// How many new snapshots an hour.
    pub per_hour: u64,
}

/// `[[vm.disk]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// By which the guest knows it.
    pub serial: DiskSerial,
    /// Which store keeps its snapshots.
    pub store: String,
    /// What is behind it: `path` or `volume`.
    pub source: Source,
    /// Its layout.
    pub format: Format,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There are mistakes in it, each on its line.
    #[error("the configuration has mistakes:\n{0}")]
    Mistakes(String),
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            listen_vsock: true,
            discover: None,
            allow_local_cid: false,
            require_privileged_port: true,
            state_dir: "/var/lib/hostsnap".into(),
            control_socket: "/run/hostsnap/control.sock".into(),
            max_connections_per_vm: 8,
            max_lease: Duration::from_secs(120),
        }
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self { snapshots: 100, bytes: None, per_hour: 60 }
    }
}

impl Config {
    /// What is said of libvirt's machines, where libvirt is asked for them.
    pub fn discovered_by_libvirt(&self) -> Option<LibvirtConfig> {
        let Discover::Libvirt = self.service.discover?;
        Some(self.libvirt.clone().unwrap_or_default())
    }

    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks a file's text; `path` is for errors only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            ConfigError::Mistakes(check::tell(path, text, at, error.message()))
        })?;
        let mistakes = check::mistakes(&config, text);
        if mistakes.is_empty() {
            return Ok(config);
        }
        let lines: Vec<_> = mistakes.iter().map(|mistake| mistake.tell(path, text)).collect();
        Err(ConfigError::Mistakes(lines.join("\n")))
    }
}

impl Vm {
    /// By whom it is asked while it runs, if there is somebody.
    pub fn monitor(&self) -> Option<Monitor> {
        let by_qmp = self.qmp.clone().map(Monitor::Qmp);
        by_qmp.or_else(|| self.domain.clone().map(Monitor::Libvirt))
    }
}

impl<'de> Deserialize<'de> for Vm {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            name: Name,
            uuid: VmUuid,
            cid: Option<u32>,
            socket: Option<PathBuf>,
            qmp: Option<PathBuf>,
            allow: Option<BTreeSet<Verb>>,
            #[serde(default = "yes")]
            guest_may_delete: bool,
            #[serde(default)]
            quota: Quota,
            #[serde(default, rename = "disk")]
            disks: Vec<Disk>,
        }
        let raw = Raw::deserialize(deserializer)?;
        let peer = match (raw.cid, raw.socket) {
            (Some(cid), None) => PeerId::Cid(cid),
            (None, Some(path)) => PeerId::Socket(path),
            _ => {
                return Err(serde::de::Error::custom(format!(
                    "the machine {} needs exactly one of `cid` (AF_VSOCK) and `socket` (hybrid vsock)",
                    raw.name
                )));
            }
        };
        Ok(Self {
            name: raw.name,
            uuid: raw.uuid,
            peer,
            qmp: raw.qmp,
            domain: None,
            is_discovered: false,
            allow: raw.allow.unwrap_or_else(Verb::all),
            guest_may_delete: raw.guest_may_delete,
            quota: raw.quota,
            disks: raw.disks,
        })
    }
}

fn yes() -> bool {
    true
}

impl Verb {
    /// All of them.
    pub fn all() -> BTreeSet<Self> {
        [Self::Create, Self::List, Self::Delete, Self::Attach, Self::Restore].into()
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Attach => "attach",
            Self::Restore => "restore",
        })
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cid(cid) => write!(f, "cid {cid}"),
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Nobody => f.write_str("nowhere"),
        }
    }
}

#[cfg(test)]
mod tests;
