//! A lane of raw S3: one operation at a time over a connection of its own.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use gpufeed_engine::transport::{Clock, Data, Done, Lane, Limits, OpError, Transport};
use gpufeed_io::arena::Arena;
use gpufeed_workloads::op::{Carrier, Condition, ErrorKind, Names, Op, Tick, Verb};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, ETAG, HOST, HeaderName, IF_NONE_MATCH, RANGE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::answer::{Refusal, element, escape, refusal};
use super::connect::{Http, S3Target};
use super::send::{Outgoing, outgoing};
use super::sign::{PayloadHash, Signer, encode_key, encode_query};
use crate::landing::land;

const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// The largest object S3 takes in parts, and the most parts.
const OBJECT_BYTES: u64 = 5 << 40;
const PARTS: u64 = 10_000;
/// A connection unused for longer may have been closed by the server.
const IDLE: Duration = Duration::from_millis(10);
/// An XML answer is read up to this length.
const ANSWER_BYTES: usize = 8 << 20;
/// An error answer is read up to this length.
const REFUSAL_BYTES: usize = 64 << 10;

/// Raw S3, seen from one core.
#[derive(Debug, Clone)]
pub struct RawS3 {
    target: S3Target,
    names: Arc<Names>,
    arena: Arena,
    clock: Clock,
}

impl RawS3 {
    /// The transport of one core.
    #[must_use]
    pub const fn new(target: S3Target, names: Arc<Names>, arena: Arena, clock: Clock) -> Self {
        Self { target, names, arena, clock }
    }
}

impl Transport for RawS3 {
    type Lane = S3Lane;

    fn limits(&self) -> Limits {
        Limits { object_bytes: OBJECT_BYTES, alignment: 1 }
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What the endpoints speak, if all speak the same.
    fn carrier(&self) -> Option<Carrier> {
        self.target.carrier()
    }

    async fn lane(&self) -> Result<S3Lane, OpError> {
        let place = self.target.next_place();
        let http = self.target.connect(place).await?;
        let mut lane = S3Lane {
            target: self.target.clone(),
            place,
            names: Arc::clone(&self.names),
            clock: self.clock,
            generation: 0,
            signer: None,
            http: Some(http),
            used: self.clock.now(),
            name: String::new(),
            path: String::new(),
            query: String::new(),
            head: BytesMut::with_capacity(8192),
            headers: HeaderMap::with_capacity(12),
            held: Vec::new(),
            abandoned: None,
        };
        lane.load_credentials()?;
        Ok(lane)
    }
}

/// A lane of [`RawS3`].
pub struct S3Lane {
    target: S3Target,
    place: usize,
    names: Arc<Names>,
    clock: Clock,
    /// Of the credentials that `signer` has.
    generation: u64,
    /// None where requests are not signed.
    signer: Option<Signer>,
    /// Absent while an exchange is under way, so that a dropped call closes it.
    http: Option<Http>,
    /// When it was last used.
    used: Tick,
    /// Key, encoded path and encoded query of the request being made.
    name: String,
    path: String,
    query: String,
    /// Text of request heads: split off for each, reclaimed when hyper has let go of it.
    head: BytesMut,
    /// Header map of the last answer, reused for the next request.
    headers: HeaderMap,
    held: Vec<Bytes>,
    /// A multipart upload that was begun and not completed: its path and id.
    abandoned: Option<(String, String)>,
}

/// What a request asks for, besides path and query.
struct Ask {
    method: Method,
    /// First and last byte.
    range: Option<(u64, u64)>,
    if_absent: bool,
    body: Outgoing,
}

impl Ask {
    const fn bare(method: Method) -> Self {
        Self { method, range: None, if_absent: false, body: Outgoing::Empty }
    }
}

/// Moments of an operation as they are reached.
struct Marks {
    clock: Clock,
    sent: Option<Tick>,
    first_byte: Option<Tick>,
    bytes: u64,
}

impl Marks {
    fn sent(&mut self) {
        self.sent.get_or_insert_with(|| self.clock.now());
    }

