//! What is known of an object besides its bytes.

use std::fmt;
use std::time::SystemTime;

/// An entity tag, kept as bytes and written as text when asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Etag {
    /// MD5 of the body, as S3 does for a plain PUT.
    Md5([u8; 16]),
    /// MD5 of the parts' MD5s and their number, as S3 does for multipart uploads.
    Multipart([u8; 16], u32),
    /// XXH3-128 of the body. Written with `-1` behind it, so that no client takes it for an MD5.
    Fast(u128),
}

impl Etag {
    /// The sixteen bytes that multipart tags are made of.
    #[must_use]
    pub fn digest(&self) -> [u8; 16] {
        match self {
            Self::Md5(bytes) | Self::Multipart(bytes, _) => *bytes,
            Self::Fast(hash) => hash.to_be_bytes(),
        }
    }
}

/// Without quotes.
impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 32];
        hex::encode_to_slice(self.digest(), &mut text).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)?;
        match self {
            Self::Md5(_) => Ok(()),
            Self::Multipart(_, parts) => write!(f, "-{parts}"),
            Self::Fast(_) => f.write_str("-1"),
        }
    }
}

/// Header fields kept with an object and given back with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Content-Type; `binary/octet-stream` where none was given.
    pub content_type: Option<String>,
    /// Content-Encoding, without `aws-chunked`.
    pub content_encoding: Option<String>,
    /// Content-Language.
    pub content_language: Option<String>,
    /// Content-Disposition.
    pub content_disposition: Option<String>,
    /// Cache-Control.
    pub cache_control: Option<String>,
    /// Expires, as it was sent.
    pub expires: Option<String>,
    /// `x-amz-meta-` fields by name, without the prefix.
    pub user: Vec<(String, String)>,
}

/// What a stored checksum covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChecksumKind {
    /// The object's bytes.
    #[default]
    FullObject,
    /// The parts' checksums; written with the number of parts behind it.
    Composite,
}

/// Checksums in base64, as they travel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checksums {
    /// What they cover.
    pub kind: ChecksumKind,
    /// CRC-32 (ISO-HDLC).
    pub crc32: Option<String>,
    /// CRC-32C (Castagnoli).
    pub crc32c: Option<String>,
    /// CRC-64/NVME.
    pub crc64nvme: Option<String>,
    /// SHA-1.
    pub sha1: Option<String>,
    /// SHA-256.
    pub sha256: Option<String>,
}

impl Checksums {
    /// Whether none is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.crc32.is_none()
            && self.crc32c.is_none()
            && self.crc64nvme.is_none()
            && self.sha1.is_none()
            && self.sha256.is_none()
    }
}

/// What is known of an object.
#[derive(Debug, Clone)]
pub struct Meta {
    /// Length in bytes.
    pub len: u64,
    /// Entity tag.
    pub etag: Etag,
    /// When it was written.
    pub modified: SystemTime,
    /// Header fields, where there are any.
    pub attributes: Option<Box<Attributes>>,
    /// Checksums, where any were given.
    pub checksums: Option<Box<Checksums>>,
    /// Lengths of the parts in bytes, for objects uploaded in parts.
    pub part_lens: Option<Box<[u64]>>,
}

/// An object.
#[derive(Debug)]
pub struct Entry<B> {
    /// What is known of it.
    pub meta: Meta,
    /// Its bytes, as the store keeps them.
    pub body: B,
}

/// What If-Match and If-None-Match of a write name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtagMatch {
    /// `*`: any object.
    Any,
    /// This entity tag, without quotes.
    Tag(String),
}

impl EtagMatch {
    fn matches(&self, etag: Etag) -> bool {
        match self {
            Self::Any => true,
            Self::Tag(tag) => *tag == etag.to_string(),
        }
    }
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Precondition {
    /// There must be an object with this tag.
    pub if_match: Option<EtagMatch>,
    /// There must be no object with this tag.
    pub if_none_match: Option<EtagMatch>,
}

impl Precondition {
    /// Checks against the entity tag of the object that is there.
    ///
    /// # Errors
    /// [`super::StoreError::NoSuchKey`] when If-Match finds no object, else
    /// [`super::StoreError::PreconditionFailed`].
    pub fn check(&self, there: Option<Etag>) -> Result<(), super::StoreError> {
        if let Some(wanted) = &self.if_match {
            let etag = there.ok_or(super::StoreError::NoSuchKey)?;
            if !wanted.matches(etag) {
                return Err(super::StoreError::PreconditionFailed);
            }
        }
        match (&self.if_none_match, there) {
            (Some(unwanted), Some(etag)) if unwanted.matches(etag) => Err(super::StoreError::PreconditionFailed),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_written_as_s3_writes_them() {
        let md5 = Etag::Md5(*b"\xd4\x1d\x8c\xd9\x8f\x00\xb2\x04\xe9\x80\x09\x98\xec\xf8\x42\x7e");
        assert_eq!(md5.to_string(), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(Etag::Multipart(md5.digest(), 12).to_string(), "d41d8cd98f00b204e9800998ecf8427e-12");
        assert_eq!(Etag::Fast(1).to_string(), "00000000000000000000000000000001-1");
    }

    #[test]
    fn preconditions() {
        let there = Etag::Fast(7);
        let tag = EtagMatch::Tag(there.to_string());
        let matching = |m: Option<EtagMatch>, n: Option<EtagMatch>| Precondition { if_match: m, if_none_match: n };
        assert!(matching(Some(tag.clone()), None).check(Some(there)).is_ok());
        assert!(matching(Some(tag.clone()), None).check(None).is_err());
        assert!(matching(Some(tag.clone()), None).check(Some(Etag::Fast(8))).is_err());
        assert!(matching(None, Some(EtagMatch::Any)).check(None).is_ok());
        assert!(matching(None, Some(EtagMatch::Any)).check(Some(there)).is_err());
        assert!(matching(None, Some(tag)).check(Some(Etag::Fast(8))).is_ok());
    }
}
