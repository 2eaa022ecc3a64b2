//! A job on a worker, from queue to last token, and what its owner is asked and told about it.

use crate::inference::Slot;
use crate::inference::worker::Moved;
use crate::op::Tick;

/// What a worker is asked to do: prefill a prompt and decode an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The owner's number for it.
    pub id: u32,
    /// Intended arrival; TTFT counts from here.
    pub arrived: Tick,
    /// Prompt tokens, at least one.
    pub prompt_tokens: u64,
    /// Output tokens, at least one: the prompt's last iteration makes the first.
    pub output_tokens: u64,
    /// Identities of its full blocks in order: the prompt's, then the answer's as far as they are known. Equal
    /// identity means equal content, and so an equal prefix.
    pub blocks: Vec<u64>,
}

/// Where a request's time to first token goes; each moment belongs to exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Phase {
    /// Waiting for a slot, for memory and for other requests' work.
    Queue,
    /// Asking the tiers what they hold.
    Lookup,
    /// Loading from the target.
    Load,
    /// Host memory to GPU memory, after the last byte came from the target.
    Copy,
    /// Its own prefill, and its own host time before it.
    Prefill,
    /// From the worker that prefilled it to the one that decodes it.
    Transfer,
}

/// Nanoseconds by phase; they sum to the TTFT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts(pub [u64; 6]);

impl Parts {
    /// Time in one phase.
    #[must_use]
    pub const fn of(&self, phase: Phase) -> u64 {
        self.0[phase as usize]
    }

    /// Time in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Why a block that some worker had computed is prefilled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// No tier this worker reaches holds it any more.
    Evicted,
    /// Another worker computed it last, and no tier this worker reaches holds it; or it is still on its way to one.
    Elsewhere,
    /// A tier holds it, but a block before it is missing.
    Hole,
    /// Loading would have taken longer than computing, or policy forbids loading.
    Chosen,
    /// Its load timed out.
    TimedOut,
    /// Its load failed in another way.
    Failed,
    /// The target had it and lost it.
    Lost,
    /// The job itself had it before it was preempted.
    Preempted,
    /// The job itself had it on a worker that died; or such a worker computed it last, and no tier that is left holds it.
    WorkerLost,
    /// The last block of a prompt that is there in full: one token at least must be computed.
    Tail,
}

impl Reason {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 10] = [
        Self::Evicted,
        Self::Elsewhere,
        Self::Hole,
        Self::Chosen,
        Self::TimedOut,
        Self::Failed,
        Self::Lost,
        Self::Preempted,
        Self::WorkerLost,
        Self::Tail,
    ];

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Elsewhere => "elsewhere",
            Self::Hole => "hole",
            Self::Chosen => "chosen",
            Self::TimedOut => "timed-out",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Preempted => "preempted",
            Self::WorkerLost => "worker-lost",
            Self::Tail => "tail",
        }
    }
}

/// Answer to [`Host::begin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Nothing to load: prefill now.
    Prefill,
    /// Prefill now after the first so many blocks, which come layer by layer, until
    /// [`Worker::layers_landed`](super::Worker::layers_landed).
    Overlap(usize),
    /// Keep the memory and wait, in this phase, for [`Worker::loaded`](super::Worker::loaded).
    Wait(Phase),
}

/// The owner of a worker. Called from within the worker's steps; must not call back.
pub trait Host {
    /// `job` has its GPU memory; its first `matched` blocks are in it already, and blocks up to `limit` may be loaded.
    fn begin(&mut self, at: Tick, worker: u32, job: &Job, matched: usize, limit: usize) -> Begin {
        let _ = (at, worker, job, matched, limit);
        Begin::Prefill
    }

    /// Whether anybody had computed block `index` of `job` before, and why it must be prefilled again.
    fn recompute(&mut self, worker: u32, job: &Job, index: usize) -> Option<Reason> {
        let _ = (worker, job, index);
        None
    }

    /// The prefill of `job` begins with `cached` prompt tokens in GPU memory, `matched` blocks of them found there.
    /// Called once more after each preemption and each loss of its worker (`again`).
    fn prefill(&mut self, at: Tick, worker: u32, job: &Job, cached: u64, again: bool) {
        let _ = (at, worker, job, cached, again);
    }

    /// `tokens` were prefilled again for `reason`, in an iteration that ended at `at`.
    fn recomputed(&mut self, at: Tick, reason: Reason, tokens: u64) {
        let _ = (at, reason, tokens);
    }

    /// Block `index` of `job` is complete in `slot`. True keeps it pinned until
    /// [`Worker::unpin`](super::Worker::unpin).
    fn completed(&mut self, at: Tick, worker: u32, job: &Job, index: usize, slot: Slot) -> bool {
        let _ = (at, worker, job, index, slot);
        false
    }

    /// The prompt of `moved` is computed on a worker that does not decode; it stays in GPU memory there until
    /// [`Worker::handed_over`](super::Worker::handed_over).
    fn prefilled(&mut self, at: Tick, worker: u32, moved: Moved) {
        let _ = (at, worker, moved);
    }

