//! `hostsnap`: see the library for its rooms.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use guest_agent::cli::Cli;
use guest_agent::commands;
use guest_agent::freeze::keeper;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Before anything else: the thaw keeper is this program, and nothing of the rest.
    if keeper::is_asked_for() {
        return keeper::run();
    }
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,guest_agent::daemon=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    commands::run(Cli::parse())
}
