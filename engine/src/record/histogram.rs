//! Histograms of nanoseconds on the measured path: those of `gpufeed_workloads::samples`, merged and emptied.

use std::time::Duration;

use hdrhistogram::Histogram;

pub use gpufeed_workloads::samples::{MAX_NS, View as Samples, empty};

/// Adds all samples of `from` to `into`.
///
/// # Panics
/// Never: both have the bounds of [`empty`].
pub fn merge(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    if !from.is_empty() {
        into.add(from).expect("equal bounds");
    }
}

pub(crate) fn clear(histogram: &mut Histogram<u64>) {
    if !histogram.is_empty() {
        histogram.reset();
    }
}

/// Whole nanoseconds of a duration, as recorded.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpufeed_schema::Latency;
    use proptest::prelude::*;

    proptest! {
        /// Merged histograms say what one histogram of all samples would: never an average of percentiles.
        #[test]
        fn merged_is_as_if_recorded_together(parts in prop::collection::vec(prop::collection::vec(0u64..2 * MAX_NS, 0..200), 1..5)) {
            let (mut merged, mut together) = (empty(), empty());
            for part in &parts {
                let mut alone = empty();
                for &sample in part {
                    alone.saturating_record(sample);
                    together.saturating_record(sample);
                }
                merge(&mut merged, &alone);
            }
            prop_assert_eq!(&merged, &together);
            prop_assert_eq!(Latency::of(&Samples(&merged)), Latency::of(&Samples(&together)));
        }

        #[test]
        fn three_digits_hold_over_the_whole_range(sample in 1u64..MAX_NS) {
            let mut histogram = empty();
            histogram.saturating_record(sample);
            let error = histogram.max().abs_diff(sample) as f64 / sample as f64;
            prop_assert!(error < 1e-3, "{}", error);
        }
    }
}
