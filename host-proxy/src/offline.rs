//! The administrator's commands that need no running service: they work on the state folder itself.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::admin::print;
use crate::audit::Audit;
use crate::audit::read::{self, Filter};
use crate::catalog::Catalog;
use crate::cli::Output;
use crate::config::Config;
use crate::failure;
use crate::serve;
use crate::service::{Report, Service, now};
use crate::world::World;

/// `hostsnapd audit`.
pub fn audit(config: &Path, filter: &Filter, output: Output) -> ExitCode {
    finish(show_audit(config, filter, output), output)
}

fn show_audit(config: &Path, filter: &Filter, output: Output) -> Result<()> {
    let folder = Config::load(config)?.service.state_dir;
    let log =
        read::read(&folder, filter).with_context(|| format!("read the audit log in {}", folder.display()))?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for entry in &log.entries {
        let line = if output.json { serde_json::to_string(entry)? } else { read::line(entry) };
        if writeln!(out, "{line}").is_err() {
            // A closed pipe (`hostsnapd audit | head`) is not an error.
            return Ok(());
        }
    }
    if log.unreadable > 0 {
        eprintln!("hostsnapd: {} lines of the audit log can't be read and were left out", log.unreadable);
    }
    Ok(())
}

/// `hostsnapd rebuild-catalog`.
pub fn rebuild_catalog(config: &Path, output: Output) -> ExitCode {
    finish(rebuild(config).map(|report| print::report(&report, output)), output)
}

/// Moves the catalog aside and lets reconcile fill a new one. What it finds unfinished is finished
/// by the next start of the service.
fn rebuild(config: &Path) -> Result<Report> {
    let config = Config::load(config)?;
    let state_dir = config.service.state_dir.clone();
    let _only_one = serve::lock(&state_dir)?;
    let world = World::new(config, None)?;
    let path = state_dir.join("catalog.sqlite");
    if let Some(aside) = Catalog::set_aside(&path, now())? {
        eprintln!("hostsnapd: the old catalog is now {}", aside.display());
    }
    let catalog = Catalog::open(&path)?;
    let audit = Audit::open(&state_dir).context("open the audit log")?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let report = runtime.block_on(async { Service::new(world, catalog, audit).reconcile().await })?;
    Ok(report)
}

fn finish(result: Result<()>, output: Output) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::of(&error, output.json),
    }
}
