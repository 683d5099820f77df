//! Why the catalog could not be used, and why a reference names no snapshot.

use std::error::Error;
use std::path::PathBuf;

use protocol::SnapshotId;

/// The catalog could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file can't be made or moved.
    #[error("{doing} {}", path.display())]
    File {
        /// What we were doing.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// It can't be opened.
    #[error("open the catalog {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// Its file system is about to be full.
    #[error("the file system of the catalog {} has only {free_bytes} bytes free", path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// How much there is.
        free_bytes: u64,
    },
    /// It is damaged. It is never overwritten.
    #[error(
        "the catalog {} is damaged ({report}); nothing is lost, the storage has it all: \
         run hostsnapd rebuild-catalog, or move the file away, and start hostsnapd again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        report: String,
    },
    /// A newer hostsnapd wrote it.
    #[error(
        "the catalog {} has schema {found}, and this hostsnapd knows up to {known}: update hostsnapd",
        path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Its schema could not be brought up to date; it is as it was.
    #[error("bring the schema of the catalog {} up to date", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite_migration::Error,
    },
    /// A statement failed; nothing of it was done.
    #[error("use the catalog")]
    Sql(#[from] rusqlite::Error),
    /// A record in it can't be read.
    #[error("read the record of the snapshot {id} in the catalog")]
    Record {
        /// Which, as the catalog's key.
        id: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// There is nothing that could be changed so.
    #[error("the catalog has no snapshot {0} that could be changed: there is none, or it is being deleted")]
    NotThere(SnapshotId),
    /// A list can't go on behind a snapshot that is long gone or was never there.
    #[error("the list can't go on behind {0}, which is gone: begin it again")]
    UnknownCursor(SnapshotId),
}

impl CatalogError {
    /// Whether the file system of the catalog has no room.
    pub fn is_full(&self) -> bool {
        let is_told_so = |error: &rusqlite::Error| {
            let code = error.sqlite_error().map(|error| error.extended_code);
            // The index of the log could not be made (`sqlite3.c`, `unixShmMap`): that is how SQLite
            // tells it of a database that it opens.
            error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
                || code == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
        };
        matches!(self, Self::NoRoom { .. }) || self.has_cause(is_told_so)
    }

    /// Whether it is damaged.
    pub fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let is_told_so = |error: &rusqlite::Error| {
            matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
        };
        matches!(self, Self::Damaged { .. }) || self.has_cause(is_told_so)
    }

    fn has_cause(&self, is_it: impl Fn(&rusqlite::Error) -> bool) -> bool {
        let first: Option<&(dyn Error + 'static)> = Some(self);
        std::iter::successors(first, |error| Error::source(*error))
            .any(|error| error.downcast_ref().is_some_and(&is_it))
    }
}

/// Why a reference names no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is none.
    #[error("there is no such snapshot")]
    NotFound,
    /// There are several.
    #[error("several snapshots begin so")]
    Ambiguous {
        /// Up to five of them, the newest first.
        candidates: Vec<SnapshotId>,
    },
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl From<rusqlite::Error> for FindError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Catalog(error.into())
    }
}
