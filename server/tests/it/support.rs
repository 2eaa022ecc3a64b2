//! A server and a client for it.

use std::net::SocketAddr;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use gpufeed_profiles::units::Bytes;
use gpufeed_server::{Config, Key, Running, Server, StoreKind};

pub(crate) const BUCKET: &str = "data";
pub(crate) const SECRET: &str = "a-secret-for-tests";

/// An ephemeral port on loopback, one bucket, one core.
pub(crate) fn config() -> Config {
    Config {
        s3: SocketAddr::from(([127, 0, 0, 1], 0)),
        keys: vec![Key { access_key: "tester".into(), secret_key: SECRET.into() }],
        buckets: vec![BUCKET.into()],
        store: StoreKind::Mem { capacity: Bytes(256 << 20) },
        ..Config::default()
    }
}

pub(crate) fn serve(config: Config) -> Running {
    Server::start(config).expect("the server starts")
}

pub(crate) fn client_with(server: &Running, access_key: &str, secret: &str) -> Client {
    client_at(&format!("http://{}", server.s3_addr), access_key, secret)
}

pub(crate) fn client_at(endpoint: &str, access_key: &str, secret: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(Credentials::new(access_key, secret, None, None, "tests"))
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .retry_config(aws_sdk_s3::config::retry::RetryConfig::disabled())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

pub(crate) fn client(server: &Running) -> Client {
    client_with(server, "tester", SECRET)
}

/// The S3 code and HTTP status of a refusal.
pub(crate) fn refusal<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug>(
    result: Result<T, SdkError<E>>,
) -> (String, u16) {
    let error = result.expect_err("a refusal");
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    (error.code().unwrap_or_default().to_owned(), status)
}

pub(crate) fn refused(code: &str, status: u16) -> (String, u16) {
    (code.to_owned(), status)
}

/// Bytes that are no payload of any seed, different for each `salt`.
pub(crate) fn bytes(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8 ^ salt).collect()
}
