//! What a cut costs beside the bare operation of the storage: the one call that makes the snapshot, with nothing around it.
//! Both by turns, in the same run, on twin volumes of the same store; first with few snapshots, then until one volume has a thousand.
//!
//! Ours is the cut as a record has it: `Operation::cut` of the service, from its beginning until all disks are cut.
//!
//! And what going back costs, beside what the storage itself has for it.
//!
//! It reports and keeps the raw figures; nothing is asserted. Run by `cargo xtask bench drivers`.
//!
//! | module | idea |
//! |---|---|
//! | `bed` | a storage with a volume and its twin |
//! | `pools` | those whose kernel side this machine may lack: in a virtual machine |
//! | `bare` | the bare operation of each storage |
//! | `ours` | one snapshot by the service |
//! | `restores` | going back to a snapshot, both ways |
//! | `figures` | raw figures, percentiles, the table |

mod bare;
mod bed;
mod figures;
mod ours;
mod pools;
mod restores;
#[allow(dead_code, reason = "the contract's; it can do more than a benchmark wants")]
#[path = "../../../host-proxy/tests/contract/csi/server.rs"]
mod server;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use bed::{Bed, DISK_BYTES};
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
    /// How many of those are measured, the first and the last of them; the storage alone makes those between, which takes less
    /// long (lvm-thin and zfs)
    #[arg(long, value_name = "N")]
    measured: Option<usize>,
    /// How often each way goes back to a snapshot
    #[arg(long, default_value_t = 20)]
    restores: usize,
    /// The storage drivers
    #[arg(long, value_delimiter = ',', default_value = "reflink,btrfs,qemu,rbd,csi,lvm-thin,zfs")]
    driver: Vec<Driver>,
    /// Where figures.jsonl and drivers.md are kept; what is there of other drivers, and of what is measured 0 times, stays
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
    let mut figures = Figures::beside(&options.out)?;
    for driver in &options.driver {
        eprintln!("{}…", driver.as_str());
        if let Some(lines) = pools::measured_within(*driver, &options)? {
            figures.add_lines(&lines)?;
            continue;
        }
        for series in [Series::Few, Series::Many, Series::Restore] {
            let measured = match series {
                Series::Few => measure(*driver, &runtime, options.runs, 0, Then::Removed),
                Series::Many => {
                    let measured = options.measured.unwrap_or(options.thousand).min(options.thousand);
                    measure(*driver, &runtime, measured, options.thousand - measured, Then::Kept)
                }
                Series::Restore => restores::measure(*driver, &runtime, options.restores),
            };
            if let Some(measured) = measured.with_context(|| format!("{}: {series:?}", driver.as_str()))? {
                figures.add(series, measured)?;
            }
        }
    }
    let table = format!("{}\n{}", figures.table(), figures.table_of_restores());
    println!("{table}");
    figures.keep(&table)
}

/// What becomes of a snapshot that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Removed,
    Kept,
}

/// Bare and ours; `None` where it is not to be measured. In the middle so many more are made of each volume by the storage alone.
fn measure(
    driver: Driver,
    runtime: &tokio::runtime::Runtime,
    runs: usize,
    between: usize,
    then: Then,
) -> Result<Option<[Figure; 2]>> {
    if runs == 0 {
        return Ok(None);
    }
    let bed = Bed::make(driver, DISK_BYTES)?;
    let ours = Ours::on(&bed)?;
    let mut figures = none_yet(driver);
    for run in 0..runs {
        if run == runs / 2 {
            bare::make(&bed, between)?;
        }
        // By turns, and each is first as often as the other.
        for way in if run % 2 == 0 { [0, 1] } else { [1, 0] } {
            bed.write(way == 0, run)?;
            let took_us = match way {
                0 => bare::cut(&bed, run, then)?,
                _ => runtime.block_on(ours.cut(then))?.took_us,
            };
            figures[way].took_us.push(took_us);
        }
    }
    Ok(Some(figures.map(|figure| Figure { between, ..figure })))
}

/// Bare and ours.
fn none_yet(driver: Driver) -> [Figure; 2] {
    [Way::Bare, Way::Ours].map(|way| Figure {
        driver: driver.as_str().to_owned(),
        way,
        took_us: Vec::new(),
        between: 0,
    })
}
