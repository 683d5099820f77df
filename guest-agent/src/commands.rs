//! The commands: each asks its room and prints the answer. Errors end in one place, `run`.

mod inside;
mod print;

use std::io::{IsTerminal, Write};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::attach::Access;
use protocol::message::List;
use protocol::record::State;
use protocol::restore::{Layout, Safety};
use protocol::text::SnapshotRef;
use protocol::{DiskSerial, ErrorCode, RequestId, WireError};
use serde_json::json;

use crate::cli::{Cli, Command, Create, Restore};
use crate::client::{Client, HostAddress, Limits};
use crate::flow::{self, Options, Otherwise, Outcome, Surroundings, Target, Told};
use crate::freeze::{self, Emergency};
use crate::topology::select::{self, DiskOverview};
use crate::topology::{capture, mountinfo};
use crate::{attach, daemon, doctor, mount, restore};
use print::Known;

/// Reads the command line. One that can't be understood ends the program: with exit code 2, and as
/// JSON if that is how it wants errors.
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        // Help and the version come this way too.
        if !error.use_stderr() || !protocol::args::wants_json(std::env::args_os()) {
            error.exit();
        }
        print::usage_error(&error.to_string());
        std::process::exit(ErrorCode::BadRequest.exit_code().into())
    })
}

/// Runs a command; its exit code is the error's.
pub fn run(cli: Cli) -> ExitCode {
    let json = cli.json;
    match catch_unwind(|| dispatch(cli)).unwrap_or_else(|_| Err(a_bug())) {
        Ok(code) => code,
        Err(error) => {
            print::error(&error, json);
            ExitCode::from(error.code.exit_code())
        }
    }
}

/// After a panic, which was told already, and released on its way what was quiesced.
fn a_bug() -> WireError {
    WireError::new(ErrorCode::Internal, "this is a bug of hostsnap; what it had frozen writes again")
        .hint("report it with the lines above; hostsnap list says whether there is a snapshot")
}

