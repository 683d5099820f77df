//! The host's administrator, who does things meanwhile; and the last look, when all has come to rest.

use std::sync::Arc;
use std::time::Duration;

use host_proxy::policy;
use host_proxy::service::Service;
use protocol::message::List;
use protocol::{SnapshotId, SnapshotRecord};
use tokio::task::JoinSet;

use crate::host::Host;
use crate::play::Play;

/// Does so many things.
pub(crate) async fn live(host: Host, things: usize) {
    for _ in 0..things {
        host.stage.turn("the administrator goes on").await;
        let Some(service) = host.service() else {
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        };
        let what = host.stage.chance(|chance| chance.below(4));
        // What is asked of the service dies with it; the administrator does not.
        host.spawn(ask(host.clone(), service, what));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn ask(host: Host, service: Arc<Service>, what: usize) {
    match what {
        0 => {
            host.stage.say(|| "hostsnapd reconcile".to_owned());
            let report = service.reconcile().await;
            host.reconciled(&report);
        }
        1 => {
            host.stage.say(|| "the minute is over: tend".to_owned());
            service.tend().await;
        }
        2 => {
            for record in all(&service).await.unwrap_or_default() {
                let mut state = host.stage.lock();
                let state = &mut *state;
                let told = state.witness.told(None, &record, &state.storage);
                if let Err(what) = told {
                    host.stage.broken(what);
                }
            }
        }
        _ => {
            let ids: Vec<SnapshotId> = host.stage.lock().witness.wishes.keys().copied().collect();
            if ids.is_empty() {
                return;
            }
            let id = host.stage.chance(|chance| chance.pick(&ids));
            if let Ok(record) = get(&service, id).await {
                host.stage.say(|| format!("hostsnapd delete {id}"));
                let allowed = policy::delete_as_admin(&record, host.stage.now());
                if let Some(wish) = host.stage.lock().witness.wishes.get_mut(&id) {
                    wish.may_be_deleted = true;
                }
                let deleted = service.delete(allowed.expect("nothing is locked")).await;
                host.stage.say(|| format!("hostsnapd delete {id}: {deleted:?}"));
            }
        }
    }
}

async fn all(service: &Service) -> Result<Vec<SnapshotRecord>, protocol::WireError> {
    let list = List { limit: 200, ..List::default() };
    Ok(service.list(&policy::read_as_admin(None), list).await?.snapshots.into_inner())
}

async fn get(service: &Service, id: SnapshotId) -> Result<SnapshotRecord, protocol::WireError> {
    service.get(&policy::read_as_admin(None), id.to_string().parse().expect("a reference")).await
}

/// Everything works and nobody asks for anything: the catalog is the storage, what was promised is there
/// with the same record, and everybody can take snapshots and delete them.
pub(crate) async fn last_look(play: &mut Play) -> Result<(), String> {
    let host = play.host.clone();
    let service = host.service().ok_or("the service does not run")?;
    let mut people = JoinSet::new();
    let of_tasks = Arc::clone(&service);
    let looker = host.clone();
    people.spawn(async move {
        let host = looker;
        of_tasks.tend().await;
        let _ = of_tasks.reconcile().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        match of_tasks.reconcile().await {
            Ok(report) if report.is_clean() => host.reconciled(&Ok(report)),
            other => host.stage.broken(format!("the catalog does not come to rest: {other:?}")),
        }
    });
    play.until(&mut people, false).await?;
    {
        let state = host.stage.lock();
        state.witness.at_rest(&state.storage)?;
    }
    let of_tasks = Arc::clone(&service);
    let looker = host.clone();
    people.spawn(async move { compare(looker, of_tasks).await });
    play.until(&mut people, false).await?;
    host.stage.lock().witness.wishes.values_mut().for_each(|wish| wish.may_be_deleted = true);
    let cleaner = host.clone();
    people.spawn(async move { empty(cleaner, service).await });
    play.until(&mut people, false).await?;
    let left = host.stage.lock().storage.owners();
    if left.is_empty() { Ok(()) } else { Err(format!("all is deleted, and left are {left:?}")) }
}

/// What stands is shown as it was told.
async fn compare(host: Host, service: Arc<Service>) {
    let promised: Vec<SnapshotRecord> = {
        let state = host.stage.lock();
        let stands = state.witness.wishes.values().filter(|wish| wish.stands(state.witness.latest));
        stands.filter_map(|wish| wish.promised.clone()).collect()
    };
    for record in promised {
        match get(&service, record.id).await {
            Ok(shown) if SnapshotRecord { locked_until: None, ..shown.clone() } == record => {}
            other => host.stage.broken(format!("{} was promised, and now it is {other:?}", record.id)),
        }
    }
}

/// Nothing holds a snapshot any more, so all can be deleted.
async fn empty(host: Host, service: Arc<Service>) {
    for record in all(&service).await.unwrap_or_default() {
        let allowed = policy::delete_as_admin(&record, host.stage.now()).expect("nothing is locked");
        if let Err(error) = service.delete(allowed).await {
            host.stage.broken(format!("{} can't be deleted: {error}", record.id));
        }
    }
}
