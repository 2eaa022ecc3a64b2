//! Bodies that are a run's payload are remembered, not held.
//!
//! What a client writes is compared with the payload that the run's seed gives the object's name. Where it is that
//! payload, its place is kept and its bytes are made again on GET: data sets larger than memory. Anything else
//! (an index, a manifest, another tool's data) is held like in the memory store, so a GET never returns bytes that were
//! not written.

use bytes::Bytes;
use gpufeed_io::arena::Arena;
use gpufeed_io::payload::{Payload, Payloads};
use xxhash_rust::xxh3::xxh3_64;

/// Largest piece of payload made at once, in bytes.
const PIECE_BYTES: usize = 128 * 1024;
/// Pieces kept for reuse: 8 MiB, which stays near the processor.
const PIECES: usize = 64;
/// Below this, a fresh allocation is cheaper than a piece.
const SMALL_BYTES: usize = 16 * 1024;

/// The payload of an object, and a hash of its name to tell it from others.
#[derive(Debug, Clone)]
pub(super) struct Source {
    payload: Payload,
    name: u64,
}

/// A stretch of some object's payload.
#[derive(Debug, Clone)]
pub(super) struct Stretch {
    source: Source,
    offset: u64,
    pub(super) len: u64,
}

impl Stretch {
    /// The bytes from `from` within the stretch, `len` long.
    pub(super) fn part(&self, from: u64, len: u64) -> Self {
        Self { source: self.source.clone(), offset: self.offset + from, len }
    }

    /// Whether `next` goes on where this one ends.
    pub(super) fn is_followed_by(&self, next: &Self) -> bool {
        self.source.name == next.source.name && self.offset + self.len == next.offset
    }
}

/// Recognizes payload and makes it.
#[derive(Debug, Clone)]
pub struct Synth {
    payloads: Payloads,
    pieces: Arena,
}

impl Synth {
    /// For the payloads of `seed`.
    ///
    /// # Errors
    /// When memory for the pieces cannot be had.
    pub fn new(seed: u64) -> Result<Self, gpufeed_io::arena::ArenaTooLarge> {
        Ok(Self { payloads: Payloads::new(seed), pieces: Arena::new(PIECE_BYTES, PIECES)? })
    }

    /// The payload of the object called `key`.
    pub(super) fn source(&self, key: &str) -> Source {
        Source { payload: self.payloads.of(key), name: xxh3_64(key.as_bytes()) }
    }

    /// The stretch that `bytes` are, if they are the payload of `source` from `offset` on.
    pub(super) fn recognize(source: &Source, offset: u64, bytes: &[u8]) -> Option<Stretch> {
        source.payload.verify(offset, bytes).ok()?;
        Some(Stretch { source: source.clone(), offset, len: bytes.len() as u64 })
    }

    /// The next bytes of `stretch` from `from` on, at most `most`.
    pub(super) fn make(&self, stretch: &Stretch, from: u64, most: u64) -> Bytes {
        let len = usize::try_from(most).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let offset = stretch.offset + from;
        if len > SMALL_BYTES
            && let Some(mut piece) = self.pieces.take()
        {
            piece.set_len(len);
            stretch.source.payload.fill(offset, &mut piece);
            return piece.freeze();
        }
        let mut bytes = vec![0; len];
        stretch.source.payload.fill(offset, &mut bytes);
        bytes.into()
    }
}
