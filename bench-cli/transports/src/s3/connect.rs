//! Where the lanes of a target connect to, and their connections.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use gpufeed_engine::transport::OpError;
use gpufeed_workloads::op::{Carrier, ErrorKind};
use http::uri::Scheme;
use http::{HeaderValue, Uri};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::{Addressing, Credentials, S3Config, client_tls};
use super::send::Outgoing;

/// A TCP or TLS handshake takes no longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One read of the socket. Small reads keep the receive queue in the CPU's cache.
const READ_BYTES: usize = 64 << 10;

/// An S3 target, resolved: shared by the transports of all cores.
#[derive(Clone)]
pub struct S3Target {
    shared: Arc<Shared>,
}

struct Shared {
    places: Vec<Place>,
    region: String,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// Read when `generation` has changed only: never per operation.
    credentials: Mutex<Option<Credentials>>,
    generation: AtomicU64,
    next: AtomicUsize,
}

/// One address of one endpoint.
pub(crate) struct Place {
    /// `http://host:port` as a person knows it.
    pub(crate) endpoint: String,
    pub(crate) secure: bool,
    /// The `host` header.
    pub(crate) host: HeaderValue,
    /// Path of the bucket with a slash at its end.
    pub(crate) bucket: String,
    address: SocketAddr,
    server_name: Option<ServerName<'static>>,
}

fn bad_endpoint(endpoint: &Uri, why: &str) -> OpError {
    OpError::new(ErrorKind::Client, format!("`{endpoint}` is no endpoint: {why}; write it like https://host:9000"))
}

/// Addresses of an endpoint, the bucket's own name in front of the host where that is how the bucket is addressed.
fn places(endpoint: &Uri, config: &S3Config, aws: bool) -> Result<Vec<Place>, OpError> {
    let secure = match endpoint.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => false,
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        Some(_) => return Err(bad_endpoint(endpoint, "its scheme is neither http nor https")),
        None => return Err(bad_endpoint(endpoint, "it has no scheme")),
    };
    let authority = endpoint.authority().ok_or_else(|| bad_endpoint(endpoint, "it has no host"))?;
    if authority.as_str().contains('@') {
        return Err(bad_endpoint(endpoint, "it holds a user name"));
    }
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let bare_host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_address = bare_host.parse::<std::net::IpAddr>().is_ok();
    let virtual_host = match config.addressing {
        Addressing::Path => false,
        // A dot in the bucket's name is no match for a wildcard certificate.
        Addressing::Auto => aws && !config.bucket.contains('.'),
        Addressing::VirtualHost if is_address => {
            return Err(bad_endpoint(endpoint, "virtual-host addressing needs a host name, not an address"));
        }
        Addressing::VirtualHost => true,
    };
    let name = if virtual_host { format!("{}.{bare_host}", config.bucket) } else { bare_host.to_owned() };
    let found = (name.as_str(), port).to_socket_addrs().or_else(|error| {
        // The bucket's own name need not be known to the resolver: the host header carries it.
        if virtual_host { (bare_host, port).to_socket_addrs() } else { Err(error) }
    });
    let found = found.map_err(|error| {
        let detail = format!("cannot resolve the host of endpoint {endpoint}: {error}; check --endpoint-url");
        OpError::new(ErrorKind::Connect, detail)
    })?;
    let text = if virtual_host { format!("{}.{authority}", config.bucket) } else { authority.to_string() };
    let host = HeaderValue::from_str(&text).map_err(|_| bad_endpoint(endpoint, "its host is no header value"))?;
    let server_name = if secure {
        let name = ServerName::try_from(name).map_err(|_| bad_endpoint(endpoint, "its host is no server name"))?;
        Some(name)
    } else {
        None
    };
    let mut bucket = endpoint.path().trim_end_matches('/').to_owned();
    if !virtual_host {
        bucket.push('/');
        super::sign::encode_query(&config.bucket, &mut bucket);
    }
    bucket.push('/');
    let place = |address| Place {
        endpoint: format!("{}://{authority}", if secure { "https" } else { "http" }),
        secure,
        host: host.clone(),
        bucket: bucket.clone(),
        address,
        server_name: server_name.clone(),
    };
    let mut found: Vec<SocketAddr> = found.collect();
    // A host with both kinds of address is one machine: `localhost` must not cost half the lanes.
    if found.iter().any(SocketAddr::is_ipv4) {
        found.retain(SocketAddr::is_ipv4);
    }
    found.dedup();
    if found.is_empty() {
        return Err(bad_endpoint(endpoint, "its host has no address"));
    }
    Ok(found.into_iter().map(place).collect())
}

impl S3Target {
    /// Resolves the endpoints and loads the certificates. Blocks on DNS: call it once, before the run.
    ///
    /// # Errors
    /// When an endpoint is malformed or cannot be resolved, a certificate bundle cannot be read, or the session token
    /// cannot be sent.
    pub fn resolve(config: &S3Config) -> Result<Self, OpError> {
        let aws = config.endpoints.is_empty();
        let mut endpoints = config.endpoints.clone();
        if aws {
            let text = format!("https://s3.{}.amazonaws.com", config.region);
            let endpoint = text.parse().map_err(|_| {
                OpError::new(ErrorKind::Client, format!("`{}` is no region; check AWS_REGION", config.region))
            })?;
            endpoints.push(endpoint);
        }
        if config.bucket.is_empty() {
            return Err(OpError::new(
                ErrorKind::Client,
                "the target names no bucket; write it like s3://bucket/prefix",
            ));
        }
        let mut all = Vec::new();
        for endpoint in &endpoints {
            let aws = aws || endpoint.host().is_some_and(|host| host.ends_with(".amazonaws.com"));
            all.extend(places(endpoint, config, aws)?);
        }
        let tls = if all.iter().any(|place| place.secure) { Some(client_tls(&config.tls)?) } else { None };
        if let Some(credentials) = &config.credentials {
            super::sign::Signer::new(credentials, &config.region)
                .map_err(|why| OpError::new(ErrorKind::Denied, format!("{why}; check AWS_SESSION_TOKEN")))?;
        }
        Ok(Self {
            shared: Arc::new(Shared {
                places: all,
                region: config.region.clone(),
                tls,
                credentials: Mutex::new(config.credentials.clone()),
                generation: AtomicU64::new(0),
                next: AtomicUsize::new(0),
            }),
        })
    }

