//! The administrator's command line: asks the running service and prints what it says.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use protocol::agent::AgentCreate;
use protocol::attach::DetachOutcome;
use protocol::message::{DeleteOutcome, List};
use protocol::record::UnixMillis;
use protocol::restore::{Layout, Safety};
use protocol::text::{LabelKey, LabelValue, MountPath, Name, SnapshotRef};
use protocol::view::{RestoreView, SnapshotView};
use protocol::{DiskSerial, ErrorCode, RequestId, SnapshotId, SnapshotRecord, WireError};
use serde::Serialize;
use tokio::net::UnixStream;

use crate::cli::{Ask, Command, Create, Output, Restore};
use crate::control::{Compared, ControlReply, ControlRequest};
use crate::drivers::Extent;
use crate::failure;
use crate::service::chain;
use crate::transport;

mod export;
pub(crate) mod print;

/// How long the service may be silent while it works.
const SILENCE_LIMIT: Duration = Duration::from_secs(900);

/// Runs a command that asks the service.
pub fn run(command: Command) -> ExitCode {
    let json = match &command {
        Command::Vms(ask) | Command::Reconcile(ask) => ask.output.json,
        Command::List { ask, .. }
        | Command::Show { ask, .. }
        | Command::Create { ask, .. }
        | Command::Delete { ask, .. }
        | Command::Changes { ask, .. }
        | Command::Export { ask, .. }
        | Command::Lock { ask, .. }
        | Command::Unlock { ask, .. }
        | Command::Detach { ask, .. }
        | Command::Restore { ask, .. }
        | Command::Ping { ask, .. } => ask.output.json,
        Command::Serve(_)
        | Command::Check { .. }
        | Command::RebuildCatalog { .. }
        | Command::Audit { .. } => false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(command)),
        Err(error) => Err(WireError::new(ErrorCode::Internal, format!("start the runtime: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::of_wire(&error, json),
    }
}

async fn dispatch(command: Command) -> Result<(), WireError> {
    match command {
        Command::Vms(ask) => match ask_once(&ask, &ControlRequest::Vms).await? {
            ControlReply::Vms(vms) => print::vms(&vms, ask.output),
            other => return Err(unexpected(&other)),
        },
        Command::List { ask, vm, labels } => list(&ask, vm, labels).await?,
        Command::Show { ask, snapshot, vm } => {
            match ask_once(&ask, &ControlRequest::Show { vm, snapshot }).await? {
                ControlReply::Snapshot(record) => print::snapshot(&record, ask.output),
                other => return Err(unexpected(&other)),
            }
        }
        Command::Create { ask, create } => {
            let record = create_one(&ask, create).await?;
            print::snapshot(&record, ask.output);
        }
        Command::Delete { ask, snapshots } => delete(&ask, snapshots).await?,
        Command::Lock { ask, snapshot, until } => {
            let now = jiff::Timestamp::now().as_millisecond();
            let end = match (until.moment, until.time) {
                (Some(moment), _) => moment.as_millisecond(),
                (None, time) => now.saturating_add_unsigned(time.map_or(0, millis)),
            };
            let until = UnixMillis(u64::try_from(end).unwrap_or(0));
            lock(&ask, snapshot, Some(until)).await?;
        }
        Command::Unlock { ask, snapshot } => lock(&ask, snapshot, None).await?,
        Command::Detach { ask, snapshots } => detach(&ask, snapshots).await?,
        Command::Restore { ask, restore } => restore_disks(&ask, restore).await?,
        Command::Ping { ask, vm } => match ask_once(&ask, &ControlRequest::Ping(vm.clone())).await? {
            ControlReply::Pong(facts) => print::pong(&vm, &facts, ask.output),
            other => return Err(unexpected(&other)),
        },
        Command::Reconcile(ask) => match ask_once(&ask, &ControlRequest::Reconcile).await? {
            ControlReply::Report(report) => print::report(&report, ask.output),
            other => return Err(unexpected(&other)),
        },
        Command::Changes { ask, from, to, disk } => {
            let (compared, extents) = compare(&ask, from, to, disk).await?;
            print::changes(&compared, &extents, ask.output);
        }
        Command::Export { ask, snapshot, disk, since, socket } => {
            export::run(&ask, export::Options { snapshot, disk, since, socket }).await?;
        }
        Command::Serve(_)
        | Command::Check { .. }
        | Command::RebuildCatalog { .. }
        | Command::Audit { .. } => {
            unreachable!("main runs these itself")
        }
    }
    Ok(())
}

async fn list(ask: &Ask, vm: Option<Name>, labels: Vec<(LabelKey, LabelValue)>) -> Result<(), WireError> {
    let labels = protocol::args::labels(labels)?;
    let mut records: Vec<SnapshotRecord> = Vec::new();
    let mut after = None;
    loop {
        let filter = List { labels: labels.clone(), after, limit: 256, ..List::default() };
        match ask_once(ask, &ControlRequest::List { vm: vm.clone(), filter }).await? {
            ControlReply::Page(page) => {
                records.extend(page.snapshots);
                after = page.next;
            }
            other => return Err(unexpected(&other)),
        }
        if after.is_none() {
            break;
        }
    }
    print::snapshots(&records, ask.output);
    Ok(())
}

async fn delete(ask: &Ask, snapshots: Vec<SnapshotRef>) -> Result<(), WireError> {
    let was_there = |reply| match reply {
        ControlReply::Deleted(outcome) => Ok(outcome == DeleteOutcome::Gone),
        other => Err(unexpected(&other)),
    };
    for_each(ask, snapshots, ControlRequest::Delete, was_there, print::deleted).await
}

async fn detach(ask: &Ask, snapshots: Vec<SnapshotRef>) -> Result<(), WireError> {
    let was_there = |reply| match reply {
        ControlReply::Detached(outcome) => Ok(outcome == DetachOutcome::Detached),
        other => Err(unexpected(&other)),
    };
    for_each(ask, snapshots, ControlRequest::Detach, was_there, print::detached).await
}

/// Asks the same of each snapshot, until one fails. All are looked up before the first is touched: a
/// typing error does nothing. What was done is printed, whatever came then.
async fn for_each(
    ask: &Ask,
    snapshots: Vec<SnapshotRef>,
    request: fn(SnapshotId) -> ControlRequest,
    was_there: impl Fn(ControlReply) -> Result<bool, WireError>,
    print: impl FnOnce(&[(SnapshotId, bool)], Output),
) -> Result<(), WireError> {
    let mut ids = Vec::with_capacity(snapshots.len());
    for snapshot in snapshots {
        match ask_once(ask, &ControlRequest::Show { vm: None, snapshot }).await? {
            ControlReply::Snapshot(record) => ids.push(record.id),
            other => return Err(unexpected(&other)),
        }
    }
    let mut outcomes = Vec::with_capacity(ids.len());
    let mut done = Ok(());
    for id in ids {
        match ask_once(ask, &request(id)).await.and_then(&was_there) {
            Ok(was_there) => outcomes.push((id, was_there)),
            Err(error) => {
                done = Err(error);
                break;
            }
        }
    }
    if done.is_ok() || !outcomes.is_empty() {
        print(&outcomes, ask.output);
    }
    done
}

/// What changed on each disk, in the order of the comparison's disks.
async fn compare(
    ask: &Ask,
    from: SnapshotRef,
    to: SnapshotRef,
    disk: Option<DiskSerial>,
) -> Result<(Compared, Vec<Vec<Extent>>), WireError> {
    let mut stream = connect(&ask.control).await?;
    let asked = ControlRequest::Changes { from, to, disk };
    transport::send(&mut stream, &asked).await.map_err(|error| broken(&error))?;
    let mut extents: BTreeMap<DiskSerial, Vec<Extent>> = BTreeMap::new();
    loop {
        match transport::receive(&mut stream, SILENCE_LIMIT).await.map_err(|error| broken(&error))? {
            ControlReply::Extents(disk, some) => extents.entry(disk).or_default().extend(some),
            ControlReply::Compared(compared) => {
                let of = |(disk, ..): &(DiskSerial, Name, u64)| extents.remove(disk).unwrap_or_default();
                let extents = compared.disks.iter().map(of).collect();
                return Ok((*compared, extents));
            }
            ControlReply::Error(error) => return Err(error),
            other => return Err(unexpected(&other)),
        }
    }
}

async fn lock(ask: &Ask, snapshot: SnapshotRef, until: Option<UnixMillis>) -> Result<(), WireError> {
    let id = match ask_once(ask, &ControlRequest::Show { vm: None, snapshot }).await? {
        ControlReply::Snapshot(record) => record.id,
        other => return Err(unexpected(&other)),
    };
    match ask_once(ask, &ControlRequest::Lock { snapshot: id, until }).await? {
        ControlReply::Snapshot(record) => print::snapshot(&record, ask.output),
        other => return Err(unexpected(&other)),
    }
    Ok(())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn create_one(ask: &Ask, create: Create) -> Result<Box<SnapshotRecord>, WireError> {
    let usage = |what: String| WireError::new(ErrorCode::BadRequest, what);
    let paths: Vec<MountPath> = create
        .paths
        .iter()
        .map(|path| path.parse())
        .collect::<Result<_, protocol::text::TextError>>()
        .map_err(|error| usage(error.to_string()))?;
    let request = AgentCreate {
        request: create.request_id.unwrap_or_else(RequestId::random),
        paths: paths.try_into().map_err(|error: protocol::bounded::TooMany| usage(error.to_string()))?,
        labels: protocol::args::labels(create.labels)?,
        note: create.note,
        minimum: create.consistency,
        keep_for_s: create.keep_for.map(|time| time.as_secs()),
        freeze_timeout_ms: u32::try_from(create.freeze_timeout.as_millis()).unwrap_or(u32::MAX),
    };
    let asked = if create.no_agent {
        ControlRequest::CreateAlone { vm: create.vm, create: request }
    } else {
        ControlRequest::Create { vm: create.vm, create: request }
    };
    let mut stream = connect(&ask.control).await?;
    transport::send(&mut stream, &asked).await.map_err(|error| broken(&error))?;
    let bar = progress_bar();
    loop {
        match transport::receive(&mut stream, SILENCE_LIMIT).await.map_err(|error| broken(&error))? {
            ControlReply::Progress(progress) => {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
            }
            ControlReply::Snapshot(record) => {
                bar.finish_and_clear();
                return Ok(record);
            }
            ControlReply::Error(error) => return Err(error),
            other => return Err(unexpected(&other)),
        }
    }
}

async fn restore_disks(ask: &Ask, restore: Restore) -> Result<(), WireError> {
    let disks = restore.disks.try_into().map_err(|error: protocol::bounded::TooMany| {
        WireError::new(ErrorCode::BadRequest, format!("disks to restore: {error}"))
    })?;
    let asked = ControlRequest::Restore {
        vm: restore.vm,
        snapshot: restore.snapshot,
        disks,
        safety: if restore.no_safety { Safety::None } else { Safety::Snapshot },
        layout: if restore.changed_layout { Layout::Any } else { Layout::Same },
        dry_run: restore.preview,
    };
    let mut stream = connect(&ask.control).await?;
    transport::send(&mut stream, &asked).await.map_err(|error| broken(&error))?;
    let bar = progress_bar();
    let (plan, is_preview) = loop {
        match transport::receive(&mut stream, SILENCE_LIMIT).await.map_err(|error| broken(&error))? {
            ControlReply::Progress(progress) => {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
            }
            ControlReply::RestorePlanned(plan) => break (plan, true),
            ControlReply::Restored(plan) => break (plan, false),
            ControlReply::Error(error) => return Err(error),
            other => return Err(unexpected(&other)),
        }
    };
    bar.finish_and_clear();
    let view = RestoreView::new(&plan, is_preview);
    if ask.output.json {
        json(&view, ask.output);
    } else {
        out(&view.block());
    }
    Ok(())
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta}");
    ProgressBar::new(0).with_style(style.expect("a valid template"))
}

async fn connect(path: &Path) -> Result<UnixStream, WireError> {
    UnixStream::connect(path).await.map_err(|error| {
        WireError::new(ErrorCode::Unreachable, format!("reach hostsnapd at {}: {error}", path.display()))
            .hint("is it running? systemctl status hostsnapd; only root may ask it")
    })
}

async fn ask_once(ask: &Ask, request: &ControlRequest) -> Result<ControlReply, WireError> {
    let mut stream = connect(&ask.control).await?;
    transport::send(&mut stream, request).await.map_err(|error| broken(&error))?;
    match transport::receive(&mut stream, SILENCE_LIMIT).await.map_err(|error| broken(&error))? {
        ControlReply::Error(error) => Err(error),
        reply => Ok(reply),
    }
}

fn broken(error: &transport::TransportError) -> WireError {
    WireError::new(ErrorCode::Unreachable, format!("hostsnapd did not answer: {}", chain(error)))
        .hint("its log says why: journalctl -u hostsnapd")
}

fn unexpected(_: &ControlReply) -> WireError {
    WireError::new(ErrorCode::Malformed, "hostsnapd gave another answer than was asked for")
        .hint("the running service and this program are of different versions: restart the service")
}

fn out(text: &str) {
    // A closed pipe (`hostsnapd list | head`) is not an error.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn json(value: &impl Serialize, _: Output) {
    out(&(serde_json::to_string_pretty(value).expect("no value that JSON lacks") + "\n"));
}

fn view(record: &SnapshotRecord) -> SnapshotView<'_> {
    SnapshotView::from(record)
}
