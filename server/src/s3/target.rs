//! Which bucket and key a request names.

use std::borrow::Cow;

use http::HeaderMap;
use percent_encoding::percent_decode_str;

/// A bucket, and a key if the request is about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// The bucket; empty for the service itself.
    pub(crate) bucket: Cow<'a, str>,
    /// The key; empty for the bucket itself.
    pub(crate) key: Cow<'a, str>,
}

/// The bucket in `bucket.domain:port`, where one of `domains` (each with a dot before it) is the domain.
pub(super) fn bucket_of_host<'a>(host: &'a str, domains: &[String]) -> Option<&'a str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    domains.iter().find_map(|domain| {
        let at = name.len().checked_sub(domain.len()).filter(|at| *at > 0)?;
        let tail = name.get(at..)?;
        tail.eq_ignore_ascii_case(domain).then(|| &name[..at])
    })
}

/// What the request with this path and these header fields is about; `None` when the path is not text.
pub(crate) fn of<'a>(path: &'a str, headers: &'a HeaderMap, domains: &[String]) -> Option<Target<'a>> {
    let path = path.strip_prefix('/')?;
    let host = (!domains.is_empty())
        .then(|| headers.get(http::header::HOST)?.to_str().ok())
        .flatten()
        .and_then(|host| bucket_of_host(host, domains));
    let (bucket, key) = match host {
        Some(bucket) => (bucket, path),
        None => path.split_once('/').unwrap_or((path, "")),
    };
    let decode = |text: &'a str| percent_decode_str(text).decode_utf8().ok();
    Some(Target { bucket: decode(bucket)?, key: decode(key)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str, host: &str) -> Option<(String, String)> {
        let mut headers = HeaderMap::new();
        headers.insert("host", host.parse().expect("a host"));
        let found = of(path, &headers, &[".s3.test".to_owned()])?;
        Some((found.bucket.into_owned(), found.key.into_owned()))
    }

    #[test]
    fn in_the_path_and_in_the_host() {
        let pair = |bucket: &str, key: &str| Some((bucket.to_owned(), key.to_owned()));
        assert_eq!(target("/b/k", "127.0.0.1:9000"), pair("b", "k"));
        assert_eq!(target("/b//k%2B%25%C3%A9+/", "s3.test"), pair("b", "/k+%é+/"));
        assert_eq!(target("/b", "s3.test:9000"), pair("b", ""));
        assert_eq!(target("/", "s3.test:9000"), pair("", ""));
        assert_eq!(target("/b/k", "buc.ket.S3.test:9000"), pair("buc.ket", "b/k"));
        assert_eq!(target("/k", ".s3.test"), pair("k", ""));
        assert_eq!(target("/b/%FF", "s3.test"), None);
    }
}
