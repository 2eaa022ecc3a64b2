//! The short way for reads signed as clients sign them: decides, without s3s, that a request may come in.
//!
//! [`Express::admits`] says yes only where s3s would. To everything else, right or wrong, it says nothing and s3s judges:
//! queries, presigned URLs, bodies, odd encodings, dates of another day, unknown keys and wrong signatures. So refusals
//! have one source, and what is here can be read in one sitting.
//!
//! Source: AWS documentation, "Authenticating requests: using the Authorization header (AWS Signature Version 4)".

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, Method, Uri, Version};
use sha2::{Digest, Sha256};

use crate::config::Key;

/// Seconds between the clocks of client and server; s3s allows 900.
const SKEW_S: u64 = 800;
/// Signing keys kept. There is one per access key, day and region.
const SIGNING_KEYS: usize = 64;
/// SHA-256 of nothing.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// One core's short way.
pub(crate) struct Express {
    secrets: HashMap<String, String>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Days since 1970 that `date` is the text of.
    day: u64,
    /// `20130524`
    date: String,
    /// `AKID/20130524/us-east-1/s3/aws4_request`, and an HMAC keyed for it: a copy of it starts each check.
    keys: Vec<(Box<str>, Hmac<Sha256>)>,
    /// Canonical request and string to sign.
    text: Vec<u8>,
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn mac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = keyed(key);
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// The value of a field that is there once and is visible text with single spaces, as it is signed.
fn only(headers: &HeaderMap, name: impl http::header::AsHeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    let plain = !value.contains("  ") && !value.contains('\t') && value.trim() == value;
    (plain && values.next().is_none()).then_some(value)
}

/// The path and the query of an object, if they are encoded the way they are signed and the bucket has a plain name. The
/// only queries are those by which the AWS SDKs name the operation.
fn object_path(uri: &Uri) -> Option<(&str, &str)> {
    let query = uri.query();
    if !matches!(query, None | Some("x-id=GetObject" | "x-id=HeadObject")) || uri.authority().is_some() {
        return None;
    }
    let path = uri.path();
    let (bucket, key) = path.strip_prefix('/')?.split_once('/')?;
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let named = (3..64).contains(&bucket.len())
        && bucket.bytes().all(|b| alphanumeric(b) || b == b'-')
        && bucket
            .as_bytes()
            .first()
            .zip(bucket.as_bytes().last())
            .is_some_and(|(&a, &z)| alphanumeric(a) && alphanumeric(z))
        && !bucket.starts_with("xn--");
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let digit = |b: u8| if b.is_ascii_lowercase() { None } else { char::from(b).to_digit(16) };
    let mut rest = key.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = match first {
            b'%' => {
                let (&[high, low], tail) = tail.split_first_chunk()?;
                let byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
                if unreserved(byte) || byte == b'/' {
                    return None;
                }
                tail
            }
            b'/' => tail,
            byte if unreserved(byte) => tail,
            _ => return None,
        };
    }
    (named && (1..=1024).contains(&key.len())).then_some((path, query.unwrap_or("")))
}

/// Seconds of the day of `20130524T081530Z`, if it is of the day `date`.
fn second_of_day(stamp: &str, date: &str) -> Option<u64> {
    let time = stamp.strip_prefix(date)?.strip_prefix('T')?.strip_suffix('Z')?;
    if time.len() != 6 || !time.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let two = |at: usize, below: u64| time[at..at + 2].parse::<u64>().ok().filter(|&value| value < below);
    Some(two(0, 24)? * 3600 + two(2, 60)? * 60 + two(4, 60)?)
}

impl Express {
    pub(crate) fn new(keys: &[Key]) -> Self {
        let secrets = keys.iter().map(|key| (key.access_key.clone(), key.secret_key.clone())).collect();
        Self { secrets, state: RefCell::default() }
    }

    /// Whether this is certainly a GET or HEAD of an object, without a body, that s3s would let in. The caller has seen
    /// that there is no body and that the path is UTF-8.
    pub(crate) fn admits(&self, parts: &Parts, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.judge(parts, now).is_some()
    }

