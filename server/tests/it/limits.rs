//! Clients that keep the server waiting, ask for too much, or watch it.

use std::time::{Duration, Instant};

use gpufeed_server::config::{AccessLog, Limits, LogFormat};
use gpufeed_server::{Config, Running};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::support::{BUCKET, bytes, client, config, serve};

fn limited(limits: Limits) -> Running {
    serve(Config { limits, ..config() })
}

/// All that comes until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end too.
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("it ends");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let second = Duration::from_secs(1);
    let limits = Limits { header_timeout: second, idle_timeout: second, body_timeout: second, ..Limits::default() };
    let server = limited(limits);
    let start = Instant::now();
    let mut silent = TcpStream::connect(server.s3_addr).await.expect("connect");
    let mut header = TcpStream::connect(server.s3_addr).await.expect("connect");
    header.write_all(b"GET /data/k HTTP/1.1\r\nhost: x\r\nx-slow: ").await.expect("write");
    let trickle = async {
        // Byte after byte, and yet not for ever.
        while header.write_all(b"x").await.is_ok() && start.elapsed() < Duration::from_secs(15) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ((), silent) = tokio::join!(trickle, rest(&mut silent));
    assert_eq!(silent, "");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    // A keep-alive connection between requests.
    let mut idle = TcpStream::connect(server.s3_addr).await.expect("connect");
    idle.write_all(b"GET /data/k HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("write");
    assert!(rest(&mut idle).await.starts_with("HTTP/1.1 403"));
}

#[tokio::test]
async fn a_body_that_stops_ends_its_connection_and_leaves_nothing() {
    let limits = Limits { body_timeout: Duration::from_secs(1), ..Limits::default() };
    let server = limited(limits);
    let client = client(&server);
    let lasting = aws_sdk_s3::presigning::PresigningConfig::expires_in(Duration::from_secs(60)).expect("valid");
    let signed = client.put_object().bucket(BUCKET).key("k").presigned(lasting).await.expect("presign");
    let path = signed.uri().split_once(&server.s3_addr.to_string()).expect("our address").1;
    let mut stream = TcpStream::connect(server.s3_addr).await.expect("connect");
    let fields: String = signed.headers().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let header = format!("PUT {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: 1000000\r\n{fields}\r\n", server.s3_addr);
    stream.write_all(header.as_bytes()).await.expect("write");
    stream.write_all(&bytes(1000, 0)).await.expect("write");
    rest(&mut stream).await;
    let there = client.head_object().bucket(BUCKET).key("k").send().await;
    assert!(there.is_err());
}

#[tokio::test]
async fn bodies_without_a_length_are_taken_up_to_a_limit() {
    let limits = Limits { unsized_body_bytes: 1000, ..Limits::default() };
    let server = limited(limits);
    let client = client(&server);
    let lasting = aws_sdk_s3::presigning::PresigningConfig::expires_in(Duration::from_secs(60)).expect("valid");
    let signed = client.put_object().bucket(BUCKET).key("k").presigned(lasting).await.expect("presign");
    let path = signed.uri().split_once(&server.s3_addr.to_string()).expect("our address").1;
    for (len, status) in [(600, "HTTP/1.1 200"), (2000, "HTTP/1.1 400")] {
        let mut stream = TcpStream::connect(server.s3_addr).await.expect("connect");
        let header = format!(
            "PUT {path} HTTP/1.1\r\nhost: {}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
            server.s3_addr
        );
        let body = "x".repeat(len);
        let request = format!("{header}{len:x}\r\n{body}\r\n0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("write");
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with(status), "{answer}");
    }
    let head = client.head_object().bucket(BUCKET).key("k").send().await.expect("head");
    assert_eq!(head.content_length(), Some(600));
}

#[tokio::test]
async fn connections_over_the_limit_are_told_to_slow_down() {
    let server = limited(Limits { connections: 2, ..Limits::default() });
    let ask = b"GET /data/k HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.s3_addr).await.expect("connect");
        stream.write_all(ask).await.expect("write");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 403");
        open.push(stream);
    }
    let mut third = TcpStream::connect(server.s3_addr).await.expect("connect");
    let answer = rest(&mut third).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("<Code>SlowDown</Code>"), "{answer}");
}

