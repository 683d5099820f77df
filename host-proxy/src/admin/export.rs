//! `hostsnapd export`: asks the service to show a disk of a snapshot, and serves it until somebody ends one of the three:
//! this command, the service, the child that serves.

use std::path::PathBuf;

use protocol::text::SnapshotRef;
use protocol::view;
use protocol::{DiskSerial, ErrorCode, WireError};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use super::{SILENCE_LIMIT, broken, connect, out, unexpected};
use crate::cli::{Ask, Output};
use crate::control::export::{Shown, Wanted, failed};
use crate::control::{ControlReply, ControlRequest};
use crate::drivers::Extent;
use crate::export::{CHANGED, Content, Server, uri};
use crate::transport;

/// What is exported, and where.
pub(super) struct Options {
    pub(super) snapshot: SnapshotRef,
    pub(super) disk: Option<DiskSerial>,
    pub(super) since: Option<SnapshotRef>,
    pub(super) socket: Option<PathBuf>,
}

pub(super) async fn run(ask: &Ask, options: Options) -> Result<(), WireError> {
    let Options { snapshot, disk, since, socket } = options;
    let socket = socket.map(std::path::absolute).transpose().map_err(|error| {
        WireError::new(ErrorCode::BadRequest, format!("find out where --socket is: {error}"))
    })?;
    // Before anything is begun: what comes then ends it in good order.
    let mut signals = Signals::listen()?;
    let mut stream = connect(&ask.control).await?;
    let wanted = Wanted { snapshot, disk, since, socket };
    transport::send(&mut stream, &ControlRequest::Export(wanted)).await.map_err(|error| broken(&error))?;
    let (shown, extents) = receive(&mut stream).await?;
    let content = Content {
        name: shown.disk.to_string(),
        node: serde_json::from_str(&shown.node)
            .map_err(|_| WireError::new(ErrorCode::Malformed, "hostsnapd tells of a disk that is none"))?,
        size_bytes: shown.size_bytes,
        changed: shown.since.map(|_| extents),
    };
    let mut server = Server::start(&content, &shown.socket).map_err(|error| failed(&error))?;
    print(&shown, content.changed.as_deref(), ask.output);
    let stderr = server.stderr().expect("it is piped");
    tokio::select! {
        () = signals.any() => Ok(()),
        _ = stream.read_u8() => Err(WireError::new(
            ErrorCode::Unreachable,
            "hostsnapd has ended, and the export with it",
        ).hint("export it again when the service runs: systemctl status hostsnapd")),
        said = words_until_its_end(stderr) => Err(WireError::new(
            ErrorCode::StorageFailed,
            format!("qemu-storage-daemon has ended, and the export with it: {said}"),
        )),
    }
}

async fn receive(stream: &mut UnixStream) -> Result<(Shown, Vec<Extent>), WireError> {
    let mut extents = Vec::new();
    loop {
        match transport::receive(stream, SILENCE_LIMIT).await.map_err(|error| broken(&error))? {
            ControlReply::Extents(_, some) => extents.extend(some),
            ControlReply::Shown(shown) => return Ok((*shown, extents)),
            ControlReply::Error(error) => return Err(error),
            other => return Err(unexpected(&other)),
        }
    }
}

fn print(shown: &Shown, changed: Option<&[Extent]>, output: Output) {
    let uri = uri(shown.disk.as_str(), &shown.socket);
    let changed_bytes = changed.map(|extents| extents.iter().map(|extent| extent.length).sum::<u64>());
    if output.json {
        let contexts: Vec<_> = ["base:allocation"].into_iter().chain(changed.map(|_| CHANGED)).collect();
        return super::json(
            &json!({ "snapshot": shown.snapshot, "disk": shown.disk, "size_bytes": shown.size_bytes,
                     "socket": shown.socket, "uri": uri, "contexts": contexts, "since": shown.since,
                     "changed_bytes": changed_bytes }),
            output,
        );
    }
    let mut text = format!(
        "snapshot  {}\ndisk      {}  {}\nuri       {uri}\ncontext   base:allocation\n",
        shown.snapshot,
        shown.disk,
        view::size(shown.size_bytes)
    );
    if let (Some(since), Some(bytes)) = (shown.since, changed_bytes) {
        text += &format!("context   {CHANGED}  {} since {since}\n", view::size(bytes));
    }
    out(&(text + "served until this command ends (Ctrl-C)\n"));
}

/// What asks the command to end.
struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    fn listen() -> Result<Self, WireError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| WireError::new(ErrorCode::Internal, format!("listen for signals: {error}")))
        };
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The last of what the child said.
async fn words_until_its_end(stderr: std::process::ChildStderr) -> String {
    const KEPT: usize = 2000;
    let mut said = Vec::new();
    if let Ok(mut pipe) = pipe::Receiver::from_owned_fd(stderr.into()) {
        let mut chunk = [0; 1024];
        while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
            said.extend_from_slice(&chunk[..read]);
            said.drain(..said.len().saturating_sub(KEPT));
        }
    }
    let plain = String::from_utf8_lossy(&said).replace(char::is_control, " ");
    if plain.trim().is_empty() { "it said nothing".to_owned() } else { plain.trim().to_owned() }
}
