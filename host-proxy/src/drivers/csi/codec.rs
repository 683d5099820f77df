//! How tonic takes our messages: a request is encoded, an answer comes as bytes. So what can't be decoded is told
//! from a plugin that says INTERNAL: after the one nobody knows what was done.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::{Buf, Bytes};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Requests of this type.
pub(super) struct Bytewise<Q>(PhantomData<fn(Q)>);

impl<Q> Default for Bytewise<Q> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Q: Message + 'static> Codec for Bytewise<Q> {
    type Encode = Q;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Whole;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Whole {
        Whole
    }
}

impl<Q: Message> Encoder for Bytewise<Q> {
    type Item = Q;
    type Error = Status;

    fn encode(&mut self, item: Q, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(dst).map_err(|error| Status::internal(error.to_string()))
    }
}

/// An answer as it came; tonic bounds it to 4 MiB.
pub(super) struct Whole;

impl Decoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}
