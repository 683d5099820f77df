//! `hostsnap`: see the library for its rooms.

use std::io::IsTerminal;
use std::process::ExitCode;

use guest_agent::commands;
use guest_agent::freeze::{self, keeper};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    // Before anything else: the thaw keeper is this program, and nothing of the rest.
    if keeper::is_asked_for() {
        return keeper::run();
    }
    freeze::thaw_before_a_panic_is_told();
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(to_stderr).with(log_filter()).init();
    #[cfg(feature = "rehearsal")]
    guest_agent::rehearsal::prepare();
    commands::run(commands::parse())
}

/// By `RUST_LOG`. (`EnvFilter` knows more, for half a megabyte of regular expressions.)
fn log_filter() -> Targets {
    std::env::var("RUST_LOG").ok().and_then(|wish| wish.parse().ok()).unwrap_or_else(|| {
        Targets::new().with_default(LevelFilter::WARN).with_target("guest_agent::daemon", LevelFilter::INFO)
    })
}
