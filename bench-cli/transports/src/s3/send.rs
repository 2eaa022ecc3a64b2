//! Request bodies.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use gpufeed_io::payload::Payload;
use http_body::{Body, Frame, SizeHint};

/// Bytes of a derived payload made at a time: larger than a socket buffer's worth, small enough for the cache.
const CHUNK: usize = 256 << 10;

/// What a request carries.
pub(crate) enum Outgoing {
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
    pub(crate) const fn remaining(&self) -> u64 {
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
