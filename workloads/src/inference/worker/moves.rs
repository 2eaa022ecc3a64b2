//! Requests that move between workers: away from one that died, or from the pool that prefills to the pool that decodes.

use std::collections::VecDeque;

use crate::inference::ledger::Spent;
use crate::inference::sequence::Sequence;
use crate::inference::worker::{Worker, next_decode, overlap};
use crate::inference::{BlockPool, Cell, Host, Job, Ledger, Phase, Reason, Slot};
use crate::op::Tick;

/// A request on its way from one worker to another, with the tokens it has given out.
#[derive(Debug)]
pub struct Moved {
    sequence: Sequence,
    /// Tokens whose KV cache was lost with the worker it left.
    lost_tokens: u64,
}

impl Moved {
    /// What it asks for.
    #[must_use]
    pub const fn job(&self) -> &Job {
        &self.sequence.job
    }

    /// Tokens whose KV cache was lost with the worker it left; zero if it had not begun to compute.
    #[must_use]
    pub const fn lost_tokens(&self) -> u64 {
        self.lost_tokens
    }

    /// Prompt tokens and tokens given out: what must be in GPU memory before it goes on.
    #[must_use]
    pub const fn tokens(&self) -> u64 {
        self.sequence.job.prompt_tokens + self.sequence.produced
    }

    /// The KV cache it was to come with is lost at `at`, before it came.
    pub fn lose(&mut self, at: Tick, block_tokens: u64) {
        self.lost_tokens = self.sequence.computed.max(self.lost_tokens);
        self.sequence.start_over(at, Reason::WorkerLost, block_tokens);
    }

    /// At `at`, somebody begins to make it ready for another worker: its own host time, as at its arrival.
    pub fn prepare(&mut self, at: Tick) {
        self.sequence.enter(Phase::Prefill, at);
    }
}

/// What a worker that died leaves behind.
#[derive(Debug, Default)]
pub struct Lost {
    /// Requests it had, oldest first; their KV cache is gone.
    pub requests: Vec<Moved>,
    /// Requests whose KV cache is still on the worker that prefilled them.
    pub incoming: Vec<Moved>,
    /// Numbers of jobs on their way to other workers, whose KV cache is gone before it got there.
    pub outgoing: Vec<u32>,
}

/// What moves in and out of a worker.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Whether it computes prompts for another worker to decode.
    prefill_only: bool,
    /// Computed here, kept until it is elsewhere.
    outgoing: Vec<(u32, Vec<Slot>)>,
    /// Computed elsewhere, waiting for memory.
    expected: VecDeque<Sequence>,
    /// With memory, its KV cache under way.
    in_transit: Vec<Sequence>,
    /// There, waiting for room in an iteration.
    arrived: VecDeque<Sequence>,
    /// The pool's release count when the first expected job did not fit.
    blocked: Option<u64>,
}

impl Moves {
    pub(super) fn any(&self) -> bool {
        self.incoming() > 0 || !self.outgoing.is_empty()
    }

    pub(super) fn incoming(&self) -> usize {
        self.expected.len() + self.in_transit.len() + self.arrived.len()
    }

    pub(super) fn awaits_room(&self) -> bool {
        !self.expected.is_empty()
    }

    /// Whether a job with its prompt computed is decoded elsewhere; not if the prompt's own token is all there is.
    pub(super) const fn leaves(&self, sequence: &Sequence) -> bool {
        self.prefill_only && sequence.produced + 1 < sequence.job.output_tokens
    }
}

impl Worker {
    /// Makes it compute prompts for other workers to decode: [`Host::prefilled`] is told of each.
    #[must_use]
    pub fn prefill_only(mut self) -> Self {
        self.moves.prefill_only = true;
        self
    }

    /// Whether it is down.
    #[must_use]
    pub const fn is_down(&self) -> bool {
        self.down
    }

    /// Tokens of jobs computed elsewhere that wait for memory here.
    #[must_use]
    pub fn expected_tokens(&self) -> u64 {
        self.moves.expected.iter().map(|sequence| sequence.goal).sum()
    }

