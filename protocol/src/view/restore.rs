//! A restore, as both command lines print it.

use std::fmt::Write;

use serde::Serialize;

use super::{rfc3339, size};
use crate::restore::RestorePlan;

/// A restore as `--json` shows it.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the fields are named as docs/guide names them
pub struct RestoreView<'a> {
    pub preview: bool,
    pub id: String,
    pub created_at: String,
    pub safety: Option<String>,
    pub disks: Vec<RestoredView<'a>>,
}

/// A disk that is overwritten.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct RestoredView<'a> {
    pub disk: &'a str,
    pub driver: &'a str,
    pub size_bytes: u64,
}

impl<'a> RestoreView<'a> {
    /// What would be done, or what was done.
    pub fn new(plan: &'a RestorePlan, is_preview: bool) -> Self {
        let disks = plan.disks.iter().map(|disk| RestoredView {
            disk: disk.serial.as_str(),
            driver: disk.driver.as_str(),
            size_bytes: disk.size_bytes,
        });
        Self {
            preview: is_preview,
            id: plan.id.to_string(),
            created_at: rfc3339(plan.created_at),
            safety: plan.safety.map(|id| id.to_string()),
            disks: disks.collect(),
        }
    }

    /// For people, a line for each fact.
    pub fn block(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            writeln!(text, "{name:<14} {value}").expect("writing to a String");
        };
        line(if self.preview { "would restore" } else { "restored" }, &self.id);
        for disk in &self.disks {
            line("disk", &format_args!("{}  {}  {}", disk.disk, size(disk.size_bytes), disk.driver));
        }
        let lost = if self.preview { "is overwritten" } else { "was overwritten" };
        line("lost", &format_args!("what was written since {} {lost}; all snapshots stay", self.created_at));
        match (&self.safety, self.preview) {
            (Some(id), true) => line("kept first", &format_args!("as the snapshot {id}")),
            (Some(id), false) => line("kept", &format_args!("as the snapshot {id}")),
            (None, _) => line("kept", &"nothing of it: --no-safety"),
        }
        text
    }
}
