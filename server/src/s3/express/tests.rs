//! Whatever the short way lets in, s3s lets in with the same answer; what clients send, it lets in.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use s3s::service::S3Service;

use super::*;
use crate::config::Config;
use crate::s3::Wire;
use crate::s3::read::{Answer, AnswerBody, Send};
use crate::store::Store;
use crate::store::mem::MemStore;

const ACCESS: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A request in parts, before and after it is signed.
#[derive(Debug, Clone)]
struct Draft {
    method: &'static str,
    path: String,
    query: Option<String>,
    host: String,
    access: String,
    secret: String,
    date: Option<String>,
    region: String,
    service: &'static str,
    payload: String,
    /// Seconds to be added to the time that is signed.
    skew: i64,
    /// Further fields, and whether they are signed.
    more: Vec<(String, String, bool)>,
    /// The order of signed names is turned round.
    backwards: bool,
}

impl Draft {
    fn plain(path: &str) -> Self {
        Self {
            method: "GET",
            path: path.to_owned(),
            query: None,
            host: "127.0.0.1:9000".to_owned(),
            access: ACCESS.to_owned(),
            secret: SECRET.to_owned(),
            date: None,
            region: "us-east-1".to_owned(),
            service: "s3",
            payload: "UNSIGNED-PAYLOAD".to_owned(),
            skew: 0,
            more: Vec::new(),
            backwards: false,
        }
    }

    /// Signed by the book, as of `now`.
    fn sign(&self, now: SystemTime) -> Option<Request<()>> {
        let now = if self.skew < 0 {
            now - Duration::from_secs(self.skew.unsigned_abs())
        } else {
            now + Duration::from_secs(self.skew.unsigned_abs())
        };
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let mut state = State::default();
        state.set_day(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let stamp = format!("{}T{hour:02}{minute:02}{second:02}Z", state.date);
        let date = self.date.clone().unwrap_or(state.date);
        let mut fields = vec![
            ("host".to_owned(), self.host.clone(), true),
            ("x-amz-content-sha256".to_owned(), self.payload.clone(), true),
            ("x-amz-date".to_owned(), stamp.clone(), true),
        ];
        fields.extend(self.more.iter().cloned());
        let mut signed: Vec<_> = fields.iter().filter(|field| field.2).map(|(name, value, _)| (name, value)).collect();
        signed.sort();
        let mut names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
        let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let listed = names.join(";");
        if self.backwards {
            names.reverse();
        }
        let canonical = format!(
            "{}\n{}\n{}\n{lines}\n{listed}\n{}",
            self.method,
            self.path,
            self.query.as_deref().unwrap_or(""),
            self.payload
        );
        let scope = format!("{date}/{}/{}/aws4_request", self.region, self.service);
        let hash = hex(&Sha256::digest(canonical.as_bytes()).into());
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", String::from_utf8_lossy(&hash));
        let key = mac(format!("AWS4{}", self.secret).as_bytes(), &stamp.as_bytes()[..8]);
        let key = mac(&mac(&key, self.region.as_bytes()), self.service.as_bytes());
        let signature = hex(&mac(&mac(&key, b"aws4_request"), text.as_bytes()));
        let signature = String::from_utf8_lossy(&signature);
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
            self.access,
            names.join(";")
        );
        fields.push(("authorization".to_owned(), authorization, false));
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        let mut request = Request::builder().method(self.method).uri(format!("{}{query}", self.path)).body(()).ok()?;
        for (name, value, _) in fields {
            let name = HeaderName::try_from(name).ok()?;
            request.headers_mut().append(name, HeaderValue::try_from(value).ok()?);
        }
        Some(request)
    }
}

