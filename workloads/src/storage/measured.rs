//! A target as it was measured: its first bytes as they were distributed, and the bandwidth it had while bodies were on
//! their way.
//!
//! `done = max(first byte, when the queue of its direction has moved its bytes)`, as in
//! `gpufeed_profiles::storage::Shaper::admit`: first bytes are drawn from the measured histogram, each direction is one
//! first-come-first-served queue. What the model leaves out is that slow answers come in bunches; the difference to the
//! run it was taken from shows that.

use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Answer, Storage, payload_bytes};
use crate::op::{Op, Outcome, Tick, Verb};

/// Payload over the time in which at least one body was on its way: the bandwidth a target had when it was asked.
///
/// A run that asks little moves few bytes a second, which says nothing of what the target can do; this rate does, up to
/// the concurrency that the run had.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transfers {
    bytes: u64,
    operations: u64,
    /// Length of what `open` has lost.
    closed_ns: u64,
    /// Disjoint stretches by end; a body that ends late may still join the last ones.
    open: Vec<(u64, u64)>,
}

/// Stretches kept to be joined; older ones are only counted.
const OPEN: usize = 4096;

impl Transfers {
    /// A body of `bytes` was on its way from `from` to `to`. Ends mostly rise from call to call.
    pub fn add(&mut self, from: Tick, to: Tick, bytes: u64) {
        self.bytes += bytes;
        self.operations += 1;
        let (mut from, mut to) = (from.0, to.0.max(from.0));
        // Only stretches at the end can touch it: pop those, put the union back in order.
        let mut after = Vec::new();
        while let Some(&(start, end)) = self.open.last() {
            if end < from {
                break;
            }
            self.open.pop();
            if start > to {
                after.push((start, end));
            } else {
                (from, to) = (from.min(start), to.max(end));
            }
        }
        self.open.push((from, to));
        self.open.extend(after.into_iter().rev());
        if self.open.len() > 2 * OPEN {
            self.closed_ns += self.open.drain(..OPEN).map(|(start, end)| end - start).sum::<u64>();
        }
    }

    /// Bytes a second while some body was on its way; `None` where that took no time at all.
    #[must_use]
    pub fn bytes_per_s(&self) -> Option<f64> {
        let ns = self.closed_ns + self.open.iter().map(|(start, end)| end - start).sum::<u64>();
        (ns > 0 && self.bytes > 0).then(|| self.bytes as f64 * 1e9 / ns as f64)
    }
}

/// What a run learns of its target while it goes on, by direction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measurements {
    /// Bodies of reads, from their first byte.
    pub reads: Transfers,
    /// Bodies of writes, from their sending.
    pub writes: Transfers,
}

impl Measurements {
    /// Takes a completed operation.
    pub fn see(&mut self, op: &Op, outcome: &Outcome) {
        if outcome.result.is_err() {
            return;
        }
        match op.verb {
            Verb::Get => self.reads.add(outcome.first_byte, outcome.done, outcome.bytes),
            Verb::Put | Verb::Multipart => self.writes.add(outcome.sent, outcome.done, outcome.bytes),
            Verb::Stat | Verb::List | Verb::Delete => {}
        }
    }
}

/// Draws from a histogram as it was recorded, without interpolation: to its resolution of three digits.
#[derive(Debug, Clone, PartialEq)]
struct Drawn {
    /// Samples up to and with this value.
    steps: Vec<(u64, u64)>,
    samples: u64,
}

impl Drawn {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let mut samples = 0;
        let steps: Vec<(u64, u64)> = histogram
            .iter_recorded()
            .map(|step| {
                samples += step.count_since_last_iteration();
                (samples, step.value_iterated_to())
            })
            .collect();
        (samples > 0).then_some(Self { steps, samples })
    }

    fn draw(&self, random: &mut SmallRng) -> u64 {
        let at = random.random_range(0..self.samples);
        let index = self.steps.partition_point(|(upto, _)| *upto <= at);
        self.steps.get(index).map_or(0, |(_, value)| *value)
    }
}

/// A first-come-first-served pipe.
#[derive(Debug, Clone, Copy)]
struct Pipe {
    nanos_per_byte: f64,
    free_ns: f64,
}

impl Pipe {
    fn moved(&mut self, bytes: u64, now: Tick) -> Tick {
        self.free_ns = self.free_ns.max(now.0 as f64) + bytes as f64 * self.nanos_per_byte;
        Tick(self.free_ns as u64)
    }
}

/// A target as it was measured.
#[derive(Debug, Clone)]
pub struct MeasuredStorage {
    first_bytes: [Option<Drawn>; 3],
    read: Option<Pipe>,
    write: Option<Pipe>,
    concurrency: usize,
    random: SmallRng,
}

impl MeasuredStorage {
    /// A target that nothing is known of yet: instant.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            first_bytes: [const { None }; 3],
            read: None,
            write: None,
            concurrency: usize::MAX,
            random: SmallRng::seed_from_u64(seed ^ 0x6D65_6173_7572_6564),
        }
    }

    /// With the time from sending to the first byte of the answer as recorded in nanoseconds, of reads, writes or look-ups;
    /// listing and deleting take what look-ups do.
    #[must_use]
    pub fn first_byte(mut self, verb: Verb, recorded: &Histogram<u64>) -> Self {
        self.first_bytes[slot(verb)] = Drawn::of(recorded);
        self
    }

    /// With so many bytes a second to be read and to be written at most; none for no bound.
    #[must_use]
    pub fn bandwidth(mut self, read_bytes_per_s: Option<f64>, write_bytes_per_s: Option<f64>) -> Self {
        let pipe = |rate: f64| Pipe { nanos_per_byte: 1e9 / rate, free_ns: 0.0 };
        self.read = read_bytes_per_s.filter(|rate| *rate > 0.0).map(pipe);
        self.write = write_bytes_per_s.filter(|rate| *rate > 0.0).map(pipe);
        self
    }

    /// With so many operations served at a time.
    #[must_use]
    pub fn at_a_time(mut self, operations: Option<usize>) -> Self {
        self.concurrency = operations.unwrap_or(usize::MAX).max(1);
        self
    }
}

