//! The shape, applied: when an answer leaves, how fast, and what is wrong with it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gpufeed_profiles::storage::{Fate, Fault, Shape, ShapeError, ShapedOp, Shaper};

/// One emulated storage behind all cores.
#[derive(Debug)]
pub(crate) struct Shaping {
    origin: Instant,
    /// The storage, and when it last saw a request; it wants them in order.
    shaper: Mutex<(Shaper, u64)>,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict {
    /// When the answer's first byte leaves.
    pub(crate) first: Instant,
    /// When its last byte leaves.
    pub(crate) last: Instant,
    /// What goes wrong.
    pub(crate) fault: Option<Fault>,
}

impl Shaping {
    /// The shape that `specs` describe, if they describe any.
    ///
    /// # Errors
    /// What is not a shape.
    pub(crate) fn parse(specs: &[String], seed: u64) -> Result<Option<Self>, ShapeError> {
        let shape = Shape::parse(specs)?;
        let shaper = || Mutex::new((Shaper::new(&shape, seed), 0));
        Ok((!shape.is_empty()).then(|| Self { origin: Instant::now(), shaper: shaper() }))
    }

    /// Lets in a request of `bytes` that arrived at `arrived`.
    pub(crate) fn admit(&self, op: ShapedOp, bytes: u64, arrived: Instant) -> Verdict {
        let since = arrived.saturating_duration_since(self.origin);
        let since = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let mut guard = self.shaper.lock().unwrap_or_else(PoisonError::into_inner);
        let (shaper, last) = &mut *guard;
        // Two cores may be let in in another order than their requests arrived, microseconds apart.
        *last = since.max(*last);
        let Fate { first_byte_ns, done_ns, fault } = shaper.admit(op, bytes, *last);
        drop(guard);
        let at = |ns| self.origin + Duration::from_nanos(ns);
        Verdict { first: at(first_byte_ns), last: at(done_ns), fault }
    }
}
