//! Bodies of answers: from the store to the socket without a copy, at the pace and with the faults of the shape.

use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};

use crate::books::{Counts, Log, Request, Served, Wire};
use crate::connection::Connection;
use crate::operation::Operation;
use crate::store::Reader;
use crate::waits::{Until, Waits};

/// Least time between two paced pieces.
const PACE: Duration = Duration::from_millis(1);
/// Least and most bytes of a paced piece.
const PIECE_BYTES: std::ops::RangeInclusive<u64> = 1024..=256 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where the bytes come from.
pub(crate) enum Source<R> {
    Empty,
    Bytes(Bytes),
    Store(R),
    S3s(s3s::Body),
}

impl<R: Reader> Source<R> {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then_some(Ok(bytes)))
            }
            Self::Store(reader) => reader.poll_chunk(cx).map_err(Into::into),
            Self::S3s(body) => loop {
                match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    None => return Poll::Ready(None),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            return Poll::Ready(Some(Ok(data)));
                        }
                    }
                }
            },
        }
    }
}

/// Pieces leave evenly from `first` to `last`.
pub(crate) struct Pace {
    waits: Rc<Waits>,
    first: Instant,
    span: Duration,
    total: u64,
    piece: u64,
    next: Option<Until>,
}

impl Pace {
    pub(crate) fn new(waits: &Rc<Waits>, first: Instant, last: Instant, total: u64) -> Self {
        let span = last.saturating_duration_since(first);
        let pieces = (span.as_nanos() / PACE.as_nanos()).max(1) as u64;
        let piece = (total / pieces).clamp(*PIECE_BYTES.start(), *PIECE_BYTES.end());
        Self { waits: Rc::clone(waits), first, span, total, piece, next: None }
    }

    /// When the byte before `sent` is due.
    fn due(&self, sent: u64) -> Instant {
        self.first + self.span.mul_f64(sent as f64 / self.total as f64)
    }

    /// Waits until a piece that ends at `sent` may leave.
    fn poll(&mut self, sent: u64, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.due(sent);
        let wait = self.next.get_or_insert_with(|| self.waits.until(due));
        ready!(Pin::new(wait).poll(cx));
        self.next = None;
        Poll::Ready(())
    }
}

/// What is wrong with a body.
#[derive(Debug, Clone, Copy)]
pub(crate) enum BodyFault {
    /// The byte at this offset is another.
    Corrupt(u64),
    /// Only this many bytes are sent, then the connection is closed.
    Short(u64),
}

/// What a core does its books in.
pub(crate) struct Books {
    pub(crate) counts: std::sync::Arc<Counts>,
    pub(crate) log: Option<Log>,
}

/// Books a request when it is dropped, which is when its answer is through or given up.
pub(crate) struct Finish {
    pub(crate) books: Rc<Books>,
    pub(crate) connection: Rc<Connection>,
    pub(crate) operation: Operation,
    pub(crate) arrived: Instant,
    pub(crate) status: u16,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// What the shape made go wrong, in the log's words.
    pub(crate) fault: &'static str,
    pub(crate) request: Option<Box<Request>>,
}

impl Drop for Finish {
    fn drop(&mut self) {
        self.connection.end();
        let served = Served {
            wire: Wire::S3,
            operation: self.operation,
            status: self.status,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            duration: self.arrived.elapsed(),
            fault: self.fault,
        };
        self.books.counts.add(&served);
        if let (Some(log), Some(request)) = (&self.books.log, &self.request) {
            log.add(request, &served);
        }
    }
}

/// The body of an answer.
pub(crate) struct Outbound<R> {
    pub(crate) source: Source<R>,
    /// Its length, where known.
    pub(crate) len: Option<u64>,
    pub(crate) pace: Option<Box<Pace>>,
    pub(crate) fault: Option<BodyFault>,
    /// Taken from the source, not yet sent.
    pub(crate) held: Bytes,
    /// Whether a short body has reached its end.
    pub(crate) broken_off: bool,
    pub(crate) finish: Finish,
}

impl<R> Outbound<R> {
    /// Ends the connection once what was sent so far is out: hyper drops what it still holds when a body fails.
    fn break_off(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.broken_off {
            self.broken_off = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.finish.connection.progress.waits_for_client() {
            return Poll::Pending;
        }
        Poll::Ready(Some(Err("the shape cuts this body short".into())))
    }
}

impl<R: Reader> http_body::Body for Outbound<R> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.held.is_empty() {
            match ready!(this.source.poll_chunk(cx)) {
                Some(Ok(chunk)) => this.held = chunk,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let sent = this.finish.bytes_out;
        let mut now = this.held.len() as u64;
        if let Some(pace) = &this.pace {
            now = now.min(pace.piece);
        }
        if let Some(BodyFault::Short(most)) = this.fault {
            now = now.min(most - sent);
            if now == 0 {
                return this.break_off(cx);
            }
        }
        if let Some(pace) = &mut this.pace {
            ready!(pace.poll(sent + now, cx));
        }
        // Not more than what is held, which fits a usize.
        let mut piece = this.held.split_to(now as usize);
        if let Some(BodyFault::Corrupt(at)) = this.fault
            && (sent..sent + now).contains(&at)
        {
            let mut wrong = BytesMut::from(&piece[..]);
            wrong[(at - sent) as usize] ^= 1;
            piece = wrong.freeze();
        }
        this.finish.bytes_out += now;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.len == Some(self.finish.bytes_out)
    }

    fn size_hint(&self) -> SizeHint {
        match self.len {
            Some(len) => SizeHint::with_exact(len - self.finish.bytes_out),
            None => SizeHint::default(),
        }
    }
}
