//! Open and closed loop; intended starts, computed without drift.
//!
//! A schedule is an iterator of absolute ticks. The k-th start of a constant rate is `start + k / rate`, rounded once;
//! a Poisson schedule keeps what rounding left over; a trace's time stamps are scaled one by one.

use std::sync::Arc;
use std::time::Duration;

use gpufeed_schema::ClosedOrOpen;
use serde::{Deserialize, Serialize};

use crate::op::Tick;
use crate::random::Random;

/// How starts of an open loop are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// Equally.
    #[default]
    Constant,
    /// Exponentially: starts do not know of each other.
    Poisson,
}

/// How load is offered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "loop", deny_unknown_fields)]
pub enum Load {
    /// Each of `depth` clients starts its next operation when its last one ends.
    Closed {
        /// Clients, each with one operation in flight.
        depth: u32,
    },
    /// Operations start on a schedule, whatever the target does.
    Open {
        /// Offered operations per second, over all clients.
        rate_per_s: f64,
        /// Spacing.
        arrivals: Arrivals,
        /// Streams the schedule is dealt to, and lanes opened for them: the most operations in flight.
        clients: u32,
    },
}

/// Why a load cannot be offered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// No client.
    #[error("a load without clients does nothing: ask for a depth of at least 1")]
    NoClients,
    /// More clients than keys can name.
    #[error("{0} clients are more than the 65,535 that one process can name: use several processes")]
    TooManyClients(u32),
    /// Not a rate.
    #[error("a rate of {0} per second cannot be offered: it must be above 0 and at most 1e9")]
    Rate(f64),
}

impl Load {
    /// Clients, each a stream of operations of its own.
    #[must_use]
    pub const fn clients(&self) -> u32 {
        match *self {
            Self::Closed { depth } => depth,
            Self::Open { clients, .. } => clients,
        }
    }

    /// The form reports use.
    #[must_use]
    pub const fn as_report(&self) -> ClosedOrOpen {
        match *self {
            Self::Closed { .. } => ClosedOrOpen::Closed,
            Self::Open { rate_per_s, .. } => ClosedOrOpen::Open { offered_per_s: Some(rate_per_s) },
        }
    }

    /// Checks that it can be offered.
    ///
    /// # Errors
    /// Without clients, with more than 65,535, and with a rate that is not a positive number up to 1e9.
    pub fn check(&self) -> Result<(), LoadError> {
        match self.clients() {
            0 => return Err(LoadError::NoClients),
            clients if clients > u32::from(u16::MAX) => return Err(LoadError::TooManyClients(clients)),
            _ => {}
        }
        match *self {
            Self::Open { rate_per_s, .. } if !(rate_per_s > 0.0 && rate_per_s <= 1e9) => {
                Err(LoadError::Rate(rate_per_s))
            }
            _ => Ok(()),
        }
    }

    /// The schedule of one client of an open loop, none in a closed one. Together the clients' schedules are exactly
    /// the rate's: constant starts are dealt in turn, and Poisson streams add up to a Poisson stream.
    #[must_use]
    pub fn schedule(&self, client: u32, start: Tick, seed: u64) -> Option<Schedule> {
        match *self {
            Self::Closed { .. } => None,
            Self::Open { rate_per_s, arrivals: Arrivals::Constant, clients } => {
                Some(Schedule::constant_share(start, rate_per_s, client, clients))
            }
            Self::Open { rate_per_s, arrivals: Arrivals::Poisson, clients } => {
                Some(Schedule::poisson(start, rate_per_s / f64::from(clients), seed, u64::from(client)))
            }
        }
    }
}

/// Intended starts, in order. Endless for a rate, as long as its trace for time stamps.
#[derive(Debug, Clone)]
pub struct Schedule {
    start: Tick,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Constant {
        gap_ns: f64,
        next: u64,
        stride: u64,
    },
    Poisson {
        gap_ns: f64,
        random: Random,
        /// Nanoseconds since `start`: whole ones, and the fraction that rounding each gap would lose.
        whole: u64,
        fraction: f64,
    },
    Stamps {
        stamps: Arc<[Duration]>,
        next: usize,
        speed: f64,
    },
}

