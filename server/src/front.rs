//! HTTP: a request from its header to its answer, on one core.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use gpufeed_profiles::storage::{Fault, ShapedOp};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RANGE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::service::S3Service;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::books::{self, Counts, Log};
use crate::config::Limits;
use crate::connection::{Connection, Watched};
use crate::inbound::Inbound;
use crate::kv;
use crate::operation::Operation;
use crate::outbound::{BodyFault, Books, Finish, Outbound, Pace, Source};
use crate::s3::express::Express;
use crate::s3::read::{self, Answer, AnswerBody};
use crate::s3::{Send, Wire};
use crate::shape::{Shaping, Verdict};
use crate::store::Store;
use crate::waits::Waits;

/// Most bytes still read of a body whose request is refused.
const DRAIN_BYTES: u64 = 64 << 20;
/// Most header fields of a request.
const HEADER_FIELDS: usize = 128;

/// A core: what its requests share.
pub(crate) struct Core<S> {
    pub(crate) wire: Arc<Wire<S>>,
    pub(crate) service: S3Service,
    pub(crate) express: Express,
    pub(crate) shaping: Option<Arc<Shaping>>,
    pub(crate) waits: Rc<Waits>,
    pub(crate) books: Rc<Books>,
    pub(crate) limits: Limits,
    pub(crate) kv: Arc<kv::Shared>,
    pub(crate) connections: RefCell<HashMap<u64, Rc<Connection>>>,
    pub(crate) next: Cell<u64>,
    /// Told whenever a connection ends.
    pub(crate) ended: tokio::sync::Notify,
}

impl<S: Store> Core<S> {
    pub(crate) fn books(counts: &Arc<Counts>, log: Option<Log>) -> Rc<Books> {
        Rc::new(Books { counts: Arc::clone(counts), log })
    }