const fn slot(verb: Verb) -> usize {
    match verb {
        Verb::Get => 0,
        Verb::Put | Verb::Multipart => 1,
        Verb::Stat | Verb::List | Verb::Delete => 2,
    }
}

impl Storage for MeasuredStorage {
    fn admit(&mut self, op: &Op, now: Tick) -> Answer {
        let wait = self.first_bytes[slot(op.verb)].as_ref().map_or(0, |drawn| drawn.draw(&mut self.random));
        let first_byte = Tick(now.0 + wait);
        let pipe = match slot(op.verb) {
            0 => self.read.as_mut(),
            1 => self.write.as_mut(),
            _ => None,
        };
        let moved = pipe.map_or(first_byte, |pipe| pipe.moved(payload_bytes(op), now));
        Answer { first_byte, done: first_byte.max(moved), result: Ok(()) }
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Key;
    use crate::samples::empty;
    use proptest::prelude::*;

    proptest! {
        /// Against marking every nanosecond of a short time line, in any order of calls.
        #[test]
        fn a_rate_counts_each_busy_nanosecond_once(
            bodies in prop::collection::vec((0u64..200, 0u64..50, 1u64..1000), 1..60),
            shuffled in any::<bool>(),
        ) {
            let mut bodies = bodies;
            if !shuffled {
                bodies.sort_by_key(|(from, length, _)| from + length);
            }
            let (mut transfers, mut busy) = (Transfers::default(), [false; 300]);
            for &(from, length, bytes) in &bodies {
                transfers.add(Tick(from), Tick(from + length), bytes);
                busy[from as usize..(from + length) as usize].fill(true);
            }
            let ns = busy.iter().filter(|busy| **busy).count() as f64;
            let bytes: u64 = bodies.iter().map(|(.., bytes)| bytes).sum();
            let expected = (ns > 0.0).then(|| bytes as f64 * 1e9 / ns);
            prop_assert_eq!(transfers.bytes_per_s(), expected);
        }
    }

    fn get(bytes: u64) -> Op {
        Op::get(Key::default(), bytes)
    }

    #[test]
    fn first_bytes_come_as_they_were_recorded() {
        let mut recorded = empty();
        recorded.record_n(1_000_000, 900).expect("in bounds");
        recorded.record_n(9_000_000, 100).expect("in bounds");
        let mut storage = MeasuredStorage::new(7).first_byte(Verb::Get, &recorded);
        let slow = (0..20_000u64)
            .filter(|i| {
                let now = Tick(i * 1_000_000_000);
                let answer = storage.admit(&get(4096), now);
                assert_eq!(answer.done, answer.first_byte, "no bandwidth was given");
                answer.first_byte.since(now).as_micros() > 5000
            })
            .count();
        // Binomial(20,000, 0.1): 2,000 ± 42.
        assert!((1830..2170).contains(&slow), "{slow}");
        let put = storage.admit(&Op::put(Key::default(), 4096), Tick(5));
        assert_eq!(put.done, Tick(5), "writes were not measured");
    }

    #[test]
    fn bodies_queue_by_direction() {
        let mut storage = MeasuredStorage::new(7).bandwidth(Some(1e9), Some(5e8));
        let done = |storage: &mut MeasuredStorage, op: Op| storage.admit(&op, Tick::ZERO).done.0;
        assert_eq!([done(&mut storage, get(1000)), done(&mut storage, get(1000))], [1000, 2000]);
        assert_eq!(done(&mut storage, Op::put(Key::default(), 1000)), 2000);
    }

    #[test]
    fn a_measured_queue_is_found_again() {
        // Four bursts of sixteen reads at 2 GB/s with 1 ms to the first byte.
        let mut recorded = empty();
        recorded.record(1_000_000).expect("in bounds");
        let mut storage = MeasuredStorage::new(1).first_byte(Verb::Get, &recorded).bandwidth(Some(2e9), None);
        let mut seen = Measurements::default();
        for burst in 0..4u64 {
            let now = Tick(burst * 10_000_000_000);
            for _ in 0..16 {
                let op = get(64 << 20);
                let Answer { first_byte, done, .. } = storage.admit(&op, now);
                let outcome = Outcome {
                    intended: now,
                    sent: now,
                    first_byte,
                    done,
                    carrier: crate::op::Carrier::Model,
                    bytes: op.bytes,
                    attempts: 1,
                    result: Ok(()),
                };
                seen.see(&op, &outcome);
            }
        }
        let found = seen.reads.bytes_per_s().expect("bytes were read");
        // The first millisecond of each burst is latency, not transfer: 1 ms of 537.
        assert!((found / 2e9 - 1.0).abs() < 0.003, "{found}");
        assert_eq!(seen.writes.bytes_per_s(), None);
    }
}