fn dispatch(cli: Cli) -> Result<ExitCode, WireError> {
    let Cli { json, host, command } = cli;
    match command {
        Command::Create(create) => take(create, host, json)?,
        Command::List { labels, disk, state } => {
            let filter = List {
                labels: protocol::args::labels(labels)?,
                disk,
                state: state.map(State::from),
                ..List::default()
            };
            list(&host, &filter, json)?;
        }
        Command::Show { snapshot } => {
            let record = Client::connect(&host, Limits::default())?.get(snapshot)?;
            print::snapshot(&record, json);
        }
        Command::Delete { snapshots, yes } => delete(&host, snapshots, yes, json)?,
        Command::Attach { snapshot, disks, writable } => {
            let access = if writable { Access::Writable } else { Access::ReadOnly };
            plug_in(&host, snapshot, &disks, access, json)?;
        }
        Command::Detach { snapshots } => take_out(&host, snapshots, json)?,
        Command::Mount(mount) => inside::mount(mount, &host, json)?,
        Command::Umount { dir, .. } => inside::umount(dir.as_deref(), &host, json)?,
        Command::Cp { sources, dest, which } => return inside::cp(sources, &dest, &which, &host, json),
        Command::Ls { path, long, which } => inside::ls(&path, long, &which, &host, json)?,
        Command::Restore(restore) => go_back(restore, &host, json)?,
        Command::Disks { capture: true } => {
            print::json(&capture::live()?);
        }
        Command::Disks { capture: false } => disks(&host, json)?,
        Command::Doctor => {
            let findings = doctor::examine(&host);
            print::findings(&findings, json);
            return Ok(ExitCode::from(doctor::exit_code(&findings)));
        }
        Command::Thaw => return thaw(json),
        Command::Daemon { listen, allow_local } => {
            let around = Surroundings { host, ..Surroundings::default() };
            daemon::serve(&daemon::Place::new(listen, allow_local), around)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn take(create: Create, host: HostAddress, json: bool) -> Result<(), WireError> {
    let options = Options {
        paths: create.paths,
        labels: protocol::args::labels(create.labels)?,
        note: create.note,
        minimum: create.consistency,
        otherwise: if create.keep_anyway { Otherwise::Keep } else { Otherwise::Remove },
        keep_for: create.keep_for,
        freeze_timeout: create.freeze_timeout,
        request: create.request_id.unwrap_or_else(RequestId::random),
        dry_run: create.dry_run,
        wait: !create.no_wait,
    };
    let around = Surroundings { host, ..Surroundings::default() };
    let bar = progress_bar("settling");
    let outcome = flow::create(&options, &around, &mut |told| match told {
        // Between freeze and thaw nothing is printed.
        Told::Phase(_) => {}
        Told::Progress(progress) => {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.done_bytes);
        }
        Told::Retrying => eprintln!("hostsnap: the host was lost; asking again for the same request"),
    });
    bar.finish_and_clear();
    match outcome? {
        Outcome::Snapshot(record) => {
            print::snapshot(&record, json);
            flow::reached(&record, create.consistency)?;
        }
        Outcome::Planned { planned, target } => print::plan(&planned, &target, &left_out(&target), json),
    }
    Ok(())
}

/// Disks with something mounted on them that a plan does not cover.
fn left_out(target: &Target) -> Vec<DiskOverview> {
    let is_taken = |name: &str| target.disks.iter().any(|(disk, _)| disk.name == name);
    let overview = capture::live().map(|capture| select::overview(&capture)).unwrap_or_default();
    overview.into_iter().filter(|disk| !disk.mounts.is_empty() && !is_taken(&disk.name)).collect()
}

fn progress_bar(what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(&format!("{what} {{bar:30}} {{bytes}}/{{total_bytes}} {{eta}}"));
    ProgressBar::new(0).with_style(style.expect("a valid template"))
}

fn list(host: &HostAddress, filter: &List, json: bool) -> Result<(), WireError> {
    let mut client = Client::connect(host, Limits::default())?;
    let mut records = Vec::new();
    let mut after = None;
    loop {
        let page = client.list(List { after, limit: 256, ..filter.clone() })?;
        records.extend(page.snapshots);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    // A host that is too old for it has attached nothing.
    let attached = match client.attachments().map_err(WireError::from) {
        Err(error) if error.code == ErrorCode::Malformed => Vec::new(),
        told => told?,
    };
    let attached = attached.iter().map(attach::here_or_not).collect::<Result<Vec<_>, _>>()?;
    print::snapshots(&records, &attached, json);
    Ok(())
}

fn delete(host: &HostAddress, snapshots: Vec<SnapshotRef>, yes: bool, json: bool) -> Result<(), WireError> {
    let mut client = Client::connect(host, Limits::default())?;
    // All are looked up before the first is deleted: a typing error deletes nothing.
    let records = snapshots.into_iter().map(|which| client.get(which)).collect::<Result<Vec<_>, _>>()?;
    if !yes && std::io::stdin().is_terminal() {
        print::snapshots(&records.iter().map(|record| (**record).clone()).collect::<Vec<_>>(), &[], false);
        eprint!("Delete {}? [y/N] ", if records.len() == 1 { "it" } else { "them" });
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        let _ = std::io::stdin().read_line(&mut answer);
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err(WireError::new(ErrorCode::BadRequest, "nothing was deleted"));
        }
    }
    let mut outcomes = Vec::new();
    let failed = records.iter().find_map(|record| match client.delete(record.id) {
        Ok(outcome) => {
            outcomes.push((record.id, outcome));
            None
        }
        Err(error) => Some(error),
    });
    // What was deleted is said, whatever came then.
    print::deleted(&outcomes, json);
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn plug_in(
    host: &HostAddress,
    snapshot: SnapshotRef,
    disks: &[DiskSerial],
    access: Access,
    json: bool,
) -> Result<(), WireError> {
    let mut client = Client::connect(host, Limits::default())?;
    let id = client.get(snapshot)?.id;
    // Before udev sees a disk with the UUIDs of another.
    mount::guard();
    print::attached(id, &attach::attach(&mut client, id, disks, access)?, json);
    mount::note().iter().for_each(|note| eprintln!("hostsnap: {note}"));
    Ok(())
}

fn take_out(host: &HostAddress, snapshots: Vec<SnapshotRef>, json: bool) -> Result<(), WireError> {
    let mut client = Client::connect(host, Limits::default())?;
    let ids = snapshots
        .into_iter()
        .map(|which| client.get(which).map(|record| record.id))
        .collect::<Result<Vec<_>, _>>()?;
    let mut outcomes = Vec::new();
    let failed = ids.into_iter().find_map(|id| match attach::detach(&mut client, id) {
        Ok(outcome) => {
            outcomes.push((id, outcome));
            None
        }
        Err(error) => Some(error),
    });
    // What was taken out is said, whatever came then.
    print::detached(&outcomes, json);
    failed.map_or(Ok(()), Err)
}

fn go_back(restore: Restore, host: &HostAddress, json: bool) -> Result<(), WireError> {
    let options = restore::Options {
        snapshot: restore.snapshot,
        what: restore.what,
        preview: restore.preview,
        remount: restore.remount,
        safety: if restore.no_safety { Safety::None } else { Safety::Snapshot },
        layout: if restore.changed_layout { Layout::Any } else { Layout::Same },
    };
    let bar = progress_bar("restoring");
    let outcome = restore::restore(&options, host, &mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
    });
    bar.finish_and_clear();
    print::restored(&outcome?, json);
    Ok(())
}

fn disks(host: &HostAddress, json: bool) -> Result<(), WireError> {
    let capture = capture::live()?;
    let overview = select::overview(&capture);
    // What the guest itself knows is shown even when the host can't be asked.
    let known = Client::connect(host, Limits::default())
        .and_then(|mut client| {
            let disks = client.disks()?;
            // Asked last: an older host ends the conversation for it.
            Ok((disks, client.abilities()?.unwrap_or_default()))
        })
        .map_err(WireError::from);
    let told = known.as_ref().map(|(disks, abilities)| Known { disks, abilities });
    print::disks(&overview, told, json);
    known.map(drop)
}

fn thaw(json: bool) -> Result<ExitCode, WireError> {
    let capture = capture::live()?;
    let mounts = mountinfo::parse(capture.mountinfo.as_bytes());
    let stack = crate::topology::stack::Stack::new(&capture);
    let mut points: Vec<PathBuf> = mounts
        .iter()
        .filter(|mount| stack.super_block(mount).is_some() && mountinfo::is_visible(&mounts, mount))
        .map(|mount| mount.mount_point.clone())
        .collect();
    points.dedup();
    let report = freeze::emergency_thaw(Path::new(freeze::DEFAULT_FOLDER), &points);
    let thawed = report.file_systems;
    let failed =
        thawed.iter().any(|(_, what)| matches!(what, Emergency::Failed(_) | Emergency::StillWaiting));
    if json {
        let lines: Vec<_> = thawed
            .iter()
            .map(|(path, what)| json!({ "path": path, "thawed": *what == Emergency::Thawed, "says": say(what) }))
            .collect();
        print::json(&lines);
    } else {
        for (path, what) in &thawed {
            print::out(&format!("{}: {}\n", path.display(), say(what)));
        }
    }
    Ok(if failed { ExitCode::from(ErrorCode::NotFreezable.exit_code()) } else { ExitCode::SUCCESS })
}

fn say(what: &Emergency) -> String {
    match what {
        Emergency::Thawed => "was frozen, writes again".to_owned(),
        Emergency::WasNotFrozen => "was not frozen".to_owned(),
        Emergency::StillWaiting => "the thaw has not come back: its disk does not answer".to_owned(),
        Emergency::Failed(why) => format!("could not be thawed: {why}"),
    }
}
