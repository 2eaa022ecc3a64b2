//! Trait [`Machine`]: event in, actions out. A machine sees ticks and completions, never a clock.
//!
//! The same machine runs under two drivers, wall time and virtual time (crate `gpufeed-engine`). A run goes
//! `Start`, `Measure` (end of warm-up: counters begin here), `Stop` (no new work; what is in flight drains), and each
//! of those is a cut at which time-line partitions must be exact.

use gpufeed_schema::{ClosedOrOpen, Section};

use crate::op::{Key, Names, Op, Outcome, Tick};

/// What happened.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// The run begins (warm-up, or the measurement itself where there is none).
    Start,
    /// A wake asked for by [`Actions::wake`] is due. `now` may be later than the deadline; `at` is the deadline
    /// itself, and models advance their time lines by it, so that lateness never accumulates.
    Due {
        /// The deadline asked for.
        at: Tick,
        /// The tag given with it.
        tag: u64,
    },
    /// An operation finished.
    Done {
        /// The tag it was submitted with.
        tag: u64,
        /// The operation.
        op: &'a Op,
        /// How it went.
        outcome: &'a Outcome,
    },
    /// Warm-up is over: what counts starts at `now`.
    Measure,
    /// The measured window ends at `now`: start nothing new; completions still arrive.
    Stop,
}

/// An operation to perform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submit {
    /// Returned with the completion.
    pub tag: u64,
    /// Which emulated worker, accelerator or client asks; written to the op log.
    pub worker: u32,
    /// When it should start. In the past or now: at once; never in the future (use a wake).
    pub intended: Tick,
    /// What to do.
    pub op: Op,
}

/// What a machine wants done; filled by one step, emptied by the driver, reused for the next.
#[derive(Debug, Default)]
pub struct Actions {
    submits: Vec<Submit>,
    wakes: Vec<(Tick, u64)>,
    finished: bool,
}

impl Actions {
    /// Performs `submit` as soon as a lane is free.
    pub fn submit(&mut self, submit: Submit) {
        self.submits.push(submit);
    }

    /// Asks for [`Event::Due`] with `tag` at `at`. Wakes cannot be withdrawn: a machine ignores those it no longer
    /// wants. Equal deadlines are delivered in the order they were asked for.
    pub fn wake(&mut self, at: Tick, tag: u64) {
        self.wakes.push((at, tag));
    }

    /// Nothing more will come from this machine: count-bounded work is complete.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Takes the operations to perform, in order.
    pub fn drain_submits(&mut self) -> impl Iterator<Item = Submit> + '_ {
        self.submits.drain(..)
    }

    /// Takes the wakes asked for, in order.
    pub fn drain_wakes(&mut self) -> impl Iterator<Item = (Tick, u64)> + '_ {
        self.wakes.drain(..)
    }

    /// Whether the machine has said it is finished (sticky).
    #[must_use]
    pub const fn finished(&self) -> bool {
        self.finished
    }
}

/// A state machine that decides what to do to storage and when.
pub trait Machine: Send {
    /// Advances to `now`, which never goes back, and appends what should be done to `out`.
    fn step(&mut self, now: Tick, event: Event<'_>, out: &mut Actions);
}

impl<M: Machine + ?Sized> Machine for Box<M> {
    fn step(&mut self, now: Tick, event: Event<'_>, out: &mut Actions) {
        (**self).step(now, event, out);
    }
}

/// A machine with everything a run needs to know about it.
pub trait Workload: Machine {
    /// The key spaces it uses; [`Key::space`] indexes them.
    fn names(&self) -> Names;

    /// The objects that must stand on the target before `Start`.
    fn dataset(&self) -> Dataset;

    /// The most operations it ever has in flight: so many lanes are opened.
    fn lanes(&self) -> usize;

    /// Hash of what it generates: each stream's first 65,536 logical operations, whatever timing does to them later.
    /// The same plan and seed give the same hash.
    fn plan_hash(&self) -> u64;

    /// Whether what is issued does not depend on timing (count-bounded, static policy), so that a hash of it means
    /// something.
    fn issues_by_plan(&self) -> bool;

    /// How load is offered.
    fn load(&self) -> ClosedOrOpen;

    /// How far it is, where it is bounded by work rather than time: 0..=1.
    fn progress(&self) -> Option<f64> {
        None
    }

    /// Its own section of the report. Called once, after the last completion; `measured` is the window from `Measure`
    /// (or `Start`) to `Stop` (or the last completion of a finished machine).
    fn section(&self, measured: (Tick, Tick)) -> Section;
}

/// The objects a workload needs on the target: runs of consecutive identities of one size, in key order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dataset {
    /// Each run of objects.
    pub runs: Vec<ObjectRun>,
}

/// `count` objects with identities `first, first + 1, …`, or with sizes of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRun {
    /// Key of the first object.
    pub first: Key,
    /// How many.
    pub count: u64,
    /// Size of each.
    pub sizes: Sizes,
}

/// Sizes of a run of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sizes {
    /// All the same.
    Fixed(u64),
    /// One for each object.
    Each(std::sync::Arc<[u64]>),
}

impl ObjectRun {
    /// Key and size of object `i` of the run.
    #[must_use]
    pub fn object(&self, i: u64) -> (Key, u64) {
        let bytes = match &self.sizes {
            Sizes::Fixed(bytes) => *bytes,
            Sizes::Each(sizes) => sizes[usize::try_from(i).unwrap_or(usize::MAX)],
        };
        (Key { id: self.first.id + i, ..self.first }, bytes)
    }
}

impl Dataset {
    /// Every object with its size.
    pub fn objects(&self) -> impl Iterator<Item = (Key, u64)> + '_ {
        self.runs.iter().flat_map(|run| (0..run.count).map(|i| run.object(i)))
    }

    /// Number of objects.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// Bytes in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.runs
            .iter()
            .map(|run| match &run.sizes {
                Sizes::Fixed(bytes) => bytes * run.count,
                Sizes::Each(sizes) => sizes.iter().sum(),
            })
            .sum()
    }
}
