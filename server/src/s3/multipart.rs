//! Multipart uploads.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest as _, Md5};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, ChecksumType,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, CopyPartResult,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput,
    ListPartsInput, ListPartsOutput, MultipartUpload, Part, UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput,
    UploadPartOutput,
};
use s3s::{S3Request, S3Result, s3_error};

use super::combine::Crc;
use super::conditions::precondition;
use super::intake::{Said, computed, hasher, slot};
use super::objects::{SourceConditions, attributes, source, strong};
use super::{Wire, listing};
use crate::store::{ChecksumKind, Checksums, Etag, Meta, PartInfo, Store, StoreError, UploadInfo};

/// Highest part number.
const PARTS: i32 = 10_000;
/// Least bytes of a part that is not the last.
const PART_BYTES: u64 = 5 << 20;
/// Most parts or uploads on a page.
const PAGE: i32 = 1000;

pub(super) fn checksum_type(kind: ChecksumKind) -> ChecksumType {
    ChecksumType::from_static(match kind {
        ChecksumKind::FullObject => ChecksumType::FULL_OBJECT,
        ChecksumKind::Composite => ChecksumType::COMPOSITE,
    })
}

fn part_number(number: i32) -> S3Result<u32> {
    match u32::try_from(number) {
        Ok(number) if (1..=PARTS as u32).contains(&number) => Ok(number),
        _ => Err(s3_error!(InvalidArgument, "part number must be an integer between 1 and {PARTS}, inclusive")),
    }
}

/// Which checksum an upload asks for, and what it covers.
fn checksum_of(
    algorithm: Option<&ChecksumAlgorithm>,
    kind: Option<&ChecksumType>,
) -> S3Result<(Option<String>, ChecksumKind)> {
    let Some(algorithm) = algorithm.map(|algorithm| algorithm.as_str().to_ascii_uppercase()) else {
        return Ok((None, ChecksumKind::FullObject));
    };
    if slot(&mut Checksums::default(), &algorithm).is_none() {
        return Err(s3_error!(InvalidRequest, "checksum algorithm {algorithm} is not supported"));
    }
    let kind = match kind.map(ChecksumType::as_str) {
        Some(ChecksumType::FULL_OBJECT) => ChecksumKind::FullObject,
        Some(ChecksumType::COMPOSITE) => ChecksumKind::Composite,
        None if algorithm == "CRC64NVME" => ChecksumKind::FullObject,
        None => ChecksumKind::Composite,
        Some(_) => return Err(s3_error!(InvalidRequest, "the checksum type must be FULL_OBJECT or COMPOSITE")),
    };
    match (kind, Crc::called(&algorithm)) {
        (ChecksumKind::FullObject, None) => {
            Err(s3_error!(InvalidRequest, "the FULL_OBJECT checksum type cannot be used with {algorithm}"))
        }
        (ChecksumKind::Composite, _) if algorithm == "CRC64NVME" => {
            Err(s3_error!(InvalidRequest, "the COMPOSITE checksum type cannot be used with CRC64NVME"))
        }
        _ => Ok((Some(algorithm), kind)),
    }
}

/// The object's checksum from its parts'.
fn joined(algorithm: &str, kind: ChecksumKind, parts: &[PartInfo]) -> Option<Checksums> {
    let mut values = Vec::new();
    for part in parts {
        let mut sums = part.checksums.as_deref()?.clone();
        values.push((BASE64.decode(slot(&mut sums, algorithm)?.take()?).ok()?, part.len));
    }
    let mut out = match (kind, Crc::called(algorithm)) {
        (ChecksumKind::FullObject, Some(crc)) => {
            let number = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
            let whole = values.iter().map(|(bytes, len)| (number(bytes), *len));
            let (value, _) = whole.reduce(|(a, len_a), (b, len_b)| (crc.combine(a, b, len_b), len_a + len_b))?;
            let mut out = Checksums::default();
            *slot(&mut out, algorithm)? = Some(BASE64.encode(&value.to_be_bytes()[8 - crc.bytes()..]));
            out
        }
        (ChecksumKind::FullObject, None) => return None,
        (ChecksumKind::Composite, _) => {
            let mut sums = hasher(|name| name == algorithm);
            values.iter().for_each(|(bytes, _)| sums.update(bytes));
            let mut out = computed(sums);
            let value = slot(&mut out, algorithm)?;
            *value = value.take().map(|value| format!("{value}-{}", values.len()));
            out
        }
    };
    out.kind = kind;
    Some(out)
}