impl Schedule {
    /// Starts at `start`, `start + 1/rate`, `start + 2/rate`, … with `rate_per_s` starts per second, each rounded to
    /// the nearest nanosecond by itself.
    #[must_use]
    pub fn constant(start: Tick, rate_per_s: f64) -> Self {
        Self::constant_share(start, rate_per_s, 0, 1)
    }

    /// Every `shares`-th start of [`Self::constant`], from number `share` on.
    #[must_use]
    pub fn constant_share(start: Tick, rate_per_s: f64, share: u32, shares: u32) -> Self {
        let kind = Kind::Constant { gap_ns: 1e9 / rate_per_s, next: u64::from(share), stride: u64::from(shares) };
        Self { start, kind }
    }

    /// A Poisson process of `rate_per_s` starts per second after `start`: stream `stream` of `seed`.
    #[must_use]
    pub fn poisson(start: Tick, rate_per_s: f64, seed: u64, stream: u64) -> Self {
        let random = Random::stream(seed ^ 0xa771_7a15, stream);
        Self { start, kind: Kind::Poisson { gap_ns: 1e9 / rate_per_s, random, whole: 0, fraction: 0.0 } }
    }

    /// The time stamps of a trace, counted from `start` and played `speed` times as fast.
    #[must_use]
    pub const fn stamps(start: Tick, stamps: Arc<[Duration]>, speed: f64) -> Self {
        Self { start, kind: Kind::Stamps { stamps, next: 0, speed } }
    }
}

/// Offset of start number `k`, without the rounding of `1e9 / rate` being multiplied by `k` where it can be avoided.
fn constant_offset(k: u64, gap_ns: f64) -> u64 {
    // A fused multiply-add keeps the low half of the product, so that only the gap's own rounding (2⁻⁵³ of it) counts.
    let product = k as f64 * gap_ns;
    let low = (k as f64).mul_add(gap_ns, -product);
    let floor = product.floor();
    floor as u64 + (product - floor + low).round().max(0.0) as u64
}

impl Iterator for Schedule {
    type Item = Tick;

