//! What a client asks of the target: for each block its own sequence of operations, and one answer.
//!
//! Tiers say what they want of a block; the exchange turns it into the client's operations, one object per rank and one
//! step after the other, keeps each worker's limits on what is in flight, and tells when the block is settled.

use std::collections::VecDeque;

use gpufeed_profiles::{KeyForm, Store};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::kv::block_map::BlockMap;
use crate::kv::client::{RequestShape, Step};
use crate::kv::estimate::{Estimate, Prior, Queued};
use crate::machine::Submit;
use crate::op::{Key, Op, Outcome, Tick};
use crate::random::{mix, mix2};

pub(super) use crate::kv::client::Answer;

/// What is wanted of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Does the target hold block `index` of a job?
    LookUp { job: u32, index: u32 },
    /// Read it.
    Fetch { job: u32, index: u32 },
    /// Read it on no job's account, to write it elsewhere.
    Carry,
    /// Write a block.
    Store { id: u64 },
    /// Delete a block.
    Remove,
    /// Nothing any more: who asked is gone.
    Abandoned { writes: bool },
}

impl Asked {
    /// Whether it is done for a tier rather than for the worker.
    const fn outlives(self) -> bool {
        matches!(self, Self::Carry | Self::Remove)
    }

    const fn writes(self) -> bool {
        matches!(self, Self::Store { .. } | Self::Remove | Self::Abandoned { writes: true })
    }
}

/// How a client's blocks lie on the target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shape {
    /// First of the key spaces its objects lie in.
    pub(super) space: u16,
    /// Workers that share what lies there; zero for all of them. Objects of different places have different keys.
    pub(super) workers_of_place: u32,
    /// Objects of a block, one for each rank that has its own.
    pub(super) ranks: u16,
    /// Bytes of each.
    pub(super) object_bytes: u64,
    /// Operations in flight for each worker: questions and reads, writes.
    pub(super) read_limit: u32,
    pub(super) write_limit: u32,
}

/// A block that is being asked for.
#[derive(Debug, Clone, Copy)]
struct Block {
    worker: u32,
    asked: Asked,
    id: u64,
    /// Operations of the present step that have not ended.
    left: u16,
    /// What those that have ended make together.
    answer: Answer,
    /// Whether it counts in its worker's batch of reads.
    in_batch: bool,
    /// Which group of layers of it, if not all.
    part: Option<u16>,
}

/// How objects are read layer by layer: whole blocks lie there, one layer after the other, so that a group of layers is
/// a range of each object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layered {
    pub(super) layers: u32,
    pub(super) layers_per_read: u32,
}

impl Layered {
    /// Reads of an object.
    pub(super) const fn parts(&self) -> u16 {
        let parts = self.layers.div_ceil(self.layers_per_read);
        if parts < u16::MAX as u32 { parts as u16 } else { u16::MAX }
    }

    /// Offset and length of a part in an object of `bytes`.
    pub(super) fn range(&self, part: u16, bytes: u64) -> (u64, u64) {
        let until = |part: u32| {
            let layers = part.saturating_mul(self.layers_per_read).min(self.layers);
            (u128::from(bytes) * u128::from(layers) / u128::from(self.layers.max(1))) as u64
        };
        let (from, to) = (until(u32::from(part)), until(u32::from(part) + 1));
        (from, to - from)
    }
}

/// The next operation of an object, or of a block.
#[derive(Debug, Clone, Copy)]
struct Turn {
    block: u32,
    rank: u16,
    step: Step,
}

/// What one worker has in flight and waiting.
#[derive(Debug, Default)]
struct Queue {
    reads: VecDeque<Turn>,
    reads_in_flight: u32,
    /// Blocks begun in the present batch of reads, and those of them that have not ended.
    batch: (u32, u32),
    writes: VecDeque<Turn>,
    writes_in_flight: u32,
}

