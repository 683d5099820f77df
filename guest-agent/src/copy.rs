//! Copying out of a snapshot: everything that makes a file what it is, and nothing by following a link that leads
//! somewhere else.
//!
//! | module | idea |
//! |---|---|
//! | [`resolve`] | a path of the original's, inside the snapshot |
//! | [`tree`] | folders, files, links, and what comes next after a failure |
//! | `data` | a file's bytes, its holes left out |
//! | `meta` | owner, mode, times, extended attributes |
//!
//! A target file gets its name when it is whole; what it replaces stays until then. A file that fails is told and
//! left out, and the others are copied, as cp(1) does it.

mod data;
mod meta;
pub mod resolve;
pub mod tree;

use std::io;
use std::path::PathBuf;

/// One file that could not be copied, or not as it was.
#[derive(Debug, thiserror::Error)]
#[error("{}: {doing}", path.display())]
pub struct Failure {
    /// The original's path.
    pub path: PathBuf,
    /// What we were doing.
    pub doing: String,
    /// Why it did not work.
    #[source]
    pub source: io::Error,
}

/// What a caller hears, as it happens.
#[derive(Debug)]
pub enum Told {
    /// So many bytes more are at the target, holes included.
    Bytes(u64),
    /// It goes on with the next.
    Failed(Failure),
}

/// How a caller listens and stops.
pub trait Listener {
    /// Something happened.
    fn hear(&mut self, told: Told);
    /// Whether to end as soon as possible.
    fn wants_end(&self) -> bool;
}