    fn next(&mut self) -> Option<Tick> {
        let offset = match &mut self.kind {
            Kind::Constant { gap_ns, next, stride } => {
                let k = *next;
                *next += *stride;
                constant_offset(k, *gap_ns)
            }
            Kind::Poisson { gap_ns, random, whole, fraction } => {
                let gap = random.exponential() * *gap_ns + *fraction;
                let floor = gap.floor();
                *whole = whole.saturating_add(floor as u64);
                *fraction = gap - floor;
                *whole
            }
            Kind::Stamps { stamps, next, speed } => {
                let stamp = stamps.get(*next)?;
                *next += 1;
                if *speed == 1.0 {
                    u64::try_from(stamp.as_nanos()).unwrap_or(u64::MAX)
                } else {
                    (stamp.as_nanos() as f64 / *speed).round() as u64
                }
            }
        };
        Some(Tick(self.start.0.saturating_add(offset)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_rate_is_start_plus_k_over_rate() {
        let starts: Vec<u64> = Schedule::constant(Tick(7), 3.0).take(5).map(|t| t.0).collect();
        assert_eq!(starts, [7, 333_333_340, 666_666_674, 1_000_000_007, 1_333_333_340]);
        let starts: Vec<u64> = Schedule::constant(Tick(0), 20_000.0).take(3).map(|t| t.0).collect();
        assert_eq!(starts, [0, 50_000, 100_000]);
    }

    #[test]
    fn a_constant_rate_does_not_drift() {
        for rate in [3u64, 7, 997, 20_000, 123_457] {
            let mut schedule = Schedule::constant(Tick(5), rate as f64);
            for k in [10_000_000u64, 10_000_001] {
                let exact = (2 * u128::from(k) * 1_000_000_000 + u128::from(rate)) / (2 * u128::from(rate));
                let at = if k == 10_000_000 { schedule.nth(k as usize) } else { schedule.next() };
                let off = i128::from(at.expect("endless").0) - 5 - exact as i128;
                assert!(off.abs() <= 1, "rate {rate}, k {k}: {off} ns");
            }
        }
    }

    #[test]
    fn shares_of_a_constant_rate_make_the_whole() {
        let load = Load::Open { rate_per_s: 997.0, arrivals: Arrivals::Constant, clients: 7 };
        let mut dealt: Vec<Tick> = (0..7).flat_map(|c| load.schedule(c, Tick(9), 1).expect("open").take(100)).collect();
        dealt.sort();
        assert_eq!(dealt, Schedule::constant(Tick(9), 997.0).take(700).collect::<Vec<_>>());
    }

    #[test]
    fn poisson_gaps_have_mean_and_variance_of_an_exponential() {
        let n = 400_000;
        let starts: Vec<u64> = Schedule::poisson(Tick(0), 1000.0, 42, 0).take(n).map(|t| t.0).collect();
        assert!(starts.windows(2).all(|w| w[0] <= w[1]));
        let gaps: Vec<f64> = starts.windows(2).map(|w| (w[1] - w[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Standard errors: mean/√n = 0.16%, variance·√(8/n) = 0.45%; four of each.
        assert!((mean / 1e6 - 1.0).abs() < 0.0064, "{mean}");
        assert!((variance / 1e12 - 1.0).abs() < 0.018, "{variance}");
        // Counts per window of 10 ms: the variance of a Poisson count is its mean.
        let windows = (starts[n - 1] / 10_000_000) as usize;
        let mut counts = vec![0u32; windows + 1];
        starts.iter().for_each(|s| counts[(s / 10_000_000) as usize] += 1);
        let mean = counts[..windows].iter().map(|&c| f64::from(c)).sum::<f64>() / windows as f64;
        let variance = counts[..windows].iter().map(|&c| (f64::from(c) - mean).powi(2)).sum::<f64>() / windows as f64;
        assert!((variance / mean - 1.0).abs() < 0.03, "{variance} against {mean}");
    }

    #[test]
    fn poisson_schedules_keep_their_fractions() {
        // At 1e9/s the gaps are about one nanosecond: truncating each would lose half of the time.
        let last = Schedule::poisson(Tick(0), 1e9, 1, 0).nth(1_000_000).expect("endless");
        assert!((last.0 as f64 / 1e6 - 1.0).abs() < 0.005, "{last:?}");
    }

    #[test]
    fn poisson_streams_add_up_to_the_rate() {
        let load = Load::Open { rate_per_s: 5000.0, arrivals: Arrivals::Poisson, clients: 10 };
        let second = Tick(100_000_000_000);
        let total: usize =
            (0..10).map(|c| load.schedule(c, Tick(0), 3).expect("open").take_while(|t| *t < second).count()).sum();
        // 500,000 expected, standard deviation 707.
        assert!((total as f64 - 500_000.0).abs() < 4.0 * 707.0, "{total}");
        let again = |seed| load.schedule(3, Tick(0), seed).expect("open").take(100).collect::<Vec<_>>();
        assert_eq!(again(3), again(3));
        assert_ne!(again(3), again(4));
    }

    #[test]
    fn stamps_are_scaled_one_by_one() {
        let stamps: Arc<[Duration]> = [0, 1000, 3000].map(Duration::from_millis).into();
        let starts: Vec<u64> = Schedule::stamps(Tick(1), Arc::clone(&stamps), 1.0).map(|t| t.0).collect();
        assert_eq!(starts, [1, 1_000_000_001, 3_000_000_001]);
        let starts: Vec<u64> = Schedule::stamps(Tick(0), stamps, 3.0).map(|t| t.0).collect();
        assert_eq!(starts, [0, 333_333_333, 1_000_000_000]);
    }

    #[test]
    fn loads_that_cannot_be_offered_are_refused() {
        let open = |rate_per_s| Load::Open { rate_per_s, arrivals: Arrivals::Constant, clients: 1 };
        assert!(Load::Closed { depth: 0 }.check().is_err());
        assert!(Load::Closed { depth: 70_000 }.check().is_err());
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(open(rate).check().is_err(), "{rate}");
        }
        assert_eq!(open(200.0).check(), Ok(()));
    }
}
