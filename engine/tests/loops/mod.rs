//! Two tiny machines for tests: a closed loop and an open one, on reads of one object each.

#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use gpufeed_engine::record::histogram::empty;
use gpufeed_schema::{ClosedOrOpen, Section};
use gpufeed_workloads::machine::{Actions, Dataset, Event, Machine, Submit, Workload};
use gpufeed_workloads::op::{Key, KeyStyle, Names, Op, Outcome, Space, Tick, Verb};
use hdrhistogram::Histogram;

/// How operations start.
#[derive(Debug, Clone, Copy)]
pub enum Start {
    /// So many in flight.
    Closed(usize),
    /// One every so often, on as many lanes.
    Open(Duration, usize),
}

/// A machine that counts everything it is told.
#[derive(Debug)]
pub struct Loop {
    pub start: Start,
    pub verb: Verb,
    pub bytes: u64,
    /// Operations in all, where they are bounded.
    pub limit: Option<u64>,
    pub submitted: u64,
    pub done: Vec<u8>,
    pub ok: u64,
    pub failed: u64,
    pub measured_at: Option<Tick>,
    pub stopped_at: Option<Tick>,
    /// Every outcome in the window, counted independently of the engine.
    pub outcomes: Vec<Outcome>,
    pub late: Histogram<u64>,
    last: Tick,
    stopped: bool,
}

impl Loop {
    pub fn new(start: Start, limit: Option<u64>) -> Self {
        Self {
            start,
            verb: Verb::Get,
            bytes: 4096,
            limit,
            submitted: 0,
            done: Vec::new(),
            ok: 0,
            failed: 0,
            measured_at: None,
            stopped_at: None,
            outcomes: Vec::new(),
            late: empty(),
            last: Tick::ZERO,
            stopped: false,
        }
    }

    pub fn in_flight(&self) -> u64 {
        self.submitted - self.ok - self.failed
    }

    fn one(&mut self, now: Tick, out: &mut Actions) {
        if self.stopped || self.limit.is_some_and(|limit| self.submitted >= limit) {
            return;
        }
        let key = Key { space: 0, rank: 0, id: self.submitted, ..Key::ZERO };
        let op = match self.verb {
            Verb::Put => Op::put(key, self.bytes),
            _ => Op::get(key, self.bytes),
        };
        out.submit(Submit { tag: self.submitted, worker: 1, intended: now, op });
        self.submitted += 1;
        self.done.push(0);
    }
}

impl Machine for Loop {
    fn step(&mut self, now: Tick, event: Event<'_>, out: &mut Actions) {
        assert!(now >= self.last, "time went back from {:?} to {now:?}", self.last);
        self.last = now;
        match (event, self.start) {
            (Event::Start, Start::Closed(depth)) => (0..depth).for_each(|_| self.one(now, out)),
            (Event::Start, Start::Open(gap, _)) => out.wake(now + gap, 0),
            (Event::Due { at, .. }, Start::Open(gap, _)) => {
                assert!(at <= now, "woken early");
                self.late.saturating_record(u64::try_from(now.since(at).as_nanos()).unwrap_or(u64::MAX));
                self.one(at, out);
                if !self.stopped && self.limit.is_none_or(|limit| self.submitted < limit) {
                    out.wake(at + gap, 0);
                }
            }
            (Event::Due { .. }, Start::Closed(_)) => {}
            (Event::Done { tag, op, outcome }, start) => {
                self.done[usize::try_from(tag).expect("small")] += 1;
                assert_eq!(op.key.id, tag);
                match outcome.result {
                    Ok(()) => self.ok += 1,
                    Err(_) => self.failed += 1,
                }
                if self.outcomes.len() < 1_000_000 {
                    self.outcomes.push(*outcome);
                }
                if matches!(start, Start::Closed(_)) {
                    self.one(now, out);
                }
            }
            (Event::Measure, _) => self.measured_at = Some(now),
            (Event::Stop, _) => {
                self.stopped = true;
                self.stopped_at = Some(now);
            }
        }
        if self.limit.is_some_and(|limit| self.ok + self.failed >= limit) {
            out.finish();
        }
    }
}

impl Workload for Loop {
    fn names(&self) -> Names {
        Names { spaces: vec![Space { before: "t/".into(), after: String::new(), style: KeyStyle::Hash }] }
    }
    fn dataset(&self) -> Dataset {
        Dataset::default()
    }
    fn lanes(&self) -> usize {
        match self.start {
            Start::Closed(lanes) | Start::Open(_, lanes) => lanes,
        }
    }
    fn plan_hash(&self) -> u64 {
        self.limit.unwrap_or(0) ^ self.bytes
    }
    fn issues_by_plan(&self) -> bool {
        self.limit.is_some()
    }
    fn load(&self) -> ClosedOrOpen {
        ClosedOrOpen::Closed
    }
    fn section(&self, _measured: (Tick, Tick)) -> Section {
        Section::None
    }
}
