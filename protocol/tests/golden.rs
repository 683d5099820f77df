//! The bytes of every message, pinned. A change of these bytes is a change of the protocol: append a
//! variant instead. New ones are printed with HOSTSNAP_BLESS=1, which writes the file anew.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write;

use protocol::agent::{AgentReply, AgentRequest};
use protocol::{Reply, Request, frame};
use serde::Serialize;
use serde::de::DeserializeOwned;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn lines<T>(family: &str, all: &[(String, T)]) -> Vec<String>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    all.iter()
        .map(|(name, value)| {
            let bytes = frame::encode(value).unwrap();
            assert_eq!(&frame::decode::<T>(&bytes[frame::HEADER..]).unwrap(), value, "{family} {name}");
            format!("{family} {name} {}", hex(&bytes))
        })
        .collect()
}

#[test]
fn the_bytes_of_every_message_are_what_they_always_were() {
    let now = [
        lines("Request", &common::requests()),
        lines("Reply", &common::replies()),
        lines("AgentRequest", &common::agent_requests()),
        lines("AgentReply", &common::agent_replies()),
    ]
    .concat()
    .join("\n")
        + "\n";
    if std::env::var_os("HOSTSNAP_BLESS").is_some() {
        std::fs::write(FILE, &now).unwrap();
    }
    let golden = std::fs::read_to_string(FILE).unwrap();
    for (now, golden) in now.lines().zip(golden.lines()) {
        assert_eq!(now, golden);
    }
    assert_eq!(
        now.lines().count(),
        golden.lines().count(),
        "a message without golden bytes, or one that is gone"
    );
}

/// A variant that is added does not compile here until it is named, and has no golden bytes until it
/// is in `common`.
#[test]
fn every_variant_has_golden_bytes() {
    let requests = [
        "Hello",
        "Ping",
        "Disks",
        "Prepare",
        "Cut",
        "Conclude",
        "Abort",
        "List",
        "Get",
        "Delete",
        "Abilities",
        "Attach",
        "Detach",
        "Attachments",
        "Restore",
    ];
    let of_request = |value: &Request| match value {
        Request::Hello(_) => "Hello",
        Request::Ping(_) => "Ping",
        Request::Disks => "Disks",
        Request::Prepare(_) => "Prepare",
        Request::Cut(_) => "Cut",
        Request::Conclude(_) => "Conclude",
        Request::Abort(_) => "Abort",
        Request::List(_) => "List",
        Request::Get(_) => "Get",
        Request::Delete(_) => "Delete",
        Request::Abilities => "Abilities",
        Request::Attach(_) => "Attach",
        Request::Detach(_) => "Detach",
        Request::Attachments => "Attachments",
        Request::Restore(_) => "Restore",
    };
    let seen: BTreeSet<_> = common::requests().iter().map(|(_, value)| of_request(value)).collect();
    assert_eq!(seen, requests.into());

    let replies = [
        "Hello",
        "Pong",
        "Disks",
        "Prepared",
        "Planned",
        "Existing",
        "CutDone",
        "Progress",
        "Snapshot",
        "Aborted",
        "Snapshots",
        "Deleted",
        "Error",
        "Abilities",
        "Attached",
        "Detached",
        "RestorePlanned",
        "Restored",
    ];
    let of_reply = |value: &Reply| match value {
        Reply::Hello(_) => "Hello",
        Reply::Pong(_) => "Pong",
        Reply::Disks(_) => "Disks",
        Reply::Prepared(_) => "Prepared",
        Reply::Planned(_) => "Planned",
        Reply::Existing(_) => "Existing",
        Reply::CutDone(_) => "CutDone",
        Reply::Progress(_) => "Progress",
        Reply::Snapshot(_) => "Snapshot",
        Reply::Aborted => "Aborted",
        Reply::Snapshots(_) => "Snapshots",
        Reply::Deleted(_) => "Deleted",
        Reply::Error(_) => "Error",
        Reply::Abilities(_) => "Abilities",
        Reply::Attached(_) => "Attached",
        Reply::Detached(_) => "Detached",
        Reply::RestorePlanned(_) => "RestorePlanned",
        Reply::Restored(_) => "Restored",
    };
    let seen: BTreeSet<_> = common::replies().iter().map(|(_, value)| of_reply(value)).collect();
    assert_eq!(seen, replies.into());

    let of_agent = |value: &AgentRequest| match value {
        AgentRequest::Hello(_) => 0,
        AgentRequest::Ping(_) => 1,
        AgentRequest::Status => 2,
        AgentRequest::Create(_) => 3,
    };
    let seen: BTreeSet<_> = common::agent_requests().iter().map(|(_, value)| of_agent(value)).collect();
    assert_eq!(seen.len(), 4);
    let of_agent = |value: &AgentReply| match value {
        AgentReply::Hello { .. } => 0,
        AgentReply::Pong(_) => 1,
        AgentReply::Status(_) => 2,
        AgentReply::Progress(_) => 3,
        AgentReply::Created(_) => 4,
        AgentReply::Error(_) => 5,
    };
    let seen: BTreeSet<_> = common::agent_replies().iter().map(|(_, value)| of_agent(value)).collect();
    assert_eq!(seen.len(), 6);
}

/// The variant's number is its first byte: the order never changes.
#[test]
fn variants_are_numbered_in_the_order_of_the_document() {
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md")).unwrap();
    for (family, name, number) in common::requests()
        .iter()
        .map(|(name, value)| ("Request", name.clone(), frame::encode(value).unwrap()[4]))
        .chain(
            common::replies()
                .iter()
                .map(|(name, value)| ("Reply", name.clone(), frame::encode(value).unwrap()[4])),
        )
        .filter(|(_, name, _)| !name.contains('/'))
    {
        let row = format!("| {number} | `{family}::{name}` |");
        assert!(document.contains(&row), "docs/protocol.md lacks: {row}");
    }
    for (index, code) in common::ERROR_CODES.iter().enumerate() {
        let retry = if code.is_retryable() { "yes" } else { "no" };
        let row = format!("| {index} | `{code:?}` | {} | {retry} |", code.exit_code());
        assert!(document.contains(&row), "docs/protocol.md lacks: {row}");
    }
}

/// The worked example in the document is decoded, not only shown.
#[test]
fn the_frames_in_the_document_are_frames() {
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md")).unwrap();
    let bytes = |text: &str| -> Vec<u8> {
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    };
    let mut frames = 0;
    for line in document.lines() {
        let Some((who, text)) = line.split_once(": ").filter(|(who, _)| matches!(*who, "guest" | "host"))
        else {
            continue;
        };
        let frame_bytes = bytes(text);
        let header = frame_bytes[..frame::HEADER].try_into().unwrap();
        assert_eq!(frame::payload_len(header).unwrap(), frame_bytes.len() - frame::HEADER, "{line}");
        match who {
            "guest" => drop(frame::decode::<Request>(&frame_bytes[frame::HEADER..]).expect(line)),
            _ => drop(frame::decode::<Reply>(&frame_bytes[frame::HEADER..]).expect(line)),
        }
        frames += 1;
    }
    assert!(frames >= 6, "the document shows a whole conversation");
}