    fn first_byte(&mut self) {
        self.first_byte.get_or_insert_with(|| self.clock.now());
    }
}

impl Lane for S3Lane {
    async fn call(&mut self, op: &Op, data: &mut Data) -> Done {
        let mut marks = Marks { clock: self.clock, sent: None, first_byte: None, bytes: 0 };
        let result = self.perform(op, data, &mut marks).await;
        let done = self.clock.now();
        self.used = done;
        self.held.clear();
        let carrier = self.target.place(self.place).carrier();
        let sent = marks.sent.unwrap_or(done);
        Done {
            sent,
            first_byte: marks.first_byte.unwrap_or(done),
            done,
            carrier,
            bytes: marks.bytes,
            attempts: 1,
            result,
        }
    }
}

impl S3Lane {
    async fn perform(&mut self, op: &Op, data: &mut Data, marks: &mut Marks) -> Result<(), OpError> {
        if self.abandoned.is_some() {
            self.abort().await;
        }
        self.query.clear();
        match op.verb {
            Verb::Get => {
                self.set_key(op);
                self.get(op, data, marks).await
            }
            Verb::Put => {
                self.set_key(op);
                let body = outgoing(data, 0, op.bytes)?;
                let ask = Ask { if_absent: op.condition == Condition::IfAbsent, body, ..Ask::bare(Method::PUT) };
                let answer = self.ask(ask, marks).await?;
                self.empty_answer(answer, marks, &Method::PUT).await?;
                marks.bytes = op.bytes;
                Ok(())
            }
            Verb::Stat => {
                self.set_key(op);
                let answer = self.ask(Ask::bare(Method::HEAD), marks).await?;
                self.empty_answer(answer, marks, &Method::HEAD).await
            }
            Verb::Delete => {
                self.set_key(op);
                let answer = self.ask(Ask::bare(Method::DELETE), marks).await?;
                self.empty_answer(answer, marks, &Method::DELETE).await
            }
            Verb::List => self.list(op, marks).await,
            Verb::Multipart => {
                self.set_key(op);
                self.multipart(op, data, marks).await
            }
        }
    }

    fn set_key(&mut self, op: &Op) {
        self.name.clear();
        self.names.write(op.key, &mut self.name);
        self.path.clear();
        self.path.push_str(&self.target.place(self.place).bucket);
        encode_key(&self.name, &mut self.path);
    }