/// What an operation that came back means for its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Landed {
    pub(super) worker: u32,
    pub(super) asked: Asked,
    pub(super) id: u64,
    /// Whether it carried the block's own bytes, rather than a question or what is written beside them.
    pub(super) data: bool,
    /// The object's answer, if its sequence ended.
    pub(super) object: Option<Answer>,
    /// The block's answer, if its sequence ended.
    pub(super) block: Option<Answer>,
    /// Other blocks of the job that were to be asked for and now will not be: they have no answer.
    pub(super) unasked: u32,
    /// Which group of layers of the block this was, if blocks are read layer by layer.
    pub(super) part: Option<u16>,
}

/// Writes that turned out not to be needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Spared {
    /// Blocks that were there.
    pub(super) present: u64,
    /// Blocks that somebody else was writing.
    pub(super) locked: u64,
}

/// The conversation of all workers with one target.
#[derive(Debug)]
pub(super) struct Exchange {
    shape: Shape,
    queues: Vec<Queue>,
    blocks: Vec<Block>,
    free_blocks: Vec<u32>,
    in_flight: Vec<Option<Turn>>,
    free_tags: Vec<u32>,
    submits: Vec<Submit>,
    client: RequestShape,
    /// Blocks that a job's rank will ask for, each if the one before it was there.
    walks: FxHashMap<(u32, u16), VecDeque<u32>>,
    /// For each worker, objects of which a rank knows that they are there, by hash of both.
    known: Vec<FxHashSet<u64>>,
    /// Positions and parents of blocks, where keys have them.
    lineage: BlockMap<(u32, u64)>,
    /// Locks that a worker has left behind.
    left_locks: FxHashSet<(u32, u64)>,
    spared: Spared,
    /// How blocks of jobs are read, if not whole.
    layered: Option<Layered>,
    /// What reads of late show.
    estimate: Estimate,
}

impl Exchange {
    pub(super) fn new(shape: Shape, workers: u32) -> Self {
        Self {
            shape,
            queues: (0..workers).map(|_| Queue::default()).collect(),
            blocks: Vec::new(),
            free_blocks: Vec::new(),
            in_flight: Vec::new(),
            free_tags: Vec::new(),
            submits: Vec::new(),
            client: RequestShape::default(),
            walks: FxHashMap::default(),
            known: vec![FxHashSet::default(); workers as usize],
            lineage: BlockMap::default(),
            left_locks: FxHashSet::default(),
            spared: Spared::default(),
            layered: None,
            estimate: Estimate::new(Prior::default(), workers),
        }
    }

    /// The same, with jobs' blocks read layer by layer, and with this to expect before the first read.
    pub(super) fn reading(self, layered: Option<Layered>, prior: Prior) -> Self {
        Self { layered, estimate: Estimate::new(prior, self.queues.len() as u32), ..self }
    }

    /// What reads of late show.
    pub(super) const fn estimate(&self) -> &Estimate {
        &self.estimate
    }

    /// Starts to learn anew how fast reads are.
    pub(super) fn forget(&mut self) {
        self.estimate.forget();
    }

    /// Reads of each of a block's objects.
    pub(super) fn parts(&self) -> u16 {
        self.layered.map_or(1, |layered| layered.parts())
    }

    /// The same, in the way of a client.
    pub(super) fn speaking(self, client: RequestShape) -> Self {
        Self { client, ..self }
    }

    /// Tells which block of a prompt follows which, if keys say so.
    pub(super) fn learn(&mut self, ids: &[u64]) {
        if self.client.key == KeyForm::RankPositionHash {
            let parents = std::iter::once(0).chain(ids.iter().copied());
            for ((&id, parent), at) in ids.iter().zip(parents).zip(0..) {
                self.lineage.insert(id, (at, parent));
            }
        }
    }

    /// Whether a worker knows without asking that the target has a block.
    pub(super) fn knows(&self, worker: u32, id: u64) -> bool {
        self.client.sizes_cached
            && (0..self.shape.ranks).all(|rank| self.known[worker as usize].contains(&object(rank, id)))
    }

    /// Counts from zero again.
    pub(super) fn count_anew(&mut self) {
        self.spared = Spared::default();
    }

    /// Writes that turned out not to be needed.
    pub(super) const fn spared(&self) -> Spared {
        self.spared
    }