/// Whether a part is the one the client means.
fn is_meant(part: &PartInfo, meant: &CompletedPart) -> bool {
    let same_tag = meant.e_tag.as_ref().is_none_or(|tag| tag.value() == part.etag.to_string());
    let sums = part.checksums.as_deref().cloned().unwrap_or_default();
    let same = |meant: &Option<String>, is: &Option<String>| meant.is_none() || is.is_none() || meant == is;
    same_tag
        && same(&meant.checksum_crc32, &sums.crc32)
        && same(&meant.checksum_crc32c, &sums.crc32c)
        && same(&meant.checksum_crc64nvme, &sums.crc64nvme)
        && same(&meant.checksum_sha1, &sums.sha1)
        && same(&meant.checksum_sha256, &sums.sha256)
}

impl<S: Store> Wire<S> {
    pub(super) fn start_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<CreateMultipartUploadOutput> {
        let input = req.input;
        let (algorithm, kind) = checksum_of(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?;
        let info = UploadInfo {
            key: input.key.clone(),
            started: SystemTime::now(),
            attributes: attributes(&req.headers, input.metadata)?,
            checksum_kind: kind,
            checksum_algorithm: algorithm.clone(),
        };
        let id = self.store.start_upload(&input.bucket, info)?;
        Ok(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            checksum_type: algorithm.is_some().then(|| checksum_type(kind)),
            checksum_algorithm: algorithm.map(ChecksumAlgorithm::from),
            ..CreateMultipartUploadOutput::default()
        })
    }

    /// Where a part probably begins: before it lie parts as long as the longest that is known.
    fn guess(&self, bucket: &str, key: &str, id: &str, number: u32, len: Option<u64>) -> S3Result<u64> {
        let parts = self.store.parts(bucket, key, id)?;
        let longest = parts.iter().map(|part| part.len).chain(len).max().unwrap_or(0);
        Ok(longest.saturating_mul(u64::from(number - 1)))
    }

    pub(super) async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<UploadPartOutput> {
        let input = req.input;
        let number = part_number(input.part_number)?;
        let (bucket, key, id) = (&input.bucket, &input.key, &input.upload_id);
        let upload = self.store.upload(bucket, key, id)?;
        let algorithm = input.checksum_algorithm.map(|algorithm| algorithm.as_str().to_ascii_uppercase());
        if let (Some(agreed), Some(sent)) = (&upload.checksum_algorithm, &algorithm)
            && agreed != sent
        {
            return Err(s3_error!(InvalidRequest, "the upload was started with {agreed} checksums, not {sent}"));
        }
        let len = input.content_length.and_then(|len| u64::try_from(len).ok());
        let said = Said {
            len,
            md5: input.content_md5,
            checksums: Checksums {
                kind: ChecksumKind::FullObject,
                crc32: input.checksum_crc32,
                crc32c: input.checksum_crc32c,
                crc64nvme: input.checksum_crc64nvme,
                sha1: input.checksum_sha1,
                sha256: input.checksum_sha256,
            },
            algorithm: algorithm.or_else(|| upload.checksum_algorithm.clone()),
            trailers: req.trailing_headers,
        };
        let at = self.guess(bucket, key, id, number, len)?;
        let received = self.receive(key, at, input.body, said).await?;
        let part = PartInfo {
            number,
            len: received.len,
            etag: received.etag,
            modified: SystemTime::now(),
            checksums: received.checksums,
        };
        let sums = part.checksums.as_deref().cloned().unwrap_or_default();
        self.store.add_part(bucket, key, id, part, received.body).await?;
        Ok(UploadPartOutput {
            e_tag: strong(received.etag),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            ..UploadPartOutput::default()
        })
    }

