//! The main job, shown: `tests/demo` does it, with the harness of the tests.

use anyhow::Result;

use crate::setup;

/// Shows it, by this driver.
pub(crate) fn run(driver: &str) -> Result<()> {
    setup::all()?;
    setup::cargo(&["run", "--quiet", "-p", "tests", "--bin", "demo", "--", driver], &[])
}
