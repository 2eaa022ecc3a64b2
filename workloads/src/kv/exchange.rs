//! What a client asks of the target: for each block its own sequence of operations, and one answer.
//!
//! Tiers say what they want of a block; the exchange turns it into the client's operations, one object per rank and one
//! step after the other, keeps each worker's limits on what is in flight, and tells when the block is settled.

use std::collections::VecDeque;

use crate::machine::Submit;
use crate::op::{ErrorKind, Key, Op, Outcome, Tick};
use crate::random::{mix, mix2};

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
    const fn writes(self) -> bool {
        matches!(self, Self::Store { .. } | Self::Remove | Self::Abandoned { writes: true })
    }
}

/// How it went, of an object or of a whole block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Found, read or written.
    Good,
    /// Given up before it was begun.
    Withdrawn,
    /// Not there, or it did not work.
    Failed(ErrorKind),
}

impl Answer {
    /// What two objects of one block make together: the worse of both, the first if they are alike.
    fn and(self, other: Self) -> Self {
        let rank = |answer: &Self| match answer {
            Self::Good => 0,
            Self::Withdrawn => 1,
            Self::Failed(_) => 2,
        };
        if rank(&other) > rank(&self) { other } else { self }
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

/// One step of an object's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Head,
    Get,
    Put,
    Delete,
}

/// A block that is being asked for.
#[derive(Debug, Clone, Copy)]
struct Block {
    worker: u32,
    asked: Asked,
    id: u64,
    /// Objects whose sequence has not ended.
    left: u16,
    answer: Answer,
}

/// The next operation of an object.
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
    /// The block's answer, if that was the last of its objects.
    pub(super) block: Option<Answer>,
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
        }
    }

    pub(super) const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Queues a question for block `index` of a job.
    pub(super) fn look_up(&mut self, worker: u32, job: u32, index: u32, id: u64) {
        self.ask(worker, Asked::LookUp { job, index }, id, Step::Head);
    }

    /// Queues the read of block `index` of a job.
    pub(super) fn fetch(&mut self, worker: u32, job: u32, index: u32, id: u64) {
        self.ask(worker, Asked::Fetch { job, index }, id, Step::Get);
    }

    /// Queues the write of a block.
    pub(super) fn store(&mut self, worker: u32, id: u64) {
        self.ask(worker, Asked::Store { id }, id, Step::Put);
    }

    /// Queues the read of a block on no job's account.
    pub(super) fn carry(&mut self, worker: u32, id: u64) {
        self.ask(worker, Asked::Carry, id, Step::Get);
    }

    /// Queues the deletion of a block.
    pub(super) fn remove(&mut self, worker: u32, id: u64) {
        self.ask(worker, Asked::Remove, id, Step::Delete);
    }

    fn ask(&mut self, worker: u32, asked: Asked, id: u64, step: Step) {
        let block = Block { worker, asked, id, left: self.shape.ranks, answer: Answer::Good };
        let index = if let Some(index) = self.free_blocks.pop() {
            self.blocks[index as usize] = block;
            index
        } else {
            self.blocks.push(block);
            (self.blocks.len() - 1) as u32
        };
        let queue = &mut self.queues[worker as usize];
        let queue = if asked.writes() { &mut queue.writes } else { &mut queue.reads };
        queue.extend((0..self.shape.ranks).map(|rank| Turn { block: index, rank, step }));
    }

    /// Sends what may be sent: at most so many reads and writes in flight for each worker.
    pub(super) fn pump(&mut self, now: Tick, worker: u32) {
        loop {
            let queue = &mut self.queues[worker as usize];
            let turn = if queue.reads_in_flight < self.shape.read_limit && !queue.reads.is_empty() {
                queue.reads_in_flight += 1;
                queue.reads.pop_front()
            } else if queue.writes_in_flight < self.shape.write_limit && !queue.writes.is_empty() {
                queue.writes_in_flight += 1;
                queue.writes.pop_front()
            } else {
                None
            };
            let Some(turn) = turn else { return };
            let op = self.op(turn);
            let tag = self.free_tags.pop().unwrap_or_else(|| {
                self.in_flight.push(None);
                (self.in_flight.len() - 1) as u32
            });
            self.in_flight[tag as usize] = Some(turn);
            self.submits.push(Submit { tag: u64::from(tag), worker, intended: now, op });
        }
    }

    fn op(&self, turn: Turn) -> Op {
        // Traces number their blocks; real keys are hashes.
        let block = &self.blocks[turn.block as usize];
        let place = block.worker.checked_div(self.shape.workers_of_place).unwrap_or(0);
        let id = if place == 0 { mix(block.id) } else { mix2(block.id, u64::from(place)) };
        let key = Key { space: self.shape.space, rank: turn.rank, id, ..Key::ZERO };
        match turn.step {
            Step::Head => Op::stat(key),
            Step::Get => Op::get(key, self.shape.object_bytes),
            Step::Put => Op::put(key, self.shape.object_bytes),
            Step::Delete => Op::delete(key),
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
        let Block { worker, asked, id, .. } = self.blocks[turn.block as usize];
        let queue = &mut self.queues[worker as usize];
        if asked.writes() {
            queue.writes_in_flight -= 1;
        } else {
            queue.reads_in_flight -= 1;
        }
        let object = match outcome.result {
            Ok(()) => Answer::Good,
            Err(kind) => Answer::Failed(kind),
        };
        let block = self.settle(turn.block, object);
        Some(Landed {
            worker,
            asked,
            id,
            data: matches!(turn.step, Step::Get | Step::Put),
            object: Some(object),
            block,
        })
    }

    /// One object of a block has come to its end. Returns the block's answer if that was the last.
    fn settle(&mut self, block: u32, object: Answer) -> Option<Answer> {
        let entry = &mut self.blocks[block as usize];
        entry.left -= 1;
        entry.answer = entry.answer.and(object);
        let answer = entry.answer;
        (entry.left == 0).then(|| {
            self.free_blocks.push(block);
            answer
        })
    }

    /// Takes back reads of a job from block `first` on that were not begun. Returns how many blocks will therefore have
    /// no answer.
    pub(super) fn withdraw(&mut self, worker: u32, job: u32, first: u32) -> u32 {
        let mut reads = std::mem::take(&mut self.queues[worker as usize].reads);
        let mut silent = 0;
        reads.retain(|turn| {
            let asked = self.blocks[turn.block as usize].asked;
            let useless = matches!(asked, Asked::Fetch { job: of, index } if of == job && index >= first);
            if useless && self.settle(turn.block, Answer::Withdrawn).is_some() {
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
                if asked == Asked::Remove {
                    self.queues[index].writes.push_back(turn);
                    continue;
                }
                broken += u64::from(answer == Answer::Good);
                if self.settle(turn.block, Answer::Withdrawn).is_some() {
                    silent.push((worker, id));
                }
            }
        }
        (broken, silent)
    }

    /// A worker is gone. What it had not begun is not done, deletions apart; what is in flight lands for nobody.
    /// Returns the blocks it was writing.
    pub(super) fn abandon(&mut self, worker: u32) -> Vec<u64> {
        let mut stores = Vec::new();
        let queue = &mut self.queues[worker as usize];
        let (reads, writes) = (std::mem::take(&mut queue.reads), std::mem::take(&mut queue.writes));
        let mut forsake = |block: &mut Block| {
            if let Asked::Store { id } = block.asked {
                stores.push(id);
            }
            block.asked = Asked::Abandoned { writes: block.asked.writes() };
        };
        for turn in self.in_flight.iter().flatten() {
            let block = &mut self.blocks[turn.block as usize];
            if block.worker == worker && block.asked != Asked::Remove {
                forsake(block);
            }
        }
        let mut kept = VecDeque::new();
        for turn in reads.into_iter().chain(writes) {
            let block = &mut self.blocks[turn.block as usize];
            if block.asked == Asked::Remove {
                kept.push_back(turn);
                continue;
            }
            forsake(block);
            self.settle(turn.block, Answer::Withdrawn);
        }
        self.queues[worker as usize].writes = kept;
        stores
    }

    /// Questions and reads of a worker that wait to be sent.
    pub(super) fn reads_waiting(&self, worker: u32) -> usize {
        self.queues[worker as usize].reads.len()
    }

    /// Writes of a worker that wait to be sent.
    pub(super) fn writes_waiting(&self, worker: u32) -> usize {
        self.queues[worker as usize].writes.len()
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
