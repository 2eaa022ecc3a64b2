//! What a signed GET allocates in the server: what hyper needs, and a counted rest. One test, since the counts are of the
//! whole process.

use std::io::{Read, Write};
use std::net::TcpStream;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, sign,
};
use gpufeed_io::counting::{Counting, allocations, allocations_of_this_thread};
use gpufeed_server::{Config, Key, Server};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SECRET: &str = "a-secret-for-tests";

/// Allocations that a GET may make: the 16 it made when this was written. Fewer is progress: lower it then.
const MOST: f64 = 16.5;

fn signed(method: &str, host: &str, body: &[u8]) -> Vec<u8> {
    let identity = Credentials::new("tester", SECRET, None, None, "test").into();
    let mut settings = SigningSettings::default();
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    let params = aws_sigv4::sign::v4::SigningParams::builder()
        .identity(&identity)
        .region("us-east-1")
        .name("s3")
        .time(std::time::SystemTime::now())
        .settings(settings)
        .build()
        .expect("complete")
        .into();
    let url = format!("http://{host}/data/key");
    let signable = SignableRequest::new(method, &url, [("host", host)].into_iter(), SignableBody::UnsignedPayload);
    let (instructions, _) = sign(signable.expect("a request"), &params).expect("signed").into_parts();
    let mut request = format!("{method} /data/key HTTP/1.1\r\nhost: {host}\r\n");
    for (name, value) in instructions.headers() {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        request.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    [request.as_bytes(), body].concat()
}

/// Sends a request and reads an answer of so many body bytes.
fn exchange(stream: &mut TcpStream, request: &[u8], body: usize, answer: &mut [u8]) {
    stream.write_all(request).expect("sent");
    let mut held = 0;
    loop {
        held += stream.read(&mut answer[held..]).expect("an answer");
        let end = answer[..held].windows(4).position(|four| four == b"\r\n\r\n");
        if end.is_some_and(|end| held == end + 4 + body) {
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..held]));
            return;
        }
    }
}

#[test]
fn a_get_allocates_what_it_did() {
    let server = Server::start(Config {
        s3: ([127, 0, 0, 1], 0).into(),
        keys: vec![Key { access_key: "tester".into(), secret_key: SECRET.into() }],
        buckets: vec!["data".into()],
        cores: vec![0],
        ..Config::default()
    })
    .expect("the server starts");
    let host = server.s3_addr.to_string();
    let mut stream = TcpStream::connect(server.s3_addr).expect("connects");
    let mut answer = vec![0; 64 << 10];
    let body = vec![7; 4096];
    exchange(&mut stream, &signed("PUT", &host, &body), 0, &mut answer);
    let get = signed("GET", &host, b"");
    let reads = 2000;
    let mut before = 0;
    for turn in 0..reads + 100 {
        if turn == 100 {
            before = allocations() - allocations_of_this_thread();
        }
        exchange(&mut stream, &get, body.len(), &mut answer);
    }
    let each = (allocations() - allocations_of_this_thread() - before) as f64 / f64::from(reads);
    assert!(each <= MOST, "{each} allocations per GET, more than {MOST}");
    assert!(each > 3.0, "{each} allocations per GET: less than hyper makes, so the count is wrong");
}
