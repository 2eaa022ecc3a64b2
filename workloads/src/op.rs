//! Operation, key, tick, outcome, carrier, error kind: the words machines, engine and transports share.

use std::fmt::{self, Write as _};
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment: nanoseconds since the origin of the run's clock, wall or virtual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tick(pub u64);

impl Tick {
    /// The origin of the run's clock.
    pub const ZERO: Self = Self(0);

    /// Time from `earlier` to this tick, zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Tick {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Tick {
    type Output = Duration;

    fn sub(self, rhs: Self) -> Duration {
        self.since(rhs)
    }
}

/// What an operation does to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Verb {
    /// Read a whole object or a range of it.
    Get,
    /// Write a whole object.
    Put,
    /// Ask whether an object exists and how large it is (HEAD).
    Stat,
    /// List keys of a space, one page.
    List,
    /// Remove an object.
    Delete,
    /// Write an object in parts, one after the other: create, parts, complete.
    Multipart,
}

impl Verb {
    /// Every verb, in the order of their discriminants.
    pub const ALL: [Self; 6] = [Self::Get, Self::Put, Self::Stat, Self::List, Self::Delete, Self::Multipart];

    /// The name used on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Stat => "stat",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Multipart => "multipart",
        }
    }

    /// Whether the operation sends a payload.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Put | Self::Multipart)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which object, without its text: a space of the run's [`Names`] and an identity within it. Formatting it into a
/// lane's own buffer costs no allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key {
    /// Index into [`Names::spaces`].
    pub space: u16,
    /// Tensor-parallel rank or shard, where the space writes one.
    pub rank: u16,
    /// Sample number, block hash, or any other identity.
    pub id: u64,
    /// Which block of its prompt a KV block is, where the space writes that.
    pub position: u32,
    /// Hash of the block before it, where the space writes that.
    pub parent: u64,
}

impl Key {
    /// The first of everything; for the fields that a space does not write.
    pub const ZERO: Self = Self { space: 0, rank: 0, id: 0, position: 0, parent: 0 };
}

/// How the objects of one space are called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Text before the identity, with its slashes: `train/unet3d/img_`.
    pub before: String,
    /// Text after the identity: `.npz`.
    pub after: String,
    /// How the identity itself is written.
    pub style: KeyStyle,
}

/// How an identity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyStyle {
    /// Decimal, padded with zeros to this many digits.
    Index(u8),
    /// Sixteen hexadecimal digits.
    Hash,
    /// `{rank}/{hash}`.
    RankHash,
    /// `{rank}@{hash}`.
    WorkerHash,
    /// `{position}:{hash}:{parent}`, hashes in base 58 of their eight bytes; the first block has no parent.
    Lineage,
    /// `{rank}/{position}:{hash}:{parent}`.
    RankLineage,
}

/// The key spaces of a run; shared by machines (who number them) and transports (who write them out).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Names {
    /// In the order of [`Key::space`].
    pub spaces: Vec<Space>,
}

impl Names {
    /// Appends the object name of `key` to `out`.
    ///
    /// # Panics
    /// When the key's space is not one of these: a machine must only use the spaces it declared.
    pub fn write(&self, key: Key, out: &mut String) {
        let space = &self.spaces[usize::from(key.space)];
        out.push_str(&space.before);
        // Writing to a String cannot fail.
        let _ = match space.style {
            KeyStyle::Index(digits) => write!(out, "{:0width$}", key.id, width = usize::from(digits)),
            KeyStyle::Hash => write!(out, "{:016x}", key.id),
            KeyStyle::RankHash => write!(out, "{}/{:016x}", key.rank, key.id),
            KeyStyle::WorkerHash => write!(out, "{}@{:016x}", key.rank, key.id),
            KeyStyle::Lineage => write_lineage(key, out),
            KeyStyle::RankLineage => write!(out, "{}/", key.rank).and_then(|()| write_lineage(key, out)),
        };
        out.push_str(&space.after);
    }

    /// The object name of `key`.
    #[must_use]
    pub fn of(&self, key: Key) -> String {
        let mut name = String::new();
        self.write(key, &mut name);
        name
    }
}

/// `{position}:{hash}[:{parent}]`.
fn write_lineage(key: Key, out: &mut String) -> fmt::Result {
    write!(out, "{}:", key.position)?;
    write_base58(key.id, out);
    if key.position > 0 {
        out.push(':');
        write_base58(key.parent, out);
    }
    Ok(())
}