    /// Its books up to `end`, for a run that is over.
    #[must_use]
    pub fn closed_ledger(&self, end: Tick) -> Ledger {
        let mut ledger = self.ledger.clone();
        if self.run.ends.is_empty() && self.down {
            ledger.idle(end, Cell::Down);
        }
        ledger
    }

    /// It dies at `now`: what it computed up to then counts, the iteration in progress and all memory are lost.
    pub fn kill(&mut self, now: Tick, host: &mut impl Host) -> Lost {
        let now = self.hear(now);
        self.advance(now, host);
        // Layers that have not come by now never will.
        self.close_open(now);
        self.break_off(now, host);
        self.settle(now);
        self.down = true;
        let block_tokens = self.limits.block_tokens;
        let mut lost = Lost::default();
        let begun = self.running.drain(..).chain(self.moves.arrived.drain(..));
        for mut sequence in begun {
            if self.overlaps.awaits(sequence.job.id) {
                // Its first chunk had not ended, so that nothing is known of what it found.
                (sequence.computed, sequence.chunk) = (0, 0);
                sequence.enter(Phase::Queue, now);
                lost.requests.push(Moved { sequence, lost_tokens: 0 });
                continue;
            }
            let lost_tokens = sequence.computed;
            sequence.start_over(now, Reason::WorkerLost, block_tokens);
            lost.requests.push(Moved { sequence, lost_tokens });
        }
        for mut sequence in self.loaded.drain(..).chain(self.loading.drain(..)).chain(self.waiting.drain(..)) {
            sequence.computed = 0;
            sequence.enter(Phase::Queue, now);
            lost.requests.push(Moved { sequence, lost_tokens: 0 });
        }
        lost.incoming.extend(self.moves.in_transit.drain(..).chain(self.moves.expected.drain(..)).map(taken_back));
        lost.outgoing.extend(self.moves.outgoing.drain(..).map(|(id, _)| id));
        for moved in &mut lost.requests {
            moved.sequence.slots.clear();
        }
        self.pool = BlockPool::new(self.limits.hbm_blocks);
        self.overlaps = overlap::Overlaps::default();
        (self.queued_tokens, self.outside) = (0, 0);
        (self.blocked, self.moves.blocked) = (None, None);
        self.book_gauge(now);
        lost
    }

    /// It is back at `now`, with empty memory.
    pub fn restart(&mut self, now: Tick) {
        let now = self.hear(now);
        self.settle(now);
        self.down = false;
    }

    /// Ends the run in progress at `now`: iterations that ended by then count in full, the time of the one that had
    /// begun counts as the work it was, and what it computed is lost.
    fn break_off(&mut self, now: Tick, host: &mut impl Host) {
        self.close_open(now);
        let ended = self.run.ends.partition_point(|&end| end <= now.0);
        let Some(&end) = self.run.ends.get(ended) else { return };
        let mut shape = self.run.batch;
        for _ in 0..ended {
            next_decode(&self.cost, &mut shape);
        }
        let spent = self.spent(&shape);
        self.run.ends.truncate(ended);
        self.finish_run(host);
        let start = self.ledger.cursor().0;
        let share = now.0.saturating_sub(start) as f64 / end.saturating_sub(start).max(1) as f64;
        let part = Spent {
            exposed_ns: (spent.exposed_ns as f64 * share).round() as u64,
            flops: spent.flops * share,
            bytes: spent.bytes * share,
            ..spent
        };
        self.ledger.iteration(now, &part);
    }

    /// Takes a request that began on another worker.
    pub fn resume(&mut self, now: Tick, moved: Moved, host: &mut impl Host) {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        let mut sequence = moved.sequence;
        sequence.enter(Phase::Queue, now);
        self.queued_tokens += sequence.job.prompt_tokens;
        self.waiting.push_back(sequence);
        self.wake_up(now, host);
    }

    /// Jobs whose prompts are complete leave for another worker; their memory stays until
    /// [`Worker::handed_over`].
    pub(super) fn hand_over(&mut self, end: Tick, host: &mut impl Host) {
        if !self.moves.prefill_only {
            return;
        }
        let moves = &mut self.moves;
        for mut sequence in self.running.extract_if(.., |sequence| sequence.decodes()) {
            moves.outgoing.push((sequence.job.id, std::mem::take(&mut sequence.slots)));
            sequence.enter(Phase::Queue, end);
            host.prefilled(end, self.index, Moved { sequence, lost_tokens: 0 });
        }
    }

