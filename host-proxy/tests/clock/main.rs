//! The service under a wall clock that jumps, or was wrong when a snapshot was taken: nothing is removed early, nothing
//! is kept for ever, and what is newest stays newest. Deadlines do not come from that clock.

mod age;
mod expiry;
#[allow(dead_code)]
#[path = "../common/guest.rs"]
mod guest;
mod locks;
mod order;
mod silence;
mod stage;
