//! AWS Signature Version 4 in the one canonical form this client sends: `host` and the `x-amz-` headers are signed,
//! keys are percent-encoded once, queries come sorted. The signing key is derived once a day, buffers are reused.
//!
//! Source: AWS documentation, "Create a signed AWS API request" and "Authenticating requests: using the Authorization
//! header (AWS Signature Version 4)"; the tests compare with the `aws-sigv4` crate.

use std::fmt::Write as _;

use bytes::{BufMut, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderValue;
use sha2::{Digest, Sha256};

use super::config::Credentials;

/// SHA-256 of nothing.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What the signature says about the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadHash {
    /// There is none.
    Empty,
    /// It is not covered: hashing it would be part of the measurement.
    Unsigned,
}

impl PayloadHash {
    /// The value of `x-amz-content-sha256`.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Empty => EMPTY,
            Self::Unsigned => "UNSIGNED-PAYLOAD",
        }
    }
}

/// Signs requests of one lane with one pair of keys.
pub struct Signer {
    credentials: Credentials,
    region: String,
    /// Days since 1970 that `key` and `scope` are for.
    day: u64,
    second: u64,
    /// Keyed with the signing key of the day: a copy of it starts each signature.
    key: Hmac<Sha256>,
    /// `20130524/us-east-1/s3/aws4_request`
    scope: String,
    /// `20130524T000000Z`
    stamp: String,
    date: HeaderValue,
    token: Option<HeaderValue>,
    /// Canonical request and string to sign.
    text: Vec<u8>,
}

fn mac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

fn hex(bytes: &[u8; 32]) -> [u8; 64] {
    let mut text = [0; 64];
    hex::encode_to_slice(bytes, &mut text).expect("64 digits of 32 bytes");
    text
}

impl Signer {
    /// A signer for `region`. Characters that no header may carry make the token unsendable: it is refused.
    ///
    /// # Errors
    /// The sentence to show when the session token is not a header value.
    pub fn new(credentials: &Credentials, region: &str) -> Result<Self, &'static str> {
        let token = match &credentials.session_token {
            Some(token) => {
                let mut value =
                    HeaderValue::from_str(token.trim()).map_err(|_| "the session token holds control characters")?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let mut signer = Self {
            credentials: credentials.clone(),
            region: region.to_owned(),
            day: u64::MAX,
            second: u64::MAX,
            key: Hmac::new_from_slice(b"").expect("HMAC takes a key of any length"),
            scope: String::new(),
            stamp: String::new(),
            date: HeaderValue::from_static(""),
            token,
            text: Vec::with_capacity(1024),
        };
        signer.set_time(0);
        Ok(signer)
    }

    /// Signs as of `second` of Unix time until told otherwise.
    pub fn set_time(&mut self, second: u64) {
        if second == self.second {
            return;
        }
        self.second = second;
        let day = second / 86_400;
        let (year, month, date) = civil(day);
        let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
        self.stamp.clear();
        // Writing to a String cannot fail.
        let _ = write!(self.stamp, "{year:04}{month:02}{date:02}T{hour:02}{minute:02}{second:02}Z");
        self.date = HeaderValue::from_str(&self.stamp).expect("digits and letters");
        if day != self.day {
            self.day = day;
            let secret = format!("AWS4{}", self.credentials.secret_key);
            let key = mac(secret.as_bytes(), &self.stamp.as_bytes()[..8]);
            let key = mac(&mac(&key, self.region.as_bytes()), b"s3");
            let key = mac(&key, b"aws4_request");
            self.key = Hmac::new_from_slice(&key).expect("HMAC takes a key of any length");
            self.scope = format!("{}/{}/s3/aws4_request", &self.stamp[..8], self.region);
        }
    }

    /// The value of `x-amz-date` that the next signature covers.
    #[must_use]
    pub const fn date(&self) -> &HeaderValue {
        &self.date
    }

    /// The value of `x-amz-security-token` that signatures cover, if there is one.
    #[must_use]
    pub const fn token(&self) -> Option<&HeaderValue> {
        self.token.as_ref()
    }

    /// Appends the value of `authorization` to `out`. `path` and `query` are as they are sent: encoded, the query
    /// sorted by name.
    pub fn authorize(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        host: &str,
        payload: PayloadHash,
        out: &mut BytesMut,
    ) {
        let signed: &str = if self.token.is_some() {
            "host;x-amz-content-sha256;x-amz-date;x-amz-security-token"
        } else {
            "host;x-amz-content-sha256;x-amz-date"
        };
        let text = &mut self.text;
        text.clear();
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| text.extend_from_slice(part));
        put(&[method.as_bytes(), b"\n", path.as_bytes(), b"\n", query.as_bytes(), b"\nhost:", host.as_bytes()]);
        put(&[b"\nx-amz-content-sha256:", payload.text().as_bytes(), b"\nx-amz-date:", self.stamp.as_bytes()]);
        if let Some(token) = &self.token {
            put(&[b"\nx-amz-security-token:", token.as_bytes()]);
        }
        put(&[b"\n\n", signed.as_bytes(), b"\n", payload.text().as_bytes()]);
        let request = hex(&Sha256::digest(&*text).into());

        text.clear();
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| text.extend_from_slice(part));
        put(&[ALGORITHM.as_bytes(), b"\n", self.stamp.as_bytes(), b"\n", self.scope.as_bytes(), b"\n", &request]);
        let mut mac = self.key.clone();
        mac.update(text);
        let signature = hex(&mac.finalize().into_bytes().into());

