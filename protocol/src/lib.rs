//! What guest and host say to each other. Bytes in, values out: no sockets, files or clocks.
//!
//! | module | idea |
//! |---|---|
//! | [`message`] | every request of a guest and every reply of the host |
//! | [`attach`] | a snapshot's disks, attached to the machine that it is of |
//! | [`restore`] | going back to a snapshot |
//! | [`agent`] | what the host asks of the guest's daemon |
//! | [`record`] | what a snapshot is, as both sides show it |
//! | [`evidence`] | what was proved while the snapshot was taken, and what may be claimed from it |
//! | [`error`] | error codes, whether to retry, exit codes |
//! | [`ids`], [`text`], [`bounded`] | newtypes that keep their own rule |
//! | [`fingerprint`] | what a disk's first bytes say it is |
//! | [`codec`], [`frame`] | values to bytes and back, with limits; the only place that knows bincode |
//! | [`args`] | values as both command lines read them |
//! | [`view`] | the JSON and the text that both command lines print |
//!
//! The bytes are specified in `docs/protocol.md`.

pub mod agent;
pub mod args;
pub mod attach;
pub mod bounded;
pub mod codec;
pub mod error;
pub mod evidence;
pub mod fingerprint;
pub mod frame;
pub mod ids;
pub mod message;
pub mod record;
pub mod restore;
pub mod text;
pub mod view;

pub use bounded::BoundedVec;
pub use error::{ErrorCode, WireError};
pub use evidence::{Consistency, Evidence};
pub use ids::{BootId, RequestId, SnapshotId, Ticket, VmUuid};
pub use message::{Reply, Request};
pub use record::SnapshotRecord;
pub use text::{DiskSerial, Labels, Note};

/// The vsock port of both services: `hostsnapd` on the host, `hostsnap daemon` in the guest. It is
/// below 1024, so that only a privileged process can listen there (CAP_NET_BIND_SERVICE, Linux
/// `net/vmw_vsock/af_vsock.c`).
pub const PORT: u32 = 989;

/// The protocol versions that this build speaks.
pub const VERSIONS: message::VersionRange = message::VersionRange { min: 1, max: 1 };
