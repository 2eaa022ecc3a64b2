//! What the shape injects is what a client sees.

use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::presigning::PresigningConfig;
use gpufeed_server::{Config, Running};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::support::{BUCKET, bytes, client, config, refusal, refused, serve};

fn shaped(specs: &[&str]) -> Running {
    serve(Config { shape: specs.iter().map(|&spec| spec.to_owned()).collect(), ..config() })
}

async fn put(client: &Client, len: usize) {
    client.put_object().bucket(BUCKET).key("k").body(bytes(len, 1).into()).send().await.expect("put");
}

async fn get(client: &Client) -> Duration {
    let start = Instant::now();
    let got = client.get_object().bucket(BUCKET).key("k").send().await.expect("get");
    got.body.collect().await.expect("body");
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A connection that asks for the same object again and again, with nothing of a client around it.
struct Asker {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Asker {
    async fn new(server: &Running, len: usize) -> Self {
        let client = client(server);
        put(&client, len).await;
        let lasting = PresigningConfig::expires_in(Duration::from_secs(600)).expect("valid");
        let signed = client.get_object().bucket(BUCKET).key("k").presigned(lasting).await.expect("presign");
        let path = signed.uri().split_once(&server.s3_addr.to_string()).expect("our address").1;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", server.s3_addr).into_bytes();
        let stream = TcpStream::connect(server.s3_addr).await.expect("connect");
        stream.set_nodelay(true).expect("a socket");
        let mut asker = Self { stream, request, answer: Vec::new() };
        // The first answer tells how long answers are: all are alike but for the date.
        asker.stream.write_all(&asker.request).await.expect("write");
        let mut first = vec![0; 4096];
        let mut got = 0;
        let end = loop {
            got += asker.stream.read(&mut first[got..]).await.expect("read");
            if let Some(at) = first[..got].windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
        };
        assert!(first.starts_with(b"HTTP/1.1 200"));
        let mut rest = vec![0; end + len - got];
        asker.stream.read_exact(&mut rest).await.expect("read");
        asker.answer = vec![0; end + len];
        asker
    }

    async fn ask(&mut self) -> Duration {
        let start = Instant::now();
        self.stream.write_all(&self.request).await.expect("write");
        self.stream.read_exact(&mut self.answer).await.expect("read");
        start.elapsed()
    }
}

/// Medians of GETs, interleaved, of a server of this shape and of one without; in the best of some rounds. Whatever
/// else the machine does makes a round worse, a shape that is off makes all of them wrong.
async fn assert_medians(specs: &[&str], len: usize, count: usize, expected: impl Fn(Duration) -> Duration) {
    let servers = (shaped(specs), serve(config()));
    let (mut with, mut without) = (Asker::new(&servers.0, len).await, Asker::new(&servers.1, len).await);
    let mut rounds = Vec::new();
    for _ in 0..8 {
        let (mut shaped, mut control) = (Vec::new(), Vec::new());
        for _ in 0..count {
            shaped.push(with.ask().await);
            control.push(without.ask().await);
        }
        let (shaped, expected) = (median(shaped), expected(median(control)));
        let tolerance = (expected / 50).max(Duration::from_micros(300));
        if shaped.abs_diff(expected) <= tolerance {
            return;
        }
        rounds.push((shaped, expected));
    }
    panic!("measured and expected: {rounds:?}");
}

#[tokio::test]
async fn latency_is_what_was_asked_for() {
    assert_medians(&["get:latency=5ms"], 4096, 41, |control| control + Duration::from_millis(5)).await;
}

#[tokio::test]
async fn bandwidth_paces_the_body_to_its_last_byte() {
    // The transfer runs beside the pacing: what the control takes for its last piece comes on top, which is little.
    assert_medians(&["get:bandwidth=50MB/s"], 1_000_000, 15, |_| Duration::from_millis(20)).await;
}

#[tokio::test]
async fn the_first_byte_leaves_before_the_last() {
    let server = shaped(&["get:latency=2ms", "get:bandwidth=10MB/s"]);
    let client = client(&server);
    put(&client, 1_000_000).await;
    let start = Instant::now();
    let mut got = client.get_object().bucket(BUCKET).key("k").send().await.expect("get");
    let header = start.elapsed();
    let mut last = start.elapsed();
    let mut longest = Duration::ZERO;
    let mut bytes = 0;
    while let Some(chunk) = got.body.try_next().await.expect("body") {
        bytes += chunk.len();
        longest = longest.max(start.elapsed() - last);
        last = start.elapsed();
    }
    assert_eq!(bytes, 1_000_000);
    assert!(header >= Duration::from_millis(2) && header < Duration::from_millis(60), "{header:?}");
    assert!(last >= Duration::from_millis(100), "{last:?}");
    assert!(longest < Duration::from_millis(50), "one gap of {longest:?}: not paced");
}

#[tokio::test]
async fn writes_wait_too_and_other_operations_do_not() {
    let server = shaped(&["put:latency=30ms"]);
    let client = client(&server);
    let start = Instant::now();
    put(&client, 100).await;
    assert!(start.elapsed() >= Duration::from_millis(30));
    let start = Instant::now();
    for _ in 0..5 {
        get(&client).await;
    }
    assert!(start.elapsed() < Duration::from_millis(150), "five times the delay of a PUT");
}

#[tokio::test]
async fn errors_change_nothing_and_keep_the_connection() {
    let server = shaped(&["put:errors=100%", "list:errors=100%:500"]);
    let client = client(&server);
    let put = client.put_object().bucket(BUCKET).key("k").body(bytes(1 << 20, 0).into()).send().await;
    assert_eq!(refusal(put), refused("SlowDown", 503));
    let empty = client.put_object().bucket(BUCKET).key("k").send().await;
    assert_eq!(refusal(empty), refused("SlowDown", 503));
    assert_eq!(refusal(client.head_object().bucket(BUCKET).key("k").send().await).1, 404);
    assert_eq!(refusal(client.list_objects_v2().bucket(BUCKET).send().await), refused("InternalError", 500));
}

#[tokio::test]
async fn corrupt_bodies_differ_in_one_byte_and_short_ones_break_off() {
    let server = shaped(&["get:corrupt=100%"]);
    let to_corrupt = client(&server);
    put(&to_corrupt, 600_000).await;
    // Of a range, so that the SDK has no checksum to refuse the body by.
    let got = to_corrupt.get_object().bucket(BUCKET).key("k").range("bytes=0-599998").send().await.expect("get");
    let got = got.body.collect().await.expect("body").to_vec();
    let expected = &bytes(600_000, 1)[..599_999];
    assert_eq!(got.iter().zip(expected).filter(|(got, expected)| got != expected).count(), 1);
    let whole = to_corrupt.get_object().bucket(BUCKET).key("k").send().await.expect("get");
    assert!(whole.body.collect().await.is_err(), "the SDK checks the stored checksum");
    let server = shaped(&["get:short=100%"]);
    let to_cut = client(&server);
    put(&to_cut, 600_000).await;
    let mut got = to_cut.get_object().bucket(BUCKET).key("k").send().await.expect("get");
    assert_eq!(got.content_length(), Some(600_000));
    let mut bytes = 0;
    let error = loop {
        match got.body.try_next().await {
            Ok(Some(chunk)) => bytes += chunk.len(),
            Ok(None) => panic!("the body is whole"),
            Err(error) => break error,
        }
    };
    assert_eq!(bytes, 300_000, "{error}");
}

#[tokio::test]
async fn a_stall_holds_what_arrives_in_it() {
    let server = shaped(&["get:stall=400ms@0s"]);
    let started = Instant::now();
    let client = client(&server);
    put(&client, 10).await;
    if started.elapsed() < Duration::from_millis(300) {
        get(&client).await;
        assert!(started.elapsed() >= Duration::from_millis(390), "{:?}", started.elapsed());
    }
    let times = [get(&client).await, get(&client).await, get(&client).await];
    assert!(median(times.to_vec()) < Duration::from_millis(200), "{times:?}");
}
