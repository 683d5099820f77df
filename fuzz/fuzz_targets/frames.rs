#![no_main]
//! A stream of bytes, read as the host reads it: header, payload, header, payload.

use libfuzzer_sys::fuzz_target;
use protocol::{Request, frame};

fuzz_target!(|stream: &[u8]| {
    let mut rest = stream;
    while let Some((header, behind)) = rest.split_first_chunk::<{ frame::HEADER }>() {
        let Ok(len) = frame::payload_len(*header) else { return };
        let Some((payload, behind)) = behind.split_at_checked(len) else { return };
        fuzz::error_or_canonical::<Request>(payload);
        rest = behind;
    }
});
