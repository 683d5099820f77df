//! What a guest asks for, and how it says that it was frozen.

use protocol::evidence::{CallEvidence, Evidence, FileSystemEvidence, Freeze};
use protocol::fingerprint;
use protocol::message::{DiskRequest, Prepare};
use protocol::text::Labels;
use protocol::{BoundedVec, Consistency, RequestId};

/// A request for disks of these serials and sizes, each filled with one byte, worth at least this.
pub(crate) fn request_for(disks: &[(&str, u64, u8)], minimum: Consistency) -> Prepare {
    let disk = |(serial, size_bytes, byte): &(&str, u64, u8)| DiskRequest {
        serial: serial.parse().unwrap(),
        size_bytes: *size_bytes,
        fingerprint: fingerprint::of_head(&[*byte; fingerprint::HEAD_BYTES]),
    };
    Prepare {
        request: RequestId::random(),
        disks: disks.iter().map(disk).collect::<Vec<_>>().try_into().unwrap(),
        mounts: BoundedVec::empty(),
        labels: Labels::default(),
        note: "".parse().unwrap(),
        minimum,
        keep_for_s: None,
        lease_ms: 60_000,
        dry_run: false,
    }
}

/// The guest was frozen through the cut.
pub(crate) fn held() -> Evidence {
    let call = Some(CallEvidence { at_us: 0, took_us: 1, errno: 0 });
    let fs = FileSystemEvidence {
        mount_point: "/data".parse().unwrap(),
        fs_type: "ext4".parse().unwrap(),
        freeze: call,
        thaw: call,
    };
    let file_systems = vec![fs].try_into().unwrap();
    Evidence { freeze: Freeze::Held, file_systems, hooks: BoundedVec::empty() }
}
