//! What an operation allocates on the measured path, under the whole engine: nothing on null and file targets, and on raw
//! S3 what hyper itself needs. One test, since the counts are of the whole process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

use gpufeed_engine::transport::{Clock, OpError, Transport};
use gpufeed_engine::wall::{self, CoreSlot, Machines};
use gpufeed_engine::{Settings, Watch};
use gpufeed_io::arena::Arena;
use gpufeed_io::counting::{Counting, allocations};
use gpufeed_profiles::units::Bytes;
use gpufeed_transports::file::{FileConfig, FileStore, FileTarget};
use gpufeed_transports::null::NullTarget;
use gpufeed_transports::s3::{Addressing, Credentials, RawS3, S3Config, S3Target, Tls};
use gpufeed_workloads::machine::Workload as _;
use gpufeed_workloads::op::{Names, Verb};
use gpufeed_workloads::ops::{Mix, Ops, OpsSpec, SizeSpec};
use gpufeed_workloads::schedule::Load;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BYTES: u64 = 4096;
const OBJECTS: u64 = 32;

fn reads(count: u64) -> Ops {
    let spec = OpsSpec {
        sizes: SizeSpec::Fixed(Bytes(BYTES)),
        objects: OBJECTS,
        load: Load::Closed { depth: 4 },
        prefix: "set/".to_owned(),
        count: Some(count),
        ..OpsSpec::new(Mix::only(Verb::Get))
    };
    Ops::split(&spec, 1).expect("plain load").remove(0)
}

/// Allocations of a run of `count` reads, from opening the target to the merged result.
fn of_run<T: Transport>(count: u64, open: &(impl Fn(Arc<Names>, Clock) -> T + Sync)) -> f64 {
    let machine = reads(count);
    let names = Arc::new(machine.names());
    let open = |_: CoreSlot, clock: Clock| Ok::<_, OpError>(open(Arc::clone(&names), clock));
    let settings = Settings { duration: None, ..Settings::default() };
    let before = allocations();
    let measured =
        wall::run(&settings, Clock::new(Instant::now()), open, Machines::PerCore(vec![machine]), &Watch::new());
    let measured = measured.expect("runs");
    let allocated = allocations() - before;
    assert!(measured.errors.is_empty(), "{:?}", measured.errors);
    assert_eq!(measured.operations[0].count, count);
    allocated as f64
}

/// Allocations per read: what a longer run has more than a shorter one, so that beginnings and ends fall out. What
/// remains of a path that allocates nothing is what each interval of time costs.
fn per_read<T: Transport>(count: u64, open: impl Fn(Arc<Names>, Clock) -> T + Sync) -> f64 {
    let short = of_run(count / 10, &open);
    (of_run(count, &open) - short) / (count - count / 10) as f64
}

/// Answers every request with the same object, on threads that allocate nothing once they run.
fn answering() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let answer: Arc<Vec<u8>> = Arc::new(
        [
            format!("HTTP/1.1 200 OK\r\ncontent-length: {BYTES}\r\netag: \"0123456789abcdef\"\r\n").as_bytes(),
            b"content-type: binary/octet-stream\r\ndate: Fri, 24 May 2013 00:00:00 GMT\r\n\r\n",
            &[7; BYTES as usize],
        ]
        .concat(),
    );
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), answer) = (stream, Arc::clone(&answer)) else { return };
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                let mut held = 0;
                while let Ok(read @ 1..) = stream.read(&mut request[held..]) {
                    held += read;
                    if request[..held].ends_with(b"\r\n\r\n") {
                        held = 0;
                        if stream.write_all(&answer).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

fn arena() -> Arena {
    Arena::new(8192, 8).expect("small")
}

#[test]
fn operations_allocate_nothing_of_ours() {
    let null = per_read(200_000, |names, clock| NullTarget::new(names, 1, arena(), clock));
    assert!(null < 0.001, "{null} allocations per operation on the null target");

    let directory = tempfile::tempdir().expect("a directory");
    let names = reads(1).names();
    for (key, bytes) in reads(1).dataset().objects() {
        let path = directory.path().join(names.of(key));
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, vec![3; bytes as usize]).expect("a file");
    }
    let store = FileStore::open(&FileConfig::new(directory.path())).expect("a store");
    let by_ring = !store.notes().iter().any(|note| note.contains("io_uring"));
    let file =
        per_read(20_000, |names, clock| FileTarget::new(store.clone(), names, arena(), clock).expect("a target"));
    // Without io_uring every read is handed to a helper thread, which takes tokio an allocation or two.
    let most = if by_ring { 0.02 } else { 3.0 };
    assert!(file < most, "{file} allocations per file read");

    let address = answering();
    let config = S3Config {
        endpoints: vec![format!("http://{address}").parse().expect("a URI")],
        bucket: "bucket".into(),
        region: "us-east-1".into(),
        credentials: Some(Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)),
        addressing: Addressing::Auto,
        tls: Tls::default(),
    };
    let target = S3Target::resolve(&config).expect("an address");
    let s3 = per_read(4000, |names, clock| RawS3::new(target.clone(), names, arena(), clock));
    let bare = bare_hyper(address, 4000);
    assert!(s3 <= bare + 0.05, "{s3} allocations per raw S3 read where hyper alone makes {bare}");
}

/// Allocations of a read by hyper alone: an unsigned request whose fields stand ready, as many as ours.
fn bare_hyper(address: SocketAddr, count: u64) -> f64 {
    use http::header::{AUTHORIZATION, HOST};
    use http::{HeaderValue, Request};
    use http_body_util::{BodyExt as _, Empty};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    let uri: http::Uri = "/bucket/set/0123456789abcdef".parse().expect("a path");
    runtime.expect("a runtime").block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<bytes::Bytes>>(io).await.expect("HTTP");
        tokio::task::spawn_local(connection);
        let mut headers = http::HeaderMap::with_capacity(12);
        let mut before = 0;
        for turn in 0..count + 100 {
            if turn == 100 {
                before = allocations();
            }
            headers.clear();
            headers.insert(HOST, HeaderValue::from_static("127.0.0.1"));
            headers.insert("x-amz-date", HeaderValue::from_static("20130524T000000Z"));
            headers.insert("x-amz-content-sha256", HeaderValue::from_static("UNSIGNED-PAYLOAD"));
            headers.insert(AUTHORIZATION, HeaderValue::from_static("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE"));
            let mut request = Request::new(Empty::new());
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = std::mem::take(&mut headers);
            sender.ready().await.expect("open");
            let (parts, mut body) = sender.send_request(request).await.expect("an answer").into_parts();
            while let Some(frame) = body.frame().await {
                frame.expect("a frame");
            }
            headers = parts.headers;
        }
        (allocations() - before) as f64 / count as f64
    })
}
