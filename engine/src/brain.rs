//! A machine with its queues: what both drivers do with one, without a clock or I/O of their own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use gpufeed_workloads::machine::{Actions, Event, Submit, Workload};
use gpufeed_workloads::op::{Outcome, Tick};

use crate::record::Window;

/// Wakes delivered in one go, so that a machine that always wants another cannot starve the lanes.
const WAKES_AT_ONCE: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    WarmUp,
    Measuring,
    Draining,
    /// The drain was too long: what comes back comes back cancelled, and nothing new starts.
    Abandoned,
    Over,
}

/// A machine, its wakes, its operations not yet sent, and the cuts of its run.
pub(crate) struct Brain<W> {
    machine: W,
    out: Actions,
    wakes: BinaryHeap<Reverse<(Tick, u64, u64)>>,
    sequence: u64,
    ready: VecDeque<Submit>,
    /// Submitted, not done: ready or with a lane.
    in_flight: u64,
    last: Tick,
    state: State,
    start: Tick,
    window: Arc<Window>,
    drain: Duration,
    stopped: Tick,
    /// When the machine ended by itself.
    end: Option<Tick>,
    stuck: bool,
}

impl<W: Workload> Brain<W> {
    pub(crate) fn new(machine: W, start: Tick, window: Arc<Window>, drain: Duration) -> Self {
        let lanes = machine.lanes();
        Self {
            machine,
            out: Actions::default(),
            wakes: BinaryHeap::with_capacity(lanes + 16),
            sequence: 0,
            ready: VecDeque::with_capacity(lanes + 16),
            in_flight: 0,
            last: start,
            state: State::Waiting,
            start,
            window,
            drain,
            stopped: Tick(u64::MAX),
            end: None,
            stuck: false,
        }
    }

    pub(crate) fn machine(&self) -> &W {
        &self.machine
    }

    pub(crate) fn into_machine(self) -> W {
        self.machine
    }

    pub(crate) fn ready(&mut self) -> &mut VecDeque<Submit> {
        &mut self.ready
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(crate) fn over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether what is still in flight must be cancelled.
    pub(crate) fn abandoned(&self) -> bool {
        self.state == State::Abandoned
    }

    /// When the machine ended before it was stopped.
    pub(crate) fn end(&self) -> Option<Tick> {
        self.end
    }

    /// Whether it ended because it wanted nothing, without saying that it was finished.
    pub(crate) fn stuck(&self) -> bool {
        self.stuck
    }

    /// The next change of phase.
    fn cut(&self) -> Tick {
        match self.state {
            State::Waiting => self.start,
            State::WarmUp => self.window.from().min(self.window.to()),
            State::Measuring => self.window.to(),
            State::Draining => self.stopped + self.drain,
            State::Abandoned | State::Over => Tick(u64::MAX),
        }
    }

    /// When [`turn`](Self::turn) has something to do; the end of time when only completions can change anything.
    pub(crate) fn next_deadline(&self) -> Tick {
        match self.state {
            State::Waiting => self.start,
            State::Abandoned | State::Over => Tick(u64::MAX),
            _ => self.wakes.peek().map_or(Tick(u64::MAX), |Reverse((at, ..))| *at).min(self.cut()),
        }
    }

    /// Delivers cuts and wakes that are due, in order of their ticks; at equal ticks the cut comes first. What is due
    /// before a cut is delivered before it even when both are late, so that time lines are cut exactly.
    pub(crate) fn turn(&mut self, now: Tick) {
        for _ in 0..WAKES_AT_ONCE {
            let cut = self.cut();
            let wake = self.wakes.peek().map(|Reverse(wake)| *wake).filter(|_| self.state != State::Waiting);
            match wake {
                Some((at, _, tag)) if at < cut && at <= now => {
                    self.wakes.pop();
                    self.step(now.min(cut), Event::Due { at, tag });
                }
                _ if cut <= now => self.pass(cut),
                _ => break,
            }
            if matches!(self.state, State::Abandoned | State::Over) {
                break;
            }
        }
    }

    fn pass(&mut self, cut: Tick) {
        match self.state {
            State::Waiting => {
                self.state = State::WarmUp;
                self.step(cut, Event::Start);
            }
            State::WarmUp if self.window.to() <= cut => self.stop(cut),
            State::WarmUp => {
                self.state = State::Measuring;
                self.step(cut, Event::Measure);
            }
            State::Measuring => self.stop(cut),
            State::Draining => {
                self.state = State::Abandoned;
                self.settle();
            }
            State::Abandoned | State::Over => {}
        }
    }

    fn stop(&mut self, at: Tick) {
        self.stopped = at;
        self.state = State::Draining;
        self.step(at, Event::Stop);
    }

    /// An operation is done. Due cuts and wakes are delivered first, those of a tick before its completions.
    pub(crate) fn done(&mut self, now: Tick, submit: &Submit, outcome: &Outcome) {
        if self.next_deadline() <= now {
            self.turn(now);
        }
        self.in_flight -= 1;
        self.step(now, Event::Done { tag: submit.tag, op: &submit.op, outcome });
    }

    fn step(&mut self, now: Tick, event: Event<'_>) {
        // Completions of different lanes and late cuts may be told out of order by a hair; machines never see that.
        self.last = self.last.max(now);
        self.machine.step(self.last, event, &mut self.out);
        let abandoned = matches!(self.state, State::Abandoned | State::Over);
        for submit in self.out.drain_submits() {
            if !abandoned {
                self.ready.push_back(submit);
                self.in_flight += 1;
            }
        }
        for (at, tag) in self.out.drain_wakes() {
            self.sequence += 1;
            self.wakes.push(Reverse((at, self.sequence, tag)));
        }
        self.settle();
    }

    /// Sees whether that was all.
    fn settle(&mut self) {
        if self.in_flight > 0 {
            return;
        }
        let finished = self.out.finished();
        match self.state {
            State::WarmUp | State::Measuring => {
                let nothing_comes =
                    self.state == State::Measuring && self.wakes.is_empty() && self.window.to() == Tick(u64::MAX);
                if finished || nothing_comes {
                    self.stuck = !finished;
                    self.end = Some(self.last);
                    self.stop(self.last);
                }
            }
            // Wakes may finish what had begun, unless the machine says there is nothing.
            State::Draining if finished || self.wakes.is_empty() => self.state = State::Over,
            State::Abandoned => self.state = State::Over,
            _ => {}
        }
    }
}
