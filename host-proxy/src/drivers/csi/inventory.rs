//! Which of our snapshots the storage still has, where the plugin lists them. Others' are in its lists too: only
//! identifiers that we wrote down count.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Store;
use super::client::Client;
use super::codes::Refusal;
use super::entry::{Cut, Entry};
use super::proto::{ListSnapshotsRequest, ListSnapshotsResponse, method};
use super::secrets::Secrets;
use crate::drivers::folder::Place;
use crate::drivers::{DriverError, Found};

/// How many snapshots are asked for at once: far below what fits into a message of 4 MiB.
const PAGE: i32 = 500;
/// How long all pages together may take: the service waits 120 s for a list.
const LIMIT: Duration = Duration::from_secs(100);

/// Every snapshot of this host's. Of one that is not complete on the storage any more it says so.
pub(super) fn list(store: &Store) -> Result<Vec<Found>, DriverError> {
    let mut found = store.folder.list()?;
    let mut whole = Vec::new();
    for one in found.iter_mut().filter(|one| one.whole) {
        let Place::Whole(path) = store.folder.place(one.owner) else { continue };
        match read(&path)? {
            Some((entry, cut)) => whole.push((one, entry, cut)),
            None => one.whole = false,
        }
    }
    if whole.is_empty() {
        return Ok(found);
    }
    let secrets = store.secrets()?;
    let plugin = store.plugin(&secrets)?;
    if !plugin.lists {
        return Ok(found);
    }
    let volumes: BTreeSet<&str> = whole
        .iter()
        .flat_map(|(_, entry, _)| entry.volumes.iter().map(|member| member.volume.as_str()))
        .collect();
    let there = of_volumes(&store.client, &secrets, &volumes)?;
    for (one, entry, cut) in &mut whole {
        // What a plugin of another name has is not to be judged by this one.
        if entry.plugin != plugin.name {
            store.plugin_of(entry, &secrets)?;
        }
        for made in cut.snapshots.iter().filter(|made| !there.contains(&made.id)) {
            // A snapshot is gone when both questions say so: see `everything`.
            one.whole &= is_there(&store.client, &secrets, &made.id)?;
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Option<(Entry, Cut)>, DriverError> {
    Ok(Entry::read(path)?.zip(Cut::read(path)?))
}

/// The identifiers of the snapshots of these volumes, whoever made them.
fn of_volumes(
    client: &Client,
    secrets: &Secrets,
    volumes: &BTreeSet<&str>,
) -> Result<BTreeSet<String>, DriverError> {
    let mut ids = BTreeSet::new();
    for volume in volumes {
        let request = ListSnapshotsRequest { source_volume_id: (*volume).to_owned(), ..request(secrets) };
        pages(client, secrets, request, |id| {
            ids.insert(id);
        })
        .map_err(|refusal| refusal.into_error(format!("list the snapshots of {volume}")))?;
    }
    Ok(ids)
}

/// The identifiers of all snapshots. Asked without a filter: not every plugin tells all of one volume (the Kubernetes
/// host-path driver tells one).
pub(super) fn everything(client: &Client, secrets: &Secrets) -> Result<BTreeSet<String>, DriverError> {
    let mut ids = BTreeSet::new();
    pages(client, secrets, request(secrets), |id| {
        ids.insert(id);
    })
    .map_err(|refusal| refusal.into_error("list the snapshots"))?;
    Ok(ids)
}

fn is_there(client: &Client, secrets: &Secrets, id: &str) -> Result<bool, DriverError> {
    let mut is_there = false;
    let request = ListSnapshotsRequest { snapshot_id: id.to_owned(), ..request(secrets) };
    match pages(client, secrets, request, |found| is_there |= found == id) {
        Ok(()) => Ok(is_there),
        // CSI wants an empty list; some say this.
        Err(refusal) if refusal.code == tonic::Code::NotFound => Ok(false),
        Err(refusal) => Err(refusal.into_error(format!("look for the snapshot {id}"))),
    }
}

fn request(secrets: &Secrets) -> ListSnapshotsRequest {
    ListSnapshotsRequest { max_entries: PAGE, secrets: secrets.for_request(), ..Default::default() }
}

fn pages(
    client: &Client,
    secrets: &Secrets,
    mut request: ListSnapshotsRequest,
    mut each: impl FnMut(String),
) -> Result<(), Refusal> {
    let until = Instant::now() + LIMIT;
    loop {
        let page: ListSnapshotsResponse = client.call(method::LIST_SNAPSHOTS, request.clone(), secrets)?;
        page.entries
            .into_iter()
            .filter_map(|entry| entry.snapshot)
            .for_each(|snapshot| each(snapshot.snapshot_id));
        if page.next_token.is_empty() {
            return Ok(());
        }
        if page.next_token == request.starting_token || Instant::now() >= until {
            return Err(Refusal::garbage(method::LIST_SNAPSHOTS, "pages without an end"));
        }
        request.starting_token = page.next_token;
    }
}
