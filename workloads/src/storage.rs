//! Storage in virtual time: when an operation is answered, by a shape that was given or by what was measured of a target.
//!
//! One definition for every virtual driver: the event heap of the engine, the baselines of a run, and capacity plans.

mod measured;
mod present;

use gpufeed_profiles::storage::{Fault, Shape, ShapedOp, Shaper};

pub use measured::{MeasuredStorage, Measurements, Transfers};
pub use present::Present;

use crate::op::{ErrorKind, Op, Tick, Verb};

/// When an operation admitted to storage answers, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// First byte.
    pub first_byte: Tick,
    /// Last byte.
    pub done: Tick,
    /// Success, or why not.
    pub result: Result<(), ErrorKind>,
}

impl Answer {
    /// Well and at once.
    #[must_use]
    pub const fn at_once(now: Tick) -> Self {
        Self { first_byte: now, done: now, result: Ok(()) }
    }
}

/// Storage in virtual time.
pub trait Storage {
    /// When `op`, which arrives at `now`, is answered. `now` never goes back.
    fn admit(&mut self, op: &Op, now: Tick) -> Answer;

    /// Operations it serves at a time; more wait for their turn.
    fn concurrency(&self) -> usize {
        usize::MAX
    }
}

impl<S: Storage + ?Sized> Storage for &mut S {
    fn admit(&mut self, op: &Op, now: Tick) -> Answer {
        (**self).admit(op, now)
    }

    fn concurrency(&self) -> usize {
        (**self).concurrency()
    }
}

impl<S: Storage + ?Sized> Storage for Box<S> {
    fn admit(&mut self, op: &Op, now: Tick) -> Answer {
        (**self).admit(op, now)
    }

    fn concurrency(&self) -> usize {
        (**self).concurrency()
    }
}

/// Infinite and instant.
#[derive(Debug, Clone, Copy, Default)]
pub struct Instant;

impl Storage for Instant {
    fn admit(&mut self, _op: &Op, now: Tick) -> Answer {
        Answer::at_once(now)
    }
}

/// Storage as shapes describe it (`--shape`), with a bound on operations in service. A multipart write is one write.
#[derive(Debug, Clone)]
pub struct StorageModel {
    shaper: Shaper,
    concurrency: usize,
}

impl StorageModel {
    /// Storage of this shape that serves `concurrency` operations at a time, or as many as come.
    #[must_use]
    pub fn new(shape: &Shape, seed: u64, concurrency: Option<usize>) -> Self {
        Self { shaper: Shaper::new(shape, seed), concurrency: concurrency.unwrap_or(usize::MAX).max(1) }
    }
}

impl Storage for StorageModel {
    fn admit(&mut self, op: &Op, now: Tick) -> Answer {
        let verb = match op.verb {
            Verb::Get => ShapedOp::Get,
            Verb::Put | Verb::Multipart => ShapedOp::Put,
            Verb::Stat => ShapedOp::Stat,
            Verb::List => ShapedOp::List,
            Verb::Delete => ShapedOp::Delete,
        };
        let fate = self.shaper.admit(verb, payload_bytes(op), now.0);
        let result = match fate.fault {
            None => Ok(()),
            Some(Fault::Error(429 | 503)) => Err(ErrorKind::Throttled),
            Some(Fault::Error(404)) => Err(ErrorKind::NotFound),
            Some(Fault::Error(401 | 403)) => Err(ErrorKind::Denied),
            Some(Fault::Error(409 | 412)) => Err(ErrorKind::Condition),
            Some(Fault::Error(507)) => Err(ErrorKind::NoSpace),
            Some(Fault::Error(400..500)) => Err(ErrorKind::Client),
            Some(Fault::Error(_)) => Err(ErrorKind::Server),
            Some(Fault::Corrupt) => Err(ErrorKind::Corrupt),
            Some(Fault::Short) => Err(ErrorKind::ShortBody),
        };
        Answer { first_byte: Tick(fate.first_byte_ns), done: Tick(fate.done_ns), result }
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }
}

/// Bytes of payload an operation moves.
#[must_use]
pub const fn payload_bytes(op: &Op) -> u64 {
    if matches!(op.verb, Verb::Get) || op.verb.writes() { op.bytes } else { 0 }
}
