//! Raw S3 against the reference server: payloads both ways, over HTTP and TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gpufeed_engine::transport::{Clock, Data, Lane, OpError, Transport};
use gpufeed_io::arena::Arena;
use gpufeed_io::payload::Payloads;
use gpufeed_server::config::Tls as ServerTls;
use gpufeed_server::{Config, Running, Server};
use gpufeed_transports::s3::{Addressing, Credentials, RawS3, S3Config, S3Lane, S3Target, Tls};
use gpufeed_workloads::op::{Carrier, Condition, ErrorKind, Key, KeyStyle, Names, Op, Space};
use proptest::prelude::*;

const SEED: u64 = 11;

fn start(config: Config) -> Running {
    let buckets = vec!["bucket".to_owned()];
    let s3 = SocketAddr::from(([127, 0, 0, 1], 0));
    Server::start(Config { s3, buckets, cores: vec![0], ..config }).expect("starts")
}

fn config(running: &Running, scheme: &str) -> S3Config {
    S3Config {
        endpoints: vec![format!("{scheme}://localhost:{}", running.s3_addr.port()).parse().expect("a URI")],
        bucket: "bucket".into(),
        region: "us-east-1".into(),
        credentials: Some(Credentials::new("gpufeed", "gpufeed-secret", None)),
        addressing: Addressing::Auto,
        tls: Tls::default(),
    }
}

fn names(before: &str) -> Arc<Names> {
    Arc::new(Names { spaces: vec![Space { before: before.into(), after: ".bin".into(), style: KeyStyle::RankHash }] })
}

async fn open(config: &S3Config, names: &Arc<Names>) -> Result<(RawS3, S3Lane), OpError> {
    let arena = Arena::new(64 << 10, 4).expect("small");
    let raw = RawS3::new(S3Target::resolve(config)?, Arc::clone(names), arena, Clock::new(Instant::now()));
    let lane = raw.lane().await?;
    Ok((raw, lane))
}

async fn call(lane: &mut S3Lane, op: Op, data: &mut Data) -> Result<u64, ErrorKind> {
    let done = tokio::time::timeout(Duration::from_secs(60), lane.call(&op, data)).await.expect("an answer");
    assert!(done.sent <= done.first_byte && done.first_byte <= done.done);
    done.result.map(|()| done.bytes).map_err(|error| error.kind)
}

fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test)
}

#[test]
fn every_operation_does_what_it_says() {
    let running = start(Config::default());
    block_on(async {
        let names = names("a b/ü+%/");
        let (raw, mut lane) = open(&config(&running, "http"), &names).await.expect("connects");
        let key = Key { space: 0, rank: 1, id: 2, ..Key::ZERO };
        let payload = Payloads::new(SEED).of(&names.of(key));
        let mut bytes = vec![0; 300_000];
        payload.fill(0, &mut bytes);
        let bytes = Bytes::from(bytes);

        assert_eq!(call(&mut lane, Op::get(key, 300_000), &mut Data::Discard).await, Err(ErrorKind::NotFound));
        assert_eq!(call(&mut lane, Op::put(key, 300_000), &mut Data::From(bytes.clone())).await, Ok(300_000));
        let absent = Op { condition: Condition::IfAbsent, ..Op::put(key, 300_000) };
        assert_eq!(call(&mut lane, absent, &mut Data::From(bytes)).await, Err(ErrorKind::Condition));
        assert_eq!(call(&mut lane, Op::stat(key), &mut Data::None).await, Ok(0));
        assert_eq!(call(&mut lane, Op::get(key, 300_000), &mut Data::Hold).await, Ok(300_000));
        let mut data = Data::Into { buf: raw.arena().take().expect("free"), from: 100 };
        assert_eq!(call(&mut lane, Op::get_range(key, 1000, 200_000), &mut data).await, Ok(200_000));
        let Data::Into { buf, .. } = &data else { panic!("still a buffer") };
        assert_eq!((buf.len(), payload.verify(1100, buf)), (64 << 10, Ok(())));
        assert_eq!(call(&mut lane, Op::get_range(key, 299_000, 2000), &mut data).await, Err(ErrorKind::ShortBody));
        assert_eq!(call(&mut lane, Op::list(0, 10), &mut Data::None).await, Ok(0));
        assert_eq!(call(&mut lane, Op::delete(key), &mut Data::None).await, Ok(0));
        assert_eq!(call(&mut lane, Op::stat(key), &mut Data::None).await, Err(ErrorKind::NotFound));

        let derived = &mut Data::Derived(payload.clone());
        assert_eq!(call(&mut lane, Op::multipart(key, 11 << 20, 5 << 20), derived).await, Ok(11 << 20));
        let mut data = Data::Into { buf: raw.arena().take().expect("free"), from: (11 << 20) - 5000 };
        assert_eq!(call(&mut lane, Op::get(key, 11 << 20), &mut data).await, Ok(11 << 20));
        let Data::Into { buf, .. } = &data else { panic!("still a buffer") };
        assert_eq!((buf.len(), payload.verify((11 << 20) - 5000, buf)), (5000, Ok(())));
    });
    running.shutdown(Duration::ZERO);
}