        out.put_slice(ALGORITHM.as_bytes());
        out.put_slice(b" Credential=");
        out.put_slice(self.credentials.access_key.as_bytes());
        out.put_slice(b"/");
        out.put_slice(self.scope.as_bytes());
        out.put_slice(b", SignedHeaders=");
        out.put_slice(signed.as_bytes());
        out.put_slice(b", Signature=");
        out.put_slice(&signature);
    }
}

/// Year, month and day of the month of a day since 1970-01-01 (H. Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`, for days that are not negative).
const fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + (month <= 2) as u64, month, day)
}

fn encode(text: &str, keep: impl Fn(u8) -> bool, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') || keep(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

/// Appends an object key as it stands in a path: percent-encoded, slashes kept.
pub fn encode_key(key: &str, out: &mut String) {
    encode(key, |byte| byte == b'/', out);
}

/// Appends a value as it stands in a query: percent-encoded, slashes too.
pub fn encode_query(value: &str, out: &mut String) {
    encode(value, |_| false, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sigv4::http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
        UriPathNormalizationMode, sign,
    };
    use aws_sigv4::sign::v4;
    use proptest::prelude::*;
    use std::time::{Duration, SystemTime};

    /// The `authorization` that aws-sigv4 makes for the same request.
    fn reference(c: &Credentials, region: &str, second: u64, method: &str, uri: &str, payload: PayloadHash) -> String {
        let identity = aws_credential_types::Credentials::new(
            c.access_key.clone(),
            c.secret_key.clone(),
            c.session_token.clone(),
            None,
            "test",
        )
        .into();
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name("s3")
            .time(SystemTime::UNIX_EPOCH + Duration::from_secs(second))
            .settings(settings)
            .build()
            .expect("all given")
            .into();
        let body = match payload {
            PayloadHash::Empty => SignableBody::Bytes(b""),
            PayloadHash::Unsigned => SignableBody::UnsignedPayload,
        };
        let request = SignableRequest::new(method, uri, std::iter::empty(), body).expect("a request");
        let (instructions, _) = sign(request, &params).expect("signs").into_parts();
        let (headers, _) = instructions.into_parts();
        let header = headers.iter().find(|h| h.name() == "authorization").expect("an authorization");
        header.value().to_owned()
    }

    fn ours(c: &Credentials, region: &str, second: u64, method: &str, uri: &http::Uri, payload: PayloadHash) -> String {
        let mut signer = Signer::new(c, region).expect("a sendable token");
        let mut out = BytesMut::new();
        signer.set_time(second);
        let host = uri.authority().expect("a host").as_str();
        signer.authorize(method, uri.path(), uri.query().unwrap_or(""), host, payload, &mut out);
        String::from_utf8(out.to_vec()).expect("text")
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (day, date) in [(0, (1970, 1, 1)), (59, (1970, 3, 1)), (11_016, (2000, 2, 29)), (47_540, (2100, 2, 28))] {
            assert_eq!(civil(day), date);
        }
        assert_eq!(civil(47_541), (2100, 3, 1));
    }

    #[test]
    fn the_key_rolls_at_midnight() {
        let credentials = Credentials::new("AK", "secret", None);
        let uri: http::Uri = "http://h/b/k".parse().expect("a URI");
        let mut signer = Signer::new(&credentials, "r").expect("no token");
        for second in [86_399, 86_400, 86_401, 1_900_000_000, 86_399] {
            let mut out = BytesMut::new();
            signer.set_time(second);
            signer.authorize("GET", "/b/k", "", "h", PayloadHash::Empty, &mut out);
            assert_eq!(out, reference(&credentials, "r", second, "GET", &uri.to_string(), PayloadHash::Empty));
        }
    }

    proptest! {
        #[test]
        fn signatures_are_those_of_aws_sigv4(
            key in "[a-zA-Z0-9 +%/?#&=~._:@!$'()*,;\\-\\[\\]{}^`|<>\"\\\\äß漢🦀\u{1}\u{7f}]{1,40}",
            value in ".{0,30}",
            access in "[A-Z0-9]{1,20}",
            secret in "[a-zA-Z0-9+/=]{1,80}",
            token in prop::option::of("[a-zA-Z0-9+/=]{1,300}"),
            region in "[a-z0-9-]{1,16}",
            second in 0u64..6_000_000_000,
            method in prop::sample::select(vec!["GET", "PUT", "HEAD", "DELETE", "POST"]),
            unsigned: bool,
        ) {
            let credentials = Credentials::new(&access, &secret, token.as_deref());
            let mut uri = String::from("http://storage.example:9000/bucket/");
            encode_key(&key, &mut uri);
            uri.push_str("?list-type=2&max-keys=10&prefix=");
            encode_query(&value, &mut uri);
            let payload = if unsigned { PayloadHash::Unsigned } else { PayloadHash::Empty };
            let parsed: http::Uri = uri.parse().expect("an encoded URI is a URI");
            prop_assert_eq!(
                ours(&credentials, &region, second, method, &parsed, payload),
                reference(&credentials, &region, second, method, &uri, payload)
            );
        }
    }
}
