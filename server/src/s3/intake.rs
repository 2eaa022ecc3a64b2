//! Bodies on their way in: hashed, checked against what the client says of them, and written.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt as _;
use http::HeaderMap;
use md5::{Digest as _, Md5};
use s3s::checksum::ChecksumHasher;
use s3s::crypto::Checksum as _;
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3Result, TrailingHeaders, s3_error};
use xxhash_rust::xxh3::Xxh3;

use super::{Wire, error};
use crate::config::EtagKind;
use crate::store::{Checksums, Etag, Store, Writer as _};

/// What a client says of the body it sends.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Length in bytes.
    pub(super) len: Option<u64>,
    /// Content-MD5.
    pub(super) md5: Option<String>,
    /// Checksums in the header.
    pub(super) checksums: Checksums,
    /// The checksum algorithm, where the value is in a trailer, or is ours to compute.
    pub(super) algorithm: Option<String>,
    /// The trailer, once the body is through.
    pub(super) trailers: Option<TrailingHeaders>,
}

/// A body that is written, and is what the client said.
#[derive(Debug)]
pub(super) struct Received<B> {
    pub(super) body: B,
    pub(super) len: u64,
    pub(super) etag: Etag,
    pub(super) checksums: Option<Box<Checksums>>,
}

/// The checksum called `algorithm`, for reading and for setting.
pub(super) fn slot<'a>(checksums: &'a mut Checksums, algorithm: &str) -> Option<&'a mut Option<String>> {
    Some(match algorithm.to_ascii_uppercase().as_str() {
        "CRC32" => &mut checksums.crc32,
        "CRC32C" => &mut checksums.crc32c,
        "CRC64NVME" => &mut checksums.crc64nvme,
        "SHA1" => &mut checksums.sha1,
        "SHA256" => &mut checksums.sha256,
        _ => return None,
    })
}

/// The algorithms, and the header field each travels in.
pub(super) const ALGORITHMS: [(&str, &str); 5] = [
    ("CRC32", "x-amz-checksum-crc32"),
    ("CRC32C", "x-amz-checksum-crc32c"),
    ("CRC64NVME", "x-amz-checksum-crc64nvme"),
    ("SHA1", "x-amz-checksum-sha1"),
    ("SHA256", "x-amz-checksum-sha256"),
];

/// Computes those that `wanted` names.
pub(super) fn hasher(wanted: impl Fn(&str) -> bool) -> ChecksumHasher {
    ChecksumHasher {
        crc32: wanted("CRC32").then(s3s::crypto::Crc32::new),
        crc32c: wanted("CRC32C").then(s3s::crypto::Crc32c::new),
        sha1: wanted("SHA1").then(s3s::crypto::Sha1::new),
        sha256: wanted("SHA256").then(s3s::crypto::Sha256::new),
        crc64nvme: wanted("CRC64NVME").then(s3s::crypto::Crc64Nvme::new),
    }
}

/// What a hasher computed, as it is stored.
pub(super) fn computed(hasher: ChecksumHasher) -> Checksums {
    let sums = hasher.finalize();
    Checksums {
        crc32: sums.checksum_crc32,
        crc32c: sums.checksum_crc32c,
        crc64nvme: sums.checksum_crc64nvme,
        sha1: sums.checksum_sha1,
        sha256: sums.checksum_sha256,
        ..Checksums::default()
    }
}

/// The tag's hash under way. Both are large; a body has one.
enum Tag {
    Md5(Box<Md5>),
    Fast(Box<Xxh3>),
}

fn wrong_checksum(algorithm: &str) -> S3Error {
    s3_error!(BadDigest, "the {algorithm} you specified did not match the calculated checksum")
}

impl<S: Store> Wire<S> {
    /// Takes in the body of the object `key`, or of a part of it that begins at `at`.
    ///
    /// # Errors
    /// 4xx when the body is not what `said` says; then nothing is kept.
    pub(super) async fn receive(
        &self,
        key: &str,
        at: u64,
        body: Option<StreamingBlob>,
        said: Said,
    ) -> S3Result<Received<S::Body>> {
        let too_large =
            || s3_error!(EntityTooLarge, "your upload exceeds the largest object size, {}", self.body_bytes);
        if said.len.is_some_and(|len| len > self.body_bytes) {
            return Err(too_large());
        }
        let mut tag = match (self.etag, &said.md5) {
            (EtagKind::Fast, None) => Tag::Fast(Box::default()),
            (EtagKind::Md5, _) | (EtagKind::Fast, Some(_)) => Tag::Md5(Box::default()),
        };
        let mut given = said.checksums;
        let mut sums = hasher(|name| {
            said.algorithm.as_deref().is_some_and(|wanted| wanted.eq_ignore_ascii_case(name))
                || slot(&mut given.clone(), name).is_some_and(|value| value.is_some())
        });
        let mut writer = self.store.writer(key, said.len, at);
        let mut len = 0;
        if let Some(mut body) = body {
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|error| error::of_body(&*error))?;
                len += chunk.len() as u64;
                if len > self.body_bytes {
                    return Err(too_large());
                }
                match &mut tag {
                    Tag::Md5(hash) => hash.update(&chunk),
                    Tag::Fast(hash) => hash.update(&chunk),
                }
                sums.update(&chunk);
                writer.write(chunk).await?;
            }
        }
        if said.len.is_some_and(|said| said != len) {
            return Err(s3_error!(IncompleteBody, "the body has {len} bytes, its header says otherwise"));
        }
        let etag = match tag {
            Tag::Md5(hash) => {
                let digest: [u8; 16] = hash.finalize().into();
                check_md5(said.md5.as_deref(), &digest)?;
                Etag::Md5(digest)
            }
            Tag::Fast(hash) => Etag::Fast(hash.digest128()),
        };
        if let Some(trailers) = said.trailers.as_ref().and_then(TrailingHeaders::take) {
            from_trailer(&trailers, &mut given)?;
        }
        let mut computed = computed(sums);
        for (name, _) in ALGORITHMS {
            let said = slot(&mut given, name).and_then(|value| value.take());
            let is = slot(&mut computed, name).and_then(|value| value.clone());
            if said.is_some() && said != is {
                return Err(wrong_checksum(name));
            }
        }
        let checksums = (!computed.is_empty()).then(|| Box::new(computed));
        Ok(Received { body: writer.finish().await?, len, etag, checksums })
    }
}

fn check_md5(said: Option<&str>, digest: &[u8; 16]) -> S3Result<()> {
    let Some(said) = said else { return Ok(()) };
    match BASE64.decode(said) {
        Ok(said) if said == digest => Ok(()),
        Ok(said) if said.len() == 16 => Err(wrong_checksum("Content-MD5")),
        _ => Err(s3_error!(InvalidDigest, "the Content-MD5 you specified is not valid")),
    }
}

/// Checksums that came behind the body.
fn from_trailer(trailers: &HeaderMap, given: &mut Checksums) -> S3Result<()> {
    for (name, field) in ALGORITHMS {
        if let Some(value) = trailers.get(field) {
            let value = value.to_str().map_err(|_| s3_error!(InvalidRequest, "trailer {field} is not text"))?;
            if let Some(slot) = slot(given, name) {
                *slot = Some(value.trim().to_owned());
            }
        }
    }
    Ok(())
}
