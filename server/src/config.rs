//! What the server is asked to be.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use gpufeed_profiles::units::Bytes;
use serde::{Deserialize, Serialize};

/// The access key a server on a loopback address has when none is configured.
pub const DEFAULT_ACCESS_KEY: &str = "gpufeed";
/// The secret that goes with [`DEFAULT_ACCESS_KEY`].
pub const DEFAULT_SECRET_KEY: &str = "gpufeed-secret";

/// A pair of credentials.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
}

/// Without the secret.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// Where objects live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StoreKind {
    /// In memory.
    Mem {
        /// Most bytes of bodies to hold.
        capacity: Bytes,
    },
    /// In memory, but for payload of `seed`, which is made again on GET.
    Synth {
        /// The run's seed.
        seed: u64,
        /// Most bytes of other bodies to hold.
        capacity: Bytes,
    },
}

/// How entity tags are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EtagKind {
    /// MD5, as S3 does: some clients compare it with their own.
    #[default]
    Md5,
    /// XXH3-128 with `-1` behind it: a fortieth of the CPU.
    Fast,
}

/// Certificate and key for TLS, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Where requests are logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// The file, appended to.
    pub path: PathBuf,
    /// How lines are written.
    #[serde(default)]
    pub format: LogFormat,
}

/// How access log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Comma separated, with a header line when the file is new.
    #[default]
    Csv,
    /// One JSON object a line.
    Json,
}

/// What keeps a client from holding on to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most connections at once; others are answered 503 SlowDown and closed.
    pub connections: usize,
    /// Most bytes of a request's header fields.
    pub header_bytes: usize,
    /// Most bytes of a request's body.
    pub body_bytes: u64,
    /// Most bytes of a body sent without saying its length.
    pub unsized_body_bytes: usize,
    /// Longest time from the first byte of a request to the end of its header.
    pub header_timeout: Duration,
    /// Longest time without a request on an open connection.
    pub idle_timeout: Duration,
    /// Longest time in which a body must move on by [`body_progress_bytes`](Self::body_progress_bytes).
    pub body_timeout: Duration,
    /// Least bytes per [`body_timeout`](Self::body_timeout).
    pub body_progress_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            header_bytes: 32 * 1024,
            body_bytes: 5 << 30,
            unsized_body_bytes: 64 << 20,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            body_timeout: Duration::from_secs(30),
            body_progress_bytes: 16 * 1024,
        }
    }
}

/// Everything about a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where S3 is served; port 0 takes a free one.
    pub s3: SocketAddr,
    /// Where the KV block protocol is served, if at all; port 0 takes a free one.
    pub kv: Option<SocketAddr>,
    /// How long a lease on a KV block lasts.
    pub kv_lease: Duration,
    /// Where `/metrics`, `/healthz` and `/readyz` are served, if at all.
    pub metrics: Option<SocketAddr>,
    /// Who may come in; none means [`DEFAULT_ACCESS_KEY`], on loopback addresses only.
    pub keys: Vec<Key>,
    /// Where objects live.
    pub store: StoreKind,
    /// How entity tags are made.
    pub etag: EtagKind,
    /// Buckets that are there from the start.
    pub buckets: Vec<String>,
    /// Domains under which buckets are host names (`bucket.domain`).
    pub domains: Vec<String>,
    /// TLS, if the S3 and KV ports speak it.
    pub tls: Option<Tls>,
    /// Processors to serve from, one thread pinned to each; none means all this process may use, not pinned.
    pub cores: Vec<usize>,
    /// Injected latency, caps and faults, as `gpufeed_profiles::storage::Shape` reads them.
    pub shape: Vec<String>,
    /// Seed of what the shape draws.
    pub shape_seed: u64,
    /// Where requests are logged, if at all.
    pub access_log: Option<AccessLog>,
    /// What keeps a client from holding on to the server.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            s3: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9000),
            kv: None,
            kv_lease: Duration::from_secs(10),
            metrics: None,
            keys: Vec::new(),
            store: StoreKind::Mem { capacity: Bytes(half_of_memory()) },
            etag: EtagKind::default(),
            buckets: Vec::new(),
            domains: Vec::new(),
            tls: None,
            cores: Vec::new(),
            shape: Vec::new(),
            shape_seed: 0,
            access_log: None,
            limits: Limits::default(),
        }
    }
}

