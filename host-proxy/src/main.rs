//! `hostsnapd`: see the library for its rooms.

use std::io::IsTerminal;
use std::process::ExitCode;

use host_proxy::audit::read::Filter;
use host_proxy::cli::Command;
use host_proxy::{admin, check, failure, offline, serve};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match failure::parse().command {
        Command::Serve(file) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr)
                .init();
            match serve::run(&file.config) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failure::of(&error, false),
            }
        }
        Command::Check { config, output } => check::run(&config.config, output),
        Command::RebuildCatalog { config, output } => offline::rebuild_catalog(&config.config, output),
        Command::Audit { config, output, vm, since } => {
            offline::audit(&config.config, &Filter { vm, since }, output)
        }
        command => admin::run(command),
    }
}
