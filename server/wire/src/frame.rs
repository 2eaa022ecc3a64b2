//! Frames: the header, its authentication code, and the hash of the payload.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use xxhash_rust::xxh3::xxh3_128;

use crate::{Limits, Malformed, Status, number};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the header that are authenticated directly.
const AUTHENTIC: usize = 48;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// An error that belongs to no request.
    Connection = 0,
    /// Which of these keys are there.
    Exists = 1,
    /// A block, or a range of it.
    Get = 2,
    /// A block to keep.
    Put = 3,
    /// Several blocks.
    BatchGet = 4,
    /// One of several blocks to keep.
    BatchPut = 5,
    /// Forget these keys.
    Delete = 6,
    /// Answer me.
    Ping = 7,
}

impl Operation {
    /// Every operation, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Connection,
        Self::Exists,
        Self::Get,
        Self::Put,
        Self::BatchGet,
        Self::BatchPut,
        Self::Delete,
        Self::Ping,
    ];

    fn of(number: u8) -> Result<Self, Malformed> {
        Self::ALL.get(usize::from(number)).copied().ok_or(Malformed("operation"))
    }
}

/// Flags of a frame, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u8);

impl Flags {
    /// Other frames of this request follow.
    pub const MORE: Self = Self(1);
    /// A frame from the server.
    pub const ANSWER: Self = Self(2);
    /// Keep what is found for a while.
    pub const LEASE: Self = Self(4);
    /// Leave a key alone that is there.
    pub const IF_ABSENT: Self = Self(8);
    const KNOWN: u8 = 15;

    /// Whether every flag of `other` is set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A header, without what [`Sealer`] and [`Opener`] see to (sequence and authentication code).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What is asked for, or was.
    pub operation: Operation,
    /// Flags.
    pub flags: Flags,
    /// How it went.
    pub status: Status,
    /// Which request.
    pub request: u64,
    /// Bytes of meta data.
    pub meta_bytes: u32,
    /// Bytes of payload.
    pub payload_bytes: u64,
    /// [`hash`] of the payload.
    pub payload_hash: u64,
    /// See the operations.
    pub argument: u64,
}

impl Header {
    /// A request without payload.
    #[must_use]
    pub const fn request(operation: Operation, request: u64, meta_bytes: u32) -> Self {
        Self {
            operation,
            flags: Flags(0),
            status: Status::Ok,
            request,
            meta_bytes,
            payload_bytes: 0,
            payload_hash: 0,
            argument: 0,
        }
    }

    /// An answer to `self` without payload.
    #[must_use]
    pub const fn answer(&self, status: Status) -> Self {
        Self { flags: Flags::ANSWER, status, ..Self::request(self.operation, self.request, 0) }
    }

    /// The same frame with this payload.
    #[must_use]
    pub fn carrying(self, payload: &[u8]) -> Self {
        Self { payload_bytes: payload.len() as u64, payload_hash: hash(payload), ..self }
    }

    /// What the bytes of a header say, whoever wrote them: [`Opener::open`] says whether to believe it.
    ///
    /// # Errors
    /// When they are not of this protocol.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Malformed> {
        if bytes[1] & !Flags::KNOWN != 0 {
            return Err(Malformed("flags"));
        }
        let header = Self {
            operation: Operation::of(bytes[0])?,
            flags: Flags(bytes[1]),
            status: Status::of(u16::from_le_bytes(number(bytes, 2)?))?,
            request: u64::from_le_bytes(number(bytes, 8)?),
            meta_bytes: u32::from_le_bytes(number(bytes, 4)?),
            payload_bytes: u64::from_le_bytes(number(bytes, 24)?),
            payload_hash: u64::from_le_bytes(number(bytes, 32)?),
            argument: u64::from_le_bytes(number(bytes, 40)?),
        };
        if header.payload_bytes == 0 && header.payload_hash != 0 {
            return Err(Malformed("hash of no payload"));
        }
        Ok(header)
    }

    /// Whether `payload` is what the sender hashed.
    #[must_use]
    pub fn holds(&self, payload: &[u8]) -> bool {
        payload.len() as u64 == self.payload_bytes && hash(payload) == self.payload_hash
    }
}

