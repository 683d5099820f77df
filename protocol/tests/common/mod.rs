//! One value of every message and of every variant inside them, by name.
#![allow(dead_code, unreachable_pub)]

use protocol::agent::{AgentCreate, AgentPhase, AgentReply, AgentRequest, AgentStatus};
use protocol::attach::{Access, Attach, Attachment, DetachOutcome};
use protocol::evidence::{CallEvidence, CutEvidence, FileSystemEvidence, Freeze, HookEvidence, HookOutcome};
use protocol::fingerprint::{Kind, Mark};
use protocol::message::*;
use protocol::record::{DiskRecord, MountRecord, State, Timing, UnixMillis};
use protocol::restore::{Layout, Restore, RestorePlan, RestoredDisk, Safety};
use protocol::text::{LabelKey, LabelValue, Labels, Line};
use protocol::*;

pub fn uuid<T: std::str::FromStr>(n: u8) -> T
where
    T::Err: std::fmt::Debug,
{
    format!("{n:02x}000000-0000-4000-8000-0000000000{n:02x}").parse().unwrap()
}

fn text<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

fn list<T: std::fmt::Debug, const N: usize>(elements: Vec<T>) -> BoundedVec<T, N> {
    elements.try_into().unwrap()
}

pub fn labels() -> Labels {
    let pairs = [("env", "prod"), ("why", "")].map(|(k, v)| (text::<LabelKey>(k), text::<LabelValue>(v)));
    std::collections::BTreeMap::from(pairs).try_into().unwrap()
}

pub fn evidence(freeze: Freeze, outcome: HookOutcome) -> Evidence {
    let call = |errno| Some(CallEvidence { at_us: 1, took_us: 300, errno });
    Evidence {
        freeze,
        file_systems: list(vec![FileSystemEvidence {
            mount_point: text("/data"),
            fs_type: text("ext4"),
            freeze: call(0),
            thaw: call(-22),
        }]),
        hooks: list(vec![HookEvidence { name: text("10-db"), outcome, took_ms: 70_000 }]),
    }
}

pub fn record(state: State, consistency: Consistency, cut: CutEvidence) -> Box<SnapshotRecord> {
    Box::new(SnapshotRecord {
        id: uuid(1),
        vm_uuid: uuid(2),
        vm: text("db1"),
        request: uuid(3),
        created_at: UnixMillis(1_795_507_200_123),
        consistency,
        consistency_reason: Line::lossy("why"),
        minimum: Consistency::Crash,
        state,
        labels: labels(),
        note: text("note"),
        mounts: list(vec![MountRecord { path: text("/data"), fs_type: text("xfs") }]),
        disks: list(vec![DiskRecord {
            serial: text("data"),
            driver: text("qemu"),
            handle: text("h/1"),
            size_bytes: 1 << 30,
        }]),
        timing: timing(),
        expires_at: Some(UnixMillis(1)),
        locked_until: None,
        evidence: Some(evidence(Freeze::Held, HookOutcome::Exited(0))),
        cut,
    })
}

fn timing() -> Timing {
    Timing {
        prepare_us: 1,
        hooks_us: 2,
        flush_us: 3,
        freeze_us: 4,
        cut_us: 5,
        thaw_us: 6,
        stall_us: 250,
        settle_us: 70_000,
    }
}

fn versions() -> VersionRange {
    VersionRange { min: 1, max: 1 }
}

fn disk_info() -> DiskInfo {
    DiskInfo { serial: text("data"), driver: text("btrfs"), size_bytes: None, problem: text("") }
}

fn disk_request(kind: Kind) -> DiskRequest {
    let mark = Mark { kind, id: std::array::from_fn(|n| u8::try_from(n).unwrap()) };
    DiskRequest { serial: text("data"), size_bytes: 4096, fingerprint: list(vec![mark]) }
}

pub fn prepare(kind: Kind) -> Prepare {
    Prepare {
        request: uuid(3),
        disks: list(vec![disk_request(kind)]),
        mounts: list(vec![MountRecord { path: text("/data"), fs_type: text("ext4") }]),
        labels: labels(),
        note: text("n"),
        minimum: Consistency::Filesystem,
        keep_for_s: Some(86_400),
        lease_ms: 100_000,
        dry_run: false,
    }
}

pub fn conclude(freeze: Freeze, outcome: HookOutcome) -> Request {
    Request::Conclude(Conclude {
        ticket: uuid(4),
        evidence: evidence(freeze, outcome),
        timing: timing(),
        wait: true,
    })
}

