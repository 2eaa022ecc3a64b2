//! S3 over HTTP: names, credentials and errors on s3s, which parses requests and checks signatures.
//!
//! Reads of objects ([`read`]) are our own from the header on: they are what is measured, and two rules of theirs
//! (a malformed Range is ignored, a HEAD honors Range) are not s3s's.

mod buckets;
mod combine;
mod conditions;
mod error;
pub(crate) mod express;
mod intake;
mod listing;
mod multipart;
mod objects;
pub(crate) mod read;
mod service;
pub(crate) mod target;

use std::collections::HashMap;
use std::sync::Arc;

use s3s::auth::{S3Auth, SecretKey};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};

use crate::config::{Config, EtagKind, Key};
use crate::store::Store;

pub(crate) use read::Send;

/// What every S3 call needs.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    pub(crate) store: Arc<S>,
    etag: EtagKind,
    body_bytes: u64,
    /// Domains under which buckets are host names, each with a dot before it.
    domains: Vec<String>,
}

impl<S> Wire<S> {
    pub(crate) fn new(store: Arc<S>, config: &Config) -> Self {
        let domains = config.domains.iter().map(|domain| format!(".{}", domain.to_ascii_lowercase())).collect();
        Self { store, etag: config.etag, body_bytes: config.limits.body_bytes, domains }
    }

    /// Whether buckets are in the path only.
    pub(crate) fn is_path_style(&self) -> bool {
        self.domains.is_empty()
    }
}

/// The secrets by access key.
#[derive(Debug)]
struct Keys(HashMap<String, SecretKey>);

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let unknown = || s3_error!(InvalidAccessKeyId, "the access key id you provided does not exist in our records");
        self.0.get(access_key).cloned().ok_or_else(unknown)
    }
}

/// Buckets as host names, under any of the domains; whatever else the Host says, the bucket is in the path.
#[derive(Debug)]
struct Hosts<S>(Arc<Wire<S>>);

impl<S: Store> s3s::host::S3Host for Hosts<S> {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<s3s::host::VirtualHost<'a>> {
        let named = s3s::host::VirtualHost::new(host);
        Ok(match target::bucket_of_host(host, &self.0.domains) {
            Some(bucket) => named.with_bucket(bucket),
            None => named,
        })
    }
}

/// The S3 service: signatures, operations, errors.
pub(crate) fn service<S: Store>(wire: &Arc<Wire<S>>, keys: &[Key]) -> S3Service {
    let mut builder = S3ServiceBuilder::new(service::Calls(Arc::clone(wire)));
    let secrets = keys.iter().map(|key| (key.access_key.clone(), SecretKey::from(key.secret_key.as_str())));
    builder.set_auth(Keys(secrets.collect()));
    builder.set_host(Hosts(Arc::clone(wire)));
    builder.set_route(read::Reads(Arc::clone(wire)));
    builder.build()
}
