//! What is in a snapshot: finds the file system of the original's path on the attached disks and mounts it
//! beside the original, whose names, UUIDs and devices are left alone.
//!
//! | module | idea |
//! |---|---|
//! | [`place`] | where bytes are; can be read before anything is made of it |
//! | [`probe`] | what is at a place, by its super block |
//! | `lvm`, `md`, `btrfs` | what these put together, and how a copy is told from its original |
//! | [`find`] | from disks down to file systems |
//! | [`choose`] | which of them is the original's |
//! | `original` | what is mounted at the path now |
//! | `mapper` | makes block devices of what was put together |
//! | `attachment` | mounts without a trace, or at a folder |
//! | [`state`] | what is to be undone, kept where a crash does not lose it |
//! | [`run`] | joins all of these |
//! | [`undo`] | undoes it |
//! | `udev` | keeps the system's own hands off the attached disks |
//!
//! Why so and not by lvm, mdadm and btrfstune: `docs/decisions/0015-mount.md`.

mod attachment;
mod btrfs;
mod bytes;
mod checksum;
pub mod choose;
pub mod find;
mod luks;
mod lvm;
mod mapper;
mod md;
mod original;
pub mod place;
pub mod probe;
pub mod run;
pub mod state;
mod udev;
pub mod undo;

use std::io;
use std::path::PathBuf;

use protocol::{ErrorCode, WireError};

pub use udev::{Rule, guard, note, rule};

/// Why a snapshot could not be mounted, or not be unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The system said no.
    #[error("{doing}: {source}")]
    Io {
        /// What we were doing, to what.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Which file system is meant can't be told.
    #[error(transparent)]
    Choice(#[from] choose::NoChoice),
    /// A copy of a btrfs stays what its original is.
    #[error(transparent)]
    Identity(#[from] btrfs::NewIdentity),
    /// Something is in the way that the user can take out of it.
    #[error("{what}")]
    Busy {
        /// What, and where.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A program that is needed failed.
    #[error("{program}: {said}")]
    Program {
        /// Which.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// The command line does not fit the snapshot or this machine.
    #[error("{what}")]
    Usage {
        /// What.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The host's word.
    #[error("{0}")]
    Host(WireError),
    /// It failed, and so did taking back what had been done.
    #[error("{first}; and undoing it failed: {undo}")]
    Twice {
        /// The first failure.
        #[source]
        first: Box<MountError>,
        /// The second.
        undo: Box<MountError>,
    },
}

impl MountError {
    fn io<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source: source.into() }
    }

    /// The first failure, where an undo failed too.
    fn and(self, undo: Result<(), Self>) -> Self {
        match undo {
            Ok(()) => self,
            Err(undo) => Self::Twice { first: Box::new(self), undo: Box::new(undo) },
        }
    }

    const fn code(&self) -> ErrorCode {
        match self {
            Self::Io { .. } | Self::Program { .. } => ErrorCode::Internal,
            Self::Choice(choice) => choice.code(),
            Self::Identity(btrfs::NewIdentity::Checksum(_)) => ErrorCode::Unsupported,
            Self::Identity(_) => ErrorCode::Internal,
            Self::Busy { .. } => ErrorCode::Busy,
            Self::Usage { .. } => ErrorCode::BadRequest,
            Self::Host(error) => error.code,
            Self::Twice { first, .. } => first.code(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run it as root: sudo hostsnap …".to_owned()
            }
            Self::Io { .. } => "dmesg may say more".to_owned(),
            Self::Program { .. } => String::new(),
            Self::Choice(choice) => choice.hint(),
            Self::Identity(btrfs::NewIdentity::Checksum(_)) => {
                "hostsnap attach --writable, then btrfstune -m on the attached disk, before anything mounts it".to_owned()
            }
            Self::Identity(_) => String::new(),
            Self::Busy { hint, .. } | Self::Usage { hint, .. } => hint.clone(),
            Self::Host(error) => error.hint.to_string(),
            Self::Twice { .. } => "hostsnap umount --all tries to undo it again".to_owned(),
        }
    }
}

impl From<MountError> for WireError {
    fn from(error: MountError) -> Self {
        match error {
            MountError::Host(error) => error,
            error => Self::new(error.code(), error.to_string()).hint(error.hint()),
        }
    }
}

/// A folder of ours that is emptied by a boot.
pub const FOLDER: &str = "/run/hostsnap/mounts";

fn folder() -> PathBuf {
    FOLDER.into()
}
