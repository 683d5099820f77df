//! `hostsnapd`: see the library for its rooms.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use host_proxy::cli::{Cli, Command};
use host_proxy::{admin, check, gen_docs, serve};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(file) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
            succeed(serve::run(&file.config))
        }
        Command::Check { config, output } => check::run(&config.config, output),
        Command::GenDocs { folder } => {
            succeed(gen_docs::write(Cli::command(), &folder).map_err(anyhow::Error::from))
        }
        command => admin::run(command),
    }
}

fn succeed(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostsnapd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
