//! Raw figures, a line of JSON each; their percentiles as a table.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use harness::figures::percentile;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What one snapshot cost, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// The longest time between two records while nothing else ran.
    pub(crate) base_us: u64,
    /// The longest time between two records, from before the first write-back until after the thaw.
    pub(crate) stall_us: u64,
    /// When it began, since the command was started.
    #[serde(default)]
    pub(crate) stall_at_us: u64,
    /// How long the command ran.
    #[serde(default)]
    pub(crate) took_us: u64,
    /// From the first FIFREEZE to the last FITHAW.
    pub(crate) window_us: u64,
    pub(crate) flush_us: u64,
    pub(crate) freeze_us: u64,
    pub(crate) cut_us: u64,
    pub(crate) thaw_us: u64,
}

impl Measured {
    /// From what `stall-probe` printed, and what was measured inside it.
    pub(crate) fn of(probed: &Value, timing: &Value) -> Result<Self> {
        let us = |from: &Value, key: &str| from[key].as_u64().with_context(|| format!("{key} in {from}"));
        Ok(Self {
            base_us: us(probed, "base_us")?,
            stall_us: us(probed, "stall_us")?,
            stall_at_us: us(probed, "stall_at_us")?,
            took_us: us(probed, "took_us")?,
            window_us: us(timing, "stall_us")?,
            flush_us: us(timing, "flush_us")?,
            freeze_us: us(timing, "freeze_us")?,
            cut_us: us(timing, "cut_us")?,
            thaw_us: us(timing, "thaw_us")?,
        })
    }
}

/// One of them, with what it was measured on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) driver: String,
    pub(crate) fs: String,
    pub(crate) load: String,
    pub(crate) way: String,
    pub(crate) run: u32,
    #[serde(flatten)]
    pub(crate) measured: Measured,
}

impl Figure {
    pub(crate) fn new(driver: &str, fs: &str, load: &str, way: &str, run: u32, measured: Measured) -> Self {
        let [driver, fs, load, way] = [driver, fs, load, way].map(str::to_owned);
        Self { driver, fs, load, way, run, measured }
    }

    /// What is compared with one another.
    pub(crate) fn case(&self) -> (&str, &str, &str) {
        (&self.fs, &self.driver, &self.load)
    }
}

/// All of them, in memory and in a file.
pub(crate) struct Figures {
    folder: PathBuf,
    file: Option<File>,
    all: Vec<Figure>,
}

impl Figures {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let file = File::create(folder.join("figures.jsonl"))?;
        Ok(Self { folder: folder.to_owned(), file: Some(file), all: Vec::new() })
    }

    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("figures.jsonl");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let all = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Self { folder: folder.to_owned(), file: None, all })
    }

    pub(crate) fn add(&mut self, figure: Figure) -> Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", serde_json::to_string(&figure)?)?;
        }
        self.all.push(figure);
        Ok(())
    }

    pub(crate) fn all(&self) -> &[Figure] {
        &self.all
    }

    /// Every case, in the order in which it was measured.
    pub(crate) fn cases(&self) -> Vec<(&str, &str, &str)> {
        let mut cases = Vec::new();
        for figure in &self.all {
            if !cases.contains(&figure.case()) {
                cases.push(figure.case());
            }
        }
        cases
    }

    /// One way's values in a case, sorted.
    pub(crate) fn of(&self, case: (&str, &str, &str), way: &str, value: fn(&Measured) -> u64) -> Vec<u64> {
        let mine = self.all.iter().filter(|figure| figure.case() == case && figure.way == way);
        let mut values: Vec<u64> = mine.map(|figure| value(&figure.measured)).collect();
        values.sort_unstable();
        values
    }

    /// One line for whoever waits.
    pub(crate) fn brief(&self, driver: &str, fs: &str, load: &str) -> String {
        let stall = |way| percentile(&self.of((fs, driver, load), way, |m| m.stall_us), 50) / 1000;
        format!(
            "{fs} on {driver}, {load}: stall p50 {} ms hostsnap, {} floor, {} qemu-ga",
            stall("hostsnap"),
            stall("floor"),
            stall("qemu-ga")
        )
    }

    /// p50/p95/max of stall and window, and hostsnap's ratios to floor and to qemu-ga at p50.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from(
            "| guest, driver, load | way | n | stall p50/p95/max ms | window p50/p95/max ms | freeze/cut/thaw p50 ms | hostsnap's stall | hostsnap's window |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for case in self.cases() {
            for way in ["floor", "hostsnap", "qemu-ga", "qemu-ga data"] {
                let p50 = |way: &str, value| percentile(&self.of(case, way, value), 50);
                let stalls = self.of(case, way, |m| m.stall_us);
                let ratio = |value: fn(&Measured) -> u64| match way {
                    "hostsnap" => String::new(),
                    _ => format!("{:.2} ×", ratio(p50("hostsnap", value), p50(way, value))),
                };
                let (fs, driver, load) = case;
                text += &format!(
                    "| {fs}, {driver}, {load} | {way} | {} | {} | {} | {}/{}/{} | {} | {} |\n",
                    stalls.len(),
                    spread(&stalls),
                    spread(&self.of(case, way, |m| m.window_us)),
                    ms(p50(way, |m| m.freeze_us)),
                    ms(p50(way, |m| m.cut_us)),
                    ms(p50(way, |m| m.thaw_us)),
                    ratio(|m| m.stall_us),
                    ratio(|m| m.window_us),
                );
            }
        }
        text
    }

    pub(crate) fn keep_table(&self, table: &str) -> Result<()> {
        fs::write(self.folder.join("stall.md"), table)?;
        Ok(())
    }
}

fn spread(sorted: &[u64]) -> String {
    [50, 95, 100].map(|percent| ms(percentile(sorted, percent))).join("/")
}

#[allow(clippy::cast_precision_loss)] // shown with one decimal
pub(crate) fn ms(us: u64) -> String {
    format!("{:.1}", us as f64 / 1000.0)
}

#[allow(clippy::cast_precision_loss)] // shown with two decimals
fn ratio(of: u64, to: u64) -> f64 {
    of as f64 / to.max(1) as f64
}
