//! The index of the shared tier (G4): what the target holds, and what goes when it is full.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::kv::block_map::BlockMap;
use crate::op::Tick;

/// How large the shared tier may grow, and what happens then (Mooncake Store's rule: above a share of the capacity, the
/// least recently used go, a share of the capacity at a time).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bound {
    /// Blocks that it may hold, those being written or deleted included.
    pub(super) blocks: u64,
    /// Share of them above which it evicts.
    pub(super) above_ratio: f64,
    /// Share of them that one eviction frees.
    pub(super) frees_ratio: f64,
}

/// What became of a block that was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Write it.
    Write,
    /// It is there, or on its way there or away.
    Known,
    /// There is no room: what could be evicted is in use, leased, or not deleted yet.
    Full,
}

/// When a block was used last, whether by a look-up, and whether anybody ever read it: one word, since there may be
/// hundreds of millions of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Mark(u64);

impl Mark {
    const READ: u64 = 1;
    const LEASED: u64 = 2;

    const fn new(used: Tick, leased: bool, read: bool) -> Self {
        Self((used.0 << 2) | (leased as u64 * Self::LEASED) | (read as u64 * Self::READ))
    }

    const fn used(self) -> Tick {
        Tick(self.0 >> 2)
    }

    const fn leased(self) -> bool {
        self.0 & Self::LEASED != 0
    }

    const fn read(self) -> bool {
        self.0 & Self::READ != 0
    }
}

/// What the target holds, as far as this run knows.
#[derive(Debug)]
pub(super) struct SharedIndex {
    blocks: BlockMap<Mark>,
    writing: FxHashSet<u64>,
    deleting: FxHashSet<u64>,
    /// Blocks that loads are reading, and how many do.
    reading: FxHashMap<u64, u32>,
    bound: Option<Bound>,
    /// How long a look-up or a load protects a block from eviction, in nanoseconds.
    lease_ns: u64,
    /// An eviction that found too little is not repeated before this.
    next_look: Tick,
    /// Blocks evicted that nobody had read.
    evicted_unread: u64,
}

impl SharedIndex {
    pub(super) fn new(bound: Option<Bound>, lease_ns: u64) -> Self {
        Self {
            blocks: BlockMap::default(),
            writing: FxHashSet::default(),
            deleting: FxHashSet::default(),
            reading: FxHashMap::default(),
            bound,
            lease_ns,
            next_look: Tick::ZERO,
            evicted_unread: 0,
        }
    }

    /// Whether the target holds the block.
    pub(super) fn contains(&self, id: u64) -> bool {
        self.blocks.contains_key(&id)
    }

    /// Whether it is being written.
    pub(super) fn writes(&self, id: u64) -> bool {
        self.writing.contains(&id)
    }

    /// Whether it is being deleted.
    pub(super) fn deletes(&self, id: u64) -> bool {
        self.deleting.contains(&id)
    }

    /// Blocks that take up room on the target, those being written or deleted included.
    pub(super) fn occupied(&self) -> u64 {
        (self.blocks.len() + self.writing.len() + self.deleting.len()) as u64
    }

    /// Blocks written that nobody has read, those evicted since included.
    pub(super) fn never_read(&self) -> u64 {
        self.evicted_unread + self.blocks.values().filter(|mark| !mark.read()).count() as u64
    }

    /// A look-up found the block: it is used, and leased.
    pub(super) fn looked_up(&mut self, id: u64, at: Tick) {
        if let Some(mark) = self.blocks.get_mut(&id) {
            *mark = Mark::new(at.max(mark.used()), true, mark.read());
        }
    }

    /// A load begins to read the block, which the target has said or is known to hold.
    pub(super) fn begin_read(&mut self, id: u64) {
        *self.reading.entry(id).or_default() += 1;
    }

    /// A read is over that told nothing.
    pub(super) fn unread(&mut self, id: u64) {
        if let Some(readers) = self.reading.get_mut(&id) {
            *readers -= 1;
            if *readers == 0 {
                self.reading.remove(&id);
            }
        }
    }

    /// A read went well: the block is there, perhaps from an earlier run. Where a bounded tier has no room for it in its
    /// books, it is not its own.
    pub(super) fn has_read(&mut self, id: u64, at: Tick) {
        self.unread(id);
        let room = self.contains(id) || self.bound.is_none_or(|bound| self.occupied() < bound.blocks);
        if room && !self.writes(id) && !self.deleting.contains(&id) {
            self.blocks.insert(id, Mark::new(at, true, true));
        }
    }

    /// The target turned out not to hold the block.
    pub(super) fn lost(&mut self, id: u64) {
        self.blocks.remove(&id);
    }

    /// Whether a block may be written now; if so, it counts as being written.
    pub(super) fn admit(&mut self, id: u64) -> Admission {
        if self.contains(id) || self.writes(id) || self.deleting.contains(&id) {
            return Admission::Known;
        }
        if self.bound.is_some_and(|bound| self.occupied() >= bound.blocks) {
            return Admission::Full;
        }
        self.writing.insert(id);
        Admission::Write
    }

    /// A write is over.
    pub(super) fn written(&mut self, id: u64, at: Tick, good: bool) {
        self.writing.remove(&id);
        if good {
            self.blocks.insert(id, Mark::new(at, false, false));
        }
    }

