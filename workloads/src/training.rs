//! Training reads: emulated accelerators in data-parallel lock-step, their loaders, and the utilization that results,
//! as MLPerf Storage and DLIO define them.
//!
//! Every step each accelerator waits for its batch, computes for a fixed time, and waits for all others. The next step
//! starts when the last has computed: a deadline on the model's own time line, so that neither late timers nor late
//! completions add up. Reads start when DLIO's loaders would start them.

mod account;
mod loader;
mod spec;

use gpufeed_schema::{ClosedOrOpen, Distribution, Section};

pub use spec::{LoaderKind, TrainingError, TrainingSpec};

use crate::machine::{Actions, Dataset, Event, Machine, Submit, Workload};
use crate::op::{Names, Op, Outcome, Tick};
use crate::random::{mix, mix2};
use account::Account;
use loader::{Loader, Read};
use spec::{Order, Samples};

/// Reads of each accelerator that the plan hash covers, and of all together.
const HASHED: (u64, u64) = (65_536, 1 << 22);

/// One emulated accelerator.
#[derive(Debug)]
struct Rank {
    loader: Loader,
    order: Order,
    /// When it got the batch of this step, if it has.
    handed: Option<Tick>,
    /// Bytes of that batch.
    bytes: u64,
}

/// The whole of a training run: one machine, since all accelerators wait for each other.
#[derive(Debug)]
pub struct Training {
    spec: TrainingSpec,
    samples: Samples,
    ranks: Vec<Rank>,
    steps: u64,
    epoch: u32,
    /// Step of the epoch under way.
    step: u64,
    /// The barrier it started at.
    step_start: Tick,
    /// Accelerators that wait for its batch.
    waiting: u32,
    /// The latest hand-over of the step.
    last_handed: Tick,
    in_flight: u64,
    account: Account,
    /// End of the window, or of the last epoch.
    end: Option<Tick>,
}

impl Training {
    /// The run that `spec` describes.
    ///
    /// # Errors
    /// When it cannot be run, see [`TrainingSpec::check`].
    pub fn new(spec: TrainingSpec) -> Result<Self, TrainingError> {
        spec.check()?;
        let samples = Samples::new(&spec);
        let ranks = (0..spec.accelerators)
            .map(|rank| Rank { loader: Loader::new(&spec), order: samples.order(0, rank), handed: None, bytes: 0 })
            .collect();
        Ok(Self {
            steps: spec.steps(),
            account: Account::new(Tick::ZERO, spec.compute, spec.batch, spec.accelerators),
            samples,
            ranks,
            epoch: 0,
            step: 0,
            step_start: Tick::ZERO,
            waiting: 0,
            last_handed: Tick::ZERO,
            in_flight: 0,
            end: None,
            spec,
        })
    }

    /// Lets `act` do something to a rank's loader and submits the reads it starts.
    fn with_loader<R>(
        &mut self,
        rank: u32,
        out: &mut Actions,
        act: impl FnOnce(&mut Loader, &mut dyn FnMut(Read)) -> R,
    ) -> R {
        let Self { samples, ranks, in_flight, spec, .. } = self;
        let Rank { loader, order, .. } = &mut ranks[rank as usize];
        let readers = u64::from(spec.readers_or_self());
        act(loader, &mut |Read { reader, position, at }| {
            *in_flight += 1;
            let tag = u64::from(rank) * readers + u64::from(reader);
            out.submit(Submit { tag, worker: rank, intended: at, op: samples.read(order.sample(position)) });
        })
    }

    fn begin_epoch(&mut self, at: Tick, out: &mut Actions) {
        self.step = 0;
        for rank in 0..self.spec.accelerators {
            self.ranks[rank as usize].order = self.samples.order(self.epoch, rank);
            self.with_loader(rank, out, |loader, start| loader.begin(at, start));
        }
        self.account.begin(self.epoch, at, true);
        self.begin_step(at, out);
    }

    fn begin_step(&mut self, at: Tick, out: &mut Actions) {
        self.step_start = at;
        self.last_handed = at;
        self.waiting = self.spec.accelerators;
        self.ranks.iter_mut().for_each(|rank| rank.handed = None);
        for rank in 0..self.spec.accelerators {
            if self.step > 0 {
                self.with_loader(rank, out, |loader, start| loader.step(at, start));
            }
            self.hand_over(rank, out);
        }
    }

    /// Hands a rank its batch if it waits for one that is ready; the last hand-over sets the deadline of the step.
    fn hand_over(&mut self, rank: u32, out: &mut Actions) {
        let Rank { loader, handed, .. } = &self.ranks[rank as usize];
        let (None, Some(ready)) = (handed, loader.ready()) else { return };
        let at = ready.max(self.step_start);
        let bytes = self.with_loader(rank, out, |loader, start| loader.hand_over(at, start));
        let state = &mut self.ranks[rank as usize];
        (state.handed, state.bytes) = (Some(at), bytes);
        self.last_handed = self.last_handed.max(at);
        self.waiting -= 1;
        if self.waiting == 0 {
            out.wake(self.last_handed + self.spec.compute, 0);
        }
    }

    /// All have computed.
    fn barrier(&mut self, at: Tick, out: &mut Actions) {
        let handed = self.ranks.iter().map(|rank| (rank.handed.unwrap_or(at), rank.bytes));
        self.account.step(self.step_start, at, handed);
        self.step += 1;
        if self.step < self.steps {
            self.begin_step(at, out);
            return;
        }
        self.account.end_epoch(at);
        self.epoch += 1;
        if self.spec.epochs == Some(self.epoch) {
            self.end = Some(at);
            out.finish();
        } else {
            self.begin_epoch(at, out);
        }
    }

