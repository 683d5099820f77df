//! An export lasts as long as the connection of whoever asked: the command serves, and the service sees to it that the
//! snapshot stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::text::SnapshotRef;
use protocol::{DiskSerial, ErrorCode, SnapshotId, WireError};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::{ControlReply, note};
use crate::drivers::Extent;
use crate::export;
use crate::policy;
use crate::service::{Exported, Service};
use crate::transport::{self, TransportError};

/// An extent has at most 18 bytes on the wire, a frame 64 KiB.
pub(super) const AT_ONCE: usize = 3000;

/// How often, and with which pause, is looked whether a server has ended.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// What is to be exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// Its disk; the one that it has, without.
    pub disk: Option<DiskSerial>,
    /// With what changed since this snapshot.
    pub since: Option<SnapshotRef>,
    /// Where the command will serve it; in the folder of the control socket, without.
    pub socket: Option<PathBuf>,
}

/// What is to be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its disk.
    pub disk: DiskSerial,
    /// How large that is, in bytes.
    pub size_bytes: u64,
    /// What QEMU opens: JSON.
    pub node: String,
    /// Since which snapshot the extents tell what changed.
    pub since: Option<SnapshotId>,
    /// Where to serve it.
    pub socket: PathBuf,
}

/// Shows the disk, tells where it is, and waits until the connection ends.
pub(super) async fn serve(
    service: &Arc<Service>,
    stream: &mut UnixStream,
    wanted: Wanted,
) -> Result<(), TransportError> {
    let began = Instant::now();
    let (shown, exported) = match begin(service, wanted, began).await {
        Ok(begun) => begun,
        Err(error) => return transport::send(stream, &ControlReply::Error(error)).await,
    };
    let socket = shown.socket.clone();
    let told = tell(stream, shown, exported.changed.as_deref()).await;
    if told.is_ok() {
        // It has nothing more to say.
        let _ = stream.read(&mut [0; 1]).await;
    }
    service.end_export(exported).await;
    remove_what_is_left(&socket).await;
    told
}

/// A command that was killed leaves its socket. Its server is killed with it, but may listen for a moment longer; who still
/// does after that is another.
async fn remove_what_is_left(socket: &Path) {
    for _ in 0..LOOKS {
        match export::is_left_behind(socket) {
            Ok(true) => drop(fs::remove_file(socket)),
            Ok(false) if socket.exists() => tokio::time::sleep(PAUSE).await,
            _ => return,
        }
    }
}

async fn begin(
    service: &Arc<Service>,
    wanted: Wanted,
    began: Instant,
) -> Result<(Shown, Exported), WireError> {
    let scope = policy::read_as_admin(None);
    service.freshen().await;
    let record = service.get(&scope, wanted.snapshot).await?;
    let since = match wanted.since {
        Some(since) => Some(service.get(&scope, since).await?),
        None => None,
    };
    let outcome = match policy::export_as_admin(&record, wanted.disk.as_ref(), since.as_ref()) {
        Ok(allowed) => service.export(allowed).await,
        Err(refused) => Err(refused),
    };
    note(service, "export", &record, outcome.as_ref().err(), began);
    let exported = outcome?;
    let folder =
        service.world().config.service.control_socket.parent().map(PathBuf::from).unwrap_or_default();
    let shown = Shown {
        snapshot: record.id,
        disk: exported.disk.clone(),
        size_bytes: exported.size_bytes,
        node: exported.node.to_string(),
        since: since.map(|since| since.id),
        socket: wanted.socket.unwrap_or_else(|| folder.join(format!("{}.{}.nbd", record.id, exported.index))),
    };
    Ok((shown, exported))
}

async fn tell(
    stream: &mut UnixStream,
    shown: Shown,
    changed: Option<&[Extent]>,
) -> Result<(), TransportError> {
    for some in changed.unwrap_or_default().chunks(AT_ONCE) {
        transport::send(stream, &ControlReply::Extents(shown.disk.clone(), some.to_vec())).await?;
    }
    transport::send(stream, &ControlReply::Shown(Box::new(shown))).await
}

/// The text of a failure to serve what is shown.
pub(crate) fn failed(error: &export::ExportError) -> WireError {
    use crate::exec::ExecError;
    use export::ExportError;
    let code = match error {
        ExportError::NotFree { .. } => ErrorCode::Busy,
        ExportError::Tool { source: ExecError::Missing(_), .. } => ErrorCode::Unsupported,
        _ => ErrorCode::StorageFailed,
    };
    WireError::new(code, crate::service::chain(error))
}
