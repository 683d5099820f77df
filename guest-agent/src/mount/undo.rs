//! Undoing a mount: from the outside in, as far as nobody else needs it. What is not there is undone already.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::{ErrorCode, SnapshotId};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::state::{self, Kept};
use super::{MountError, folder, mapper};
use crate::attach;
use crate::client::Client;
use crate::topology::mountinfo;

/// Disks are let go a moment after the last user.
const DETACH_LIMIT: Duration = Duration::from_secs(10);

/// Undoes what killed commands left.
pub(super) fn sweep(client: &mut Client) -> Result<(), MountError> {
    state::left_over(&folder())?.into_iter().try_for_each(|kept| undo(client, kept))
}

/// Unmounts what is at a folder, or everything that is of a snapshot; the folders.
pub fn close_all(client: &mut Client, at: Option<&Path>) -> Result<Vec<PathBuf>, MountError> {
    let _lock = state::lock(&folder())?;
    sweep(client)?;
    let mut done = Vec::new();
    // The last one first: it may be on one before it.
    let mut all = state::all(&folder())?;
    all.sort_by_key(|kept| std::cmp::Reverse(kept.mounted.mount_id));
    for kept in all {
        let place = kept.mounted.at.clone().unwrap_or_default();
        if at.is_none_or(|at| at == place) {
            undo(client, kept)?;
            done.push(place);
        }
    }
    Ok(done)
}

pub(super) fn undo(client: &mut Client, kept: Kept) -> Result<(), MountError> {
    let mounted = kept.mounted.clone();
    if let Some(at) = &mounted.at {
        unmount_at(at, mounted.mount_id)?;
    }
    let others: Vec<_> = {
        let mut all = state::needed(&folder());
        if let Some(own) = all.iter().position(|other| *other == mounted) {
            all.remove(own);
        }
        all.into_iter().filter(|other| other.snapshot == mounted.snapshot).collect()
    };
    for name in mounted.devices.iter().rev() {
        if !others.iter().any(|other| other.devices.contains(name)) {
            mapper::remove(name).map_err(MountError::io(format!("remove the device {name}")))?;
        }
    }
    if mounted.attached && others.is_empty() {
        detach(client, mounted.snapshot)?;
    }
    kept.forget()
}

fn unmount_at(at: &Path, id: Option<u64>) -> Result<(), MountError> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(MountError::io("read /proc/self/mountinfo"))?;
    let mounts = mountinfo::parse(&table);
    // Without a number nothing was mounted yet.
    let is_it =
        |mount: &&mountinfo::Mount| mount.mount_point == at && id.is_some_and(|id| u64::from(mount.id) == id);
    if !mounts.iter().any(|mount| is_it(&mount)) {
        return Ok(());
    }
    match unmount(at, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => Err(MountError::Busy {
            what: format!("{} is in use", at.display()),
            hint: format!("fuser -vm {} shows by whom", at.display()),
        }),
        unmounted => unmounted.map_err(MountError::io(format!("unmount {}", at.display()))),
    }
}

fn detach(client: &mut Client, snapshot: SnapshotId) -> Result<(), MountError> {
    let deadline = Instant::now() + DETACH_LIMIT;
    loop {
        match attach::detach(client, snapshot) {
            Ok(_) => return Ok(()),
            // The last descriptor of a mount is closed a moment after its program let it go.
            Err(error) if error.code == ErrorCode::Busy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(MountError::Host(error)),
        }
    }
}
