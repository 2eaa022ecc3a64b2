//! ListObjects, version 1 and 2.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{
    CommonPrefix, ETag, EncodingType, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output,
    Object, ObjectStorageClass, Owner,
};
use s3s::{S3Result, s3_error};

use super::Wire;
use crate::store::{Entry, ListQuery, Listing, Store};

/// Most keys of a page.
const PAGE: i32 = 1000;

/// What `encoding-type=url` leaves as it is.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// Writes keys as the client asked for them.
#[derive(Clone, Copy)]
struct Encoding {
    url: bool,
}

impl Encoding {
    fn of(asked: Option<&EncodingType>) -> S3Result<Self> {
        match asked.map(EncodingType::as_str) {
            None | Some("") => Ok(Self { url: false }),
            Some("url") => Ok(Self { url: true }),
            Some(_) => Err(s3_error!(InvalidArgument, "invalid encoding method specified in request")),
        }
    }

    fn text(self, text: &str) -> String {
        if self.url { utf8_percent_encode(text, KEPT).to_string() } else { text.to_owned() }
    }

    fn echo(self) -> Option<EncodingType> {
        self.url.then(|| EncodingType::from_static(EncodingType::URL))
    }
}

fn limit(asked: Option<i32>) -> S3Result<i32> {
    match asked.unwrap_or(PAGE) {
        keys if keys < 0 => Err(s3_error!(InvalidArgument, "max-keys must not be negative")),
        keys => Ok(keys.min(PAGE)),
    }
}

pub(super) fn owner() -> Owner {
    Owner { id: Some("gpufeed".to_owned()), display_name: Some("gpufeed".to_owned()) }
}

fn object<B>(key: &str, entry: &Arc<Entry<B>>, encoding: Encoding, owned: bool) -> Object {
    let meta = &entry.meta;
    Object {
        key: Some(encoding.text(key)),
        e_tag: Some(ETag::Strong(meta.etag.to_string())),
        last_modified: Some(meta.modified.into()),
        size: i64::try_from(meta.len).ok(),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
        owner: owned.then(owner),
        ..Object::default()
    }
}

fn contents<B>(page: &Listing<B>, encoding: Encoding, owned: bool) -> (Vec<Object>, Vec<CommonPrefix>) {
    let objects = page.entries.iter().map(|(key, entry)| object(key, entry, encoding, owned)).collect();
    let prefix = |prefix: &String| CommonPrefix { prefix: Some(encoding.text(prefix)) };
    (objects, page.prefixes.iter().map(prefix).collect())
}

impl<S: Store> Wire<S> {
    pub(super) fn list_v2(&self, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
        let encoding = Encoding::of(input.encoding_type.as_ref())?;
        let limit = limit(input.max_keys)?;
        let token = match input.continuation_token.as_deref().filter(|token| !token.is_empty()) {
            None => None,
            Some(token) => {
                let bytes = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                Some(bytes.ok_or_else(|| s3_error!(InvalidArgument, "the continuation token provided is incorrect"))?)
            }
        };
        let prefix = input.prefix.unwrap_or_default();
        let delimiter = input.delimiter.filter(|text| !text.is_empty());
        let start_after = input.start_after.filter(|text| !text.is_empty());
        let page = self.store.list(
            &input.bucket,
            &ListQuery {
                prefix: &prefix,
                delimiter: delimiter.as_deref().unwrap_or_default(),
                after: token.as_deref().or(start_after.as_deref()).unwrap_or_default(),
                limit: limit as usize,
            },
        )?;
        let (contents, prefixes) = contents(&page, encoding, input.fetch_owner.unwrap_or(false));
        Ok(ListObjectsV2Output {
            key_count: i32::try_from(contents.len() + prefixes.len()).ok(),
            max_keys: Some(limit),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|next| URL_SAFE_NO_PAD.encode(next)),
            continuation_token: input.continuation_token,
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            delimiter: delimiter.map(|text| encoding.text(&text)),
            encoding_type: encoding.echo(),
            prefix: Some(encoding.text(&prefix)),
            start_after: start_after.map(|text| encoding.text(&text)),
            name: Some(input.bucket),
            ..ListObjectsV2Output::default()
        })
    }

    pub(super) fn list_v1(&self, input: ListObjectsInput) -> S3Result<ListObjectsOutput> {
        let encoding = Encoding::of(input.encoding_type.as_ref())?;
        let limit = limit(input.max_keys)?;
        let prefix = input.prefix.unwrap_or_default();
        let marker = input.marker.unwrap_or_default();
        let delimiter = input.delimiter.filter(|text| !text.is_empty());
        let page = self.store.list(
            &input.bucket,
            &ListQuery {
                prefix: &prefix,
                delimiter: delimiter.as_deref().unwrap_or_default(),
                after: &marker,
                limit: limit as usize,
            },
        )?;
        let (contents, prefixes) = contents(&page, encoding, true);
        Ok(ListObjectsOutput {
            is_truncated: Some(page.next.is_some()),
            next_marker: page.next.map(|next| encoding.text(&next)),
            max_keys: Some(limit),
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            delimiter: delimiter.map(|text| encoding.text(&text)),
            encoding_type: encoding.echo(),
            prefix: Some(encoding.text(&prefix)),
            marker: Some(encoding.text(&marker)),
            name: Some(input.bucket),
            ..ListObjectsOutput::default()
        })
    }
}
