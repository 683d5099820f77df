//! What the host asks of the guest's daemon, on the guest's port 989. The daemon serves its own
//! host only; the framing is the same, and so is the rule that `Hello` comes first.

use serde::{Deserialize, Serialize};

use crate::BoundedVec;
use crate::error::WireError;
use crate::evidence::Consistency;
use crate::ids::{RequestId, SnapshotId};
use crate::message::{Progress, VersionRange};
use crate::record::SnapshotRecord;
use crate::text::{Labels, MountPath, Name, Note};

/// What the host says to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentRequest {
    /// Always first, and frozen for ever.
    Hello(VersionRange),
    /// Is anybody there? Answered while frozen too.
    Ping(u64),
    /// What is the agent doing? Answered while frozen too.
    Status,
    /// Run the agent's own create flow: it will ask this host in turn.
    Create(AgentCreate),
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentReply {
    /// To `Hello`; frozen for ever.
    Hello {
        /// The version that both speak from now on.
        version: u16,
        /// The version of the agent.
        agent_version: Name,
    },
    /// To `Ping`, with its number.
    Pong(u64),
    /// To `Status`.
    Status(AgentStatus),
    /// To `Create`, any number of times, before the final reply.
    Progress(Progress),
    /// To `Create`: the snapshot as the host recorded it.
    Created(Box<SnapshotRecord>),
    /// To anything.
    Error(WireError),
}

/// The options of `hostsnap create`, sent by the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentCreate {
    /// The request to run it under.
    pub request: RequestId,
    /// The paths; none is `--all`.
    pub paths: BoundedVec<MountPath, 32>,
    /// What the user attached.
    pub labels: Labels,
    /// What the user remarked.
    pub note: Note,
    /// The least that the user accepts.
    pub minimum: Consistency,
    /// For how long to keep it, in seconds.
    pub keep_for_s: Option<u64>,
    /// The longest freeze, in milliseconds.
    pub freeze_timeout_ms: u32,
}

/// What the agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Whether a create flow is running.
    pub phase: AgentPhase,
    /// The last snapshot that this daemon made since it started.
    pub last: Option<SnapshotId>,
    /// How long the daemon has been running, in milliseconds.
    pub uptime_ms: u64,
}

/// How far a running create flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentPhase {
    /// None is running.
    Idle,
    /// Resolving paths, waiting for `Prepared`, running hooks, flushing.
    Preparing,
    /// File systems are frozen.
    Frozen,
    /// Thawed; waiting for the host to settle.
    Settling,
}
