//! Raw S3 against scripted servers: refusals, broken answers, closed connections, dropped calls.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gpufeed_engine::transport::{Clock, Data, Done, Lane, OpError, Transport};
use gpufeed_io::arena::Arena;
use gpufeed_io::payload::Payloads;
use gpufeed_transports::s3::{Addressing, Credentials, RawS3, S3Config, S3Lane, S3Target, Tls};
use gpufeed_workloads::op::{Condition, ErrorKind, Key, KeyStyle, Names, Op, Space};

const KEY: Key = Key { space: 0, rank: 0, id: 7, ..Key::ZERO };

/// A server that answers the requests it gets with these texts, one after the other; an empty text closes the
/// connection instead. What it was sent comes back by the channel.
fn scripted(answers: Vec<Vec<u8>>) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut answers = answers.into_iter().peekable();
        while answers.peek().is_some() {
            let Ok((mut stream, _)) = listener.accept() else { return };
            while let Some(request) = read_request(&mut stream) {
                let _ = tell.send(request);
                let Some(answer) = answers.next() else { return };
                let close = answer.is_empty() || answer.ends_with(b"CUT");
                let _ = stream.write_all(answer.strip_suffix(b"CUT").unwrap_or(&answer));
                if close {
                    break;
                }
            }
        }
    });
    (address, told)
}

fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut all = Vec::new();
    let mut chunk = [0; 65_536];
    loop {
        let read = stream.read(&mut chunk).ok().filter(|&read| read > 0)?;
        all.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&all).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        if body.len() >= length.parse().expect("a length") {
            return Some(text);
        }
    }
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn config(address: SocketAddr) -> S3Config {
    S3Config {
        endpoints: vec![format!("http://{address}").parse().expect("a URI")],
        bucket: "b".into(),
        region: "us-east-1".into(),
        credentials: Some(Credentials::new("AK", "SK", Some("TOKEN"))),
        addressing: Addressing::Auto,
        tls: Tls::default(),
    }
}

fn transport(config: &S3Config) -> Result<RawS3, OpError> {
    let space = Space { before: "p +/ä_".into(), after: String::new(), style: KeyStyle::Index(1) };
    let arena = Arena::new(4096, 2).expect("small");
    let target = S3Target::resolve(config)?;
    Ok(RawS3::new(target, Arc::new(Names { spaces: vec![space] }), arena, Clock::new(Instant::now())))
}

async fn lane(address: SocketAddr) -> S3Lane {
    transport(&config(address)).expect("resolves").lane().await.expect("connects")
}

async fn call(lane: &mut S3Lane, op: Op, mut data: Data) -> Done {
    let done = tokio::time::timeout(Duration::from_secs(30), lane.call(&op, &mut data)).await.expect("an answer");
    assert!(done.sent <= done.first_byte && done.first_byte <= done.done);
    done
}

fn error(done: Done) -> (ErrorKind, String) {
    let error = done.result.expect_err("an error");
    (error.kind, error.to_string())
}

