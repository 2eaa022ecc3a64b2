//! What others may ask of a run while it runs: cancel it, and see how far it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A view of a run, shared with signal handlers and the progress bar. Clones are the same view.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    cancelled: AtomicBool,
    phase: AtomicU8,
    elapsed_ns: AtomicU64,
    ops: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    /// `u64::MAX − p99`, so that zero means not known.
    p99_inverse: AtomicU64,
    /// Likewise, of the bits of the ratio.
    done_inverse: AtomicU64,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Phase {
    /// Opening lanes.
    #[default]
    Opening,
    /// Running, not yet measured.
    WarmUp,
    /// Measured.
    Measure,
    /// Window over, operations completing.
    Drain,
    /// Over.
    Over,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Progress {
    /// Where it is.
    pub phase: Phase,
    /// Time since its start, warm-up included; virtual time where the clock is.
    pub elapsed: Duration,
    /// Operations completed with success.
    pub ops: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Operations failed.
    pub errors: u64,
    /// 99th percentile of response time in the last interval.
    pub p99: Option<Duration>,
    /// Share of the work done, 0..=1, where work and not time bounds the run.
    pub done_ratio: Option<f64>,
}

impl Watch {
    /// A view of a run that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to stop: it drains and returns what it has, marked interrupted. One atomic store, so that signal
    /// handlers may call it.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Relaxed);
    }

    /// Whether the run was asked to stop.
    #[must_use]
    pub fn cancelled(&self) -> bool {
        self.shared.cancelled.load(Relaxed)
    }

    /// How far the run is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let s = &*self.shared;
        let phases = [Phase::Opening, Phase::WarmUp, Phase::Measure, Phase::Drain, Phase::Over];
        let known = |inverse: &AtomicU64| Some(u64::MAX - inverse.load(Relaxed)).filter(|&v| v != u64::MAX);
        Progress {
            phase: phases[usize::from(s.phase.load(Relaxed)).min(phases.len() - 1)],
            elapsed: Duration::from_nanos(s.elapsed_ns.load(Relaxed)),
            ops: s.ops.load(Relaxed),
            bytes: s.bytes.load(Relaxed),
            errors: s.errors.load(Relaxed),
            p99: known(&s.p99_inverse).map(Duration::from_nanos),
            done_ratio: known(&s.done_inverse).map(f64::from_bits),
        }
    }

    pub(crate) fn show(&self, progress: &Progress) {
        let s = &*self.shared;
        s.phase.store(progress.phase as u8, Relaxed);
        s.elapsed_ns.store(u64::try_from(progress.elapsed.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        s.ops.store(progress.ops, Relaxed);
        s.bytes.store(progress.bytes, Relaxed);
        s.errors.store(progress.errors, Relaxed);
        let p99 = progress.p99.map_or(u64::MAX, |p| u64::try_from(p.as_nanos()).unwrap_or(u64::MAX));
        s.p99_inverse.store(u64::MAX - p99, Relaxed);
        s.done_inverse.store(u64::MAX - progress.done_ratio.map_or(u64::MAX, f64::to_bits), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_seen() {
        let watch = Watch::new();
        assert_eq!(watch.progress(), Progress::default());
        let shown = Progress {
            phase: Phase::Measure,
            elapsed: Duration::from_secs(3),
            ops: 4,
            bytes: 5,
            errors: 6,
            p99: Some(Duration::from_micros(7)),
            done_ratio: Some(0.25),
        };
        watch.clone().show(&shown);
        assert_eq!(watch.progress(), shown);
        assert!(!watch.cancelled());
        watch.clone().cancel();
        assert!(watch.cancelled());
    }
}
