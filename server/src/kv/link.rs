//! What a connection's tasks share: answers on their way out, and how much is under way.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use gpufeed_wire::frame::{Header, Operation as Asked, Sealer};
use gpufeed_wire::{Limits, Status};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

use crate::books::{Request, Served, Wire};
use crate::front::Core;
use crate::kv::End;
use crate::operation::Operation;

/// Payloads up to this size are copied behind their header: cheaper than a piece of their own in the system call.
const COPIED_BYTES: usize = 4096;
/// Pieces of one system call.
const PIECES: usize = 64;

/// A request, from the end of its header to the last byte of its answer handed to the socket.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) operation: Operation,
    pub(super) arrived: Instant,
    pub(super) status: Status,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    /// What the shape made go wrong, in the log's words.
    pub(super) fault: &'static str,
    pub(super) request: Option<Box<Request>>,
    /// Whether the answer to the frame is complete with this: one of a batch of keys is not.
    pub(super) last: bool,
    /// Bytes of the connection's window that it holds.
    pub(super) window: u64,
}

struct Out {
    seal: Sealer,
    /// Frames gathered since the last piece.
    small: BytesMut,
    pieces: VecDeque<Bytes>,
    /// Bytes queued since the connection began, and of these sent.
    queued: u64,
    sent: u64,
    /// Requests whose answers end at so many bytes.
    tickets: VecDeque<(u64, Ticket)>,
    /// Nothing comes after what is queued, whatever is under way.
    broken: bool,
}

/// See the module.
pub(super) struct Link<S> {
    pub(super) core: Rc<Core<S>>,
    pub(super) bucket: Box<str>,
    pub(super) limits: Limits,
    out: RefCell<Out>,
    /// Told when there is something to send.
    ready: Notify,
    /// Told when something has been sent.
    room: Notify,
    requests: Cell<u32>,
    window: Cell<u64>,
    finished: Cell<bool>,
}

impl<S> Link<S> {
    pub(super) fn new(core: Rc<Core<S>>, bucket: Box<str>, limits: Limits, seal: Sealer) -> Rc<Self> {
        let out = Out {
            seal,
            small: BytesMut::new(),
            pieces: VecDeque::new(),
            queued: 0,
            sent: 0,
            tickets: VecDeque::new(),
            broken: false,
        };
        Rc::new(Self {
            core,
            bucket,
            limits,
            out: RefCell::new(out),
            ready: Notify::new(),
            room: Notify::new(),
            requests: Cell::new(0),
            window: Cell::new(0),
            finished: Cell::new(false),
        })
    }

    /// Waits until another request may come in.
    pub(super) async fn admit(&self) {
        while self.requests.get() >= self.limits.requests || self.window.get() >= self.limits.window_bytes {
            self.room.notified().await;
        }
    }

