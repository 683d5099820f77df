//! What a user reads: blocks and tables for people, JSON for programs.

use std::io::Write;
use std::path::{Path, PathBuf};

use protocol::attach::{Attachment, DetachOutcome};
use protocol::message::{DeleteOutcome, DiskAbilities, DiskInfo, Planned};
use protocol::text::{Line, MountPath};
use protocol::view::{self, ErrorView, RestoreView, SnapshotView};
use protocol::{ErrorCode, SnapshotId, SnapshotRecord, WireError};
use serde::Serialize;
use serde_json::json;

use crate::attach::AttachedDisk;
use crate::doctor::{Finding, Status};
use crate::flow::Target;
use crate::restore::{InTheWay, Outcome};
use crate::topology::select::DiskOverview;

pub(super) fn out(text: &str) {
    // A closed pipe (`hostsnap list | head`) is not an error.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

pub(super) fn json(value: &impl Serialize) {
    out(&(serde_json::to_string_pretty(value).expect("no value that JSON lacks") + "\n"));
}

pub(super) fn error(error: &WireError, json: bool) {
    if json {
        error_view(&ErrorView::from(error));
    } else {
        eprintln!("hostsnap: {error}");
    }
}

/// A command line that can't be understood, as the other errors.
pub(super) fn usage_error(told: &str) {
    let (what, then) = protocol::args::usage_error(told);
    error_view(&ErrorView::new(ErrorCode::BadRequest, &what, &then));
}

fn error_view(view: &ErrorView<'_>) {
    eprintln!("{}", serde_json::to_string(view).expect("no value that JSON lacks"));
}

pub(super) fn snapshot(record: &SnapshotRecord, json: bool) {
    if json {
        return self::json(&SnapshotView::from(record));
    }
    out(&view::block(record));
}

/// A snapshot with what of it is attached.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    snapshot: SnapshotView<'a>,
    attached: Vec<serde_json::Value>,
}

/// Snapshots, and what of them is attached as which device.
pub(super) fn snapshots(records: &[SnapshotRecord], attached: &[(Attachment, Option<PathBuf>)], json: bool) {
    if json {
        let of = |record: &SnapshotRecord| -> Vec<_> {
            attached
                .iter()
                .filter(|(attachment, _)| attachment.snapshot == record.id)
                .map(|(attachment, path)| {
                    json!({ "disk": attachment.disk, "serial": attachment.serial, "path": path,
                            "access": attachment.access, "size_bytes": attachment.size_bytes })
                })
                .collect()
        };
        let listed = records.iter().map(|record| Listed { snapshot: record.into(), attached: of(record) });
        return self::json(&listed.collect::<Vec<_>>());
    }
    out(&view::table(records));
    for (attachment, device) in attached {
        let device =
            device.as_deref().map_or_else(|| "not in this kernel".to_owned(), |at| path(at).to_string());
        out(&format!(
            "attached  {device}  {}  {}  {}\n",
            attachment.disk,
            attachment.access.as_str(),
            attachment.snapshot
        ));
    }
}

pub(super) fn attached(id: SnapshotId, disks: &[AttachedDisk], json: bool) {
    if json {
        return self::json(&json!({ "id": id, "disks": disks }));
    }
    for disk in disks {
        let AttachedDisk { disk, serial, path: device, access, size_bytes } = disk;
        let (size, device) = (view::size(*size_bytes), path(device));
        out(&format!("{device}  {disk}  {size}  {}  {serial}\n", access.as_str()));
    }
}

pub(super) fn detached(outcomes: &[(SnapshotId, DetachOutcome)], json: bool) {
    let was_there = |outcome: &DetachOutcome| *outcome == DetachOutcome::Detached;
    if json {
        let lines: Vec<_> = outcomes
            .iter()
            .map(|(id, outcome)| json!({ "id": id, "detached": was_there(outcome) }))
            .collect();
        return self::json(&lines);
    }
    for (id, outcome) in outcomes {
        out(&format!("{id} {}\n", if was_there(outcome) { "detached" } else { "was not attached" }));
    }
}

/// What was done, or would be, and what is in the way of it.
pub(super) fn restored(outcome: &Outcome, json: bool) {
    let Outcome { plan, is_preview, in_the_way, mounted, notes } = outcome;
    let view = RestoreView::new(plan, *is_preview);
    if json {
        #[derive(Serialize)]
        struct Told<'a> {
            #[serde(flatten)]
            restore: RestoreView<'a>,
            in_the_way: &'a [InTheWay],
            mounted: &'a [PathBuf],
            notes: &'a [String],
        }
        return self::json(&Told { restore: view, in_the_way, mounted, notes });
    }
    out(&view.block());
    for one in in_the_way {
        out(&format!("in the way     {}\n", Line::lossy(&one.line())));
    }
    for point in mounted {
        out(&format!("mounted again  {}\n", path(point)));
    }
    for note in notes {
        eprintln!("hostsnap: {}", Line::lossy(note));
    }
}

pub(super) fn deleted(outcomes: &[(SnapshotId, DeleteOutcome)], json: bool) {
    let was_there = |outcome: &DeleteOutcome| *outcome == DeleteOutcome::Gone;
    if json {
        let lines: Vec<_> =
            outcomes.iter().map(|(id, outcome)| json!({ "id": id, "deleted": was_there(outcome) })).collect();
        return self::json(&lines);
    }
    for (id, outcome) in outcomes {
        out(&format!("{id} {}\n", if was_there(outcome) { "deleted" } else { "was not there" }));
    }
}

