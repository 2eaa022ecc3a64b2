//! Recording operations: histograms, intervals, op log; merged, never averaged.
//!
//! Each measuring core owns one [`Recorder`], which writes into a [`Block`] and nothing else: no lock, no allocation, no
//! shared cache line. At the end of every interval the block is exchanged for an empty one and goes to the
//! [`Collector`](collector::Collector), which merges it into the run's totals, the series and the logs.

pub mod collector;
pub mod histogram;
pub mod hlog;
mod intervals;
pub mod op_log;
mod series;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use gpufeed_workloads::machine::Submit;
use gpufeed_workloads::op::{Carrier, ErrorKind, Op, Outcome, Tick, Verb};
use hdrhistogram::Histogram;

use crate::watch::Phase;
use histogram::{empty, nanos};

const SLOTS: usize = 2 * Verb::ALL.len() * Carrier::ALL.len();
pub(crate) const KINDS: usize = ErrorKind::ALL.len();

/// What operations are counted by: a row of the report each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Whether they went to the second target of the run.
    pub second: bool,
    /// What was done.
    pub verb: Verb,
    /// How it travelled.
    pub carrier: Carrier,
}

impl Way {
    const fn slot(self) -> usize {
        (self.second as usize * Verb::ALL.len() + self.verb as usize) * Carrier::ALL.len() + self.carrier as usize
    }

    fn of_slot(slot: usize) -> Self {
        let (row, carrier) = (slot / Carrier::ALL.len(), slot % Carrier::ALL.len());
        let (second, verb) = (row / Verb::ALL.len() > 0, row % Verb::ALL.len());
        Self { second, verb: Verb::ALL[verb], carrier: Carrier::ALL[carrier] }
    }
}

/// The measured window, shared by everything in a run: `[from, to)`, each end unknown until it is set.
#[derive(Debug)]
pub struct Window {
    from: AtomicU64,
    to: AtomicU64,
}

impl Default for Window {
    /// Both ends unknown.
    fn default() -> Self {
        Self { from: AtomicU64::new(u64::MAX), to: AtomicU64::new(u64::MAX) }
    }
}

impl Window {
    /// First tick of the window; the end of time while it is not known.
    #[must_use]
    pub fn from(&self) -> Tick {
        Tick(self.from.load(Relaxed))
    }

    /// First tick after the window; the end of time while it is not known.
    #[must_use]
    pub fn to(&self) -> Tick {
        Tick(self.to.load(Relaxed))
    }

    /// Begins the window at `tick`, unless it has a beginning.
    pub fn open_at(&self, tick: Tick) {
        let _ = self.from.compare_exchange(u64::MAX, tick.0, Relaxed, Relaxed);
    }

    /// Ends the window at `tick`, or earlier if it had an earlier end.
    pub fn close_at(&self, tick: Tick) {
        self.to.fetch_min(tick.0, Relaxed);
    }

    /// Whether `tick` lies in the window as far as it is known.
    #[must_use]
    pub fn contains(&self, tick: Tick) -> bool {
        self.from() <= tick && tick < self.to()
    }

    /// The phase that `tick` belongs to.
    #[must_use]
    pub fn phase(&self, tick: Tick) -> Phase {
        if tick >= self.to() {
            Phase::Drain
        } else if tick >= self.from() {
            Phase::Measure
        } else {
            Phase::WarmUp
        }
    }
}

/// What one core counted of one verb by one carrier in one interval.
#[derive(Debug)]
pub struct Slot {
    /// Successes with their intended start in the window: intended start to last byte.
    pub response: Histogram<u64>,
    /// Send to last byte.
    pub service: Histogram<u64>,
    /// Intended start to send.
    pub slip: Histogram<u64>,
    /// Send to first byte.
    pub first_byte: Histogram<u64>,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Attempts of operations with their intended start in the window, successes and failures.
    pub attempts: u64,
    /// Failures of those by kind.
    pub errors: [u64; KINDS],
    /// Successes that completed within the window, whenever they were meant to start.
    pub completed: u64,
    /// Payload bytes of those.
    pub completed_bytes: u64,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self {
            response: empty(),
            service: empty(),
            slip: empty(),
            first_byte: empty(),
            bytes: 0,
            attempts: 0,
            errors: [0; KINDS],
            completed: 0,
            completed_bytes: 0,
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        histogram::merge(&mut self.response, &other.response);
        histogram::merge(&mut self.service, &other.service);
        histogram::merge(&mut self.slip, &other.slip);
        histogram::merge(&mut self.first_byte, &other.first_byte);
        self.bytes += other.bytes;
        self.attempts += other.attempts;
        for (sum, more) in self.errors.iter_mut().zip(other.errors) {
            *sum += more;
        }
        self.completed += other.completed;
        self.completed_bytes += other.completed_bytes;
    }