    /// A request is under way.
    pub(super) fn begin(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    /// So many bytes of payload are under way. A block already there may exceed the window: it is one.
    pub(super) fn hold(&self, bytes: u64) {
        self.window.set(self.window.get() + bytes);
    }

    /// Queues an answer.
    pub(super) fn answer(&self, header: &Header, meta: &[u8], payload: &[Bytes], ticket: Ticket) {
        let mut out = self.out.borrow_mut();
        if out.broken {
            return;
        }
        let head = out.seal.seal(header, meta);
        out.small.extend_from_slice(&head);
        out.small.extend_from_slice(meta);
        out.queued += (head.len() + meta.len()) as u64;
        for piece in payload {
            out.queued += piece.len() as u64;
            if piece.len() <= COPIED_BYTES {
                out.small.extend_from_slice(piece);
            } else {
                let small = out.small.split().freeze();
                out.pieces.extend([small, piece.clone()].into_iter().filter(|piece| !piece.is_empty()));
            }
        }
        let end = out.queued;
        out.tickets.push_back((end, ticket));
        drop(out);
        self.ready.notify_one();
    }

    /// Queues the first half of an answer, after which the connection ends.
    pub(super) fn break_off(&self, header: &Header, meta: &[u8], payload: &[Bytes], ticket: Ticket) {
        let half: u64 = payload.iter().map(|piece| piece.len() as u64).sum::<u64>() / 2;
        let mut left = half as usize;
        let halves = payload.iter().map(|piece| {
            let now = left.min(piece.len());
            left -= now;
            piece.slice(..now)
        });
        let halves: Vec<Bytes> = halves.collect();
        self.answer(header, meta, &halves, ticket);
        self.out.borrow_mut().broken = true;
        self.ready.notify_one();
    }

    /// Says why the connection ends.
    pub(super) fn say(&self, status: Status) {
        let header = Header::request(Asked::Connection, 0, 0).answer(status);
        let mut out = self.out.borrow_mut();
        if !out.broken {
            let head = out.seal.seal(&header, b"");
            out.small.extend_from_slice(&head);
            out.queued += head.len() as u64;
        }
        drop(out);
        self.ready.notify_one();
    }

    /// Nothing more is asked: sending ends when what is under way is answered.
    pub(super) fn finish(&self) {
        self.finished.set(true);
        self.ready.notify_one();
    }

    /// Sends what is queued, until there is nothing to come. `patience` is how long the client may take nothing.
    pub(super) async fn send(&self, mut to: impl AsyncWrite + Unpin, patience: Duration) -> Result<(), End> {
        loop {
            let pieces = self.take();
            if pieces.is_empty() {
                let broken = self.out.borrow().broken;
                if broken || (self.finished.get() && self.requests.get() == 0) {
                    tokio::time::timeout(patience, to.shutdown()).await.map_err(|_| End::Silent)??;
                    return Ok(());
                }
                self.ready.notified().await;
                continue;
            }
            let written = {
                let mut slices = [IoSlice::new(&[]); PIECES];
                let count = pieces.len().min(PIECES);
                for (slice, piece) in slices.iter_mut().zip(&pieces) {
                    *slice = IoSlice::new(piece);
                }
                let write = to.write_vectored(&slices[..count]);
                tokio::time::timeout(patience, write).await.map_err(|_| End::Silent)??
            };
            if written == 0 {
                return Err(End::Io(std::io::ErrorKind::WriteZero.into()));
            }
            self.put_back(pieces, written);
        }
    }

    fn take(&self) -> VecDeque<Bytes> {
        let mut out = self.out.borrow_mut();
        if !out.small.is_empty() {
            let small = out.small.split().freeze();
            out.pieces.push_back(small);
        }
        std::mem::take(&mut out.pieces)
    }

    /// So many bytes of `pieces` are out; what is left comes before what was queued meanwhile.
    fn put_back(&self, mut pieces: VecDeque<Bytes>, written: usize) {
        let mut left = written;
        while let Some(first) = pieces.front_mut()
            && left >= first.len()
        {
            left -= first.len();
            pieces.pop_front();
        }
        if let Some(first) = pieces.front_mut() {
            first.advance(left);
        }
        let mut out = self.out.borrow_mut();
        pieces.append(&mut out.pieces);
        out.pieces = pieces;
        out.sent += written as u64;
        let mut done = false;
        while out.tickets.front().is_some_and(|(end, _)| *end <= out.sent) {
            let Some((_, ticket)) = out.tickets.pop_front() else { break };
            self.close(ticket);
            done = true;
        }
        drop(out);
        if done {
            self.room.notify_one();
        }
    }

    /// So many requests will never be whole, and have no answer.
    pub(super) fn abandon(&self, requests: usize) {
        self.requests.set(self.requests.get().saturating_sub(u32::try_from(requests).unwrap_or(u32::MAX)));
    }

    /// A frame that has no answer of its own is dealt with.
    pub(super) fn count(&self, ticket: Ticket) {
        self.close(Ticket { last: false, ..ticket });
        self.room.notify_one();
    }

    fn close(&self, ticket: Ticket) {
        self.window.set(self.window.get() - ticket.window);
        if ticket.last {
            self.requests.set(self.requests.get() - 1);
        }
        let served = Served {
            wire: Wire::Kv,
            operation: ticket.operation,
            status: as_http(ticket.status),
            bytes_in: ticket.bytes_in,
            bytes_out: ticket.bytes_out,
            duration: ticket.arrived.elapsed(),
            fault: ticket.fault,
        };
        self.core.books.counts.add(&served);
        if let (Some(log), Some(request)) = (&self.core.books.log, &ticket.request) {
            log.add(request, &served);
        }
    }
}

/// A status as logs and metrics know it from HTTP.
fn as_http(status: Status) -> u16 {
    match status {
        Status::Ok => 200,
        Status::NotFound => 404,
        Status::Exists => 412,
        Status::TooLarge => 413,
        Status::Unauthorized | Status::Forbidden | Status::Forged | Status::Replayed => 403,
        Status::BadRequest | Status::Version | Status::Corrupt => 400,
        Status::Busy | Status::Closing => 503,
        Status::Full => 507,
        Status::Internal => 500,
    }
}
