//! The aws-sdk transport and the control path against the reference server.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gpufeed_aws_sdk::{Access, Control, SdkLane, SdkTransport, Session};
use gpufeed_engine::transport::{Clock, Data, Lane, Transport};
use gpufeed_io::arena::Arena;
use gpufeed_io::payload::Payloads;
use gpufeed_server::config::Tls as ServerTls;
use gpufeed_server::{Config, Running, Server};
use gpufeed_transports::s3::{Credentials, Tls};
use gpufeed_workloads::op::{Carrier, Condition, ErrorKind, Key, KeyStyle, Names, Op, Space};

fn start(config: Config) -> Running {
    let s3 = SocketAddr::from(([127, 0, 0, 1], 0));
    Server::start(Config { s3, cores: vec![0], ..config }).expect("starts")
}

fn access(endpoint: String) -> Access {
    let credentials = Some(Credentials::new("gpufeed", "gpufeed-secret", None));
    Access { endpoints: vec![endpoint], credentials, ..Access::default() }
}

async fn session(running: &Running) -> Session {
    access(format!("http://{}", running.s3_addr)).session().await.expect("complete")
}

fn names() -> Arc<Names> {
    Arc::new(Names { spaces: vec![Space { before: "a b/ü+/".into(), after: String::new(), style: KeyStyle::Hash }] })
}

fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), test).await.expect("no hang") })
}

fn transport(session: &Session, bucket: &str) -> SdkTransport {
    let arena = Arena::new(64 << 10, 4).expect("small");
    SdkTransport::new(session, bucket, 0, names(), arena, Clock::new(Instant::now())).expect("no bundle")
}

async fn call(lane: &mut SdkLane, op: Op, data: &mut Data) -> Result<u64, ErrorKind> {
    let done = lane.call(&op, data).await;
    assert!(done.sent <= done.first_byte && done.first_byte <= done.done);
    done.result.map(|()| done.bytes).map_err(|error| error.kind)
}

#[test]
fn the_bucket_is_made_filled_listed_and_emptied() {
    let running = start(Config::default());
    block_on(async {
        let session = session(&running).await;
        let control = Control::new(&session, "made").expect("no bundle");
        let missing = control.check().await.expect_err("not there yet");
        assert_eq!(missing.kind, ErrorKind::NotFound);
        assert!(missing.to_string().contains("the bucket does not exist"), "{missing}");
        assert_eq!((control.ensure_bucket().await.ok(), control.ensure_bucket().await.ok()), (Some(true), Some(false)));
        control.check().await.expect("there now");

        let transport = transport(&session, "made");
        let mut lane = transport.lane().await.expect("opens");
        // More than one page of a listing.
        for id in 0..1005 {
            let op = Op::put(Key { space: 0, rank: 0, id, ..Key::ZERO }, 3);
            assert_eq!(call(&mut lane, op, &mut Data::From(Bytes::from_static(b"abc"))).await, Ok(3));
        }
        let listed = control.list("a b/ü+/").await.expect("lists");
        assert_eq!((listed.len(), &listed[0]), (1005, &("a b/ü+/0000000000000000".to_owned(), 3)));
        assert_eq!(control.head(&listed[7].0).await.expect("asks"), Some(3));
        assert_eq!(control.delete_prefix("a b/ü+/00000000000000").await.expect("removes"), 256);
        assert_eq!(control.delete_prefix("").await.expect("removes"), 749);
        assert_eq!(control.head(&listed[7].0).await.expect("asks"), None);
    });
    running.shutdown(Duration::ZERO);
}