    fn judge(&self, parts: &Parts, now: u64) -> Option<()> {
        let Parts { method, uri, version, headers, .. } = parts;
        let odd = |name: &str| headers.contains_key(name);
        if !matches!(*method, Method::GET | Method::HEAD)
            || *version != Version::HTTP_11
            || odd(CONTENT_LENGTH.as_str())
            || odd(TRANSFER_ENCODING.as_str())
            || odd("x-amz-decoded-content-length")
        {
            return None;
        }
        let (path, query) = object_path(uri)?;
        only(headers, HOST)?;
        let payload =
            only(headers, "x-amz-content-sha256").filter(|text| matches!(*text, EMPTY | "UNSIGNED-PAYLOAD"))?;
        let stamp = only(headers, "x-amz-date")?;
        let authorization = only(headers, AUTHORIZATION)?.strip_prefix("AWS4-HMAC-SHA256 Credential=")?;
        let (credential, rest) = authorization.split_once(',')?;
        let (signed, rest) = rest.trim_start_matches(' ').strip_prefix("SignedHeaders=")?.split_once(',')?;
        let signature = rest.trim_start_matches(' ').strip_prefix("Signature=")?;

        let (access_key, scope) = credential.split_once('/')?;
        let secret = self.secrets.get(access_key)?;
        let (date, of_date) = scope.split_once('/')?;
        let region = of_date.strip_suffix("/s3/aws4_request")?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if region.is_empty() || !region.bytes().all(plain) {
            return None;
        }

        let mut state = self.state.borrow_mut();
        state.set_day(now / 86_400);
        let State { date: today, keys, text, .. } = &mut *state;
        if date != today || second_of_day(stamp, date)?.abs_diff(now % 86_400) > SKEW_S {
            return None;
        }

        text.clear();
        let mut put = |parts: &[&str]| parts.iter().for_each(|part| text.extend_from_slice(part.as_bytes()));
        put(&[method.as_str(), "\n", path, "\n", query, "\n"]);
        let mut last = "";
        for name in signed.split(';') {
            if name <= last || name == "authorization" || name.bytes().any(|b| b.is_ascii_uppercase()) {
                return None;
            }
            put(&[name, ":", only(headers, name)?, "\n"]);
            last = name;
        }
        put(&["\n", signed, "\n", payload]);
        let request = hex(&Sha256::digest(&*text).into());
        text.clear();
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| text.extend_from_slice(part));
        put(&[b"AWS4-HMAC-SHA256\n", stamp.as_bytes(), b"\n", scope.as_bytes(), b"\n", &request]);

        let kept = keys.iter().find(|(of, _)| **of == *credential).map(|(_, key)| key.clone());
        let key = kept.clone().unwrap_or_else(|| signing_key(secret, date, region));
        let mut mac = key.clone();
        mac.update(text);
        // Upper-case digits are another signature to s3s.
        if signature.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        let mut given = [0; 32];
        hex::decode_to_slice(signature, &mut given).ok()?;
        mac.verify_slice(&given).ok()?;
        // Only what was proved is kept, so nobody fills the cache with scopes they cannot sign for.
        if kept.is_none() {
            if keys.len() >= SIGNING_KEYS {
                keys.clear();
            }
            keys.push((credential.into(), key));
        }
        Some(())
    }
}

fn signing_key(secret: &str, date: &str, region: &str) -> Hmac<Sha256> {
    let key = mac(format!("AWS4{secret}").as_bytes(), date.as_bytes());
    let key = mac(&mac(&key, region.as_bytes()), b"s3");
    keyed(&mac(&key, b"aws4_request"))
}

fn hex(bytes: &[u8; 32]) -> [u8; 64] {
    let mut text = [0; 64];
    hex::encode_to_slice(bytes, &mut text).expect("64 digits of 32 bytes");
    text
}

impl State {
    /// Keeps the text of the day, and forgets the keys of another.
    fn set_day(&mut self, day: u64) {
        if self.date.is_empty() || self.day != day {
            self.day = day;
            let midnight = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(day * 86_400);
            // `Fri, 24 May 2013 00:00:00 GMT`
            let text = httpdate::fmt_http_date(midnight);
            let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
            let month = 1 + months.iter().position(|month| *month == &text[8..11]).unwrap_or(0);
            self.date = format!("{}{month:02}{}", &text[12..16], &text[5..7]);
            self.keys.clear();
        }
    }
}

#[cfg(test)]
mod tests;
