//! Values to bytes and back. The only module that knows bincode: it is unmaintained
//! (RUSTSEC-2025-0141, see `deny.toml`), and a wire-compatible crate must be able to take its place.
//!
//! Format: bincode 2 "standard" (variable-length integers, little endian), with a limit of
//! [`MAX_PAYLOAD`] bytes. bincode itself accepts integers that are longer than they need be and
//! bytes behind the value; here a value has exactly one encoding.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_PAYLOAD>> =
    bincode::config::standard().with_limit::<MAX_PAYLOAD>();

/// Why bytes are no value, or a value has no bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value needs more bytes than a frame holds, or can't be encoded at all.
    #[error("encode a message of at most {MAX_PAYLOAD} bytes")]
    Encode(#[source] bincode::error::EncodeError),
    /// The bytes are not a value of this type.
    #[error("decode a message")]
    Decode(#[source] bincode::error::DecodeError),
    /// More bytes than a payload may have.
    #[error("decode a message: {0} bytes where at most {MAX_PAYLOAD} are allowed")]
    TooLong(usize),
    /// There are bytes behind the value.
    #[error("decode a message: {0} bytes behind its end")]
    Trailing(usize),
    /// The value has another, canonical encoding.
    #[error("decode a message: the bytes are not its canonical encoding")]
    NotCanonical,
}

/// The one encoding of `value`.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, CONFIG).map_err(CodecError::Encode)?;
    match bytes.len() {
        // bincode applies its limit to decoding only.
        len if len > MAX_PAYLOAD => Err(CodecError::TooLong(len)),
        _ => Ok(bytes),
    }
}

/// Writes the one encoding of `value` into `buffer`; its length in bytes. Allocates nothing.
pub fn encode_into<T: Serialize>(value: &T, buffer: &mut [u8]) -> Result<usize, CodecError> {
    bincode::serde::encode_into_slice(value, buffer, CONFIG).map_err(CodecError::Encode)
}

/// The value whose one encoding is `bytes`, all of them.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_PAYLOAD {
        return Err(CodecError::TooLong(bytes.len()));
    }
    let (value, used) =
        bincode::serde::decode_from_slice::<T, _>(bytes, CONFIG).map_err(CodecError::Decode)?;
    if used != bytes.len() {
        return Err(CodecError::Trailing(bytes.len() - used));
    }
    if encode(&value)? != bytes {
        return Err(CodecError::NotCanonical);
    }
    Ok(value)
}
