//! The KV block protocol over plain sockets, beside S3 on the same store.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use gpufeed_profiles::units::Bytes;
use gpufeed_server::{Config, Running, StoreKind};
use gpufeed_wire::frame::{Flags, HEADER_BYTES, Header, Opener, Operation, Sealer, hash};
use gpufeed_wire::greeting::{Hello, PROOF_BYTES, Session, Side, WELCOME_BYTES, Welcome};
use gpufeed_wire::keys::{ABSENT, range_argument, write_key, write_keys};
use gpufeed_wire::{Limits, Status};

use super::support::{BUCKET, SECRET, bytes, client, config, serve};

fn blocks(config: Config) -> Running {
    serve(Config { kv: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..config })
}

/// A connection that is past its greeting.
struct Peer {
    stream: TcpStream,
    seal: Sealer,
    open: Opener,
    limits: Limits,
    next: u64,
}

/// A frame that came.
#[derive(Debug, PartialEq)]
struct Frame {
    header: Header,
    meta: Vec<u8>,
    payload: Vec<u8>,
}

fn connect(server: &Running) -> TcpStream {
    let stream = TcpStream::connect(server.kv_addr.expect("a KV port")).expect("connects");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    stream
}

impl Peer {
    fn greet(server: &Running, access_key: &str, secret: &str, bucket: &str) -> Result<Self, Status> {
        let mut stream = connect(server);
        let hello = Hello { versions: (1, 3), nonce: [1; 32], access_key, bucket }.encode().expect("valid names");
        // In two pieces: a greeting may arrive in any.
        stream.write_all(&hello[..20]).expect("sent");
        stream.write_all(&hello[20..]).expect("sent");
        let mut welcome = [0; WELCOME_BYTES];
        stream.read_exact(&mut welcome).expect("a welcome");
        let limits = Welcome::decode(&welcome).expect("a welcome").limits;
        let session = Session::new(secret.as_bytes(), &hello, &welcome);
        stream.write_all(&session.proof(Side::Client)).expect("sent");
        let mut ready = [0; PROOF_BYTES];
        stream.read_exact(&mut ready).expect("an answer to the proof");
        session.check(Side::Server, &ready)?;
        let (seal, open) = session.channel(Side::Client);
        Ok(Self { stream, seal, open, limits, next: 0 })
    }

    fn new(server: &Running) -> Self {
        Self::greet(server, "tester", SECRET, BUCKET).expect("let in")
    }

    fn send(&mut self, header: Header, meta: &[u8], payload: &[u8]) {
        let header = Header { meta_bytes: meta.len() as u32, ..header };
        let head = self.seal.seal(&header, meta);
        self.stream.write_all(&[&head, meta, payload].concat()).expect("sent");
    }

    fn ask(&mut self, operation: Operation, meta: &[u8]) -> u64 {
        self.next += 1;
        self.send(Header::request(operation, self.next, 0), meta, b"");
        self.next
    }

    fn hear(&mut self) -> Frame {
        let mut head = [0; HEADER_BYTES];
        self.stream.read_exact(&mut head).expect("a frame");
        let (meta, payload) = Opener::follows(&head, &self.limits).expect("within limits");
        let (mut meta, mut payload) = (vec![0; meta], vec![0; payload as usize]);
        self.stream.read_exact(&mut meta).expect("meta data");
        self.stream.read_exact(&mut payload).expect("a payload");
        let header = self.open.open(&head, &meta).expect("an authentic frame");
        assert!(header.flags.has(Flags::ANSWER));
        Frame { header, meta, payload }
    }

    fn put(&mut self, key: &str, block: &[u8], flags: Flags) -> Status {
        self.next += 1;
        let header = Header { flags, ..Header::request(Operation::Put, self.next, 0) }.carrying(block);
        self.send(header, &one(key), block);
        let answer = self.hear();
        assert_eq!((answer.header.request, answer.payload.len()), (self.next, 0));
        answer.header.status
    }

    fn get(&mut self, key: &str) -> Result<Vec<u8>, Status> {
        self.ask(Operation::Get, &one(key));
        let answer = self.hear();
        if answer.header.status != Status::Ok {
            return Err(answer.header.status);
        }
        assert!(answer.header.holds(&answer.payload), "the hash is of the payload");
        assert_eq!(answer.header.argument, answer.payload.len() as u64);
        Ok(answer.payload)
    }