    pub(crate) fn clear(&mut self) {
        for histogram in [&mut self.response, &mut self.service, &mut self.slip, &mut self.first_byte] {
            histogram::clear(histogram);
        }
        self.bytes = 0;
        self.attempts = 0;
        self.errors = [0; KINDS];
        self.completed = 0;
        self.completed_bytes = 0;
    }
}

/// What one core recorded in one interval.
#[derive(Debug)]
pub struct Block {
    /// Which core.
    pub core: usize,
    /// The phase the interval lies in.
    pub phase: Phase,
    /// Start of the interval.
    pub from: Tick,
    /// Its end.
    pub to: Tick,
    /// Response times of all successes that completed in it, for the series.
    pub recent: Histogram<u64>,
    /// Successes that completed in it.
    pub ops: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Failures that completed in it.
    pub errors: u64,
    /// Operations submitted and not completed at its end.
    pub in_flight: u64,
    /// By target, verb and carrier; boxes are made when one is first seen and kept.
    slots: [Option<Box<Slot>>; SLOTS],
}

impl Block {
    /// An empty block.
    #[must_use]
    pub fn new(core: usize) -> Self {
        Self {
            core,
            phase: Phase::WarmUp,
            from: Tick::ZERO,
            to: Tick::ZERO,
            recent: empty(),
            ops: 0,
            bytes: 0,
            errors: 0,
            in_flight: 0,
            slots: [const { None }; SLOTS],
        }
    }

    /// What it has, by target, verb and carrier.
    pub fn slots(&self) -> impl Iterator<Item = (Way, &Slot)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| Some((Way::of_slot(i), slot.as_deref()?)))
    }

    /// Empties it for reuse, keeping its memory.
    pub fn clear(&mut self) {
        histogram::clear(&mut self.recent);
        (self.ops, self.bytes, self.errors) = (0, 0, 0);
        self.slots.iter_mut().flatten().for_each(|slot| slot.clear());
    }
}

/// Where full blocks go and empty ones come from.
pub trait Exchange {
    /// Takes the full block and leaves an empty one, or leaves the block as it is when there is none: nothing is lost,
    /// the interval becomes longer.
    fn exchange(&mut self, block: &mut Box<Block>) -> bool;
}

/// Lengths of intervals.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    /// During warm-up, counted from tick zero.
    pub warm_up: Duration,
    /// In the measured window, counted from its start.
    pub measure: Duration,
}

/// One core's recorder.
pub struct Recorder<X> {
    block: Box<Block>,
    exchange: X,
    window: Arc<Window>,
    steps: Steps,
    /// Where the current interval ends.
    boundary: Tick,
    /// What the operation log takes, where one is kept.
    log: Option<op_log::Sender>,
    /// First key space of the run's second target.
    second_from: u16,
    /// Operations submitted and not completed, as the driver last said.
    pub in_flight: u64,
    /// Successes since the start, all phases.
    pub ops: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Failures since the start, all phases.
    pub errors: u64,
    issued: u64,
    /// A few words for a person per kind of failure.
    details: BTreeMap<ErrorKind, Vec<String>>,
}

/// Details kept of each kind of failure.
const DETAILS: usize = 3;

impl<X: Exchange> Recorder<X> {
    /// A recorder whose first interval begins at `start`; intervals are cut at the ends of the window.
    pub fn new(
        core: usize,
        start: Tick,
        steps: Steps,
        window: Arc<Window>,
        exchange: X,
        log: Option<op_log::Sender>,
    ) -> Self {
        let mut block = Box::new(Block::new(core));
        block.from = start;
        block.phase = window.phase(start);
        let mut recorder = Self {
            block,
            exchange,
            window,
            steps,
            boundary: Tick::ZERO,
            log,
            second_from: u16::MAX,
            in_flight: 0,
            ops: 0,
            bytes: 0,
            errors: 0,
            issued: 0,
            details: BTreeMap::new(),
        };
        recorder.boundary = recorder.next_boundary(start);
        recorder
    }

    /// Operations on key spaces from `second_from` on are counted apart: they go to the run's second target.
    #[must_use]
    pub fn split(mut self, second_from: Option<u16>) -> Self {
        self.second_from = second_from.unwrap_or(u16::MAX);
        self
    }

    /// The first multiple of the step after `at`, counted from the start of the phase, or the end of the phase.
    fn next_boundary(&self, at: Tick) -> Tick {
        let (from, to) = (self.window.from(), self.window.to());
        let step = |length: Duration| nanos(length).max(1_000_000);
        match self.window.phase(at) {
            Phase::Measure => {
                let step = step(self.steps.measure);
                let next = from.0.saturating_add(((at.0 - from.0) / step + 1).saturating_mul(step));
                Tick(next).min(to)
            }
            // One block for the drain, however long it takes.
            Phase::Drain => Tick(u64::MAX),
            _ => {
                let step = step(self.steps.warm_up);
                Tick((at.0 / step + 1).saturating_mul(step)).min(from).min(to)
            }
        }
    }

