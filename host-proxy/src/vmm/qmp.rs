//! QMP (QEMU `docs/interop/qmp-spec.rst`): a JSON object a line, over a Unix socket. A monitor
//! serves one client at a time, so connections are kept short. Every wait has a limit, and so has
//! every line: QEMU runs what a guest may have taken over.
//!
//! Why not the crate `qapi`: docs/decisions/0003-qmp.md.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use serde_json::{Value, json};

/// No answer of QEMU that is used here is longer, in bytes.
const LINE_LIMIT: usize = 4 << 20;

/// Why QEMU did not do it.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// There is nobody.
    #[error("connect to the monitor")]
    Connect(#[source] io::Error),
    /// Somebody, but no greeting: a monitor has one client at a time.
    #[error(
        "the monitor gave no greeting: another client (libvirt?) uses it; give hostsnapd one of its own (-qmp unix:…)"
    )]
    InUse,
    /// No answer in time.
    #[error("no answer to {command} in time")]
    TimedOut {
        /// Which.
        command: String,
    },
    /// The connection broke.
    #[error("use the monitor")]
    Io(#[source] io::Error),
    /// What came is not of QMP.
    #[error("what came is not of QMP: {0}")]
    Malformed(String),
    /// QEMU said no.
    #[error("{command}: {class}: {description}")]
    Refused {
        /// Which command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
}

impl QmpError {
    /// Whether QEMU itself is gone: nobody listens. A connection that broke says nothing of QEMU: only
    /// another one tells.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Connect(error) => {
                matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Io(_) | Self::InUse | Self::TimedOut { .. } | Self::Malformed(_) | Self::Refused { .. } => {
                false
            }
        }
    }
}

/// How every command ends.
const END: &str = "}\n";

/// A command that QEMU has been told but for its end.
pub struct Unfinished {
    qmp: Qmp,
    command: String,
}

impl Unfinished {
    /// Says the end: from now on QEMU runs it.
    pub fn run(mut self, limit: Duration) -> Result<Value, QmpError> {
        let deadline = Instant::now() + limit;
        self.qmp.send(END.as_bytes(), &[], &self.command, deadline)?;
        self.qmp.answer(&self.command, deadline)
    }
}

/// A connection to a monitor.
pub struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// The number of the last command: its answer carries it.
    last_id: u64,
}

impl Qmp {
    /// Connects, is greeted, and leaves the negotiation.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, QmpError> {
        Self::over(UnixStream::connect(path).map_err(QmpError::Connect)?, limit)
    }

    /// As `connect`, over a connection that there is.
    pub fn over(stream: UnixStream, limit: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + limit;
        let mut qmp = Self { stream, buffer: Vec::new(), last_id: 0 };
        loop {
            match qmp.line("the greeting", deadline) {
                Ok(greeting) if greeting.get("QMP").is_some() => break,
                // QEMU may still have had something for the client before.
                Ok(late) if ["event", "return", "error"].iter().any(|key| late.get(key).is_some()) => {}
                Ok(other) => return Err(QmpError::Malformed(brief(&other))),
                Err(QmpError::TimedOut { .. }) => return Err(QmpError::InUse),
                Err(error) => return Err(error),
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        qmp.execute("qmp_capabilities", json!({}), left)?;
        Ok(qmp)
    }

    /// Runs a command.
    pub fn execute(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<Value, QmpError> {
        self.run(command, arguments, &[], limit)
    }

    /// Tells QEMU a command but for its last bytes, so that little is left to do when it matters. A monitor reads byte by
    /// byte, each by a turn of its loop (QEMU `monitor/monitor.c`, `monitor_can_read`): a `transaction` of one disk
    /// takes it a millisecond to read. Dropped, it is as if it had never been said.
    pub fn say_all_but_the_end(
        mut self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Unfinished, QmpError> {
        let text = self.text_of(command, arguments);
        let (most, _) = text.split_at(text.len() - END.len());
        self.send(most.as_bytes(), &[], command, Instant::now() + limit)?;
        Ok(Unfinished { qmp: self, command: command.to_owned() })
    }

    /// Runs a command that takes over a descriptor (`add-fd`).
    pub fn execute_with_fd(
        &mut self,
        command: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.run(command, arguments, &[fd], limit)
    }

    fn run(
        &mut self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let deadline = Instant::now() + limit;
        let text = self.text_of(command, arguments);
        self.send(text.as_bytes(), fds, command, deadline)?;
        self.answer(command, deadline)
    }

    fn text_of(&mut self, command: &str, arguments: Value) -> String {
        self.last_id += 1;
        let command = json!({ "execute": command, "arguments": arguments, "id": self.last_id });
        let mut text = command.to_string();
        text.truncate(text.len() - 1);
        text + END
    }

    fn answer(&mut self, command: &str, deadline: Instant) -> Result<Value, QmpError> {
        loop {
            let mut answer = self.line(command, deadline)?;
            // Events are of no interest here: what matters is asked for. An answer to another
            // command is late: whoever asked is gone. One without a number is to what QEMU could not parse.
            if answer.get("event").is_some() || answer.get("id").is_some_and(|id| *id != self.last_id) {
                continue;
            }
            if let Some(error) = answer.get("error") {
                let field = |name: &str| error[name].as_str().unwrap_or("").to_owned();
                let command = command.to_owned();
                return Err(QmpError::Refused { command, class: field("class"), description: field("desc") });
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            return Err(QmpError::Malformed(brief(&answer)));
        }
    }

    fn send(
        &mut self,
        mut bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        command: &str,
        deadline: Instant,
    ) -> Result<(), QmpError> {
        let mut fds = fds;
        while !bytes.is_empty() {
            self.wait(PollFlags::OUT, command, deadline)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(fds));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, flags) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    fds = &[];
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(errno) => return Err(QmpError::Io(errno.into())),
            }
        }
        Ok(())
    }

    fn line(&mut self, command: &str, deadline: Instant) -> Result<Value, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=searched + end).collect();
                return serde_json::from_slice(&line).map_err(|error| QmpError::Malformed(error.to_string()));
            }
            searched = self.buffer.len();
            if searched > LINE_LIMIT {
                return Err(QmpError::Malformed(format!("a line of more than {LINE_LIMIT} bytes")));
            }
            self.wait(PollFlags::IN, command, deadline)?;
            let mut chunk = [0; 16 * 1024];
            match recv(self.stream.as_fd(), &mut chunk[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(QmpError::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok((received, _)) => self.buffer.extend_from_slice(&chunk[..received]),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(errno) => return Err(QmpError::Io(errno.into())),
            }
        }
    }

    fn wait(&self, what: PollFlags, command: &str, deadline: Instant) -> Result<(), QmpError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut [PollFd::new(&self.stream, what)], Some(&limit)) {
                Ok(0) => return Err(QmpError::TimedOut { command: command.to_owned() }),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(QmpError::Io(errno.into())),
            }
        }
    }
}