#[tokio::test]
async fn headers_over_the_limit_are_refused() {
    let server = limited(Limits { header_bytes: 2000, ..Limits::default() });
    let mut stream = TcpStream::connect(server.s3_addr).await.expect("connect");
    let long = "x".repeat(3000);
    let request = format!("GET /data/k HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-long: {long}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("write");
    let answer = rest(&mut stream).await;
    assert!(answer.contains("RequestHeaderSectionTooLarge"), "{answer}");
}

#[tokio::test]
async fn draining_lets_requests_under_way_finish() {
    let server = serve(Config { shape: vec!["get:latency=300ms".into()], ..config() });
    let client = client(&server);
    client.put_object().bucket(BUCKET).key("k").body(bytes(1000, 0).into()).send().await.expect("put");
    let get = client.get_object().bucket(BUCKET).key("k").send();
    let address = server.s3_addr;
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let start = Instant::now();
        tokio::task::spawn_blocking(move || server.shutdown(Duration::from_secs(10))).await.expect("shutdown");
        start.elapsed()
    };
    let (got, took) = tokio::join!(get, stop);
    assert_eq!(got.expect("get").body.collect().await.expect("body").to_vec(), bytes(1000, 0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn requests_are_counted_and_logged() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("access.csv");
    let log = AccessLog { path: path.clone(), format: LogFormat::Csv };
    let metrics = Some(([127, 0, 0, 1], 0).into());
    let server = serve(Config { access_log: Some(log), metrics, ..config() });
    let client = client(&server);
    client.put_object().bucket(BUCKET).key("a,\"b\"").body(bytes(1000, 0).into()).send().await.expect("put");
    let got = client.get_object().bucket(BUCKET).key("a,\"b\"").range("bytes=10-109").send().await.expect("get");
    got.body.collect().await.expect("body");
    let absent = client.get_object().bucket(BUCKET).key("absent").send().await;
    assert!(absent.is_err());
    let mut texts = Vec::new();
    for page in ["metrics", "healthz", "readyz", "nothing"] {
        let mut stream = TcpStream::connect(server.metrics_addr.expect("served")).await.expect("connect");
        let request = format!("GET /{page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("write");
        texts.push(rest(&mut stream).await);
    }
    for line in [
        "gpufeed_requests_total{wire=\"s3\",op=\"get\",status=\"2xx\"} 1",
        "gpufeed_requests_total{wire=\"s3\",op=\"get\",status=\"4xx\"} 1",
        "gpufeed_requests_total{wire=\"s3\",op=\"put\",status=\"2xx\"} 1",
        "gpufeed_body_bytes_total{wire=\"s3\",op=\"put\",direction=\"in\"} 1000",
        "gpufeed_objects 1",
        "gpufeed_held_bytes 1000",
    ] {
        assert!(texts[0].lines().any(|found| found == line), "no {line} in {}", texts[0]);
    }
    assert!(texts[1].starts_with("HTTP/1.1 200") && texts[2].starts_with("HTTP/1.1 200"), "{texts:?}");
    assert!(texts[3].starts_with("HTTP/1.1 404"));
    tokio::task::spawn_blocking(move || server.shutdown(Duration::from_secs(5))).await.expect("shutdown");
    let text = std::fs::read_to_string(&path).expect("a log");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "time_unix_ns,wire,op,bucket,key,range,status,bytes,duration_ns,fault");
    let quoted = "data,\"a,\"\"b\"\"\"";
    assert!(lines[1].contains(&format!(",s3,put,{quoted},,200,1000,")), "{}", lines[1]);
    assert!(lines[2].contains(&format!(",s3,get,{quoted},bytes=10-109,206,100,")), "{}", lines[2]);
    assert!(lines[3].contains(",s3,get,data,absent,,404,"), "{}", lines[3]);
    assert_eq!(lines.len(), 4);
}
