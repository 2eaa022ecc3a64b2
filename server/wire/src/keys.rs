//! Meta data: keys, and what is said of each.

use crate::{BATCH_KEYS, KEY_BYTES, Malformed};

/// Length of a block that is not there.
pub const ABSENT: u64 = u64::MAX;

fn check(key: &str) -> Result<(), Malformed> {
    if (1..=KEY_BYTES).contains(&key.len()) { Ok(()) } else { Err(Malformed("key")) }
}

/// Appends a key.
///
/// # Errors
/// When it is empty or longer than [`KEY_BYTES`].
pub fn write_key(key: &str, out: &mut Vec<u8>) -> Result<(), Malformed> {
    check(key)?;
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(key.as_bytes());
    Ok(())
}

/// Appends the count and the keys.
///
/// # Errors
/// As [`write_key`], and for none or more than [`BATCH_KEYS`].
pub fn write_keys<'a>(keys: impl ExactSizeIterator<Item = &'a str>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    if !(1..=BATCH_KEYS).contains(&keys.len()) {
        return Err(Malformed("number of keys"));
    }
    out.extend_from_slice(&(keys.len() as u16).to_le_bytes());
    for key in keys {
        write_key(key, out)?;
    }
    Ok(())
}

fn split_key(meta: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let (length, rest) = meta.split_first_chunk::<2>().ok_or(Malformed("key"))?;
    let (key, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length))).ok_or(Malformed("key"))?;
    let key = std::str::from_utf8(key).map_err(|_| Malformed("key"))?;
    check(key)?;
    Ok((key, rest))
}

/// The only key of a frame.
///
/// # Errors
/// When the meta data is not one key.
pub fn read_key(meta: &[u8]) -> Result<&str, Malformed> {
    match split_key(meta)? {
        (key, []) => Ok(key),
        _ => Err(Malformed("bytes after the key")),
    }
}

/// The keys of a frame, which are whole if this returns them.
#[derive(Debug, Clone)]
pub struct Keys<'a> {
    left: usize,
    rest: &'a [u8],
}

impl<'a> Keys<'a> {
    /// Reads count and keys.
    ///
    /// # Errors
    /// When there are none, too many, or the meta data does not end with the last.
    pub fn read(meta: &'a [u8]) -> Result<Self, Malformed> {
        let (count, rest) = meta.split_first_chunk::<2>().ok_or(Malformed("keys"))?;
        let left = usize::from(u16::from_le_bytes(*count));
        if !(1..=BATCH_KEYS).contains(&left) {
            return Err(Malformed("number of keys"));
        }
        let mut after = rest;
        for _ in 0..left {
            after = split_key(after)?.1;
        }
        if after.is_empty() { Ok(Self { left, rest }) } else { Err(Malformed("bytes after the keys")) }
    }
}

impl<'a> Iterator for Keys<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.left = self.left.checked_sub(1)?;
        let (key, rest) = split_key(self.rest).ok()?;
        self.rest = rest;
        Some(key)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Keys<'_> {}

/// Which bytes of a block a get asks for: the first, and how many (`None`: all that follow).
#[must_use]
pub const fn range(argument: u64) -> (u64, Option<u64>) {
    let (first, bytes) = (argument & 0xffff_ffff, argument >> 32);
    (first, if bytes == 0 { None } else { Some(bytes) })
}

/// The argument of a get of `bytes` from `first` on, both below 4 GiB; 0 bytes for all that follow.
#[must_use]
pub const fn range_argument(first: u32, bytes: u32) -> u64 {
    (bytes as u64) << 32 | first as u64
}
