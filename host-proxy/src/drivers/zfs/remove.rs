//! Removing a snapshot in whatever state. All snapshots of a set go in one transaction, or none.

use std::collections::BTreeSet;

use super::inventory::{self, Held};
use super::tool::Store;
use super::{core, names};
use crate::drivers::{Deleted, DriverError, Kind, Owner};

/// Removes it. `Busy`, and as it was, while somebody uses it.
pub(super) fn remove(store: &Store, owner: Owner) -> Result<Deleted, DriverError> {
    let held = inventory::one(store, owner)?;
    if held.is_nothing() {
        return Ok(Deleted::WasAbsent);
    }
    remove_snapshots(store, owner, &held)?;
    drop_notes(store, &held)?;
    Ok(Deleted::Gone)
}

/// Removes what says that it was prepared.
pub(super) fn drop_notes(store: &Store, held: &Held) -> Result<(), DriverError> {
    held.notes.iter().try_for_each(|name| store.unset(name))
}

fn remove_snapshots(store: &Store, owner: Owner, held: &Held) -> Result<(), DriverError> {
    let names = held.names();
    if names.is_empty() {
        return Ok(());
    }
    let of_others = held.snapshots.iter().flat_map(|snapshot| &snapshot.clones);
    if let Some(clone) = of_others.clone().find(|clone| !names::is_clone(&store.dataset, clone)) {
        return Err(busy(
            owner,
            format!("{clone} is a clone of it; zfs destroy {clone}, or zfs promote {clone}"),
        ));
    }
    let is_held = refuse_others_holds(store, owner, &names)?;
    // Ours, made to show it. One that is in use stays, and so does the snapshot.
    for clone in of_others {
        remove_clone(store, clone)?;
    }
    if is_held {
        core::release(&names)?;
    }
    core::destroy(&names).map_err(|error| {
        let held_again = if is_held { core::hold(&names) } else { Ok(()) };
        error.after_undo(held_again)
    })
}

/// Removes a clone that was made to show a snapshot. `Busy` while somebody reads it.
pub(super) fn remove_clone(store: &Store, clone: &str) -> Result<(), DriverError> {
    store.change(&format!("remove the clone {clone}"), &["destroy", clone])
}

/// Whether we hold it. `Busy` if somebody else does.
fn refuse_others_holds(store: &Store, owner: Owner, names: &BTreeSet<String>) -> Result<bool, DriverError> {
    let listed: Vec<&str> = names.iter().map(String::as_str).collect();
    let holds = store.holds(&listed)?;
    match holds.iter().find(|(_, tag)| tag != core::HOLD) {
        Some((name, tag)) => Err(busy(owner, format!("it is held; zfs release {tag} {name}"))),
        None => Ok(!holds.is_empty()),
    }
}

fn busy(owner: Owner, why: String) -> DriverError {
    DriverError::new(Kind::Busy, format!("remove the snapshot {}: {why}", owner.snapshot))
}
