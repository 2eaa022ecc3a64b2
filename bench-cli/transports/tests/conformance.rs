//! The engine's conformance suite, run by every transport of this crate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpufeed_engine::conformance::{Capabilities, SEED, check, names};
use gpufeed_engine::transport::{Clock, Transport};
use gpufeed_io::arena::Arena;
use gpufeed_server::{Config, Server};
use gpufeed_transports::file::{FileConfig, FileStore, FileTarget, Fsync};
use gpufeed_transports::kv::{KvConfig, KvTarget};
use gpufeed_transports::null::NullTarget;
use gpufeed_transports::s3::{Addressing, Credentials, RawS3, S3Config, S3Target, Tls};
use gpufeed_workloads::op::Names;

const PREFIX: &str = "a b/";

fn run<T: Transport>(capabilities: Capabilities, open: impl FnOnce(Arc<Names>, Arena, Clock) -> T) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let clock = Clock::new(Instant::now());
        let transport = open(Arc::new(names(PREFIX)), Arena::new(2 << 20, 4).expect("small"), clock);
        let checked = tokio::time::timeout(Duration::from_secs(120), check(&transport, clock, PREFIX, capabilities));
        assert_eq!(checked.await.expect("no hang"), Ok(()));
    });
}

#[test]
fn the_null_target_conforms() {
    let capabilities = Capabilities { stores: false, conditional: false, ..Capabilities::ALL };
    run(capabilities, |names, arena, clock| NullTarget::new(names, SEED, arena, clock));
}

#[test]
fn files_conform_in_every_way_of_doing_io() {
    let here = std::env::current_exe().expect("own path");
    let root = tempfile::tempdir_in(here.parent().expect("a directory")).expect("a directory");
    for direct in [true, false] {
        for io_uring in [true, false] {
            let root = root.path().join(format!("{direct}-{io_uring}"));
            let config = FileConfig { direct, io_uring, fsync: Fsync::Never, ..FileConfig::new(root) };
            let store = FileStore::open(&config).expect("a directory");
            run(Capabilities { multipart_part_bytes: Some(4096), ..Capabilities::ALL }, |names, arena, clock| {
                FileTarget::new(store.clone(), names, arena, clock).expect("a ring")
            });
        }
    }
}

#[test]
fn raw_s3_conforms() {
    let s3 = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(Config { s3, buckets: vec!["bucket".into()], cores: vec![0], ..Config::default() });
    let server = server.expect("starts");
    let target = S3Target::resolve(&S3Config {
        endpoints: vec![format!("http://{}", server.s3_addr).parse().expect("a URI")],
        bucket: "bucket".into(),
        region: "us-east-1".into(),
        credentials: Some(Credentials::new("gpufeed", "gpufeed-secret", None)),
        addressing: Addressing::Auto,
        tls: Tls::default(),
    });
    run(Capabilities::ALL, |names, arena, clock| RawS3::new(target.expect("an address"), names, arena, clock));
    server.shutdown(Duration::ZERO);
}

#[test]
fn kv_blocks_conform() {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config {
        s3: loopback,
        kv: Some(loopback),
        buckets: vec!["bucket".into()],
        cores: vec![0],
        ..Config::default()
    };
    let server = Server::start(config).expect("starts");
    let config = KvConfig {
        address: server.kv_addr.expect("a KV port").to_string(),
        credentials: Credentials::new("gpufeed", "gpufeed-secret", None),
        bucket: "bucket".into(),
    };
    let capabilities = Capabilities { list: false, multipart_part_bytes: None, empty: false, ..Capabilities::ALL };
    run(capabilities, |names, arena, clock| KvTarget::new(config, names, arena, clock));
    server.shutdown(Duration::ZERO);
}
