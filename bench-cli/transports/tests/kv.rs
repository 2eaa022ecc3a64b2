//! KV blocks against the reference server and against servers that misbehave.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpufeed_engine::conformance::names;
use gpufeed_engine::transport::{Clock, Data, Done, Lane as _, Transport as _};
use gpufeed_io::arena::Arena;
use gpufeed_server::{Config, Running, Server};
use gpufeed_transports::kv::{KvConfig, KvTarget};
use gpufeed_transports::s3::Credentials;
use gpufeed_workloads::op::{Carrier, ErrorKind, Key, Op};

fn serve(shape: &[&str]) -> Running {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let shape = shape.iter().map(|&spec| spec.to_owned()).collect();
    let base = Config { s3: loopback, kv: Some(loopback), buckets: vec!["bucket".into()], ..Config::default() };
    Server::start(Config { shape, cores: vec![0], ..base }).expect("starts")
}

fn config(address: SocketAddr) -> KvConfig {
    let credentials = Credentials::new("gpufeed", "gpufeed-secret", None);
    KvConfig { address: address.to_string(), credentials, bucket: "bucket".into() }
}

/// Runs `test` with a transport that is driven as the engine does.
fn with<F: Future>(config: KvConfig, test: impl FnOnce(KvTarget) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let arena = Arena::new(1 << 20, 4).expect("small");
        let target = KvTarget::new(config, Arc::new(names("")), arena, Clock::new(Instant::now()));
        let mut turn = pin!(target.turn());
        let mut test = pin!(tokio::time::timeout(Duration::from_secs(60), test(target.clone())));
        tokio::select! {
            () = &mut turn => unreachable!("a turn has no end"),
            done = &mut test => done.expect("no hang"),
        }
    })
}

const KEY: Key = Key { id: 5, ..Key::ZERO };

fn kind(done: &Done) -> Option<ErrorKind> {
    done.result.as_ref().err().map(|error| error.kind)
}

fn block(bytes: usize) -> Data {
    Data::From(vec![3; bytes].into())
}

#[test]
fn one_that_is_refused_says_why() {
    let server = serve(&[]);
    let address = server.kv_addr.expect("a port");
    let refused =
        |config: KvConfig| with(config, |target| async move { target.lane().await.map(|_| ()).expect_err("refused") });
    let wrong = refused(KvConfig { credentials: Credentials::new("gpufeed", "guess-guess", None), ..config(address) });
    assert_eq!((wrong.kind, wrong.to_string().contains("secret key is wrong")), (ErrorKind::Denied, true), "{wrong}");
    let wrong = refused(KvConfig { bucket: "elsewhere".into(), ..config(address) });
    assert_eq!(
        (wrong.kind, wrong.to_string().contains("no bucket `elsewhere`")),
        (ErrorKind::NotFound, true),
        "{wrong}"
    );
    // The S3 port is no KV server.
    let wrong = refused(config(server.s3_addr));
    assert_eq!(wrong.kind, ErrorKind::Protocol, "{wrong}");
    server.shutdown(Duration::ZERO);
    assert_eq!(refused(config(address)).kind, ErrorKind::Connect);
}

#[test]
fn forty_lanes_share_three_connections_and_wait_for_nobody() {
    let server = serve(&["get:latency=100ms"]);
    with(config(server.kv_addr.expect("a port")), |target| async move {
        let mut lanes = Vec::new();
        for _ in 0..40 {
            lanes.push(target.lane().await.expect("opens"));
        }
        let put = lanes[0].call(&Op::put(KEY, 100_000), &mut block(100_000)).await;
        assert!(put.result.is_ok() && put.bytes == 100_000 && put.carrier == Carrier::KvTcp, "{put:?}");
        let began = Instant::now();
        let calls = lanes.iter_mut().map(|lane| async { lane.call(&Op::get(KEY, 100_000), &mut Data::Discard).await });
        let all = futures_util::future::join_all(calls).await;
        assert!(all.iter().all(|done| done.result.is_ok() && done.bytes == 100_000));
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(99) && took < Duration::from_millis(1500), "{took:?}");
    });
    server.shutdown(Duration::ZERO);
}

