//! What a signed GET costs the server, against a bare hyper server in the same layout.
//!
//! `cargo bench -p gpufeed-server --bench get`: one server thread, one client thread, each pinned to a core of its own where
//! there are two. The client sends one request, signed once, over and over on 16 connections. The bare server answers
//! from memory without looking at the request. The same object is also read with a query that s3s has to judge, which is
//! what every request cost before reads had a way of their own. Rounds are interleaved; figures are medians. With `--test` (as under
//! `cargo test`) rounds are short. With `--count N` one connection reads the 4 KiB object so many times and nothing is
//! timed: for counting instructions.

#![allow(clippy::print_stdout, reason = "a bench prints its result")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use bytes::Bytes;
use gpufeed_server::{Config, EtagKind, Key, Server};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const CONNECTIONS: usize = 16;
const ROUNDS: usize = 5;

fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    // Unpinned is noisier, not wrong.
    let _ = rustix::thread::sched_setaffinity(None, &cores);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// CPU time of this process and of this thread.
fn cpu() -> (Duration, Duration) {
    let of = |clock| {
        let time = clock_gettime(clock);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    (of(ClockId::ProcessCPUTime), of(ClockId::ThreadCPUTime))
}

/// A hyper server that answers everything with `body`.
fn bare(core: usize, body: Bytes) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("a socket");
    std::thread::spawn(move || {
        pin(core);
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime(), async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).expect("a socket");
                let body = body.clone();
                tokio::task::spawn_local(async move {
                    let answer = service_fn(move |_| {
                        std::future::ready(Ok::<_, Infallible>(http::Response::new(Full::new(body.clone()))))
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
    });
    address
}

/// Reads one answer; the length of its header.
async fn first_answer(stream: &mut tokio::net::TcpStream, len: usize) -> usize {
    let mut got = Vec::new();
    loop {
        stream.read_buf(&mut got).await.expect("read");
        if let Some(at) = got.windows(4).position(|four| four == b"\r\n\r\n") {
            assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
            let mut rest = vec![0; at + 4 + len - got.len()];
            stream.read_exact(&mut rest).await.expect("read");
            return at + 4;
        }
    }
}

/// Makes so many requests, one after the other.
async fn read_often(address: SocketAddr, request: &[u8], len: usize, count: u64) {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    stream.set_nodelay(true).expect("a socket");
    for _ in 0..count {
        stream.write_all(request).await.expect("write");
        first_answer(&mut stream, len).await;
    }
}

/// Requests per second, and server CPU per request.
async fn round(address: SocketAddr, request: &[u8], len: usize, lasting: Duration) -> (f64, Duration) {
    let local = tokio::task::LocalSet::new();
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
        stream.set_nodelay(true).expect("a socket");
        stream.write_all(request).await.expect("write");
        let header = first_answer(&mut stream, len).await;
        streams.push((stream, header));
    }
    let (start, before) = (Instant::now(), cpu());
    let tasks: Vec<_> = streams
        .into_iter()
        .map(|(mut stream, header)| {
            let request = request.to_vec();
            local.spawn_local(async move {
                let mut buffer = vec![0; 64 * 1024];
                let mut count = 0u64;
                while start.elapsed() < lasting {
                    stream.write_all(&request).await.expect("write");
                    let mut left = header + len;
                    while left > 0 {
                        let most = left.min(buffer.len());
                        left -= stream.read(&mut buffer[..most]).await.expect("read");
                    }
                    count += 1;
                }
                count
            })
        })
        .collect();
    let count = local
        .run_until(async {
            let mut count = 0;
            for task in tasks {
                count += task.await.expect("a client");
            }
            count
        })
        .await;
    let (took, after) = (start.elapsed(), cpu());
    // Everything this process does beside this thread is the server: only one serves at a time.
    let server = (after.0 - before.0).saturating_sub(after.1 - before.1);
    (count as f64 / took.as_secs_f64(), server.div_f64(count as f64))
}

fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
    values[values.len() / 2]
}

fn main() {
    let lasting =
        if std::env::args().any(|arg| arg == "--test") { Duration::from_millis(20) } else { Duration::from_secs(2) };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let serving = cores - 1;
    pin(0);
    let server = Server::start(Config {
        s3: ([127, 0, 0, 1], 0).into(),
        keys: vec![Key { access_key: "bench".into(), secret_key: "bench-secret".into() }],
        buckets: vec!["data".into()],
        cores: vec![serving],
        etag: EtagKind::Fast,
        ..Config::default()
    })
    .expect("the server starts");
    let client = Client::from_conf(
        aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new("bench", "bench-secret", None, None, "bench"))
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://{}", server.s3_addr))
            .force_path_style(true)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build(),
    );
    let runtime = runtime();
    println!("size, server, requests/s, GiB/s, server CPU us/request");
    let mut words = std::env::args().skip_while(|word| word != "--count");
    let count: Option<u64> = words.nth(1).map(|count| count.parse().expect("--count N"));
    for len in [4096, 2 << 20] {
        let body = Bytes::from(vec![7; len]);
        let key = format!("train/object-{len}");
        let put = client.put_object().bucket("data").key(&key).body(body.clone().into());
        runtime.block_on(put.send()).expect("put");
        let signed = signed_get(&server.s3_addr.to_string(), "data", &key, "");
        // A query that clients do not send with plain reads is left to s3s.
        let odd = signed_get(&server.s3_addr.to_string(), "data", &key, "?versionId=null");
        if let Some(count) = count {
            runtime.block_on(read_often(server.s3_addr, &signed, len, count));
            return;
        }
        let bare = bare(serving, body);
        let (mut ours, mut theirs, mut long) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            theirs.push(runtime.block_on(round(bare, &signed, len, lasting)));
            ours.push(runtime.block_on(round(server.s3_addr, &signed, len, lasting)));
            long.push(runtime.block_on(round(server.s3_addr, &odd, len, lasting)));
        }
        for (name, rounds) in [("bare hyper", &theirs), ("gpufeed", &ours), ("gpufeed by s3s", &long)] {
            let rate = median(rounds.iter().map(|round| round.0).collect());
            let micros = median(rounds.iter().map(|round| round.1.as_secs_f64() * 1e6).collect());
            let gib = rate * len as f64 / f64::from(1 << 30);
            println!("{len}, {name}, {rate:.0}, {gib:.2}, {micros:.1}");
        }
        let ratio = median(ours.iter().zip(&theirs).map(|(ours, theirs)| ours.0 / theirs.0).collect());
        println!("{len}, gpufeed / bare hyper, {ratio:.3}");
    }
}

/// A GET with its signature in the header, as clients send it.
fn signed_get(host: &str, bucket: &str, key: &str, query: &str) -> Vec<u8> {
    use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
    let identity = Credentials::new("bench", "bench-secret", None, None, "bench").into();
    let mut settings = SigningSettings::default();
    settings.payload_checksum_kind = aws_sigv4::http_request::PayloadChecksumKind::XAmzSha256;
    settings.percent_encoding_mode = aws_sigv4::http_request::PercentEncodingMode::Single;
    let params = aws_sigv4::sign::v4::SigningParams::builder()
        .identity(&identity)
        .region("us-east-1")
        .name("s3")
        .time(std::time::SystemTime::now())
        .settings(settings)
        .build()
        .expect("complete")
        .into();
    let url = format!("http://{host}/{bucket}/{key}{query}");
    let fields = [("host", host)];
    let signable = SignableRequest::new("GET", &url, fields.into_iter(), SignableBody::UnsignedPayload);
    let (instructions, _) = sign(signable.expect("a request"), &params).expect("signed").into_parts();
    let mut request = format!("GET /{bucket}/{key}{query} HTTP/1.1\r\nhost: {host}\r\n");
    for (name, value) in instructions.headers() {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request.into_bytes()
}
