//! The service under thousands of schedules, each fixed by a seed: several guests and an administrator
//! do things at once, calls of the storage and of the catalog overlap, fail, hang and come late, messages
//! are lost, the service dies and the host loses power between any two steps and in the middle of calls,
//! the catalog is lost, the clock jumps. What was promised is looked at after every step.
//!
//! Real are the sessions, the service, policy, catalog and audit; the storage is in memory, and time is
//! tokio's paused clock. What a kill inside of a system call leaves is `every_call`'s business.
//!
//! ```text
//! HOSTSNAP_SCHEDULES=1000000 cargo test -p host-proxy --test simulation    # more of them
//! HOSTSNAP_SEED=17 cargo test -p host-proxy --test simulation -- --nocapture thousands    # one, step by step
//! HOSTSNAP_CYCLES=100000 cargo test -p host-proxy --test simulation -- --nocapture years    # snapshots that come and go
//! ```

mod admin;
mod chance;
mod create;
mod cycles;
mod driver;
mod guest;
mod host;
mod play;
mod stage;
mod storage;
mod talk;
mod under;
mod witness;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use host::Scratch;

/// How many schedules `cargo xtask test` runs.
const SCHEDULES: u64 = 10_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

#[test]
fn in_thousands_of_schedules_no_promise_is_ever_broken() {
    stage::note_panics();
    if let Some(seed) = number("HOSTSNAP_SEED") {
        return play::one(seed, &Arc::new(Scratch::new()), true)
            .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
    let schedules = number("HOSTSNAP_SCHEDULES").unwrap_or(SCHEDULES);
    let next = AtomicU64::new(1);
    let failed = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let scratch = Arc::new(Scratch::new());
                while failed.lock().expect("no panic").is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > schedules {
                        break;
                    }
                    // A panic tells its seed as well.
                    let played = std::panic::catch_unwind(|| play::one(seed, &scratch, false));
                    if let Err(what) = played.unwrap_or_else(|_| Err("a panic".to_owned())) {
                        failed.lock().expect("no panic").get_or_insert((seed, what));
                    }
                }
            });
        }
    });
    if let Some((seed, what)) = failed.into_inner().expect("no panic") {
        println!("seed {seed}, step by step:");
        let again = play::one(seed, &Arc::new(Scratch::new()), true);
        panic!(
            "seed {seed}: {what}\n{}\nHOSTSNAP_SEED={seed} cargo test -p host-proxy --test simulation -- --nocapture thousands",
            if again.is_ok() {
                "(and the second time it went well: the simulation is not deterministic)"
            } else {
                ""
            }
        );
    }
}
