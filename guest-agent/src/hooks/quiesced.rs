//! Applications that are quiesced, and their release: whatever happens, every hook that was started is
//! called again.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Instant;

use protocol::evidence::{HookEvidence, HookOutcome};
use protocol::text::Name;

use super::folder::Kind;
use super::run::{self, Job};
use super::{Hook, Need, Occasion};

const SUCCESS: HookOutcome = HookOutcome::Exited(0);

/// Applications are quiesced. Dropping it releases them.
pub struct Quiesced {
    ran: Vec<(Hook, HookEvidence)>,
    request: String,
    environment: Vec<(&'static str, OsString)>,
}

/// What came between the quiesce and its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The cut, under a freeze that was held.
    Cut,
    /// Something less, or nothing.
    NotCut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    PreFreeze,
    FreezeFailed,
    PostThaw,
}

impl Quiesced {
    pub(super) fn of(hooks: &[Hook], occasion: &Occasion<'_>) -> Self {
        let request = occasion.request.to_string();
        let mounts = occasion.mounts.iter().map(|path| path.as_os_str().as_bytes());
        let disks = occasion.disks.iter().map(|serial| serial.as_str().as_bytes());
        let lines = |lines: Vec<&[u8]>| OsString::from_vec(lines.join(&b'\n'));
        let environment = vec![
            ("HOSTSNAP_REQUEST_ID", request.clone().into()),
            ("HOSTSNAP_SNAPSHOT_ID", occasion.snapshot.to_string().into()),
            ("HOSTSNAP_MOUNTS", lines(mounts.collect())),
            ("HOSTSNAP_DISKS", lines(disks.collect())),
        ];
        let mut quiesced = Self { ran: Vec::new(), request, environment };
        for hook in hooks {
            let evidence = quiesced.call(hook, Call::PreFreeze, None);
            quiesced.ran.push((hook.clone(), evidence.expect("every kind is told of the freeze")));
            if quiesced.refused().is_some() {
                break;
            }
        }
        quiesced
    }

    /// What the hooks did, in order.
    pub fn evidence(&self) -> Vec<HookEvidence> {
        self.ran.iter().map(|(_, evidence)| evidence.clone()).collect()
    }

    /// The required one that failed.
    pub fn refused(&self) -> Option<&HookEvidence> {
        let failed = |(hook, evidence): &&(Hook, HookEvidence)| {
            hook.need == Need::Required && evidence.outcome != SUCCESS
        };
        self.ran.iter().find(failed).map(|(_, evidence)| evidence)
    }

    /// Releases all, in reverse. What is told of each then, in order: how it failed before the freeze,
    /// else how it failed to release (a lock that was not held to the end, for one), else its success.
    pub fn release(mut self, ended: Ended) -> Vec<HookEvidence> {
        self.release_all(ended)
    }

    fn release_all(&mut self, ended: Ended) -> Vec<HookEvidence> {
        let mut told = Vec::with_capacity(self.ran.len());
        while let Some((hook, before)) = self.ran.pop() {
            let succeeded = before.outcome == SUCCESS;
            let result = if succeeded { "ok" } else { "failed" };
            if !succeeded || ended == Ended::NotCut {
                self.call(&hook, Call::FreezeFailed, Some(result));
            }
            let after = self.call(&hook, Call::PostThaw, Some(result));
            told.push(after.filter(|after| succeeded && after.outcome != SUCCESS).unwrap_or(before));
        }
        told.reverse();
        told
    }

    /// Runs it; `None` if its kind has no such call.
    fn call(&self, hook: &Hook, call: Call, result: Option<&'static str>) -> Option<HookEvidence> {
        let argument = hook.kind.argument(call)?;
        let name = name_of(&hook.path);
        let mark = format!("{}/{name}/{argument}", self.request);
        let mut environment = self.environment.clone();
        environment.push(("HOSTSNAP_HOOK", mark.into()));
        environment.extend(result.map(|result| ("HOSTSNAP_RESULT", OsStr::new(result).to_owned())));
        let job = Job { program: &hook.path, argument, environment: &environment };
        let began = Instant::now();
        let outcome = run::run(&job, hook.limit);
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Some(HookEvidence { name, outcome, took_ms })
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        self.release_all(Ended::NotCut);
    }
}

impl Kind {
    const fn argument(self, call: Call) -> Option<&'static str> {
        match (self, call) {
            (Self::Own, Call::PreFreeze) => Some("pre-freeze"),
            (Self::Own, Call::FreezeFailed) => Some("freeze-failed"),
            (Self::Own, Call::PostThaw) => Some("post-thaw"),
            (Self::Qemu, Call::PreFreeze) => Some("freeze"),
            // It knows two, and some take any other for `thaw`.
            (Self::Qemu, Call::FreezeFailed) => None,
            (Self::Qemu, Call::PostThaw) => Some("thaw"),
        }
    }
}

/// Its file name, as far as a record takes it.
fn name_of(path: &Path) -> Name {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let plain: String = name.chars().map(plain).take(64).collect();
    Name::try_from(plain).unwrap_or_else(|_| "hook".parse().expect("a valid name"))
}
