//! Why the host gave no answer, or none that can be used. Whether the same request may be repeated
//! depends on which: the host's word is final, a conversation that broke off is not.

use protocol::message::Reply;
use protocol::{ErrorCode, WireError};

use super::WireFailure;

const UPDATE: &str = "update hostsnap and hostsnapd to the same version";

/// Why a conversation came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no conversation: nobody listens, or we may not ask.
    #[error("{0}")]
    NotConnected(WireError),
    /// It broke off: what was asked for last may or may not have been done.
    #[error("the conversation with the host broke off: {0}")]
    Broken(#[from] WireFailure),
    /// The host's word.
    #[error("{0}")]
    Told(WireError),
    /// The host gave an answer to another question.
    #[error("the host answered {request} with {reply}")]
    Unexpected {
        /// What was asked.
        request: &'static str,
        /// The kind of what came.
        reply: &'static str,
    },
}

impl ClientError {
    /// Whether nobody knows what became of the request, so that repeating it (with its request id)
    /// tells.
    pub const fn is_lost(&self) -> bool {
        match self {
            Self::Broken(failure) => match failure {
                WireFailure::Closed | WireFailure::Io(_) | WireFailure::TimedOut => true,
                WireFailure::Malformed(_) => false,
            },
            Self::NotConnected(_) | Self::Told(_) | Self::Unexpected { .. } => false,
        }
    }

    /// Whether a host that was there a moment ago may give another answer soon: it is being
    /// restarted, or still busy with what a lost conversation left.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::NotConnected(error) => matches!(error.code, ErrorCode::Unreachable),
            Self::Broken(_) => self.is_lost(),
            Self::Told(error) => error.code.is_retryable(),
            Self::Unexpected { .. } => false,
        }
    }
}

impl From<ClientError> for WireError {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::NotConnected(error) | ClientError::Told(error) => error,
            ClientError::Broken(WireFailure::TimedOut) => Self::new(ErrorCode::TimedOut, text)
                .hint("the host's log says why: journalctl -u hostsnapd, on the host"),
            ClientError::Broken(WireFailure::Closed | WireFailure::Io(_)) => {
                Self::new(ErrorCode::Unreachable, text).hint("hostsnapd may have been restarted; try again")
            }
            ClientError::Broken(WireFailure::Malformed(_)) | ClientError::Unexpected { .. } => {
                Self::new(ErrorCode::Malformed, text).hint(UPDATE)
            }
        }
    }
}

/// The kind of an answer, for errors.
pub(super) const fn kind(reply: &Reply) -> &'static str {
    match reply {
        Reply::Hello(_) => "Hello",
        Reply::Pong(_) => "Pong",
        Reply::Disks(_) => "Disks",
        Reply::Abilities(_) => "Abilities",
        Reply::Prepared(_) => "Prepared",
        Reply::Planned(_) => "Planned",
        Reply::Existing(_) => "Existing",
        Reply::CutDone(_) => "CutDone",
        Reply::Progress(_) => "Progress",
        Reply::Snapshot(_) => "Snapshot",
        Reply::Aborted => "Aborted",
        Reply::Snapshots(_) => "Snapshots",
        Reply::Deleted(_) => "Deleted",
        Reply::Error(_) => "Error",
        Reply::Attached(_) => "Attached",
        Reply::Detached(_) => "Detached",
        Reply::RestorePlanned(_) => "RestorePlanned",
        Reply::Restored(_) => "Restored",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_said_is_final_and_what_was_lost_is_not() {
        let told = |code| ClientError::Told(WireError::new(code, "x"));
        let table = [
            (told(ErrorCode::Refused), false, false, 4),
            (told(ErrorCode::Busy), false, true, 6),
            (ClientError::NotConnected(WireError::new(ErrorCode::Unreachable, "x")), false, true, 3),
            (ClientError::NotConnected(WireError::new(ErrorCode::Refused, "not root")), false, false, 4),
            (ClientError::Broken(WireFailure::Closed), true, true, 3),
            (ClientError::Broken(WireFailure::TimedOut), true, true, 9),
            (ClientError::Broken(WireFailure::Malformed("x".to_owned())), false, false, 1),
            (ClientError::Unexpected { request: "Ping", reply: "Aborted" }, false, false, 1),
        ];
        for (error, lost, may_pass, exit_code) in table {
            assert_eq!((error.is_lost(), error.may_pass()), (lost, may_pass), "{error}");
            assert_eq!(WireError::from(error).code.exit_code(), exit_code);
        }
    }
}
