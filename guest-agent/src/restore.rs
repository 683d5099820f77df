//! Going back to a snapshot from inside: this machine lets go of the disks, holds them against itself while the host
//! gives them their old bytes, forgets what it had cached of them, and takes them into use again.
//!
//! | module | idea |
//! |---|---|
//! | this one | the whole of it, in order |
//! | `wanted` | which disks |
//! | `way` | what in this machine uses them |
//! | `users` | which processes |
//! | `mounts` | unmounting, and mounting again in the same way |
//! | `held` | the disks, held so that nothing else gets them |
//! | `ask` | the host, asked again when it is lost in the middle |
//!
//! The host has only this machine's word that nothing uses the disks. Mounts and whatever else claims a block device for
//! itself can't come in between, since an exclusive open of the disk is held until the host is done.

mod ask;
mod held;
mod mounts;
mod users;
mod wanted;
mod way;

use std::path::PathBuf;

use protocol::message::{DiskRequest, Progress};
use protocol::restore::{Layout, Restore, RestorePlan, Safety};
use protocol::text::SnapshotRef;
use protocol::{BoundedVec, ErrorCode, RequestId, WireError};

use crate::client::{Client, HostAddress, Limits};
use crate::flow::{Patience, read_fingerprint};
use crate::topology::capture;
use crate::topology::select::Disk;
use ask::Ended;
use held::Held;
use mounts::Unmounted;
pub use way::InTheWay;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// Disks by serial, or paths on them; none is all of the snapshot.
    pub what: Vec<PathBuf>,
    /// Change nothing.
    pub preview: bool,
    /// Unmount what is in the way, and mount it again.
    pub remount: bool,
    /// Whether what the disks hold now is kept.
    pub safety: Safety,
    /// Whether they may have been formatted anew.
    pub layout: Layout,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What was done, or would be.
    pub plan: RestorePlan,
    /// Whether nothing was done.
    pub is_preview: bool,
    /// What uses the disks, for a preview.
    pub in_the_way: Vec<InTheWay>,
    /// What was unmounted and mounted again.
    pub mounted: Vec<PathBuf>,
    /// What did not go as it should.
    pub notes: Vec<String>,
}

/// Goes back to a snapshot.
///
/// # Errors
/// The host's; `Busy` with the list of what is in the way. After `RestoreUnfinished` nothing is mounted.
pub fn restore(
    options: &Options,
    host: &HostAddress,
    tell: &mut dyn FnMut(Progress),
) -> Result<Outcome, WireError> {
    let mut client = Client::connect(host, Limits::default())?;
    let record = client.get(options.snapshot.clone())?;
    let capture = capture::live()?;
    let disks = wanted::disks(&capture, &record, &options.what)?;
    let in_the_way = way::survey(&capture, &disks);
    let request = RequestId::random();
    let wanted = |dry_run| -> Result<Restore, WireError> {
        let (safety, layout) = (options.safety, options.layout);
        Ok(Restore { request, id: record.id, disks: requests(&disks)?, safety, layout, dry_run })
    };
    // What the host refuses, nothing is unmounted for.
    let plan = client.restore(wanted(true)?, tell)?;
    drop(client);
    if options.preview {
        return Ok(Outcome { plan, is_preview: true, in_the_way, mounted: Vec::new(), notes: Vec::new() });
    }
    way::refuse(&in_the_way, options.remount)?;

    // From here to the end a signal waits: a disk is not left unmounted for it.
    let _patience = Patience::new();
    let unmounted = Unmounted::unmount(&way::mounts(&capture, &disks))?;
    let ended = hold_and_ask(&capture, &disks, host, || wanted(false), tell);
    match ended {
        // The disk is half of each: mounting it would be the end of it.
        Err(error) if error.code == ErrorCode::RestoreUnfinished => Err(unmounted.left(error)),
        Err(error) => Err(unmounted.after(error)),
        Ok((plan, mut notes)) => {
            let (mounted, failed) = unmounted.mount_again();
            notes.extend(failed);
            Ok(Outcome { plan, is_preview: false, in_the_way: Vec::new(), mounted, notes })
        }
    }
}

/// The disks are held from before the host is asked until what was cached of them is dropped.
fn hold_and_ask(
    capture: &capture::Capture,
    disks: &[Disk],
    host: &HostAddress,
    wanted: impl FnOnce() -> Result<Restore, WireError>,
    tell: &mut dyn FnMut(Progress),
) -> Result<(RestorePlan, Vec<String>), WireError> {
    let held = Held::hold(capture, disks)?;
    match ask::ask(host, &wanted()?, tell) {
        Ended::Done(plan) => Ok((plan, held.forget_what_was())),
        Ended::Refused(error) => Err(error),
        Ended::InTheMiddle(error) => {
            // What is read of it from now on must at least be what is there.
            held.forget_what_was();
            Err(error)
        }
    }
}

/// The disks as they are now.
fn requests(disks: &[Disk]) -> Result<BoundedVec<DiskRequest, 64>, WireError> {
    let mut requests = Vec::with_capacity(disks.len());
    for Disk { name, serial, size_bytes } in disks {
        let fingerprint = read_fingerprint(name).map_err(|error| {
            WireError::new(ErrorCode::Internal, format!("read the first bytes of /dev/{name}: {error}"))
                .hint("run it as root: sudo hostsnap …")
        })?;
        requests.push(DiskRequest { serial: serial.clone(), size_bytes: *size_bytes, fingerprint });
    }
    requests.try_into().map_err(|error: protocol::bounded::TooMany| {
        WireError::new(ErrorCode::BadRequest, format!("disks to restore: {error}"))
    })
}
