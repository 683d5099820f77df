//! What the administrator reads: tables and blocks for people, JSON for programs.

use protocol::SnapshotId;
use protocol::SnapshotRecord;
use protocol::agent::AgentPhase;
use protocol::text::Name;
use protocol::view;
use serde_json::json;

use super::{json, out, view};
use crate::cli::Output;
use crate::control::{AgentFacts, Compared, VmStatus};
use crate::drivers::Extent;
use crate::service::Report;

pub(super) fn vms(vms: &[VmStatus], output: Output) {
    if output.json {
        let disks = |vm: &VmStatus| -> Vec<_> {
            vm.disks
                .iter()
                .map(|disk| {
                    json!({ "disk": disk.serial, "driver": disk.driver, "size_bytes": disk.size_bytes,
                            "problem": disk.problem })
                })
                .collect()
        };
        let all: Vec<_> = vms
            .iter()
            .map(|vm| {
                json!({ "name": vm.name, "uuid": vm.uuid, "peer": vm.peer, "snapshots": vm.snapshots,
                        "disks": disks(vm) })
            })
            .collect();
        return json(&all, output);
    }
    for vm in vms {
        out(&format!("{}  {}  {}  {} snapshots\n", vm.name, vm.uuid, vm.peer, vm.snapshots));
        for disk in &vm.disks {
            let size = disk.size_bytes.map_or_else(|| "?".to_owned(), view::size);
            let problem = disk.problem.as_str();
            let problem = if problem.is_empty() { "ok" } else { problem };
            out(&format!("  {:<20}  {:<8}  {size:>10}  {problem}\n", disk.serial, disk.driver));
        }
    }
}

pub(super) fn snapshots(records: &[SnapshotRecord], output: Output) {
    if output.json {
        return json(&records.iter().map(view).collect::<Vec<_>>(), output);
    }
    out(&view::table(records));
}

pub(super) fn snapshot(record: &SnapshotRecord, output: Output) {
    if output.json {
        return json(&view(record), output);
    }
    out(&view::block(record));
}

pub(super) fn deleted(outcomes: &[(SnapshotId, bool)], output: Output) {
    each(outcomes, "deleted", "was not there", output);
}

pub(super) fn detached(outcomes: &[(SnapshotId, bool)], output: Output) {
    each(outcomes, "detached", "was not attached", output);
}

fn each(outcomes: &[(SnapshotId, bool)], done: &str, was_not: &str, output: Output) {
    if output.json {
        let all: Vec<_> =
            outcomes.iter().map(|(id, was_there)| json!({ "id": id, done: was_there })).collect();
        return json(&all, output);
    }
    for (id, was_there) in outcomes {
        out(&format!("{id} {}\n", if *was_there { done } else { was_not }));
    }
}

pub(super) fn changes(compared: &Compared, extents: &[Vec<Extent>], output: Output) {
    let Compared { from, to, disks } = compared;
    let of_disks = disks.iter().zip(extents).map(|((disk, driver, size_bytes), extents)| {
        let changed_bytes: u64 = extents.iter().map(|extent| extent.length).sum();
        (disk, driver, *size_bytes, changed_bytes, extents)
    });
    if output.json {
        let disks: Vec<_> = of_disks
            .map(|(disk, driver, size_bytes, changed_bytes, extents)| {
                json!({ "disk": disk, "driver": driver, "size_bytes": size_bytes, "changed_bytes": changed_bytes,
                        "extents": extents })
            })
            .collect();
        return json(&json!({ "from": from, "to": to, "disks": disks }), output);
    }
    for (disk, driver, size_bytes, changed_bytes, extents) in of_disks {
        let (changed, size) = (view::size(changed_bytes), view::size(size_bytes));
        out(&format!("{disk:<20}  {driver:<8}  {changed} of {size} in {} extents\n", extents.len()));
    }
}

pub(super) fn pong(vm: &Name, facts: &AgentFacts, output: Output) {
    let phase = match facts.phase {
        AgentPhase::Idle => "idle",
        AgentPhase::Preparing => "preparing",
        AgentPhase::Frozen => "frozen",
        AgentPhase::Settling => "settling",
    };
    if output.json {
        let facts = json!({ "vm": vm, "version": facts.version, "phase": phase,
                            "round_trip_us": facts.round_trip_us });
        return json(&facts, output);
    }
    out(&format!("{vm}: agent {} is {phase}; answered in {} µs\n", facts.version, facts.round_trip_us));
}

pub(crate) fn report(report: &Report, output: Output) {
    if output.json {
        return json(report, output);
    }
    if report.is_clean() {
        return out("the catalog and the storage agree\n");
    }
    for (what, ids) in [
        ("entered into the catalog", &report.adopted),
        ("finished", &report.resumed),
        ("cleaned up", &report.cleaned),
        ("lost by the storage", &report.lost),
        ("removed by another host", &report.removed),
        ("no longer attached", &report.detached),
        ("restored", &report.restored),
    ] {
        for id in ids {
            out(&format!("{id}  {what}\n"));
        }
    }
    for problem in &report.problems {
        out(&format!("undecided: {problem}\n"));
    }
}
