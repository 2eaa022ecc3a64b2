//! What the next load will take, from the reads of late: latency to the first byte and bandwidth, each as a function of
//! how many reads a worker has in flight.
//!
//! State is bounded (a few counters per power of two of reads in flight, and per worker) and nothing is allocated per
//! read once there have been as many in flight as there will be.

use gpufeed_schema::Concurrency;

use crate::op::{Outcome, Tick};

/// Powers of two of reads in flight; more count as the last.
const BUCKETS: usize = 16;
/// How fast a mean latency follows.
const FOLLOW: f64 = 1.0 / 16.0;

/// What is expected of a target before the first read: a stated prior, or the best there can be.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Prior {
    pub(super) first_byte_ns: f64,
    pub(super) ns_per_byte: f64,
}

/// What reads showed with about so many in flight.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    sent: u64,
    first_byte_ns: Option<f64>,
    /// Decaying sums: time between landings, and bytes that landed.
    busy_ns: f64,
    bytes: f64,
}

/// One worker's reads.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    in_flight: u32,
    /// Most in flight since it had none in flight and none waiting.
    peak: u32,
    /// The last landing since then.
    landed: Option<Tick>,
}

/// Reads of late on one target.
#[derive(Debug)]
pub(super) struct Estimate {
    prior: Prior,
    buckets: [Bucket; BUCKETS],
    lines: Vec<Line>,
    /// By tag: how many reads its worker had in flight when it was sent, itself included.
    beside: Vec<u32>,
}

/// Reads that are to be estimated, and those ahead of them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Queued {
    pub(super) objects: usize,
    pub(super) waiting: usize,
    pub(super) in_flight: u32,
    pub(super) object_bytes: f64,
}

fn bucket_of(reads: u32) -> usize {
    (reads.max(1).ilog2() as usize).min(BUCKETS - 1)
}

impl Estimate {
    pub(super) fn new(prior: Prior, workers: u32) -> Self {
        Self {
            prior,
            buckets: [Bucket::default(); BUCKETS],
            lines: vec![Line::default(); workers as usize],
            beside: Vec::new(),
        }
    }

    /// Forgets how fast reads were: the prior holds until the next one lands.
    pub(super) fn forget(&mut self) {
        for bucket in &mut self.buckets {
            *bucket = Bucket { sent: bucket.sent, ..Bucket::default() };
        }
    }

    /// A read of `worker` goes out under `tag`.
    pub(super) fn sent(&mut self, tag: u32, worker: u32) {
        let line = &mut self.lines[worker as usize];
        line.in_flight += 1;
        line.peak = line.peak.max(line.in_flight);
        let index = tag as usize;
        if self.beside.len() <= index {
            self.beside.resize(index + 1, 0);
        }
        self.beside[index] = line.in_flight;
        self.buckets[bucket_of(line.in_flight)].sent += 1;
    }

    /// That read ended; `more` if others of the worker wait to be sent, so that this is no pause.
    pub(super) fn landed(&mut self, tag: u32, worker: u32, outcome: &Outcome, more: bool) {
        let line = &mut self.lines[worker as usize];
        line.in_flight = line.in_flight.saturating_sub(1);
        let bytes = if outcome.result.is_ok() { outcome.bytes } else { 0 };
        if outcome.result.is_ok() {
            let mean = &mut self.buckets[bucket_of(self.beside[tag as usize])].first_byte_ns;
            let took = outcome.first_byte.since(outcome.sent).as_nanos() as f64;
            *mean = Some(mean.map_or(took, |mean| mean + (took - mean) * FOLLOW));
        }
        // Bandwidth is what lands between landings: the first of a burst is timed from its first byte, since waiting for
        // that is latency.
        let since = line.landed.unwrap_or(outcome.first_byte);
        let index = bucket_of(line.peak);
        let bucket = &mut self.buckets[index];
        // Landings come in rounds of as many as are in flight, so the memory must span several rounds.
        let keep = 1.0 - (1.0 / (8.0 * f64::from(1u32 << index))).min(FOLLOW);
        bucket.busy_ns = bucket.busy_ns * keep + outcome.done.since(since).as_nanos() as f64;
        bucket.bytes = bucket.bytes * keep + bytes as f64;
        line.landed = Some(since.max(outcome.done));
        if line.in_flight == 0 && !more {
            *line = Line::default();
        }
    }

