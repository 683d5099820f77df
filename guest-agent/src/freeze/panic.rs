//! A panic while frozen. Its message goes to a terminal, or to a log that may lie on what is frozen, and
//! would wait there until the keeper thaws at the deadline. So it is thawed first, and said then.

use std::panic::{set_hook, take_hook};
use std::sync::{Arc, Mutex, Weak};

use super::guard::Guard;

/// The freeze of this process; the lock allows only one.
static CURRENT: Mutex<Weak<Guard>> = Mutex::new(Weak::new());

/// From now on a panic, in any thread, first thaws what this process has frozen. Called once, by `main`.
pub fn thaw_before_a_panic_is_told() {
    let tell = take_hook();
    set_hook(Box::new(move |panic| {
        // Whoever holds it is not frozen yet, and only stores.
        if let Ok(current) = CURRENT.try_lock()
            && let Some(guard) = current.upgrade()
        {
            guard.give_up();
        }
        tell(panic);
    }));
}

/// For the keeper: a panic ends it, whatever its other threads wait for. The flow sees that and thaws.
pub(super) fn end_at_a_panic() {
    set_hook(Box::new(|_| std::process::exit(1)));
}

pub(super) fn remember(guard: &Arc<Guard>) {
    *CURRENT.lock().expect("no holder of this lock panics") = Arc::downgrade(guard);
}