    async fn get(&mut self, op: &Op, data: &mut Data, marks: &mut Marks) -> Result<(), OpError> {
        let range = match (op.ranged, op.bytes) {
            (false, _) => None,
            (true, 0) => return Err(OpError::new(ErrorKind::Client, format!("a range of no bytes of {}", self.name))),
            (true, bytes) => Some((op.offset, op.offset + bytes - 1)),
        };
        let (mut http, answer) = self.ask(Ask { range, ..Ask::bare(Method::GET) }, marks).await?;
        let expected = if op.ranged { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        if answer.status() != expected {
            return Err(self.refused(http, answer, &Method::GET, marks).await);
        }
        let mut body = self.take_body(answer);
        let mut at = 0u64;
        loop {
            let frame = http.drive(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))).await;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| self.cut_short(op, at, &error))?;
            let Ok(chunk) = frame.into_data() else { continue };
            marks.first_byte();
            let start = at;
            at += chunk.len() as u64;
            marks.bytes = at;
            match data {
                Data::Into { buf, from } => land(buf, *from, start, &chunk),
                Data::Hold => self.held.push(chunk),
                _ => {}
            }
        }
        if let Data::Into { buf, from } = data {
            let kept = usize::try_from(at.saturating_sub(*from)).unwrap_or(usize::MAX);
            buf.set_len(kept.min(buf.capacity()));
        }
        self.http = Some(http);
        if at == op.bytes {
            return Ok(());
        }
        let what = self.what(&Method::GET);
        Err(OpError::new(ErrorKind::ShortBody, format!("{what} answered {at} bytes where {} were asked for", op.bytes)))
    }

    fn cut_short(&self, op: &Op, at: u64, error: &hyper::Error) -> OpError {
        let what = self.what(&Method::GET);
        let detail = format!("{what} ended after {at} of {} bytes: {error}", op.bytes);
        OpError::new(if error.is_parse() { ErrorKind::Protocol } else { ErrorKind::ShortBody }, detail)
    }

    async fn list(&mut self, op: &Op, marks: &mut Marks) -> Result<(), OpError> {
        self.path.clear();
        self.path.push_str(&self.target.place(self.place).bucket);
        // Writing to a String cannot fail.
        let _ = write!(self.query, "list-type=2&max-keys={}&prefix=", op.bytes.clamp(1, 1000));
        encode_query(&self.names.spaces[usize::from(op.key.space)].before, &mut self.query);
        let xml = self.ask_xml(Ask::bare(Method::GET), marks).await?;
        if xml.contains("<ListBucketResult") {
            return Ok(());
        }
        let what = self.what(&Method::GET);
        Err(OpError::new(ErrorKind::Protocol, format!("{what} did not answer a listing")))
    }

    /// Create, parts one after the other, complete. The first byte is that of the last answer.
    async fn multipart(&mut self, op: &Op, data: &Data, marks: &mut Marks) -> Result<(), OpError> {
        let part_bytes = if op.part_bytes == 0 { op.bytes.max(1) } else { op.part_bytes };
        let parts = op.bytes.div_ceil(part_bytes).max(1);
        if parts > PARTS {
            let detail = format!("{} in parts of {part_bytes} bytes has {parts} parts; S3 takes {PARTS}", self.name);
            return Err(OpError::new(ErrorKind::Client, detail));
        }
        self.query.push_str("uploads=");
        let xml = self.ask_xml(Ask::bare(Method::POST), marks).await?;
        let id = element(&xml, "UploadId").ok_or_else(|| {
            let what = self.what(&Method::POST);
            OpError::new(ErrorKind::Protocol, format!("{what} answered no upload id"))
        })?;
        self.abandoned = Some((self.path.clone(), id.clone()));
        let mut upload = String::from("uploadId=");
        encode_query(&id, &mut upload);

        let mut manifest = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
        for part in 0..parts {
            let start = part * part_bytes;
            self.query.clear();
            let _ = write!(self.query, "partNumber={}&{upload}", part + 1);
            let body = outgoing(data, start, part_bytes.min(op.bytes - start))?;
            let answer = self.ask(Ask { body, ..Ask::bare(Method::PUT) }, marks).await?;
            let etag = answer.1.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
            self.empty_answer(answer, marks, &Method::PUT).await?;
            let etag = etag.ok_or_else(|| {
                let what = self.what(&Method::PUT);
                OpError::new(ErrorKind::Protocol, format!("{what} answered no ETag"))
            })?;
            let _ = write!(manifest, "<Part><PartNumber>{}</PartNumber><ETag>", part + 1);
            escape(&etag, &mut manifest);
            manifest.push_str("</ETag></Part>");
        }
        manifest.push_str("</CompleteMultipartUpload>");
        self.query.clear();
        self.query.push_str(&upload);
        let ask = Ask {
            if_absent: op.condition == Condition::IfAbsent,
            body: Outgoing::Once(manifest.into()),
            ..Ask::bare(Method::POST)
        };
        marks.first_byte = None;
        let xml = self.ask_xml(ask, marks).await?;
        // Completing may fail after its status line was sent.
        if let Some(code) = element(&xml, "Code") {
            let message = element(&xml, "Message").unwrap_or_default();
            let what = self.what(&Method::POST);
            return Err(refusal(Refusal { what: &what, status: 500, code: &code, message: &message }));
        }
        self.abandoned = None;
        marks.bytes = op.bytes;
        Ok(())
    }

    /// Drops what an earlier call that failed or was dropped has left on the server, as well as it can.
    async fn abort(&mut self) {
        let Some((path, id)) = self.abandoned.take() else { return };
        self.path = path;
        self.query.clear();
        self.query.push_str("uploadId=");
        encode_query(&id, &mut self.query);
        let mut marks = Marks { clock: self.clock, sent: None, first_byte: None, bytes: 0 };
        if let Ok(answer) = self.ask(Ask::bare(Method::DELETE), &mut marks).await {
            let _ = self.empty_answer(answer, &mut marks, &Method::DELETE).await;
        }
    }

    /// Sends a request, on a new connection if the old one is gone; the head of the answer.
    async fn ask(&mut self, ask: Ask, marks: &mut Marks) -> Result<(Http, Response<Incoming>), OpError> {
        if self.clock.now().since(self.used) > IDLE {
            // Lets the runtime see whether the server has closed the connection meanwhile.
            tokio::task::yield_now().await;
        }
        let kept = match self.http.take() {
            Some(mut http) => http.ready().await.then_some(http),
            None => None,
        };
        let mut http = match kept {
            Some(http) => http,
            None => self.target.connect(self.place).await?,
        };
        let method = ask.method.clone();
        let request = self.request(ask)?;
        marks.sent();
        let mut answer = http.send(request).await;
        // The server closed an idle connection at the moment it was to be used: nothing was sent, so nothing is repeated.
        if let Err(unsent) = &mut answer
            && let Some(request) = unsent.take_message()
        {
            http = self.target.connect(self.place).await?;
            marks.sent = None;
            marks.sent();
            answer = http.send(request).await;
        }
        match answer.map_err(TrySendError::into_error) {
            Ok(answer) => Ok((http, answer)),
            Err(error) => {
                let kind = if error.is_parse() { ErrorKind::Protocol } else { ErrorKind::Connect };
                let why = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
                let detail = format!("{} got no answer: {error}{why}", self.what(&method));
                Err(OpError::new(kind, detail))
            }
        }
    }

    fn load_credentials(&mut self) -> Result<(), OpError> {
        self.generation = self.target.generation();
        self.signer = match self.target.credentials() {
            Some(credentials) => Some(
                Signer::new(&credentials, self.target.region())
                    .map_err(|why| OpError::new(ErrorKind::Denied, format!("{why}; check AWS_SESSION_TOKEN")))?,
            ),
            None => None,
        };
        Ok(())
    }

    /// Makes and signs the request. In steady state its only allocation is what hyper boxes it in.
    fn request(&mut self, ask: Ask) -> Result<Request<Outgoing>, OpError> {
        if self.generation != self.target.generation() {
            self.load_credentials()?;
        }
        let Ask { method, range, if_absent, body } = ask;
        let place = self.target.place(self.place);
        let invalid = |_| OpError::new(ErrorKind::Client, format!("{} makes no request", self.path));
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        headers.insert(HOST, place.host.clone());

        self.head.reserve(4096);
        if let Some(signer) = &mut self.signer {
            let payload = if body.remaining() == 0 { PayloadHash::Empty } else { PayloadHash::Unsigned };
            let host = place.host.to_str().unwrap_or_default();
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            signer.set_time(now.as_secs());
            signer.authorize(method.as_str(), &self.path, &self.query, host, payload, &mut self.head);
            let mut value = HeaderValue::from_maybe_shared(self.head.split().freeze())
                .map_err(|_| OpError::new(ErrorKind::Denied, "the access key holds control characters"))?;
            value.set_sensitive(true);
            headers.insert(CONTENT_SHA256, HeaderValue::from_static(payload.text()));
            headers.insert(DATE, signer.date().clone());
            if let Some(token) = signer.token() {
                headers.insert(TOKEN, token.clone());
            }
            headers.insert(AUTHORIZATION, value);
        }
        if let Some((first, last)) = range {
            // Writing to a buffer that grows cannot fail.
            let _ = write!(self.head, "bytes={first}-{last}");
            let value = HeaderValue::from_maybe_shared(self.head.split().freeze());
            headers.insert(RANGE, value.expect("digits"));
        }
        if if_absent {
            headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        if body.remaining() == 0 && (method == Method::PUT || method == Method::POST) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        self.head.put_slice(self.path.as_bytes());
        if !self.query.is_empty() {
            self.head.put_u8(b'?');
            self.head.put_slice(self.query.as_bytes());
        }
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_maybe_shared(self.head.split().freeze()).map_err(invalid)?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    fn take_body(&mut self, answer: Response<Incoming>) -> Incoming {
        let (parts, body) = answer.into_parts();
        self.headers = parts.headers;
        body
    }

    /// Reads an answer that should say nothing but its status.
    async fn empty_answer(
        &mut self,
        (mut http, answer): (Http, Response<Incoming>),
        marks: &mut Marks,
        method: &Method,
    ) -> Result<(), OpError> {
        if !answer.status().is_success() {
            return Err(self.refused(http, answer, method, marks).await);
        }
        marks.first_byte();
        let mut body = self.take_body(answer);
        if !body.is_end_stream() {
            read(&mut http, &mut body, ANSWER_BYTES).await.map_err(|error| self.broken(method, &error))?;
        }
        self.http = Some(http);
        Ok(())
    }

    /// Sends a request whose answer is XML.
    async fn ask_xml(&mut self, ask: Ask, marks: &mut Marks) -> Result<String, OpError> {
        let method = ask.method.clone();
        let (mut http, answer) = self.ask(ask, marks).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.refused(http, answer, &method, marks).await);
        }
        let mut body = self.take_body(answer);
        marks.first_byte();
        let (text, whole) =
            read(&mut http, &mut body, ANSWER_BYTES).await.map_err(|error| self.broken(&method, &error))?;
        if !whole {
            let what = self.what(&method);
            return Err(OpError::new(ErrorKind::Protocol, format!("{what} answered more than {ANSWER_BYTES} bytes")));
        }
        self.http = Some(http);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn broken(&self, method: &Method, error: &hyper::Error) -> OpError {
        OpError::new(ErrorKind::Connect, format!("the answer to {} broke off: {error}", self.what(method)))
    }

    /// The error of an answer that is not the one wanted.
    async fn refused(
        &mut self,
        mut http: Http,
        answer: Response<Incoming>,
        method: &Method,
        marks: &mut Marks,
    ) -> OpError {
        marks.first_byte();
        let status = answer.status();
        let what = self.what(method);
        let mut body = self.take_body(answer);
        if status.is_success() {
            // A server that ignores Range sends everything: closing is cheaper than reading it.
            let detail = format!("{what} was answered {} where another success was due", status.as_u16());
            return OpError::new(ErrorKind::Protocol, detail);
        }
        let text = match read(&mut http, &mut body, REFUSAL_BYTES).await {
            Ok((text, whole)) => {
                if whole {
                    self.http = Some(http);
                }
                text
            }
            Err(_) => BytesMut::new(),
        };
        let text = String::from_utf8_lossy(&text);
        refusal(Refusal {
            what: &what,
            status: status.as_u16(),
            code: &element(&text, "Code").unwrap_or_default(),
            message: &element(&text, "Message").unwrap_or_default(),
        })
    }

    /// The request as a person would write it; for error sentences.
    fn what(&self, method: &Method) -> String {
        let mark = if self.query.is_empty() { "" } else { "?" };
        format!("{method} {}{}{mark}{}", self.target.place(self.place).endpoint, self.path, self.query)
    }
}

/// Reads a body up to `most` bytes; whether that was all of it.
async fn read(http: &mut Http, body: &mut Incoming, most: usize) -> hyper::Result<(BytesMut, bool)> {
    let mut text = BytesMut::new();
    while let Some(frame) = http.drive(poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx))).await {
        if let Ok(chunk) = frame?.into_data() {
            if text.len() + chunk.len() > most {
                return Ok((text, false));
            }
            text.extend_from_slice(&chunk);
        }
    }
    Ok((text, true))
}
