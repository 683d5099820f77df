//! A frame: `u32` little-endian payload length, then the payload. How the bytes travel is left to
//! the two sides: the guest reads and writes blocking sockets, the host tokio's.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, CodecError, MAX_PAYLOAD};

/// The length of a frame's header, in bytes.
pub const HEADER: usize = 4;

/// A header that no frame of ours has. Nothing was allocated for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes where 1 to {MAX_PAYLOAD} are allowed")]
pub struct BadLength(pub u32);

/// How many bytes of payload follow this header.
pub fn payload_len(header: [u8; HEADER]) -> Result<usize, BadLength> {
    let claimed = u32::from_le_bytes(header);
    usize::try_from(claimed).ok().filter(|len| (1..=MAX_PAYLOAD).contains(len)).ok_or(BadLength(claimed))
}

/// The whole frame of a message, header included.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let payload = codec::encode(message)?;
    let len = u32::try_from(payload.len()).expect("a payload is at most 64 KiB");
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&payload);
    Ok(frame)
}

/// Writes the whole frame of a message into `buffer`; its length in bytes. Allocates nothing: the
/// guest sends `Cut` while it is frozen.
pub fn encode_into<T: Serialize>(message: &T, buffer: &mut [u8]) -> Result<usize, CodecError> {
    let (header, payload) = buffer.split_at_mut_checked(HEADER).ok_or(CodecError::TooLong(HEADER))?;
    let len = codec::encode_into(message, payload)?;
    header.copy_from_slice(&u32::try_from(len).map_err(|_| CodecError::TooLong(len))?.to_le_bytes());
    Ok(HEADER + len)
}

/// The message of a frame's payload.
pub fn decode<T: Serialize + DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    codec::decode(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_the_same_however_it_is_made() {
        let ping = crate::Request::Ping(300);
        let mut buffer = [0; 64];
        let len = encode_into(&ping, &mut buffer).unwrap();
        assert_eq!(buffer[..len], encode(&ping).unwrap());
        assert!(encode_into(&ping, &mut buffer[..5]).is_err());
        assert!(encode_into(&ping, &mut buffer[..3]).is_err());
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_before_anything_is_allocated() {
        assert_eq!(payload_len(0u32.to_le_bytes()), Err(BadLength(0)));
        assert_eq!(payload_len(u32::MAX.to_le_bytes()), Err(BadLength(u32::MAX)));
        assert_eq!(payload_len(65537u32.to_le_bytes()), Err(BadLength(65537)));
        assert_eq!(payload_len(65536u32.to_le_bytes()), Ok(65536));
    }
}
