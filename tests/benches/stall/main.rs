//! How long an application waits for a snapshot: `hostsnap create` beside the floor and beside the usual
//! way, in the same virtual machine, on the same disk, by turns.
//!
//! | way | what it is |
//! |---|---|
//! | `floor` | `syncfs`, FIFREEZE with expedited RCU, one round trip over vsock, the bare cut, FITHAW |
//! | `hostsnap` | `hostsnap create` |
//! | `qemu-ga` | what a host's script does: `guest-fsfreeze-freeze`, the bare cut, `guest-fsfreeze-thaw` |
//! | `qemu-ga data` | the same, with only the data file system frozen (`guest-fsfreeze-freeze-list`) |
//!
//! It reports and keeps the raw figures; nothing is asserted. Run by `cargo xtask bench stall`.
//!
//! | module | idea |
//! |---|---|
//! | `stage` | a machine, its disks, its service |
//! | `cut` | the bare cut of each storage |
//! | `ways` | one snapshot in each way, measured |
//! | `figures` | raw figures, percentiles, the table |
//! | `plot` | the distributions as a picture |

mod cut;
mod figures;
mod plot;
mod stage;
mod ways;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use figures::{Figure, Figures};
use stage::Stage;
use ways::Way;

/// Measures the write stall of a snapshot.
#[derive(Parser)]
struct Options {
    /// How often each way is measured while nothing else is written
    #[arg(long, default_value_t = 20)]
    runs: u32,
    /// How often with dirty pages just written
    #[arg(long, default_value_t = 10)]
    dirty_runs: u32,
    /// How many dirty pages, in MiB
    #[arg(long, default_value_t = 200)]
    dirty_mib: u32,
    /// The guest's file systems
    #[arg(long, value_delimiter = ',', default_value = "ext4,xfs,btrfs")]
    fs: Vec<GuestFs>,
    /// The storage drivers
    #[arg(long, value_delimiter = ',', default_value = "reflink,btrfs,qemu")]
    driver: Vec<Driver>,
    /// Where the host's store lies; by default in memory, so that a disk adds no noise
    #[arg(long, default_value = "/dev/shm")]
    store: PathBuf,
    /// Where figures.jsonl, stall.md and stall.svg are kept
    #[arg(long, default_value = "../target/bench/stall")]
    out: PathBuf,
    /// Measure nothing: make table and picture of the figures that are there
    #[arg(long)]
    render: bool,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

/// The file system that is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GuestFs {
    Ext4,
    Xfs,
    Btrfs,
}

impl GuestFs {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

/// The storage that cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Driver {
    Reflink,
    Btrfs,
    Qemu,
}

impl Driver {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Btrfs => "btrfs",
            Self::Qemu => "qemu",
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut figures = match options.render {
        true => Figures::read(&options.out)?,
        false => Figures::new(&options.out)?,
    };
    if !options.render {
        for driver in &options.driver {
            for fs in &options.fs {
                measure(*driver, *fs, &options, &mut figures)
                    .with_context(|| format!("{} on {}", fs.as_str(), driver.as_str()))?;
            }
        }
    }
    let table = figures.table();
    println!("{table}");
    figures.keep_table(&table)?;
    plot::draw(&figures, &options.out.join("stall.svg"))?;
    println!("kept in {}", options.out.display());
    Ok(())
}

fn measure(driver: Driver, fs: GuestFs, options: &Options, figures: &mut Figures) -> Result<()> {
    let stage = Stage::set(driver, fs, &options.store)?;
    for (load, runs, dirty_mib) in
        [("idle", options.runs, 0), ("dirty", options.dirty_runs, options.dirty_mib)]
    {
        for run in 0..runs {
            // By turns, and each time another one first: what changes meanwhile, changes for all.
            let mut ways = Way::ALL;
            ways.rotate_left(run as usize % Way::ALL.len());
            for way in ways {
                let measured = way.measure(&stage, dirty_mib).with_context(|| way.as_str())?;
                figures.add(Figure::new(driver.as_str(), fs.as_str(), load, way.as_str(), run, measured))?;
            }
        }
        eprintln!("{}", figures.brief(driver.as_str(), fs.as_str(), load));
    }
    Ok(())
}
