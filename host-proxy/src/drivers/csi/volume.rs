//! Asking for the volume that is made of a snapshot, and what became of a question whose answer was lost.

use std::thread;
use std::time::Instant;

use tonic::Code;

use super::ask::is_id;
use super::client::{Client, PAUSE};
use super::codes::Refusal;
use super::proto::{
    CapacityRange, ContentSource, CreateVolumeRequest, CreateVolumeResponse, SnapshotSource, Topology,
    TopologyRequirement, VolumeCapability, method,
};
use super::secrets::Secrets;
use super::shown::{Asked, Volume};

/// A volume that there is.
pub(super) struct Answer {
    pub(super) volume: Volume,
    /// Why it can't be what was asked for.
    pub(super) is_not_it: Option<&'static str>,
}

/// Asks; again while the plugin is still at work on it, until `until`, and once where the way to it was lost.
pub(super) fn ask(
    client: &Client,
    asked: &Asked,
    secrets: &Secrets,
    until: Instant,
) -> Result<Answer, Refusal> {
    let mut was_lost = false;
    loop {
        let told: Result<CreateVolumeResponse, Refusal> =
            client.call(method::CREATE_VOLUME, request(asked, secrets), secrets);
        let refusal = match told.and_then(|told| read(told, asked)) {
            Err(refusal) => refusal,
            answer => return answer,
        };
        let again = match refusal.code {
            // A copy may take longer than one answer is waited for.
            Code::Aborted | Code::DeadlineExceeded => true,
            Code::Unavailable => !std::mem::replace(&mut was_lost, true),
            _ => false,
        };
        if !again || Instant::now() + PAUSE >= until {
            return Err(refusal);
        }
        thread::sleep(PAUSE);
    }
}

/// What became of it; `None` if there is no such volume. Asked again, a plugin may make it now: that is told as well, since
/// who asks removes it.
pub(super) fn was_made(
    client: &Client,
    asked: &Asked,
    secrets: &Secrets,
    until: Instant,
) -> Result<Option<Volume>, Refusal> {
    use Code::{FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unimplemented};
    match ask(client, asked, secrets, until) {
        Ok(answer) => Ok(Some(answer.volume)),
        // These say that there is none and that none can be made. Of all others nobody knows.
        Err(refusal) => match refusal.code {
            NotFound | InvalidArgument | ResourceExhausted | FailedPrecondition | Unimplemented => Ok(None),
            Code::OutOfRange if !is_open(&refusal) => Ok(None),
            _ => Err(refusal),
        },
    }
}

/// Whether what was asked for may still be done. Of a volume OUT_OF_RANGE is the plugin's word for a size that it does
/// not make.
pub(super) fn is_open(refusal: &Refusal) -> bool {
    refusal.is_open() && (refusal.code != Code::OutOfRange || refusal.is_garbage())
}

fn request(asked: &Asked, secrets: &Secrets) -> CreateVolumeRequest {
    let here = |segments: &std::collections::BTreeMap<_, _>| {
        let here = vec![Topology { segments: segments.clone() }];
        TopologyRequirement { requisite: here.clone(), preferred: here }
    };
    let required_bytes = i64::try_from(asked.required_bytes).unwrap_or(i64::MAX);
    let source = SnapshotSource { snapshot_id: asked.snapshot.clone() };
    CreateVolumeRequest {
        name: asked.name.clone(),
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
        volume_capabilities: vec![VolumeCapability::block()],
        parameters: asked.parameters.clone(),
        secrets: secrets.for_request(),
        volume_content_source: Some(ContentSource { snapshot: Some(source) }),
        accessibility_requirements: asked.topology.as_ref().map(here),
    }
}

fn read(told: CreateVolumeResponse, asked: &Asked) -> Result<Answer, Refusal> {
    let garbage = |what| Err(Refusal::garbage(method::CREATE_VOLUME, what));
    let Some(volume) = told.volume else { return garbage("no volume and no error") };
    if !is_id(&volume.volume_id) {
        return garbage("a volume without an identifier that could be kept");
    }
    // A plugin that knows no content sources makes an empty volume. Kubernetes' external-provisioner looks for the same.
    let source = volume.content_source.and_then(|source| source.snapshot);
    let is_not_it = match source {
        Some(source) if source.snapshot_id == asked.snapshot => {
            // 0 is "not told".
            let capacity = u64::try_from(volume.capacity_bytes).unwrap_or(0);
            (1..asked.required_bytes).contains(&capacity).then_some("it is smaller than the snapshot")
        }
        _ => Some("the plugin does not say that it is made of the snapshot"),
    };
    Ok(Answer { volume: Volume { id: volume.volume_id, context: volume.volume_context }, is_not_it })
}