    /// Lengths of blocks, and the lease in milliseconds where one was asked for.
    fn exists(&mut self, names: &[&str], lease: bool) -> (Vec<u64>, Option<u32>) {
        self.next += 1;
        let flags = if lease { Flags::LEASE } else { Flags::default() };
        self.send(Header { flags, ..Header::request(Operation::Exists, self.next, 0) }, &keys(names), b"");
        let answer = self.hear();
        assert_eq!(answer.header.status, Status::Ok);
        let (lengths, rest) = answer.meta.as_chunks::<8>();
        assert_eq!(lengths.len(), names.len());
        let lease = rest.first_chunk().map(|millis| u32::from_le_bytes(*millis));
        (lengths.iter().map(|length| u64::from_le_bytes(*length)).collect(), lease)
    }

    /// The connection ends: what it said of the reason.
    fn end(&mut self) -> Option<Status> {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = self.stream.read_to_end(&mut rest);
        let head = rest.first_chunk::<HEADER_BYTES>()?;
        self.open.open(head, b"").ok().map(|header| header.status)
    }
}

fn one(key: &str) -> Vec<u8> {
    let mut meta = Vec::new();
    write_key(key, &mut meta).expect("a key");
    meta
}

fn keys(keys: &[&str]) -> Vec<u8> {
    let mut meta = Vec::new();
    write_keys(keys.iter().copied(), &mut meta).expect("keys");
    meta
}

fn statuses(meta: &[u8]) -> Vec<Status> {
    let (each, rest) = meta.as_chunks::<2>();
    assert!(rest.is_empty());
    each.iter().map(|status| Status::of(u16::from_le_bytes(*status)).expect("a status")).collect()
}

#[test]
fn only_who_knows_the_secret_comes_in() {
    let server = blocks(config());
    let try_in = |access, secret, bucket| Peer::greet(&server, access, secret, bucket).map(|_| ());
    assert_eq!(try_in("tester", SECRET, BUCKET), Ok(()));
    assert_eq!(try_in("tester", "another-secret", BUCKET), Err(Status::Unauthorized));
    assert_eq!(try_in("nobody", SECRET, BUCKET), Err(Status::Unauthorized));
    // An unknown key is not let in by the empty secret it is checked against.
    assert_eq!(try_in("nobody", "", BUCKET), Err(Status::Unauthorized));
    assert_eq!(try_in("tester", SECRET, "elsewhere"), Err(Status::NotFound));
}

#[test]
fn what_is_no_greeting_is_cut_off() {
    let server = blocks(config());
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"GFKV\x01\x01\x01\0\0", b"GFKX"] {
        let mut stream = connect(&server);
        stream.write_all(bytes).expect("sent");
        // Closed or reset, but nothing said.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert_eq!(rest, b"", "{bytes:?}");
    }
    let mut stream = connect(&server);
    let hello = Hello { versions: (2, 9), nonce: [0; 32], access_key: "tester", bucket: BUCKET };
    stream.write_all(&hello.encode().expect("valid")).expect("sent");
    let mut welcome = [0; WELCOME_BYTES];
    stream.read_exact(&mut welcome).expect("a welcome");
    assert_eq!(Welcome::decode(&welcome).expect("a welcome").status, Status::Version);
}

