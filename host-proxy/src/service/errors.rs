//! One failure, two texts: what the guest reads and what the host logs. The guest learns what it
//! can do; paths, programs and other machines stay in the log.

use std::error::Error;
use std::fmt::Write;

use protocol::{ErrorCode, WireError};

use super::shown::TooShort;
use crate::catalog::CatalogError;
use crate::drivers::{DriverError, Kind};
use crate::vmm::libvirt::LibvirtError;
use crate::vmm::plug::PlugError;

/// Logs a failure with all its causes and makes the guest's text of it.
pub(super) fn of_driver(vm: &str, doing: &str, error: &DriverError) -> WireError {
    tracing::error!(vm, "{doing}: {}", chain(error));
    let (code, text, hint) = match error.kind {
        _ if is_too_short(error) => (
            ErrorCode::StorageFailed,
            "the snapshot is damaged: what the host's storage has of it is shorter than the disk was",
            "use another one (hostsnap list); the host's log says which file it is: journalctl -u hostsnapd",
        ),
        Kind::NoSpace => (
            ErrorCode::NoSpace,
            "the host's storage has no room",
            "delete snapshots, or ask the host's administrator for room",
        ),
        Kind::Busy => (ErrorCode::Busy, "the host's storage is busy with it", "try again in a moment"),
        Kind::Exists => {
            (ErrorCode::Busy, "the storage holds an unfinished snapshot of this request", RECONCILE)
        }
        Kind::NotFound => (ErrorCode::StorageFailed, "the host's storage does not have it", CHECK),
        Kind::Unsupported => {
            (ErrorCode::Unsupported, error.told.unwrap_or("the host's storage can't do that"), CHECK)
        }
        Kind::DeadlinePassed => (ErrorCode::TimedOut, "the host's storage took too long", CHECK),
        Kind::Unreachable => (
            ErrorCode::StorageFailed,
            "the host can't reach what manages it (QEMU's monitor, the storage device)",
            CHECK,
        ),
        Kind::Cancelled => (ErrorCode::Unavailable, "the host stopped it", "try again in a moment"),
        Kind::Failed => (ErrorCode::StorageFailed, "the host's storage failed", CHECK),
    };
    WireError::new(code, format!("{doing}: {text}")).hint(hint)
}

const CHECK: &str = "the host's log says why: hostsnapd check, journalctl -u hostsnapd";
const RECONCILE: &str = "the host's administrator runs hostsnapd reconcile";

/// As [`of_driver`], for what is plugged into a machine or taken out of it.
pub(super) fn of_attaching(vm: &str, doing: &str, error: &DriverError) -> WireError {
    let plug = error.source.as_ref().and_then(|source| source.downcast_ref::<PlugError>());
    let (code, text, hint) = match plug {
        Some(PlugError::NoPort(_)) => (
            ErrorCode::Unsupported,
            format!("no port of {vm} is free for another disk"),
            "give back what is attached (hostsnap list), or let the host's administrator start QEMU with more \
             ports, each -device pcie-root-port,id=hs1,chassis=101,slot=101 with numbers of its own, or with \
             -device virtio-scsi-pci,id=hsscsi; in libvirt <controller type='pci' model='pcie-root-port'/> or <controller \
             type='scsi' model='virtio-scsi'/>",
        ),
        Some(PlugError::NotReleased(name, limit)) => (
            ErrorCode::Busy,
            format!("{vm} has not released {name} within {} s", limit.as_secs()),
            "unmount what is mounted from it and try again; it ends at the latest when the machine is reset",
        ),
        Some(PlugError::Moving) => (
            ErrorCode::Busy,
            format!("{vm} is being moved to another host, saved or restored"),
            "try again when it runs; a machine that is to be moved or saved gives back first what is attached",
        ),
        Some(PlugError::Unsupported(why)) => (
            ErrorCode::Unsupported,
            format!("{vm} can't take it: {why}"),
            "read it on the host (hostsnapd export), or give the machine a [[vm]] with a qmp of its own",
        ),
        _ => return of_driver(vm, doing, error),
    };
    tracing::warn!(vm, "{doing}: {}", chain(error));
    WireError::new(code, format!("{doing}: {text}")).hint(hint)
}

fn is_too_short(error: &DriverError) -> bool {
    error.source.as_ref().is_some_and(|source| source.is::<TooShort>())
}

/// What kind of failure libvirt's is.
pub(super) fn kind_of_libvirt(error: &LibvirtError) -> Kind {
    match error {
        LibvirtError::TimedOut { .. } => Kind::DeadlinePassed,
        LibvirtError::Unreachable { .. } | LibvirtError::Gone(_) => Kind::Unreachable,
        LibvirtError::Refused { .. } | LibvirtError::Malformed { .. } | LibvirtError::File(_) => Kind::Failed,
    }
}

/// Logs a failure of the catalog and makes the guest's text of it.
pub(super) fn of_catalog(error: &CatalogError) -> WireError {
    if let CatalogError::UnknownCursor(_) = error {
        return WireError::new(ErrorCode::NotFound, error.to_string());
    }
    tracing::error!("catalog: {}", chain(error));
    if error.is_full() {
        return WireError::new(ErrorCode::NoSpace, "the host has no room for its catalog of snapshots")
            .hint("the host's administrator makes room in the file system of the state_dir");
    }
    if error.is_damage() {
        return WireError::new(ErrorCode::StorageFailed, "the host's catalog of snapshots is damaged").hint(
            "no snapshot is lost: the host's administrator stops hostsnapd and runs hostsnapd rebuild-catalog",
        );
    }
    WireError::new(ErrorCode::Internal, "the host could not use its catalog of snapshots").hint(CHECK)
}

/// An error with all its causes, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, ": {error}").expect("writing to a String");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn a_catalog_that_is_damaged_while_it_is_open_is_told_as_that_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.sqlite");
        std::fs::write(&path, vec![0xa5; 20_000]).unwrap();
        let read = Connection::open(&path).unwrap().query_row("SELECT 1 FROM snapshots", [], |_| Ok(()));
        let error = of_catalog(&read.unwrap_err().into());
        assert_eq!((error.code, error.code.exit_code()), (ErrorCode::StorageFailed, 8), "{error}");
        assert!(error.message.as_str().contains("damaged"), "{error}");
        assert!(error.hint.as_str().contains("rebuild-catalog"), "{error}");
    }
}
