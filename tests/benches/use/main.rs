//! What using a snapshot from inside its machine costs: until an attached disk can be read, until it is out again, a mount and an
//! umount; `hostsnap cp` of a large file beside a plain `cp` of the same file from a disk of the same kind, by turns; and `hostsnap
//! restore` of the disk beside what the storage itself takes to overwrite such an image.
//!
//! Times are those of a whole command in the guest, as its shell sees it; what an empty command takes is measured too. `hostsnap cp`
//! attaches, mounts, copies, unmounts and detaches, and all of it counts.
//!
//! It reports and keeps the raw figures; nothing is asserted. Run by `cargo xtask bench use`.
//!
//! | module | idea |
//! |---|---|
//! | `scene` | a machine with a file on two disks, and a snapshot of one |
//! | `figures` | raw figures, percentiles, the table |

mod figures;
mod scene;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use figures::{Figures, What};
use scene::{Compared, Scene};

/// Measures attach, detach, mount, umount, cp and restore.
#[derive(Parser)]
struct Options {
    /// How often a disk is attached and detached, and a file system mounted and unmounted
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// How often the file is copied, and the disk restored, each way
    #[arg(long, default_value_t = 5)]
    copies: usize,
    /// How large the file is, in MiB
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// The storage drivers
    #[arg(long, value_delimiter = ',', default_value = "reflink,btrfs,qemu")]
    driver: Vec<Driver>,
    /// Where the store lies: about seven times the file's size
    #[arg(long, default_value = "/tmp")]
    store: PathBuf,
    /// Where figures.jsonl and use.md are kept
    #[arg(long, default_value = "../target/bench/use")]
    out: PathBuf,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

/// The storage that the snapshot is on.
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
    let mut figures = Figures::new(&options.out)?;
    for driver in &options.driver {
        eprintln!("{}…", driver.as_str());
        measure(*driver, &options, &mut figures).with_context(|| format!("by {}", driver.as_str()))?;
    }
    let table = figures.table();
    println!("{table}");
    figures.keep_table(&table)
}

fn measure(driver: Driver, options: &Options, figures: &mut Figures) -> Result<()> {
    let scene = Scene::set(driver, options.mib, &options.store)?;
    let name = driver.as_str();
    for _ in 0..options.runs {
        for what in [What::Empty, What::Attach, What::Detach, What::Mount, What::Umount] {
            figures.add(name, what, scene.runs(what))?;
        }
    }
    for run in 0..options.copies {
        // By turns, and each is first as often as the other.
        let mut ways = [What::PlainCp, What::OurCp];
        ways.rotate_left(run % 2);
        for what in ways {
            scene.forget_what_was_read()?;
            figures.add(name, what, scene.runs(what))?;
            scene.copy_is_right(Compared::at(run));
        }
    }
    for run in 0..options.copies {
        let mut ways = [What::BareRestore, What::OurRestore];
        ways.rotate_left(run % 2);
        for what in ways {
            scene.change_the_disk()?;
            let took = if what == What::BareRestore { scene.overwrite()? } else { scene.runs(what) };
            figures.add(name, what, took)?;
            scene.restore_is_right(what, Compared::at(run));
        }
    }
    Ok(())
}
