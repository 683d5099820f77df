//! How a command ends that failed: its text on stderr, plain or as JSON, and its exit code. One place
//! for those that ask the service and for those that work without it.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use protocol::view::ErrorView;
use protocol::{ErrorCode, WireError};

use crate::catalog::CatalogError;
use crate::cli::Cli;
use crate::config::ConfigError;
use crate::serve::InUse;
use crate::world::StoreError;

/// Reads the command line. One that can't be understood ends the program: with exit code 2, and as
/// JSON if that is how it wants errors.
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        // Help and the version come this way too.
        if !error.use_stderr() || !protocol::args::wants_json(std::env::args_os()) {
            error.exit();
        }
        let (what, then) = protocol::args::usage_error(&error.to_string());
        print(&ErrorView::new(ErrorCode::BadRequest, &what, &then));
        std::process::exit(ErrorCode::BadRequest.exit_code().into())
    })
}

/// Ends a command that asked the service.
pub fn of_wire(error: &WireError, json: bool) -> ExitCode {
    if json {
        print(&ErrorView::from(error));
    } else {
        eprintln!("hostsnapd: {error}");
    }
    ExitCode::from(error.code.exit_code())
}

/// Ends a command that works without the service, or the service itself.
pub fn of(error: &anyhow::Error, json: bool) -> ExitCode {
    if let Some(error) = error.downcast_ref::<WireError>() {
        return of_wire(error, json);
    }
    let (code, hint) = judge(error);
    if json {
        print(&ErrorView::new(code, &format!("{error:#}"), hint));
    } else {
        eprintln!("hostsnapd: {error:#}");
        if !hint.is_empty() {
            eprintln!("{hint}");
        }
    }
    ExitCode::from(code.exit_code())
}

fn print(view: &ErrorView<'_>) {
    eprintln!("{}", serde_json::to_string(view).expect("no value that JSON lacks"));
}

/// What kind, and what to do where the text does not say it.
fn judge(error: &anyhow::Error) -> (ErrorCode, &'static str) {
    let catalog = error.downcast_ref::<CatalogError>();
    if catalog.is_some_and(CatalogError::is_full) || is_full(error) {
        return (ErrorCode::NoSpace, "make room in the file system of the state_dir");
    }
    match catalog {
        Some(CatalogError::Damaged { .. }) => return (ErrorCode::StorageFailed, ""),
        Some(CatalogError::TooNew { .. }) => return (ErrorCode::Unsupported, ""),
        _ => {}
    }
    if error.is::<ConfigError>() {
        // A mistake in the configuration is one of usage.
        return (ErrorCode::BadRequest, "");
    }
    if error.is::<StoreError>() {
        return (ErrorCode::StorageFailed, "is it mounted? hostsnapd check looks at every store");
    }
    if error.is::<InUse>() {
        return (ErrorCode::Busy, "");
    }
    (ErrorCode::Internal, "")
}

/// Whether it comes from a file system without room.
fn is_full(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}
