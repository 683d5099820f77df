//! The moments in which applications wait: ask for the cut, receive the answer, thaw. Nothing is
//! allocated, logged, printed or opened between freeze and thaw; the answer is decoded after it.

use std::time::Instant;

use protocol::Ticket;
use protocol::agent::AgentPhase;
use protocol::evidence::Freeze;
use protocol::message::{Cut, Request};

use super::evidence::{self, Seen};
use super::{Told, micros};
use crate::client::{Client, ClientError, WireFailure};
use crate::freeze::{Frozen, Report};
use crate::rehearsal::{self, Step};

/// Longer than any `Cut` frame.
const CUT_FRAME: usize = 64;

/// Cuts while nothing is frozen, since nothing could or need be.
pub(super) fn unfrozen(
    client: &mut Client,
    ticket: Ticket,
    deadline: Instant,
    seen: &mut Seen,
) -> Result<(), ClientError> {
    let late = client.limits().late_cut;
    let began = Instant::now();
    send(client, ticket, deadline)?;
    client.wire().receive_bytes(deadline + late)?;
    seen.timing.cut_us = micros(began);
    client.cut_done(ticket).map(drop)
}

/// Cuts, then thaws whatever came of it.
pub(super) fn frozen(
    client: &mut Client,
    ticket: Ticket,
    frozen: Frozen,
    seen: &mut Seen,
    tell: &mut dyn FnMut(Told),
) -> Result<(), ClientError> {
    let late = client.limits().late_cut;
    let deadline = Instant::now() + frozen.remaining();
    let began = Instant::now();
    let sent = send(client, ticket, deadline);
    rehearsal::after(Step::CutSent);
    let received = sent.and_then(|()| client.wire().receive_bytes(deadline));
    let took = began.elapsed();
    rehearsal::after(Step::CutDone);
    let report = frozen.thaw();
    rehearsal::after(Step::Thawed);

    tell(Told::Phase(AgentPhase::Settling));
    seen.timing.cut_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    record(seen, report, received.is_ok());
    match received {
        // Only to learn what became of it: applications write again.
        Err(WireFailure::TimedOut) => client.wire().receive_bytes(Instant::now() + late)?,
        other => other?,
    }
    client.cut_done(ticket).map(drop)
}

fn send(client: &mut Client, ticket: Ticket, deadline: Instant) -> Result<(), WireFailure> {
    let left = deadline.saturating_duration_since(Instant::now());
    let within_us = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
    let mut frame = [0; CUT_FRAME];
    let len = protocol::frame::encode_into(&Request::Cut(Cut { ticket, within_us }), &mut frame)?;
    client.wire().send_bytes(&frame[..len], deadline)
}

fn record(seen: &mut Seen, report: Report, answered_in_time: bool) {
    seen.timing.freeze_us = report.freeze_us;
    seen.timing.thaw_us = report.thaw_us;
    seen.timing.stall_us = report.stall_us;
    seen.freeze = match &report.held {
        Ok(()) if answered_in_time => Freeze::Held,
        Ok(()) => evidence::not_held("the host did not answer before the deadline of the freeze"),
        Err(why) => evidence::not_held(&why.to_string()),
    };
    seen.file_systems = report.file_systems;
}