/// A path for people: a user of this machine chose it, and may have put an escape sequence into it.
pub(super) fn path(path: &Path) -> MountPath {
    MountPath::lossy(&path.to_string_lossy())
}

/// What would be done, and what is mounted on disks that would be left out.
pub(super) fn plan(planned: &Planned, target: &Target, left_out: &[DiskOverview], json: bool) {
    if json {
        let disks: Vec<_> = planned
            .disks
            .iter()
            .map(|disk| json!({ "disk": disk.serial, "driver": disk.driver, "size_bytes": disk.size_bytes }))
            .collect();
        return self::json(&json!({
            "dry_run": true,
            "id": planned.id,
            "disks": disks,
            "freeze_order": target.file_systems.iter().filter(|fs| !fs.read_only).collect::<Vec<_>>(),
            "left_out": left_out,
        }));
    }
    out(&format!("would take    {}\n", planned.id));
    for disk in &planned.disks {
        let size = disk.size_bytes.map_or_else(|| "?".to_owned(), view::size);
        out(&format!("disk          {}  {size}  {}\n", disk.serial, disk.driver));
    }
    for fs in &target.file_systems {
        let what = if fs.read_only { "not frozen, it is read-only" } else { "frozen" };
        out(&format!("file system   {}  {}  {what}\n", path(&fs.mount_point), fs.fs_type));
    }
    for disk in left_out {
        let mounts: Vec<_> = disk.mounts.iter().map(|(mount, _)| path(mount).to_string()).collect();
        out(&format!("left out      {}  {}\n", disk.name, mounts.join(" ")));
    }
}

/// What the host knows of this machine's disks.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) disks: &'a [DiskInfo],
    /// None from a host that does not say.
    pub(super) abilities: &'a [DiskAbilities],
}

pub(super) fn disks(overview: &[DiskOverview], known: Result<Known<'_>, &WireError>, json: bool) {
    let of_host = |disk: &DiskOverview| {
        let serial = disk.serial.as_ref()?.parse().ok()?;
        known.ok()?.disks.iter().find(|known| known.serial.same_disk(&serial))
    };
    let can = |disk: &DiskOverview| {
        let serial = disk.serial.as_ref()?.parse().ok()?;
        known.ok()?.abilities.iter().find(|known| known.serial.same_disk(&serial))
    };
    let problem = |disk: &DiskOverview| match (&disk.problem, of_host(disk)) {
        (Some(problem), _) => problem.clone(),
        (None, Some(host)) => host.problem.to_string(),
        (None, None) if disk.is_attached() => "a snapshot's, attached: hostsnap list".to_owned(),
        (None, None) if known.is_ok() => "the host does not know it".to_owned(),
        (None, None) => "the host could not be asked".to_owned(),
    };
    if json {
        let disks: Vec<_> = overview
            .iter()
            .map(|disk| {
                let mounts: Vec<_> =
                    disk.mounts.iter().map(|(path, kind)| json!({ "path": path, "fstype": kind })).collect();
                json!({ "name": disk.name, "disk": disk.serial, "size_bytes": disk.size_bytes, "mounts": mounts,
                        "driver": of_host(disk).map(|host| &host.driver), "problem": problem(disk),
                        "abilities": can(disk).map(|can| &can.abilities),
                        "limits": can(disk).map(|can| &can.limits),
                        "free_bytes": can(disk).and_then(|can| can.free_bytes),
                        "floor_bytes": can(disk).map(|can| can.floor_bytes) })
            })
            .collect();
        return self::json(&disks);
    }
    out(&format!(
        "{:<8}  {:<20}  {:>10}  {:<8}  {:<30}  {}\n",
        "NAME", "SERIAL", "SIZE", "DRIVER", "MOUNTED", "PROBLEM"
    ));
    for disk in overview {
        let mounts: Vec<_> = disk.mounts.iter().map(|(mount, _)| path(mount).to_string()).collect();
        out(&format!(
            "{:<8}  {:<20}  {:>10}  {:<8}  {:<30}  {}\n",
            disk.name,
            disk.serial.as_deref().unwrap_or("-"),
            view::size(disk.size_bytes),
            of_host(disk).map_or("-", |host| host.driver.as_str()),
            mounts.join(" "),
            problem(disk)
        ));
    }
    for (disk, can) in overview.iter().filter_map(|disk| Some((disk, can(disk)?))) {
        let words: Vec<_> = can.abilities.iter().map(|word| word.as_str()).collect();
        let room = can.free_bytes.map_or_else(|| "?".to_owned(), view::size);
        out(&format!(
            "{}: can {}; {room} free, {} stay so; {}\n",
            disk.name,
            view::abilities(&words),
            view::size(can.floor_bytes),
            can.limits
        ));
    }
}

pub(super) fn findings(findings: &[Finding], json: bool) {
    if json {
        return self::json(&findings);
    }
    for finding in findings {
        let mark = match finding.status {
            Status::Ok => "ok  ",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        out(&format!("{mark}  {}\n", finding.text));
        if !finding.remedy.is_empty() {
            out(&format!("      → {}\n", finding.remedy));
        }
    }
}
