#![no_main]
//! What the host, or a guest's daemon, may answer as one payload.

use libfuzzer_sys::fuzz_target;
use protocol::Reply;
use protocol::agent::AgentReply;

fuzz_target!(|payload: &[u8]| {
    fuzz::error_or_canonical::<Reply>(payload);
    fuzz::error_or_canonical::<AgentReply>(payload);
});
