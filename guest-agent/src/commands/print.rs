//! What a user reads: blocks and tables for people, JSON for programs.

use std::io::Write;

use protocol::message::{DiskInfo, Planned};
use protocol::view::{self, SnapshotView};
use protocol::{SnapshotId, SnapshotRecord, WireError};
use serde::Serialize;
use serde_json::json;

use crate::doctor::{Finding, Status};
use crate::flow::Target;
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
        eprintln!("{}", json!({ "error": error }));
    } else {
        eprintln!("hostsnap: {error}");
    }
}

pub(super) fn snapshot(record: &SnapshotRecord, json: bool) {
    if json {
        return self::json(&SnapshotView::from(record));
    }
    out(&view::block(record));
}

pub(super) fn snapshots(records: &[SnapshotRecord], json: bool) {
    if json {
        return self::json(&records.iter().map(SnapshotView::from).collect::<Vec<_>>());
    }
    out(&view::table(records));
}

pub(super) fn deleted(id: SnapshotId, was_there: bool, json: bool) {
    if json {
        return self::json(&json!({ "id": id, "deleted": was_there }));
    }
    out(&format!("{id} {}\n", if was_there { "deleted" } else { "was not there" }));
}

pub(super) fn plan(planned: &Planned, target: &Target, json: bool) {
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
        }));
    }
    out(&format!("would take    {}\n", planned.id));
    for disk in &planned.disks {
        let size = disk.size_bytes.map_or_else(|| "?".to_owned(), view::size);
        out(&format!("disk          {}  {size}  {}\n", disk.serial, disk.driver));
    }
    for fs in &target.file_systems {
        let what = if fs.read_only { "not frozen, it is read-only" } else { "frozen" };
        out(&format!("file system   {}  {}  {what}\n", fs.mount_point.display(), fs.fs_type));
    }
}

pub(super) fn disks(overview: &[DiskOverview], known: Result<&[DiskInfo], &WireError>, json: bool) {
    let of_host = |disk: &DiskOverview| {
        let serial = disk.serial.as_ref()?.parse().ok()?;
        known.ok()?.iter().find(|known| known.serial.same_disk(&serial))
    };
    let problem = |disk: &DiskOverview| match (&disk.problem, of_host(disk)) {
        (Some(problem), _) => problem.clone(),
        (None, Some(host)) => host.problem.to_string(),
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
                        "driver": of_host(disk).map(|host| &host.driver), "problem": problem(disk) })
            })
            .collect();
        return self::json(&disks);
    }
    out(&format!(
        "{:<8}  {:<20}  {:>10}  {:<8}  {:<30}  {}\n",
        "NAME", "SERIAL", "SIZE", "DRIVER", "MOUNTED", "PROBLEM"
    ));
    for disk in overview {
        let mounts: Vec<_> = disk.mounts.iter().map(|(path, _)| path.display().to_string()).collect();
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
