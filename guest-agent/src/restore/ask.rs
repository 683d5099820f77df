//! The host, asked to restore, and asked again when it is lost in the middle: it goes on without us, and finishes at its
//! next start what a stop of it left. What is not known to be finished is not taken into use.

use std::time::{Duration, Instant};

use protocol::message::Progress;
use protocol::restore::{Restore, RestorePlan};
use protocol::{ErrorCode, WireError};

use crate::client::{Client, ClientError, HostAddress, Limits};

/// For how long a host that was lost is asked again.
const LOST_LIMIT: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(500);

/// How it ended.
pub(super) enum Ended {
    /// The disks have their old bytes.
    Done(RestorePlan),
    /// Nothing was changed.
    Refused(WireError),
    /// Nobody knows, or the host says that it is not finished.
    InTheMiddle(WireError),
}

/// Asks until it is known what became of it.
pub(super) fn ask(host: &HostAddress, wanted: &Restore, tell: &mut dyn FnMut(Progress)) -> Ended {
    let mut lost: Option<Instant> = None;
    loop {
        let answer = Client::connect(host, Limits::default())
            .and_then(|mut client| client.restore(wanted.clone(), tell));
        let error = match answer {
            Ok(plan) => return Ended::Done(plan),
            Err(error) => error,
        };
        let since = lost.map(|since| since.elapsed());
        let is_told = matches!(error, ClientError::Told(_));
        match since {
            // It was never asked.
            None if matches!(error, ClientError::NotConnected(_)) => return Ended::Refused(error.into()),
            None if !error.is_lost() => return of(error.into()),
            None => lost = Some(Instant::now()),
            Some(since) if since >= LOST_LIMIT || !error.may_pass() => {
                return if is_told { of(error.into()) } else { gone(error.into()) };
            }
            Some(_) => {}
        }
        std::thread::sleep(PAUSE);
    }
}

/// The host's word.
fn of(error: WireError) -> Ended {
    match error.code {
        ErrorCode::RestoreUnfinished => Ended::InTheMiddle(error),
        _ => Ended::Refused(error),
    }
}

fn gone(error: WireError) -> Ended {
    let text = format!(
        "the host was lost while it restored, and it is not known whether it is done: {}",
        error.message
    );
    Ended::InTheMiddle(WireError::new(ErrorCode::RestoreUnfinished, text).hint(
        "use the disks for nothing until hostsnapd runs again: it finishes what it began; then mount them",
    ))
}