    pub(super) async fn copy_part(&self, input: UploadPartCopyInput) -> S3Result<UploadPartCopyOutput> {
        let number = part_number(input.part_number)?;
        let (bucket, key, id) = (&input.bucket, &input.key, &input.upload_id);
        let upload = self.store.upload(bucket, key, id)?;
        let (from_bucket, from_key) = source(&input.copy_source)?;
        let from = self.store.find(from_bucket, from_key)?;
        SourceConditions::new(
            input.copy_source_if_match.as_ref(),
            input.copy_source_if_none_match.as_ref(),
            input.copy_source_if_modified_since,
            input.copy_source_if_unmodified_since,
        )
        .check(&from.meta)?;
        let range = match &input.copy_source_range {
            None => 0..from.meta.len,
            Some(text) => match s3s::dto::Range::parse(text) {
                Ok(range @ s3s::dto::Range::Int { last: Some(last), .. }) if last < from.meta.len => {
                    range.check(from.meta.len).map_err(|_| s3_error!(InvalidRange))?
                }
                Ok(_) => return Err(s3_error!(InvalidRange, "the range does not lie within the source object")),
                Err(_) => return Err(s3_error!(InvalidArgument, "`{text}` is not a range like bytes=0-9")),
            },
        };
        let wanted = upload.checksum_algorithm.as_deref();
        let (etag, sums) = self.hash(&from, range.clone(), Some(self.etag), wanted).await?;
        let etag = etag.ok_or_else(|| s3_error!(InternalError))?;
        let part = PartInfo {
            number,
            len: range.end - range.start,
            etag,
            modified: SystemTime::now(),
            checksums: (!sums.is_empty()).then(|| Box::new(sums.clone())),
        };
        let result = CopyPartResult {
            e_tag: strong(etag),
            last_modified: Some(part.modified.into()),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
        };
        self.store.add_part(bucket, key, id, part, self.store.slice(&from, range)).await?;
        Ok(UploadPartCopyOutput { copy_part_result: Some(result), ..UploadPartCopyOutput::default() })
    }

    pub(super) async fn complete_upload(
        &self,
        input: CompleteMultipartUploadInput,
    ) -> S3Result<CompleteMultipartUploadOutput> {
        let (bucket, key, id) = (&input.bucket, &input.key, &input.upload_id);
        let upload = self.store.upload(bucket, key, id)?;
        let there = self.store.parts(bucket, key, id)?;
        let meant = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        if meant.is_empty() {
            return Err(s3_error!(MalformedXML, "an upload is completed with at least one part"));
        }
        let mut parts: Vec<PartInfo> = Vec::with_capacity(meant.len());
        for meant in &meant {
            let number = part_number(meant.part_number.unwrap_or(0))?;
            if parts.last().is_some_and(|last| last.number >= number) {
                return Err(s3_error!(InvalidPartOrder, "the list of parts was not in ascending order"));
            }
            let part = there.iter().find(|part| part.number == number && is_meant(part, meant));
            parts.push(part.cloned().ok_or(StoreError::InvalidPart(number))?);
        }
        let all_but_last = &parts[..parts.len() - 1];
        if let Some(small) = all_but_last.iter().find(|part| part.len < PART_BYTES) {
            return Err(s3_error!(
                EntityTooSmall,
                "part {} has {} bytes; only the last may have less than {PART_BYTES}",
                small.number,
                small.len
            ));
        }
        let len: u64 = parts.iter().map(|part| part.len).sum();
        if let Some(said) = input.mpu_object_size
            && u64::try_from(said) != Ok(len)
        {
            return Err(s3_error!(InvalidRequest, "the object has {len} bytes, not {said}"));
        }
        let checksums =
            upload.checksum_algorithm.as_deref().and_then(|name| joined(name, upload.checksum_kind, &parts));
        let mut sums = checksums.clone().unwrap_or_default();
        let said = [
            (&input.checksum_crc32, &sums.crc32),
            (&input.checksum_crc32c, &sums.crc32c),
            (&input.checksum_crc64nvme, &sums.crc64nvme),
            (&input.checksum_sha1, &sums.sha1),
            (&input.checksum_sha256, &sums.sha256),
        ];
        if said.iter().any(|(said, is)| said.is_some() && is.is_some() && said != is) {
            return Err(s3_error!(BadDigest, "the checksum you specified did not match the calculated checksum"));
        }
        let mut md5 = Md5::new();
        parts.iter().for_each(|part| md5.update(part.etag.digest()));
        let count = u32::try_from(parts.len()).map_err(|_| s3_error!(InvalidRequest, "too many parts"))?;
        let meta = Meta {
            len,
            etag: Etag::Multipart(md5.finalize().into(), count),
            modified: SystemTime::now(),
            attributes: upload.attributes.clone(),
            checksums: checksums.map(Box::new),
            part_lens: Some(parts.iter().map(|part| part.len).collect()),
        };
        let numbers: Vec<_> = parts.iter().map(|part| part.number).collect();
        let only = precondition(input.if_match, input.if_none_match);
        let entry = self.store.complete_upload(bucket, key, id, &numbers, meta, &only).await?;
        let kind = (!sums.is_empty()).then(|| checksum_type(sums.kind));
        Ok(CompleteMultipartUploadOutput {
            e_tag: strong(entry.meta.etag),
            location: Some(format!("/{bucket}/{key}")),
            checksum_crc32: sums.crc32.take(),
            checksum_crc32c: sums.crc32c.take(),
            checksum_crc64nvme: sums.crc64nvme.take(),
            checksum_sha1: sums.sha1.take(),
            checksum_sha256: sums.sha256.take(),
            checksum_type: kind,
            bucket: Some(input.bucket),
            key: Some(input.key),
            ..CompleteMultipartUploadOutput::default()
        })
    }

