//! A snapshot's disk, served read-only over NBD on a Unix socket: by `qemu-storage-daemon`, a child of whoever exports. It
//! knows no catalog and no policy; where the snapshot is, and that nobody removes it meanwhile, is the service's to say.
//!
//! | module | idea |
//! |---|---|
//! | this one | what is served, and what can go wrong |
//! | `server` | the child, from its start to its end |
//! | `bitmap` | changed extents, as QEMU takes them |

mod bitmap;
mod server;

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub use server::Server;

use crate::drivers::{Exposed, Extent, Format};
use crate::exec::ExecError;
use crate::vmm::qmp::QmpError;

/// What the clients of NBD call the context that holds what changed.
pub const CHANGED: &str = "qemu:dirty-bitmap:changed";

/// What is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The export's name.
    pub name: String,
    /// What QEMU opens, as a `-blockdev` without its name.
    pub node: Value,
    /// How large the disk is, in bytes.
    pub size_bytes: u64,
    /// What changed since another snapshot, where that was asked for.
    pub changed: Option<Vec<Extent>>,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Something is at the socket's path.
    #[error("{} {why}; remove it, or name another place with --socket", .path.display())]
    NotFree {
        /// Where.
        path: PathBuf,
        /// What is there.
        why: &'static str,
    },
    /// A program of QEMU's is missing or failed.
    #[error("{doing}")]
    Tool {
        /// What we were doing.
        doing: &'static str,
        /// Why it failed.
        source: ExecError,
    },
    /// `qemu-storage-daemon` did not do it.
    #[error("{doing}{}", said(.stderr))]
    Daemon {
        /// What we were doing.
        doing: String,
        /// What it complained about.
        stderr: String,
        /// Why it failed.
        source: QmpError,
    },
    /// This host could not do it.
    #[error("{doing}")]
    Io {
        /// What we were doing.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
}

fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        said => format!(": {said}"),
    }
}

/// What QEMU opens to read what a driver shows.
pub fn node(exposed: &Exposed) -> Value {
    let (layout, file) = match exposed {
        Exposed::Node(node) => ("raw", node.clone()),
        Exposed::Path { path, format } => {
            let is_device = fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
            let driver = if is_device { "host_device" } else { "file" };
            let layout = match format {
                Format::Raw => "raw",
                Format::Qcow2 => "qcow2",
            };
            (layout, json!({ "driver": driver, "filename": path, "read-only": true }))
        }
    };
    json!({ "driver": layout, "read-only": true, "file": file })
}

/// Whether a server can be put there: nothing is, or what one that was killed has left.
pub(crate) fn is_left_behind(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            let answer = std::os::unix::net::UnixStream::connect(path);
            Ok(answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
        }
        Ok(_) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How a client is told to come in (the NBD URI specification).
pub fn uri(name: &str, socket: &Path) -> String {
    format!("nbd+unix:///{}?socket={}", encoded(name), encoded(&socket.to_string_lossy()))
}

/// RFC 3986, "Percent-Encoding"; a slash may stay as it is in a path and in a query.
fn encoded(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                all.push(byte.into());
            }
            _ => all += &format!("%{byte:02X}"),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_holds_whatever_a_disk_and_a_folder_are_called() {
        assert_eq!(
            uri("../two & more", Path::new("/run/host snap/é.sock")),
            "nbd+unix:///../two%20%26%20more?socket=/run/host%20snap/%C3%A9.sock"
        );
    }

    #[test]
    fn what_a_driver_shows_is_opened_for_reading_only() {
        let exposed = Exposed::Path { path: "/absent/a.img".into(), format: Format::Raw };
        let told = node(&exposed);
        assert_eq!((&told["driver"], &told["file"]["driver"]), (&json!("raw"), &json!("file")));
        assert_eq!((&told["read-only"], &told["file"]["read-only"]), (&json!(true), &json!(true)));
        let shown = json!({ "driver": "rbd", "pool": "p", "image": "i" });
        assert_eq!(
            node(&Exposed::Node(shown.clone())),
            json!({ "driver": "raw", "read-only": true, "file": shown })
        );
    }
}