/// Every request, and every variant that only requests hold.
pub fn requests() -> Vec<(String, Request)> {
    let mut all = vec![
        (
            "Hello",
            Request::Hello(Hello {
                versions: versions(),
                agent_version: text("0.1.0"),
                boot_id: Some(uuid(5)),
                vm_uuid: None,
            }),
        ),
        ("Ping", Request::Ping(u64::MAX)),
        ("Disks", Request::Disks),
        ("Prepare", Request::Prepare(prepare(Kind::Ext))),
        ("Cut", Request::Cut(Cut { ticket: uuid(4), within_us: 10_000_000 })),
        ("Conclude", conclude(Freeze::Held, HookOutcome::Exited(0))),
        ("Abort", Request::Abort(uuid(4))),
        (
            "List",
            Request::List(List {
                labels: labels(),
                disk: Some(text("data")),
                state: Some(State::Ready),
                after: Some(uuid(1)),
                limit: 256,
            }),
        ),
        ("Get", Request::Get(text("latest"))),
        ("Delete", Request::Delete(uuid(1))),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect::<Vec<_>>();
    for freeze in [Freeze::NotAsked, Freeze::NoAgent, Freeze::Held, Freeze::NotHeld(Line::lossy("late"))] {
        all.push((format!("Conclude/{}", word(&freeze)), conclude(freeze, HookOutcome::Exited(0))));
    }
    for outcome in
        [HookOutcome::Exited(-1), HookOutcome::Signalled(9), HookOutcome::TimedOut, HookOutcome::NotStarted]
    {
        all.push((format!("Conclude/{}", word(&outcome)), conclude(Freeze::Held, outcome)));
    }
    for kind in [Kind::Mbr, Kind::Gpt, Kind::Ext, Kind::Xfs, Kind::Btrfs, Kind::Luks, Kind::Lvm, Kind::Swap] {
        all.push((format!("Prepare/{}", word(&kind)), Request::Prepare(prepare(kind))));
    }
    all.push(("Abilities".to_owned(), Request::Abilities));
    let attach = |access| Request::Attach(Attach { id: uuid(1), disks: list(vec![text("data")]), access });
    all.extend([
        ("Attach".to_owned(), attach(Access::ReadOnly)),
        ("Attach/Writable".to_owned(), attach(Access::Writable)),
        ("Detach".to_owned(), Request::Detach(uuid(1))),
        ("Attachments".to_owned(), Request::Attachments),
        ("Restore".to_owned(), restore(Safety::Snapshot, Layout::Same, true)),
        ("Restore/None".to_owned(), restore(Safety::None, Layout::Same, false)),
        ("Restore/Any".to_owned(), restore(Safety::Snapshot, Layout::Any, false)),
    ]);
    all
}

fn restore(safety: Safety, layout: Layout, dry_run: bool) -> Request {
    let disks = list(vec![disk_request(Kind::Xfs)]);
    Request::Restore(Restore { request: uuid(3), id: uuid(1), disks, safety, layout, dry_run })
}

fn restore_plan(safety: Option<SnapshotId>) -> RestorePlan {
    let disk = RestoredDisk { serial: text("data"), driver: text("reflink"), size_bytes: 1 << 30 };
    RestorePlan { id: uuid(1), created_at: UnixMillis(1_795_507_200_123), disks: list(vec![disk]), safety }
}

pub const ERROR_CODES: [ErrorCode; 26] = [
    ErrorCode::Internal,
    ErrorCode::Malformed,
    ErrorCode::UnsupportedVersion,
    ErrorCode::OutOfOrder,
    ErrorCode::Refused,
    ErrorCode::QuotaExceeded,
    ErrorCode::Locked,
    ErrorCode::NotFound,
    ErrorCode::Ambiguous,
    ErrorCode::UnknownDisk,
    ErrorCode::DiskMismatch,
    ErrorCode::Unsupported,
    ErrorCode::Busy,
    ErrorCode::ConsistencyNotReached,
    ErrorCode::StorageFailed,
    ErrorCode::NoSpace,
    ErrorCode::TimedOut,
    ErrorCode::LeaseExpired,
    ErrorCode::RequestReused,
    ErrorCode::TooManySessions,
    ErrorCode::Unavailable,
    ErrorCode::NotFreezable,
    ErrorCode::HookFailed,
    ErrorCode::BadRequest,
    ErrorCode::Unreachable,
    ErrorCode::RestoreUnfinished,
];

/// Every reply, and every variant that only replies hold.
pub fn replies() -> Vec<(String, Reply)> {
    let in_time = CutEvidence::InTime { took_us: 900 };
    let ready = || record(State::Ready, Consistency::Application, in_time);
    let mut all = vec![
        ("Hello", Reply::Hello(Welcome { version: 1, host_version: text("0.1.0"), vm: text("db1") })),
        ("Pong", Reply::Pong(0)),
        ("Disks", Reply::Disks(list(vec![disk_info()]))),
        ("Prepared", Reply::Prepared(Prepared { ticket: uuid(4), id: uuid(1), lease_ms: 60_000 })),
        ("Planned", Reply::Planned(Planned { id: uuid(1), disks: list(vec![disk_info()]) })),
        ("Existing", Reply::Existing(ready())),
        ("CutDone", Reply::CutDone(CutDone { ticket: uuid(4), took_us: 900 })),
        ("Progress", Reply::Progress(Progress { done_bytes: 1 << 20, total_bytes: 1 << 40 })),
        ("Snapshot", Reply::Snapshot(ready())),
        ("Aborted", Reply::Aborted),
        ("Snapshots", Reply::Snapshots(Page { snapshots: list(vec![*ready()]), next: Some(uuid(1)) })),
        ("Deleted", Reply::Deleted(DeleteOutcome::Gone)),
        ("Deleted/WasAbsent", Reply::Deleted(DeleteOutcome::WasAbsent)),
        ("Error", Reply::Error(WireError::new(ErrorCode::Refused, "no").hint("ask"))),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect::<Vec<_>>();
    for state in [State::Settling, State::Ready, State::Failed] {
        let value = record(state, Consistency::Crash, in_time);
        all.push((format!("Snapshot/{}", word(&state)), Reply::Snapshot(value)));
    }
    for consistency in [Consistency::Crash, Consistency::Filesystem, Consistency::Application] {
        let value = record(State::Ready, consistency, in_time);
        all.push((format!("Snapshot/{}", word(&consistency)), Reply::Snapshot(value)));
    }
    for cut in [CutEvidence::Late { took_us: 2, allowed_us: 1 }, CutEvidence::Unknown] {
        let value = record(State::Ready, Consistency::Crash, cut);
        all.push((format!("Snapshot/{}", word(&cut)), Reply::Snapshot(value)));
    }
    for code in ERROR_CODES {
        all.push((format!("Error/{}", word(&code)), Reply::Error(WireError::new(code, ""))));
    }
    let abilities = DiskAbilities {
        serial: text("data"),
        abilities: list(vec![text("set-atomic"), text("expose")]),
        limits: text("raw images"),
        free_bytes: Some(1 << 40),
        floor_bytes: 1 << 30,
    };
    all.push(("Abilities".to_owned(), Reply::Abilities(list(vec![abilities]))));
    let attached = |access| {
        Reply::Attached(list(vec![Attachment {
            snapshot: uuid(1),
            disk: text("data"),
            serial: text("hs-01000000000040.0"),
            access,
            size_bytes: 1 << 30,
        }]))
    };
    all.extend([
        ("Attached".to_owned(), attached(Access::ReadOnly)),
        ("Attached/Writable".to_owned(), attached(Access::Writable)),
        ("Detached".to_owned(), Reply::Detached(DetachOutcome::Detached)),
        ("Detached/WasNotAttached".to_owned(), Reply::Detached(DetachOutcome::WasNotAttached)),
        ("RestorePlanned".to_owned(), Reply::RestorePlanned(restore_plan(Some(uuid(6))))),
        ("Restored".to_owned(), Reply::Restored(restore_plan(None))),
    ]);
    all
}

/// Everything that the host says to the daemon.
pub fn agent_requests() -> Vec<(String, AgentRequest)> {
    let create = AgentCreate {
        request: uuid(3),
        paths: list(vec![text("/data")]),
        labels: labels(),
        note: text(""),
        minimum: Consistency::Crash,
        keep_for_s: None,
        freeze_timeout_ms: 10_000,
    };
    [
        ("Hello", AgentRequest::Hello(versions())),
        ("Ping", AgentRequest::Ping(7)),
        ("Status", AgentRequest::Status),
        ("Create", AgentRequest::Create(create)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Everything that the daemon answers.
pub fn agent_replies() -> Vec<(String, AgentReply)> {
    let ready = record(State::Ready, Consistency::Filesystem, CutEvidence::InTime { took_us: 1 });
    let status = |phase| AgentReply::Status(AgentStatus { phase, last: Some(uuid(1)), uptime_ms: 300 });
    let mut all: Vec<_> = [
        ("Hello", AgentReply::Hello { version: 1, agent_version: text("0.1.0") }),
        ("Pong", AgentReply::Pong(7)),
        ("Status", status(AgentPhase::Idle)),
        ("Progress", AgentReply::Progress(Progress { done_bytes: 1, total_bytes: 2 })),
        ("Created", AgentReply::Created(ready)),
        ("Error", AgentReply::Error(WireError::new(ErrorCode::Busy, "busy"))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    for phase in [AgentPhase::Idle, AgentPhase::Preparing, AgentPhase::Frozen, AgentPhase::Settling] {
        all.push((format!("Status/{}", word(&phase)), status(phase)));
    }
    all
}

/// The variant's name.
pub fn word(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}