    pub(super) const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Queues a question for block `index` of a job: one for each rank that does not know.
    pub(super) fn look_up(&mut self, worker: u32, job: u32, index: u32, id: u64) {
        if !self.client.sizes_cached {
            self.ask(worker, Asked::LookUp { job, index }, id, Step::Head);
            return;
        }
        let known = &self.known[worker as usize];
        let ranks: Vec<u16> = (0..self.shape.ranks).filter(|&rank| !known.contains(&object(rank, id))).collect();
        debug_assert!(!ranks.is_empty(), "nothing to ask for");
        let block = self.enter(worker, Asked::LookUp { job, index }, id, ranks.len() as u16);
        for rank in ranks {
            if let Some(walk) = self.walks.get_mut(&(job, rank)) {
                walk.push_back(block);
            } else {
                self.walks.insert((job, rank), VecDeque::new());
                self.queues[worker as usize].reads.push_back(Turn { block, rank, step: Step::Head });
            }
        }
    }

    /// Queues the read of block `index` of a job.
    pub(super) fn fetch(&mut self, worker: u32, job: u32, index: u32, id: u64) {
        self.ask(worker, Asked::Fetch { job, index }, id, Step::Get);
    }

    /// Queues the reads of these blocks of a job, layer by layer: the first layers of all blocks before the next ones.
    pub(super) fn fetch_layers(&mut self, worker: u32, job: u32, blocks: &[(u32, u64)]) {
        let count = self.count(Step::Get);
        for part in 0..self.parts() {
            for &(index, id) in blocks {
                let block = self.enter(worker, Asked::Fetch { job, index }, id, count);
                self.blocks[block as usize].part = Some(part);
                let reads = &mut self.queues[worker as usize].reads;
                reads.extend((0..count).map(|rank| Turn { block, rank, step: Step::Get }));
            }
        }
    }

    /// A job waits no longer for what it asked for: reads that were not begun are not sent, and those in flight are
    /// nobody's.
    pub(super) fn give_up(&mut self, worker: u32, job: u32) {
        self.withdraw(worker, job, 0);
        for turn in self.in_flight.iter().flatten() {
            let block = &mut self.blocks[turn.block as usize];
            if block.worker == worker && matches!(block.asked, Asked::Fetch { job: of, .. } if of == job) {
                block.asked = Asked::Abandoned { writes: false };
            }
        }
    }

    /// What reading `blocks` blocks would add for a worker, and what is ahead of it.
    pub(super) fn queued(&self, worker: u32, blocks: usize) -> Queued {
        let parts = self.parts();
        Queued {
            objects: blocks * usize::from(self.shape.ranks) * usize::from(parts),
            waiting: self.reads_waiting(worker),
            in_flight: self.estimate.in_flight(worker),
            object_bytes: self.shape.object_bytes as f64 / f64::from(parts),
        }
    }

    /// How long those reads take, by what reads of late showed, in nanoseconds.
    pub(super) fn load_ns(&self, queued: &Queued) -> f64 {
        self.estimate.load_ns(queued, self.shape.read_limit)
    }

    /// Queues the write of a block.
    pub(super) fn store(&mut self, worker: u32, id: u64) {
        self.ask(worker, Asked::Store { id }, id, Step::of_store(self.client.store));
    }

    /// Queues the read of a block on no job's account.
    pub(super) fn carry(&mut self, worker: u32, id: u64) {
        self.ask(worker, Asked::Carry, id, Step::Get);
    }

    /// Queues the deletion of a block.
    pub(super) fn remove(&mut self, worker: u32, id: u64) {
        self.ask(worker, Asked::Remove, id, Step::of_remove(self.client.store));
    }

    fn ask(&mut self, worker: u32, asked: Asked, id: u64, step: Step) {
        let count = self.count(step);
        let block = self.enter(worker, asked, id, count);
        let queue = &mut self.queues[worker as usize];
        let queue = if asked.writes() { &mut queue.writes } else { &mut queue.reads };
        queue.extend((0..count).map(|rank| Turn { block, rank, step }));
    }

