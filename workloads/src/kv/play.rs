//! Plays a KV run in virtual time on any storage: the same machine, driven by a heap, without recording each operation.
//! The engine's virtual driver does the same and records; a test holds the two against each other.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::kv::{Exists, Kv, RequestShape};
use crate::machine::{Actions, Event, Machine, Submit};
use crate::op::{Carrier, Op, Outcome, Tick, Verb};
use crate::storage::{Answer, Present, Storage, payload_bytes};

/// Payload that storage moved, by second of virtual time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moved {
    /// Bytes read in each second, counted at the read's end.
    pub read: Vec<u64>,
    /// Bytes written in each second, counted at the write's end.
    pub written: Vec<u64>,
}

/// Storage whose payload is counted second by second.
#[derive(Debug)]
pub struct Counted<S> {
    storage: S,
    /// What it moved so far.
    pub moved: Moved,
}

impl<S> Counted<S> {
    /// Counts what `storage` moves.
    pub fn new(storage: S) -> Self {
        Self { storage, moved: Moved::default() }
    }
}

impl<S: Storage> Storage for Counted<S> {
    fn admit(&mut self, op: &Op, now: Tick) -> Answer {
        let answer = self.storage.admit(op, now);
        let bins = match op.verb {
            Verb::Get => &mut self.moved.read,
            Verb::Put | Verb::Multipart => &mut self.moved.written,
            Verb::Stat | Verb::List | Verb::Delete => return answer,
        };
        // An answer that never comes must not make a bin for each second until then.
        let second = (answer.done.0 / 1_000_000_000).min(1 << 24) as usize;
        if answer.result.is_ok() {
            bins.resize(bins.len().max(second + 1), 0);
            bins[second] += payload_bytes(op);
        }
        answer
    }

    fn concurrency(&self) -> usize {
        self.storage.concurrency()
    }
}

/// Operations in service, and those that wait for a free place.
struct Desk<S> {
    storage: S,
    places: usize,
    waiting: VecDeque<Submit>,
    /// Answers by tick, then by order of admission.
    flights: BinaryHeap<Reverse<(Tick, u64, usize)>>,
    slab: Vec<(Submit, Tick, Answer)>,
    free: Vec<usize>,
    sequence: u64,
}

impl<S: Storage> Desk<S> {
    fn new(storage: S) -> Self {
        let places = storage.concurrency();
        let (waiting, flights) = (VecDeque::new(), BinaryHeap::new());
        Self { storage, places, waiting, flights, slab: Vec::new(), free: Vec::new(), sequence: 0 }
    }

    fn send(&mut self, now: Tick) {
        while self.flights.len() < self.places {
            let Some(submit) = self.waiting.pop_front() else { return };
            let flight = (submit, now, self.storage.admit(&submit.op, now));
            let index = match self.free.pop() {
                Some(index) => {
                    self.slab[index] = flight;
                    index
                }
                None => {
                    self.slab.push(flight);
                    self.slab.len() - 1
                }
            };
            self.sequence += 1;
            self.flights.push(Reverse((flight.2.done, self.sequence, index)));
        }
    }

    fn next(&self) -> Tick {
        self.flights.peek().map_or(Tick(u64::MAX), |Reverse((at, ..))| *at)
    }

    fn land(&mut self) -> Option<(Submit, Outcome)> {
        let Reverse((at, _, index)) = self.flights.pop()?;
        self.free.push(index);
        let (submit, sent, answer) = self.slab[index];
        let outcome = Outcome {
            intended: submit.intended,
            sent,
            first_byte: answer.first_byte,
            done: at,
            carrier: Carrier::Model,
            bytes: if answer.result.is_ok() { payload_bytes(&submit.op) } else { 0 },
            attempts: 1,
            result: answer.result,
        };
        Some((submit, outcome))
    }
}

/// Drives a machine from start to end, or to `stop`; what counts starts at `measure`. Returns when it ended.
pub fn play<S: Storage>(machine: &mut Kv, storage: S, measure: Tick, stop: Option<Tick>) -> Tick {
    let mut out = Actions::default();
    let mut wakes: BinaryHeap<Reverse<(Tick, u64, u64)>> = BinaryHeap::new();
    // An index of one's own needs nobody's word, unless it is of a tier that also deletes.
    let spec = &machine.tiers.spec;
    let knows = spec.exists == Exists::Index && spec.shape == RequestShape::default() && spec.g4_bytes.is_none();
    let mut desk = Desk::new(if knows { Present::unasked(storage) } else { Present::new(storage) });
    let (mut now, mut order) = (Tick::ZERO, 0u64);
    let mut measure = (measure > now).then_some(measure);
    machine.step(now, Event::Start, &mut out);
    loop {
        desk.waiting.extend(out.drain_submits());
        for (at, tag) in out.drain_wakes() {
            order += 1;
            wakes.push(Reverse((at, order, tag)));
        }
        if out.finished() {
            return now;
        }
        desk.send(now);
        let deadline = wakes.peek().map_or(Tick(u64::MAX), |Reverse((at, ..))| *at);
        let at = deadline.min(desk.next());
        if at == Tick(u64::MAX) {
            return now;
        }
        if let Some(due) = measure.take_if(|due| *due <= at) {
            now = now.max(due);
            machine.step(now, Event::Measure, &mut out);
            continue;
        }
        if let Some(stop) = stop.filter(|&stop| at >= stop) {
            machine.step(stop, Event::Stop, &mut out);
            return stop;
        }
        now = now.max(at);
        if deadline <= at {
            let Some(Reverse((at, _, tag))) = wakes.pop() else { return now };
            machine.step(now, Event::Due { at, tag }, &mut out);
        } else if let Some((submit, outcome)) = desk.land() {
            machine.step(now, Event::Done { tag: submit.tag, op: &submit.op, outcome: &outcome }, &mut out);
        }
    }
}
