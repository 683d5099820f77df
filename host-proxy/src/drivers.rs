//! Storage devices that take snapshots. A driver knows volumes and snapshots of them; it knows no
//! guests, no policy and no wire types.
//!
//! One operation's life, for a *set* of volumes of one store:
//!
//! ```text
//! check ─► prepare ─► Ready::cut ─► CutSet::settle ─► CutSet::seal ─► (whole: list, delete)
//!             │            │              │
//!             └─ abandon ◄─┴──────────────┘      undo everything; nothing of it is left
//! ```
//!
//! Semantics follow CSI 1.12 where it has an answer: create returns when cut and may be ready later;
//! a repeat is idempotent; deleting what is absent is fine; exists, no space, busy are distinct.
//!
//! All calls block; the service runs them on threads of their own and never waits without a limit.
//! `contract` says what every driver promises, and is run against each on real storage.

mod abilities;
pub mod btrfs;
mod common;
pub mod csi;
mod extents;
mod fiemap;
mod folder;
mod image;
mod images;
pub mod lvm_thin;
pub mod qemu;
pub mod rbd;
pub mod reflink;
pub mod restore;
pub mod zfs;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use protocol::{DiskSerial, SnapshotId, VmUuid};

pub use abilities::{Abilities, SetCut};
pub use extents::Extent;
pub use restore::{Others, Restore};

/// A storage device, with one place where it keeps its snapshots.
pub trait Driver: Send + Sync {
    /// The driver's name in the configuration and in records, such as `reflink`.
    fn name(&self) -> &'static str;

    /// Proves, without changing anything, that snapshots of this volume would work.
    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError>;

    /// Reads the first bytes of the volume as a guest would see them: at most `len`, fewer on a
    /// smaller volume.
    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError>;

    /// Room left for snapshots, in bytes; [`ROOM_UNKNOWN`] where the storage does not tell.
    fn free_bytes(&self) -> Result<u64, DriverError>;

    /// Does all slow work that a cut of these volumes needs: opens, locks, reserves, flushes, and
    /// stores `manifest` (the intent) durably under the snapshot's identifier.
    ///
    /// `Exists` when there is a snapshot of that identifier already, whole or not; see
    /// [`Driver::recover`].
    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError>;

    /// Every snapshot that this driver made in this store, and nothing else's.
    fn list(&self) -> Result<Vec<Found>, DriverError>;

    /// One of them. What lists many slowly looks for it alone.
    fn find(&self, owner: Owner) -> Result<Option<Found>, DriverError> {
        Ok(self.list()?.into_iter().find(|found| found.owner == owner))
    }

    /// Picks up what a killed service left behind. `volumes` are those of the intent.
    fn recover(&self, owner: Owner, volumes: &[Volume]) -> Result<Recovered, DriverError>;

    /// Removes a snapshot. `Busy` while something uses it. After `Ok` its room is free, or will be
    /// without anybody's doing.
    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError>;

    /// Replaces the manifest of a whole snapshot durably, in one step: after a crash it is the one or the other.
    /// `NotFound` without such a snapshot here.
    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        let _ = manifest;
        let doing =
            format!("write something else beside the snapshot {}: {} can't", owner.snapshot, self.name());
        Err(DriverError::new(Kind::Unsupported, doing))
    }

    /// Whether other hosts' services use the same store: what they made is there too, and what is
    /// missing was removed by one of them.
    fn is_shared(&self) -> bool {
        false
    }

    /// Makes a snapshot readable on the host, for drivers that can.
    fn expose(&self) -> Option<&dyn Expose> {
        None
    }

    /// As [`Driver::expose`], without asking the storage whether it can just now: who tries is told why it can't, and what
    /// was shown before is taken back.
    fn exposes(&self) -> Option<&dyn Expose> {
        self.expose()
    }

    /// Whether the volumes' own machine cuts: one that has moved to another host has them no more, and its cut fails.
    fn is_cut_by_machine(&self) -> bool {
        false
    }

    /// Tells what changed between two snapshots, for drivers whose storage knows.
    fn changes(&self) -> Option<&dyn Changes> {
        None
    }

    /// Gives a volume back the bytes of a snapshot, for drivers that can.
    fn restore(&self) -> Option<&dyn Restore> {
        None
    }

    /// How a set of several volumes is cut.
    fn set_cut(&self) -> SetCut {
        SetCut::Each
    }

    /// What its volumes must be and what a snapshot takes, in one line for people; no path of the host.
    fn limits(&self) -> &'static str {
        ""
    }

    /// What the storage at hand is and offers, in one line for its administrator, where there is more to tell than
    /// [`Driver::limits`] does.
    fn offers(&self) -> Option<String> {
        None
    }

    /// What it can do besides what every driver can.
    fn abilities(&self) -> Abilities {
        Abilities {
            set: self.set_cut(),
            expose: self.expose().is_some(),
            changes: self.changes().is_some(),
            restore: self.restore().is_some(),
        }
    }
}