/// The eight bytes of `hash`, most significant first, in base 58 as Bitcoin writes it: each leading zero byte is a `1`,
/// the rest a number.
fn write_base58(hash: u64, out: &mut String) {
    const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    // 58^11 is more than 2^64.
    let mut digits = [0u8; 11];
    let (mut rest, mut count) = (hash, 0);
    while rest > 0 {
        digits[count] = ALPHABET[(rest % 58) as usize];
        rest /= 58;
        count += 1;
    }
    out.extend(std::iter::repeat_n('1', hash.leading_zeros() as usize / 8));
    out.extend(digits[..count].iter().rev().map(|&digit| char::from(digit)));
}

/// A condition on a write; on a question, what counts as an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Condition {
    /// None.
    #[default]
    Always,
    /// Only if no object has that key (`If-None-Match: *`).
    IfAbsent,
    /// Of a [`Verb::Stat`]: that there is no object is an answer as good as another, not a failure.
    MayBeAbsent,
}

/// One operation on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// What to do.
    pub verb: Verb,
    /// To which object; for [`Verb::List`] the space is listed and the identity ignored.
    pub key: Key,
    /// First byte to read; zero for whole-object operations.
    pub offset: u64,
    /// Bytes to read or write; for [`Verb::List`] the most keys wanted.
    pub bytes: u64,
    /// Whether a GET names its range (`offset..offset + bytes`) or asks for the whole object of `bytes`.
    pub ranged: bool,
    /// Bytes of each part of a [`Verb::Multipart`] write; zero otherwise.
    pub part_bytes: u64,
    /// Condition on a write.
    pub condition: Condition,
}

impl Op {
    const fn new(verb: Verb, key: Key, bytes: u64) -> Self {
        Self { verb, key, offset: 0, bytes, ranged: false, part_bytes: 0, condition: Condition::Always }
    }

    /// Reads a whole object known to be `bytes` long.
    #[must_use]
    pub const fn get(key: Key, bytes: u64) -> Self {
        Self::new(Verb::Get, key, bytes)
    }

    /// Reads `bytes` from `offset`.
    #[must_use]
    pub const fn get_range(key: Key, offset: u64, bytes: u64) -> Self {
        Self { offset, ranged: true, ..Self::new(Verb::Get, key, bytes) }
    }

    /// Writes a whole object.
    #[must_use]
    pub const fn put(key: Key, bytes: u64) -> Self {
        Self::new(Verb::Put, key, bytes)
    }

    /// Asks for an object's presence and size.
    #[must_use]
    pub const fn stat(key: Key) -> Self {
        Self::new(Verb::Stat, key, 0)
    }

    /// Asks whether there is an object: no is an answer too.
    #[must_use]
    pub const fn exists(key: Key) -> Self {
        Self { condition: Condition::MayBeAbsent, ..Self::stat(key) }
    }

    /// Whether `result` answers the operation, so that it counts with the successes.
    #[must_use]
    pub fn is_answered_by(&self, result: Result<(), ErrorKind>) -> bool {
        result.is_ok() || (self.condition == Condition::MayBeAbsent && result == Err(ErrorKind::NotFound))
    }

    /// Lists at most `keys` keys of a space.
    #[must_use]
    pub const fn list(space: u16, keys: u64) -> Self {
        Self::new(Verb::List, Key { space, rank: 0, id: 0, ..Key::ZERO }, keys)
    }

    /// Removes an object.
    #[must_use]
    pub const fn delete(key: Key) -> Self {
        Self::new(Verb::Delete, key, 0)
    }

    /// Writes an object in parts of `part_bytes`.
    #[must_use]
    pub const fn multipart(key: Key, bytes: u64, part_bytes: u64) -> Self {
        Self { part_bytes, ..Self::new(Verb::Multipart, key, bytes) }
    }
}

/// How an operation's payload really travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Carrier {
    /// Nowhere: the null target.
    Null,
    /// HTTP over TCP.
    Http,
    /// HTTP over TLS.
    Https,
    /// The KV block protocol over TCP.
    KvTcp,
    /// A file, past the page cache.
    FileDirect,
    /// A file, through the page cache.
    FileCached,
    /// The virtual clock's storage model.
    Model,
}

impl Carrier {
    /// Every carrier, in the order of their discriminants.
    pub const ALL: [Self; 7] =
        [Self::Null, Self::Http, Self::Https, Self::KvTcp, Self::FileDirect, Self::FileCached, Self::Model];

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Http => "http",
            Self::Https => "https",
            Self::KvTcp => "kv-tcp",
            Self::FileDirect => "file-direct",
            Self::FileCached => "file-cached",
            Self::Model => "model",
        }
    }
}

