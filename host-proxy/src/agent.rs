//! Asking a guest's daemon: the same framing, the other way round. A guest that has no daemon, or
//! one that is hostile, costs a limited time and nothing else.

use std::io;
use std::path::Path;
use std::time::Duration;

use protocol::agent::{AgentCreate, AgentReply, AgentRequest};
use protocol::message::Progress;
use protocol::text::Name;
use protocol::{ErrorCode, PORT, SnapshotRecord, VERSIONS, WireError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_vsock::{VsockAddr, VsockStream};

use crate::config::{PeerId, Vm};
use crate::transport::{self, Stream, TransportError};

/// How long a guest's daemon may take to be reached and to greet.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long it may be silent while a snapshot is under way: hooks may be slow.
const CREATE_SILENCE: Duration = Duration::from_secs(600);

/// A conversation with a guest's daemon.
pub struct Agent {
    stream: Box<dyn Stream>,
    vm: Name,
    version: Name,
}

impl Agent {
    /// Connects and greets.
    pub async fn connect(vm: &Vm) -> Result<Self, WireError> {
        let unreachable = |why: &str| {
            WireError::new(ErrorCode::Unreachable, format!("no agent answers in {}: {why}", vm.name))
                .hint("in the guest: systemctl status hostsnap-agent, hostsnap doctor")
        };
        let stream = timeout(CONNECT_LIMIT, open(vm))
            .await
            .map_err(|_| unreachable("nothing came in time"))?
            .map_err(|error| unreachable(&error.to_string()))?;
        let mut agent = Self { stream, vm: vm.name.clone(), version: crate::session::own_version() };
        match agent.ask(&AgentRequest::Hello(VERSIONS), CONNECT_LIMIT).await? {
            AgentReply::Hello { agent_version, .. } => agent.version = agent_version,
            AgentReply::Error(error) => return Err(error),
            other => return Err(agent.unexpected(&other)),
        }
        Ok(agent)
    }

    /// What the agent says its version is.
    pub const fn version(&self) -> &Name {
        &self.version
    }

    /// Whether it is there.
    pub async fn ping(&mut self) -> Result<(), WireError> {
        match self.ask(&AgentRequest::Ping(1), CONNECT_LIMIT).await? {
            AgentReply::Pong(1) => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// What it is doing; it answers while frozen too.
    pub async fn status(&mut self) -> Result<protocol::agent::AgentStatus, WireError> {
        match self.ask(&AgentRequest::Status, CONNECT_LIMIT).await? {
            AgentReply::Status(status) => Ok(status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Lets it run its own create flow; it will ask this host in turn.
    pub async fn create(
        &mut self,
        create: AgentCreate,
        mut tell: impl FnMut(Progress),
    ) -> Result<Box<SnapshotRecord>, WireError> {
        let mut reply = self.ask(&AgentRequest::Create(create), CREATE_SILENCE).await?;
        loop {
            match reply {
                AgentReply::Progress(progress) => tell(progress),
                AgentReply::Created(record) => return Ok(record),
                AgentReply::Error(error) => return Err(error),
                other => return Err(self.unexpected(&other)),
            }
            reply = self.receive(CREATE_SILENCE).await?;
        }
    }

    async fn ask(&mut self, request: &AgentRequest, limit: Duration) -> Result<AgentReply, WireError> {
        transport::send(&mut self.stream, request).await.map_err(|error| self.broken(&error))?;
        self.receive(limit).await
    }

    async fn receive(&mut self, limit: Duration) -> Result<AgentReply, WireError> {
        transport::receive(&mut self.stream, limit).await.map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &TransportError) -> WireError {
        let why = crate::service::chain(error);
        WireError::new(ErrorCode::Unreachable, format!("the agent in {} did not answer: {why}", self.vm))
    }

    fn unexpected(&self, reply: &AgentReply) -> WireError {
        let kind = std::mem::discriminant(reply);
        WireError::new(
            ErrorCode::Malformed,
            format!("the agent in {} gave another answer: {kind:?}", self.vm),
        )
    }
}

async fn open(vm: &Vm) -> io::Result<Box<dyn Stream>> {
    match &vm.peer {
        PeerId::Cid(cid) => Ok(Box::new(VsockStream::connect(VsockAddr::new(*cid, PORT)).await?)),
        PeerId::Socket(path) => Ok(Box::new(hybrid(path).await?)),
        PeerId::Nobody => Err(io::Error::other("it does not run, or has no vsock device")),
    }
}

/// Host-initiated connections of a hybrid vsock: `CONNECT port`, answered by `OK port` (Firecracker,
/// `docs/vsock.md`).
async fn hybrid(path: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).await?;
    let mut line = Vec::with_capacity(32);
    loop {
        let byte =
            stream.read_u8().await.map_err(|_| io::Error::other("nobody listens on the agent's port"))?;
        if byte == b'\n' {
            break;
        }
        line.push(byte);
        if line.len() == 32 {
            return Err(io::Error::other("the vsock device gave no answer of its kind"));
        }
    }
    if line.starts_with(b"OK ") { Ok(stream) } else { Err(io::Error::other("the vsock device refused")) }
}