    /// Serves a connection until it ends, in a task of its own.
    pub(crate) fn spawn<F, T>(self: &Rc<Self>, wire: books::Wire, connect: F)
    where
        F: Future<Output = std::io::Result<T>> + 'static,
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let id = self.next.get();
        self.next.set(id + 1);
        let connection = Connection::new();
        self.connections.borrow_mut().insert(id, Rc::clone(&connection));
        let left = Left { core: Rc::clone(self), id };
        self.books.counts.connections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (core, watched) = (Rc::clone(self), Rc::clone(&connection));
        let task = tokio::task::spawn_local(async move {
            // Also dropped when the task is aborted.
            let _left = left;
            match connect.await {
                Ok(stream) => match wire {
                    books::Wire::S3 => core.serve(stream, watched).await,
                    books::Wire::Kv => kv::serve(core, stream, watched).await,
                },
                Err(error) => tracing::debug!(%error, "a connection could not be set up"),
            }
        });
        connection.set_task(task.abort_handle());
    }

    async fn serve<T: AsyncRead + AsyncWrite + Unpin + 'static>(self: Rc<Self>, stream: T, connection: Rc<Connection>) {
        let io = Watched { io: TokioIo::new(stream), connection: Rc::clone(&connection) };
        let core = Rc::clone(&self);
        let served = Rc::clone(&connection);
        let service = service_fn(move |request| Rc::clone(&core).answer(Rc::clone(&served), request));
        let serving = http1::Builder::new().max_headers(HEADER_FIELDS).serve_connection(io, service);
        let mut serving = pin!(serving);
        let mut draining = false;
        let result = std::future::poll_fn(|cx| {
            if !draining && connection.is_draining(cx) {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
            serving.as_mut().poll(cx)
        })
        .await;
        if let Err(error) = result {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    /// Answers one request.
    async fn answer(
        self: Rc<Self>,
        connection: Rc<Connection>,
        request: Request<Incoming>,
    ) -> Result<Response<Outbound<S::Reader>>, Infallible> {
        connection.begin();
        let arrived = Instant::now();
        let (parts, body) = request.into_parts();
        let target = self.wire.target(&parts.uri, &parts.headers);
        let operation = Operation::of(&parts.method, target.as_ref(), parts.uri.query(), &parts.headers);
        let noted = self.books.log.as_ref().map(|_| {
            let text = |range: &HeaderValue| String::from_utf8_lossy(range.as_bytes()).into_owned();
            Box::new(books::Request {
                bucket: target.as_ref().map(|target| target.bucket.to_string()).unwrap_or_default(),
                key: target.as_ref().map(|target| target.key.to_string()).unwrap_or_default(),
                range: parts.headers.get(RANGE).map(text).unwrap_or_default(),
            })
        });
        let head = parts.method == Method::HEAD;
        let mut finish = Finish {
            books: Rc::clone(&self.books),
            connection: Rc::clone(&connection),
            operation,
            arrived,
            status: 0,
            bytes_in: announced(&parts.headers),
            bytes_out: 0,
            fault: "",
            request: noted,
        };
        drop(target);
        let mut verdict = None;
        // A write is let in with what it says it brings, before it changes anything; a read with what it turns out to
        // take.
        if let (Some(shaping), Some(shaped)) = (&self.shaping, operation.shaped())
            && matches!(shaped, ShapedOp::Put | ShapedOp::Delete)
        {
            verdict = Some(shaping.admit(shaped, finish.bytes_in, arrived));
        }
        let answer = match verdict {
            Some(Verdict { fault: Some(Fault::Error(status)), .. }) => {
                finish.fault = "error";
                Inbound::new(body, Arc::clone(&connection.progress)).drain(u64::MAX).await;
                self.injected(status, head)
            }
            _ => self.call(Request::from_parts(parts, body), &connection).await,
        };
        Ok(self.shaped(answer, finish, verdict, arrived, head).await)
    }

    fn injected(&self, status: u16, head: bool) -> Response<Source<S::Reader>> {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let (code, message) = match status {
            StatusCode::SERVICE_UNAVAILABLE => ("SlowDown", "please reduce your request rate"),
            StatusCode::TOO_MANY_REQUESTS => ("TooManyRequests", "please reduce your request rate"),
            StatusCode::NOT_FOUND => ("NoSuchKey", "no object has this key"),
            StatusCode::FORBIDDEN => ("AccessDenied", "access denied"),
            _ => ("InternalError", "an error the shape asks for"),
        };
        self.response(read::error(status, code, message, "", head))
    }

    fn response(&self, answer: Answer<S::Body>) -> Response<Source<S::Reader>> {
        let body = match answer.body {
            AnswerBody::None => Source::Empty,
            AnswerBody::Text(text) => Source::Bytes(text),
            AnswerBody::Object(Send { entry, range }) => Source::Store(self.wire.store.read(&entry, range)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        response
    }

    /// The answer, were there no shape.
    async fn call(&self, request: Request<Incoming>, connection: &Rc<Connection>) -> Response<Source<S::Reader>> {
        let header_bytes: usize =
            request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        let head = request.method() == Method::HEAD;
        if header_bytes > self.limits.header_bytes {
            let message = format!("the header fields exceed {} bytes", self.limits.header_bytes);
            return self.response(read::error(
                StatusCode::BAD_REQUEST,
                "RequestHeaderSectionTooLarge",
                &message,
                "",
                head,
            ));
        }
        let (parts, body) = request.into_parts();
        if body.is_end_stream()
            && let Some(target) = self.wire.target(&parts.uri, &parts.headers)
            && self.wire.is_path_style()
            && self.express.admits(&parts, SystemTime::now())
        {
            return self.response(self.wire.read(&target, parts.uri.query(), &parts.headers, head));
        }
        let (body, rest) = if body.is_end_stream() {
            (s3s::Body::empty(), None)
        } else {
            let body = Inbound::new(body, Arc::clone(&connection.progress));
            if is_unsized(&parts.headers) {
                match Limited::new(body.clone(), self.limits.unsized_body_bytes).collect().await {
                    Ok(whole) => (s3s::Body::from(whole.to_bytes()), None),
                    Err(error) => {
                        let message = format!(
                            "a body without a length must not exceed {} bytes: {error}",
                            self.limits.unsized_body_bytes
                        );
                        return self.response(read::error(
                            StatusCode::BAD_REQUEST,
                            "EntityTooLarge",
                            &message,
                            "",
                            head,
                        ));
                    }
                }
            } else {
                (s3s::Body::http_body_unsync(body.clone()), Some(body))
            }
        };
        match self.service.call(Request::from_parts(parts, body)).await {
            Ok(mut response) => {
                if let Some(rest) = rest
                    && !rest.is_end_stream()
                {
                    rest.drain(DRAIN_BYTES).await;
                }
                let send = response.extensions_mut().remove::<Send<S::Body>>();
                response.map(|body| match send {
                    Some(Send { entry, range }) => Source::Store(self.wire.store.read(&entry, range)),
                    None => body.bytes().map_or_else(|| Source::S3s(body), Source::Bytes),
                })
            }
            Err(error) => {
                tracing::error!(?error, "s3s failed");
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                self.response(read::error(status, "InternalError", "we encountered an internal error", "", head))
            }
        }
    }

    /// The answer with the shape's delay, pace and faults.
    async fn shaped(
        &self,
        answer: Response<Source<S::Reader>>,
        mut finish: Finish,
        verdict: Option<Verdict>,
        arrived: Instant,
        head: bool,
    ) -> Response<Outbound<S::Reader>> {
        let mut answer = answer;
        let mut len = length(&answer, head);
        let verdict = verdict.or_else(|| {
            let (shaping, shaped) = (self.shaping.as_ref()?, finish.operation.shaped()?);
            Some(shaping.admit(shaped, len.unwrap_or(0), arrived))
        });
        let mut pace = None;
        let mut fault = None;
        if let Some(Verdict { first, last, fault: wrong }) = verdict {
            let succeeded = answer.status().is_success();
            match (wrong, len) {
                (Some(Fault::Error(status)), _) if succeeded => {
                    finish.fault = "error";
                    answer = self.injected(status, head);
                    len = length(&answer, head);
                    self.waits.until(last).await;
                }
                (wrong, Some(1..)) if last > first || wrong.is_some() => {
                    let len = len.unwrap_or(0);
                    fault = match wrong {
                        Some(Fault::Corrupt) if succeeded => Some(BodyFault::Corrupt(len / 2)),
                        Some(Fault::Short) if succeeded => Some(BodyFault::Short(len / 2)),
                        _ => None,
                    };
                    finish.fault = match fault {
                        None => "",
                        Some(BodyFault::Corrupt(_)) => "corrupt",
                        Some(BodyFault::Short(_)) => "short",
                    };
                    self.waits.until(first).await;
                    pace = (last > first).then(|| Box::new(Pace::new(&self.waits, first, last, len)));
                }
                _ => self.waits.until(last).await,
            }
        }
        finish.status = answer.status().as_u16();
        if finish.status == StatusCode::SERVICE_UNAVAILABLE.as_u16() {
            answer.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer.map(|source| Outbound { source, len, pace, fault, held: Bytes::new(), broken_off: false, finish })
    }
}

/// The length of an answer's body, where known.
fn length<R>(answer: &Response<Source<R>>, head: bool) -> Option<u64> {
    if head {
        return Some(0);
    }
    match answer.body() {
        Source::Empty => Some(0),
        Source::Bytes(bytes) => Some(bytes.len() as u64),
        Source::Store(_) => number(answer.headers(), CONTENT_LENGTH.as_str()),
        Source::S3s(body) => body.size_hint().exact(),
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// Bytes of payload a request says it brings.
fn announced(headers: &HeaderMap) -> u64 {
    number(headers, "x-amz-decoded-content-length").or_else(|| number(headers, CONTENT_LENGTH.as_str())).unwrap_or(0)
}

/// Whether a body comes without its length. s3s refuses these, so they are gathered first.
fn is_unsized(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        && !headers.contains_key(CONTENT_LENGTH)
        && !headers.contains_key("x-amz-decoded-content-length")
}

/// A connection that is leaving its core.
struct Left<S> {
    core: Rc<Core<S>>,
    id: u64,
}

impl<S> Drop for Left<S> {
    fn drop(&mut self) {
        self.core.connections.borrow_mut().remove(&self.id);
        self.core.books.counts.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        self.core.ended.notify_one();
    }
}

/// `/metrics`, `/healthz` and `/readyz`.
pub(crate) async fn admin(
    stream: tokio::net::TcpStream,
    metrics: impl Fn() -> String + 'static,
    ready: impl Fn() -> bool + 'static,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (status, text) = match (request.method(), request.uri().path()) {
            (&(Method::GET | Method::HEAD), "/metrics") => (StatusCode::OK, metrics()),
            (&(Method::GET | Method::HEAD), "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
            (&(Method::GET | Method::HEAD), "/readyz") if ready() => (StatusCode::OK, "ready\n".to_owned()),
            (&(Method::GET | Method::HEAD), "/readyz") => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
            _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
        };
        let mut response = Response::new(http_body_util::Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut builder = http1::Builder::new();
    builder.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(std::time::Duration::from_secs(10));
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a metrics connection ended early");
    }
}
