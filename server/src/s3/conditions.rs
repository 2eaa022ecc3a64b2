//! If-Match and its kin.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
use s3s::dto::ETagCondition;

use crate::store::{EtagMatch, Meta, Precondition};

/// How the conditions of a read turn out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Read.
    Go,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// What a read is conditional on; RFC 9110 §13.2.2 gives the order.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Conditions<'a> {
    pub(super) if_match: Option<&'a str>,
    pub(super) if_none_match: Option<&'a str>,
    pub(super) if_modified_since: Option<SystemTime>,
    pub(super) if_unmodified_since: Option<SystemTime>,
}

/// Dates in headers are whole seconds, so objects are compared in whole seconds.
fn whole_seconds(time: SystemTime) -> Duration {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(since.as_secs())
}

/// Whether one of a list of entity tags, or `*`, is this one.
fn names(list: &str, etag: &str) -> bool {
    list.split(',').map(str::trim).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || tag.trim_matches('"') == etag
    })
}

impl<'a> Conditions<'a> {
    /// From the header fields; a malformed date is no condition.
    pub(super) fn of(headers: &'a HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let date = |name| text(name).and_then(|value: &str| httpdate::parse_http_date(value).ok());
        Self {
            if_match: text(IF_MATCH),
            if_none_match: text(IF_NONE_MATCH),
            if_modified_since: date(IF_MODIFIED_SINCE),
            if_unmodified_since: date(IF_UNMODIFIED_SINCE),
        }
    }

    fn is_none(&self) -> bool {
        self.if_match.is_none()
            && self.if_none_match.is_none()
            && self.if_modified_since.is_none()
            && self.if_unmodified_since.is_none()
    }

    /// What they say of an object.
    pub(super) fn judge(&self, meta: &Meta) -> Verdict {
        if self.is_none() {
            return Verdict::Go;
        }
        let etag = meta.etag.to_string();
        let modified = whole_seconds(meta.modified);
        let passes = match (self.if_match, self.if_unmodified_since) {
            (Some(list), _) => names(list, &etag),
            (None, Some(since)) => modified <= whole_seconds(since),
            (None, None) => true,
        };
        if !passes {
            return Verdict::Failed;
        }
        let changed = match (self.if_none_match, self.if_modified_since) {
            (Some(list), _) => !names(list, &etag),
            (None, Some(since)) => modified > whole_seconds(since),
            (None, None) => true,
        };
        if changed { Verdict::Go } else { Verdict::NotModified }
    }
}

/// The precondition of a write.
pub(super) fn precondition(if_match: Option<ETagCondition>, if_none_match: Option<ETagCondition>) -> Precondition {
    let of = |condition: ETagCondition| match condition.into_etag() {
        Some(etag) => EtagMatch::Tag(etag.into_value()),
        None => EtagMatch::Any,
    };
    Precondition { if_match: if_match.map(of), if_none_match: if_none_match.map(of) }
}

/// The text of a condition, as [`Conditions`] reads it.
pub(super) fn text(condition: Option<&ETagCondition>) -> Option<String> {
    condition.map(|condition| condition.as_etag().map_or_else(|| "*".to_owned(), |etag| etag.value().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Etag;

    fn judge(fields: &[(&'static str, String)]) -> Verdict {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.insert(*name, value.parse().expect("a value"));
        }
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_500);
        let meta = Meta { len: 1, etag: Etag::Fast(7), modified, attributes: None, checksums: None, part_lens: None };
        Conditions::of(&headers).judge(&meta)
    }

    #[test]
    fn tags_before_dates() {
        let tag = format!("\"{}\"", Etag::Fast(7));
        let other = "\"other\"".to_owned();
        let date = |seconds| httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(judge(&[]), Verdict::Go);
        assert_eq!(judge(&[("if-match", tag.clone())]), Verdict::Go);
        assert_eq!(judge(&[("if-match", other.clone())]), Verdict::Failed);
        assert_eq!(judge(&[("if-none-match", format!("{other}, W/{tag}"))]), Verdict::NotModified);
        assert_eq!(judge(&[("if-none-match", "*".into())]), Verdict::NotModified);
        assert_eq!(judge(&[("if-modified-since", date(1_000_000))]), Verdict::NotModified);
        assert_eq!(judge(&[("if-modified-since", date(999_999))]), Verdict::Go);
        assert_eq!(judge(&[("if-unmodified-since", date(999_999))]), Verdict::Failed);
        assert_eq!(judge(&[("if-unmodified-since", date(1_000_000))]), Verdict::Go);
        assert_eq!(judge(&[("if-unmodified-since", date(1)), ("if-match", tag.clone())]), Verdict::Go);
        assert_eq!(judge(&[("if-modified-since", date(1)), ("if-none-match", tag)]), Verdict::NotModified);
        assert_eq!(judge(&[("if-modified-since", "yesterday".into())]), Verdict::Go);
    }
}
