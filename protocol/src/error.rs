//! What can go wrong across the wire, and what a caller should make of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::Line;

/// A refusal or a failure, as the guest reads it. The host logs more than it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// What kind.
    pub code: ErrorCode,
    /// What we were doing, to what, and what is wrong.
    pub message: Line,
    /// What to do next; may be empty.
    pub hint: Line,
}

impl WireError {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl AsRef<str>) -> Self {
        Self { code, message: Line::lossy(message.as_ref()), hint: Line::lossy("") }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl AsRef<str>) -> Self {
        self.hint = Line::lossy(hint.as_ref());
        self
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_str())?;
        if !self.hint.as_str().is_empty() {
            write!(f, "\n{}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for WireError {}

/// Kinds of errors. Variants are only ever appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// A bug or an unforeseen failure of the other side; its log says more.
    Internal,
    /// The bytes were no message of this protocol.
    Malformed,
    /// No protocol version is spoken by both.
    UnsupportedVersion,
    /// The message is not allowed at this point of the conversation.
    OutOfOrder,
    /// The host's policy does not allow it.
    Refused,
    /// A quota (count, bytes, rate) or the pool's free-space floor is reached.
    QuotaExceeded,
    /// The snapshot is locked until a date.
    Locked,
    /// There is no such snapshot.
    NotFound,
    /// A prefix names several snapshots.
    Ambiguous,
    /// The host has no such disk for this virtual machine.
    UnknownDisk,
    /// What the guest reads of the disk is not what the host reads of the volume.
    DiskMismatch,
    /// This storage or this build can't do it.
    Unsupported,
    /// Something else uses it now; later it may work.
    Busy,
    /// The snapshot would be worth less than the user's minimum.
    ConsistencyNotReached,
    /// The storage failed.
    StorageFailed,
    /// The storage has no room.
    NoSpace,
    /// A time limit was reached.
    TimedOut,
    /// The ticket's lease had ended before the cut was asked for.
    LeaseExpired,
    /// The same request id was used for a different request.
    RequestReused,
    /// Too many connections or sessions of this virtual machine.
    TooManySessions,
    /// The service is stopping or starting.
    Unavailable,
    /// A file system could not be frozen.
    NotFreezable,
    /// A pre-freeze hook failed.
    HookFailed,
    /// The request makes no sense (a path on no disk, a bad label).
    BadRequest,
    /// The other side could not be reached.
    Unreachable,
    /// A restore was begun and is not finished: until it is, the disk holds neither the old bytes nor the new.
    RestoreUnfinished,
}

impl ErrorCode {
    /// The exit code of the command line: 1 internal, 2 usage, 3 not reachable, 4 refused, 5 not
    /// found, 6 not possible now, 7 consistency not reached, 8 storage failed, 9 timed out.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Internal | Self::Malformed | Self::OutOfOrder => 1,
            Self::BadRequest | Self::RequestReused => 2,
            Self::Unreachable | Self::UnsupportedVersion | Self::Unavailable => 3,
            Self::Refused | Self::QuotaExceeded | Self::Locked | Self::DiskMismatch => 4,
            Self::NotFound | Self::Ambiguous | Self::UnknownDisk => 5,
            Self::Unsupported | Self::Busy | Self::TooManySessions | Self::NotFreezable => 6,
            Self::ConsistencyNotReached | Self::HookFailed => 7,
            Self::StorageFailed | Self::NoSpace | Self::RestoreUnfinished => 8,
            Self::TimedOut | Self::LeaseExpired => 9,
        }
    }

    /// Whether the same request, with the same request id, may succeed later without anybody
    /// changing anything.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Busy
            | Self::TimedOut
            | Self::LeaseExpired
            | Self::TooManySessions
            | Self::Unavailable
            | Self::Unreachable
            | Self::RestoreUnfinished => true,
            Self::Internal
            | Self::Malformed
            | Self::UnsupportedVersion
            | Self::OutOfOrder
            | Self::Refused
            | Self::QuotaExceeded
            | Self::Locked
            | Self::NotFound
            | Self::Ambiguous
            | Self::UnknownDisk
            | Self::DiskMismatch
            | Self::Unsupported
            | Self::ConsistencyNotReached
            | Self::StorageFailed
            | Self::NoSpace
            | Self::RequestReused
            | Self::NotFreezable
            | Self::HookFailed
            | Self::BadRequest => false,
        }
    }
}
