//! One emulated worker: continuous batching with chunked prefill, iteration by iteration, on absolute deadlines.
//!
//! The worker has at most one *run* in progress: an iteration, or several equal decode iterations in which nothing can
//! change. What happens meanwhile (an arrival, a finished load) cuts the run at the end of the iteration in progress, so
//! coalescing never changes a result.

mod moves;
mod overlap;
#[cfg(test)]
mod overlap_tests;

use std::collections::VecDeque;
use std::sync::Arc;

pub use moves::{Lost, Moved};
pub use overlap::overlapped_end;

use crate::inference::ledger::Spent;
use crate::inference::sequence::Sequence;
use crate::inference::{Batch, Begin, BlockPool, Cell, CostModel, Host, Job, Ledger, Phase, Reason, Slot};
use crate::op::Tick;

/// Knobs of a worker, named as vLLM names them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Most tokens of one iteration, prefill and decode together.
    pub max_num_batched_tokens: u64,
    /// Most sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens of a KV block.
    pub block_tokens: u64,
    /// KV blocks in GPU memory.
    pub hbm_blocks: usize,
    /// GPU times are stretched by this.
    pub time_scale: f64,
}

/// Most iterations of one run.
const LONGEST_RUN: u64 = 4096;

/// Iterations in progress.
#[derive(Debug, Default)]
struct Run {
    /// The end of each; empty when the worker is idle.
    ends: Vec<u64>,
    /// What the first works on; each later one decodes one token more of context per sequence.
    batch: Batch,
    /// The same, prefill of new blocks only and of known blocks only.
    fresh: Batch,
    again: Batch,
}

/// An emulated worker.
#[derive(Debug)]
pub struct Worker {
    index: u32,
    cost: Arc<CostModel>,
    limits: Limits,
    pool: BlockPool,
    ledger: Ledger,
    /// Not yet given memory, in order of arrival; preempted ones in front.
    waiting: VecDeque<Sequence>,
    /// With memory, waiting for look-ups and loads.
    loading: Vec<Sequence>,
    /// Loaded, waiting for room in an iteration.
    loaded: VecDeque<Sequence>,
    running: Vec<Sequence>,
    run: Run,
    queued_tokens: u64,
    /// The latest moment it has heard of; its time never goes back.
    clock: Tick,
    /// Requests on their way here that wait for storage; see [`Worker::awaiting`].
    outside: u64,
    down: bool,
    /// What moves in and out; see [`Worker::expect`] and [`Worker::hand_over`].
    moves: moves::Moves,
    /// Prefixes that come layer by layer; see [`Worker::overlap`].
    overlaps: overlap::Overlaps,
    /// The pool's release count when the first waiting job did not fit.
    blocked: Option<u64>,
}

impl Worker {
    /// An idle worker at `at`.
    #[must_use]
    pub fn new(index: u32, cost: Arc<CostModel>, limits: Limits, at: Tick) -> Self {
        Self {
            index,
            cost,
            limits,
            pool: BlockPool::new(limits.hbm_blocks),
            ledger: Ledger::new(at),
            waiting: VecDeque::new(),
            loading: Vec::new(),
            loaded: VecDeque::new(),
            running: Vec::new(),
            run: Run::default(),
            queued_tokens: 0,
            clock: at,
            outside: 0,
            down: false,
            moves: moves::Moves::default(),
            overlaps: overlap::Overlaps::default(),
            blocked: None,
        }
    }

    /// When [`Worker::advance`] must be called next; `None` while there is nothing to compute.
    #[must_use]
    pub fn due(&self) -> Option<Tick> {
        self.run.ends.last().map(|&end| Tick(end))
    }

