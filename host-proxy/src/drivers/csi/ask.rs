//! Asking for the snapshots of a set. The names are ours and stay the same, so the same question asked again makes nothing
//! new: it tells what became of the first (CSI 1.12, `CreateSnapshot`).

use std::thread;
use std::time::{Duration, Instant};

use tonic::Code;

use super::Place;
use super::client::Client;
use super::codes::Refusal;
use super::entry::{Cut, Entry, Made, group_name, name, seconds};
use super::proto::{
    CreateGroupRequest, CreateGroupResponse, CreateSnapshotRequest, CreateSnapshotResponse, Snapshot, method,
};
use super::secrets::Secrets;
use crate::drivers::Owner;

/// The first pause before asking again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// A name that is longer, in bytes, is taken for garbage. CSI allows 128; not all keep to it.
const MAX_ID: usize = 1024;

/// The question, ready to be sent.
pub(super) struct Question {
    what: What,
    secrets: Secrets,
}

enum What {
    Each(Vec<CreateSnapshotRequest>),
    Group(CreateGroupRequest),
}

/// What came back, in the order of the plan.
pub(super) struct Answers {
    group: Option<String>,
    each: Vec<Result<Answer, Refusal>>,
}

/// One snapshot that there is.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) made: Made,
    pub(super) is_ready: bool,
}

impl Question {
    pub(super) fn new(owner: Owner, entry: &Entry, place: &Place, secrets: &Secrets) -> Self {
        let volumes = entry.volumes.iter().map(|member| member.volume.clone());
        let what = if entry.is_group {
            What::Group(CreateGroupRequest {
                name: group_name(owner),
                source_volume_ids: volumes.collect(),
                secrets: secrets.for_request(),
                parameters: place.parameters.clone(),
            })
        } else {
            let one = |(n, source_volume_id)| CreateSnapshotRequest {
                source_volume_id,
                name: name(owner, n),
                secrets: secrets.for_request(),
                parameters: place.parameters.clone(),
            };
            What::Each(volumes.enumerate().map(one).collect())
        };
        Self { what, secrets: secrets.clone() }
    }

    /// Asks; again where the plugin is at work on the same, until `until`, and once where the way to it was lost.
    pub(super) fn ask(&self, client: &Client, until: Instant) -> Answers {
        let mut answers = self.once(client, |_| true);
        let mut pause = FIRST_PAUSE;
        let mut was_lost = false;
        loop {
            let again = |code| match code {
                Code::Aborted => true,
                Code::Unavailable => !was_lost,
                _ => false,
            };
            let is_over = answers.refusals().all(|refusal| !again(refusal.code));
            if is_over || Instant::now() + pause >= until {
                return answers;
            }
            was_lost |= answers.refusals().any(|refusal| refusal.code == Code::Unavailable);
            thread::sleep(pause);
            pause = LAST_PAUSE.min(pause * 2);
            let open: Vec<bool> = answers.each.iter().map(Result::is_err).collect();
            let more = self.once(client, |n| open[n]);
            answers.group = more.group.or(answers.group);
            let mut more = more.each.into_iter();
            for answer in answers.each.iter_mut().filter(|answer| answer.is_err()) {
                *answer = more.next().expect("as many answers as were asked for");
            }
        }
    }

    /// Asks for those that are wanted; of a group, always for all, where one is missing all are.
    fn once(&self, client: &Client, is_wanted: impl Fn(usize) -> bool) -> Answers {
        match &self.what {
            What::Each(requests) => {
                let wanted: Vec<_> =
                    (0..requests.len()).filter(|n| is_wanted(*n)).map(|n| requests[n].clone()).collect();
                let sources: Vec<_> = wanted.iter().map(|request| request.source_volume_id.clone()).collect();
                let answers: Vec<Result<CreateSnapshotResponse, _>> =
                    client.call_all(method::CREATE_SNAPSHOT, wanted, &self.secrets);
                let each = answers.into_iter().zip(&sources).map(|(answer, source)| {
                    answer.and_then(|answer| of_volume(method::CREATE_SNAPSHOT, answer.snapshot, source))
                });
                Answers { group: None, each: each.collect() }
            }
            What::Group(request) => {
                let answer: Result<CreateGroupResponse, _> =
                    client.call(method::CREATE_GROUP_SNAPSHOT, request.clone(), &self.secrets);
                match answer.and_then(|answer| of_group(answer, &request.source_volume_ids)) {
                    Ok(answers) => answers,
                    Err(refusal) => {
                        let each = request.source_volume_ids.iter().map(|_| Err(refusal.clone())).collect();
                        Answers { group: None, each }
                    }
                }
            }
        }
    }
}

impl Answers {
    /// Those that were refused.
    pub(super) fn refusals(&self) -> impl Iterator<Item = &Refusal> {
        self.each.iter().filter_map(|answer| answer.as_ref().err())
    }

    /// The refusal to tell of: one that leaves it open first, since nothing can be undone then.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        self.refusals().find(|refusal| refusal.is_open()).or_else(|| self.refusals().next())
    }

    /// What there is, complete or not.
    pub(super) fn made(&self) -> Cut {
        let made = self.each.iter().filter_map(|answer| Some(answer.as_ref().ok()?.made.clone()));
        Cut { group: self.group.clone(), snapshots: made.collect() }
    }

    /// For each: there is one, and it can be used.
    pub(super) fn ready(&self) -> Vec<bool> {
        self.each.iter().map(|answer| answer.as_ref().is_ok_and(|answer| answer.is_ready)).collect()
    }
}

fn of_volume(method: &'static str, snapshot: Option<Snapshot>, volume: &str) -> Result<Answer, Refusal> {
    let snapshot = snapshot.ok_or_else(|| Refusal::garbage(method, "no snapshot and no error"))?;
    if !is_id(&snapshot.snapshot_id) {
        return Err(Refusal::garbage(method, "a snapshot without an identifier that could be kept"));
    }
    if snapshot.source_volume_id != volume {
        return Err(Refusal::garbage(method, format!("a snapshot of another volume than {volume}")));
    }
    let size_bytes = u64::try_from(snapshot.size_bytes).ok().filter(|bytes| *bytes > 0);
    let made = Made { id: snapshot.snapshot_id, created_s: seconds(snapshot.creation_time), size_bytes };
    Ok(Answer { made, is_ready: snapshot.ready_to_use })
}

fn of_group(answer: CreateGroupResponse, volumes: &[String]) -> Result<Answers, Refusal> {
    let method = method::CREATE_GROUP_SNAPSHOT;
    let group = answer.group_snapshot.ok_or_else(|| Refusal::garbage(method, "no group and no error"))?;
    if !is_id(&group.group_snapshot_id) {
        return Err(Refusal::garbage(method, "a group without an identifier that could be kept"));
    }
    if group.snapshots.len() != volumes.len() {
        let what = format!("{} snapshots of {} volumes", group.snapshots.len(), volumes.len());
        return Err(Refusal::garbage(method, what));
    }
    let one = |volume: &String| -> Result<Result<Answer, Refusal>, Refusal> {
        let of_it = group.snapshots.iter().find(|snapshot| snapshot.source_volume_id == *volume);
        let mut answer = of_volume(method, of_it.cloned(), volume)?;
        answer.is_ready &= group.ready_to_use;
        Ok(Ok(answer))
    };
    let each = volumes.iter().map(one).collect::<Result<_, Refusal>>()?;
    Ok(Answers { group: Some(group.group_snapshot_id), each })
}

/// Whether a plugin's name of something can be kept.
pub(super) fn is_id(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len()) && !id.chars().any(char::is_control)
}
