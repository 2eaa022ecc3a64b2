//! What S3's answers mean: refusals as error kinds with a sentence, and the few XML fields that are read.

use gpufeed_engine::transport::OpError;
use gpufeed_workloads::op::ErrorKind;

/// A refused request, from its status line and XML body.
#[derive(Debug, Clone, Copy)]
pub struct Refusal<'a> {
    /// What was asked: `GET http://host/bucket/key`.
    pub what: &'a str,
    /// HTTP status.
    pub status: u16,
    /// `<Code>`, empty where the answer has none (as every answer to a HEAD).
    pub code: &'a str,
    /// `<Message>`, empty where the answer has none.
    pub message: &'a str,
}

fn kind(status: u16, code: &str) -> ErrorKind {
    match code {
        "SlowDown"
        | "ServiceUnavailable"
        | "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "SlowDownRead"
        | "SlowDownWrite" => ErrorKind::Throttled,
        "NoSuchKey" | "NoSuchBucket" | "NoSuchUpload" | "NotFound" => ErrorKind::NotFound,
        "AccessDenied"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "RequestTimeTooSkewed"
        | "AllAccessDisabled"
        | "NotSignedUp" => ErrorKind::Denied,
        "PreconditionFailed" | "ConditionalRequestConflict" => ErrorKind::Condition,
        "RequestTimeout" => ErrorKind::Timeout,
        "InsufficientStorage" | "XMinioStorageFull" | "QuotaExceeded" | "NoSpaceLeft" => ErrorKind::NoSpace,
        _ => match status {
            429 | 503 => ErrorKind::Throttled,
            401 | 403 => ErrorKind::Denied,
            404 => ErrorKind::NotFound,
            408 => ErrorKind::Timeout,
            409 | 412 => ErrorKind::Condition,
            507 => ErrorKind::NoSpace,
            400..=499 => ErrorKind::Client,
            500..=599 => ErrorKind::Server,
            _ => ErrorKind::Protocol,
        },
    }
}

/// Way out of the refusals that a person can do something about.
fn advice(status: u16, code: &str) -> Option<&'static str> {
    Some(match code {
        "NoSuchBucket" => "the bucket does not exist: create it or check its name",
        "InvalidAccessKeyId" | "NotSignedUp" => "the access key is unknown there: check AWS_ACCESS_KEY_ID",
        "SignatureDoesNotMatch" => "the signature is wrong: check AWS_SECRET_ACCESS_KEY and AWS_REGION",
        "ExpiredToken" | "TokenRefreshRequired" => "the session token has expired: get new credentials",
        "InvalidToken" => "the session token is not valid there: check AWS_SESSION_TOKEN",
        "RequestTimeTooSkewed" => "the clocks of client and server differ by too much: set them",
        "AccessDenied" => "these credentials lack the right to do this",
        "AuthorizationHeaderMalformed" => "the request is signed for another region: check AWS_REGION",
        _ => match status {
            300..=399 => "the endpoint points elsewhere: check --endpoint-url and AWS_REGION",
            401 | 403 => "the credentials are refused or lack the right to do this",
            _ => return None,
        },
    })
}

/// The error of a refusal, with one sentence for a person.
#[must_use]
pub fn refusal(refusal: Refusal<'_>) -> OpError {
    let Refusal { what, status, code, message } = refusal;
    let mut detail = if code.is_empty() {
        format!("{what} was answered {status}")
    } else {
        format!("{what} was answered {status} {code}")
    };
    if let Some(advice) = advice(status, code) {
        detail = format!("{detail}: {advice}");
    } else if !message.is_empty() {
        detail = format!("{detail}: {}", message.trim_end_matches('.'));
    }
    OpError::new(kind(status, code), detail)
}

/// Text of the first element called `name`, entities resolved.
pub(crate) fn element(xml: &str, name: &str) -> Option<String> {
    let mut rest = xml;
    loop {
        rest = &rest[rest.find('<')? + 1..];
        if let Some(text) = rest.strip_prefix(name).and_then(|rest| rest.strip_prefix('>')) {
            return Some(unescape(&text[..text.find('<')?]));
        }
    }
}

fn unescape(text: &str) -> String {
    if !text.contains('&') {
        return text.to_owned();
    }
    let text = text.replace("&quot;", "\"").replace("&#34;", "\"").replace("&apos;", "'").replace("&#39;", "'");
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// Appends text as it stands in an XML element.
pub(crate) fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_say_more_than_statuses() {
        let of = |status, code| refusal(Refusal { what: "GET x", status, code, message: "" }).kind;
        assert_eq!(of(503, ""), ErrorKind::Throttled);
        assert_eq!(of(503, "SlowDown"), ErrorKind::Throttled);
        assert_eq!(of(400, "ExpiredToken"), ErrorKind::Denied);
        assert_eq!(of(403, ""), ErrorKind::Denied);
        assert_eq!(of(404, "NoSuchBucket"), ErrorKind::NotFound);
        assert_eq!(of(409, "BucketAlreadyExists"), ErrorKind::Condition);
        assert_eq!(of(412, "PreconditionFailed"), ErrorKind::Condition);
        assert_eq!(of(418, ""), ErrorKind::Client);
        assert_eq!(of(500, "InternalError"), ErrorKind::Server);
        assert_eq!(of(507, ""), ErrorKind::NoSpace);
        assert_eq!(of(301, "PermanentRedirect"), ErrorKind::Protocol);
    }

    #[test]
    fn sentences_name_the_thing_and_the_way_out() {
        let error =
            refusal(Refusal { what: "GET http://h/b/k", status: 403, code: "SignatureDoesNotMatch", message: "m" });
        assert_eq!(
            error.to_string(),
            "GET http://h/b/k was answered 403 SignatureDoesNotMatch: the signature is wrong: check \
             AWS_SECRET_ACCESS_KEY and AWS_REGION"
        );
        let error = refusal(Refusal { what: "PUT x", status: 500, code: "InternalError", message: "Try again." });
        assert_eq!(error.to_string(), "PUT x was answered 500 InternalError: Try again");
    }

    #[test]
    fn elements_are_found_behind_attributes_and_other_names() {
        let xml =
            "<?xml version=\"1.0\"?><R xmlns=\"u\"><CodeX>1</CodeX><Code>A&amp;B</Code><ETag>&quot;e&quot;</ETag></R>";
        assert_eq!(element(xml, "Code").as_deref(), Some("A&B"));
        assert_eq!(element(xml, "ETag").as_deref(), Some("\"e\""));
        assert_eq!(element(xml, "Missing"), None);
        assert_eq!(element("<Code>never closed", "Code"), None);
    }

    proptest! {
        #[test]
        fn escaped_text_reads_back_and_no_text_panics(text in ".{0,60}", junk in "[<>/a-c&;]{0,40}") {
            let mut xml = String::from("<r><a>");
            escape(&text, &mut xml);
            xml.push_str("</a></r>");
            prop_assert_eq!(element(&xml, "a"), Some(text));
            let _ = element(&junk, "a");
        }
    }
}