    fn done(&mut self, tag: u64, op: &Op, outcome: &Outcome, now: Tick, out: &mut Actions) {
        self.in_flight -= 1;
        let failed = outcome.result.is_err();
        self.account.failed_reads += u64::from(failed && outcome.intended >= self.account.start);
        if self.end.is_some() {
            return;
        }
        let readers = u64::from(self.spec.readers_or_self());
        let (rank, reader) = ((tag / readers) as u32, (tag % readers) as u32);
        // A sample that could not be read counts as read: what failed is in the report, and a step needs its batch.
        let bytes = if failed { 0 } else { op.bytes };
        let at = outcome.done.min(now);
        self.with_loader(rank, out, |loader, start| loader.done(reader, at, bytes, start));
        self.hand_over(rank, out);
    }

    fn stop(&mut self, now: Tick) {
        if self.end.is_none() {
            self.end = Some(now);
            self.account.cut(self.step_start, now, self.ranks.iter().map(|rank| rank.handed));
        }
    }
}

impl Machine for Training {
    fn step(&mut self, now: Tick, event: Event<'_>, out: &mut Actions) {
        match event {
            Event::Start => {
                self.account = Account::new(now, self.spec.compute, self.spec.batch, self.spec.accelerators);
                self.begin_epoch(now, out);
            }
            Event::Due { at, .. } if self.end.is_none() => self.barrier(at, out),
            Event::Due { .. } => {}
            Event::Done { tag, op, outcome } => self.done(tag, op, outcome, now, out),
            Event::Measure if self.end.is_none() => {
                self.account = Account::new(now, self.spec.compute, self.spec.batch, self.spec.accelerators);
                self.account.begin(self.epoch, now, self.step == 0 && now == self.step_start);
            }
            Event::Measure => {}
            Event::Stop => self.stop(now),
        }
        if self.end.is_some() && self.in_flight == 0 {
            out.finish();
        }
    }
}

impl Workload for Training {
    fn names(&self) -> Names {
        Samples::names(&self.spec)
    }

    fn dataset(&self) -> Dataset {
        self.samples.dataset()
    }

    fn lanes(&self) -> usize {
        self.spec.accelerators as usize * self.spec.readers_or_self() as usize
    }

    /// Covers which samples each accelerator reads in which order. Which of its readers does is the target's doing.
    fn plan_hash(&self) -> u64 {
        let each = HASHED.0.min(HASHED.1 / u64::from(self.spec.accelerators));
        let epoch_reads = self.steps * u64::from(self.spec.batch);
        let reads = self.spec.epochs.map_or(each, |epochs| each.min(epoch_reads * u64::from(epochs)));
        let of_rank = |rank: u32| {
            let mut hash = mix(u64::from(rank) ^ self.spec.compute.as_nanos() as u64);
            let mut order = self.samples.order(0, rank);
            for read in 0..reads {
                let position = read % epoch_reads;
                if position == 0 {
                    order = self.samples.order((read / epoch_reads) as u32, rank);
                }
                let op = self.samples.read(order.sample(position));
                hash = mix2(hash, mix2(op.key.id, op.offset) ^ op.bytes);
            }
            hash
        };
        (0..self.spec.accelerators).map(of_rank).fold(0, u64::wrapping_add)
    }

    fn issues_by_plan(&self) -> bool {
        self.spec.epochs.is_some()
    }

    fn load(&self) -> ClosedOrOpen {
        ClosedOrOpen::Closed
    }

    fn progress(&self) -> Option<f64> {
        let all = f64::from(self.spec.epochs?) * self.steps as f64;
        Some(((f64::from(self.epoch) * self.steps as f64 + self.step as f64) / all).min(1.0))
    }

    /// Compute is a deadline of the model's own time line, so what is measured of it is what was asked for: the
    /// utilizations by current and by v1.0 rules, which differ in that alone, agree.
    fn section(&self, measured: (Tick, Tick)) -> Section {
        let Self { spec, account, .. } = self;
        // A machine that finished did so at its last barrier, which is later than its last completion.
        let end = self.end.unwrap_or(measured.1);
        let window_s = end.since(account.start).as_secs_f64();
        let per_s = |amount: u64| if window_s > 0.0 { amount as f64 / window_s } else { 0.0 };
        let au_ratio = account.au_ratio();
        Section::Training(Box::new(gpufeed_schema::Training {
            model: spec.model.clone(),
            accelerators: spec.accelerators,
            accelerator: spec.accelerator.clone(),
            au_ratio,
            au_v1_ratio: au_ratio,
            au_threshold_ratio: spec.au_threshold_ratio,
            passed: au_ratio.map(|au| au >= spec.au_threshold_ratio),
            samples_per_s: per_s(account.samples),
            bytes_per_s: per_s(account.bytes),
            needed_bytes_per_s: spec.needed_bytes_per_s(),
            compute_s: account.partition.compute_ns as f64 / 1e9,
            stall_s: (account.partition.load_ns + account.partition.barrier_ns) as f64 / 1e9,
            step_time: Distribution::of(&account.step_times),
            failed_reads: account.failed_reads,
            epochs: account.epochs.clone(),
            timeline: account.points(end),
        }))
    }
}

#[cfg(test)]
mod tests;
