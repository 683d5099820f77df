#![no_main]
//! What a guest, or the host to a guest's daemon, may send as one payload.

use libfuzzer_sys::fuzz_target;
use protocol::Request;
use protocol::agent::AgentRequest;

fuzz_target!(|payload: &[u8]| {
    fuzz::error_or_canonical::<Request>(payload);
    fuzz::error_or_canonical::<AgentRequest>(payload);
});