    /// Operations of a step.
    const fn count(&self, step: Step) -> u16 {
        if step.per_object() { self.shape.ranks } else { 1 }
    }

    fn enter(&mut self, worker: u32, asked: Asked, id: u64, left: u16) -> u32 {
        let block = Block { worker, asked, id, left, answer: Answer::Present, in_batch: false, part: None };
        if let Some(index) = self.free_blocks.pop() {
            self.blocks[index as usize] = block;
            return index;
        }
        self.blocks.push(block);
        (self.blocks.len() - 1) as u32
    }

    /// Sends what may be sent: at most so many reads and writes in flight for each worker.
    pub(super) fn pump(&mut self, now: Tick, worker: u32) {
        loop {
            let may_read = self.may_read(worker);
            let queue = &mut self.queues[worker as usize];
            let turn = if may_read {
                queue.reads_in_flight += 1;
                queue.reads.pop_front()
            } else if queue.writes_in_flight < self.shape.write_limit && !queue.writes.is_empty() {
                queue.writes_in_flight += 1;
                queue.writes.pop_front()
            } else {
                None
            };
            let Some(turn) = turn else { return };
            if self.opens_batch(turn) {
                let (begun, open) = &mut self.queues[worker as usize].batch;
                (*begun, *open) = (*begun + 1, *open + 1);
                self.blocks[turn.block as usize].in_batch = true;
            }
            let op = self.op(turn);
            let tag = self.free_tags.pop().unwrap_or_else(|| {
                self.in_flight.push(None);
                (self.in_flight.len() - 1) as u32
            });
            self.in_flight[tag as usize] = Some(turn);
            if turn.step == Step::Get {
                self.estimate.sent(tag, worker);
            }
            self.submits.push(Submit { tag: u64::from(tag), worker, intended: now, op });
        }
    }

    /// Whether the first read that waits may be sent: there is room in flight and, if it is the first of a block, in
    /// the batch.
    fn may_read(&mut self, worker: u32) -> bool {
        let queue = &mut self.queues[worker as usize];
        let Some(&turn) = queue.reads.front().filter(|_| queue.reads_in_flight < self.shape.read_limit) else {
            return false;
        };
        if queue.batch.1 == 0 {
            queue.batch.0 = 0;
        }
        let begun = queue.batch.0;
        !self.opens_batch(turn) || self.client.batch_blocks.is_none_or(|most| begun < most)
    }

    /// Whether a turn is the first of a block that counts in batches.
    fn opens_batch(&self, turn: Turn) -> bool {
        let first = turn.rank == 0 && self.blocks[turn.block as usize].part.is_none_or(|part| part == 0);
        turn.step == Step::Get && first && self.client.batch_blocks.is_some()
    }

    fn op(&self, turn: Turn) -> Op {
        // Traces number their blocks; real keys are hashes.
        let block = &self.blocks[turn.block as usize];
        let place = block.worker.checked_div(self.shape.workers_of_place).unwrap_or(0);
        let hash = |id| if place == 0 { mix(id) } else { mix2(id, u64::from(place)) };
        let (position, parent) = self.lineage.get(&block.id).copied().unwrap_or_default();
        let parent = if position > 0 { hash(parent) } else { 0 };
        let key = Key { space: 0, rank: turn.rank, id: hash(block.id), position, parent };
        let op = turn.step.op(self.shape.space, key, self.shape.object_bytes, &self.client);
        match (block.part, self.layered) {
            (Some(part), Some(layered)) => {
                let (offset, bytes) = layered.range(part, self.shape.object_bytes);
                Op::get_range(op.key, offset, bytes)
            }
            _ => op,
        }
    }

    /// The operations to submit.
    pub(super) fn submits(&mut self) -> impl Iterator<Item = Submit> {
        self.submits.drain(..)
    }

