//! What a plugin's "no" means: one table from gRPC's codes to our kinds, as CSI 1.12 uses them ("Error Scheme").

use std::fmt::Display;

use tonic::{Code, Status};

use super::secrets::Secrets;
use crate::drivers::{DriverError, Kind};

/// How much of a plugin's text is repeated, in characters.
const MAX_TEXT: usize = 400;

/// How tonic begins when an answer is larger than it takes (`codec/decode.rs`).
const TOO_LARGE: &str = "Error, decoded message length too large";

/// A call that was not answered with what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{} answers {}: {text}", method.trim_start_matches("/csi.v1."), word(*code))]
pub(super) struct Refusal {
    pub(super) code: Code,
    method: &'static str,
    text: String,
    is_garbage: bool,
}

impl Refusal {
    /// As the plugin, or the way to it, said. Its text is foreign: bounded, without control characters, without secrets.
    pub(super) fn new(method: &'static str, status: &Status, secrets: &Secrets) -> Self {
        let mut text = status.message().to_owned();
        // "transport error" alone says nothing; below it stands "No such file or directory".
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            let more = error.to_string();
            if !text.contains(&more) {
                text = if text.is_empty() { more } else { format!("{text}: {more}") };
            }
            cause = error.source();
        }
        let plain: String = secrets
            .hide(&text)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_TEXT)
            .collect();
        let code = code_of(status);
        // tonic's words; a plugin's own are about what it was asked for.
        let is_garbage = code == Code::OutOfRange && status.message().starts_with(TOO_LARGE);
        Self { code, method, text: plain, is_garbage }
    }

    /// What this host could not do.
    pub(super) fn of_ours(error: &dyn Display) -> Self {
        Self { code: Code::Internal, method: "this host", text: error.to_string(), is_garbage: false }
    }

    /// An answer that can't be what it should.
    pub(super) fn garbage(method: &'static str, what: impl Into<String>) -> Self {
        Self { code: Code::Internal, method, text: what.into(), is_garbage: true }
    }

    /// Whether what was asked for may still be done, or was done: only the same call tells, later. After garbage nobody
    /// knows, nor after an answer that was too large to be taken (tonic calls that OUT_OF_RANGE). All other codes are final,
    /// as for the Kubernetes external-snapshotter (`isCSIFinalError`).
    pub(super) fn is_open(&self) -> bool {
        use Code::{Aborted, Cancelled, DeadlineExceeded, OutOfRange, Unavailable};
        self.is_garbage
            || matches!(self.code, Cancelled | DeadlineExceeded | Unavailable | Aborted | OutOfRange)
    }

    /// Whether the answer can't be what it should, so that nobody knows what was done.
    pub(super) fn is_garbage(&self) -> bool {
        self.is_garbage
    }

    /// Whether something uses what was to be taken back. CSI has FAILED_PRECONDITION for it; what umount(8) says reaches us
    /// by most plugins as INTERNAL ("target is busy", `k8s.io/mount-utils`).
    pub(super) fn says_busy(&self) -> bool {
        match self.code {
            Code::FailedPrecondition => true,
            Code::Internal | Code::Unknown => !self.is_garbage && self.text.to_lowercase().contains("busy"),
            _ => false,
        }
    }

    /// Whether nobody answered: whoever did not may never do so on this connection, and another may be behind the socket
    /// by now.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::DeadlineExceeded)
    }

    /// With what we were doing, and what to do now.
    pub(super) fn into_error(self, doing: impl Display) -> DriverError {
        let (kind, advice) = meaning(self.code);
        DriverError { source: Some(Box::new(self)), ..DriverError::new(kind, format!("{doing}: {advice}")) }
    }
}

/// A way that was lost in the middle of a call is `Unknown` to tonic, or `Cancelled`, with a cause. The plugin's own words have
/// none. Of a call whose way was lost nobody knows what was done.
fn code_of(status: &Status) -> Code {
    match status.code() {
        Code::Unknown | Code::Cancelled if std::error::Error::source(status).is_some() => Code::Unavailable,
        code => code,
    }
}