/// Why an operation failed; counted in the report, kept out of latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ErrorKind {
    /// No connection, or it broke.
    Connect,
    /// No answer within the operation's time-out.
    Timeout,
    /// Told to slow down (503, 429).
    Throttled,
    /// No such object.
    NotFound,
    /// Credentials refused or rights missing (401, 403).
    Denied,
    /// A condition did not hold (409, 412).
    Condition,
    /// Any other 4xx.
    Client,
    /// Any other 5xx.
    Server,
    /// The body ended early, or its length is not what was asked for.
    ShortBody,
    /// The bytes are not the ones written.
    Corrupt,
    /// An error of the local operating system.
    Io,
    /// No room left (507, ENOSPC).
    NoSpace,
    /// The answer is not what the protocol allows.
    Protocol,
    /// Bytes came by another carrier than the one asked for.
    Fallback,
    /// Given up because the run was.
    Cancelled,
}

impl ErrorKind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Self; 15] = [
        Self::Connect,
        Self::Timeout,
        Self::Throttled,
        Self::NotFound,
        Self::Denied,
        Self::Condition,
        Self::Client,
        Self::Server,
        Self::ShortBody,
        Self::Corrupt,
        Self::Io,
        Self::NoSpace,
        Self::Protocol,
        Self::Fallback,
        Self::Cancelled,
    ];

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Throttled => "throttled",
            Self::NotFound => "not-found",
            Self::Denied => "denied",
            Self::Condition => "condition",
            Self::Client => "client",
            Self::Server => "server",
            Self::ShortBody => "short-body",
            Self::Corrupt => "corrupt",
            Self::Io => "io",
            Self::NoSpace => "no-space",
            Self::Protocol => "protocol",
            Self::Fallback => "fallback",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How one operation went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// When the machine meant it to start.
    pub intended: Tick,
    /// When the request left (after signing and payload preparation).
    pub sent: Tick,
    /// When the first byte of the answer's body (or the answer, if it has none) arrived.
    pub first_byte: Tick,
    /// When the last byte arrived.
    pub done: Tick,
    /// How it travelled.
    pub carrier: Carrier,
    /// Payload bytes moved.
    pub bytes: u64,
    /// Attempts made, one without retries.
    pub attempts: u32,
    /// Success, or why not.
    pub result: Result<(), ErrorKind>,
}

impl Outcome {
    /// Time from the actual send to the last byte.
    #[must_use]
    pub const fn service_time(&self) -> Duration {
        self.done.since(self.sent)
    }

    /// Time from the intended start to the last byte.
    #[must_use]
    pub const fn response_time(&self) -> Duration {
        self.done.since(self.intended)
    }

    /// Time from the intended start to the actual send.
    #[must_use]
    pub const fn schedule_slip(&self) -> Duration {
        self.sent.since(self.intended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_write_each_style() {
        let space = |style| Space { before: "a/x_".into(), after: ".npz".into(), style };
        let names = Names { spaces: vec![space(KeyStyle::Index(4)), space(KeyStyle::Hash), space(KeyStyle::RankHash)] };
        let key = |space| Key { space, rank: 3, id: 255, ..Key::ZERO };
        assert_eq!(names.of(key(0)), "a/x_0255.npz");
        assert_eq!(names.of(key(1)), "a/x_00000000000000ff.npz");
        assert_eq!(names.of(key(2)), "a/x_3/00000000000000ff.npz");
    }

    #[test]
    fn lineage_is_written_as_positions_and_hashes_in_base_58() {
        let space = |style| Space { before: "kv/".into(), after: String::new(), style };
        let names = Names { spaces: vec![space(KeyStyle::RankLineage), space(KeyStyle::Lineage)] };
        let first = Key { rank: 2, id: u64::MAX, ..Key::ZERO };
        assert_eq!(names.of(first), "kv/2/0:jpXCZedGfVQ");
        let next = Key { space: 1, id: 57, position: 3, parent: 1 << 32, ..Key::ZERO };
        assert_eq!(names.of(next), "kv/3:1111111z:1117YXq9H");
        assert_eq!(names.of(Key { space: 1, ..Key::ZERO }), "kv/0:11111111");
    }

    #[test]
    fn no_is_an_answer_to_a_question_only() {
        let (missing, timeout) = (Err(ErrorKind::NotFound), Err(ErrorKind::Timeout));
        let answered = |op: Op| [Ok(()), missing, timeout].map(|result| op.is_answered_by(result));
        assert_eq!(answered(Op::exists(Key::ZERO)), [true, true, false]);
        assert_eq!(answered(Op::stat(Key::ZERO)), [true, false, false]);
        assert_eq!(answered(Op::get(Key::ZERO, 1)), [true, false, false]);
    }

    #[test]
    fn names_and_discriminants_agree() {
        for (i, verb) in Verb::ALL.iter().enumerate() {
            assert_eq!(*verb as usize, i);
        }
        for (i, carrier) in Carrier::ALL.iter().enumerate() {
            assert_eq!(*carrier as usize, i);
        }
        for (i, kind) in ErrorKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, i);
        }
    }
}