/// The lower 64 bits of XXH3-128 with seed 0, which a store that keeps the 128 has at hand; 0 for nothing.
#[must_use]
pub fn hash(payload: &[u8]) -> u64 {
    if payload.is_empty() { 0 } else { xxh3_128(payload) as u64 }
}

/// Numbers and authenticates the frames of one direction.
#[derive(Clone)]
pub struct Sealer {
    key: Hmac<Sha256>,
    next: u64,
}

/// Checks the frames of one direction.
#[derive(Clone)]
pub struct Opener {
    key: Hmac<Sha256>,
    next: u64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("next", &self.next).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Sealer {
    pub(crate) const fn new(key: Hmac<Sha256>) -> Self {
        Self { key, next: 0 }
    }

    /// The header's bytes, as the next frame of this direction. `meta` must be what the header says.
    #[must_use]
    pub fn seal(&mut self, header: &Header, meta: &[u8]) -> [u8; HEADER_BYTES] {
        debug_assert_eq!(header.meta_bytes as usize, meta.len());
        let mut out = [0; HEADER_BYTES];
        out[0] = header.operation as u8;
        out[1] = header.flags.0;
        out[2..4].copy_from_slice(&(header.status as u16).to_le_bytes());
        out[4..8].copy_from_slice(&header.meta_bytes.to_le_bytes());
        out[8..16].copy_from_slice(&header.request.to_le_bytes());
        out[16..24].copy_from_slice(&self.next.to_le_bytes());
        out[24..32].copy_from_slice(&header.payload_bytes.to_le_bytes());
        out[32..40].copy_from_slice(&header.payload_hash.to_le_bytes());
        out[40..48].copy_from_slice(&header.argument.to_le_bytes());
        let mut mac = self.key.clone();
        mac.update(&out[..AUTHENTIC]);
        mac.update(meta);
        out[AUTHENTIC..].copy_from_slice(&mac.finalize().into_bytes()[..HEADER_BYTES - AUTHENTIC]);
        self.next += 1;
        out
    }
}

impl Opener {
    pub(crate) const fn new(key: Hmac<Sha256>) -> Self {
        Self { key, next: 0 }
    }

    /// How many bytes of meta data and payload follow this header, within `limits`. Nothing of it is to be believed before
    /// [`open`](Self::open); the limits are there so that nobody reserves what a stranger asks for.
    ///
    /// # Errors
    /// [`Status::TooLarge`] where a limit is exceeded.
    pub fn follows(bytes: &[u8; HEADER_BYTES], limits: &Limits) -> Result<(usize, u64), Status> {
        let meta = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let payload = number(bytes, 24).map(u64::from_le_bytes).map_err(|_| Status::BadRequest)?;
        if meta > limits.meta_bytes || payload > limits.block_bytes {
            return Err(Status::TooLarge);
        }
        Ok((meta as usize, payload))
    }

    /// The header, if it is the next frame of this direction and both it and `meta` are as they were sealed.
    ///
    /// # Errors
    /// [`Status::Forged`], [`Status::Replayed`], and [`Status::BadRequest`] for what the protocol does not know. The
    /// connection is of no further use after any of them.
    pub fn open(&mut self, bytes: &[u8; HEADER_BYTES], meta: &[u8]) -> Result<Header, Status> {
        let mut mac = self.key.clone();
        mac.update(&bytes[..AUTHENTIC]);
        mac.update(meta);
        // Compares in constant time.
        mac.verify_truncated_left(&bytes[AUTHENTIC..]).map_err(|_| Status::Forged)?;
        let sequence = number(bytes, 16).map(u64::from_le_bytes).map_err(|_| Status::BadRequest)?;
        if sequence != self.next {
            return Err(Status::Replayed);
        }
        self.next += 1;
        let header = Header::decode(bytes).map_err(|_| Status::BadRequest)?;
        if header.meta_bytes as usize != meta.len() {
            return Err(Status::BadRequest);
        }
        Ok(header)
    }
}