/// The table.
pub(super) fn meaning(code: Code) -> (Kind, &'static str) {
    match code {
        Code::Ok => (Kind::Failed, "the plugin gave no answer and no error"),
        Code::Cancelled => (Kind::Cancelled, "the plugin gave it up; try again"),
        Code::Unknown => (Kind::Failed, "the plugin failed; its log says why"),
        Code::InvalidArgument => (
            Kind::Unsupported,
            "the plugin takes no such request; look at parameters and secrets_file of the store",
        ),
        Code::DeadlineExceeded => {
            (Kind::DeadlinePassed, "the plugin did not answer in time; look at its log")
        }
        Code::NotFound => (Kind::NotFound, "the storage does not have it; look at the disk's volume"),
        Code::AlreadyExists => (Kind::Exists, "the storage has something else of that name; remove that"),
        Code::PermissionDenied | Code::Unauthenticated => {
            (Kind::Failed, "the storage refuses whom we speak for; look at secrets_file of the store")
        }
        Code::ResourceExhausted => {
            (Kind::NoSpace, "the storage has no room, or its limit of snapshots is reached")
        }
        Code::FailedPrecondition => (Kind::Busy, "the storage can't now, something uses it"),
        Code::Aborted => (Kind::Busy, "the plugin is at work on the same volume or snapshot; try again"),
        Code::OutOfRange => (Kind::Failed, "the answer is too large, or out of range"),
        Code::Unimplemented => (
            Kind::Unsupported,
            "nobody there can do that; is the endpoint a CSI plugin's, and of the part that does this?",
        ),
        Code::Internal => (Kind::Failed, "the plugin failed; its log says why"),
        Code::Unavailable => (Kind::Unreachable, "nobody answers there; is the plugin running?"),
        Code::DataLoss => (Kind::Failed, "the storage lost data"),
    }
}

/// A code as gRPC writes it.
fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by a run of the contract: a peer that hangs up while the question is on its way is `Cancelled` to hyper.
    #[test]
    fn a_way_that_was_lost_is_no_word_of_the_plugins() {
        for code in [Code::Unknown, Code::Cancelled] {
            let said = Refusal::new("/csi.v1.Identity/Probe", &Status::new(code, "no"), &Secrets::default());
            assert_eq!(said.code, code);
            let mut lost = Status::new(code, "operation was canceled");
            lost.set_source(std::sync::Arc::new(std::io::Error::other("connection closed")));
            let refusal = Refusal::new("/csi.v1.Identity/Probe", &lost, &Secrets::default());
            assert_eq!(refusal.into_error("ask").kind, Kind::Unreachable);
        }
    }

    #[test]
    fn a_use_that_only_the_text_tells_is_a_use() {
        let said = |code, text: &str| {
            Refusal::new("/csi.v1.Node/NodeUnpublishVolume", &Status::new(code, text), &Secrets::default())
        };
        assert!(said(Code::FailedPrecondition, "").says_busy());
        assert!(said(Code::Internal, "unmount target path: exit status 32: target is Busy.").says_busy());
        assert!(!said(Code::Internal, "no such host").says_busy());
        assert!(!said(Code::Unavailable, "busy").says_busy());
        assert!(said(Code::OutOfRange, &format!("{TOO_LARGE}: found 9 bytes")).is_garbage());
        assert!(!said(Code::OutOfRange, "no such size").is_garbage());
    }

    #[test]
    fn a_plugins_text_is_foreign() {
        let status = Status::internal(format!("\u{1b}[2J{}", "x".repeat(5000)));
        let text =
            Refusal::new("/csi.v1.Controller/CreateSnapshot", &status, &Secrets::default()).to_string();
        assert!(text.starts_with("Controller/CreateSnapshot answers INTERNAL:  [2Jxxx"), "{text}");
        assert!(text.len() < 500 && !text.contains('\u{1b}'), "{text}");
    }
}
