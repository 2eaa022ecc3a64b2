//! How much storage is asked for, second by second.

use gpufeed_profiles::storage::Shape;
use gpufeed_schema::{DemandRate, supported};
use gpufeed_workloads::op::{Key, Op, Tick};
use gpufeed_workloads::storage::{Storage, StorageModel};

/// Draws behind a p99 of a latency that was given as a distribution.
const DRAWS: usize = 100_000;

/// Payload of each second, over a run of `end_s` seconds: seconds in which nothing was moved count.
pub(super) fn rate(bins: &[u64], end_s: f64) -> DemandRate {
    let windows = (end_s.ceil() as usize).max(bins.len()).max(1);
    let bytes: u64 = bins.iter().sum();
    let mut sorted: Vec<u64> = bins.to_vec();
    sorted.resize(windows, 0);
    sorted.sort_unstable();
    // Nearest rank.
    let p99 = sorted[((0.99 * windows as f64).ceil() as usize).clamp(1, windows) - 1];
    DemandRate {
        bytes,
        mean_bytes_per_s: bytes as f64 / end_s.max(1e-9),
        p99_window_bytes_per_s: supported(windows as u64, 0.99).then_some(p99 as f64),
        max_window_bytes_per_s: sorted.last().copied().unwrap_or(0) as f64,
    }
}

/// p99 of the first byte of reads of storage of this shape that has nothing else to do, in nanoseconds.
pub(super) fn first_byte_p99_ns(shape: &Shape, seed: u64) -> u64 {
    let mut storage = StorageModel::new(shape, seed, None);
    let op = Op::get(Key::default(), 0);
    let mut drawn: Vec<u64> = (0..DRAWS).map(|_| storage.admit(&op, Tick::ZERO).first_byte.0).collect();
    drawn.sort_unstable();
    drawn[DRAWS / 100 * 99 - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_seconds_count() {
        let mut bins = vec![100u64; 50];
        bins.extend([900; 20]);
        let demand = rate(&bins, 1000.0);
        assert_eq!((demand.bytes, demand.mean_bytes_per_s), (23_000, 23.0));
        // 20 of 1,000 windows are busiest, so the 990th is one of them.
        assert_eq!((demand.p99_window_bytes_per_s, demand.max_window_bytes_per_s), (Some(900.0), 900.0));
        assert_eq!(rate(&bins, 70.0).p99_window_bytes_per_s, None, "70 windows support no p99");
        assert_eq!(rate(&[], 0.0).max_window_bytes_per_s, 0.0);
    }

    #[test]
    fn p99_of_a_lognormal_is_its_formula() {
        let shape = Shape::parse(&["latency=lognormal(2ms,0.5)"]).expect("a shape");
        let p99 = first_byte_p99_ns(&shape, 3) as f64;
        let formula = 2e6 * (0.5f64 * 2.326_347_9).exp();
        assert!((p99 / formula - 1.0).abs() < 0.03, "{p99} for {formula}");
    }
}
