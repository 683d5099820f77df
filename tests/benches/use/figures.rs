//! Raw figures, a line of JSON each; their percentiles as a table.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::figures::percentile;
use serde::Serialize;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum What {
    /// Nothing: what asking the guest costs by itself.
    Empty,
    /// Until the first block of the attached disk was read.
    Attach,
    Detach,
    Mount,
    Umount,
    PlainCp,
    OurCp,
    /// The storage's own way to overwrite an image by another: FICLONE where it can, else a copy.
    BareRestore,
    OurRestore,
}

impl What {
    const ALL: [Self; 9] = [
        Self::Empty,
        Self::Attach,
        Self::Detach,
        Self::Mount,
        Self::Umount,
        Self::PlainCp,
        Self::OurCp,
        Self::BareRestore,
        Self::OurRestore,
    ];

    const fn words(self) -> &'static str {
        match self {
            Self::Empty => "an empty command",
            Self::Attach => "attach, and read a block",
            Self::Detach => "detach",
            Self::Mount => "mount",
            Self::Umount => "umount",
            Self::PlainCp => "plain cp, sync",
            Self::OurCp => "hostsnap cp, sync",
            Self::BareRestore => "the image overwritten on the host",
            Self::OurRestore => "hostsnap restore --remount",
        }
    }
}

#[derive(Serialize)]
struct Figure {
    driver: &'static str,
    what: What,
    took_us: u64,
}

/// All of them, in memory and in a file.
pub(crate) struct Figures {
    folder: PathBuf,
    file: File,
    all: Vec<Figure>,
}

impl Figures {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let file = File::create(folder.join("figures.jsonl"))?;
        Ok(Self { folder: folder.to_owned(), file, all: Vec::new() })
    }

    pub(crate) fn add(&mut self, driver: &'static str, what: What, took: Duration) -> Result<()> {
        let figure = Figure { driver, what, took_us: u64::try_from(took.as_micros())? };
        writeln!(self.file, "{}", serde_json::to_string(&figure)?)?;
        self.all.push(figure);
        Ok(())
    }

    fn sorted(&self, driver: &str, what: What) -> Vec<u64> {
        let of = self.all.iter().filter(|figure| figure.driver == driver && figure.what == what);
        let mut values: Vec<u64> = of.map(|figure| figure.took_us).collect();
        values.sort_unstable();
        values
    }

    /// A row for each thing that was done, and how fast a copy and a restore are, beside the plain ones.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from(
            "| driver | what | n | min/p50/p95/max ms | speed beside the bare way |\n|---|---|---|---|---|\n",
        );
        let mut drivers: Vec<&str> = self.all.iter().map(|figure| figure.driver).collect();
        drivers.dedup();
        for driver in drivers {
            for what in What::ALL {
                let values = self.sorted(driver, what);
                let at = |percent| ms(percentile(&values, percent));
                let bare = match what {
                    What::OurCp => Some(What::PlainCp),
                    What::OurRestore => Some(What::BareRestore),
                    _ => None,
                };
                let beside = bare.map_or_else(String::new, |bare| {
                    ratio(percentile(&self.sorted(driver, bare), 50), percentile(&values, 50))
                });
                text += &format!(
                    "| {driver} | {} | {} | {}/{}/{}/{} | {beside} |\n",
                    what.words(),
                    values.len(),
                    at(0),
                    at(50),
                    at(95),
                    at(100)
                );
            }
        }
        text
    }

    pub(crate) fn keep_table(&self, table: &str) -> Result<()> {
        fs::write(self.folder.join("use.md"), table).context("keep the table")
    }
}

#[allow(clippy::cast_precision_loss)] // shown with one decimal
fn ms(us: u64) -> String {
    format!("{:.1}", us as f64 / 1000.0)
}

#[allow(clippy::cast_precision_loss)] // shown with two decimals
fn ratio(plain_us: u64, ours_us: u64) -> String {
    format!("{:.2} ×", plain_us as f64 / ours_us.max(1) as f64)
}
