//! The guest's end of a conversation, at the socket of a hybrid vsock: what it says, byte by byte.

#[path = "asking.rs"]
mod asking;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use protocol::frame::{self, HEADER};
use protocol::message::{Conclude, Cut, Hello, Prepare, Prepared, Reply, Request};
use protocol::record::Timing;
use protocol::{BootId, SnapshotRecord, Ticket, VERSIONS, WireError};

pub(crate) use asking::{held, request_for};

/// How long the host may take for an answer.
const LIMIT: Duration = Duration::from_secs(60);

/// The guest's end of a conversation.
pub(crate) struct Guest(UnixStream);

impl Guest {
    /// A conversation at this socket, in which nothing was said. A service that was just started listens in a moment.
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut connected = UnixStream::connect(socket);
        harness::wait::wait_until("the service listens", LIMIT, || {
            if connected.is_err() {
                connected = UnixStream::connect(socket);
            }
            connected.is_ok()
        });
        let stream = connected.expect("it was waited for");
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self(stream)
    }

    /// A host that is gone is noticed by who listens for the answer.
    pub(crate) fn send(&mut self, request: &Request) {
        match self.0.write_all(&frame::encode(request).unwrap()) {
            Err(error) if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                panic!("say something to the host: {error}")
            }
            _ => {}
        }
    }

    /// A header that promises more than comes.
    pub(crate) fn sends_half_a_message(&mut self) {
        self.0.write_all(&[9, 0, 0, 0, 1]).unwrap();
    }

    /// Whether it may speak; it greets, and is not heard again.
    pub(crate) fn let_in(mut self) -> bool {
        let hello = hello(None);
        self.0.write_all(&frame::encode(&hello).unwrap()).is_ok()
            && matches!(self.hears(), Some(Reply::Hello(_)))
    }

    /// `None` where the host hung up.
    pub(crate) fn hears(&mut self) -> Option<Reply> {
        let mut header = [0; HEADER];
        match self.0.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return None;
            }
            Err(error) => panic!("neither an answer nor an end: {error}"),
        }
        let mut payload = vec![0; frame::payload_len(header).unwrap()];
        self.0.read_exact(&mut payload).unwrap();
        Some(frame::decode(&payload).unwrap())
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        self.send(request);
        self.hears().expect("an answer")
    }

    /// As `ask`; what the host refuses is an error.
    pub(crate) fn asks(&mut self, request: &Request) -> Result<Reply, WireError> {
        match self.ask(request) {
            Reply::Error(error) => Err(error),
            reply => Ok(reply),
        }
    }

    pub(crate) fn prepare(&mut self, prepare: &Prepare) -> Result<Prepared, WireError> {
        match self.asks(&Request::Prepare(prepare.clone()))? {
            Reply::Prepared(prepared) => Ok(prepared),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn take(&mut self, prepare: &Prepare) -> Result<Box<SnapshotRecord>, WireError> {
        let prepared = match self.asks(&Request::Prepare(prepare.clone()))? {
            Reply::Prepared(prepared) => prepared,
            Reply::Existing(record) => return Ok(record),
            other => panic!("{other:?}"),
        };
        self.asks(&cut(prepared.ticket))?;
        self.send(&conclude(prepared.ticket));
        loop {
            match self.hears().expect("an answer") {
                Reply::Progress(_) => {}
                Reply::Snapshot(record) => return Ok(record),
                Reply::Error(error) => return Err(error),
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) fn hello(boot_id: Option<BootId>) -> Request {
    let agent_version = "0.0.1".parse().unwrap();
    Request::Hello(Hello { versions: VERSIONS, agent_version, boot_id, vm_uuid: None })
}

pub(crate) fn cut(ticket: Ticket) -> Request {
    Request::Cut(Cut { ticket, within_us: 60_000_000 })
}

/// The guest was frozen through the cut.
pub(crate) fn conclude(ticket: Ticket) -> Request {
    Request::Conclude(Conclude { ticket, evidence: held(), timing: Timing::default(), wait: true })
}