/// Half of the machine's memory, in bytes.
fn half_of_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) / 2
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Default credentials where others can come in.
    #[error(
        "{0} is not a loopback address: configure an access key and a secret of your own, the default ones are for loopback only"
    )]
    DefaultCredentials(SocketAddr),
    /// A key without a name or a secret.
    #[error("access key `{0}` has no name or a secret shorter than 8 characters")]
    WeakKey(String),
    /// One name, two secrets.
    #[error("access key `{0}` is configured twice")]
    KeyTwice(String),
    /// Not a bucket name.
    #[error("`{0}` is not a bucket name: 3 to 63 lower-case letters, digits, dots and hyphens")]
    BucketName(String),
    /// Not a domain.
    #[error("`{0}` is not a domain")]
    Domain(String),
}

impl Config {
    /// The keys to let in, once they are fit for the address.
    ///
    /// # Errors
    /// Default credentials away from loopback, empty or short secrets, a key twice.
    pub fn checked_keys(&self) -> Result<Vec<Key>, ConfigError> {
        let open = [Some(self.s3), self.kv].into_iter().flatten().find(|address| !address.ip().is_loopback());
        if self.keys.is_empty() {
            if let Some(open) = open {
                return Err(ConfigError::DefaultCredentials(open));
            }
            return Ok(vec![Key { access_key: DEFAULT_ACCESS_KEY.into(), secret_key: DEFAULT_SECRET_KEY.into() }]);
        }
        for (i, key) in self.keys.iter().enumerate() {
            if key.access_key.is_empty() || key.secret_key.len() < 8 {
                return Err(ConfigError::WeakKey(key.access_key.clone()));
            }
            if let Some(open) = open.filter(|_| key.secret_key == DEFAULT_SECRET_KEY) {
                return Err(ConfigError::DefaultCredentials(open));
            }
            if self.keys[..i].iter().any(|other| other.access_key == key.access_key) {
                return Err(ConfigError::KeyTwice(key.access_key.clone()));
            }
        }
        Ok(self.keys.clone())
    }

    /// Checks names.
    ///
    /// # Errors
    /// A bucket or a domain that is none.
    pub fn check_names(&self) -> Result<(), ConfigError> {
        if let Some(bucket) = self.buckets.iter().find(|name| !s3s::path::check_bucket_name(name)) {
            return Err(ConfigError::BucketName(bucket.clone()));
        }
        let wrong = |domain: &&String| domain.is_empty() || domain.starts_with('.') || domain.contains(['/', ' ', ':']);
        self.domains.iter().find(wrong).map_or(Ok(()), |domain| Err(ConfigError::Domain(domain.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str, keys: &[(&str, &str)]) -> Config {
        let key = |&(access, secret): &(&str, &str)| Key { access_key: access.into(), secret_key: secret.into() };
        Config { s3: address.parse().expect("an address"), keys: keys.iter().map(key).collect(), ..Config::default() }
    }

    #[test]
    fn default_credentials_stay_on_loopback() {
        assert_eq!(at("127.0.0.1:0", &[]).checked_keys().expect("fine").len(), 1);
        assert_eq!(at("[::1]:0", &[]).checked_keys().expect("fine").len(), 1);
        let refused = at("0.0.0.0:9000", &[]).checked_keys().expect_err("open to all");
        assert!(refused.to_string().starts_with("0.0.0.0:9000 is not a loopback address"), "{refused}");
        assert!(at("192.168.1.2:9000", &[("me", DEFAULT_SECRET_KEY)]).checked_keys().is_err());
        assert!(at("192.168.1.2:9000", &[("me", "a-secret-of-mine")]).checked_keys().is_ok());
        let inside = Config { kv: Some(([0, 0, 0, 0], 9900).into()), ..at("127.0.0.1:0", &[]) };
        assert!(inside.checked_keys().is_err(), "the KV port is open to all");
        assert!(at("127.0.0.1:0", &[("me", "")]).checked_keys().is_err());
        assert!(at("127.0.0.1:0", &[("me", "12345678"), ("me", "87654321")]).checked_keys().is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", at("127.0.0.1:0", &[("me", "hush-hush")])).contains("hush"));
    }

    #[test]
    fn names_are_checked() {
        let config = Config { buckets: vec!["Data".into()], ..Config::default() };
        assert_eq!(config.check_names(), Err(ConfigError::BucketName("Data".into())));
        let config = Config { domains: vec!["s3.test/x".into()], ..Config::default() };
        assert_eq!(config.check_names(), Err(ConfigError::Domain("s3.test/x".into())));
    }
}
