//! Who is let in, and what is refused.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::presigning::PresigningConfig;
use gpufeed_server::{Config, Server, StartError};

use super::support::{BUCKET, SECRET, bytes, client, client_with, config, refusal, refused, serve};

#[tokio::test]
async fn only_known_keys_with_their_secret_come_in() {
    let server = serve(config());
    let unknown = client_with(&server, "nobody", SECRET);
    let wrong = client_with(&server, "tester", "not-the-secret");
    for (client, code) in [(unknown, "InvalidAccessKeyId"), (wrong, "SignatureDoesNotMatch")] {
        let get = client.get_object().bucket(BUCKET).key("k").send().await;
        assert_eq!(refusal(get), refused(code, 403));
        // A body the client is still sending must not keep it from reading the answer.
        let put = client.put_object().bucket(BUCKET).key("k").body(bytes(8 << 20, 0).into()).send().await;
        assert_eq!(refusal(put), refused(code, 403));
        assert_eq!(refusal(client.list_objects_v2().bucket(BUCKET).send().await), refused(code, 403));
    }
    let anonymous = exchange(&server.s3_addr.to_string(), "GET /data/k HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(anonymous.starts_with("HTTP/1.1 403"), "{anonymous}");
    assert!(anonymous.contains("<Code>AccessDenied</Code>"), "{anonymous}");
}

/// One request, as written, and all that comes back.
async fn exchange(address: &str, request: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    let request = request.replacen("\r\n\r\n", "\r\nconnection: close\r\n\r\n", 1);
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn presigned_urls_work_until_they_expire() {
    let server = serve(config());
    let client = client(&server);
    client.put_object().bucket(BUCKET).key("a b+é").body(b"hello".to_vec().into()).send().await.expect("put");
    let presign = |start: SystemTime| {
        let lasting = PresigningConfig::builder().start_time(start).expires_in(Duration::from_secs(60));
        client.get_object().bucket(BUCKET).key("a b+é").range("bytes=1-3").presigned(lasting.build().expect("valid"))
    };
    for (start, expected, body) in [
        (SystemTime::now(), "HTTP/1.1 206", "\r\n\r\nell"),
        (SystemTime::now() - Duration::from_secs(120), "HTTP/1.1 403", "<Code>AccessDenied</Code>"),
        (SystemTime::now() + Duration::from_secs(3600), "HTTP/1.1 403", "<Code>RequestTimeTooSkewed</Code>"),
    ] {
        let signed = presign(start).await.expect("presign");
        let path = signed.uri().split_once(&server.s3_addr.to_string()).expect("our address").1.to_owned();
        let range =
            signed.headers().find(|(name, _)| name.eq_ignore_ascii_case("range")).map_or("", |(_, value)| value);
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nrange: {range}\r\n\r\n", server.s3_addr);
        let answer = exchange(&server.s3_addr.to_string(), &request).await;
        assert!(answer.starts_with(expected), "{answer}");
        assert!(answer.contains(body), "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_what_was_said_leaves_nothing() {
    let server = serve(config());
    let client = client(&server);
    let put = || client.put_object().bucket(BUCKET).key("k").body(b"hello".to_vec().into());
    let refusals = [
        refusal(put().checksum_crc32("AAAAAA==").send().await),
        refusal(put().checksum_sha256("LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCU=").send().await),
        refusal(put().content_md5("AAAAAAAAAAAAAAAAAAAAAA==").send().await),
    ];
    assert_eq!(refusals, [refused("BadDigest", 400), refused("BadDigest", 400), refused("BadDigest", 400)]);
    assert_eq!(refusal(put().content_md5("short").send().await), refused("InvalidDigest", 400));
    assert_eq!(refusal(client.head_object().bucket(BUCKET).key("k").send().await).1, 404);
}

#[test]
fn what_cannot_start_says_why() {
    let open = Config { s3: ([0, 0, 0, 0], 0).into(), keys: Vec::new(), ..config() };
    let error = Server::start(open).expect_err("default credentials for all");
    assert!(error.to_string().contains("is not a loopback address"), "{error}");
    let server = serve(config());
    let taken = Server::start(Config { s3: server.s3_addr, ..config() }).expect_err("in use");
    assert_eq!(taken.to_string(), format!("cannot listen on {}", server.s3_addr));
    let shape = Config { shape: vec!["get:latency=soon".into()], ..config() };
    assert!(matches!(Server::start(shape), Err(StartError::Shape(_))));
}