#[test]
fn every_operation_does_what_it_says() {
    let running = start(Config { buckets: vec!["bucket".into()], ..Config::default() });
    block_on(async {
        let session = session(&running).await;
        let transport = transport(&session, "bucket");
        let mut lane = transport.lane().await.expect("opens");
        let key = Key { space: 0, rank: 1, id: 2, ..Key::ZERO };
        let payload = Payloads::new(3).of(&names().of(key));
        let mut bytes = vec![0; 300_000];
        payload.fill(0, &mut bytes);
        let bytes = Bytes::from(bytes);

        assert_eq!(call(&mut lane, Op::get(key, 300_000), &mut Data::Discard).await, Err(ErrorKind::NotFound));
        assert_eq!(call(&mut lane, Op::put(key, 300_000), &mut Data::From(bytes.clone())).await, Ok(300_000));
        let absent = Op { condition: Condition::IfAbsent, ..Op::put(key, 300_000) };
        assert_eq!(call(&mut lane, absent, &mut Data::From(bytes)).await, Err(ErrorKind::Condition));
        assert_eq!(call(&mut lane, Op::stat(key), &mut Data::None).await, Ok(0));
        assert_eq!(call(&mut lane, Op::get(key, 300_000), &mut Data::Hold).await, Ok(300_000));
        let mut data = Data::Into { buf: transport.arena().take().expect("free"), from: 100 };
        assert_eq!(call(&mut lane, Op::get_range(key, 1000, 200_000), &mut data).await, Ok(200_000));
        let Data::Into { buf, .. } = &data else { panic!("still a buffer") };
        assert_eq!((buf.len(), payload.verify(1100, buf)), (64 << 10, Ok(())));
        assert_eq!(call(&mut lane, Op::get(key, 5), &mut Data::Discard).await, Err(ErrorKind::ShortBody));
        assert_eq!(call(&mut lane, Op::list(0, 10), &mut Data::None).await, Ok(0));
        assert_eq!(call(&mut lane, Op::delete(key), &mut Data::None).await, Ok(0));
        assert_eq!(call(&mut lane, Op::stat(key), &mut Data::None).await, Err(ErrorKind::NotFound));

        let derived = &mut Data::Derived(payload.clone());
        assert_eq!(call(&mut lane, Op::multipart(key, 11 << 20, 5 << 20), derived).await, Ok(11 << 20));
        let mut data = Data::Into { buf: transport.arena().take().expect("free"), from: (11 << 20) - 5000 };
        assert_eq!(call(&mut lane, Op::get(key, 11 << 20), &mut data).await, Ok(11 << 20));
        let Data::Into { buf, .. } = &data else { panic!("still a buffer") };
        assert_eq!((buf.len(), payload.verify((11 << 20) - 5000, buf)), (5000, Ok(())));
    });
    running.shutdown(Duration::ZERO);
}

#[test]
fn what_is_wrong_is_said_in_one_sentence() {
    let running = start(Config { buckets: vec!["bucket".into()], ..Config::default() });
    block_on(async {
        let endpoint = format!("http://{}", running.s3_addr);
        let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let keys = |access: &str, secret: &str| Some(Credentials::new(access, secret, None));
        for (endpoint, credentials, kind, said) in [
            (endpoint.clone(), keys("gpufeed", "wrong-secret"), ErrorKind::Denied, "AWS_SECRET_ACCESS_KEY"),
            (endpoint, keys("nobody", "gpufeed-secret"), ErrorKind::Denied, "AWS_ACCESS_KEY_ID"),
            (format!("http://{free}"), keys("gpufeed", "x"), ErrorKind::Connect, "nothing listens there"),
        ] {
            let session = Access { credentials, ..access(endpoint) }.session().await.expect("complete");
            let error = Control::new(&session, "bucket").expect("no bundle").check().await.expect_err("refused");
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.to_string().contains(said) && !error.to_string().contains('\n'), "{error}");
        }
        let error = access("localhost:9000".into()).session().await.expect_err("no scheme");
        assert!(error.to_string().contains("`localhost:9000` is no endpoint"), "{error}");
    });
    running.shutdown(Duration::ZERO);
}

#[test]
fn keys_reach_raw_s3_and_certificates_are_checked() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("writes");
    std::fs::write(&key, made.key_pair.serialize_pem()).expect("writes");
    let tls = Some(ServerTls { cert: cert.clone(), key });
    let running = start(Config { tls, buckets: vec!["bucket".into()], ..Config::default() });
    block_on(async {
        let access = access(format!("https://localhost:{}", running.s3_addr.port()));
        for tls in [Tls { ca_bundle: Some(cert.clone()), ..Tls::default() }, Tls { verify: false, ..Tls::default() }] {
            let session = Access { tls: tls.clone(), ..access.clone() }.session().await.expect("complete");
            Control::new(&session, "bucket").expect("a bundle").check().await.expect("believed");
            let transport = transport(&session, "bucket");
            let mut lane = transport.lane().await.expect("opens");
            let op = Op::put(Key::default(), 3);
            let done = lane.call(&op, &mut Data::From(Bytes::from_static(b"abc"))).await;
            assert!(done.result.is_ok(), "{:?}", done.result);
            assert_eq!(done.carrier, Carrier::Https);
            let raw = session.raw("bucket").await.expect("keys");
            assert_eq!((raw.credentials, raw.region.as_str()), (access.credentials.clone(), "us-east-1"));
            assert_eq!(raw.tls.verify, tls.verify);
            // Where none is named, AWS_CA_BUNDLE may name one.
            assert!(tls.ca_bundle.is_none() || raw.tls.ca_bundle == tls.ca_bundle);
        }
        let session = access.session().await.expect("complete");
        let error = Control::new(&session, "bucket").expect("no bundle").check().await.expect_err("unknown authority");
        assert_eq!(error.kind, ErrorKind::Connect);
        assert!(error.to_string().contains("AWS_CA_BUNDLE"), "{error}");
    });
    running.shutdown(Duration::ZERO);
}
