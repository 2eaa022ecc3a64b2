//! Request bodies.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use gpufeed_engine::transport::{Data, OpError};
use gpufeed_io::payload::Payload;
use gpufeed_workloads::op::ErrorKind;
use http_body::{Body, Frame, SizeHint};

/// Bytes of a derived payload made at a time: larger than a socket buffer's worth, small enough for the cache.
const CHUNK: usize = 256 << 10;

/// What a request carries.
pub enum Outgoing {
    /// Nothing.
    Empty,
    /// Bytes that stand ready.
    Once(Bytes),
    /// Bytes made while they are sent.
    Derived {
        /// Whose bytes.
        payload: Payload,
        /// Offset of the next one.
        at: u64,
        /// How many are left.
        left: u64,
    },
}

impl Outgoing {
    /// Bytes that are still to be sent.
    #[must_use]
    pub const fn remaining(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Once(bytes) => bytes.len() as u64,
            Self::Derived { left, .. } => *left,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match &mut *self {
            Self::Empty => return Poll::Ready(None),
            Self::Once(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                bytes
            }
            Self::Derived { left: 0, .. } => return Poll::Ready(None),
            Self::Derived { payload, at, left } => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(CHUNK);
                let mut chunk = BytesMut::zeroed(len);
                payload.fill(*at, &mut chunk);
                *at += len as u64;
                *left -= len as u64;
                chunk.freeze()
            }
        };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining())
    }
}

/// Bytes `start..start + bytes` of what is to be written.
///
/// # Errors
/// When the payload is shorter.
pub fn outgoing(data: &Data, start: u64, bytes: u64) -> Result<Outgoing, OpError> {
    let short = |len: usize| {
        OpError::new(ErrorKind::Client, format!("a write of bytes {start}+{bytes} was given a payload of {len} bytes"))
    };
    match data {
        Data::From(all) => {
            let range = usize::try_from(start).ok().zip(usize::try_from(start + bytes).ok());
            let (start, end) = range.filter(|&(_, end)| end <= all.len()).ok_or_else(|| short(all.len()))?;
            Ok(Outgoing::Once(all.slice(start..end)))
        }
        Data::Derived(payload) => Ok(Outgoing::Derived { payload: payload.clone(), at: start, left: bytes }),
        _ if bytes == 0 => Ok(Outgoing::Empty),
        _ => Err(short(0)),
    }
}