fn brief(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const GREETING: &[u8] =
        b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n{\"return\": {}, \"id\": 1}\n";

    /// A peer that says these bytes and then is silent, or hangs up.
    fn peer(says: &[u8], hangs_up: bool) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let says = says.to_vec();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(&says);
            if !hangs_up {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        (folder, path)
    }

    #[test]
    fn events_between_are_passed_over_and_errors_are_qemus_own_words() {
        let says = [
            GREETING,
            b"{\"event\": \"RESUME\"}\n{\"return\": {\"status\": \"running\"}, \"id\": 2}\n",
            b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such node\"}, \"id\": 3}\n",
        ];
        let (_folder, path) = peer(&says.concat(), false);
        let mut qmp = Qmp::connect(&path, SOON).unwrap();
        assert_eq!(qmp.execute("query-status", json!({}), SOON).unwrap()["status"], "running");
        let error = qmp.execute("blockdev-del", json!({}), SOON).unwrap_err();
        assert_eq!(error.to_string(), "blockdev-del: GenericError: no such node");
    }

    #[test]
    fn a_command_without_its_end_is_none_until_it_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(GREETING).unwrap();
            let mut chunk = [0; 1024];
            while let Ok(length @ 1..) = stream.read(&mut chunk) {
                tell.send(chunk[..length].to_vec()).unwrap();
                if chunk[..length].ends_with(b"}\n") {
                    stream.write_all(b"{\"return\": {}, \"id\": 2}\n").unwrap();
                }
            }
        });
        let heard = || String::from_utf8(told.recv_timeout(SOON).unwrap()).unwrap();
        let qmp = Qmp::connect(&path, SOON).unwrap();
        assert!(heard().contains("qmp_capabilities"));
        let command = qmp.say_all_but_the_end("transaction", json!({ "actions": [] }), SOON).unwrap();
        let most = heard();
        assert!(serde_json::from_str::<Value>(&most).is_err(), "{most}");
        command.run(SOON).unwrap();
        let whole: Value = serde_json::from_str(&(most + &heard())).unwrap();
        assert_eq!(whole, json!({ "execute": "transaction", "arguments": { "actions": [] }, "id": 2 }));
    }

    /// A run of `contract()` failed so: the client before had left while its job paused, and the event
    /// that QEMU still had for it came to the next one, before the greeting.
    #[test]
    fn what_was_meant_for_the_client_before_is_passed_over() {
        let says = [
            b"{\"event\": \"JOB_STATUS_CHANGE\"}\n{\"return\": {}, \"id\": \"7\"}\n",
            GREETING,
            b"{\"return\": \"the answer to a question of before\", \"id\": \"query-jobs\"}\n",
            b"{\"return\": {\"status\": \"running\"}, \"id\": 2}\n",
        ];
        let (_folder, path) = peer(&says.concat(), false);
        let mut qmp = Qmp::connect(&path, SOON).unwrap();
        assert_eq!(qmp.execute("query-status", json!({}), SOON).unwrap()["status"], "running");
    }

    #[test]
    fn silence_is_told_as_a_monitor_that_is_in_use() {
        let (_folder, path) = peer(b"", false);
        let error = Qmp::connect(&path, Duration::from_millis(50)).err().unwrap();
        assert!(matches!(error, QmpError::InUse), "{error}");
    }

    #[test]
    fn garbage_an_endless_line_and_a_hangup_are_errors() {
        let (_folder, path) = peer(b"hello\n", false);
        assert!(matches!(Qmp::connect(&path, SOON), Err(QmpError::Malformed(_))));
        let (_folder, path) = peer(&vec![b'x'; LINE_LIMIT + 100_000], false);
        assert!(matches!(Qmp::connect(&path, SOON), Err(QmpError::Malformed(_))));
        let (_folder, path) = peer(b"", true);
        assert!(matches!(Qmp::connect(&path, SOON), Err(QmpError::Io(_))));
    }
}