#[test]
fn wrong_keys_and_missing_buckets_are_told_apart() {
    let running = start(Config::default());
    block_on(async {
        let right = config(&running, "http");
        let cases = [
            (Some(Credentials::new("gpufeed", "wrong-secret", None)), "bucket", "AWS_SECRET_ACCESS_KEY"),
            (Some(Credentials::new("nobody", "gpufeed-secret", None)), "bucket", "AWS_ACCESS_KEY_ID"),
            (right.credentials.clone(), "other-bucket", "the bucket does not exist"),
        ];
        for (credentials, bucket, said) in cases {
            let config = S3Config { credentials, bucket: bucket.into(), ..right.clone() };
            let (_, mut lane) = open(&config, &names("x/")).await.expect("connects");
            let done = lane.call(&Op::list(0, 1), &mut Data::None).await;
            let error = done.result.expect_err("refused").to_string();
            assert!(error.contains(said), "{error}");
        }
    });
    running.shutdown(Duration::ZERO);
}

#[test]
fn certificates_are_checked_unless_told_otherwise() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("writes");
    std::fs::write(&key, made.key_pair.serialize_pem()).expect("writes");
    let running = start(Config { tls: Some(ServerTls { cert: cert.clone(), key }), ..Config::default() });
    block_on(async {
        let names = names("x/");
        let with = |tls| S3Config { tls, ..config(&running, "https") };
        let bundle = Tls { ca_bundle: Some(cert.clone()), ..Tls::default() };
        let unverified = Tls { verify: false, ..Tls::default() };
        for tls in [bundle, unverified] {
            let (_, mut lane) = open(&with(tls), &names).await.expect("connects");
            let key = Key { space: 0, rank: 0, id: 1, ..Key::ZERO };
            let done = lane.call(&Op::put(key, 3), &mut Data::From(Bytes::from_static(b"abc"))).await;
            assert!(done.result.is_ok(), "{:?}", done.result);
            assert_eq!(done.carrier, Carrier::Https);
            assert_eq!(call(&mut lane, Op::get(key, 3), &mut Data::Discard).await, Ok(3));
        }
        let refused = open(&with(Tls::default()), &names).await.err().expect("an unknown authority").to_string();
        assert!(refused.contains("AWS_CA_BUNDLE") || refused.contains("ca-certificates"), "{refused}");
        let missing = Tls { ca_bundle: Some(Path::new("/nowhere.pem").into()), ..Tls::default() };
        let refused = open(&with(missing), &names).await.err().expect("no such file").to_string();
        assert!(refused.starts_with("cannot read the certificates in /nowhere.pem"), "{refused}");
    });
    running.shutdown(Duration::ZERO);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn any_key_is_signed_and_found(keys in prop::collection::vec("[a-zA-Z0-9 +%?#&=~._:@!$'()*,;äß漢🦀-]{1,40}", 1..20)) {
        let running = start(Config::default());
        block_on(async {
            for key in keys {
                let names = names(&key);
                let (_, mut lane) = open(&config(&running, "http"), &names).await.expect("connects");
                let key = Key { space: 0, rank: 0, id: 1, ..Key::ZERO };
                let op = Op::put(key, 3);
                let done = lane.call(&op, &mut Data::From(Bytes::from_static(b"abc"))).await;
                assert!(done.result.is_ok(), "{:?}: {:?}", names.of(key), done.result);
                assert_eq!(call(&mut lane, Op::get_range(key, 1, 2), &mut Data::Discard).await, Ok(2));
                assert_eq!(call(&mut lane, Op::list(0, 5), &mut Data::None).await, Ok(0));
            }
        });
        running.shutdown(Duration::ZERO);
    }
}