    pub(super) fn abort_upload(&self, input: &AbortMultipartUploadInput) -> S3Result<AbortMultipartUploadOutput> {
        self.store.abort_upload(&input.bucket, &input.key, &input.upload_id)?;
        Ok(AbortMultipartUploadOutput::default())
    }

    pub(super) fn list_parts(&self, input: ListPartsInput) -> S3Result<ListPartsOutput> {
        let parts = self.store.parts(&input.bucket, &input.key, &input.upload_id)?;
        let after = input.part_number_marker.unwrap_or(0);
        let most = input.max_parts.unwrap_or(PAGE).clamp(0, PAGE);
        let mut later = parts.into_iter().filter(|part| i64::from(part.number) > i64::from(after)).peekable();
        let page: Vec<_> = later.by_ref().take(most as usize).map(listed).collect();
        let next = later.peek().and(page.last().and_then(|part| part.part_number));
        Ok(ListPartsOutput {
            is_truncated: Some(next.is_some()),
            next_part_number_marker: next,
            part_number_marker: Some(after),
            max_parts: Some(most),
            parts: Some(page),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            owner: Some(listing::owner()),
            ..ListPartsOutput::default()
        })
    }

    pub(super) fn list_uploads(&self, input: ListMultipartUploadsInput) -> S3Result<ListMultipartUploadsOutput> {
        let prefix = input.prefix.unwrap_or_default();
        let key_marker = input.key_marker.unwrap_or_default();
        let id_marker = input.upload_id_marker.unwrap_or_default();
        let most = input.max_uploads.unwrap_or(PAGE).clamp(0, PAGE);
        let mut later = self
            .store
            .uploads(&input.bucket)?
            .into_iter()
            .filter(|(id, info)| {
                let after_marker = if id_marker.is_empty() {
                    info.key > key_marker
                } else {
                    (&info.key, id) > (&key_marker, &id_marker)
                };
                info.key.starts_with(&prefix) && (key_marker.is_empty() || after_marker)
            })
            .peekable();
        let page: Vec<_> = later.by_ref().take(most as usize).collect();
        let last = later.peek().and(page.last()).map(|(id, info)| (info.key.clone(), id.clone()));
        let uploads = page.into_iter().map(|(id, info)| MultipartUpload {
            key: Some(info.key.clone()),
            upload_id: Some(id),
            initiated: Some(info.started.into()),
            owner: Some(listing::owner()),
            ..MultipartUpload::default()
        });
        Ok(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            is_truncated: Some(last.is_some()),
            next_key_marker: last.as_ref().map(|(key, _)| key.clone()),
            next_upload_id_marker: last.map(|(_, id)| id),
            max_uploads: Some(most),
            prefix: Some(prefix),
            bucket: Some(input.bucket),
            ..ListMultipartUploadsOutput::default()
        })
    }
}

fn listed(part: PartInfo) -> Part {
    let sums = part.checksums.map(|sums| *sums).unwrap_or_default();
    Part {
        part_number: i32::try_from(part.number).ok(),
        size: i64::try_from(part.len).ok(),
        e_tag: strong(part.etag),
        last_modified: Some(part.modified.into()),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
    }
}
