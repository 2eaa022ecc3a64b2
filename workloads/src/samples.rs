//! Histograms of durations in nanoseconds, three significant digits, and how a report reads their quantiles.

use gpufeed_schema::Quantiles;
use hdrhistogram::Histogram;

/// Longest time told apart: one hour; longer ones count as this.
pub const MAX_NS: u64 = 3_600_000_000_000;

/// An empty histogram, 1 ns to 1 h (264 KiB: one per figure, never one per worker).
///
/// # Panics
/// Never: the bounds are constants that hdrhistogram accepts.
#[must_use]
pub fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_NS, 3).expect("constant bounds are valid")
}

/// Quantiles of a histogram that somebody else keeps.
#[derive(Debug, Clone, Copy)]
pub struct View<'a>(pub &'a Histogram<u64>);

impl Quantiles for View<'_> {
    fn count(&self) -> u64 {
        self.0.len()
    }
    fn min(&self) -> u64 {
        self.0.min()
    }
    fn max(&self) -> u64 {
        self.0.max()
    }
    fn mean(&self) -> f64 {
        self.0.mean()
    }
    fn at(&self, q: f64) -> u64 {
        self.0.value_at_quantile(q)
    }
}

/// Durations with their exact sum, so that the means of a whole's parts add up to the mean of the whole.
#[derive(Debug, Clone)]
pub struct Samples {
    histogram: Histogram<u64>,
    /// Of what was recorded, unscaled.
    sum_ns: u128,
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
        Self { histogram: empty(), sum_ns: 0, scale: time_scale }
    }

    /// Adds `count` times `ns`; in quantiles what is longer than an hour counts as an hour.
    pub fn record(&mut self, ns: u64, count: u64) {
        // A saturating record of a value within bounds cannot fail.
        let _ = self.histogram.record_n(ns.min(MAX_NS), count);
        self.sum_ns += u128::from(ns) * u128::from(count);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.histogram.reset();
        self.sum_ns = 0;
    }

    fn reported(&self, ns: u64) -> u64 {
        (ns as f64 / self.scale).round() as u64
    }
}

impl Quantiles for Samples {
    fn count(&self) -> u64 {
        View(&self.histogram).count()
    }
    fn min(&self) -> u64 {
        self.reported(View(&self.histogram).min())
    }
    fn max(&self) -> u64 {
        self.reported(View(&self.histogram).max())
    }
    fn mean(&self) -> f64 {
        self.sum_ns as f64 / self.count().max(1) as f64 / self.scale
    }
    fn at(&self, q: f64) -> u64 {
        self.reported(View(&self.histogram).at(q))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpufeed_schema::{Distribution, Latency};
    use proptest::prelude::*;

    proptest! {
        /// Parts of a whole may be anything: their means add up to the mean of the whole, which buckets alone would miss.
        #[test]
        fn means_of_parts_add_up(parts in prop::collection::vec(prop::array::uniform5(0u64..5_000_000_000), 1..200), scale in 1u32..30) {
            let new = || Samples::new(f64::from(scale));
            let (mut whole, mut each) = (new(), [(); 5].map(|()| new()));
            for part in &parts {
                whole.record(part.iter().sum(), 1);
                each.iter_mut().zip(part).for_each(|(samples, &ns)| samples.record(ns, 1));
            }
            let exact = parts.iter().flatten().map(|&ns| f64::from(ns as u32) + (ns >> 32) as f64 * 4_294_967_296.0).sum::<f64>()
                / parts.len() as f64 / f64::from(scale);
            prop_assert!((whole.mean() - exact).abs() <= exact * 1e-12);
            prop_assert!((each.iter().map(Samples::mean).sum::<f64>() - whole.mean()).abs() <= exact * 1e-12);
        }

        /// A scaled run of the same samples reads the same, divided.
        #[test]
        fn scale_divides_every_figure(samples in prop::collection::vec(1u64..1_000_000_000, 1..300)) {
            let (mut plain, mut scaled) = (Samples::default(), Samples::new(4.0));
            for &ns in &samples {
                plain.record(ns, 1);
                scaled.record(4 * ns, 1);
            }
            let (plain, scaled) = (Distribution::of(&plain), Distribution::of(&scaled));
            prop_assert_eq!(plain.ladder.len(), scaled.ladder.len());
            let near = |a: Option<u64>, b: Option<u64>| match (a, b) {
                (Some(a), Some(b)) => a.abs_diff(b) as f64 <= 1.0 + 2e-3 * a as f64,
                (a, b) => a == b,
            };
            for of in [|l: &Latency| l.p50_ns, |l: &Latency| l.p90_ns, |l: &Latency| l.p99_ns, |l: &Latency| l.max_ns] {
                prop_assert!(near(of(&plain.summary), of(&scaled.summary)));
            }
        }
    }

    #[test]
    fn a_cleared_one_is_a_new_one() {
        let mut samples = Samples::default();
        samples.record(7_000_000_000_000, 3);
        assert_eq!(samples.mean(), 7e12, "the sum is exact past an hour");
        samples.clear();
        assert_eq!(Latency::of(&samples), Latency::default());
        samples.record(5, 2);
        assert_eq!(Latency::of(&samples).mean_ns, Some(5.0));
    }
}