    /// `t₀`: latency to the first byte of a read sent with `reads` in flight, itself included, in nanoseconds.
    pub(super) fn first_byte_ns(&self, reads: u32) -> f64 {
        self.nearest(reads, |bucket| bucket.first_byte_ns).unwrap_or(self.prior.first_byte_ns)
    }

    /// `1 / B(concurrency)`: nanoseconds per byte with `reads` in flight.
    pub(super) fn ns_per_byte(&self, reads: u32) -> f64 {
        self.nearest(reads, |bucket| (bucket.bytes > 0.0).then(|| bucket.busy_ns / bucket.bytes))
            .unwrap_or(self.prior.ns_per_byte)
    }

    /// What is known at the concurrency nearest to `reads`, the lower of two as near.
    fn nearest(&self, reads: u32, known: impl Fn(&Bucket) -> Option<f64>) -> Option<f64> {
        let at = bucket_of(reads);
        (0..BUCKETS).find_map(|away| {
            let below = at.checked_sub(away).and_then(|index| known(&self.buckets[index]));
            below.or_else(|| self.buckets.get(at + away).and_then(&known))
        })
    }

    /// `t₀ + k·s/B(concurrency)`: nanoseconds until `objects` of `object_bytes` have come to a worker, behind `waiting`
    /// others and `in_flight`, at most `limit` of them in flight at once.
    pub(super) fn load_ns(&self, queue: &Queued, limit: u32) -> f64 {
        let Queued { objects, waiting, in_flight, object_bytes } = *queue;
        if objects == 0 {
            return 0.0;
        }
        let count = |reads: usize| u32::try_from(reads).unwrap_or(u32::MAX);
        let first = in_flight.saturating_add(1).min(limit);
        let all = in_flight.saturating_add(count(objects + waiting)).min(limit);
        let bytes = (objects + waiting) as f64 * object_bytes;
        self.first_byte_ns(first) + bytes * self.ns_per_byte(all)
    }

    /// Reads of a worker in flight.
    pub(super) fn in_flight(&self, worker: u32) -> u32 {
        self.lines[worker as usize].in_flight
    }

