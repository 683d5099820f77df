//! What a cut costs beside the bare operation of the storage: the one call that makes the snapshot, with nothing around it.
//! Both by turns, in the same run, on twin volumes of the same store; first with few snapshots, then until one volume has a thousand.
//!
//! Ours is the cut as a record has it: `Operation::cut` of the service, from its beginning until all disks are cut.
//!
//! It reports and keeps the raw figures; nothing is asserted. Run by `cargo xtask bench drivers`.
//!
//! | module | idea |
//! |---|---|
//! | `bed` | a storage with a volume and its twin |
//! | `pools` | those whose kernel side this machine may lack: in a virtual machine |
//! | `bare` | the bare operation of each storage |
//! | `ours` | one snapshot by the service |
//! | `figures` | raw figures, percentiles, the table |

mod bare;
mod bed;
mod figures;
mod ours;
mod pools;
#[allow(dead_code, reason = "the contract's; it can do more than a benchmark wants")]
#[path = "../../../host-proxy/tests/contract/csi/server.rs"]
mod server;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use bed::Bed;
use figures::{Figure, Figures, Series, Way};
use ours::Ours;

/// Between what is prepared and the cut a guest writes back and freezes: meanwhile caches cool and processors fall asleep,
/// whoever cuts then.
const FREEZE: Duration = Duration::from_millis(20);

/// Measures the cut of each driver.
#[derive(Parser)]
struct Options {
    /// How often each way is measured with no other snapshot there
    #[arg(long, default_value_t = 40)]
    runs: usize,
    /// How many snapshots of one volume are made then
    #[arg(long, default_value_t = 1000)]
    thousand: usize,
    /// The storage drivers
    #[arg(long, value_delimiter = ',', default_value = "reflink,btrfs,qemu,rbd,csi,lvm-thin,zfs")]
    driver: Vec<Driver>,
    /// Where figures.jsonl and drivers.md are kept; figures of other drivers that are there stay
    #[arg(long, default_value = "../target/bench/drivers")]
    out: PathBuf,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

/// The storage that cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Driver {
    Reflink,
    Btrfs,
    Qemu,
    Rbd,
    Csi,
    LvmThin,
    Zfs,
}

impl Driver {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Btrfs => "btrfs",
            Self::Qemu => "qemu",
            Self::Rbd => "rbd",
            Self::Csi => "csi",
            Self::LvmThin => "lvm-thin",
            Self::Zfs => "zfs",
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut figures = Figures::beside(&options.out, &options.driver)?;
    for driver in &options.driver {
        eprintln!("{}…", driver.as_str());
        if let Some(lines) = pools::measured_within(*driver, options.runs, options.thousand)? {
            figures.add_lines(&lines)?;
            continue;
        }
        let few = measure(*driver, &runtime, options.runs, Then::Removed);
        figures.add(Series::Few, few.with_context(|| format!("{} with few snapshots", driver.as_str()))?)?;
        let many = measure(*driver, &runtime, options.thousand, Then::Kept);
        figures
            .add(Series::Many, many.with_context(|| format!("{} with many snapshots", driver.as_str()))?)?;
    }
    let table = figures.table();
    println!("{table}");
    figures.keep(&table)
}

/// What becomes of a snapshot that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Removed,
    Kept,
}

fn measure(
    driver: Driver,
    runtime: &tokio::runtime::Runtime,
    runs: usize,
    then: Then,
) -> Result<[Figure; 2]> {
    let bed = Bed::make(driver)?;
    let ours = Ours::on(&bed)?;
    let mut figures = [Way::Bare, Way::Ours].map(|way| Figure {
        driver: driver.as_str().to_owned(),
        way,
        cut_us: Vec::new(),
    });
    for run in 0..runs {
        // By turns, and each is first as often as the other.
        for way in if run % 2 == 0 { [0, 1] } else { [1, 0] } {
            bed.write(way == 0, run)?;
            let took_us = match way {
                0 => bare::cut(&bed, run, then)?,
                _ => runtime.block_on(ours.cut(then))?,
            };
            figures[way].cut_us.push(took_us);
        }
    }
    Ok(figures)
}
