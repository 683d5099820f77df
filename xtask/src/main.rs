//! `cargo xtask`: everything that building, testing and showing Hostsnap needs.
//!
//! | module | idea |
//! |---|---|
//! | `setup` | what must be there, made if it is missing, kept under `target/vm` |
//! | `debian` | Debian's and Ubuntu's packages |
//! | `debian_guest` | a whole Debian, for stories with systemd and databases |
//! | `zfs` | OpenZFS for the guests' kernel, built here |
//! | `tiers` | the tests, and the count of them |
//! | `fuzz` | tier 2: the fuzz targets, for a short while |
//! | `bench` | the benchmarks |
//! | `demo` | the main job, shown |

mod bench;
mod debian;
mod debian_guest;
mod demo;
mod fuzz;
mod setup;
mod tiers;
mod zfs;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Set-up, demo and tests of Hostsnap.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install and make what the other commands need (they do it themselves)
    Setup,
    /// Show the main job: a virtual machine snapshots its own disk under load, and nothing is lost
    Demo {
        /// The storage driver
        #[arg(long, default_value = "qemu")]
        driver: Driver,
    },
    /// Run all tests
    Test {
        /// Only tests whose names contain this
        filter: Option<String>,
    },
    /// Measure, beside a floor and beside others, in the same run; nothing is asserted
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Write man pages and completions into packaging/
    Gen,
}

#[derive(Clone, Copy, ValueEnum)]
enum Driver {
    Qemu,
    Reflink,
    Btrfs,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup => setup::for_tests().map(|zfs| zfs.say()),
        Command::Demo { driver } => demo::run(match driver {
            Driver::Qemu => "qemu",
            Driver::Reflink => "reflink",
            Driver::Btrfs => "btrfs",
        }),
        Command::Test { filter } => tiers::run(filter.as_deref()),
        Command::Bench(bench) => bench::run(&bench),
        Command::Gen => setup::generate_docs(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