#[tokio::test]
async fn requests_say_what_was_asked() {
    let (address, told) = scripted(vec![
        answer("200 OK", "12345"),
        answer("206 Partial Content", "345"),
        answer("200 OK", ""),
        answer("200 OK", ""),
        answer("200 OK", ""),
        answer("204 No Content", ""),
        answer("200 OK", "<?xml?><ListBucketResult xmlns=\"x\"></ListBucketResult>"),
    ]);
    let mut lane = lane(address).await;
    assert_eq!(call(&mut lane, Op::get(KEY, 5), Data::Hold).await.bytes, 5);
    assert_eq!(call(&mut lane, Op::get_range(KEY, 2, 3), Data::Discard).await.bytes, 3);
    let if_absent = Op { condition: Condition::IfAbsent, ..Op::put(KEY, 4) };
    assert!(call(&mut lane, if_absent, Data::From(Bytes::from_static(b"abcd"))).await.result.is_ok());
    assert!(call(&mut lane, Op::put(KEY, 0), Data::None).await.result.is_ok());
    assert!(call(&mut lane, Op::stat(KEY), Data::None).await.result.is_ok());
    assert!(call(&mut lane, Op::delete(KEY), Data::None).await.result.is_ok());
    assert!(call(&mut lane, Op::list(0, 10), Data::None).await.result.is_ok());
    let sent: Vec<String> = told.try_iter().collect();
    let path = "/b/p%20%2B/%C3%A4_7";
    for (request, start) in sent.iter().zip([
        format!("GET {path} HTTP/1.1\r\n"),
        format!("GET {path} HTTP/1.1\r\n"),
        format!("PUT {path} HTTP/1.1\r\n"),
        format!("PUT {path} HTTP/1.1\r\n"),
        format!("HEAD {path} HTTP/1.1\r\n"),
        format!("DELETE {path} HTTP/1.1\r\n"),
        "GET /b/?list-type=2&max-keys=10&prefix=p%20%2B%2F%C3%A4_ HTTP/1.1\r\n".to_owned(),
    ]) {
        assert!(request.starts_with(&start), "{request}");
        for line in [format!("host: {address}"), "x-amz-security-token: TOKEN".into()] {
            assert!(request.contains(&format!("{line}\r\n")), "{request}");
        }
        assert!(request.contains("authorization: AWS4-HMAC-SHA256 Credential=AK/"), "{request}");
    }
    assert!(!sent[0].contains("range:") && sent[1].contains("range: bytes=2-4\r\n"));
    assert!(sent[2].contains("if-none-match: *\r\n") && sent[2].ends_with("\r\n\r\nabcd"));
    assert!(sent[2].contains("x-amz-content-sha256: UNSIGNED-PAYLOAD\r\n"));
    assert!(sent[3].contains("content-length: 0\r\n") && !sent[3].contains("if-none-match"));
}

#[tokio::test]
async fn refusals_are_counted_by_kind_and_the_connection_goes_on() {
    let xml = |code: &str| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>");
    let cases = [
        ("503 Slow Down", "SlowDown", ErrorKind::Throttled),
        ("404 Not Found", "NoSuchKey", ErrorKind::NotFound),
        ("404 Not Found", "NoSuchBucket", ErrorKind::NotFound),
        ("403 Forbidden", "SignatureDoesNotMatch", ErrorKind::Denied),
        ("400 Bad Request", "ExpiredToken", ErrorKind::Denied),
        ("412 Precondition Failed", "PreconditionFailed", ErrorKind::Condition),
        ("416 Range Not Satisfiable", "InvalidRange", ErrorKind::Client),
        ("500 Internal Server Error", "InternalError", ErrorKind::Server),
    ];
    let mut answers: Vec<_> = cases.iter().map(|(status, code, _)| answer(status, &xml(code))).collect();
    answers.push(answer("200 OK", "ok"));
    let (address, _told) = scripted(answers);
    let mut lane = lane(address).await;
    for (status, code, kind) in cases {
        let (got, said) = error(call(&mut lane, Op::get(KEY, 2), Data::Discard).await);
        assert_eq!(got, kind, "{code}");
        let number = status.split(' ').next().expect("a number");
        assert!(
            said.starts_with(&format!("GET http://{address}/b/p%20%2B/%C3%A4_7 was answered {number} {code}")),
            "{said}"
        );
    }
    assert!(call(&mut lane, Op::get(KEY, 2), Data::Discard).await.result.is_ok());
}

#[tokio::test]
async fn answers_of_another_length_are_short() {
    let (address, _told) = scripted(vec![
        answer("200 OK", "123"),
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n12345CUT".to_vec(),
        answer("200 OK", "whole"),
        b"nonsense\r\n\r\nCUT".to_vec(),
        Vec::new(),
        answer("200 OK", "12"),
    ]);
    let mut lane = lane(address).await;
    let (kind, said) = error(call(&mut lane, Op::get(KEY, 5), Data::Discard).await);
    assert_eq!(kind, ErrorKind::ShortBody, "{said}");
    let done = call(&mut lane, Op::get(KEY, 100), Data::Discard).await;
    assert_eq!(done.bytes, 5);
    let (kind, said) = error(done);
    assert_eq!(kind, ErrorKind::ShortBody, "{said}");
    assert!(said.contains("ended after 5 of 100 bytes"), "{said}");
    // A range was asked for and everything came.
    assert_eq!(error(call(&mut lane, Op::get_range(KEY, 0, 2), Data::Discard).await).0, ErrorKind::Protocol);
    // The connection was closed because reading on is pointless; the next is opened as needed.
    drop(lane);
}

