//! What is wrong, in plain words, and what to do.
//!
//! | module | idea |
//! |---|---|
//! | `facts` | looks: the only part that touches the system and asks the host |
//! | `diagnose` | decides what the facts mean; pure |

mod diagnose;
mod facts;

use protocol::ErrorCode;
use serde::Serialize;

use crate::client::HostAddress;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A name for programs.
    pub id: &'static str,
    /// How it is.
    pub status: Status,
    /// In plain words.
    pub text: String,
    /// What to do; may be empty.
    pub remedy: String,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Well.
    Ok,
    /// Snapshots work, but not as well as they could, or not of everything.
    Warn,
    /// Snapshots do not work.
    Fail,
}

/// Looks at everything.
pub fn examine(host: &HostAddress) -> Vec<Finding> {
    diagnose::diagnose(&facts::gather(host))
}

/// 0 if snapshots work, 3 if the host can't be reached, 6 for anything else.
pub fn exit_code(findings: &[Finding]) -> u8 {
    let mut failed = findings.iter().filter(|finding| finding.status == Status::Fail).peekable();
    if failed.peek().is_none() {
        0
    } else if failed.any(|finding| finding.id == diagnose::HOST) {
        ErrorCode::Unreachable.exit_code()
    } else {
        ErrorCode::Unsupported.exit_code()
    }
}