    /// What has been seen, by reads in flight.
    pub(super) fn seen(&self) -> Vec<Concurrency> {
        let seen = self.buckets.iter().enumerate().filter(|(_, bucket)| bucket.sent > 0 || bucket.bytes > 0.0);
        seen.map(|(index, bucket)| Concurrency {
            reads_in_flight: 1 << index,
            reads: bucket.sent,
            first_byte_ns: bucket.first_byte_ns,
            bytes_per_s: (bucket.busy_ns > 0.0).then(|| bucket.bytes / bucket.busy_ns * 1e9),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Carrier;

    const OPTIMIST: Prior = Prior { first_byte_ns: 0.0, ns_per_byte: 0.0 };

    fn load_ns(estimate: &Estimate, objects: usize, waiting: usize, object_bytes: u32, limit: u32) -> f64 {
        let object_bytes = f64::from(object_bytes);
        estimate.load_ns(&Queued { objects, waiting, in_flight: 0, object_bytes }, limit)
    }

    fn outcome(sent: u64, first_byte: u64, done: u64, bytes: u64) -> Outcome {
        let [sent, first_byte, done] = [sent, first_byte, done].map(Tick);
        let carrier = Carrier::Model;
        Outcome { intended: sent, sent, first_byte, done, carrier, bytes, attempts: 1, result: Ok(()) }
    }

    /// `reads` at once at `at`, on a pipe of fixed latency and `ns_per_byte`, one after the other.
    fn burst(estimate: &mut Estimate, at: u64, reads: u32, bytes: u64, latency: u64, ns_per_byte: u64) -> u64 {
        (0..reads).for_each(|tag| estimate.sent(tag, 0));
        for tag in 0..reads {
            let done = at + latency + u64::from(tag + 1) * bytes * ns_per_byte;
            estimate.landed(tag, 0, &outcome(at, at + latency, done, bytes), false);
        }
        at + latency + u64::from(reads) * bytes * ns_per_byte
    }

    /// Decaying sums round.
    fn near(actual: f64, expected: f64) {
        assert!((actual / expected - 1.0).abs() < 1e-9, "{actual} against {expected}");
    }

    #[test]
    fn latency_and_bandwidth_of_a_pipe_come_apart_exactly() {
        let mut estimate = Estimate::new(OPTIMIST, 1);
        assert_eq!(load_ns(&estimate, 40, 0, 1000, 16), 0.0, "before the first read it takes nothing");
        let mut at = 0;
        for reads in [1, 3, 16, 7, 16] {
            at = burst(&mut estimate, at, reads, 1000, 5000, 3) + 77;
            for objects in [1, 4, 200] {
                near(load_ns(&estimate, objects, 0, 1000, 16), 5000.0 + objects as f64 * 3000.0);
            }
        }
        // What waits goes first.
        near(load_ns(&estimate, 2, 5, 1000, 16), 5000.0 + 7.0 * 3000.0);
        let seen = estimate.seen();
        assert_eq!(seen.iter().map(|seen| seen.reads).sum::<u64>(), 43);
        assert!(seen.iter().all(|seen| seen.first_byte_ns == Some(5000.0)));
        near(seen.last().and_then(|seen| seen.bytes_per_s).expect("it landed bytes"), 1e9 / 3.0);
    }

    #[test]
    fn streams_side_by_side_are_as_fast_as_there_are_many() {
        // Each read takes 100 ns to its first byte and 900 more, whatever else is in flight.
        let mut estimate = Estimate::new(OPTIMIST, 1);
        for reads in [1, 8] {
            for round in 0..50 {
                (0..reads).for_each(|tag| estimate.sent(tag, 0));
                for tag in 0..reads {
                    let at = round * 5000;
                    estimate.landed(tag, 0, &outcome(at, at + 100, at + 1000, 9000), false);
                }
            }
        }
        assert!((estimate.ns_per_byte(1) - 0.1).abs() < 1e-9);
        assert!((estimate.ns_per_byte(8) - 0.1 / 8.0).abs() < 0.1 / 8.0 * 0.1, "{}", estimate.ns_per_byte(8));
        assert!((estimate.first_byte_ns(8) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn latency_of_every_round_but_the_first_is_bandwidth() {
        // One at a time, without a pause: each takes 1000 ns, of which 400 to the first byte.
        let mut estimate = Estimate::new(OPTIMIST, 1);
        for read in 0..400u64 {
            let at = read * 1000;
            estimate.sent(0, 0);
            estimate.landed(0, 0, &outcome(at, at + 400, at + 1000, 1000), read < 399);
        }
        assert!((estimate.ns_per_byte(1) - 1.0).abs() < 1e-6);
        assert!((estimate.first_byte_ns(1) - 400.0).abs() < 1e-9);
    }

    #[test]
    fn a_prior_holds_until_the_first_read() {
        let mut estimate = Estimate::new(Prior { first_byte_ns: 2e6, ns_per_byte: 0.5 }, 1);
        assert_eq!(load_ns(&estimate, 10, 0, 1 << 20, 4), 2e6 + 0.5 * 10.0 * f64::from(1 << 20));
        burst(&mut estimate, 0, 1, 1000, 10, 1);
        assert_eq!(load_ns(&estimate, 10, 0, 1000, 4), 10.0 + 10_000.0);
    }

    #[test]
    fn failed_reads_cost_time_and_bring_nothing() {
        let mut estimate = Estimate::new(OPTIMIST, 1);
        estimate.sent(0, 0);
        estimate.sent(1, 0);
        estimate.landed(0, 0, &outcome(0, 100, 200, 100), false);
        let failed = Outcome { result: Err(crate::op::ErrorKind::Timeout), ..outcome(0, 1100, 1100, 0) };
        estimate.landed(1, 0, &failed, false);
        assert!(estimate.ns_per_byte(2) > 9.0);
        assert_eq!(estimate.first_byte_ns(2), 100.0);
    }
}