/// A server without sockets.
struct Bench {
    wire: Arc<Wire<MemStore>>,
    service: S3Service,
    express: Express,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new() -> Self {
        let config = Config::default();
        let store = Arc::new(MemStore::new(1 << 20));
        let wire = Arc::new(Wire::new(store, &config));
        let keys = [Key { access_key: ACCESS.into(), secret_key: SECRET.into() }];
        wire.store.create_bucket("data").expect("a bucket");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let service = crate::s3::service(&wire, &keys);
        let bench = Self { wire, service, express: Express::new(&keys), runtime };
        for path in ["/data/a/key-1", "/data/%C3%A4%20%2B"] {
            let length = ("content-length".to_owned(), "3".to_owned(), false);
            let draft = Draft { method: "PUT", more: vec![length], ..Draft::plain(path) };
            let request = draft.sign(SystemTime::now()).expect("a request").map(|()| s3s::Body::from("abc".to_owned()));
            let answer = bench.runtime.block_on(bench.service.call(request)).expect("an answer");
            assert_eq!(answer.status(), StatusCode::OK);
        }
        bench
    }

    /// What s3s answers: status, fields, and whether it sends an object.
    fn long_way(&self, request: Request<()>) -> (StatusCode, HeaderMap, bool) {
        let answer = self.runtime.block_on(self.service.call(request.map(|()| s3s::Body::empty()))).expect("an answer");
        let (parts, _) = answer.into_parts();
        (parts.status, parts.headers, parts.extensions.get::<Send<<MemStore as Store>::Body>>().is_some())
    }

    /// The same the short way, if it is taken.
    fn short_way(&self, request: Request<()>) -> Option<(StatusCode, HeaderMap, bool)> {
        let parts = request.into_parts().0;
        let target = self.wire.target(&parts.uri, &parts.headers)?;
        self.express.admits(&parts, SystemTime::now()).then(|| {
            let head = parts.method == Method::HEAD;
            let Answer { status, headers, body } = self.wire.read(&target, parts.uri.query(), &parts.headers, head);
            (status, headers, matches!(body, AnswerBody::Object(_)))
        })
    }
}

