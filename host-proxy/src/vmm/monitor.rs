//! By whom a running machine is asked: its QEMU itself, by QMP, or libvirt, where the monitor is libvirt's.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use protocol::attach::AttachedName;

use super::libvirt::{self, Domain, LibvirtError};
use super::plug::{self, Content, Found, PlugError};
use super::qmp::{Qmp, QmpError};

/// How long a monitor may take to greet.
const GREET_LIMIT: Duration = Duration::from_secs(5);

/// The way to a machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Monitor {
    /// QEMU's monitor at this socket.
    Qmp(PathBuf),
    /// This domain of libvirt's.
    Libvirt(Domain),
}

/// A machine did not do it, or did not say.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// QEMU.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// libvirt.
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
}

impl MonitorError {
    /// Whether the machine is gone, and not only whoever is asked about it.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Qmp(error) => error.is_gone(),
            Self::Libvirt(error) => error.is_gone(),
        }
    }
}

/// No path of a socket begins so: those are absolute.
const LIBVIRT: &str = "libvirt ";

impl Monitor {
    /// As the catalog keeps it: a path is bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Qmp(path) => path.as_os_str().as_bytes().to_vec(),
            Self::Libvirt(Domain { uri, uuid }) => format!("{LIBVIRT}{uuid} {uri}").into_bytes(),
        }
    }

    /// Plugs a disk into the machine. A failure leaves nothing behind, unless nobody answers any more.
    pub fn plug(&self, name: &AttachedName, content: &Content) -> Result<(), PlugError> {
        match self {
            Self::Qmp(path) => plug::plug(&mut Qmp::connect(path, GREET_LIMIT)?, name, content),
            Self::Libvirt(domain) => libvirt::plug::plug(domain, name, content),
        }
    }

    /// Takes a disk out of the machine, which has so long to release it. What is not there is out already.
    pub fn unplug(&self, name: &AttachedName, limit: Duration) -> Result<(), PlugError> {
        match self {
            Self::Qmp(path) => plug::unplug(&mut Qmp::connect(path, GREET_LIMIT)?, name, limit),
            Self::Libvirt(domain) => libvirt::plug::unplug(domain, name, limit),
        }
    }

    /// Every disk of ours in the machine, and what is left of others.
    pub fn found(&self) -> Result<Vec<Found>, PlugError> {
        match self {
            Self::Qmp(path) => {
                let mut qmp = Qmp::connect(path, GREET_LIMIT)?;
                Ok(plug::found(&mut qmp)?)
            }
            Self::Libvirt(domain) => Ok(libvirt::plug::found(domain)?),
        }
    }

    /// From the catalog.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self::domain(&bytes).map_or_else(|| Self::Qmp(OsString::from_vec(bytes).into()), Self::Libvirt)
    }

    fn domain(bytes: &[u8]) -> Option<Domain> {
        let (uuid, uri) = std::str::from_utf8(bytes).ok()?.strip_prefix(LIBVIRT)?.split_once(' ')?;
        Some(Domain { uri: uri.to_owned(), uuid: uuid.parse().ok()? })
    }
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qmp(path) => write!(f, "{}", path.display()),
            Self::Libvirt(domain) => write!(f, "{domain}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_is_read_from_the_catalog_as_it_was_written() {
        let domain = Domain {
            uri: "qemu+unix:///system?socket=/run/a b".to_owned(),
            uuid: "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01".parse().unwrap(),
        };
        let strange = OsString::from_vec(b"/run/\xff libvirt x".to_vec());
        for monitor in
            [Monitor::Qmp("/run/vm/db1.qmp".into()), Monitor::Qmp(strange.into()), Monitor::Libvirt(domain)]
        {
            assert_eq!(Monitor::from_bytes(monitor.to_bytes()), monitor);
        }
    }
}
