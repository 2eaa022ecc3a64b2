//! Traits [`Transport`] and [`Lane`]: what a target looks like to the measured path.
//!
//! A transport lives on one core and is never sent to another. It opens lanes; a lane has one operation in flight and
//! owns what that needs (connection, path buffer). Lanes stamp `sent` after signing and after the payload is ready,
//! `first_byte` and `done` as the bytes arrive.

use std::future::Future;
use std::time::Instant;

use bytes::Bytes;
use gpufeed_io::arena::{Arena, Buf};
use gpufeed_io::payload::Payload;
use gpufeed_workloads::op::{Carrier, ErrorKind, Op, Tick};

/// Reads the wall clock as ticks since an origin shared by everything in a run.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose tick zero is `origin`.
    #[must_use]
    pub const fn new(origin: Instant) -> Self {
        Self { origin }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Tick {
        let nanos = Instant::now().saturating_duration_since(self.origin).as_nanos();
        Tick(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The instant of a tick, for timers.
    #[must_use]
    pub fn instant(&self, tick: Tick) -> Instant {
        self.origin + tick.since(Tick::ZERO)
    }
}

/// What a transport can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest object.
    pub object_bytes: u64,
    /// Alignment of offsets and lengths that avoids a bounce copy, one where there is none.
    pub alignment: u64,
}

/// Payload of one operation.
#[derive(Debug)]
pub enum Data {
    /// The operation has none.
    None,
    /// Count the answer's bytes and drop them as they arrive.
    Discard,
    /// Keep the answer's bytes until the operation is done, as an application that holds the body does.
    Hold,
    /// Copy bytes `from..` of the answer into the buffer, as many as it holds, and drop the rest; its length is set to
    /// what arrived.
    Into {
        /// Where to.
        buf: Buf,
        /// First byte of the answer to keep.
        from: u64,
    },
    /// Send these bytes: the whole payload, made before the operation is sent.
    From(Bytes),
    /// Send bytes made chunk by chunk while sending. For payloads larger than an arena buffer only: their generation
    /// is inside the operation's time, so measured writes should be multipart or fit a buffer.
    Derived(Payload),
}

/// How one operation went, as a lane saw it.
#[derive(Debug)]
pub struct Done {
    /// When the request left.
    pub sent: Tick,
    /// When the first byte of the answer arrived.
    pub first_byte: Tick,
    /// When the last byte arrived.
    pub done: Tick,
    /// How it travelled.
    pub carrier: Carrier,
    /// Payload bytes moved.
    pub bytes: u64,
    /// Attempts made.
    pub attempts: u32,
    /// Success, or why not.
    pub result: Result<(), OpError>,
}

/// Why an operation failed, with words for a person. Built on the failure path only.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct OpError {
    /// What it counts as.
    pub kind: ErrorKind,
    /// Names the operation and the thing, and the way out where there is one.
    pub detail: Box<str>,
}

impl OpError {
    /// An error of `kind`, described by `detail`.
    pub fn new(kind: ErrorKind, detail: impl Into<Box<str>>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

/// A target, seen from one core.
pub trait Transport: 'static {
    /// What performs one operation at a time.
    type Lane: Lane + 'static;

    /// What it can take.
    fn limits(&self) -> Limits;

    /// Page-aligned buffers it can use without a copy of its own.
    fn arena(&self) -> &Arena;

    /// How payloads travel when nothing goes wrong: what an operation is counted under that got no answer. `None`
    /// where only an answer tells.
    fn carrier(&self) -> Option<Carrier> {
        None
    }

    /// The same of the second target, where it is two in one.
    fn second_carrier(&self) -> Option<Carrier> {
        None
    }

    /// Opens a lane, and its connection where it has one.
    fn lane(&self) -> impl Future<Output = Result<Self::Lane, OpError>>;

    /// Drives what the lanes share (a ring, a completion queue) for as long as it is polled.
    fn turn(&self) -> impl Future<Output = ()> {
        std::future::pending()
    }
}

/// One operation in flight.
pub trait Lane {
    /// Performs `op`. Time-outs are the caller's: the future may be dropped at any point, after which the lane must
    /// still be usable (a half-used connection is closed and opened again).
    fn call(&mut self, op: &Op, data: &mut Data) -> impl Future<Output = Done>;
}