    /// Takes an operation out of flight.
    pub(super) fn landed(&mut self, tag: u64, outcome: &Outcome) -> Option<Landed> {
        let turn = self.in_flight.get_mut(usize::try_from(tag).ok()?)?.take()?;
        self.free_tags.push(tag as u32);
        let Block { worker, asked, id, part, .. } = self.blocks[turn.block as usize];
        let queue = &mut self.queues[worker as usize];
        if asked.writes() {
            queue.writes_in_flight -= 1;
        } else {
            queue.reads_in_flight -= 1;
        }
        if turn.step == Step::Get {
            let more = !queue.reads.is_empty();
            self.estimate.landed(tag as u32, worker, outcome, more);
        }
        let answer = turn.step.answer(outcome.result, self.client.store);
        let learned = matches!(turn.step, Step::Head | Step::Put) && !matches!(asked, Asked::Abandoned { .. });
        if self.client.sizes_cached && answer.is_there() && learned {
            self.known[worker as usize].insert(object(turn.rank, id));
        }
        let mut unasked = 0;
        if let (Asked::LookUp { job, .. }, true) = (asked, self.client.sizes_cached) {
            unasked = self.walk(worker, job, turn.rank, answer);
        }
        let block = self.settle(turn.block, answer, Some(turn.step));
        let object = if asked.writes() { block } else { Some(answer) };
        Some(Landed { worker, asked, id, data: turn.step.data(), object, block, unasked, part })
    }

    /// A rank's question was answered: it goes on to the next block, or no further. Returns how many blocks will
    /// therefore have no answer.
    fn walk(&mut self, worker: u32, job: u32, rank: u16, answer: Answer) -> u32 {
        let Some(mut walk) = self.walks.remove(&(job, rank)) else { return 0 };
        if !answer.is_there() {
            return walk.iter().map(|&block| u32::from(self.settle(block, Answer::Withdrawn, None).is_some())).sum();
        }
        if let Some(block) = walk.pop_front() {
            self.queues[worker as usize].reads.push_front(Turn { block, rank, step: Step::Head });
            self.walks.insert((job, rank), walk);
        }
        0
    }

    /// An operation of a block has come to its end, or will not be sent. If it was the last of its step, the next step
    /// is queued before everything else, or the block's answer is returned. `step` is none for what was never begun.
    fn settle(&mut self, index: u32, answer: Answer, step: Option<Step>) -> Option<Answer> {
        let entry = &mut self.blocks[index as usize];
        entry.left -= 1;
        entry.answer = entry.answer.and(answer);
        if entry.left > 0 {
            return None;
        }
        let Block { worker, asked, id, answer, in_batch, .. } = *entry;
        let ours = self.left_locks.contains(&(worker, id));
        let abandoned = matches!(asked, Asked::Abandoned { .. });
        let next = step.filter(|_| !abandoned).and_then(|step| step.next(answer, self.client.store, ours));
        if let Some(next) = next {
            let count = self.count(next);
            let entry = &mut self.blocks[index as usize];
            (entry.left, entry.answer) = (count, Answer::Present);
            let queue = &mut self.queues[worker as usize].writes;
            (0..count).rev().for_each(|rank| queue.push_front(Turn { block: index, rank, step: next }));
            return None;
        }
        self.free_blocks.push(index);
        if let Asked::Store { .. } = asked {
            self.spared.present += u64::from(answer == Answer::Present);
            self.spared.locked += u64::from(answer == Answer::Locked);
            if self.client.store == Store::LockMeta {
                // The real client releases a lock after a write that went well only; others wait for it to expire.
                match step {
                    Some(Step::Put) => _ = self.left_locks.insert((worker, id)),
                    Some(Step::Unlock) => _ = self.left_locks.remove(&(worker, id)),
                    _ => {}
                }
            }
        }
        if in_batch {
            self.queues[worker as usize].batch.1 -= 1;
        }
        Some(answer)
    }

    /// Takes back reads of a job from block `first` on that were not begun. Returns how many blocks will therefore have
    /// no answer.
    pub(super) fn withdraw(&mut self, worker: u32, job: u32, first: u32) -> u32 {
        let mut reads = std::mem::take(&mut self.queues[worker as usize].reads);
        let mut silent = 0;
        reads.retain(|turn| {
            let asked = self.blocks[turn.block as usize].asked;
            let useless = matches!(asked, Asked::Fetch { job: of, index } if of == job && index >= first);
            if useless && self.settle(turn.block, Answer::Withdrawn, None).is_some() {
                silent += 1;
            }
            !useless
        });
        self.queues[worker as usize].reads = reads;
        silent
    }

