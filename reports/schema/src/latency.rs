//! Latencies as percentiles that the sample supports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Summary of a latency histogram, in nanoseconds. A percentile p is given only where `n·(1−p) ≥ 10`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// Samples.
    pub count: u64,
    /// Smallest.
    pub min_ns: Option<u64>,
    /// Mean.
    pub mean_ns: Option<f64>,
    /// Median.
    pub p50_ns: Option<u64>,
    /// 90th percentile.
    pub p90_ns: Option<u64>,
    /// 99th percentile.
    pub p99_ns: Option<u64>,
    /// 99.9th percentile.
    pub p999_ns: Option<u64>,
    /// Largest.
    pub max_ns: Option<u64>,
}

/// Source of quantiles: implemented by what holds a histogram.
pub trait Quantiles {
    /// Samples.
    fn count(&self) -> u64;
    /// Smallest sample.
    fn min(&self) -> u64;
    /// Largest sample.
    fn max(&self) -> u64;
    /// Mean sample.
    fn mean(&self) -> f64;
    /// Value at quantile `q` in 0..=1.
    fn at(&self, q: f64) -> u64;
}

/// Whether `count` samples support quantile `q`: at least ten lie beyond it.
#[must_use]
pub fn supported(count: u64, q: f64) -> bool {
    // 1 − 0.9 is a hair under 0.1 in binary; the slack keeps 100 samples enough for p90.
    count as f64 * (1.0 - q) >= 10.0 - 1e-9 * count as f64
}

impl Latency {
    /// Summarizes a histogram of nanoseconds.
    pub fn of(samples: &impl Quantiles) -> Self {
        let count = samples.count();
        if count == 0 {
            return Self::default();
        }
        let at = |q: f64| supported(count, q).then(|| samples.at(q));
        Self {
            count,
            min_ns: Some(samples.min()),
            mean_ns: Some(samples.mean()),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: Some(samples.max()),
        }
    }
}

/// One step of a percentile ladder, on the HDR scale (each half of the remainder in five steps).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LadderStep {
    /// Quantile in 0..1.
    pub quantile_ratio: f64,
    /// Value at it.
    pub value_ns: u64,
}

/// A summary with its ladder, for charts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Distribution {
    /// The summary.
    #[serde(flatten)]
    pub summary: Latency,
    /// The ladder, as far as the sample supports it.
    #[serde(default)]
    pub ladder: Vec<LadderStep>,
}

impl Distribution {
    /// Summarizes a histogram of nanoseconds with its ladder.
    pub fn of(samples: &impl Quantiles) -> Self {
        let summary = Latency::of(samples);
        let halves = (0..24).map(|half| 0.5f64.powi(half));
        let steps = halves.flat_map(|rest| (0..5).map(move |step| 1.0 - rest * (1.0 - f64::from(step) / 10.0)));
        let ladder = steps
            .take_while(|quantile| supported(summary.count, *quantile))
            .map(|quantile| LadderStep { quantile_ratio: quantile, value_ns: samples.at(quantile) })
            .collect();
        Self { summary, ladder }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The integers 1..=n, whose quantiles are known.
    struct Ramp(u64);

    impl Quantiles for Ramp {
        fn count(&self) -> u64 {
            self.0
        }
        fn min(&self) -> u64 {
            1
        }
        fn max(&self) -> u64 {
            self.0
        }
        fn mean(&self) -> f64 {
            (self.0 + 1) as f64 / 2.0
        }
        fn at(&self, q: f64) -> u64 {
            ((q * self.0 as f64).ceil() as u64).max(1)
        }
    }

    #[test]
    fn a_percentile_needs_ten_samples_beyond_it() {
        let latency = Latency::of(&Ramp(999));
        assert_eq!((latency.p90_ns, latency.p99_ns), (Some(900), None));
        assert_eq!(Latency::of(&Ramp(1000)).p99_ns, Some(990));
        assert_eq!(Latency::of(&Ramp(19)).p50_ns, None);
        assert_eq!(Latency::of(&Ramp(20)).p50_ns, Some(10));
        assert_eq!(Latency::of(&Ramp(100)).p90_ns, Some(90));
        assert_eq!(Latency::of(&Ramp(10_000)).p999_ns, Some(9990));
        assert_eq!(Latency::of(&Ramp(0)), Latency::default());
    }

    #[test]
    fn a_ladder_rises_and_stops_where_the_sample_does() {
        let ladder = Distribution::of(&Ramp(1000)).ladder;
        assert!(ladder.windows(2).all(|w| w[0].quantile_ratio < w[1].quantile_ratio && w[0].value_ns <= w[1].value_ns));
        assert!(ladder.last().is_some_and(|s| s.quantile_ratio > 0.98 && s.quantile_ratio <= 0.99));
        assert!(Distribution::of(&Ramp(0)).ladder.is_empty());
    }
}