#[tokio::test]
async fn broken_connections_are_opened_again() {
    let (address, _told) = scripted(vec![
        b"nonsense\r\n\r\nCUT".to_vec(),
        Vec::new(),
        // Closed by the server after an answer: noticed before the next request, so no error.
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokCUT".to_vec(),
        answer("200 OK", "ok"),
    ]);
    let mut lane = lane(address).await;
    assert_eq!(error(call(&mut lane, Op::get(KEY, 2), Data::Discard).await).0, ErrorKind::Protocol);
    let (kind, said) = error(call(&mut lane, Op::get(KEY, 2), Data::Discard).await);
    assert_eq!(kind, ErrorKind::Connect, "{said}");
    assert!(said.contains("got no answer"), "{said}");
    assert!(call(&mut lane, Op::get(KEY, 2), Data::Discard).await.result.is_ok());
    // The server's close travels beside us: wait until the runtime has seen it, as a lane between two operations does.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let done = call(&mut lane, Op::get(KEY, 2), Data::Discard).await;
        if done.result.is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", done.result);
    }
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection_and_leaves_the_lane_usable() {
    let (address, told) =
        scripted(vec![b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n12345".to_vec(), answer("200 OK", "ok")]);
    let mut lane = lane(address).await;
    {
        let mut data = Data::Discard;
        let op = Op::get(KEY, 100);
        let call = lane.call(&op, &mut data);
        let arrived = async {
            while told.try_recv().is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            done = call => panic!("cannot be complete: {done:?}"),
            () = arrived => {}
        }
    }
    assert!(call(&mut lane, Op::get(KEY, 2), Data::Discard).await.result.is_ok());
}

#[tokio::test]
async fn multipart_is_created_filled_and_completed_and_aborted_if_not() {
    let created = "<R><UploadId>id+/=&amp;</UploadId></R>";
    let part = |etag: &str| format!("HTTP/1.1 200 OK\r\netag: \"{etag}\"\r\ncontent-length: 0\r\n\r\n").into_bytes();
    let (address, told) = scripted(vec![
        answer("200 OK", created),
        part("e1"),
        part("e2"),
        answer("200 OK", "<CompleteMultipartUploadResult/>"),
        answer("200 OK", created),
        answer("500 Oops", "<Error><Code>InternalError</Code></Error>"),
        answer("204 No Content", ""),
        answer("200 OK", ""),
    ]);
    let mut lane = lane(address).await;
    let op = Op::multipart(KEY, 7, 4);
    assert_eq!(call(&mut lane, op, Data::From(Bytes::from_static(b"abcdefg"))).await.bytes, 7);
    assert_eq!(error(call(&mut lane, op, Data::Derived(Payloads::new(1).of("x"))).await).0, ErrorKind::Server);
    assert!(call(&mut lane, Op::stat(KEY), Data::None).await.result.is_ok());
    let sent: Vec<String> = told.try_iter().collect();
    let path = "/b/p%20%2B/%C3%A4_7";
    let id = "uploadId=id%2B%2F%3D%26";
    let starts = [
        format!("POST {path}?uploads= "),
        format!("PUT {path}?partNumber=1&{id} "),
        format!("PUT {path}?partNumber=2&{id} "),
        format!("POST {path}?{id} "),
        format!("POST {path}?uploads= "),
        format!("PUT {path}?partNumber=1&{id} "),
        format!("DELETE {path}?{id} "),
        format!("HEAD {path} "),
    ];
    assert_eq!(sent.len(), starts.len());
    for (request, start) in sent.iter().zip(&starts) {
        assert!(request.starts_with(start), "{request}");
    }
    assert!(sent[1].ends_with("\r\n\r\nabcd") && sent[2].ends_with("\r\n\r\nefg"));
    assert!(sent[3].contains("<Part><PartNumber>2</PartNumber><ETag>&quot;e2&quot;</ETag></Part>"), "{}", sent[3]);
}

#[tokio::test]
async fn renewed_credentials_are_used_from_the_next_request_on() {
    let (address, told) = scripted(vec![answer("200 OK", ""), answer("200 OK", "")]);
    let target = S3Target::resolve(&config(address)).expect("resolves");
    let space = Space { before: "p".into(), after: String::new(), style: KeyStyle::Hash };
    let arena = Arena::new(4096, 1).expect("small");
    let names = Arc::new(Names { spaces: vec![space] });
    let transport = RawS3::new(target.clone(), names, arena, Clock::new(Instant::now()));
    let mut lane = transport.lane().await.expect("connects");
    assert!(call(&mut lane, Op::stat(KEY), Data::None).await.result.is_ok());
    target.renew(Credentials::new("NEXT", "SK2", None));
    assert!(call(&mut lane, Op::stat(KEY), Data::None).await.result.is_ok());
    let sent: Vec<String> = told.try_iter().collect();
    assert!(sent[0].contains("Credential=AK/") && sent[1].contains("Credential=NEXT/"));
    assert!(!sent[1].contains("security-token"));
}

#[tokio::test]
async fn what_cannot_be_reached_is_named_with_the_way_out() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let error = transport(&config(free)).expect("resolves").lane().await.err().expect("nothing there");
    assert_eq!(error.kind, ErrorKind::Connect);
    let said = error.to_string();
    assert!(said.contains(&format!("http://{free}")) && said.contains("check --endpoint-url"), "{said}");

    for (endpoint, wrong) in [
        ("ftp://h", "neither http nor https"),
        ("h:80", "no scheme"),
        ("http://user@h", "holds a user name"),
        ("http://no-such-host.invalid", "cannot resolve"),
    ] {
        let endpoint = endpoint.parse().expect("a URI");
        let config = S3Config { endpoints: vec![endpoint], ..config(free) };
        let said = transport(&config).expect_err("refused").to_string();
        assert!(said.contains(wrong), "{said}");
    }
    let config = S3Config { addressing: Addressing::VirtualHost, ..config(free) };
    let said = transport(&config).expect_err("refused").to_string();
    assert!(said.contains("needs a host name"), "{said}");
}

#[tokio::test]
async fn virtual_hosts_carry_the_bucket_and_lanes_take_endpoints_in_turn() {
    let (one, told_one) = scripted(vec![answer("200 OK", "")]);
    let (two, told_two) = scripted(vec![answer("200 OK", "")]);
    let endpoint = |address: SocketAddr| format!("http://localhost:{}", address.port()).parse().expect("a URI");
    let config =
        S3Config { endpoints: vec![endpoint(one), endpoint(two)], addressing: Addressing::VirtualHost, ..config(one) };
    let transport = transport(&config).expect("resolves");
    for (told, address) in [(told_one, one), (told_two, two)] {
        let mut lane = transport.lane().await.expect("connects");
        assert!(call(&mut lane, Op::stat(KEY), Data::None).await.result.is_ok());
        let sent = told.try_recv().expect("a request");
        assert!(sent.starts_with("HEAD /p%20%2B/%C3%A4_7 "), "{sent}");
        assert!(sent.contains(&format!("host: b.localhost:{}\r\n", address.port())), "{sent}");
    }
}

/// Closed by the server some time after its answer, which the client has had no chance to notice: not a failed operation.
#[tokio::test]
async fn a_connection_closed_while_idle_is_made_again() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (tell, closed) = channel();
    std::thread::spawn(move || {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().expect("a client");
            read_request(&mut stream).expect("a request");
            stream.write_all(&answer("200 OK", "")).expect("sent");
            drop(stream);
            tell.send(()).expect("a listener");
        }
    });
    let mut lane = lane(address).await;
    for _ in 0..3 {
        let done = call(&mut lane, Op::put(KEY, 4), Data::From(Bytes::from_static(b"abcd"))).await;
        assert!(done.result.is_ok() && done.attempts == 1, "{done:?}");
        // Blocks this thread, the only one that could see the close.
        closed.recv().expect("closed");
        std::thread::sleep(Duration::from_millis(20));
    }
}
