//! One conversation with the host. The host may be restarted, slow or of another version; what it
//! says is bounded like everything that crosses the wire.

use std::time::{Duration, Instant};

use protocol::agent::{AgentReply, AgentRequest};
use protocol::message::VersionRange;
use protocol::{ErrorCode, VERSIONS, WireError};

use super::state::State;
use crate::client::{Wire, WireFailure, own_version};

/// How long the host may be silent in a conversation.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// How long an answer may take to be sent.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Holds it, from `Hello` to its end.
pub(super) fn hold(state: &State, mut wire: Wire) -> Result<(), WireFailure> {
    let ended = converse(state, &mut wire);
    if let Err(WireFailure::Malformed(why)) = &ended {
        let told = WireError::new(
            ErrorCode::Malformed,
            format!("these bytes are no message of this protocol: {why}"),
        )
        .hint("update hostsnapd on the host or hostsnap in the guest to the same version");
        // The host may be gone; there is nobody else to tell.
        let _ = send(&mut wire, &AgentReply::Error(told));
    }
    ended
}

fn converse(state: &State, wire: &mut Wire) -> Result<(), WireFailure> {
    let greeting = match wire.receive(idle())? {
        AgentRequest::Hello(theirs) => greet(theirs),
        _ => Err(WireError::new(ErrorCode::OutOfOrder, "Hello comes first")),
    };
    match greeting {
        Ok(hello) => send(wire, &hello)?,
        Err(error) => return send(wire, &AgentReply::Error(error)),
    }
    loop {
        let reply = match wire.receive(idle())? {
            AgentRequest::Hello(_) => {
                AgentReply::Error(WireError::new(ErrorCode::OutOfOrder, "Hello was said before"))
            }
            AgentRequest::Ping(number) => AgentReply::Pong(number),
            AgentRequest::Status => AgentReply::Status(state.status()),
            AgentRequest::Create(create) => {
                let mut listens = true;
                let outcome = state.create(create, &mut |progress| {
                    // Whoever asked may have hung up; the snapshot goes on.
                    listens = listens && send(wire, &AgentReply::Progress(progress)).is_ok();
                });
                outcome.map_or_else(AgentReply::Error, AgentReply::Created)
            }
        };
        send(wire, &reply)?;
    }
}

fn greet(theirs: VersionRange) -> Result<AgentReply, WireError> {
    match VERSIONS.agree(theirs) {
        Some(version) => Ok(AgentReply::Hello { version, agent_version: own_version() }),
        None => Err(WireError::new(
            ErrorCode::UnsupportedVersion,
            format!(
                "the agent speaks the protocol versions {} to {}, the host {} to {}",
                VERSIONS.min, VERSIONS.max, theirs.min, theirs.max
            ),
        )
        .hint("update the older side")),
    }
}

fn send(wire: &mut Wire, reply: &AgentReply) -> Result<(), WireFailure> {
    wire.send(reply, Instant::now() + SEND_LIMIT)
}

fn idle() -> Instant {
    Instant::now() + IDLE_LIMIT
}
