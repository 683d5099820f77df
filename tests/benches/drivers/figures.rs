//! Raw figures, a line of JSON for each series; their percentiles as a table.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use harness::figures::percentile;
use serde::{Deserialize, Serialize};

/// How many at the end of a series, and at its beginning, stand for the last and the first.
const ENDS: usize = 20;

/// Whose way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    Bare,
    Ours,
}

/// Among how many others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Series {
    /// Each snapshot is removed before the next.
    Few,
    /// None is.
    Many,
    /// Not cut, but given the bytes of one again.
    Restore,
}

/// What each took in one series, in the order in which they were made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) driver: String,
    pub(crate) way: Way,
    pub(crate) took_us: Vec<u64>,
    /// How many more were made between the first half of these and the second, and not measured.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) between: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[derive(Serialize, Deserialize)]
struct Line {
    series: Series,
    #[serde(flatten)]
    figure: Figure,
}

/// All of them.
pub(crate) struct Figures {
    folder: PathBuf,
    lines: Vec<Line>,
}

impl Figures {
    /// With those that are there; each series that is measured takes the place of what is there of it.
    pub(crate) fn beside(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let there = fs::read_to_string(folder.join("figures.jsonl")).unwrap_or_default();
        let lines = there.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Self { folder: folder.to_owned(), lines })
    }

    pub(crate) fn add(&mut self, series: Series, figures: [Figure; 2]) -> Result<()> {
        for figure in figures {
            self.put(Line { series, figure });
        }
        self.write()
    }

    fn put(&mut self, line: Line) {
        let is_same = |other: &Line| {
            (other.series, other.figure.way, &other.figure.driver)
                == (line.series, line.figure.way, &line.figure.driver)
        };
        match self.lines.iter_mut().find(|other| is_same(other)) {
            Some(there) => *there = line,
            None => self.lines.push(line),
        }
    }

    fn write(&self) -> Result<()> {
        let text: Vec<String> = self.lines.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        fs::write(self.folder.join("figures.jsonl"), text.join("\n") + "\n").context("keep the figures")
    }

    /// What was measured elsewhere, line by line as it is kept.
    pub(crate) fn add_lines(&mut self, lines: &str) -> Result<()> {
        for line in lines.lines() {
            self.put(serde_json::from_str(line)?);
        }
        self.write()
    }

    fn figure(&self, driver: &str, series: Series, way: Way) -> Option<&Figure> {
        let wanted =
            |line: &&Line| line.series == series && line.figure.way == way && line.figure.driver == driver;
        self.lines.iter().find(wanted).map(|line| &line.figure)
    }

    fn of(&self, driver: &str, series: Series, way: Way) -> &[u64] {
        self.figure(driver, series, way).map_or(&[], |figure| &figure.took_us)
    }

    /// Bare and ours, in the order of their values.
    fn both(&self, driver: &str, series: Series) -> (Vec<u64>, Vec<u64>) {
        let sorted = |way| {
            let mut values = self.of(driver, series, way).to_vec();
            values.sort_unstable();
            values
        };
        (sorted(Way::Bare), sorted(Way::Ours))
    }

    /// A row for each driver: bare and ours at p50 and p95, what is ours of it; the first and the last of many.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from(
            "| driver | n | bare p50/p95 ms | hostsnapd p50/p95 ms | of it ours | many | bare first → last | hostsnapd first → last | last, × bare's last |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        let is_cut = |line: &&Line| line.series == Series::Few && line.figure.way == Way::Ours;
        for line in self.lines.iter().filter(is_cut) {
            let driver = line.figure.driver.as_str();
            let (bare, ours) = self.both(driver, Series::Few);
            let (bare_p50, ours_p50) = (p50(&bare), p50(&ours));
            let more = ours_p50.saturating_sub(bare_p50);
            let ends = |way| {
                let all = self.of(driver, Series::Many, way);
                let median = |some: &[u64]| {
                    let mut some = some.to_vec();
                    some.sort_unstable();
                    p50(&some)
                };
                let ends = ENDS.min(all.len());
                (median(&all[..ends]), median(&all[all.len() - ends..]))
            };
            let (bare_ends, our_ends) = (ends(Way::Bare), ends(Way::Ours));
            let many = self.figure(driver, Series::Many, Way::Ours);
            text += &format!(
                "| {driver} | {} | {}/{} | {}/{} | {} ms, {} % | {} | {} → {} | {} → {} | {:.2} |\n",
                ours.len(),
                ms(bare_p50),
                ms(percentile(&bare, 95)),
                ms(ours_p50),
                ms(percentile(&ours, 95)),
                ms(more),
                more * 100 / ours_p50.max(1),
                many.map_or(0, |many| many.took_us.len() + many.between),
                ms(bare_ends.0),
                ms(bare_ends.1),
                ms(our_ends.0),
                ms(our_ends.1),
                ratio(our_ends.1, bare_ends.1),
            );
        }
        text
    }

    /// A row for each driver that can: bare and ours at p50 and p95, and how many times the bare one's ours is.
    pub(crate) fn table_of_restores(&self) -> String {
        let mut text = String::from(
            "| driver | n | bare p50/p95 ms | hostsnapd p50/p95 ms | × bare |\n|---|---|---|---|---|\n",
        );
        let ours = |line: &&Line| line.series == Series::Restore && line.figure.way == Way::Ours;
        for line in self.lines.iter().filter(ours) {
            let driver = line.figure.driver.as_str();
            let (bare, ours) = self.both(driver, Series::Restore);
            text += &format!(
                "| {driver} | {} | {}/{} | {}/{} | {:.2} |\n",
                ours.len(),
                ms(p50(&bare)),
                ms(percentile(&bare, 95)),
                ms(p50(&ours)),
                ms(percentile(&ours, 95)),
                ratio(p50(&ours), p50(&bare)),
            );
        }
        text
    }

    pub(crate) fn keep(&self, table: &str) -> Result<()> {
        Ok(fs::write(self.folder.join("drivers.md"), table)?)
    }
}

fn p50(sorted: &[u64]) -> u64 {
    percentile(sorted, 50)
}

#[allow(clippy::cast_precision_loss)] // shown with two decimals
fn ms(us: u64) -> String {
    format!("{:.2}", us as f64 / 1000.0)
}

#[allow(clippy::cast_precision_loss)] // shown with two decimals
fn ratio(of: u64, to: u64) -> f64 {
    of as f64 / to.max(1) as f64
}
