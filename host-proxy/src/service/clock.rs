//! The wall clock: only for what people read, and for what is kept until some day. Deadlines use `Instant`.
//!
//! It may be set wrong and set right again. What it shows after a jump is not believed for an hour where that would
//! remove something.

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::record::UnixMillis;
use tokio::time::Instant;

/// By how much it may go wrong from one look to the next; NTP slews by less.
const JUMP: Duration = Duration::from_secs(300);
/// How long somebody has to set it right.
const DOUBT: Duration = Duration::from_secs(3600);

/// A wall clock: the host's, unless a test has one of its own.
pub struct Clock {
    shows: Box<dyn Fn() -> UnixMillis + Send + Sync>,
    last: Mutex<Option<Look>>,
}

/// What was seen of it last.
#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    shown: UnixMillis,
    doubted_until: Option<Instant>,
}

/// What a look at it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) now: UnixMillis,
    /// How long the look before was ago.
    pub(super) elapsed: Duration,
    /// Whether it went as time goes, for long enough.
    pub(super) is_steady: bool,
}

impl Clock {
    /// A clock that shows what this says.
    #[doc(hidden)]
    pub fn showing(shows: impl Fn() -> UnixMillis + Send + Sync + 'static) -> Self {
        Self { shows: Box::new(shows), last: Mutex::new(None) }
    }

    /// What it shows.
    pub(super) fn now(&self) -> UnixMillis {
        (self.shows)()
    }

    /// What it shows, and whether that can be believed.
    pub(super) fn look(&self) -> Seen {
        let mut last = self.last.lock().expect("no holder of this lock panics");
        let (at, now) = (Instant::now(), self.now());
        let before = last.unwrap_or(Look { at, shown: now, doubted_until: None });
        let elapsed = at - before.at;
        let due = before.shown.0.saturating_add(millis(elapsed));
        let jumped = now.0.abs_diff(due) > millis(JUMP);
        if jumped {
            tracing::warn!(
                "the clock jumped from {} to {}: for an hour no snapshot is removed for its age",
                protocol::view::rfc3339(UnixMillis(due)),
                protocol::view::rfc3339(now)
            );
        }
        let doubted_until = if jumped { Some(at + DOUBT) } else { before.doubted_until };
        let doubted_until = doubted_until.filter(|until| *until > at);
        *last = Some(Look { at, shown: now, doubted_until });
        Seen { now, elapsed, is_steady: doubted_until.is_none() }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::showing(now)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The host's wall clock.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(millis(since))
}
