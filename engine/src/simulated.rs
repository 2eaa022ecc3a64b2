//! Virtual time: an event heap and a storage model. The same machines, phases and recorder as on the wall clock, exact
//! to the nanosecond and as fast as the processor allows.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use gpufeed_schema::{Validity, ValidityStatus};
use gpufeed_workloads::machine::{Submit, Workload};
use gpufeed_workloads::op::{Carrier, ErrorKind, Outcome, Tick, Verb};
pub use gpufeed_workloads::storage::{Answer, Storage, StorageModel};

use crate::brain::Brain;
use crate::measured::{Measured, RunError};
use crate::phases::SteadyState;
use crate::record::collector::Collector;
use crate::record::op_log::OpLog;
use crate::record::{Block, Exchange, Recorder, Steps, Window};
use crate::settings::{Settings, WarmUp};
use crate::watch::{Progress, Watch};

/// Hands blocks over in place: there is nobody to disturb.
struct InPlace {
    collector: Option<Collector>,
}

impl Exchange for InPlace {
    fn exchange(&mut self, block: &mut Box<Block>) -> bool {
        if let Some(collector) = &mut self.collector {
            collector.absorb(block);
        }
        true
    }
}

/// An operation in service.
#[derive(Clone, Copy)]
struct Flight {
    submit: Submit,
    sent: Tick,
    answer: Answer,
    attempts: u32,
}

/// Runs `machine` in virtual time on the shaped storage.
///
/// # Errors
/// When an output cannot be made.
pub fn run<W: Workload>(
    settings: &Settings,
    storage: StorageModel,
    machine: W,
    watch: &Watch,
) -> Result<Measured<W>, RunError> {
    let concurrency = storage.concurrency();
    run_on(settings, storage, concurrency, machine, watch)
}

/// Runs `machine` in virtual time on any storage that serves `concurrency` operations at a time.
///
/// # Errors
/// When an output cannot be made.
pub fn run_on<W: Workload, S: Storage>(
    settings: &Settings,
    storage: S,
    concurrency: usize,
    machine: W,
    watch: &Watch,
) -> Result<Measured<W>, RunError> {
    let window = Arc::new(Window::default());
    let mut warm_up = None;
    match settings.warm_up {
        WarmUp::None => window.open_at(Tick::ZERO),
        WarmUp::Fixed(length) => window.open_at(Tick::ZERO + length),
        WarmUp::Auto { at_most } => warm_up = Some((SteadyState::default(), Tick::ZERO + at_most)),
    }
    let sub = warm_up.as_ref().map(|&(_, end)| SteadyState::sub_interval(end.since(Tick::ZERO)));
    if let Some(length) = settings.duration.filter(|_| warm_up.is_none()) {
        window.close_at(window.from() + length);
    }
    let log = match &settings.op_log {
        Some(path) => {
            let log = OpLog::create(path, machine.names(), Tick::ZERO, true);
            Some(log.map_err(|source| RunError::Output { path: path.clone(), source })?)
        }
        None => None,
    };
    let plan_hash = format!("{:016x}", machine.plan_hash());
    let by_plan = machine.issues_by_plan();
    let lanes = machine.lanes().max(1).min(concurrency);
    let collector = Some(Collector::new(1, settings, Arc::clone(&window))?);
    let steps = Steps { warm_up: sub.unwrap_or(settings.interval), measure: settings.interval };
    let sender = log.as_ref().map(OpLog::sender);
    let recorder = Recorder::new(0, Tick::ZERO, steps, Arc::clone(&window), InPlace { collector }, sender)
        .split(settings.second.as_ref().map(|second| second.from_space));
    let mut run = Simulation {
        settings,
        storage,
        window: Arc::clone(&window),
        brain: Brain::new(machine, Tick::ZERO, Arc::clone(&window), settings.drain),
        recorder,
        flights: BinaryHeap::new(),
        slab: Vec::new(),
        free: VecDeque::new(),
        sequence: 0,
        lanes,
        now: Tick::ZERO,
        p99: None,
    };
    let mut validity = Vec::new();
    let mut interrupted = false;
    let mut steps_done = 0u64;
    while !run.brain.over() {
        steps_done += 1;
        if steps_done.is_multiple_of(4096) {
            if !interrupted && watch.cancelled() {
                interrupted = true;
                window.close_at(run.now);
            }
            run.show(watch);
        }
        if let Some((state, end)) = &mut warm_up {
            let collector = run.recorder.exchange_mut().collector.as_mut();
            let steady = collector.is_some_and(|collector| {
                std::iter::from_fn(|| collector.summary()).any(|s| state.add(s.bytes.max(s.ops) as f64))
            });
            if steady || run.now >= *end {
                let from = if steady { run.now } else { *end };
                window.open_at(from.max(run.now));
                if let Some(length) = settings.duration {
                    window.close_at(window.from() + length);
                }
                validity.push(steady_state(steady, window.from().since(Tick::ZERO)));
                warm_up = None;
            }
        }
        // A warm-up without end in sight must not pass its bound in one leap.
        let bound = warm_up.as_ref().map(|&(_, end)| end);
        if !run.advance(bound) {
            break;
        }
    }
    run.show(watch);
    let now = run.now;
    let end = if window.to() == Tick(u64::MAX) {
        run.brain.end().unwrap_or(now)
    } else {
        window.to().min(run.brain.end().unwrap_or(window.to()))
    };
    let from = window.from().min(end);
    if run.brain.stuck() {
        validity.push(stuck());
    }
    let Simulation { brain, mut recorder, .. } = run;
    recorder.in_flight = brain.in_flight();
    recorder.turn(now);
    let collector = recorder.exchange_mut().collector.take();
    let mut collector = collector.ok_or_else(|| RunError::Internal("the collector was taken".to_owned()))?;
    collector.absorb_last(recorder.finish(now));
    let recorded = collector.finish((from, end), settings);
    if let Some(log) = log {
        validity.extend(log_check(log));
    }
    validity.extend(recorded.validity);
    Ok(Measured {
        machines: vec![brain.into_machine()],
        window: (from, end),
        warm_up: from.since(Tick::ZERO),
        operations: recorded.operations,
        series: recorded.series,
        histograms: recorded.histograms,
        cpu: None,
        slip: recorded.slip,
        plan_hash,
        issued_hash: by_plan.then(|| format!("{:016x}", recorded.issued)),
        interrupted,
        errors: recorded.errors,
        validity,
    })
}

