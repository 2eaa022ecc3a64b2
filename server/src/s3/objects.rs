//! Objects are written, copied and deleted.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use md5::{Digest as _, Md5};
use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, DeleteObjectInput, DeleteObjectOutput,
    DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag, ETagCondition, Metadata, MetadataDirective,
    PutObjectInput, PutObjectOutput, Timestamp, TimestampFormat,
};
use s3s::{S3Error, S3Request, S3Result, s3_error};
use xxhash_rust::xxh3::Xxh3;

use super::conditions::{self, Conditions, Verdict, precondition};
use super::intake::{Said, computed, hasher};
use super::{Wire, multipart};
use crate::config::EtagKind;
use crate::store::{Attributes, ChecksumKind, Checksums, Entry, Etag, Meta, Precondition, Reader as _, Store};

/// Most keys of one DeleteObjects.
const DELETE_MANY: usize = 1000;
/// Most bytes of user metadata, names and values.
const USER_METADATA_BYTES: usize = 2 * 1024;

pub(super) fn strong(etag: Etag) -> Option<ETag> {
    Some(ETag::Strong(etag.to_string()))
}

fn header(headers: &HeaderMap, name: http::HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// What an object keeps of a request's header.
pub(super) fn attributes(headers: &HeaderMap, user: Option<Metadata>) -> S3Result<Option<Box<Attributes>>> {
    let encoding = header(headers, http::header::CONTENT_ENCODING).map(|codings| {
        let kept: Vec<_> = codings.split(',').map(str::trim).filter(|coding| *coding != "aws-chunked").collect();
        kept.join(",")
    });
    let mut user: Vec<_> = user.unwrap_or_default().into_iter().collect();
    user.sort();
    if user.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > USER_METADATA_BYTES {
        return Err(s3_error!(MetadataTooLarge, "your metadata headers exceed {USER_METADATA_BYTES} bytes"));
    }
    let attributes = Attributes {
        content_type: header(headers, http::header::CONTENT_TYPE),
        content_encoding: encoding.filter(|codings| !codings.is_empty()),
        content_language: header(headers, http::header::CONTENT_LANGUAGE),
        content_disposition: header(headers, http::header::CONTENT_DISPOSITION),
        cache_control: header(headers, http::header::CACHE_CONTROL),
        expires: header(headers, http::header::EXPIRES),
        user,
    };
    Ok((attributes != Attributes::default()).then(|| Box::new(attributes)))
}

/// The bucket and key of a copy's source.
pub(super) fn source(copied: &CopySource) -> S3Result<(&str, &str)> {
    match copied {
        CopySource::Bucket { bucket, key, version_id } if version_id.as_deref().is_none_or(|id| id == "null") => {
            Ok((bucket, key))
        }
        CopySource::Bucket { .. } => Err(s3_error!(NoSuchVersion, "the specified version does not exist")),
        _ => Err(s3_error!(NotImplemented, "access points are not implemented; name the bucket")),
    }
}

/// What a copy is conditional on, as text that [`Conditions`] can borrow.
#[derive(Debug, Default)]
pub(super) struct SourceConditions {
    pub(super) if_match: Option<String>,
    pub(super) if_none_match: Option<String>,
    pub(super) if_modified_since: Option<SystemTime>,
    pub(super) if_unmodified_since: Option<SystemTime>,
}

impl SourceConditions {
    pub(super) fn new(
        if_match: Option<&ETagCondition>,
        if_none_match: Option<&ETagCondition>,
        if_modified_since: Option<Timestamp>,
        if_unmodified_since: Option<Timestamp>,
    ) -> Self {
        // By way of the text it came as: a Timestamp does not show its seconds.
        let time = |at: Timestamp| {
            let mut text = Vec::new();
            at.format(TimestampFormat::HttpDate, &mut text).ok()?;
            httpdate::parse_http_date(std::str::from_utf8(&text).ok()?).ok()
        };
        Self {
            if_match: conditions::text(if_match),
            if_none_match: conditions::text(if_none_match),
            if_modified_since: if_modified_since.and_then(time),
            if_unmodified_since: if_unmodified_since.and_then(time),
        }
    }

    /// Whether the source may be copied.
    pub(super) fn check(&self, meta: &Meta) -> S3Result<()> {
        let conditions = Conditions {
            if_match: self.if_match.as_deref(),
            if_none_match: self.if_none_match.as_deref(),
            if_modified_since: self.if_modified_since,
            if_unmodified_since: self.if_unmodified_since,
        };
        match conditions.judge(meta) {
            Verdict::Go => Ok(()),
            Verdict::NotModified | Verdict::Failed => Err(crate::store::StoreError::PreconditionFailed.into()),
        }
    }
}

impl<S: Store> Wire<S> {
    pub(super) async fn put(&self, req: S3Request<PutObjectInput>) -> S3Result<PutObjectOutput> {
        let PutObjectInput { bucket, key, body, content_length, content_md5, metadata, checksum_algorithm, .. } =
            req.input;
        self.store.bucket(&bucket)?;
        let only = precondition(req.input.if_match, req.input.if_none_match);
        // What is refused anyway is refused before its body is taken in; the write itself checks again.
        only.check(self.store.find(&bucket, &key).ok().map(|there| there.meta.etag))?;
        let attributes = attributes(&req.headers, metadata)?;
        let said = Said {
            len: content_length.and_then(|len| u64::try_from(len).ok()),
            md5: content_md5,
            checksums: Checksums {
                kind: ChecksumKind::FullObject,
                crc32: req.input.checksum_crc32,
                crc32c: req.input.checksum_crc32c,
                crc64nvme: req.input.checksum_crc64nvme,
                sha1: req.input.checksum_sha1,
                sha256: req.input.checksum_sha256,
            },
            algorithm: checksum_algorithm.map(|algorithm| algorithm.as_str().to_owned()),
            trailers: req.trailing_headers,
        };
        let received = self.receive(&key, 0, body, said).await?;
        let meta = Meta {
            len: received.len,
            etag: received.etag,
            modified: SystemTime::now(),
            attributes,
            checksums: received.checksums,
            part_lens: None,
        };
        let entry = self.store.put(&bucket, &key, Entry { meta, body: received.body }, &only).await?;
        let mut output = PutObjectOutput { e_tag: strong(entry.meta.etag), ..PutObjectOutput::default() };
        if let Some(sums) = entry.meta.checksums.as_deref().cloned() {
            output.checksum_crc32 = sums.crc32;
            output.checksum_crc32c = sums.crc32c;
            output.checksum_crc64nvme = sums.crc64nvme;
            output.checksum_sha1 = sums.sha1;
            output.checksum_sha256 = sums.sha256;
            output.checksum_type = Some(multipart::checksum_type(sums.kind));
        }
        Ok(output)
    }

    pub(super) async fn delete(&self, input: DeleteObjectInput) -> S3Result<DeleteObjectOutput> {
        let only = precondition(input.if_match, None);
        self.store.delete(&input.bucket, &input.key, &only).await?;
        Ok(DeleteObjectOutput::default())
    }

    pub(super) async fn delete_many(&self, input: DeleteObjectsInput) -> S3Result<DeleteObjectsOutput> {
        self.store.bucket(&input.bucket)?;
        let keys = input.delete.objects;
        if keys.is_empty() || keys.len() > DELETE_MANY {
            return Err(s3_error!(MalformedXML, "1 to {DELETE_MANY} keys can be deleted at once, not {}", keys.len()));
        }
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for object in keys {
            let only = precondition(object.e_tag.map(ETagCondition::ETag), None);
            match self.store.delete(&input.bucket, &object.key, &only).await {
                Ok(_) => deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() }),
                Err(error) => {
                    let error = S3Error::from(error);
                    errors.push(s3s::dto::Error {
                        code: Some(error.code().as_str().to_owned()),
                        message: error.message().map(str::to_owned),
                        key: Some(object.key),
                        version_id: None,
                    });
                }
            }
        }
        let deleted = (!input.delete.quiet.unwrap_or(false)).then_some(deleted);
        Ok(DeleteObjectsOutput { deleted, errors: Some(errors), ..DeleteObjectsOutput::default() })
    }

    pub(super) async fn copy(&self, req: S3Request<CopyObjectInput>) -> S3Result<CopyObjectOutput> {
        let input = req.input;
        let (from_bucket, from_key) = source(&input.copy_source)?;
        let from = self.store.find(from_bucket, from_key)?;
        SourceConditions::new(
            input.copy_source_if_match.as_ref(),
            input.copy_source_if_none_match.as_ref(),
            input.copy_source_if_modified_since,
            input.copy_source_if_unmodified_since,
        )
        .check(&from.meta)?;
        let replace =
            input.metadata_directive.is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE);
        if !replace && from_bucket == input.bucket && from_key == input.key {
            return Err(s3_error!(InvalidRequest, "a copy of an object onto itself must replace its metadata"));
        }
        let mut meta = Meta { modified: SystemTime::now(), ..from.meta.clone() };
        if replace {
            meta.attributes = attributes(&req.headers, input.metadata)?;
        }
        if let Some(algorithm) = input.checksum_algorithm {
            let (_, sums) = self.hash(&from, 0..from.meta.len, None, Some(algorithm.as_str())).await?;
            meta.checksums = (!sums.is_empty()).then(|| Box::new(sums));
        }
        let body = self.store.slice(&from, 0..from.meta.len);
        let entry = self.store.put(&input.bucket, &input.key, Entry { meta, body }, &Precondition::default()).await?;
        let sums = entry.meta.checksums.as_deref().cloned().unwrap_or_default();
        let result = CopyObjectResult {
            e_tag: strong(entry.meta.etag),
            last_modified: Some(entry.meta.modified.into()),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            checksum_type: entry.meta.checksums.as_deref().map(|sums| multipart::checksum_type(sums.kind)),
        };
        Ok(CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() })
    }

    /// Reads bytes of an object again for their tag and checksum.
    pub(super) async fn hash(
        &self,
        entry: &Arc<Entry<S::Body>>,
        range: Range<u64>,
        tag: Option<EtagKind>,
        algorithm: Option<&str>,
    ) -> S3Result<(Option<Etag>, Checksums)> {
        let mut sums = hasher(|name| algorithm.is_some_and(|wanted| wanted.eq_ignore_ascii_case(name)));
        let mut md5 = (tag == Some(EtagKind::Md5)).then(Md5::new);
        let mut fast = (tag == Some(EtagKind::Fast)).then(|| Box::new(Xxh3::new()));
        let mut reader = self.store.read(entry, range);
        while let Some(chunk) = std::future::poll_fn(|cx| reader.poll_chunk(cx)).await {
            let chunk = chunk?;
            sums.update(&chunk);
            if let Some(hash) = &mut md5 {
                hash.update(&chunk);
            }
            if let Some(hash) = &mut fast {
                hash.update(&chunk);
            }
            // Other connections of this core want to be served too.
            tokio::task::yield_now().await;
        }
        let etag = md5.map(|hash| Etag::Md5(hash.finalize().into())).or(fast.map(|hash| Etag::Fast(hash.digest128())));
        Ok((etag, computed(sums)))
    }
}
