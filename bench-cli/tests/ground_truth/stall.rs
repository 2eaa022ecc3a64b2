//! A periodic stall at an open loop: whoever arrives in it waits for its end, and the percentiles say so.
//!
//! Over whole periods the phase does not matter: with stalls of `s` in each period `p`, a share `s/p` of arrivals waits
//! for what is left of the stall, evenly from 0 to `s`. So the response time at quantile q is `s − (1 − q)·p` where that
//! is positive, else the latency outside stalls.

use super::support::{MS, alone, number, run, shaped};

/// A stall of `length` every `period`.
#[derive(Clone, Copy)]
pub(super) struct Stall {
    pub(super) length_ms: f64,
    pub(super) period_ms: f64,
    /// Latency outside stalls.
    pub(super) latency_ms: f64,
    pub(super) rate_per_s: f64,
}

impl Stall {
    fn expected_ns(&self, quantile: f64) -> f64 {
        (self.length_ms - (1.0 - quantile) * self.period_ms).max(self.latency_ms) * MS
    }

    /// Runs `args` in rounds of control and shaped run; `percentiles` by key and quantile.
    pub(super) fn holds(self, args: &[&str], percentiles: &[(&str, f64)], rounds: usize) {
        let _turn = alone();
        let shape = format!("all:latency={}ms,get:stall={}ms/{}ms", self.latency_ms, self.length_ms, self.period_ms);
        let gap = 1e9 / self.rate_per_s;
        let mut control = f64::INFINITY;
        let mut least = vec![f64::INFINITY; percentiles.len()];
        let mut off = Vec::new();
        for _ in 0..rounds {
            let without = run(args);
            control = control.min(without.get(["response_time", "p50_ns"]));
            let run = shaped(args, &shape);
            let op = run.op("get");
            assert!(op["errors"].as_object().is_some_and(serde_json::Map::is_empty), "{op}");
            // An open loop leaves nobody out, stall or not.
            assert_eq!(op["count"], without.op("get")["count"]);
            off.clear();
            for (least, &(key, quantile)) in least.iter_mut().zip(percentiles) {
                let expected = self.expected_ns(quantile);
                let tolerance = gap.max(0.01 * expected);
                let measured = number(&op["response_time"], key);
                // Noise only adds: less than expected is wrong in any round.
                assert!(measured >= expected - tolerance, "{key} is {measured} ns, expected {expected}");
                *least = least.min(measured);
                if *least > expected + control + tolerance {
                    off.push(format!("{key} is {least} ns, expected {expected} + {control} ns"));
                }
            }
            if off.is_empty() {
                return;
            }
        }
        panic!("{shape}: {}", off.join("; "));
    }
}

/// The short form of the nightly proof: 200 ms every second, 1,200 arrivals over six periods.
#[test]
fn a_stall_is_seen_by_all_who_arrive_in_it() {
    let stall = Stall { length_ms: 200.0, period_ms: 1000.0, latency_ms: 1.0, rate_per_s: 200.0 };
    let args = [
        "ops",
        "--size",
        "4KiB",
        "--rate",
        "200",
        "--arrivals",
        "constant",
        "--depth",
        "128",
        "--objects",
        "64",
        "--warm-up",
        "1s",
        "--duration",
        "6s",
        "--verify",
        "off",
    ];
    stall.holds(&args, &[("p50_ns", 0.5), ("p99_ns", 0.99)], 8);
}
