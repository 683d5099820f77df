//! What holds for all bytes and all values.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use protocol::agent::{AgentReply, AgentRequest};
use protocol::codec::{self, MAX_PAYLOAD};
use protocol::evidence::{Freeze, HookOutcome};
use protocol::text::Line;
use protocol::{Reply, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Notes the largest allocation of this thread.
struct Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is left to the system's allocator; noting a number allocates nothing.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// Decoding gives an error or a value whose one encoding these bytes are.
fn is_error_or_canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(value) = codec::decode::<T>(bytes) {
        assert_eq!(codec::encode(&value).unwrap(), bytes);
    }
}

fn every_encoding() -> Vec<Vec<u8>> {
    let requests = common::requests().into_iter().map(|(_, value)| codec::encode(&value).unwrap());
    let replies = common::replies().into_iter().map(|(_, value)| codec::encode(&value).unwrap());
    requests.chain(replies).collect()
}

fn decode_as_all(bytes: &[u8]) {
    is_error_or_canonical::<Request>(bytes);
    is_error_or_canonical::<Reply>(bytes);
    is_error_or_canonical::<AgentRequest>(bytes);
    is_error_or_canonical::<AgentReply>(bytes);
}

#[test]
fn every_truncation_is_an_error() {
    for (name, value) in common::requests() {
        let bytes = codec::encode(&value).unwrap();
        for len in 0..bytes.len() {
            assert!(codec::decode::<Request>(&bytes[..len]).is_err(), "{name}, {len} of {}", bytes.len());
        }
    }
    for (name, value) in common::replies() {
        let bytes = codec::encode(&value).unwrap();
        for len in 0..bytes.len() {
            assert!(codec::decode::<Reply>(&bytes[..len]).is_err(), "{name}, {len} of {}", bytes.len());
        }
    }
}

#[test]
fn every_bit_flip_is_an_error_or_another_value_in_its_one_encoding() {
    for bytes in every_encoding() {
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            decode_as_all(&flipped);
        }
    }
}

#[test]
fn trailing_bytes_long_integers_and_unsorted_labels_are_refused() {
    let ping = codec::encode(&Request::Ping(7)).unwrap();
    assert!(codec::decode::<Request>(&[&ping[..], &[0]].concat()).is_err());
    // 251 announces two bytes, where one would do.
    assert!(codec::decode::<Request>(&[1, 251, 7, 0]).is_err());
    assert_eq!(codec::decode::<Request>(&[1, 7]).unwrap(), Request::Ping(7));

    type Pairs = Vec<(String, String)>;
    let pairs =
        |keys: &[&str]| -> Pairs { keys.iter().map(|key| ((*key).to_owned(), String::new())).collect() };
    let decode = |keys: &[&str]| codec::decode::<protocol::Labels>(&codec::encode(&pairs(keys)).unwrap());
    assert!(decode(&["a", "b"]).is_ok());
    assert!(decode(&["b", "a"]).is_err());
    assert!(decode(&["a", "a"]).is_err());
    assert!(decode(&vec!["a"; 33]).is_err());
}

#[test]
fn a_length_prefix_alone_allocates_nothing_of_its_size() {
    // 253 announces eight bytes of length: 2^63 labels, disks, characters.
    let huge = [253, 0, 0, 0, 0, 0, 0, 0, 0x80];
    for variant in 0..16 {
        for filler in [0usize, 16, 17, 40] {
            let bytes = [&[variant][..], &vec![16; filler], &huge].concat();
            LARGEST.with(|largest| largest.set(0));
            decode_as_all(&bytes);
            assert!(LARGEST.with(Cell::get) <= MAX_PAYLOAD, "variant {variant}, filler {filler}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_canonical_and_cost_no_more_than_a_frame(
        bytes in proptest::collection::vec(any::<u8>(), 0..600)
    ) {
        LARGEST.with(|largest| largest.set(0));
        decode_as_all(&bytes);
        prop_assert!(LARGEST.with(Cell::get) <= MAX_PAYLOAD);
    }

    #[test]
    fn damaged_messages_are_errors_or_canonical(
        which in any::<proptest::sample::Index>(),
        at in any::<proptest::sample::Index>(),
        with in proptest::collection::vec(any::<u8>(), 0..12),
    ) {
        let all = every_encoding();
        let mut bytes = which.get(&all).clone();
        let at = at.index(bytes.len());
        bytes.splice(at..(at + with.len()).min(bytes.len()), with);
        LARGEST.with(|largest| largest.set(0));
        decode_as_all(&bytes);
        prop_assert!(LARGEST.with(Cell::get) <= MAX_PAYLOAD);
    }

    #[test]
    fn what_is_encoded_is_decoded(number in any::<u64>(), within_us in any::<u64>(), code in any::<i32>(), why in ".*") {
        let ticket = common::uuid(4);
        for request in [
            Request::Ping(number),
            Request::Cut(protocol::message::Cut { ticket, within_us }),
            common::conclude(Freeze::NotHeld(Line::lossy(&why)), HookOutcome::Exited(code)),
        ] {
            let bytes = codec::encode(&request).unwrap();
            prop_assert_eq!(codec::decode::<Request>(&bytes).unwrap(), request);
        }
    }
}