/// How the end of warm-up was found.
pub(crate) fn steady_state(steady: bool, warm_up: Duration) -> Validity {
    let seconds = warm_up.as_secs_f64();
    if steady {
        let detail =
            format!("throughput was steady after {seconds:.1} s: trend and halves of ten sub-intervals within 5%");
        Validity::new("steady-state", ValidityStatus::Ok, detail)
    } else {
        let detail = format!("throughput was not steady within {seconds:.1} s of warm-up; measured regardless");
        Validity::new("steady-state", ValidityStatus::Warn, detail)
    }
}

pub(crate) fn stuck() -> Validity {
    let detail = "the workload had nothing in flight and asked for nothing more, without having finished";
    Validity::new("workload", ValidityStatus::Warn, detail)
}

pub(crate) fn log_check(log: OpLog) -> Option<Validity> {
    match log.finish() {
        Ok(logged) if logged.dropped == 0 => None,
        Ok(logged) => {
            let detail = format!(
                "{} of {} operations are missing from ops.csv.zst",
                logged.dropped,
                logged.dropped + logged.written
            );
            Some(Validity::new("op-log", ValidityStatus::Warn, detail))
        }
        Err(error) => {
            let detail = format!("ops.csv.zst is incomplete, writing it failed: {error}");
            Some(Validity::new("op-log", ValidityStatus::Fail, detail))
        }
    }
}

struct Simulation<'a, W, S> {
    settings: &'a Settings,
    storage: S,
    window: Arc<Window>,
    brain: Brain<W>,
    recorder: Recorder<InPlace>,
    /// Completions by tick, then by order of admission.
    flights: BinaryHeap<Reverse<(Tick, u64, usize)>>,
    slab: Vec<Flight>,
    free: VecDeque<usize>,
    sequence: u64,
    lanes: usize,
    now: Tick,
    p99: Option<Duration>,
}

