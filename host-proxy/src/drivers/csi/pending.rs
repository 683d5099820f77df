//! What became of a question that nobody heard the answer of: the service was killed, the host lost power, the plugin hung.
//!
//! CSI has no call that finds a snapshot by its name. Asked again, a plugin gives the one that there is, or makes one *now*.
//! Which of both it was can be told where it lists: what was in the list before is that of then. Else nothing is known,
//! and what is not known is no snapshot.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tonic::Code;

use super::ask::Question;
use super::entry::{Cut, Entry};
use super::plugin::Plugin;
use super::secrets::Secrets;
use super::{Store, inventory, remove};
use crate::drivers::{DriverError, Owner};

/// How long a plugin that is still at work on the first question is asked again.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was cut then, if all of it was. Else there is nothing of it afterwards.
pub(super) fn was_cut(
    store: &Store,
    owner: Owner,
    entry: &Entry,
    plugin: &Plugin,
    secrets: &Secrets,
) -> Result<Option<Cut>, DriverError> {
    let before = if plugin.lists { inventory::everything(&store.client, secrets)? } else { BTreeSet::new() };
    let question = Question::new(owner, entry, &store.place, secrets);
    let answers = question.ask(&store.client, Instant::now() + PATIENCE);
    // A volume that is gone can't be asked for. Whatever else is the matter, the question stays open.
    if let Some(refusal) = answers.refusals().find(|refusal| refusal.code != Code::NotFound) {
        return Err(refusal
            .clone()
            .into_error(format!("ask what became of the snapshot {}", owner.snapshot)));
    }
    let cut = answers.made();
    let all = cut.snapshots.len() == entry.volumes.len();
    if all && cut.snapshots.iter().all(|made| before.contains(&made.id)) {
        return Ok(Some(cut));
    }
    remove::on_plugin(store, &cut).map(|()| None)
}