    /// Takes note of a window whose ends have become known, and hands over the block if its interval is past.
    pub fn turn(&mut self, now: Tick) {
        if self.block.phase < Phase::Drain {
            let (from, to) = (self.window.from(), self.window.to());
            if from > self.block.from {
                self.boundary = self.boundary.min(from);
            }
            self.boundary = self.boundary.min(to.max(self.block.from));
        }
        if now >= self.boundary {
            self.rotate(now);
        }
    }

    /// Where its blocks go.
    pub fn exchange_mut(&mut self) -> &mut X {
        &mut self.exchange
    }

    /// The tick at which [`turn`](Self::turn) is next due.
    #[must_use]
    pub fn boundary(&self) -> Tick {
        self.boundary
    }

    #[cold]
    fn rotate(&mut self, now: Tick) {
        let end = self.boundary;
        self.block.to = end;
        self.block.in_flight = self.in_flight;
        let handed_over = self.exchange.exchange(&mut self.block);
        // Idle intervals in between are passed over; the block begins with the one that holds `now`.
        let mut from = end;
        self.boundary = self.next_boundary(from);
        while self.boundary <= now {
            from = self.boundary;
            self.boundary = self.next_boundary(from);
        }
        if handed_over {
            self.block.from = from;
            self.block.phase = self.window.phase(from);
        }
    }

    /// An operation goes out. The hash of what is issued does not depend on the order.
    pub fn issue(&mut self, op: &Op) {
        let fold = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let mut hash = fold(0x6770_7566_6565_6400, op.key.id);
        hash = fold(hash, u64::from(op.key.space) << 32 | u64::from(op.key.rank) << 16 | op.verb as u64);
        hash = fold(hash, op.offset);
        hash = fold(hash, op.bytes ^ op.part_bytes.rotate_left(40) ^ u64::from(op.ranged) << 63);
        self.issued = self.issued.wrapping_add(hash ^ (hash >> 31));
    }

    /// An operation is done. Allocates only when a verb and carrier are seen for the first time.
    pub fn record(&mut self, submit: &Submit, outcome: &Outcome) {
        if outcome.done >= self.boundary {
            self.turn(outcome.done);
        }
        let response = nanos(outcome.response_time());
        let second = submit.op.key.space >= self.second_from;
        let index = Way { second, verb: submit.op.verb, carrier: outcome.carrier }.slot();
        let slot = self.block.slots[index].get_or_insert_with(|| Box::new(Slot::new()));
        let intended_within = self.window.contains(outcome.intended);
        if intended_within {
            slot.attempts += u64::from(outcome.attempts);
        }
        match outcome.result {
            result if submit.op.is_answered_by(result) => {
                self.ops += 1;
                self.bytes += outcome.bytes;
                self.block.ops += 1;
                self.block.bytes += outcome.bytes;
                self.block.recent.saturating_record(response);
                if intended_within {
                    slot.response.saturating_record(response);
                    slot.service.saturating_record(nanos(outcome.service_time()));
                    slot.slip.saturating_record(nanos(outcome.schedule_slip()));
                    slot.first_byte.saturating_record(nanos(outcome.first_byte.since(outcome.sent)));
                    slot.bytes += outcome.bytes;
                }
                if self.window.contains(outcome.done) {
                    slot.completed += 1;
                    slot.completed_bytes += outcome.bytes;
                }
            }
            // Nothing else is left.
            Ok(()) => {}
            Err(kind) => {
                self.errors += 1;
                self.block.errors += 1;
                if intended_within {
                    slot.errors[kind as usize] += 1;
                }
            }
        }
        if let Some(log) = &self.log {
            log.send(submit, outcome);
        }
    }

    /// Keeps a few words about a failure.
    #[cold]
    pub fn describe(&mut self, kind: ErrorKind, detail: &str) {
        let details = self.details.entry(kind).or_default();
        if details.len() < DETAILS && !details.iter().any(|known| known == detail) {
            details.push(detail.to_owned());
        }
    }

    /// Hands over what is left: the last block, the hash of what was issued, and the words about failures.
    #[must_use]
    pub fn finish(mut self, now: Tick) -> Finished {
        self.turn(now);
        self.block.to = now.max(self.block.from);
        self.block.in_flight = self.in_flight;
        Finished { block: self.block, issued: self.issued, details: self.details }
    }
}

/// What a recorder leaves.
#[derive(Debug)]
pub struct Finished {
    /// Its last block.
    pub block: Box<Block>,
    /// Hash of what it issued, whatever the order.
    pub issued: u64,
    /// A few words per kind of failure.
    pub details: BTreeMap<ErrorKind, Vec<String>>,
}