/// What a storage that does not tell its room is taken to have.
pub const ROOM_UNKNOWN: u64 = u64::MAX;

/// Everything is ready; the next step is the atomic point. Dropping it leaves the rest to
/// [`Driver::recover`], as a crash would.
pub trait Ready: Send + Sync {
    /// What the snapshot of each volume will be called, in the order of the plan.
    fn volumes(&self) -> &[VolumeSnapshot];

    /// Cuts every volume, at one instant where the storage can. Nothing else happens here: a guest
    /// is frozen meanwhile. It may end after `deadline`, but begins no further volume after it.
    fn cut(self: Box<Self>, deadline: Instant) -> Result<Box<dyn CutSet>, DriverError>;

    /// Undoes `prepare`.
    fn abandon(self: Box<Self>) -> Result<(), DriverError>;
}

/// Cut, not yet durable.
pub trait CutSet: Send + Sync {
    /// What the snapshot of each volume is called, in the order of the plan.
    fn volumes(&self) -> &[VolumeSnapshot];

    /// Makes the contents durable and whole, which may take minutes. Returns early with
    /// `Cancelled` when `progress` says so.
    fn settle(&mut self, progress: &mut dyn FnMut(Progress) -> Continue) -> Result<(), DriverError>;

    /// Replaces the intent by the final manifest and makes the snapshot whole. After `Ok` it
    /// survives power loss and `list` shows it.
    fn seal(self: Box<Self>, manifest: &[u8]) -> Result<(), DriverError>;

    /// Removes what was cut.
    fn abandon(self: Box<Self>) -> Result<(), DriverError>;
}

/// The ability to show a snapshot's contents on the host.
pub trait Expose {
    /// Where to read the snapshot of this volume, read-only.
    fn expose(&self, owner: Owner, volume: &DiskSerial) -> Result<Exposed, DriverError>;

    /// What needs taking back and was not yet, where more than this host's memory tells it.
    fn shown(&self) -> Result<Vec<(Owner, DiskSerial)>, DriverError> {
        Ok(Vec::new())
    }

    /// Takes back what `expose` needed on this host, when nobody reads it any more. What was not exposed
    /// is fine.
    fn conceal(&self, _owner: Owner, _volume: &DiskSerial) -> Result<(), DriverError> {
        Ok(())
    }
}

/// The ability to tell what changed between two snapshots of a volume.
pub trait Changes {
    /// Where bytes of this volume's snapshot `to` may not be as in `from`, in any order of time: sorted, none touching
    /// another, within `to`. All bytes outside of them are the same in both. `NotFound` without such snapshots.
    fn changes(&self, from: Owner, to: Owner, volume: &DiskSerial) -> Result<Vec<Extent>, DriverError>;
}

/// One virtual disk, as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name in snapshots.
    pub serial: DiskSerial,
    /// What is behind it.
    pub source: Source,
    /// How its bytes are laid out.
    pub format: Format,
    /// The QMP socket of the virtual machine that has it open, if there is one.
    pub qmp: Option<PathBuf>,
}

/// What is behind a virtual disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// An image file or block device of this host.
    Path(PathBuf),
    /// A volume that this host has no path of, by the storage's own name.
    Volume(String),
    /// A volume that the storage knows by a name of its own, and this host by a path.
    Published {
        /// The storage's name.
        volume: String,
        /// The block device, or the file, that it is here.
        path: PathBuf,
    },
}

impl Volume {
    /// The path of a volume that has one.
    pub fn path(&self) -> Result<&Path, DriverError> {
        match &self.source {
            Source::Path(path) | Source::Published { path, .. } => Ok(path),
            Source::Volume(name) => Err(DriverError::new(
                Kind::Unsupported,
                format!(
                    "use the volume {name}: this driver takes image files and block devices, by their path"
                ),
            )),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Volume(name) => f.write_str(name),
            Self::Published { volume, path } => write!(f, "{volume} at {}", path.display()),
        }
    }
}

/// How an image's bytes are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte n of the disk is byte n of the file.
    Raw,
    /// QEMU's qcow2.
    Qcow2,
}

/// What is known of a volume that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeFacts {
    /// The disk's size as its guest sees it, in bytes.
    pub size_bytes: u64,
}

/// Whose snapshot: a name on the storage is made of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The virtual machine.
    pub vm: VmUuid,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

/// What to prepare.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whose, and its name.
    pub owner: Owner,
    /// The volumes, each once; at least one.
    pub volumes: Vec<Volume>,
    /// To be stored with the snapshot until `seal` replaces it.
    pub manifest: Vec<u8>,
}