    /// Replaces the credentials of every lane, from its next request on: temporary ones expire.
    pub fn renew(&self, credentials: Credentials) {
        *self.shared.credentials.lock().unwrap_or_else(PoisonError::into_inner) = Some(credentials);
        self.shared.generation.fetch_add(1, Ordering::Release);
    }

    /// Changes whenever the credentials do.
    pub(crate) fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    pub(crate) fn credentials(&self) -> Option<Credentials> {
        self.shared.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn region(&self) -> &str {
        &self.shared.region
    }

    /// The place of the next lane: each endpoint and address in turn, over all cores.
    pub(crate) fn next_place(&self) -> usize {
        self.shared.next.fetch_add(1, Ordering::Relaxed) % self.shared.places.len()
    }

    pub(crate) fn place(&self, index: usize) -> &Place {
        &self.shared.places[index]
    }

    /// How requests to any of the places travel, if all of them do alike.
    pub(crate) fn carrier(&self) -> Option<Carrier> {
        let first = self.place(0).carrier();
        self.shared.places.iter().all(|place| place.carrier() == first).then_some(first)
    }

    /// Opens a connection to a place.
    pub(crate) async fn connect(&self, index: usize) -> Result<Http, OpError> {
        let place = self.place(index);
        let opening = async {
            let stream = TcpStream::connect(place.address).await.map_err(|error| place.unreachable(&error))?;
            stream.set_nodelay(true).map_err(|error| place.unreachable(&error))?;
            let (Some(name), Some(tls)) = (&place.server_name, &self.shared.tls) else {
                return Ok(Stream::Plain(stream));
            };
            let tls = TlsConnector::from(Arc::clone(tls)).connect(name.clone(), stream).await;
            tls.map(|tls| Stream::Tls(Box::new(tls))).map_err(|error| {
                let Place { endpoint, .. } = place;
                OpError::new(
                    ErrorKind::Connect,
                    format!(
                        "no TLS with {endpoint}: {error}; for a certificate of your own set AWS_CA_BUNDLE or use \
                         --no-verify-tls, for a plain endpoint write http://"
                    ),
                )
            })
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, opening)
            .await
            .unwrap_or_else(|_| Err(place.unreachable(&io::Error::from(io::ErrorKind::TimedOut))))?;
        let (sender, connection) =
            http1::Builder::new().read_buf_exact_size(Some(READ_BYTES)).handshake(TokioIo::new(stream)).await.map_err(
                |error| OpError::new(ErrorKind::Connect, format!("no HTTP with {}: {error}", place.endpoint)),
            )?;
        Ok(Http { sender, connection: Some(connection) })
    }
}

impl std::fmt::Debug for S3Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let places = self.shared.places.iter().map(|place| (&place.endpoint, place.address));
        f.debug_struct("S3Target").field("places", &places.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

impl Place {
    pub(crate) const fn carrier(&self) -> Carrier {
        if self.secure { Carrier::Https } else { Carrier::Http }
    }

    fn unreachable(&self, error: &io::Error) -> OpError {
        let Self { endpoint, address, .. } = self;
        let why = match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                "nothing listens there; start the server or check --endpoint-url".into()
            }
            io::ErrorKind::TimedOut => "no answer; check --endpoint-url and the firewall".into(),
            _ => format!("{error}; check --endpoint-url"),
        };
        OpError::new(ErrorKind::Connect, format!("cannot connect to {endpoint} ({address}): {why}"))
    }
}

type Connection = http1::Connection<TokioIo<Stream>, Outgoing>;

/// One HTTP/1.1 connection, driven by whoever waits for it: no task of its own, so no hand-over between tasks.
pub(crate) struct Http {
    sender: http1::SendRequest<Outgoing>,
    /// None when it is over. Dropping it is what tells those who wait for an answer.
    connection: Option<Connection>,
}

impl Http {
    /// Whether another request can be sent: finishes the last exchange and notices that the server has closed.
    pub(crate) async fn ready(&mut self) -> bool {
        let Self { sender, connection } = self;
        let ready = drive(connection, poll_fn(|cx| sender.poll_ready(cx))).await;
        ready.is_ok() && self.connection.is_some()
    }

    /// Sends a request; the answer's head. The request comes back where the connection was over before any of it was
    /// sent.
    pub(crate) async fn send(
        &mut self,
        request: http::Request<Outgoing>,
    ) -> Result<http::Response<hyper::body::Incoming>, TrySendError<http::Request<Outgoing>>> {
        let answer = self.sender.try_send_request(request);
        self.drive(answer).await
    }

    /// Waits for `future`, which waits for this connection.
    pub(crate) async fn drive<F: Future>(&mut self, future: F) -> F::Output {
        drive(&mut self.connection, future).await
    }
}

async fn drive<F: Future>(connection: &mut Option<Connection>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Some(open) = connection
            && Pin::new(open).poll(cx).is_ready()
        {
            *connection = None;
        }
        future.as_mut().poll(cx)
    })
    .await
}

/// TCP, with or without TLS.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
