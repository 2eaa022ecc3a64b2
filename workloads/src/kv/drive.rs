//! Local drives (G3): one on each node, with a bound of its own, read and written by real operations.
//!
//! A block that comes takes the room of one that goes: it is written when the other has been deleted, so that a drive
//! never holds more than it may. What waits to be written waits in passing buffers, as many as the queue of writes has.

use rustc_hash::FxHashMap;

use crate::inference::{BlockPool, Room, Slot};
use crate::kv::estimate::Prior;
use crate::kv::exchange::{Exchange, Layered, Shape};
use crate::op::Tick;

/// What became of a block that was to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is being written, or will be.
    Writing,
    /// The same, once this other block is gone: to be carried away or removed.
    InPlaceOf(u64),
    /// It is there, or on its way there or away.
    Known,
    /// Every block is in use or leased, or there is no drive.
    Full,
}

/// One node's drive.
#[derive(Debug)]
struct Node {
    pool: BlockPool,
    /// Blocks to come, with their room; those that wait for another to go are `next` of it.
    writing: FxHashMap<u64, Slot>,
    /// For blocks that go: which comes instead, for which worker, and whether it still does.
    next: FxHashMap<u64, (u32, u64, bool)>,
}

/// The drives of all nodes.
#[derive(Debug)]
pub(super) struct Drives {
    nodes: Vec<Node>,
    workers_of_node: u32,
    /// What is asked of them.
    pub(super) exchange: Exchange,
}

impl Drives {
    /// Drives of `blocks` each, one for every `workers_of_node` of `workers` (zero: one for all).
    pub(super) fn new(
        blocks: usize,
        workers: u32,
        workers_of_node: u32,
        shape: Shape,
        layered: Option<Layered>,
    ) -> Self {
        let nodes = if workers_of_node == 0 { 1 } else { workers.div_ceil(workers_of_node) };
        let node = |_| Node { pool: BlockPool::new(blocks), writing: FxHashMap::default(), next: FxHashMap::default() };
        let shape = Shape { workers_of_place: workers_of_node, ..shape };
        let exchange = Exchange::new(shape, workers).reading(layered, Prior::default());
        Self { nodes: (0..nodes).map(node).collect(), workers_of_node, exchange }
    }

    fn node(&self, worker: u32) -> &Node {
        &self.nodes[worker.checked_div(self.workers_of_node).unwrap_or(0) as usize]
    }

    fn node_mut(&mut self, worker: u32) -> &mut Node {
        &mut self.nodes[worker.checked_div(self.workers_of_node).unwrap_or(0) as usize]
    }

    /// Whether there are drives at all.
    pub(super) fn exist(&self) -> bool {
        self.nodes.iter().any(|node| node.pool.capacity() > 0)
    }

    /// Whether the worker's node holds the block.
    pub(super) fn contains(&self, worker: u32, id: u64) -> bool {
        self.node(worker).pool.contains(id)
    }

    /// Whether it does, or is about to, or has it on its way out.
    pub(super) fn knows(&self, worker: u32, id: u64) -> bool {
        let node = self.node(worker);
        node.pool.contains(id) || node.writing.contains_key(&id) || node.next.contains_key(&id)
    }

    /// Protects a block until then.
    pub(super) fn lease(&mut self, worker: u32, id: u64, until: Tick) {
        self.node_mut(worker).pool.lease(id, until);
    }

    /// Pins a block while it is read.
    pub(super) fn pin(&mut self, worker: u32, id: u64) -> Option<Slot> {
        self.node_mut(worker).pool.acquire(id)
    }

    /// The read is over.
    pub(super) fn unpin(&mut self, worker: u32, slot: Slot) {
        self.node_mut(worker).pool.release(slot);
    }

    /// The drive turned out not to hold the block.
    pub(super) fn lost(&mut self, worker: u32, id: u64) {
        self.node_mut(worker).pool.forget(id);
    }

    /// Finds room for a block and, where that was free, queues its write.
    pub(super) fn keep(&mut self, worker: u32, id: u64, at: Tick) -> Kept {
        if self.knows(worker, id) {
            return Kept::Known;
        }
        let node = self.node_mut(worker);
        let room = node.pool.make_room(at);
        let Some(slot) = (room != Room::None).then(|| node.pool.allocate()).flatten() else { return Kept::Full };
        node.writing.insert(id, slot);
        if let Room::Evicted(other) = room {
            node.next.insert(other, (worker, id, true));
            return Kept::InPlaceOf(other);
        }
        self.exchange.store(worker, id);
        Kept::Writing
    }

    /// A worker is gone. What it was about to write does not come; its node's drive stays.
    pub(super) fn worker_lost(&mut self, worker: u32) {
        for id in self.exchange.abandon(worker) {
            self.written(worker, id, false);
        }
        let lost = self.node_mut(worker).next.values_mut().filter(|next| next.0 == worker);
        lost.for_each(|next| next.2 = false);
    }

    /// A block is gone: what was to come instead is queued now, by the worker returned, unless the run is `over`.
    pub(super) fn removed(&mut self, worker: u32, id: u64, over: bool) -> Option<u32> {
        let (writer, next, comes) = self.node_mut(worker).next.remove(&id)?;
        if over || !comes {
            self.written(writer, next, false);
            return None;
        }
        self.exchange.store(writer, next);
        Some(writer)
    }

    /// A write is over, or will not be.
    pub(super) fn written(&mut self, worker: u32, id: u64, good: bool) {
        let node = self.node_mut(worker);
        let Some(slot) = node.writing.remove(&id) else { return };
        if good {
            node.pool.name(slot, id);
        }
        node.pool.release(slot);
    }

    /// Whether nothing is pinned or about to be written.
    #[cfg(test)]
    pub(super) fn idle(&self) -> bool {
        self.nodes.iter().all(|node| node.pool.in_use() == 0 && node.writing.is_empty() && node.next.is_empty())
    }
}