/// The snapshot of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSnapshot {
    /// The volume.
    pub serial: DiskSerial,
    /// What the storage calls its snapshot: printable ASCII, at most 256 bytes, no path of the host.
    pub handle: String,
    /// The volume's size, in bytes.
    pub size_bytes: u64,
}

/// How far `settle` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

impl Progress {
    /// The part of so many bytes that is done where `done` of `of` pieces are, at most all of them.
    pub fn share(bytes: u64, done: u64, of: u64) -> u64 {
        let share = u128::from(bytes) * u128::from(done) / u128::from(of.max(1));
        u64::try_from(share).map_or(bytes, |share| share.min(bytes))
    }
}

/// What the caller of `settle` wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continue {
    /// Go on.
    Yes,
    /// Stop soon.
    No,
}

/// A snapshot that `list` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whose, and its name.
    pub owner: Owner,
    /// Whether `seal` was reached.
    pub whole: bool,
    /// The manifest stored with it, if it could be read.
    pub manifest: Option<Vec<u8>>,
}

/// What `recover` made of a snapshot that a killed service left.
pub enum Recovered {
    /// There is nothing of it, or what there was had not been cut and is removed now.
    Nothing,
    /// It is whole.
    Whole,
    /// It was cut: settle and seal it, or abandon it.
    Cut(Box<dyn CutSet>),
}

/// What became of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It was there and is gone.
    Gone,
    /// It was not there.
    WasAbsent,
}

/// Where a snapshot's contents can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exposed {
    /// In an image file or block device of this host.
    Path {
        /// The file or device.
        path: PathBuf,
        /// Its layout.
        format: Format,
    },
    /// Where this host has no path: what QEMU opens, as a `-blockdev` without its name; raw.
    Node(serde_json::Value),
}

/// What went wrong on the storage.
#[derive(Debug, thiserror::Error)]
#[error("{doing}{}", Undo(.undo_failed))]
pub struct DriverError {
    /// What kind.
    pub kind: Kind,
    /// What we were doing, to what.
    pub doing: String,
    /// Why it failed.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// The undo that failed as well; what is left behind is for `recover`.
    pub undo_failed: Option<Box<DriverError>>,
    /// Why, in words for a guest: of its own disk, and nothing of the host.
    pub told: Option<&'static str>,
}

/// Kinds of storage failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No room.
    NoSpace,
    /// Something else uses it now.
    Busy,
    /// There is already a snapshot of that identifier.
    Exists,
    /// There is no such volume or snapshot.
    NotFound,
    /// The storage can't do that.
    Unsupported,
    /// The deadline had passed before it was begun.
    DeadlinePassed,
    /// Nobody answers where the volume is managed.
    Unreachable,
    /// The caller stopped it.
    Cancelled,
    /// Anything else.
    Failed,
}

impl DriverError {
    /// A failure without a cause beneath it.
    pub fn new(kind: Kind, doing: impl Into<String>) -> Self {
        Self { kind, doing: doing.into(), source: None, undo_failed: None, told: None }
    }

    /// A failed system call. Its `errno` decides the kind.
    pub fn io(doing: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        use std::io::ErrorKind as Io;
        let source = source.into();
        let kind = match source.kind() {
            Io::StorageFull | Io::QuotaExceeded => Kind::NoSpace,
            Io::ResourceBusy | Io::ExecutableFileBusy | Io::WouldBlock => Kind::Busy,
            Io::AlreadyExists => Kind::Exists,
            Io::NotFound => Kind::NotFound,
            Io::Unsupported | Io::CrossesDevices => Kind::Unsupported,
            Io::TimedOut => Kind::DeadlinePassed,
            _ => Kind::Failed,
        };
        Self { kind, doing: doing.into(), source: Some(Box::new(source)), undo_failed: None, told: None }
    }

    /// The volume can't be restored; `told` is why, in words for its guest.
    pub fn not_restored(volume: &Volume, told: &'static str, more: &str) -> Self {
        let doing = format!("restore {}: {told}{more}", volume.source);
        Self { told: Some(told), ..Self::new(Kind::Unsupported, doing) }
    }

    /// Whether nothing is left of what failed. After a deadline the call may still be out.
    pub fn left_nothing(&self) -> bool {
        self.undo_failed.is_none() && self.kind != Kind::DeadlinePassed
    }

    /// Adds the outcome of the undo: a failed undo travels with the error that caused it.
    #[must_use]
    pub fn after_undo(mut self, undo: Result<(), DriverError>) -> Self {
        self.undo_failed = undo.err().map(Box::new);
        self
    }
}

struct Undo<'a>(&'a Option<Box<DriverError>>);

impl fmt::Display for Undo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(undo) => write!(f, " (and undoing it failed too: {undo})"),
            None => Ok(()),
        }
    }
}