    /// The KV cache of job `id` is where it is decoded, or will not go there.
    pub fn handed_over(&mut self, now: Tick, id: u32, host: &mut impl Host) {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        let Some(at) = self.moves.outgoing.iter().position(|(job, _)| *job == id) else { return };
        let (_, slots) = self.moves.outgoing.remove(at);
        // Tails go first when room is needed, so they are given back first.
        slots.into_iter().rev().for_each(|slot| self.pool.release(slot));
        self.room_appeared(now, host);
    }

    /// A request computed elsewhere is to be decoded here: it waits for memory, then for its KV cache.
    pub fn expect(&mut self, now: Tick, moved: Moved, host: &mut impl Host) {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        self.moves.expected.push_back(moved.sequence);
        self.wake_up(now, host);
    }

    /// Takes back what [`Worker::expect`] announced, before it came.
    pub fn forget(&mut self, now: Tick, id: u32, host: &mut impl Host) -> Option<Moved> {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        let is = |sequence: &Sequence| sequence.job.id == id;
        let expected = self.moves.expected.iter().position(is).and_then(|at| self.moves.expected.remove(at));
        let in_transit = || self.moves.in_transit.iter().position(is).map(|at| self.moves.in_transit.remove(at));
        let mut sequence = expected.or_else(in_transit)?;
        sequence.slots.drain(..).rev().for_each(|slot| self.pool.release(slot));
        self.room_appeared(now, host);
        Some(taken_back(sequence))
    }

    /// Gives expected jobs their memory, in order; local work that waits for memory goes first.
    pub(super) fn reserve_incoming(&mut self, now: Tick, host: &mut impl Host) {
        let block_tokens = self.limits.block_tokens;
        while let Some(sequence) = self.moves.expected.front() {
            if !self.waiting.is_empty() || self.moves.blocked == Some(self.pool.releases()) {
                return;
            }
            let full = sequence.job.blocks.len().min((sequence.goal / block_tokens) as usize);
            let matched = self.pool.match_prefix(&sequence.job.blocks[..full]);
            let found = &sequence.job.blocks[..matched];
            let more = sequence.goal.div_ceil(block_tokens) as usize - matched;
            if self.pool.available() < more + self.pool.unreferenced(found) {
                self.moves.blocked = Some(self.pool.releases());
                return;
            }
            self.moves.blocked = None;
            let Some(mut sequence) = self.moves.expected.pop_front() else { return };
            for index in 0..matched {
                sequence.slots.extend(self.pool.acquire(sequence.job.blocks[index]));
            }
            for _ in 0..more {
                sequence.slots.extend(self.pool.allocate());
            }
            sequence.enter(Phase::Transfer, now);
            host.reserved(now, self.index, &sequence.job, sequence.goal - matched as u64 * block_tokens);
            self.moves.in_transit.push(sequence);
        }
    }

    /// The KV cache of job `id` is here, and with it the token its prefill made.
    pub fn arrived(&mut self, now: Tick, id: u32, host: &mut impl Host) {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        let Some(at) = self.moves.in_transit.iter().position(|sequence| sequence.job.id == id) else { return };
        let mut sequence = self.moves.in_transit.remove(at);
        let full = sequence.job.blocks.len().min((sequence.goal / self.limits.block_tokens) as usize);
        for index in 0..full {
            self.pool.name(sequence.slots[index], sequence.job.blocks[index]);
        }
        self.emit_token(now, &mut sequence, host);
        self.moves.arrived.push_back(sequence);
        self.wake_up(now, host);
    }

    /// Lets what has arrived decode, as far as the number of sequences allows.
    pub(super) fn admit_arrived(&mut self) {
        while self.running.len() < self.limits.max_num_seqs {
            let Some(sequence) = self.moves.arrived.pop_front() else { return };
            self.running.push(sequence);
        }
    }
}

/// A request that keeps its computed tokens, on the worker it came from, but not the memory it was given.
fn taken_back(mut sequence: Sequence) -> Moved {
    sequence.slots.clear();
    Moved { sequence, lost_tokens: 0 }
}