    /// A job that [`Worker::expect`](super::Worker::expect) announced has its memory on `worker`: the KV cache of
    /// `tokens`, all but what is there already, can come.
    fn reserved(&mut self, at: Tick, worker: u32, job: &Job, tokens: u64) {
        let _ = (at, worker, job, tokens);
    }

    /// Output tokens made by an iteration that ended at `at`.
    fn tokens(&mut self, at: Tick, count: u64) {
        let _ = (at, count);
    }

    /// Gaps between tokens of the same job, each `gap_ns` long, that ended at `at`.
    fn gap(&mut self, at: Tick, gap_ns: u64, count: u64) {
        let _ = (at, gap_ns, count);
    }

    /// The first token of `job` came at `at`.
    fn first_token(&mut self, at: Tick, worker: u32, job: &Job, parts: &Parts);

    /// The last token of `job` came at `at`, the first one at `first`.
    fn finished(&mut self, at: Tick, worker: u32, job: &Job, first: Tick);

    /// `job` can never run: its KV cache is larger than the GPU memory left for it.
    fn refused(&mut self, at: Tick, worker: u32, job: &Job);
}

/// A job with its state on a worker.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) job: Job,
    pub(super) slots: Vec<Slot>,
    /// Tokens whose KV is in GPU memory.
    pub(super) computed: u64,
    /// Tokens to have before decode goes on: the prompt, and what had been produced before a preemption.
    pub(super) goal: u64,
    /// Output tokens made.
    pub(super) produced: u64,
    /// Tokens it prefills in the iteration in progress; zero in decode.
    pub(super) chunk: u64,
    /// Why each block from `reasons_from` on is prefilled again.
    pub(super) reasons: Vec<Option<Reason>>,
    pub(super) reasons_from: usize,
    /// Blocks it had when it lost its memory, and how it lost it.
    pub(super) had: usize,
    pub(super) lost: Reason,
    pub(super) preempted: bool,
    pub(super) first_token: Option<Tick>,
    pub(super) last_token: Tick,
    parts: Parts,
    phase: Phase,
    phase_since: Tick,
}

impl Sequence {
    pub(super) fn new(job: Job, ready: Tick) -> Self {
        let mut parts = Parts::default();
        parts.0[Phase::Prefill as usize] = ready.0.saturating_sub(job.arrived.0);
        Self {
            slots: Vec::new(),
            computed: 0,
            goal: job.prompt_tokens,
            produced: 0,
            chunk: 0,
            reasons: Vec::new(),
            reasons_from: 0,
            had: 0,
            lost: Reason::Preempted,
            preempted: false,
            first_token: None,
            last_token: Tick::ZERO,
            parts,
            phase: Phase::Queue,
            phase_since: ready.max(job.arrived),
            job,
        }
    }

    /// Enters `phase` at `at`; the time since the last change belongs to the phase left.
    pub(super) fn enter(&mut self, phase: Phase, at: Tick) {
        if self.first_token.is_none() {
            self.parts.0[self.phase as usize] += at.0.saturating_sub(self.phase_since.0);
        }
        self.phase = phase;
        self.phase_since = self.phase_since.max(at);
    }

    /// `ns` since the last change of phase were spent waiting for layers.
    pub(super) const fn waited_for_layers(&mut self, ns: u64) {
        if self.first_token.is_none() {
            self.parts.0[Phase::Load as usize] += ns;
            self.phase_since.0 += ns;
        }
    }

    /// Starts over: what it had is gone for `reason`. Tokens it has given out stay given out. Its slots are the
    /// caller's to give back.
    pub(super) fn start_over(&mut self, at: Tick, reason: Reason, block_tokens: u64) {
        self.had = self.had.max((self.computed / block_tokens) as usize);
        self.lost = reason;
        self.goal = self.job.prompt_tokens + self.produced;
        self.computed = 0;
        self.chunk = 0;
        self.preempted = true;
        self.enter(Phase::Queue, at);
    }

    pub(super) const fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(super) const fn decodes(&self) -> bool {
        self.computed >= self.goal
    }

    /// Blocks that may be found rather than computed: all full ones that leave at least one token to compute.
    pub(super) fn findable(&self, block_tokens: u64) -> usize {
        self.job.blocks.len().min(((self.goal - 1) / block_tokens) as usize)
    }

    /// Tokens of `from..to` that are prefilled again, by reason.
    pub(super) fn again(&self, from: u64, to: u64, block_tokens: u64, mut each: impl FnMut(Reason, u64)) {
        let mut at = from;
        while at < to {
            let block = (at / block_tokens) as usize;
            let end = to.min((block as u64 + 1) * block_tokens);
            let reason = block.checked_sub(self.reasons_from).and_then(|i| self.reasons.get(i).copied().flatten());
            if let Some(reason) = reason {
                each(reason, end - at);
            }
            at = end;
        }
    }
}
