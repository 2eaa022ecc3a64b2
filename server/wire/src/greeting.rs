//! The greeting: who speaks, which version, what is allowed, and the keys of the session.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::frame::{Opener, Sealer};
use crate::{BLOCK_BYTES, Limits, MAGIC, META_BYTES, Malformed, Status, number};

/// Fixed part of a Hello, in bytes.
const HELLO_BYTES: usize = 48;
/// A Welcome, in bytes.
pub const WELCOME_BYTES: usize = 80;
/// A Proof or a Ready, in bytes.
pub const PROOF_BYTES: usize = 40;
/// Longest Hello, in bytes.
pub const HELLO_BYTES_MAX: usize = HELLO_BYTES + ACCESS_KEY_BYTES + BUCKET_BYTES_MAX;

const ACCESS_KEY_BYTES: usize = 128;
const BUCKET_BYTES_MIN: usize = 3;
const BUCKET_BYTES_MAX: usize = 63;

/// What a client says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Lowest and highest version it speaks.
    pub versions: (u8, u8),
    /// Random bytes, never used before.
    pub nonce: [u8; 32],
    /// Who it is.
    pub access_key: &'a str,
    /// Where its keys lie.
    pub bucket: &'a str,
}

impl<'a> Hello<'a> {
    /// The message.
    ///
    /// # Errors
    /// When the access key or the bucket is too long, too short or not visible ASCII.
    pub fn encode(&self) -> Result<Vec<u8>, Malformed> {
        check_names(self.access_key.as_bytes(), self.bucket.as_bytes())?;
        let (low, high) = self.versions;
        let mut out = Vec::with_capacity(HELLO_BYTES + self.access_key.len() + self.bucket.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[1, low, high, self.access_key.len() as u8, self.bucket.len() as u8]);
        out.extend_from_slice(&[0; 7]);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(self.access_key.as_bytes());
        out.extend_from_slice(self.bucket.as_bytes());
        Ok(out)
    }

    /// Length of the message that `bytes` begin, in bytes, or `None` if that cannot be told yet.
    ///
    /// # Errors
    /// When they begin no Hello.
    pub fn length(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        if !MAGIC.starts_with(&bytes[..bytes.len().min(4)]) || bytes.get(4).is_some_and(|&kind| kind != 1) {
            return Err(Malformed("greeting"));
        }
        let Some(&[access, bucket]) = bytes.get(7..9).and_then(|lengths| lengths.first_chunk()) else {
            return Ok(None);
        };
        let (access, bucket) = (usize::from(access), usize::from(bucket));
        if !(1..=ACCESS_KEY_BYTES).contains(&access) {
            return Err(Malformed("access key"));
        }
        if !(BUCKET_BYTES_MIN..=BUCKET_BYTES_MAX).contains(&bucket) {
            return Err(Malformed("bucket"));
        }
        Ok(Some(HELLO_BYTES + access + bucket))
    }

    /// Reads a whole message.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if Self::length(bytes)? != Some(bytes.len()) {
            return Err(Malformed("length"));
        }
        if bytes[9..16] != [0; 7] {
            return Err(Malformed("reserved bytes"));
        }
        let versions = (bytes[5], bytes[6]);
        if versions.0 == 0 || versions.0 > versions.1 {
            return Err(Malformed("versions"));
        }
        let (access, bucket) = bytes[HELLO_BYTES..].split_at(usize::from(bytes[7]));
        check_names(access, bucket)?;
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Malformed("names"));
        Ok(Self { versions, nonce: number(bytes, 16)?, access_key: text(access)?, bucket: text(bucket)? })
    }

    /// The version both sides speak, if there is one.
    #[must_use]
    pub fn version(&self) -> Option<u8> {
        (self.versions.0..=self.versions.1).contains(&crate::VERSION).then_some(crate::VERSION)
    }
}

fn check_names(access: &[u8], bucket: &[u8]) -> Result<(), Malformed> {
    if !(1..=ACCESS_KEY_BYTES).contains(&access.len()) || !access.iter().all(u8::is_ascii_graphic) {
        return Err(Malformed("access key"));
    }
    if !(BUCKET_BYTES_MIN..=BUCKET_BYTES_MAX).contains(&bucket.len()) || !bucket.iter().all(u8::is_ascii_graphic) {
        return Err(Malformed("bucket"));
    }
    Ok(())
}

/// What a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// Version spoken from here on.
    pub version: u8,
    /// Not [`Status::Ok`]: the server closes.
    pub status: Status,
    /// Unique while the server runs.
    pub session: u64,
    /// Random bytes, never used before.
    pub nonce: [u8; 32],
    /// What the connection may ask for.
    pub limits: Limits,
}

