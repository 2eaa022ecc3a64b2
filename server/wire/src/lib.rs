//! The KV block protocol (`PROTOCOL.md`): greeting, frames and their authentication. No I/O, no clocks, no randomness.
//!
//! Everything that reads bytes from outside returns an error or asks for more; it never panics and never allocates what a
//! peer tells it to.

pub mod frame;
pub mod greeting;
pub mod keys;

#[cfg(test)]
mod tests;

/// The first bytes of each message of the greeting.
pub const MAGIC: [u8; 4] = *b"GFKV";
/// The version spoken here.
pub const VERSION: u8 = 1;
/// Port of a server, where nobody says otherwise.
pub const PORT: u16 = 9900;
/// Largest block there may be, in bytes.
pub const BLOCK_BYTES: u64 = 64 << 20;
/// Longest key, in bytes.
pub const KEY_BYTES: usize = 1024;
/// Most keys of one request.
pub const BATCH_KEYS: usize = 1024;
/// Most meta data of one frame, in bytes, that anybody may allow: a full batch of keys of 255 bytes.
pub const META_BYTES: u32 = 256 << 10;

/// How a request went, or why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u16)]
pub enum Status {
    /// Done.
    #[error("ok")]
    Ok = 0,
    /// No block has this key.
    #[error("not found")]
    NotFound = 1,
    /// A block has this key already.
    #[error("exists")]
    Exists = 2,
    /// Larger than the server takes.
    #[error("too large")]
    TooLarge = 3,
    /// Not what the protocol says.
    #[error("bad request")]
    BadRequest = 4,
    /// Unknown access key or wrong secret.
    #[error("unauthorized")]
    Unauthorized = 5,
    /// No such right on this bucket.
    #[error("forbidden")]
    Forbidden = 6,
    /// No version in common.
    #[error("no protocol version in common")]
    Version = 7,
    /// The payload does not have its hash.
    #[error("corrupt")]
    Corrupt = 8,
    /// Too much at once.
    #[error("busy")]
    Busy = 9,
    /// No room, and nothing may be evicted.
    #[error("full")]
    Full = 10,
    /// A wrong authentication code.
    #[error("forged")]
    Forged = 11,
    /// A sequence number that is not the next.
    #[error("replayed")]
    Replayed = 12,
    /// The server failed.
    #[error("internal error")]
    Internal = 13,
    /// The server drains.
    #[error("closing")]
    Closing = 14,
}

impl Status {
    /// Every status, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::Ok,
        Self::NotFound,
        Self::Exists,
        Self::TooLarge,
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::Version,
        Self::Corrupt,
        Self::Busy,
        Self::Full,
        Self::Forged,
        Self::Replayed,
        Self::Internal,
        Self::Closing,
    ];

    /// The status with this number.
    ///
    /// # Errors
    /// [`Malformed`] where there is none.
    pub fn of(number: u16) -> Result<Self, Malformed> {
        Self::ALL.get(usize::from(number)).copied().ok_or(Malformed("status"))
    }
}

/// Bytes that are not of this protocol; names the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// What a connection may ask for, as the server says in its Welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most requests in flight.
    pub requests: u32,
    /// Most meta data of a frame, in bytes; at most [`META_BYTES`].
    pub meta_bytes: u32,
    /// Most bytes of a block; at most [`BLOCK_BYTES`].
    pub block_bytes: u64,
    /// Most payload bytes of requests in flight, both ways together.
    pub window_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 1024, meta_bytes: META_BYTES, block_bytes: BLOCK_BYTES, window_bytes: 256 << 20 }
    }
}

/// A number at a place of a message whose length is known.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Malformed> {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().ok_or(Malformed("length"))
}