    /// Its books.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Its GPU memory.
    #[must_use]
    pub const fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Jobs it has not finished.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.waiting.len() + self.loading.len() + self.loaded.len() + self.running.len() + self.moves.incoming()
    }

    /// Prompt tokens of jobs that have not begun to compute: an upper bound of the prefill that waits.
    #[must_use]
    pub const fn queued_tokens(&self) -> u64 {
        self.queued_tokens
    }

    /// Events may come late and so out of order; what comes late happens now.
    fn hear(&mut self, at: Tick) -> Tick {
        self.clock = self.clock.max(at);
        self.clock
    }

    /// Counting starts at `at`.
    pub fn measure(&mut self, at: Tick) {
        let at = self.hear(at);
        self.settle(at);
        self.ledger.measure(at);
    }

    /// Counting ends at `at`.
    pub fn stop(&mut self, at: Tick) {
        let at = self.hear(at);
        self.settle(at);
        self.ledger.stop(at);
        self.close_open(at);
        self.book(at);
    }

    /// Finishes every iteration that ends by `now` and begins the next.
    pub fn advance(&mut self, now: Tick, host: &mut impl Host) {
        let now = self.hear(now);
        while let Some(end) = self.due().filter(|end| *end <= now) {
            self.finish_run(host);
            self.schedule(end, host);
        }
    }

    /// Takes a job whose host time is over at `ready`.
    pub fn enqueue(&mut self, now: Tick, ready: Tick, job: Job, host: &mut impl Host) {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        let most = job.prompt_tokens + job.output_tokens.max(1) - 1;
        if most.div_ceil(self.limits.block_tokens) > self.limits.hbm_blocks as u64 {
            host.refused(now, self.index, &job);
            return;
        }
        self.queued_tokens += job.prompt_tokens;
        self.waiting.push_back(Sequence::new(job, ready));
        self.wake_up(now, host);
    }

    /// The waiting job `id` goes from looking up to loading, or from loading to copying.
    pub fn phase(&mut self, now: Tick, id: u32, phase: Phase) {
        if let Some(sequence) = self.loading.iter_mut().find(|sequence| sequence.job.id == id) {
            sequence.enter(phase, now);
        }
    }

    /// The first `blocks` blocks of job `id` are in GPU memory: what it waited for came, or will not come.
    pub fn loaded(&mut self, now: Tick, id: u32, blocks: usize, host: &mut impl Host) {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        let Some(at) = self.loading.iter().position(|sequence| sequence.job.id == id) else { return };
        let mut sequence = self.loading.remove(at);
        sequence.enter(Phase::Queue, now);
        let held = (sequence.computed / self.limits.block_tokens) as usize;
        for index in held..blocks {
            self.pool.name(sequence.slots[index], sequence.job.blocks[index]);
        }
        sequence.computed = sequence.computed.max(blocks as u64 * self.limits.block_tokens);
        self.loaded.push_back(sequence);
        self.book_gauge(now);
        self.wake_up(now, host);
    }

    /// Pins a block in GPU memory, if it is there, until [`unpin`](Self::unpin).
    pub fn hold(&mut self, id: u64) -> Option<Slot> {
        self.pool.acquire(id)
    }

    /// A block kept by [`Host::completed`] has been copied.
    pub fn unpin(&mut self, now: Tick, slots: impl IntoIterator<Item = Slot>, host: &mut impl Host) {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        slots.into_iter().for_each(|slot| self.pool.release(slot));
        self.room_appeared(now, host);
    }

    fn room_appeared(&mut self, now: Tick, host: &mut impl Host) {
        if !self.waiting.is_empty() || self.moves.awaits_room() {
            self.wake_up(now, host);
        }
    }

    /// From `now` on, `requests` that are on their way here wait for storage elsewhere (a retrieval before its prompt):
    /// while there is nothing to compute, that is a storage stall.
    pub fn awaiting(&mut self, now: Tick, requests: u64, host: &mut impl Host) {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        self.outside = requests;
        self.book_gauge(now);
    }

    /// Something may be schedulable now: at once if idle, else at the end of the iteration in progress.
    fn wake_up(&mut self, now: Tick, host: &mut impl Host) {
        let ends = &mut self.run.ends;
        if self.overlaps.is_open() {
            return;
        }
        if ends.is_empty() {
            self.schedule(now, host);
        } else {
            let running = ends.partition_point(|&end| end <= now.0);
            ends.truncate(running + 1);
        }
    }

    /// Books idle time up to `now`; what an iteration takes is booked when it ends.
    fn settle(&mut self, now: Tick) {
        if self.run.ends.is_empty() && !self.overlaps.is_open() {
            self.ledger.idle(now, self.idle_cell());
        }
    }

    /// What a worker that computes nothing waits for. Waiting requests lack memory: if some of it is held for a
    /// transfer, they wait for that, else for blocks pinned until they are copied out.
    fn idle_cell(&self) -> Cell {
        let moving = self.moves.any();
        if self.down {
            Cell::Down
        } else if self.outside > 0
            || !(self.loading.is_empty() && self.loaded.is_empty() && (moving || self.waiting.is_empty()))
        {
            Cell::StorageStall
        } else if !self.waiting.is_empty() || self.moves.incoming() > 0 {
            Cell::TransferStall
        } else {
            Cell::NoWork
        }
    }

    fn book_gauge(&mut self, now: Tick) {
        // A request whose layers still come is loading, though its first chunk has begun.
        let (coming, computing) = self.overlaps.still_coming(&self.running);
        let loading = (self.loading.len() + coming) as u64 + self.outside;
        self.ledger.gauge(now, loading, (self.running.len() - computing) as u64);
    }

    /// Begins the next run at `now`, if there is anything to compute.
    fn schedule(&mut self, now: Tick, host: &mut impl Host) {
        if self.down {
            return;
        }
        self.admit_arrived();
        let preempted = self.grow_decodes(now);
        let decodes = self.running.iter().filter(|sequence| sequence.decodes()).count() as u64;
        let mut budget = self.limits.max_num_batched_tokens.saturating_sub(decodes);
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.decodes()) {
            sequence.chunk = budget.min(sequence.goal - sequence.computed);
            budget -= sequence.chunk;
        }
        if !preempted {
            self.admit(now, &mut budget, host);
            self.reserve_incoming(now, host);
        }
        self.start_run(now);
        self.book_gauge(now);
    }

    /// Gives every decoding sequence room for one token more, preempting the newest where there is none.
    fn grow_decodes(&mut self, now: Tick) -> bool {
        let mut preempted = false;
        let mut i = 0;
        while i < self.running.len() {
            let sequence = &mut self.running[i];
            if sequence.decodes() && sequence.computed >= sequence.slots.len() as u64 * self.limits.block_tokens {
                match self.pool.allocate() {
                    Some(slot) => sequence.slots.push(slot),
                    None => {
                        preempted = true;
                        self.preempt_newest(now);
                        continue;
                    }
                }
            }
            i += 1;
        }
        preempted
    }

    /// Preemption by recompute: the newest sequence gives its memory back and starts over, in front of the queue.
    fn preempt_newest(&mut self, now: Tick) {
        let Some(mut sequence) = self.running.pop() else { return };
        sequence.slots.drain(..).rev().for_each(|slot| self.pool.release(slot));
        sequence.start_over(now, Reason::Preempted, self.limits.block_tokens);
        self.queued_tokens += sequence.job.prompt_tokens;
        self.waiting.push_front(sequence);
        self.blocked = None;
    }

    fn admit(&mut self, now: Tick, budget: &mut u64, host: &mut impl Host) {
        while *budget > 0 && self.running.len() < self.limits.max_num_seqs {
            let Some(sequence) = self.loaded.pop_front() else { break };
            self.begin_prefill(now, sequence, budget, host);
        }
        // A job that has nothing to load needs room in this iteration; one that has begins to load without.
        while *budget > 0 && self.running.len() + self.loading.len() < self.limits.max_num_seqs {
            if self.blocked == Some(self.pool.releases()) || !self.reserve() {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            let matched = (sequence.computed / self.limits.block_tokens) as usize;
            let limit = sequence.findable(self.limits.block_tokens);
            match host.begin(now, self.index, &sequence.job, matched, limit) {
                Begin::Prefill => self.begin_prefill(now, sequence, budget, host),
                Begin::Overlap(blocks) => {
                    self.expect_layers(&mut sequence, blocks);
                    self.begin_prefill(now, sequence, budget, host);
                }
                Begin::Wait(phase) => {
                    sequence.enter(phase, now);
                    self.loading.push(sequence);
                }
            }
        }
    }

    /// Gives the first waiting job its GPU memory: blocks already there, and empty ones for the rest.
    fn reserve(&mut self) -> bool {
        let block_tokens = self.limits.block_tokens;
        let Some(sequence) = self.waiting.front_mut() else { return false };
        let limit = sequence.findable(block_tokens);
        let matched = self.pool.match_prefix(&sequence.job.blocks[..limit]);
        let found = &sequence.job.blocks[..matched];
        let more = sequence.goal.div_ceil(block_tokens) as usize - matched;
        if self.pool.available() < more + self.pool.unreferenced(found) {
            self.blocked = Some(self.pool.releases());
            return false;
        }
        self.blocked = None;
        for &id in found {
            sequence.slots.extend(self.pool.acquire(id));
        }
        for _ in 0..more {
            sequence.slots.extend(self.pool.allocate());
        }
        sequence.computed = matched as u64 * block_tokens;
        true
    }

    fn begin_prefill(&mut self, now: Tick, mut sequence: Sequence, budget: &mut u64, host: &mut impl Host) {
        self.queued_tokens -= sequence.job.prompt_tokens;
        sequence.enter(Phase::Prefill, now);
        if !self.overlaps.awaits(sequence.job.id) {
            host.prefill(now, self.index, &sequence.job, sequence.computed, sequence.preempted);
        }
        self.find_reasons(&mut sequence, host);
        sequence.chunk = (*budget).min(sequence.goal - sequence.computed);
        *budget -= sequence.chunk;
        self.running.push(sequence);
    }

    /// Why each block that is not there must be computed, where somebody had computed it before.
    fn find_reasons(&self, sequence: &mut Sequence, host: &mut impl Host) {
        let from = (sequence.computed / self.limits.block_tokens) as usize;
        // What the job itself had needs no identity: blocks of its answer count too.
        let known = sequence.job.blocks.len().max(sequence.had);
        let full = ((sequence.goal / self.limits.block_tokens) as usize).min(known);
        let whole = from == sequence.findable(self.limits.block_tokens);
        sequence.reasons_from = from;
        sequence.reasons.clear();
        for index in from..full {
            let reason = if index < sequence.had {
                Some(sequence.lost)
            } else if self.pool.contains(sequence.job.blocks[index]) {
                Some(if whole { Reason::Tail } else { Reason::Hole })
            } else {
                let reason = host.recompute(self.index, &sequence.job, index);
                reason.map(|reason| if whole { Reason::Tail } else { reason })
            };
            sequence.reasons.push(reason);
        }
    }

    /// Times the iterations that follow from what is running.
    fn start_run(&mut self, now: Tick) {
        let (model, block_tokens) = (&*self.cost, self.limits.block_tokens);
        let Run { ends, batch, fresh, again } = &mut self.run;
        ends.clear();
        (*batch, *fresh, *again) = Default::default();
        let mut iterations = LONGEST_RUN;
        for sequence in &self.running {
            if sequence.decodes() {
                batch.decode(model, sequence.computed + 1);
                let room = sequence.slots.len() as u64 * block_tokens - sequence.computed;
                iterations = iterations.min(room).min(sequence.job.output_tokens - sequence.produced);
            } else if sequence.chunk > 0 {
                let (from, to) = (sequence.computed, sequence.computed + sequence.chunk);
                let last = to == sequence.goal;
                batch.chunk(model, from, sequence.chunk, last);
                let mut known = 0;
                sequence.again(from, to, block_tokens, |_, tokens| known += tokens);
                if known > 0 {
                    again.chunk(model, from, known, last && known == sequence.chunk);
                }
                if known < sequence.chunk {
                    fresh.chunk(model, from + known, sequence.chunk - known, last);
                }
            }
        }
        if batch.sequences() == 0 {
            return;
        }
        if batch.prefill_tokens > 0 {
            iterations = 1;
            if self.start_overlapped(now) {
                return;
            }
        }
        let mut end = now.0;
        let mut shape = self.run.batch;
        for _ in 0..iterations.max(1) {
            end += self.duration_ns(&shape);
            self.run.ends.push(end);
            next_decode(&self.cost, &mut shape);
        }
    }

    /// Books the iterations of the run that end by `by` (all of them when the run is over).
    fn book(&mut self, by: Tick) {
        let cursor = self.ledger.cursor();
        let mut shape = self.run.batch;
        for i in 0..self.run.ends.len() {
            let end = Tick(self.run.ends[i]);
            if end > cursor {
                let spent = self.spent(&shape);
                // Cut by a stop inside an iteration: the part before it counts in proportion.
                self.ledger.iteration(end, &spent);
                if end >= by {
                    return;
                }
            }
            next_decode(&self.cost, &mut shape);
        }
    }

    fn spent(&self, shape: &Batch) -> Spent {
        let alone = if shape.prefill_tokens == 0 {
            [0.0, 0.0, 1.0]
        } else {
            let decode = Batch {
                decode_seqs: shape.decode_seqs,
                decode_context: shape.decode_context,
                window_context: shape.window_context,
                sampled_rows: shape.decode_seqs,
                ..Batch::default()
            };
            [&self.run.fresh, &self.run.again, &decode].map(|part| self.cost.iteration_ns(part))
        };
        Spent {
            alone,
            exposed_ns: self.overlaps.exposed_ns(),
            sequences: shape.sequences(),
            flops: self.cost.flops(shape),
            bytes: self.cost.bytes(shape),
        }
    }

    /// Books the run and gives its tokens out; the worker is between iterations afterwards.
    fn finish_run(&mut self, host: &mut impl Host) {
        let Some(end) = self.due() else { return };
        self.book(end);
        self.settle_layers(end, host);
        let ends = std::mem::take(&mut self.run.ends);
        let iterations = ends.len() as u64;
        let decodes = self.run.batch.decode_seqs;
        for pair in ends.windows(2) {
            host.gap(Tick(pair[1]), pair[1] - pair[0], decodes);
        }
        for &end in ends.iter().filter(|_| decodes > 0) {
            host.tokens(Tick(end), decodes);
        }
        let mut running = std::mem::take(&mut self.running);
        running.retain_mut(|sequence| {
            let first_end = Tick(ends[0]);
            if sequence.decodes() {
                host.gap(first_end, first_end.0 - sequence.last_token.0, 1);
                self.extend(end, sequence, iterations, host);
                sequence.produced += iterations;
                sequence.last_token = end;
            } else if sequence.chunk > 0 {
                let (from, to) = (sequence.computed, sequence.computed + sequence.chunk);
                sequence.again(from, to, self.limits.block_tokens, |reason, tokens| {
                    host.recomputed(end, reason, tokens);
                });
                self.extend(end, sequence, sequence.chunk, host);
                sequence.chunk = 0;
                if sequence.decodes() && !self.moves.leaves(sequence) {
                    self.emit_token(end, sequence, host);
                }
            }
            let done = sequence.produced >= sequence.job.output_tokens;
            if done {
                host.finished(end, self.index, &sequence.job, sequence.first_token.unwrap_or(end));
                sequence.slots.drain(..).rev().for_each(|slot| self.pool.release(slot));
            }
            !done
        });
        self.running = running;
        // The buffer is kept for the next run.
        self.run.ends = ends;
        self.run.ends.clear();
        self.hand_over(end, host);
    }

    /// A prompt is complete: one token comes of it.
    fn emit_token(&self, end: Tick, sequence: &mut Sequence, host: &mut impl Host) {
        host.tokens(end, 1);
        if sequence.first_token.is_none() {
            sequence.enter(Phase::Queue, end);
            sequence.first_token = Some(end);
            host.first_token(end, self.index, &sequence.job, sequence.parts());
        } else {
            host.gap(end, end.0 - sequence.last_token.0, 1);
        }
        sequence.produced += 1;
        sequence.last_token = end;
    }

    /// Adds computed tokens, and hands over the blocks they complete.
    fn extend(&mut self, end: Tick, sequence: &mut Sequence, tokens: u64, host: &mut impl Host) {
        let before = (sequence.computed / self.limits.block_tokens) as usize;
        sequence.computed += tokens;
        let after = (sequence.computed / self.limits.block_tokens) as usize;
        for index in before..after.min(sequence.job.blocks.len()) {
            let slot = sequence.slots[index];
            self.pool.name(slot, sequence.job.blocks[index]);
            if host.completed(end, self.index, &sequence.job, index, slot) {
                self.pool.retain(slot);
            }
        }
    }
}

#[cfg(test)]
impl Worker {
    /// Something happens that changes nothing.
    pub(super) fn poke_for_test(&mut self, now: Tick, host: &mut impl Host) {
        self.advance(now, host);
        self.settle(now);
        self.wake_up(now, host);
    }

    pub(super) fn settle_for_test(&mut self, now: Tick) {
        self.settle(now);
    }
}

/// The shape of the next decode iteration: one token of context more for each sequence. A window that is not full yet
/// grows likewise, and is taken as full from the run's first iteration on otherwise.
fn next_decode(model: &CostModel, shape: &mut Batch) {
    let sequences = shape.decode_seqs as f64;
    shape.decode_context += sequences;
    if model.window_layers > 0 {
        shape.window_context = (shape.window_context + sequences).min(sequences * model.window_tokens as f64);
    }
}