impl Welcome {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> [u8; WELCOME_BYTES] {
        let mut out = [0; WELCOME_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = 2;
        out[5] = self.version;
        out[6..8].copy_from_slice(&(self.status as u16).to_le_bytes());
        out[8..16].copy_from_slice(&self.session.to_le_bytes());
        out[16..48].copy_from_slice(&self.nonce);
        out[48..52].copy_from_slice(&self.limits.requests.to_le_bytes());
        out[52..56].copy_from_slice(&self.limits.meta_bytes.to_le_bytes());
        out[56..64].copy_from_slice(&self.limits.block_bytes.to_le_bytes());
        out[64..72].copy_from_slice(&self.limits.window_bytes.to_le_bytes());
        out
    }

    /// Reads the message.
    ///
    /// # Errors
    /// When it is none, or allows nothing or more than the protocol does.
    pub fn decode(bytes: &[u8; WELCOME_BYTES]) -> Result<Self, Malformed> {
        if bytes[..4] != MAGIC || bytes[4] != 2 {
            return Err(Malformed("greeting"));
        }
        if bytes[72..] != [0; 8] {
            return Err(Malformed("reserved bytes"));
        }
        let limits = Limits {
            requests: u32::from_le_bytes(number(bytes, 48)?),
            meta_bytes: u32::from_le_bytes(number(bytes, 52)?),
            block_bytes: u64::from_le_bytes(number(bytes, 56)?),
            window_bytes: u64::from_le_bytes(number(bytes, 64)?),
        };
        let status = Status::of(u16::from_le_bytes(number(bytes, 6)?))?;
        let sane = limits.requests > 0
            && (1..=META_BYTES).contains(&limits.meta_bytes)
            && (1..=BLOCK_BYTES).contains(&limits.block_bytes)
            && limits.window_bytes >= limits.block_bytes;
        if status == Status::Ok && !sane {
            return Err(Malformed("limits"));
        }
        Ok(Self {
            version: bytes[5],
            status,
            session: u64::from_le_bytes(number(bytes, 8)?),
            nonce: number(bytes, 16)?,
            limits,
        })
    }
}

/// One of the two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who connected.
    Client,
    /// Who listened.
    Server,
}

/// The key of a session, made from the secret both sides know and from every byte they have said.
#[derive(Clone)]
pub struct Session {
    key: Hmac<Sha256>,
    said: Vec<u8>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

pub(crate) fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

impl Session {
    /// From the secret key and the messages as they were sent.
    #[must_use]
    pub fn new(secret: &[u8], hello: &[u8], welcome: &[u8; WELCOME_BYTES]) -> Self {
        let said = [hello, welcome].concat();
        let mut mac = keyed(secret);
        mac.update(b"gpufeed kv 1");
        mac.update(&said);
        Self { key: keyed(&mac.finalize().into_bytes()), said }
    }

    fn proof_mac(&self, side: Side) -> Hmac<Sha256> {
        let mut mac = self.key.clone();
        mac.update(match side {
            Side::Client => b"client",
            Side::Server => b"server",
        });
        mac.update(&self.said);
        mac
    }

    /// The Proof of a client, or the Ready of a server that believes it.
    #[must_use]
    pub fn proof(&self, side: Side) -> [u8; PROOF_BYTES] {
        let mut out = proof_head(side, Status::Ok);
        out[8..].copy_from_slice(&self.proof_mac(side).finalize().into_bytes());
        out
    }

    /// Whether the other side, which is `side`, has the secret.
    ///
    /// # Errors
    /// The status of a Ready that refuses, [`Status::Unauthorized`] where the proof does not hold, and
    /// [`Status::BadRequest`] where it is none.
    pub fn check(&self, side: Side, proof: &[u8; PROOF_BYTES]) -> Result<(), Status> {
        let status = u16::from_le_bytes([proof[6], proof[7]]);
        let status = Status::of(status).map_err(|_| Status::BadRequest)?;
        if proof[..6] != proof_head(side, status)[..6] || (side == Side::Client && status != Status::Ok) {
            return Err(Status::BadRequest);
        }
        if status != Status::Ok {
            return Err(status);
        }
        // Compares in constant time.
        self.proof_mac(side).verify_slice(&proof[8..]).map_err(|_| Status::Unauthorized)
    }

    /// What `side` seals its frames with, and what its peer opens them with.
    #[must_use]
    pub fn channel(&self, side: Side) -> (Sealer, Opener) {
        let key = |direction: &[u8]| {
            let mut mac = self.key.clone();
            mac.update(direction);
            keyed(&mac.finalize().into_bytes())
        };
        let (there, back) = (key(b"client to server"), key(b"server to client"));
        match side {
            Side::Client => (Sealer::new(there), Opener::new(back)),
            Side::Server => (Sealer::new(back), Opener::new(there)),
        }
    }
}

fn proof_head(side: Side, status: Status) -> [u8; PROOF_BYTES] {
    let mut out = [0; PROOF_BYTES];
    out[..4].copy_from_slice(&MAGIC);
    out[4] = if side == Side::Client { 3 } else { 4 };
    out[6..8].copy_from_slice(&(status as u16).to_le_bytes());
    out
}

/// The Ready of a server that refuses.
#[must_use]
pub fn refusal(status: Status) -> [u8; PROOF_BYTES] {
    proof_head(Side::Server, status)
}
