//! Waiting for a state. A test never waits for a time.

use std::time::{Duration, Instant};

/// Asks until the answer is yes.
///
/// # Panics
/// When it is still no at the limit.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut state: impl FnMut() -> bool) {
    let began = Instant::now();
    while !state() {
        assert!(began.elapsed() < limit, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
}