#[test]
fn who_says_nothing_is_cut_off() {
    let mut config = config();
    config.limits.header_timeout = Duration::from_millis(200);
    let server = blocks(config);
    let mut stream = connect(&server);
    stream.write_all(b"GFKV\x01").expect("sent");
    let began = Instant::now();
    assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn who_asks_for_nothing_or_ends_no_batch_is_let_go() {
    let mut config = config();
    config.limits.idle_timeout = Duration::from_millis(300);
    let server = blocks(config);
    let mut peer = Peer::new(&server);
    assert_eq!(peer.put("k", b"block", Flags::default()), Status::Ok);
    assert_eq!(peer.end(), Some(Status::Closing));
    let mut peer = Peer::new(&server);
    // Half of what may be in flight, and one more.
    for request in 0..=512 {
        let header = Header { flags: Flags::MORE, ..Header::request(Operation::BatchPut, request, 0) }.carrying(b"x");
        peer.send(header, &one("k"), b"x");
    }
    assert_eq!(peer.end(), Some(Status::BadRequest));
}

#[tokio::test]
async fn blocks_are_objects_and_objects_are_blocks() {
    let server = blocks(config());
    let s3 = client(&server);
    let (ours, theirs) = (bytes(2 << 20, 1), bytes(300_000, 2));
    let mut peer = Peer::new(&server);
    assert_eq!(peer.put("kv/one", &ours, Flags::default()), Status::Ok);
    let got = s3.get_object().bucket(BUCKET).key("kv/one").send().await.expect("get");
    assert_eq!(got.body.collect().await.expect("a body").into_bytes(), ours);
    s3.put_object().bucket(BUCKET).key("kv/two").body(theirs.clone().into()).send().await.expect("put");
    assert_eq!(peer.get("kv/two").expect("there"), theirs);
    assert_eq!(peer.get("kv/one").expect("there"), ours);
    assert_eq!(peer.exists(&["kv/two", "kv/three", "kv/one"], false), (vec![300_000, ABSENT, 2 << 20], None));
    assert_eq!(peer.get("kv/three"), Err(Status::NotFound));
    // In parts: the tag is no hash of the bytes, and yet the block arrives with one.
    let upload = s3.create_multipart_upload().bucket(BUCKET).key("parts").send().await.expect("started");
    let id = upload.upload_id().expect("an id");
    let part = s3.upload_part().bucket(BUCKET).key("parts").upload_id(id).part_number(1).body(theirs.clone().into());
    let part = part.send().await.expect("a part");
    let part = aws_sdk_s3::types::CompletedPart::builder().part_number(1).set_e_tag(part.e_tag).build();
    let parts = aws_sdk_s3::types::CompletedMultipartUpload::builder().parts(part).build();
    let complete = s3.complete_multipart_upload().bucket(BUCKET).key("parts").upload_id(id);
    complete.multipart_upload(parts).send().await.expect("completed");
    assert_eq!(peer.get("parts").expect("there"), theirs);
}

#[test]
fn a_part_of_a_block() {
    let server = blocks(config());
    let mut peer = Peer::new(&server);
    let block = bytes(100_000, 3);
    assert_eq!(peer.put("k", &block, Flags::default()), Status::Ok);
    for (first, length) in [(0, 10), (99_990, 0), (5, 99_995), (99_000, 5000), (100_000, 0)] {
        peer.next += 1;
        let header =
            Header { argument: range_argument(first, length), ..Header::request(Operation::Get, peer.next, 0) };
        peer.send(header, &one("k"), b"");
        let answer = peer.hear();
        let end = if length == 0 { 100_000 } else { (first + length).min(100_000) };
        assert_eq!(answer.payload, block[first as usize..end as usize]);
        assert!(answer.header.holds(&answer.payload) && answer.header.argument == 100_000);
    }
    peer.next += 1;
    let beyond = Header { argument: range_argument(100_001, 1), ..Header::request(Operation::Get, peer.next, 0) };
    peer.send(beyond, &one("k"), b"");
    assert_eq!(peer.hear().header.status, Status::BadRequest);
}

#[test]
fn a_write_if_absent_leaves_what_is_there() {
    let server = blocks(config());
    let mut peer = Peer::new(&server);
    assert_eq!(peer.put("k", b"first", Flags::IF_ABSENT), Status::Ok);
    assert_eq!(peer.put("k", b"second", Flags::IF_ABSENT), Status::Exists);
    assert_eq!(peer.get("k").expect("there"), b"first");
    assert_eq!(peer.put("k", b"third", Flags::default()), Status::Ok);
    assert_eq!(peer.get("k").expect("there"), b"third");
    peer.ask(Operation::Delete, &keys(&["k", "l"]));
    assert_eq!(statuses(&peer.hear().meta), [Status::Ok, Status::NotFound]);
    assert_eq!(peer.get("k"), Err(Status::NotFound));
}

#[test]
fn batches_are_answered_block_by_block() {
    let server = blocks(config());
    let mut peer = Peer::new(&server);
    let names = ["a", "b", "c"];
    let many: Vec<_> = (0..3u8).map(|i| bytes(10_000 + usize::from(i), i)).collect();
    for (index, (name, block)) in names.iter().zip(&many).enumerate() {
        let flags = if index < 2 { Flags::MORE } else { Flags::default() };
        let header = Header { flags, argument: index as u64, ..Header::request(Operation::BatchPut, 77, 0) };
        // The second does not have its hash: it alone fails.
        let header = header.carrying(block);
        let header = if index == 1 { Header { payload_hash: 1, ..header } } else { header };
        peer.send(header, &one(name), block);
    }
    let answer = peer.hear();
    assert_eq!((answer.header.request, statuses(&answer.meta)), (77, vec![Status::Ok, Status::Corrupt, Status::Ok]));
    peer.ask(Operation::BatchGet, &keys(&names));
    let mut answers: Vec<_> = (0..3).map(|_| peer.hear()).collect();
    assert_eq!(
        answers.iter().map(|answer| answer.header.flags.has(Flags::MORE)).collect::<Vec<_>>(),
        [true, true, false]
    );
    answers.sort_by_key(|answer| answer.header.argument);
    assert_eq!(answers[0].payload, many[0]);
    assert_eq!((answers[1].header.status, answers[1].payload.len()), (Status::NotFound, 0));
    assert_eq!(answers[2].payload, many[2]);
}

#[test]
fn a_corrupt_block_fails_alone() {
    let server = blocks(config());
    let mut peer = Peer::new(&server);
    let block = bytes(50_000, 4);
    let header = Header { payload_hash: hash(&block) ^ 1, ..Header::request(Operation::Put, 1, 0).carrying(&block) };
    peer.send(header, &one("k"), &block);
    assert_eq!(peer.hear().header.status, Status::Corrupt);
    assert_eq!(peer.get("k"), Err(Status::NotFound));
    assert_eq!(peer.put("k", &block, Flags::default()), Status::Ok);
}

#[test]
fn forged_and_replayed_frames_end_the_connection() {
    let server = blocks(config());
    let ping = Header::request(Operation::Ping, 9, 0);
    let mut peer = Peer::new(&server);
    let head = peer.seal.seal(&ping, b"");
    peer.stream.write_all(&[head, head].concat()).expect("sent");
    assert_eq!(peer.hear().header.request, 9);
    assert_eq!(peer.end(), Some(Status::Replayed));
    let mut peer = Peer::new(&server);
    let mut head = peer.seal.seal(&ping, b"");
    head[40] ^= 1;
    peer.stream.write_all(&head).expect("sent");
    assert_eq!(peer.end(), Some(Status::Forged));
    let mut peer = Peer::new(&server);
    let huge = Header { payload_bytes: u64::MAX, payload_hash: 1, ..Header::request(Operation::Put, 1, 1) };
    let head = peer.seal.seal(&huge, b"k");
    peer.stream.write_all(&head).expect("sent");
    assert_eq!(peer.end(), Some(Status::TooLarge));
    let mut peer = Peer::new(&server);
    peer.send(Header::request(Operation::Get, 1, 0), b"\x05\0ab", b"");
    assert_eq!(peer.end(), Some(Status::BadRequest));
}

/// Requests on one connection do not wait for one another: one hundred answers held back 50 ms each take little more than
/// that, and every request is answered once.
#[test]
fn requests_are_not_in_one_anothers_way() {
    let server = blocks(Config { shape: vec!["get:latency=50ms".into()], ..config() });
    let mut peer = Peer::new(&server);
    assert_eq!(peer.put("k", b"block", Flags::default()), Status::Ok);
    let began = Instant::now();
    let mut asked: Vec<_> = (0..100).map(|_| peer.ask(Operation::Get, &one("k"))).collect();
    // Asked last, answered first: nothing holds a ping back.
    peer.next += 1;
    peer.send(Header { argument: 5, ..Header::request(Operation::Ping, peer.next, 0) }, b"", b"");
    let pong = peer.hear().header;
    assert_eq!((pong.operation, pong.argument), (Operation::Ping, 5));
    let mut answered: Vec<_> = (0..100).map(|_| peer.hear().header.request).collect();
    let took = began.elapsed();
    answered.sort_unstable();
    asked.sort_unstable();
    assert_eq!(answered, asked);
    assert!(took >= Duration::from_millis(49) && took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn injected_faults_are_seen_and_logged() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    let log = gpufeed_server::config::AccessLog { path: path.clone(), format: gpufeed_server::config::LogFormat::Csv };
    let shape = vec!["get:errors=30%,get:corrupt=30%".into()];
    let server = blocks(Config { shape, access_log: Some(log), ..config() });
    let mut peer = Peer::new(&server);
    let block = bytes(9000, 5);
    assert_eq!(peer.put("kv/k", &block, Flags::default()), Status::Ok);
    let (mut good, mut busy, mut corrupt) = (0, 0, 0);
    for _ in 0..200 {
        peer.ask(Operation::Get, &one("kv/k"));
        let answer = peer.hear();
        match answer.header.status {
            Status::Busy => busy += 1,
            Status::Ok if answer.header.holds(&answer.payload) => good += 1,
            Status::Ok => corrupt += 1,
            other => panic!("{other}"),
        }
    }
    drop(peer);
    server.shutdown(Duration::from_secs(5));
    let text = std::fs::read_to_string(path).expect("a log");
    let lines =
        |end: &str| text.lines().filter(|line| line.contains(",kv,get,data,kv/k,,") && line.ends_with(end)).count();
    assert_eq!((lines(",error"), lines(",corrupt")), (busy, corrupt));
    assert!(good > 0 && busy > 0 && corrupt > 0 && good + busy + corrupt == 200, "{good} {busy} {corrupt}");
    assert_eq!(text.lines().filter(|line| line.contains(",kv,put,data,kv/k,,200,9000,")).count(), 1);
}

#[test]
fn a_short_block_ends_the_connection() {
    let server = blocks(Config { shape: vec!["get:short=100%".into()], ..config() });
    let mut peer = Peer::new(&server);
    assert_eq!(peer.put("k", &bytes(40_000, 6), Flags::default()), Status::Ok);
    peer.ask(Operation::Get, &one("k"));
    let mut rest = Vec::new();
    let _ = peer.stream.read_to_end(&mut rest);
    assert_eq!(rest.len(), HEADER_BYTES + 20_000);
}

#[test]
fn the_longest_unused_makes_room_and_leases_hold() {
    let store = StoreKind::Mem { capacity: Bytes(4 << 20) };
    let server = blocks(Config { store, kv_lease: Duration::from_secs(60), ..config() });
    let mut peer = Peer::new(&server);
    let block = vec![1; 1 << 20];
    for name in ["a", "b", "c", "d"] {
        assert_eq!(peer.put(name, &block, Flags::default()), Status::Ok);
    }
    // `a` is used, `b` leased: `c` goes first, then `d`, then `a`; `b` stays.
    peer.get("a").expect("there");
    assert_eq!(peer.exists(&["b"], true), (vec![1 << 20], Some(60_000)));
    for name in ["e", "f", "g"] {
        assert_eq!(peer.put(name, &block, Flags::default()), Status::Ok);
    }
    assert!(peer.exists(&["b", "e", "f", "g"], false).0.iter().all(|&length| length == 1 << 20));
    assert_eq!(peer.exists(&["c", "d", "a"], false).0, [ABSENT; 3]);
    // All leased: nothing may go.
    peer.exists(&["b", "e", "f", "g"], true);
    assert_eq!(peer.put("h", &block, Flags::default()), Status::Full);
    assert!(peer.exists(&["b", "e", "f", "g"], false).0.iter().all(|&length| length == 1 << 20));
}

/// A server that is told to end answers what it was asked, says that it closes, and closes.
#[test]
fn what_is_under_way_is_answered_before_the_end() {
    let server = blocks(Config { shape: vec!["get:latency=300ms".into()], ..config() });
    let mut peer = Peer::new(&server);
    assert_eq!(peer.put("k", b"block", Flags::default()), Status::Ok);
    peer.ask(Operation::Get, &one("k"));
    // The ping's answer says that the GET before it has been taken in.
    peer.ask(Operation::Ping, b"");
    assert_eq!(peer.hear().header.operation, Operation::Ping);
    let stopper = server.stopper();
    stopper.stop(Duration::from_secs(10));
    let mut answers = [peer.hear(), peer.hear()];
    answers.sort_by_key(|answer| answer.header.operation as u8);
    assert_eq!((answers[0].header.operation, answers[0].header.status), (Operation::Connection, Status::Closing));
    assert_eq!(answers[1].payload, b"block");
    assert_eq!(peer.stream.read(&mut [0; 1]).expect("a clean end"), 0);
    server.wait();
}
