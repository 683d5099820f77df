//! What every target checks.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes are an error, or a value whose one encoding they are.
pub fn error_or_canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(value) = protocol::codec::decode::<T>(bytes) {
        assert_eq!(protocol::codec::encode(&value).expect("it was decoded"), bytes);
    }
}
