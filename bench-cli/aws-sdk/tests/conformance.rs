//! The engine's conformance suite, run by the aws-sdk transport.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpufeed_aws_sdk::{Access, SdkTransport};
use gpufeed_engine::conformance::{Capabilities, check, names};
use gpufeed_engine::transport::Clock;
use gpufeed_io::arena::Arena;
use gpufeed_server::{Config, Server};
use gpufeed_transports::s3::Credentials;

#[test]
fn aws_sdk_conforms() {
    let s3 = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(Config { s3, buckets: vec!["bucket".into()], cores: vec![0], ..Config::default() });
    let server = server.expect("starts");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let access = Access {
            endpoints: vec![format!("http://{}", server.s3_addr)],
            credentials: Some(Credentials::new("gpufeed", "gpufeed-secret", None)),
            ..Access::default()
        };
        let session = access.session().await.expect("complete");
        let clock = Clock::new(Instant::now());
        let arena = Arena::new(2 << 20, 4).expect("small");
        let names_of = Arc::new(names("a b/"));
        let transport = SdkTransport::new(&session, "bucket", 0, names_of, arena, clock).expect("no bundle");
        let checked =
            tokio::time::timeout(Duration::from_secs(120), check(&transport, clock, "a b/", Capabilities::ALL));
        assert_eq!(checked.await.expect("no hang"), Ok(()));
    });
    server.shutdown(Duration::ZERO);
}
