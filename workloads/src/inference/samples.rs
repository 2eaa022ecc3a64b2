//! A histogram of durations that the report's summaries can read.

use gpufeed_schema::Quantiles;
use hdrhistogram::Histogram;

/// Longest duration kept apart: one hour; longer ones count as one hour.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Durations in nanoseconds, three significant digits, 1 ns to 1 h (264 KiB: one per figure, never one per worker).
#[derive(Debug, Clone)]
pub struct Samples {
    histogram: Histogram<u64>,
    scale: f64,
}

impl Default for Samples {
    fn default() -> Self {
        Self::new(1.0)
    }
}

impl Samples {
    /// Durations that are reported divided by `time_scale`.
    #[must_use]
    pub fn new(time_scale: f64) -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant bounds are valid");
        Self { histogram, scale: time_scale }
    }

    /// Adds `count` times `ns`; what is longer than an hour counts as an hour.
    pub fn record(&mut self, ns: u64, count: u64) {
        // A saturating record of a value within bounds cannot fail.
        let _ = self.histogram.record_n(ns.min(LONGEST_NS), count);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.histogram.reset();
    }

    fn reported(&self, ns: u64) -> u64 {
        (ns as f64 / self.scale).round() as u64
    }
}

impl Quantiles for Samples {
    fn count(&self) -> u64 {
        self.histogram.len()
    }

    fn min(&self) -> u64 {
        self.reported(self.histogram.min())
    }

    fn max(&self) -> u64 {
        self.reported(self.histogram.max())
    }

    fn mean(&self) -> f64 {
        self.histogram.mean() / self.scale
    }

    fn at(&self, q: f64) -> u64 {
        self.reported(self.histogram.value_at_quantile(q))
    }
}