#[test]
fn corrupt_short_and_refused_blocks_are_told_apart() {
    for (fault, expected) in [
        ("get:corrupt=100%", ErrorKind::Corrupt),
        ("get:short=100%", ErrorKind::Connect),
        ("get:errors=100%", ErrorKind::Throttled),
        ("get:errors=100%:500", ErrorKind::Server),
    ] {
        let server = serve(&[fault]);
        with(config(server.kv_addr.expect("a port")), |target| async move {
            let mut lane = target.lane().await.expect("opens");
            assert!(lane.call(&Op::put(KEY, 5000), &mut block(5000)).await.result.is_ok());
            for _ in 0..3 {
                // A connection that broke is made again.
                let done = lane.call(&Op::get(KEY, 5000), &mut Data::Discard).await;
                assert_eq!(kind(&done), Some(expected), "{fault}: {done:?}");
            }
            let wrong_length = lane.call(&Op::put(KEY, 10), &mut block(5)).await;
            assert_eq!(kind(&wrong_length), Some(ErrorKind::Client));
        });
        server.shutdown(Duration::ZERO);
    }
}

/// A call that is given up leaves the connection to the others, and its buffer is not written to once it is free.
#[test]
fn a_call_that_is_given_up_is_in_nobody_s_way() {
    let server = serve(&["get:latency=200ms"]);
    with(config(server.kv_addr.expect("a port")), |target| async move {
        let (mut given_up, mut other) = (target.lane().await.expect("opens"), target.lane().await.expect("opens"));
        assert!(given_up.call(&Op::put(KEY, 5000), &mut block(5000)).await.result.is_ok());
        let free = target.arena().free();
        let mut data = Data::Into { buf: target.arena().take().expect("free"), from: 0 };
        let get = Op::get(KEY, 5000);
        let late = tokio::time::timeout(Duration::from_millis(20), given_up.call(&get, &mut data)).await;
        assert!(late.is_err() && matches!(data, Data::None));
        assert_eq!(target.arena().free(), free - 1, "in quarantine until its answer is through");
        let done = other.call(&get, &mut Data::Discard).await;
        assert!(done.result.is_ok(), "{done:?}");
        assert_eq!(target.arena().free(), free);
        assert!(given_up.call(&get, &mut Data::Discard).await.result.is_ok());
    });
    server.shutdown(Duration::ZERO);
}

#[test]
fn a_server_that_goes_away_fails_what_is_in_flight() {
    let server = serve(&["get:latency=30s"]);
    with(config(server.kv_addr.expect("a port")), |target| async move {
        let mut lane = target.lane().await.expect("opens");
        assert!(lane.call(&Op::put(KEY, 50), &mut block(50)).await.result.is_ok());
        let get = Op::get(KEY, 50);
        let mut data = Data::Discard;
        let call = lane.call(&get, &mut data);
        let gone = async {
            tokio::task::yield_now().await;
            tokio::task::spawn_blocking(move || server.shutdown(Duration::ZERO)).await.expect("ends");
            std::future::pending::<()>().await;
        };
        let done = tokio::select! { done = call => done, () = gone => unreachable!("for ever") };
        assert!(matches!(kind(&done), Some(ErrorKind::Connect | ErrorKind::Throttled)), "{done:?}");
        assert_eq!(kind(&lane.call(&get, &mut data).await), Some(ErrorKind::Connect));
    });
}

/// Whatever a peer says, a client ends the connection and says so.
#[test]
fn nonsense_is_refused() {
    for nonsense in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0; 80], b"GFKV\x02"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.write_all(nonsense).expect("sent");
            stream.shutdown(std::net::Shutdown::Write).expect("a socket");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        with(config(address), |target| async move {
            let error = target.lane().await.map(|_| ()).expect_err("refused");
            assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
        });
        peer.join().expect("done");
    }
}