    /// Blocks that must go now, to be deleted from the target: when it is fuller than it should be, the least recently
    /// used ones that nobody reads and whose lease is over.
    pub(super) fn evict(&mut self, at: Tick) -> Vec<u64> {
        let Some(bound) = self.bound else { return Vec::new() };
        let held = (self.blocks.len() + self.writing.len()) as f64;
        if held <= bound.above_ratio * bound.blocks as f64 || at < self.next_look {
            return Vec::new();
        }
        let wanted = ((bound.frees_ratio * bound.blocks as f64).ceil() as usize).max(1);
        let may_go = |(id, mark): (u64, &Mark)| {
            let leased = mark.leased() && mark.used().0.saturating_add(self.lease_ns) > at.0;
            // The identity decides between equals, so that a run is the same every time.
            (!leased && !self.reading.contains_key(&id)).then_some((mark.used(), id))
        };
        let mut idle: Vec<(Tick, u64)> = self.blocks.iter().filter_map(may_go).collect();
        if idle.len() <= wanted {
            // Leases must end first: a twentieth of one is soon enough to look again.
            self.next_look = Tick(at.0.saturating_add((self.lease_ns / 20).max(1_000_000)));
        } else {
            idle.select_nth_unstable(wanted);
            idle.truncate(wanted);
        }
        idle.sort_unstable();
        for &(_, id) in &idle {
            self.evicted_unread += u64::from(self.blocks.remove(&id).is_some_and(|mark| !mark.read()));
            self.deleting.insert(id);
        }
        idle.into_iter().map(|(_, id)| id).collect()
    }

    /// Blocks being written, read and deleted.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> (usize, usize, usize) {
        (self.writing.len(), self.reading.len(), self.deleting.len())
    }

    /// The target has let go of a block, or failed to: it is no part of the tier either way.
    pub(super) fn deleted(&mut self, id: u64) {
        self.deleting.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(blocks: u64, lease_ns: u64) -> SharedIndex {
        SharedIndex::new(Some(Bound { blocks, above_ratio: 0.8, frees_ratio: 0.2 }), lease_ns)
    }

    fn write(index: &mut SharedIndex, id: u64, at: u64) -> Admission {
        let admission = index.admit(id);
        if admission == Admission::Write {
            index.written(id, Tick(at), true);
        }
        admission
    }

    #[test]
    fn above_its_share_the_least_recently_used_go() {
        let mut index = index(10, 100);
        (0..8).for_each(|id| assert_eq!(write(&mut index, id, id), Admission::Write));
        assert!(index.evict(Tick(8)).is_empty(), "8 of 10 is not above 0.8");
        index.looked_up(0, Tick(8));
        assert_eq!(write(&mut index, 8, 9), Admission::Write);
        assert_eq!(index.evict(Tick(9)), [1, 2], "two tenths; 0 was used since");
        assert_eq!(index.admit(1), Admission::Known, "not before it is deleted");
        assert_eq!((index.occupied(), index.never_read()), (9, 9));
        index.deleted(1);
        assert_eq!(index.admit(1), Admission::Write);
    }

    #[test]
    fn leased_and_read_blocks_stay_and_a_full_tier_refuses() {
        let mut index = index(4, 1_000_000_000);
        (0..4).for_each(|id| assert_eq!(write(&mut index, id, 1), Admission::Write));
        (0..3).for_each(|id| index.looked_up(id, Tick(2)));
        index.begin_read(3);
        assert!(index.evict(Tick(3)).is_empty());
        assert_eq!(write(&mut index, 9, 4), Admission::Full);
        index.has_read(3, Tick(5));
        assert!(index.evict(Tick(1_000_000_001)).is_empty(), "the read has leased it, the look-ups are not over");
        // Leases of 0, 1 and 2 end a second after tick 2, that of 3 later.
        assert_eq!(index.evict(Tick(1_060_000_002)), [0]);
        assert_eq!(index.never_read(), 3, "all but the one read");
    }

    proptest! {
        /// Whatever happens, the tier keeps to its size, and nothing leased or being read is evicted.
        #[test]
        fn it_keeps_to_its_size_and_to_its_leases(
            steps in prop::collection::vec((0u8..6, 0u64..40), 1..400), blocks in 1u64..20, lease_ns in 0u64..3,
        ) {
            let lease_ns = lease_ns * 50;
            let mut index = index(blocks, lease_ns);
            let (mut reads, mut used) = (Vec::new(), std::collections::BTreeMap::new());
            for (i, (what, id)) in steps.into_iter().enumerate() {
                let at = Tick(i as u64 * 10_000_000);
                match what {
                    0 | 1 => { index.admit(id); }
                    2 => {
                        if index.writes(id) { index.written(id, at, true); }
                    }
                    3 => {
                        index.looked_up(id, at);
                        if index.contains(id) { used.insert(id, at); }
                    }
                    4 => {
                        if index.contains(id) { index.begin_read(id); reads.push(id); }
                    }
                    _ => {
                        if let Some(id) = reads.pop() { index.has_read(id, at); used.insert(id, at); }
                        index.deleted(id);
                    }
                }
                for gone in index.evict(at) {
                    prop_assert!(!reads.contains(&gone));
                    let leased = used.get(&gone).is_some_and(|used| used.0 + lease_ns > at.0);
                    prop_assert!(!leased);
                    prop_assert!(!index.contains(gone));
                    used.remove(&gone);
                }
                prop_assert!(index.occupied() <= blocks);
            }
        }
    }
}
