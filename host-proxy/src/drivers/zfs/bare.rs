//! The bare call of libzfs_core, for the benchmark that holds the driver against it.

use std::collections::BTreeSet;

use super::{SYNC_LIMIT, core};
use crate::drivers::DriverError;

/// A snapshot that is to be made, and nothing around it.
pub struct BareCut(core::Cut);

impl BareCut {
    /// Of this name, once the pool has written down what is dirty, as `prepare` has it done.
    pub fn of(pool: &str, name: &str) -> Result<Self, DriverError> {
        core::sync(pool, SYNC_LIMIT)?;
        core::Cut::new(BTreeSet::from([name.to_owned()]), &[]).map(Self)
    }

    /// `lzc_snapshot`, on this thread and without a limit.
    pub fn make(self) -> Result<(), DriverError> {
        self.0.make_here()
    }
}

/// Removes such a snapshot.
pub fn remove(name: &str) -> Result<(), DriverError> {
    core::destroy(&BTreeSet::from([name.to_owned()]))
}
