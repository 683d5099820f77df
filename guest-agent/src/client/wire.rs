//! Frames over a blocking socket, by a deadline. The buffers are made once, so that `Cut` can be
//! sent and its answer received without allocating: the guest is frozen then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protocol::codec::{CodecError, MAX_PAYLOAD};
use protocol::frame::{self, BadLength, HEADER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Frames up to this many bytes are encoded on the stack.
const SHORT: usize = 256;

/// A connected stream socket, of whichever family.
pub struct Socket(OwnedFd);

impl From<OwnedFd> for Socket {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self(stream.into())
    }
}

impl From<vsock::VsockStream> for Socket {
    fn from(stream: vsock::VsockStream) -> Self {
        Self(stream.into())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Why no frame came or went.
#[derive(Debug, thiserror::Error)]
pub enum WireFailure {
    /// The deadline came first.
    #[error("no answer in time")]
    TimedOut,
    /// The host closed the connection.
    #[error("the host closed the connection")]
    Closed,
    /// The socket failed.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// What came is not of the protocol.
    #[error("what came is no message of this protocol ({0})")]
    Malformed(String),
}

impl From<CodecError> for WireFailure {
    fn from(error: CodecError) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<BadLength> for WireFailure {
    fn from(error: BadLength) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<rustix::io::Errno> for WireFailure {
    fn from(errno: rustix::io::Errno) -> Self {
        match errno {
            rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => Self::Closed,
            other => Self::Io(other.into()),
        }
    }
}

/// A socket with its buffers.
pub struct Wire {
    socket: Socket,
    buffer: Box<[u8]>,
    /// How much of the next frame is in the buffer.
    filled: usize,
}

impl Wire {
    /// Over this socket.
    pub fn new(socket: Socket) -> Self {
        Self { socket, buffer: vec![0; HEADER + MAX_PAYLOAD].into(), filled: 0 }
    }

    /// Sends a message; a short one without asking for memory.
    pub fn send<M: Serialize>(&mut self, message: &M, deadline: Instant) -> Result<(), WireFailure> {
        let mut short = [0; SHORT];
        match frame::encode_into(message, &mut short) {
            Ok(len) => self.send_bytes(&short[..len], deadline),
            Err(_) => self.send_bytes(&frame::encode(message)?, deadline),
        }
    }

    /// Sends bytes that are a frame. Allocates nothing.
    pub fn send_bytes(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<(), WireFailure> {
        while !bytes.is_empty() {
            self.wait(PollFlags::OUT, deadline)?;
            match send(&self.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Receives a message.
    pub fn receive<M: Serialize + DeserializeOwned>(&mut self, deadline: Instant) -> Result<M, WireFailure> {
        self.receive_bytes(deadline)?;
        self.take()
    }

    /// Waits until a whole frame is in the buffer. Allocates nothing. After `TimedOut` it can be
    /// called again and goes on where it was.
    pub fn receive_bytes(&mut self, deadline: Instant) -> Result<(), WireFailure> {
        loop {
            let wanted = match self.frame_len()? {
                Some(len) if self.filled >= len => return Ok(()),
                Some(len) => len,
                None => HEADER,
            };
            self.wait(PollFlags::IN, deadline)?;
            match recv(&self.socket, &mut self.buffer[self.filled..wanted], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(WireFailure::Closed),
                Ok((received, _)) => self.filled += received,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Decodes the frame that `receive_bytes` waited for.
    pub fn take<M: Serialize + DeserializeOwned>(&mut self) -> Result<M, WireFailure> {
        let len = self.frame_len()?.filter(|len| self.filled >= *len).ok_or(WireFailure::Closed)?;
        self.filled = 0;
        Ok(frame::decode(&self.buffer[HEADER..len])?)
    }

    fn frame_len(&self) -> Result<Option<usize>, BadLength> {
        if self.filled < HEADER {
            return Ok(None);
        }
        let header = self.buffer[..HEADER].try_into().expect("a header's length");
        Ok(Some(HEADER + frame::payload_len(header)?))
    }

    fn wait(&self, what: PollFlags, deadline: Instant) -> Result<(), WireFailure> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match poll(&mut [PollFd::new(&self.socket, what)], Some(&timespec(left))) {
                Ok(0) => return Err(WireFailure::TimedOut),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use protocol::Request;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_frame_in_pieces_is_put_together_over_several_waits() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours.into());
        let frame = frame::encode(&Request::Ping(300)).unwrap();
        theirs.write_all(&frame[..5]).unwrap();
        let early = wire.receive_bytes(Instant::now() + Duration::from_millis(10));
        assert!(matches!(early, Err(WireFailure::TimedOut)), "{early:?}");
        theirs.write_all(&frame[5..]).unwrap();
        assert_eq!(wire.receive::<Request>(soon()).unwrap(), Request::Ping(300));
    }

    #[test]
    fn two_frames_at_once_are_two_messages() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours.into());
        let frames = [1, 2].map(|n| frame::encode(&Request::Ping(n)).unwrap()).concat();
        theirs.write_all(&frames).unwrap();
        assert_eq!(wire.receive::<Request>(soon()).unwrap(), Request::Ping(1));
        assert_eq!(wire.receive::<Request>(soon()).unwrap(), Request::Ping(2));
    }

    #[test]
    fn a_closed_connection_and_a_wrong_length_are_told_apart() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let closed = Wire::new(ours.into()).receive::<Request>(soon()).unwrap_err();
        assert!(matches!(closed, WireFailure::Closed), "{closed}");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[0xff; 4]).unwrap();
        let wrong = Wire::new(ours.into()).receive::<Request>(soon()).unwrap_err();
        assert!(matches!(wrong, WireFailure::Malformed(_)), "{wrong}");
    }
}
