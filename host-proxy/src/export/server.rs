//! The child that serves. It ends with whoever started it, however that ends, and leaves nothing: what it is told comes
//! by a socket without a name, and what changed lies in memory.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use rustix::io::FdFlags;
use serde_json::{Value, json};

use super::bitmap::{self, Bitmap};
use super::{Content, ExportError, is_left_behind};
use crate::exec::{self, Tool};
use crate::vmm::qmp::{Qmp, QmpError};

/// How long it may take to open a disk, and to do what it is told.
const LIMIT: Duration = Duration::from_secs(60);
/// What of its complaints is repeated, in bytes.
const COMPLAINT: u64 = 2000;
const DISK: &str = "disk";
const CHANGES: &str = "changes";

/// A running `qemu-storage-daemon`. Ended when dropped.
pub struct Server {
    child: Child,
    socket: PathBuf,
    /// Not closed, and not read: it may tell of an event.
    _monitor: Qmp,
}

impl Server {
    /// Serves at this socket, which only root can use. It ends with the thread that starts it (prctl(2),
    /// `PR_SET_PDEATHSIG`).
    pub fn start(content: &Content, socket: &Path) -> Result<Self, ExportError> {
        refuse_what_is_there(socket)?;
        let changed = content.changed.as_deref().map(|extents| Bitmap::of(extents, content.size_bytes));
        let changed = changed.transpose()?;
        let tool = Tool::find("qemu-storage-daemon").map_err(|source| {
            let doing = "look for qemu-storage-daemon (install qemu-system-common or qemu-utils)";
            ExportError::Tool { doing, source }
        })?;
        let (mut child, ours) = spawn(&tool, content, changed.as_ref())
            .map_err(|source| ExportError::Io { doing: format!("start {}", tool.name()), source })?;
        let told = Qmp::over(ours, LIMIT).and_then(|mut monitor| {
            tell(&mut monitor, content, changed.as_ref(), socket)?;
            Ok(monitor)
        });
        match told {
            Ok(monitor) => {
                let server = Self { child, socket: socket.to_owned(), _monitor: monitor };
                let closed = fs::set_permissions(socket, Permissions::from_mode(0o600));
                closed.map(|()| server).map_err(|source| ExportError::Io {
                    doing: format!("keep others away from {}", socket.display()),
                    source,
                })
            }
            Err(source) => {
                exec::end(&mut child);
                remove(socket);
                let mut stderr = String::new();
                if let Some(said) = child.stderr.take() {
                    let _ = said.take(COMPLAINT).read_to_string(&mut stderr);
                }
                Err(ExportError::Daemon { doing: format!("serve the disk {}", content.name), stderr, source })
            }
        }
    }

    /// What it complains about. At its end, when the child is gone.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        exec::end(&mut self.child);
        remove(&self.socket);
    }
}

/// QEMU would replace whatever is there.
fn refuse_what_is_there(socket: &Path) -> Result<(), ExportError> {
    let path = socket.to_owned();
    match is_left_behind(socket) {
        Ok(true) => Ok(()),
        Ok(false) => Err(ExportError::NotFree { path, why: "is in use" }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ExportError::Io { doing: format!("look at {}", socket.display()), source }),
    }
}

/// QEMU does not, when it is ended by a signal.
fn remove(socket: &Path) {
    if is_left_behind(socket).unwrap_or(false) {
        let _ = fs::remove_file(socket);
    }
}

fn spawn(tool: &Tool, content: &Content, changed: Option<&Bitmap>) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let named = |mut node: Value, name: &str| {
        node["node-name"] = json!(name);
        node.to_string()
    };
    let mut command = tool.command();
    command.arg("--blockdev").arg(named(content.node.clone(), DISK));
    if let Some(bitmap) = changed {
        command.arg("--blockdev").arg(named(bitmap.node(), CHANGES));
    }
    command.arg("--chardev").arg(format!("socket,id=monitor,fd={}", theirs.as_raw_fd()));
    command.args(["--monitor", "chardev=monitor,mode=control"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    exec::end_with_us(&mut command);
    Ok((command.spawn()?, ours))
}

fn tell(
    monitor: &mut Qmp,
    content: &Content,
    changed: Option<&Bitmap>,
    socket: &Path,
) -> Result<(), QmpError> {
    let mut execute = |command, arguments| monitor.execute(command, arguments, LIMIT).map(drop);
    let mut export = json!({
        "id": "export", "type": "nbd", "node-name": DISK, "name": content.name, "writable": false,
    });
    if let Some(bitmap) = changed {
        // Of what is only read QEMU serves a bitmap that does not look any more.
        let mut add = json!({ "node": DISK, "name": bitmap::NAME, "disabled": true });
        add["granularity"] = json!(bitmap.granularity);
        execute("block-dirty-bitmap-add", add)?;
        let from = json!([{ "node": CHANGES, "name": bitmap::NAME }]);
        execute(
            "block-dirty-bitmap-merge",
            json!({ "node": DISK, "target": bitmap::NAME, "bitmaps": from }),
        )?;
        execute("blockdev-del", json!({ "node-name": CHANGES }))?;
        export["bitmaps"] = json!([bitmap::NAME]);
    }
    execute("nbd-server-start", json!({ "addr": { "type": "unix", "data": { "path": socket } } }))?;
    execute("block-export-add", export)
}
