//! GET and HEAD of objects, from the header fields on.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH,
    CONTENT_RANGE, CONTENT_TYPE, ETAG, EXPIRES, LAST_MODIFIED, RANGE,
};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};

use super::Wire;
use super::conditions::{Conditions, Verdict};
use super::intake::{ALGORITHMS, slot};
use super::target::{self, Target};
use crate::store::{ChecksumKind, Entry, Meta, Store, StoreError};

const XML: HeaderValue = HeaderValue::from_static("application/xml");
const BINARY: HeaderValue = HeaderValue::from_static("binary/octet-stream");
const BYTES: HeaderValue = HeaderValue::from_static("bytes");

/// Bytes of an object that are to be sent as the body of a response.
#[derive(Debug)]
pub(crate) struct Send<B> {
    pub(crate) entry: Arc<Entry<B>>,
    pub(crate) range: Range<u64>,
}

impl<B> Clone for Send<B> {
    fn clone(&self) -> Self {
        Self { entry: Arc::clone(&self.entry), range: self.range.clone() }
    }
}

/// The answer to a GET or HEAD.
#[derive(Debug)]
pub(crate) struct Answer<B> {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: AnswerBody<B>,
}

#[derive(Debug)]
pub(crate) enum AnswerBody<B> {
    None,
    /// An error document.
    Text(Bytes),
    Object(Send<B>),
}

/// Query fields that leave a GET or HEAD of an object one.
fn is_read_field(name: &str) -> bool {
    let starts = |prefix: &str| name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    matches!(name, "" | "partNumber" | "versionId" | "x-id" | "AWSAccessKeyId" | "Signature" | "Expires")
        || starts("response-")
        || starts("x-amz-")
}

fn fields(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|field| field.split_once('=').unwrap_or((field, "")))
}

/// Whether a request is a read of an object, whose bytes are asked for and not, say, its tags.
pub(crate) fn is_read(method: &Method, target: &Target<'_>, query: Option<&str>) -> bool {
    (method == Method::GET || method == Method::HEAD)
        && !target.bucket.is_empty()
        && !target.key.is_empty()
        && query.is_none_or(|query| fields(query).all(|(name, _)| is_read_field(name)))
}

fn decoded(value: &str) -> Cow<'_, str> {
    let spaced = if value.contains('+') { Cow::Owned(value.replace('+', " ")) } else { Cow::Borrowed(value) };
    match percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy() {
        Cow::Borrowed(same) if same.len() == spaced.len() => spaced,
        other => Cow::Owned(other.into_owned()),
    }
}

fn escaped(text: &str) -> String {
    // What XML cannot hold at all is left out.
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// An error document of S3. `more` is XML.
pub(crate) fn error<B>(status: StatusCode, code: &str, message: &str, more: &str, head: bool) -> Answer<B> {
    let mut headers = HeaderMap::new();
    if head {
        return Answer { status, headers, body: AnswerBody::None };
    }
    let message = escaped(message);
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    );
    headers.insert(CONTENT_TYPE, XML);
    Answer { status, headers, body: AnswerBody::Text(text.into()) }
}

/// What part of an object is asked for.
enum Part {
    Whole,
    /// A range, in bytes.
    Range(Range<u64>),
    /// Beyond the end.
    None,
}

/// The part of an object of `meta` that Range or `partNumber` names. What is not a range is ignored, as HTTP wants it.
fn part(meta: &Meta, headers: &HeaderMap, part_number: Option<u32>) -> Part {
    if let Some(number) = part_number {
        let lens = meta.part_lens.as_deref().unwrap_or(std::slice::from_ref(&meta.len));
        let Some(index) = (number as usize).checked_sub(1).filter(|index| *index < lens.len()) else {
            return Part::None;
        };
        let start: u64 = lens[..index].iter().sum();
        return Part::Range(start..start + lens[index]);
    }
    let Some(range) = headers.get(RANGE).and_then(|value| value.to_str().ok()) else { return Part::Whole };
    match s3s::dto::Range::parse(range) {
        Err(_) => Part::Whole,
        Ok(_) if meta.len == 0 => Part::None,
        Ok(range) => range.check(meta.len).map_or(Part::None, Part::Range),
    }
}

