//! The phases of a run: warm-up → measure → drain, and when warm-up is over.
//!
//! An operation belongs to the phase in which its intended start lies; rates are by completion within the window.

use std::collections::VecDeque;
use std::time::Duration;

/// Sub-intervals over which throughput must hold.
const HOLD: usize = 10;
/// Largest change of the fitted throughput over those, relative to their mean.
const TREND: f64 = 0.05;
/// Largest difference of the means of their halves, relative to their mean.
const HALVES: f64 = 0.05;
/// Times in a row that both must hold.
const CONFIRM: u32 = 3;

/// Decides when warm-up is over.
///
/// Throughput (payload bytes, or operations where there is no payload) is summed over sub-intervals of a fiftieth of
/// the longest warm-up. It is steady when, three sub-intervals in a row, over the last ten of them, both hold: a line
/// fitted by least squares changes by less than 5% of the mean from the first to the last, and the means of the two
/// halves differ by less than 5%. The first sub-interval, in which connections open, never counts.
#[derive(Debug, Default)]
pub struct SteadyState {
    seen: usize,
    last: VecDeque<f64>,
    held: u32,
}

impl SteadyState {
    /// Length of a sub-interval for a warm-up of at most `at_most`.
    #[must_use]
    pub fn sub_interval(at_most: Duration) -> Duration {
        (at_most / 50).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }

    /// Takes the throughput of the next sub-interval; true when steady.
    pub fn add(&mut self, throughput: f64) -> bool {
        self.seen += 1;
        if self.seen == 1 {
            return false;
        }
        if self.last.len() == HOLD {
            self.last.pop_front();
        }
        self.last.push_back(throughput);
        let steady = self.last.len() == HOLD && holds(self.last.make_contiguous());
        self.held = if steady { self.held + 1 } else { 0 };
        self.held >= CONFIRM
    }
}

fn holds(throughput: &[f64]) -> bool {
    let n = throughput.len() as f64;
    let mean = throughput.iter().sum::<f64>() / n;
    if mean <= 0.0 {
        return false;
    }
    let middle = (n - 1.0) / 2.0;
    let (mut covariance, mut variance) = (0.0, 0.0);
    for (i, y) in throughput.iter().enumerate() {
        let x = i as f64 - middle;
        covariance += x * (y - mean);
        variance += x * x;
    }
    let rise = covariance / variance * (n - 1.0);
    let (first, second) = throughput.split_at(throughput.len() / 2);
    let halves = second.iter().sum::<f64>() / second.len() as f64 - first.iter().sum::<f64>() / first.len() as f64;
    rise.abs() < TREND * mean && halves.abs() < HALVES * mean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady_at(throughput: impl IntoIterator<Item = f64>) -> Option<usize> {
        let mut state = SteadyState::default();
        throughput.into_iter().position(|y| state.add(y))
    }

    #[test]
    fn constant_throughput_is_steady_as_soon_as_it_can_be() {
        assert_eq!(steady_at(vec![100.0; 50]), Some(HOLD + CONFIRM as usize - 1));
    }

    #[test]
    fn a_ramp_is_not_steady_until_it_ends() {
        let ramp = (0..100).map(|i| f64::from(i.min(40)) * 10.0);
        let at = steady_at(ramp).expect("ends");
        assert!((40 + HOLD - 4..=40 + HOLD + 4).contains(&at), "{at}");
        assert_eq!(steady_at((1..60).map(|i| f64::from(i) * 10.0)), None);
    }

    #[test]
    fn silence_is_not_steady_and_noise_of_a_few_percent_is() {
        assert_eq!(steady_at(vec![0.0; 100]), None);
        let noise = (0..100).map(|i| 100.0 + [1.5, -1.0, 0.5, -2.0, 1.0][i % 5]);
        assert!(steady_at(noise).is_some());
    }
}