impl<W: Workload, S: Storage> Simulation<'_, W, S> {
    /// Goes to the next moment at which something happens; false when nothing ever will.
    fn advance(&mut self, bound: Option<Tick>) -> bool {
        self.send();
        let completion = self.flights.peek().map_or(Tick(u64::MAX), |Reverse((at, ..))| *at);
        let deadline = self.brain.next_deadline();
        let next = completion.min(deadline);
        if let Some(bound) = bound.filter(|&bound| next > bound && self.now < bound) {
            self.now = bound;
            self.recorder.turn(bound);
            return true;
        }
        if next == Tick(u64::MAX) {
            return false;
        }
        self.now = self.now.max(next);
        self.recorder.in_flight = self.brain.in_flight();
        self.recorder.turn(self.now);
        if deadline <= completion {
            self.brain.turn(self.now);
            if self.brain.abandoned() {
                self.abandon();
            }
        } else if let Some(Reverse((at, _, index))) = self.flights.pop() {
            self.land(at, index);
        }
        true
    }

    /// Admits what is ready, as far as lanes are free.
    fn send(&mut self) {
        while self.flights.len() < self.lanes {
            let Some(submit) = self.brain.ready().pop_front() else { return };
            self.recorder.issue(&submit.op);
            let now = self.now;
            self.admit(Flight {
                submit,
                sent: now,
                answer: Answer { first_byte: now, done: now, result: Ok(()) },
                attempts: 0,
            });
        }
    }

    fn admit(&mut self, mut flight: Flight) {
        flight.attempts += 1;
        flight.answer = self.storage.admit(&flight.submit.op, self.now);
        let patience = self.now + self.settings.op_timeout;
        if flight.answer.done > patience {
            flight.answer = Answer { first_byte: patience, done: patience, result: Err(ErrorKind::Timeout) };
        }
        let at = flight.answer.done;
        let index = match self.free.pop_front() {
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
        self.flights.push(Reverse((at, self.sequence, index)));
    }

    fn land(&mut self, at: Tick, index: usize) {
        self.free.push_back(index);
        let Flight { submit, sent, answer, attempts } = self.slab[index];
        if answer.result.is_err_and(crate::wall::worth_another) && attempts <= self.settings.retries {
            self.admit(Flight { submit, sent, answer, attempts });
            return;
        }
        let moved = answer.result.is_ok() && (submit.op.verb == Verb::Get || submit.op.verb.writes());
        let outcome = Outcome {
            intended: submit.intended,
            sent,
            first_byte: answer.first_byte,
            done: at,
            carrier: Carrier::Model,
            bytes: if moved { submit.op.bytes } else { 0 },
            attempts,
            result: answer.result,
        };
        self.complete(&submit, &outcome);
    }

    fn complete(&mut self, submit: &Submit, outcome: &Outcome) {
        self.recorder.record(submit, outcome);
        self.brain.done(self.now, submit, outcome);
        if self.brain.abandoned() {
            self.abandon();
        }
    }

    /// Gives up what the drain had no time for.
    fn abandon(&mut self) {
        let mut given_up: Vec<(Submit, Tick)> = Vec::new();
        while let Some(Reverse((_, _, index))) = self.flights.pop() {
            self.free.push_back(index);
            given_up.push((self.slab[index].submit, self.slab[index].sent));
        }
        let now = self.now;
        given_up.extend(self.brain.ready().drain(..).map(|submit| (submit, now)));
        for (submit, sent) in given_up {
            let outcome = Outcome {
                intended: submit.intended,
                sent,
                first_byte: now,
                done: now,
                carrier: Carrier::Model,
                bytes: 0,
                attempts: 1,
                result: Err(ErrorKind::Cancelled),
            };
            self.recorder.record(&submit, &outcome);
            self.brain.done(now, &submit, &outcome);
        }
    }

    fn show(&mut self, watch: &Watch) {
        // During an automatic warm-up the summaries are its to read.
        if self.window.from() != Tick(u64::MAX)
            && let Some(collector) = &mut self.recorder.exchange_mut().collector
        {
            while let Some(summary) = collector.summary() {
                self.p99 = summary.p99.or(self.p99);
            }
        }
        let recorder = &self.recorder;
        watch.show(&Progress {
            phase: self.window.phase(self.now),
            elapsed: self.now.since(Tick::ZERO),
            ops: recorder.ops,
            bytes: recorder.bytes,
            errors: recorder.errors,
            p99: self.p99,
            done_ratio: self.brain.machine().progress(),
        });
    }
}