/// `name: value`, if it is a value at all; what was stored came out of a header.
fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<&str>) {
    if let Some(value) = value.and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok()) {
        headers.insert(name, value);
    }
}

/// The fields that say what an object is.
fn describe(meta: &Meta, headers: &mut HeaderMap) {
    let tag = format!("\"{}\"", meta.etag);
    headers.insert(ETAG, HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("\"\"")));
    put(headers, LAST_MODIFIED, Some(&httpdate::fmt_http_date(meta.modified)));
    headers.insert(ACCEPT_RANGES, BYTES);
    headers.insert(CONTENT_TYPE, BINARY);
    let Some(attributes) = meta.attributes.as_deref() else { return };
    put(headers, CONTENT_TYPE, attributes.content_type.as_deref());
    put(headers, CONTENT_ENCODING, attributes.content_encoding.as_deref());
    put(headers, CONTENT_LANGUAGE, attributes.content_language.as_deref());
    put(headers, CONTENT_DISPOSITION, attributes.content_disposition.as_deref());
    put(headers, CACHE_CONTROL, attributes.cache_control.as_deref());
    put(headers, EXPIRES, attributes.expires.as_deref());
    for (name, value) in &attributes.user {
        if let Ok(name) = HeaderName::try_from(format!("x-amz-meta-{name}")) {
            put(headers, name, Some(value));
        }
    }
}

fn describe_checksums(meta: &Meta, headers: &mut HeaderMap) {
    let Some(mut sums) = meta.checksums.as_deref().cloned() else { return };
    for (name, field) in ALGORITHMS {
        let value = slot(&mut sums, name).and_then(|value| value.take());
        put(headers, HeaderName::from_static(field), value.as_deref());
    }
    let kind = match sums.kind {
        ChecksumKind::FullObject => "FULL_OBJECT",
        ChecksumKind::Composite => "COMPOSITE",
    };
    put(headers, HeaderName::from_static("x-amz-checksum-type"), Some(kind));
}

/// The `response-` fields of a query, which override what the object says of itself.
fn override_fields(query: &str, headers: &mut HeaderMap) {
    for (name, value) in fields(query) {
        let name = match name {
            "response-content-type" => CONTENT_TYPE,
            "response-content-language" => CONTENT_LANGUAGE,
            "response-expires" => EXPIRES,
            "response-cache-control" => CACHE_CONTROL,
            "response-content-disposition" => CONTENT_DISPOSITION,
            "response-content-encoding" => CONTENT_ENCODING,
            _ => continue,
        };
        put(headers, name, Some(&decoded(value)));
    }
}

