//! What the accelerators did with their time: exact to the nanosecond, cut at the window's ends; and the utilization
//! that follows by MLPerf's rules.
//!
//! DLIO measures utilization in blocks, of which the first step is left out on both sides of the ratio:
//! `AU = Σ compute[1..] / (end − start − proc[0])`, with proc = load + compute, without the barrier. An epoch is a
//! block here. One that the window cuts is a block of its own: it starts at the cut, the step under way is its first
//! (what is left of it is its `proc`), and it ends at the cut with the compute done until then, so that a stall at the
//! end of a run counts. Blocks of fewer than two whole steps have no utilization; the run's is the mean of its blocks
//! weighted by their steps.

use std::time::Duration;

use gpufeed_schema::{Epoch, TrainingPoint};

use crate::op::Tick;
use crate::samples::Samples;

/// Points a time line has at most.
const POINTS: usize = 600;

/// Compute per step of time. Long runs have longer steps, never more of them.
#[derive(Debug)]
struct Timeline {
    origin: Tick,
    step_ns: u64,
    compute_ns: Vec<u64>,
}

impl Timeline {
    fn new(origin: Tick) -> Self {
        Self { origin, step_ns: 1_000_000_000, compute_ns: Vec::with_capacity(POINTS) }
    }

    fn add(&mut self, (from, to): (Tick, Tick)) {
        let (mut from, to) = (from.0 - self.origin.0, to.0 - self.origin.0);
        while to > self.step_ns * POINTS as u64 {
            for i in 0..self.compute_ns.len().div_ceil(2) {
                self.compute_ns[i] = self.compute_ns[2 * i] + self.compute_ns.get(2 * i + 1).copied().unwrap_or(0);
            }
            self.compute_ns.truncate(self.compute_ns.len().div_ceil(2));
            self.step_ns *= 2;
        }
        while from < to {
            let step = (from / self.step_ns) as usize;
            let end = to.min((step as u64 + 1) * self.step_ns);
            if self.compute_ns.len() <= step {
                self.compute_ns.resize(step + 1, 0);
            }
            self.compute_ns[step] += end - from;
            from = end;
        }
    }

    fn points(&self, end: Tick, accelerators: u32) -> Vec<TrainingPoint> {
        let length = end.0.saturating_sub(self.origin.0);
        let point = |i: u64| {
            let start = i * self.step_ns;
            let whole = self.step_ns.min(length - start) as f64 * f64::from(accelerators);
            let compute = self.compute_ns.get(i as usize).copied().unwrap_or(0) as f64;
            TrainingPoint { t_s: start as f64 / 1e9, compute_ratio: compute / whole }
        };
        (0..length.div_ceil(self.step_ns)).map(point).collect()
    }
}

/// The part of an interval that lies within another.
fn within((from, to): (Tick, Tick), (low, high): (Tick, Tick)) -> (Tick, Tick) {
    let from = from.clamp(low, high);
    (from, to.clamp(from, high))
}

fn length((from, to): (Tick, Tick)) -> u64 {
    to.0.saturating_sub(from.0)
}

/// A run of steps of one epoch, see the module.
#[derive(Debug)]
struct Block {
    epoch: u32,
    start: Tick,
    /// Whether it starts with the epoch.
    whole: bool,
    /// Whole steps, the first included.
    steps: u64,
    /// What the first step took each accelerator, in nanoseconds.
    first_ns: Vec<u64>,
}

/// Accelerator-nanoseconds by what they went into; together the window times the accelerators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Partition {
    pub(super) compute_ns: u64,
    /// Waiting for the accelerator's own batch.
    pub(super) load_ns: u64,
    /// Waiting for the slowest peer.
    pub(super) barrier_ns: u64,
}

/// The books of a run.
#[derive(Debug)]
pub(super) struct Account {
    compute: Duration,
    batch: u32,
    /// Start of the window.
    pub(super) start: Tick,
    pub(super) partition: Partition,
    pub(super) step_times: Samples,
    pub(super) samples: u64,
    pub(super) bytes: u64,
    pub(super) failed_reads: u64,
    pub(super) epochs: Vec<Epoch>,
    block: Option<Block>,
    timeline: Timeline,
    /// Σ utilization · weight and Σ weight over blocks.
    au: (f64, f64),
    accelerators: u32,
}

