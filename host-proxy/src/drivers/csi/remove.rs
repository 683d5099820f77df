//! Removing a snapshot. The folder says so first, then the plugin removes, then the folder goes: a crash in between is
//! taken up by `recover`.

use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

use tonic::Code;

use super::client::PATIENCE;
use super::codes::Refusal;
use super::entry::{self, Cut, Entry};
use super::proto::{DeleteGroupRequest, DeleteSnapshotRequest, Empty, method};
use super::secrets::Secrets;
use super::{Store, hide, pending};
use crate::drivers::folder::Place;
use crate::drivers::{Deleted, DriverError, Kind, Owner};

/// Removes it in whatever state.
pub(super) fn all(store: &Store, owner: Owner) -> Result<Deleted, DriverError> {
    let was_whole = matches!(store.folder.place(owner), Place::Whole(_));
    let begun = Cell::new(false);
    let removed = store.folder.remove(owner, |path| {
        let Some(entry) = Entry::read(path)? else { return entry::clear(path) };
        // What is shown of it is made of it; while somebody reads that, it is in use.
        hide::all(store, owner)?;
        if let Some(cut) = what_there_is(store, owner, &entry, path)? {
            delete(store, &store.secrets()?, &cut, &begun)?;
        }
        entry::clear(path)
    });
    removed.map_err(|error| {
        // In use, and all of it is there still: it is what it was.
        if error.kind == Kind::Busy && was_whole && !begun.get() {
            let put_back = store.folder.put_back(owner);
            return error.after_undo(put_back);
        }
        error
    })
}

/// Removes what was never asked for: there is only the folder.
pub(super) fn unasked(store: &Store, owner: Owner) -> Result<(), DriverError> {
    store.folder.remove(owner, entry::clear).map(|_| ())
}

/// Removes a set of which these are all that there is.
pub(super) fn these(store: &Store, owner: Owner, cut: &Cut) -> Result<(), DriverError> {
    store.folder.remove(owner, |path| on_plugin(store, cut).and_then(|()| entry::clear(path))).map(|_| ())
}

/// Removes these from the storage.
pub(super) fn on_plugin(store: &Store, cut: &Cut) -> Result<(), DriverError> {
    delete(store, &store.secrets()?, cut, &Cell::new(false))
}

fn what_there_is(
    store: &Store,
    owner: Owner,
    entry: &Entry,
    path: &Path,
) -> Result<Option<Cut>, DriverError> {
    let secrets = store.secrets()?;
    let plugin = store.plugin_of(entry, &secrets)?;
    match Cut::read(path)? {
        Some(cut) => Ok(Some(cut)),
        None => pending::was_cut(store, owner, entry, &plugin, &secrets),
    }
}

/// `begun` tells whether something may be gone.
fn delete(store: &Store, secrets: &Secrets, cut: &Cut, begun: &Cell<bool>) -> Result<(), DriverError> {
    let until = || Instant::now() + PATIENCE;
    if let Some(group) = &cut.group {
        let request = DeleteGroupRequest {
            group_snapshot_id: group.clone(),
            snapshot_ids: cut.snapshots.iter().map(|made| made.id.clone()).collect(),
            secrets: secrets.for_request(),
        };
        let deleted = store.client.insist(method::DELETE_GROUP_SNAPSHOT, request, secrets, until());
        return judge(deleted, begun, &format!("delete the group snapshot {group}"));
    }
    cut.snapshots.iter().try_for_each(|made| {
        let request = DeleteSnapshotRequest { snapshot_id: made.id.clone(), secrets: secrets.for_request() };
        let deleted = store.client.insist(method::DELETE_SNAPSHOT, request, secrets, until());
        judge(deleted, begun, &format!("delete the snapshot {}", made.id))
    })
}

fn judge(deleted: Result<Empty, Refusal>, begun: &Cell<bool>, doing: &str) -> Result<(), DriverError> {
    match deleted {
        Ok(Empty {}) => {
            begun.set(true);
            Ok(())
        }
        Err(refusal) if refusal.code == Code::NotFound => Ok(()),
        Err(refusal) => {
            // Also a plugin that is at work on it may be deleting it.
            begun.set(begun.get() || refusal.is_open());
            Err(refusal.into_error(doing))
        }
    }
}