impl<S: Store> Wire<S> {
    /// Answers a GET or HEAD of an object whose signature holds.
    pub(crate) fn read(
        &self,
        target: &Target<'_>,
        query: Option<&str>,
        headers: &HeaderMap,
        head: bool,
    ) -> Answer<S::Body> {
        let entry = match self.store.find(&target.bucket, &target.key) {
            Ok(entry) => entry,
            Err(refused) => {
                let bucket = format!("<BucketName>{}</BucketName>", escaped(&target.bucket));
                let (code, more) = match refused {
                    StoreError::NoSuchBucket(_) => ("NoSuchBucket", bucket),
                    _ => ("NoSuchKey", format!("<Key>{}</Key>", escaped(&target.key))),
                };
                return error(StatusCode::NOT_FOUND, code, &refused.to_string(), &more, head);
            }
        };
        let meta = &entry.meta;
        let query_field = |wanted: &str| fields(query?).find(|(name, _)| *name == wanted).map(|(_, value)| value);
        if query_field("versionId").is_some_and(|id| !matches!(id, "" | "null")) {
            let message = "the specified version does not exist";
            return error(StatusCode::NOT_FOUND, "NoSuchVersion", message, "", head);
        }
        let part_number = match query_field("partNumber").map(str::parse::<u32>) {
            None => None,
            Some(Ok(number)) if (1..=10_000).contains(&number) => Some(number),
            Some(_) => {
                let message = "part number must be an integer between 1 and 10000, inclusive";
                return error(StatusCode::BAD_REQUEST, "InvalidArgument", message, "", head);
            }
        };
        match Conditions::of(headers).judge(meta) {
            Verdict::Go => {}
            Verdict::NotModified => {
                let mut fields = HeaderMap::new();
                describe(meta, &mut fields);
                fields.remove(CONTENT_TYPE);
                return Answer { status: StatusCode::NOT_MODIFIED, headers: fields, body: AnswerBody::None };
            }
            Verdict::Failed => {
                let message = "at least one of the preconditions you specified did not hold";
                return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", message, "", head);
            }
        }
        let (status, range) = match part(meta, headers, part_number) {
            Part::Whole => (StatusCode::OK, 0..meta.len),
            // An empty part has no first and last byte for Content-Range to name.
            Part::Range(range) if range.is_empty() => (StatusCode::OK, range),
            Part::Range(range) => (StatusCode::PARTIAL_CONTENT, range),
            Part::None => {
                let more = format!("<ActualObjectSize>{}</ActualObjectSize>", meta.len);
                let message = "the requested range is not satisfiable";
                let code = if part_number.is_some() { "InvalidPartNumber" } else { "InvalidRange" };
                let mut answer = error(StatusCode::RANGE_NOT_SATISFIABLE, code, message, &more, head);
                put(&mut answer.headers, CONTENT_RANGE, Some(&format!("bytes */{}", meta.len)));
                return answer;
            }
        };
        let mut fields = HeaderMap::with_capacity(8);
        describe(meta, &mut fields);
        fields.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
        if status == StatusCode::PARTIAL_CONTENT {
            let text = format!("bytes {}-{}/{}", range.start, range.end - 1, meta.len);
            put(&mut fields, CONTENT_RANGE, Some(&text));
        }
        if part_number.is_some()
            && let Some(lens) = &meta.part_lens
        {
            fields.insert(HeaderName::from_static("x-amz-mp-parts-count"), HeaderValue::from(lens.len()));
        }
        // A stored checksum is of the whole object, so it says nothing of a part.
        if range == (0..meta.len) && headers.get("x-amz-checksum-mode").is_some_and(|mode| mode == "ENABLED") {
            describe_checksums(meta, &mut fields);
        }
        if let Some(query) = query {
            override_fields(query, &mut fields);
        }
        let body = if head { AnswerBody::None } else { AnswerBody::Object(Send { entry, range }) };
        Answer { status, headers: fields, body }
    }
}

/// Takes reads of objects from s3s, once it has checked the signature.
#[derive(Debug)]
pub(super) struct Reads<S>(pub(super) Arc<Wire<S>>);

#[async_trait::async_trait]
impl<S: Store> S3Route for Reads<S> {
    fn is_match(&self, method: &Method, uri: &Uri, headers: &HeaderMap, _: &mut Extensions) -> bool {
        let target = target::of(uri.path(), headers, &self.0.domains);
        target.is_some_and(|target| is_read(method, &target, uri.query()))
    }

    async fn call(&self, req: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let target = target::of(req.uri.path(), &req.headers, &self.0.domains).ok_or_else(|| s3_error!(InvalidURI))?;
        if target.key.len() > 1024 {
            return Err(s3_error!(KeyTooLongError));
        }
        let answer = self.0.read(&target, req.uri.query(), &req.headers, req.method == Method::HEAD);
        let mut response = S3Response::with_status(Body::empty(), answer.status);
        response.headers = answer.headers;
        match answer.body {
            AnswerBody::None => {}
            AnswerBody::Text(text) => response.output = Body::from(text),
            AnswerBody::Object(send) => {
                response.extensions.insert(send);
            }
        }
        Ok(response)
    }
}

impl<S> Wire<S> {
    /// What a request is about.
    pub(crate) fn target<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap) -> Option<Target<'a>> {
        target::of(uri.path(), headers, &self.domains)
    }
}