impl Account {
    pub(super) fn new(start: Tick, compute: Duration, batch: u32, accelerators: u32) -> Self {
        Self {
            compute,
            batch,
            start,
            partition: Partition::default(),
            step_times: Samples::default(),
            samples: 0,
            bytes: 0,
            failed_reads: 0,
            epochs: Vec::new(),
            block: None,
            timeline: Timeline::new(start),
            au: (0.0, 0.0),
            accelerators,
        }
    }

    /// A block starts, with its epoch (`whole`) or within it.
    pub(super) fn begin(&mut self, epoch: u32, start: Tick, whole: bool) {
        self.block = Some(Block { epoch, start, whole, steps: 0, first_ns: Vec::new() });
    }

    /// Enters the time of one accelerator in the step that began at `from` and ended, or was cut, at `to`. Returns its
    /// compute within the window.
    fn enter(&mut self, from: Tick, to: Tick, handed: Option<Tick>) -> u64 {
        // A barrier that is told late may lie before the cut it is told after.
        let window = (self.start, to.max(self.start));
        let got = handed.unwrap_or(to);
        let end = handed.map_or(to, |at| at + self.compute);
        let compute = within((got, end), window);
        self.partition.load_ns += length(within((from, got), window));
        self.partition.compute_ns += length(compute);
        self.partition.barrier_ns += length(within((end, to), window));
        self.timeline.add(compute);
        length(compute)
    }

    /// All accelerators have done a step: from the barrier `from` to the barrier `to`, its data at hand at `handed`.
    pub(super) fn step(&mut self, from: Tick, to: Tick, handed: impl Iterator<Item = (Tick, u64)> + Clone) {
        for (at, bytes) in handed.clone() {
            self.enter(from, to, Some(at));
            self.bytes += bytes;
        }
        self.samples += u64::from(self.accelerators) * u64::from(self.batch);
        if from >= self.start {
            self.step_times.record(to.0 - from.0, 1);
        }
        let compute = self.compute;
        if let Some(block) = &mut self.block {
            block.steps += 1;
            if block.steps == 1 {
                let start = block.start;
                block.first_ns.extend(handed.map(|(at, _)| (at + compute).0.saturating_sub(start.0)));
            }
        }
    }

    /// The window ends at `to`, within the step that began at `from`.
    pub(super) fn cut(&mut self, from: Tick, to: Tick, handed: impl Iterator<Item = Option<Tick>>) {
        let partial: Vec<u64> = handed.map(|at| self.enter(from, to, at)).collect();
        self.end_block(to, &partial, false);
    }

    /// The epoch's last step is done.
    pub(super) fn end_epoch(&mut self, at: Tick) {
        self.end_block(at, &[], true);
    }

    fn end_block(&mut self, end: Tick, partial: &[u64], last: bool) {
        let Some(block) = self.block.take() else { return };
        let counted = block.steps.saturating_sub(1);
        let compute_ns = counted as f64 * self.compute.as_nanos() as f64;
        let length_ns = length((block.start, end));
        let au_ratio = (counted > 0).then(|| {
            let of_rank = |(rank, first_ns): (usize, &u64)| {
                let compute_ns = compute_ns + partial.get(rank).copied().unwrap_or(0) as f64;
                compute_ns / length_ns.saturating_sub(*first_ns).max(1) as f64
            };
            block.first_ns.iter().enumerate().map(of_rank).sum::<f64>() / block.first_ns.len() as f64
        });
        if let Some(au_ratio) = au_ratio {
            self.au.0 += au_ratio * counted as f64;
            self.au.1 += counted as f64;
        }
        if length_ns > 0 {
            let samples = block.steps as f64 * f64::from(self.batch) * f64::from(self.accelerators);
            self.epochs.push(Epoch {
                epoch: block.epoch,
                steps: block.steps,
                au_ratio,
                duration_s: length_ns as f64 / 1e9,
                samples_per_s: samples * 1e9 / length_ns as f64,
                complete: block.whole && last,
            });
        }
    }

    pub(super) fn au_ratio(&self) -> Option<f64> {
        (self.au.1 > 0.0).then(|| self.au.0 / self.au.1)
    }

    pub(super) fn points(&self, end: Tick) -> Vec<TrainingPoint> {
        self.timeline.points(end, self.accelerators)
    }
}
