//! Frames over tokio's streams, with a time limit on every wait. Whatever the other side does, a
//! frame costs at most its bound in memory and its limit in time.

use std::io;
use std::pin::pin;
use std::time::Duration;

use protocol::codec::CodecError;
use protocol::frame::{self, BadLength};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

/// A stream that a conversation can run over: AF_VSOCK or a Unix socket.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// How long the other side may take to send the rest of a frame that it began, or to make room for
/// one of ours.
pub const FRAME_LIMIT: Duration = Duration::from_secs(5);

/// How long is looked once more when the time is over.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// Why no message came or went.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The other side closed the connection between two frames.
    #[error("the connection was closed")]
    Closed,
    /// Nothing came within the limit.
    #[error("nothing came within {} s", .0.as_secs())]
    Silent(Duration),
    /// A frame was begun and not finished, or not taken, in time.
    #[error("a frame was not finished within {} s", FRAME_LIMIT.as_secs())]
    Stalled,
    /// The header is none of ours.
    #[error(transparent)]
    BadLength(#[from] BadLength),
    /// The payload is no message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The socket failed.
    #[error("use the connection")]
    Io(#[source] io::Error),
}

impl TransportError {
    /// Whether the other side sent something that is not of the protocol, as opposed to going away.
    pub const fn is_malformed(&self) -> bool {
        match self {
            Self::BadLength(_) | Self::Codec(_) => true,
            Self::Closed | Self::Silent(_) | Self::Stalled | Self::Io(_) => false,
        }
    }
}

/// As tokio's `timeout`. A service that was stopped itself, by a signal or with its machine, finds its time over before it
/// has looked what came meanwhile: so it looks once more.
async fn within<F: Future>(limit: Duration, wanted: F) -> Result<F::Output, Elapsed> {
    let mut wanted = pin!(wanted);
    match timeout(limit, &mut wanted).await {
        Err(_) => timeout(LAST_LOOK, wanted).await,
        done => done,
    }
}

/// Waits at most `limit` for the next frame to begin, then reads it.
pub async fn receive<M: Serialize + DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    limit: Duration,
) -> Result<M, TransportError> {
    let mut header = [0; frame::HEADER];
    match within(limit, stream.read(&mut header[..1])).await {
        Err(_) => return Err(TransportError::Silent(limit)),
        Ok(Ok(0)) => return Err(TransportError::Closed),
        Ok(Ok(_)) => {}
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
            return Err(TransportError::Closed);
        }
        Ok(Err(error)) => return Err(TransportError::Io(error)),
    }
    let rest = async {
        stream.read_exact(&mut header[1..]).await.map_err(TransportError::Io)?;
        let mut payload = vec![0; frame::payload_len(header)?];
        stream.read_exact(&mut payload).await.map_err(TransportError::Io)?;
        Ok::<_, TransportError>(payload)
    };
    let payload = within(FRAME_LIMIT, rest).await.map_err(|_| TransportError::Stalled)??;
    Ok(frame::decode(&payload)?)
}

/// Sends one message.
pub async fn send<M: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> Result<(), TransportError> {
    let bytes = frame::encode(message)?;
    let write = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    within(FRAME_LIMIT, write).await.map_err(|_| TransportError::Stalled)?.map_err(TransportError::Io)
}

#[cfg(test)]
mod tests {
    use protocol::Request;
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_sent_is_received() {
        let (mut a, mut b) = duplex(64);
        send(&mut a, &Request::Ping(7)).await.unwrap();
        assert_eq!(receive::<Request>(&mut b, FRAME_LIMIT).await.unwrap(), Request::Ping(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_never_ends_is_given_up() {
        let (mut a, mut b) = duplex(64);
        a.write_all(&[9, 0, 0, 0, 1]).await.unwrap();
        let error = receive::<Request>(&mut b, FRAME_LIMIT).await.unwrap_err();
        assert!(matches!(error, TransportError::Stalled), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_a_closed_connection_are_told_apart() {
        let (a, mut b) = duplex(64);
        let silent = receive::<Request>(&mut b, FRAME_LIMIT).await.unwrap_err();
        assert!(matches!(silent, TransportError::Silent(_)), "{silent}");
        drop(a);
        let closed = receive::<Request>(&mut b, FRAME_LIMIT).await.unwrap_err();
        assert!(matches!(closed, TransportError::Closed), "{closed}");
    }

    #[tokio::test]
    async fn a_length_over_the_bound_is_malformed_and_nothing_is_read_for_it() {
        let (mut a, mut b) = duplex(64);
        a.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        let error = receive::<Request>(&mut b, FRAME_LIMIT).await.unwrap_err();
        assert!(error.is_malformed(), "{error}");
    }
}
