//! What happened over time, in a bounded number of points: when they are full, steps double.

use gpufeed_schema::{Latency, Point, Series};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};

use super::histogram::{Samples, clear, empty, merge};

/// Most points kept: even, so that pairs merge.
const POINTS: usize = 480;

/// A series under construction.
pub(crate) struct Timeline {
    /// Seconds of a base interval.
    step_s: f64,
    /// Base intervals per point.
    factor: u64,
    done: Vec<Kept>,
    /// The point being filled.
    open: Sums,
    recent: Histogram<u64>,
}

#[derive(Clone, Default)]
struct Sums {
    ops: u64,
    bytes: u64,
    errors: u64,
    in_flight: u64,
}

/// A point with its histogram in HdrHistogram's own sparse form: hundreds of bytes instead of 264 KiB.
#[derive(Clone, Default)]
struct Kept {
    sums: Sums,
    recent: Vec<u8>,
}

impl Timeline {
    pub(crate) fn new(step_s: f64) -> Self {
        Self { step_s, factor: 1, done: Vec::new(), open: Sums::default(), recent: empty() }
    }

    /// Adds what completed in base interval `index`; indices never go down.
    pub(crate) fn add(
        &mut self,
        index: u64,
        ops: u64,
        bytes: u64,
        errors: u64,
        in_flight: u64,
        recent: &Histogram<u64>,
    ) {
        while index / self.factor > self.done.len() as u64 {
            self.close_point();
        }
        self.open.ops += ops;
        self.open.bytes += bytes;
        self.open.errors += errors;
        self.open.in_flight = in_flight;
        merge(&mut self.recent, recent);
    }

    fn close_point(&mut self) {
        let in_flight = self.open.in_flight;
        let sums = std::mem::replace(&mut self.open, Sums { in_flight, ..Sums::default() });
        self.done.push(Kept { sums, recent: pack(&self.recent) });
        clear(&mut self.recent);
        if self.done.len() == POINTS {
            self.done = self.done.chunks(2).map(|pair| pair[0].with(&pair[1])).collect();
            self.factor *= 2;
        }
    }

    /// The series so far, with the point being filled if anything is in it.
    pub(crate) fn series(mut self) -> Series {
        if self.open.ops + self.open.errors > 0 || self.done.is_empty() {
            let sums = std::mem::take(&mut self.open);
            self.done.push(Kept { sums, recent: pack(&self.recent) });
        }
        let step_s = self.step_s * self.factor as f64;
        let points = self.done.iter().enumerate().map(|(i, kept)| {
            let latency = Latency::of(&Samples(&unpack(&kept.recent)));
            let Sums { ops, bytes, errors, in_flight } = kept.sums;
            Point {
                t_s: i as f64 * step_s,
                ops,
                bytes,
                errors,
                in_flight,
                p50_ns: latency.p50_ns,
                p99_ns: latency.p99_ns,
                max_ns: latency.max_ns,
            }
        });
        Series { step_s, points: points.collect() }
    }
}

impl Kept {
    fn with(&self, next: &Self) -> Self {
        let mut recent = unpack(&self.recent);
        merge(&mut recent, &unpack(&next.recent));
        let sums = Sums {
            ops: self.sums.ops + next.sums.ops,
            bytes: self.sums.bytes + next.sums.bytes,
            errors: self.sums.errors + next.sums.errors,
            in_flight: next.sums.in_flight,
        };
        Self { sums, recent: pack(&recent) }
    }
}

fn pack(histogram: &Histogram<u64>) -> Vec<u8> {
    let mut packed = Vec::new();
    if !histogram.is_empty() {
        V2Serializer::new().serialize(histogram, &mut packed).expect("writing to memory cannot fail");
    }
    packed
}

fn unpack(packed: &[u8]) -> Histogram<u64> {
    if packed.is_empty() {
        return empty();
    }
    Deserializer::new().deserialize(&mut &packed[..]).expect("what was packed unpacks")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_has_longer_steps_and_loses_nothing() {
        let mut timeline = Timeline::new(1.0);
        let intervals = 5 * POINTS as u64 + 7;
        let mut recent = empty();
        for value in 1..=100 {
            recent.saturating_record(value * 1000);
        }
        for i in 0..intervals {
            // Nothing happens in every tenth interval.
            if i % 10 != 9 {
                timeline.add(i, 100, 400, 1, 3, &recent);
            }
        }
        let series = timeline.series();
        assert!(series.points.len() <= POINTS);
        assert_eq!(series.step_s, 8.0);
        let busy = intervals - intervals / 10;
        assert_eq!(series.points.iter().map(|p| p.ops).sum::<u64>(), 100 * busy);
        assert_eq!(series.points.iter().map(|p| p.bytes).sum::<u64>(), 400 * busy);
        assert_eq!(series.points.iter().map(|p| p.errors).sum::<u64>(), busy);
        assert_eq!(series.points.len() as u64, intervals.div_ceil(8));
        for point in &series.points {
            let within =
                |value: Option<u64>, expected: u64| value.is_some_and(|v| v.abs_diff(expected) * 1000 <= expected);
            assert!(within(point.p50_ns, 50_000) && within(point.max_ns, 100_000), "{point:?}");
        }
    }
}