/// Something done to a request after it was signed.
#[derive(Debug, Clone)]
enum Twist {
    None,
    Drop(&'static str),
    Double(&'static str),
    Replace(&'static str, &'static str, &'static str),
    Flip(prop::sample::Index),
    Version,
    Method(&'static str),
}

impl Twist {
    fn of(&self, mut request: Request<()>) -> Request<()> {
        let fields = request.headers_mut();
        match self {
            Self::None => {}
            Self::Drop(name) => drop(fields.remove(*name)),
            Self::Double(name) => {
                if let Some(value) = fields.get(*name).cloned() {
                    fields.append(*name, value);
                }
            }
            Self::Replace(name, from, to) => {
                if let Some(value) = fields.get(*name).and_then(|value| value.to_str().ok()) {
                    let value = HeaderValue::try_from(value.replace(from, to)).expect("a value");
                    fields.insert(*name, value);
                }
            }
            Self::Flip(at) => {
                let mut text = fields["authorization"].as_bytes().to_vec();
                let at = at.index(text.len());
                text[at] ^= 1;
                fields.insert("authorization", HeaderValue::from_bytes(&text).expect("a value"));
            }
            Self::Version => *request.version_mut() = Version::HTTP_10,
            Self::Method(method) => *request.method_mut() = method.parse().expect("a method"),
        }
        request
    }
}

fn twist() -> impl Strategy<Value = Twist> {
    let name = || {
        prop::sample::select(vec![
            "host",
            "x-amz-content-sha256",
            "x-amz-date",
            "authorization",
            "x-amz-meta-a",
            "range",
        ])
    };
    let replaced = prop::sample::select(vec![
        ("authorization", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512"),
        ("authorization", "AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256  "),
        ("authorization", ", ", ","),
        ("authorization", ", ", ",  "),
        ("authorization", "aws4_request", "aws4_requests"),
        ("authorization", "host;", ""),
        ("authorization", "host;", "host;host;"),
        ("authorization", "host", "Host"),
        ("authorization", "/s3/", "/s3/s3/"),
        ("authorization", "/20", "/19"),
        ("x-amz-date", "T", "t"),
        ("x-amz-date", "Z", "Z "),
        ("x-amz-date", "20", "21"),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD", EMPTY),
        ("host", ":9000", ""),
        ("authorization", "a", "A"),
    ]);
    prop_oneof![
        4 => Just(Twist::None),
        1 => name().prop_map(Twist::Drop),
        1 => name().prop_map(Twist::Double),
        3 => replaced.prop_map(|(name, from, to)| Twist::Replace(name, from, to)),
        2 => any::<prop::sample::Index>().prop_map(Twist::Flip),
        1 => Just(Twist::Version),
        1 => prop::sample::select(vec!["HEAD", "PUT", "DELETE", "POST", "OPTIONS"]).prop_map(Twist::Method),
    ]
}

fn draft() -> impl Strategy<Value = Draft> {
    let path = prop_oneof![
        4 => Just("/data/a/key-1".to_owned()),
        1 => Just("/data/%C3%A4%20%2B".to_owned()),
        1 => "/(data|no-such|xn--a|da.ta|-a-|DATA|d)/[a-z/.~_%2FfCc3Aa4-]{0,12}",
        1 => "/[a-z0-9%./+!]{0,9}",
        1 => "/data/[ab/]{1000,1050}",
    ];
    let query = prop_oneof![
        4 => Just(None),
        2 => prop::sample::select(vec![
            "", "x-id=GetObject", "x-id=HeadObject", "x-id=", "partNumber=1", "versionId=null", "tagging=", "x-id=GetObject&x-id=",
            "response-content-type=a", "uploads=", "Signature=a", "X-Amz-Signature=a", "X-Amz-Algorithm=AWS4-HMAC-SHA256",
        ]).prop_map(|query| Some(query.to_owned())),
    ];
    let payload = prop_oneof![
        4 => Just("UNSIGNED-PAYLOAD".to_owned()),
        2 => Just(EMPTY.to_owned()),
        1 => prop::sample::select(vec![
            "", "unsigned-payload", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "0000000000000000000000000000000000000000000000000000000000000000",
        ]).prop_map(str::to_owned),
    ];
    let more = prop::sample::select(vec![
        ("range", "bytes=0-1"),
        ("range", "bytes=7-"),
        ("x-amz-security-token", "token/+="),
        ("x-amz-meta-a", "two  spaces"),
        ("x-amz-meta-a", "ä"),
        ("x-amz-meta-a", ""),
        ("content-length", "0"),
        ("content-type", "text/plain"),
        ("x-amz-decoded-content-length", "3"),
        ("x-amz-checksum-mode", "ENABLED"),
        ("if-none-match", "*"),
        ("date", "today"),
        ("transfer-encoding", "chunked"),
        ("host", "other"),
        ("if-match", "\"x\""),
    ]);
    let more = prop::collection::vec((more, any::<bool>()), 0..3);
    let key = prop_oneof![
        6 => Just((ACCESS, SECRET)),
        1 => Just((ACCESS, "wrong")),
        1 => Just(("unknown", SECRET)),
        1 => Just(("", SECRET)),
    ];
    let scope = (
        prop_oneof![6 => Just("us-east-1"), 1 => Just("eu-central-1"), 1 => Just(""), 1 => Just("US")],
        prop_oneof![6 => Just("s3"), 1 => Just("sts"), 1 => Just("ec2")],
        prop_oneof![6 => Just(None), 1 => Just(Some("20130524".to_owned()))],
    );
    let skew =
        prop_oneof![6 => Just(0i64), 2 => -1000i64..1000, 1 => prop::sample::select(vec![86_400, -86_400, 950, -950])];
    let method = prop_oneof![4 => Just("GET"), 2 => Just("HEAD"), 1 => Just("DELETE")];
    let host = prop_oneof![4 => Just("127.0.0.1:9000"), 1 => Just("localhost"), 1 => Just("data.s3.test")];
    (path, query, payload, more, key, scope, skew, (method, host, prop::bool::weighted(0.1))).prop_map(
        |(path, query, payload, more, (access, secret), (region, service, date), skew, (method, host, backwards))| {
            Draft {
                method,
                path,
                query,
                host: host.to_owned(),
                access: access.to_owned(),
                secret: secret.to_owned(),
                date,
                region: region.to_owned(),
                service,
                payload,
                skew,
                more: more
                    .into_iter()
                    .map(|((name, value), signed)| (name.to_owned(), value.to_owned(), signed))
                    .collect(),
                backwards,
            }
        },
    )
}

#[test]
fn what_the_short_way_lets_in_s3s_lets_in_with_the_same_answer() {
    let bench = Bench::new();
    let (mut taken, mut refused) = (0, 0);
    let config = ProptestConfig { cases: 3000, max_global_rejects: 60_000, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&(draft(), twist()), |(draft, twist)| {
        let Some(request) = draft.sign(SystemTime::now()) else { return Err(TestCaseError::reject("no request")) };
        let request = twist.of(request);
        match bench.short_way(request.clone()) {
            Some(short) => prop_assert_eq!(short, bench.long_way(request)),
            None => return Ok(()),
        }
        Ok(())
    });
    result.expect("agrees");
    // That the draw holds both kinds, and enough of them to mean something.
    let mut draw = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..2000 {
        let (draft, twist) = (draft(), twist()).new_tree(&mut draw).expect("a draw").current();
        let Some(request) = draft.sign(SystemTime::now()) else { continue };
        let request = twist.of(request);
        taken += usize::from(bench.short_way(request.clone()).is_some());
        refused += usize::from(bench.long_way(request).0 == StatusCode::FORBIDDEN);
    }
    assert!(taken > 50 && refused > 50, "{taken} taken, {refused} refused");
}

/// As of a second of any day, so that midnight is no matter of luck.
fn admitted(express: &Express, draft: &Draft, second: u64) -> bool {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    express.admits(&draft.sign(now).expect("a request").into_parts().0, now)
}

fn express() -> Express {
    Express::new(&[Key { access_key: ACCESS.into(), secret_key: SECRET.into() }])
}

proptest! {
    #[test]
    fn what_clients_send_takes_the_short_way(
        key in "[a-zA-Z0-9/._~-]{1,60}",
        second in 0u64..6_000_000_000,
        head: bool, named: bool, empty: bool, token: bool, ranged: bool,
    ) {
        let mut draft = Draft::plain(&format!("/bucket-1/{key}"));
        draft.method = if head { "HEAD" } else { "GET" };
        draft.query = named.then(|| format!("x-id={}Object", if head { "Head" } else { "Get" }));
        draft.payload = if empty { EMPTY } else { "UNSIGNED-PAYLOAD" }.to_owned();
        draft.more.extend(token.then(|| ("x-amz-security-token".to_owned(), "abc+/=".to_owned(), true)));
        draft.more.extend(ranged.then(|| ("range".to_owned(), "bytes=5-99".to_owned(), true)));
        let express = express();
        prop_assert!(admitted(&express, &draft, second));
        // Again, with the signing key at hand.
        prop_assert!(admitted(&express, &draft, second));
        draft.secret = "wrong".to_owned();
        prop_assert!(!admitted(&express, &draft, second));
    }
}

#[test]
fn old_and_early_requests_are_left_to_s3s() {
    let express = express();
    let noon = 20_000 * 86_400 + 43_200;
    for (skew, short) in
        [(0, true), (790, true), (-790, true), (810, false), (-810, false), (86_400, false), (-86_400, false)]
    {
        assert_eq!(admitted(&express, &Draft { skew, ..Draft::plain("/data/k") }, noon), short, "{skew} s");
    }
    // A minute before midnight, signed a minute after.
    assert!(!admitted(&express, &Draft { skew: 120, ..Draft::plain("/data/k") }, 20_001 * 86_400 - 60));
}

#[test]
fn days_are_written_as_dates() {
    let mut state = State::default();
    for (day, date) in
        [(0, "19700101"), (59, "19700301"), (11_016, "20000229"), (15_849, "20130524"), (47_540, "21000228")]
    {
        state.set_day(day);
        assert_eq!(state.date, date);
    }
}