    /// Gives up the writes that were not begun: how many blocks do not become whole, and which of which workers have no
    /// operation in flight and so will have no answer.
    pub(super) fn drop_stores(&mut self) -> (u64, Vec<(u32, u64)>) {
        let (mut broken, mut silent) = (0, Vec::new());
        for index in 0..self.queues.len() {
            for turn in std::mem::take(&mut self.queues[index].writes) {
                let Block { worker, answer, id, asked, .. } = self.blocks[turn.block as usize];
                if asked == Asked::Remove || !turn.step.first(self.client.store) {
                    self.queues[index].writes.push_back(turn);
                    continue;
                }
                broken += u64::from(answer.is_there());
                if self.settle(turn.block, Answer::Withdrawn, None).is_some() {
                    silent.push((worker, id));
                }
            }
        }
        (broken, silent)
    }

    /// A worker is gone. What it had not begun is not done, the tiers' own business apart; what is in flight
    /// lands for nobody. Who takes its place knows of no object, and finds its locks another's.
    /// Returns the blocks it was writing.
    pub(super) fn abandon(&mut self, worker: u32) -> Vec<u64> {
        let mut stores = Vec::new();
        self.known[worker as usize] = FxHashSet::default();
        self.left_locks.retain(|&(owner, _)| owner != worker);
        let queue = &mut self.queues[worker as usize];
        let (reads, writes) = (std::mem::take(&mut queue.reads), std::mem::take(&mut queue.writes));
        let mut forsake = |block: &mut Block| {
            if let Asked::Store { id } = block.asked {
                stores.push(id);
            }
            block.asked = Asked::Abandoned { writes: block.asked.writes() };
        };
        let mut walked = Vec::new();
        self.walks.retain(|_, walk| {
            let theirs = walk.front().is_none_or(|&block| self.blocks[block as usize].worker == worker);
            if theirs {
                walked.extend(walk.drain(..));
            }
            !theirs
        });
        for &block in &walked {
            forsake(&mut self.blocks[block as usize]);
        }
        for turn in self.in_flight.iter().flatten() {
            let block = &mut self.blocks[turn.block as usize];
            if block.worker == worker && !block.asked.outlives() {
                forsake(block);
            }
        }
        let mut kept = [VecDeque::new(), VecDeque::new()];
        for turn in reads.into_iter().chain(writes) {
            let block = &mut self.blocks[turn.block as usize];
            if block.asked.outlives() {
                kept[usize::from(block.asked.writes())].push_back(turn);
                continue;
            }
            forsake(block);
            self.settle(turn.block, Answer::Withdrawn, None);
        }
        let queue = &mut self.queues[worker as usize];
        [queue.reads, queue.writes] = kept;
        for block in walked {
            self.settle(block, Answer::Withdrawn, None);
        }
        stores
    }

    /// Questions and reads of a worker that wait to be sent.
    pub(super) fn reads_waiting(&self, worker: u32) -> usize {
        self.queues[worker as usize].reads.len()
    }

    /// Objects that a worker waits to write.
    pub(super) fn writes_waiting(&self, worker: u32) -> usize {
        // A block that begins with a question of its own has one turn for all of its objects.
        let each = if self.client.store == Store::LockMeta { usize::from(self.shape.ranks) } else { 1 };
        self.queues[worker as usize].writes.len() * each
    }

    /// Whether no operation is in flight.
    pub(super) fn none_in_flight(&self) -> bool {
        self.in_flight.len() == self.free_tags.len()
    }

    /// Whether nothing is in flight or waits to be.
    pub(super) fn quiet(&self) -> bool {
        self.none_in_flight() && self.queues.iter().all(|queue| queue.reads.is_empty() && queue.writes.is_empty())
    }
}

/// One word for a rank's object of a block.
const fn object(rank: u16, id: u64) -> u64 {
    mix2(id, rank as u64)
}
