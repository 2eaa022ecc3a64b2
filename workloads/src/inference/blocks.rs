//! A pool of KV blocks with reference counts and an LRU prefix cache: GPU memory (G1), and host memory (G2) too.

use rustc_hash::FxHashMap;

use crate::op::Tick;

/// A place for one block in the pool.
pub type Slot = u32;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: Option<u64>,
    refs: u32,
    /// Not evicted for room before this, though nobody references it.
    leased: Tick,
    older: u32,
    newer: u32,
}

/// What [`BlockPool::make_room`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There was room.
    Free,
    /// There is now: this block went.
    Evicted(u64),
    /// Every block is in use or leased.
    None,
}

/// Blocks by content identity. A block is *free* (no content), *in use* (referenced), or *cached* (content, no
/// reference; the least recently used goes first when room is needed).
#[derive(Debug, Clone)]
pub struct BlockPool {
    entries: Vec<Entry>,
    free: Vec<Slot>,
    by_id: FxHashMap<u64, Slot>,
    oldest: u32,
    newest: u32,
    cached: usize,
    capacity: usize,
    /// Counts every time room appeared, so that a caller can tell whether trying again makes sense.
    releases: u64,
}

impl BlockPool {
    /// An empty pool of `capacity` blocks. Memory grows with use, not with capacity.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            by_id: FxHashMap::default(),
            oldest: NONE,
            newest: NONE,
            cached: 0,
            capacity: capacity.min(NONE as usize),
            releases: 0,
        }
    }

    /// Blocks in all.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Blocks that an allocation could take: never used, free or cached.
    #[must_use]
    pub fn available(&self) -> usize {
        self.capacity - self.entries.len() + self.free.len() + self.cached
    }

    /// Blocks referenced by someone.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.capacity - self.available()
    }

    /// Changes whenever room appears.
    #[must_use]
    pub const fn releases(&self) -> u64 {
        self.releases
    }

    /// Whether a block with this content is here. Does not touch recency.
    #[must_use]
    pub fn contains(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Blocks of `ids` from the first on that are here. Does not touch recency.
    #[must_use]
    pub fn match_prefix(&self, ids: &[u64]) -> usize {
        ids.iter().take_while(|id| self.by_id.contains_key(id)).count()
    }

    /// How many of `ids`, all present, nobody references: taking them uses up room.
    #[must_use]
    pub fn unreferenced(&self, ids: &[u64]) -> usize {
        let idle = |id| self.by_id.get(id).is_some_and(|&slot| self.entries[slot as usize].refs == 0);
        ids.iter().filter(|id| idle(id)).count()
    }

    /// Takes a reference to the block with this content.
    pub fn acquire(&mut self, id: u64) -> Option<Slot> {
        let slot = *self.by_id.get(&id)?;
        self.retain(slot);
        Some(slot)
    }

    /// Takes one more reference to a block.
    pub fn retain(&mut self, slot: Slot) {
        if self.entries[slot as usize].refs == 0 {
            self.unlink(slot);
        }
        self.entries[slot as usize].refs += 1;
    }

    /// Takes a block without content, evicting the least recently used cached one if it must.
    pub fn allocate(&mut self) -> Option<Slot> {
        let entry = Entry { id: None, refs: 1, leased: Tick::ZERO, older: NONE, newer: NONE };
        if let Some(slot) = self.free.pop() {
            self.entries[slot as usize] = entry;
            return Some(slot);
        }
        if self.entries.len() < self.capacity {
            self.entries.push(entry);
            return Some((self.entries.len() - 1) as Slot);
        }
        if self.oldest == NONE {
            return None;
        }
        let slot = self.oldest;
        self.unlink(slot);
        if let Some(id) = self.entries[slot as usize].id {
            self.by_id.remove(&id);
        }
        self.entries[slot as usize] = entry;
        Some(slot)
    }

    /// Gives a block its content, so that others find it. False if another block already has that content.
    pub fn name(&mut self, slot: Slot, id: u64) -> bool {
        if self.by_id.contains_key(&id) {
            return false;
        }
        self.by_id.insert(id, slot);
        self.entries[slot as usize].id = Some(id);
        true
    }

    /// Gives a reference back. The last one makes the block cached, or free if it has no content.
    pub fn release(&mut self, slot: Slot) {
        let entry = &mut self.entries[slot as usize];
        entry.refs -= 1;
        if entry.refs > 0 {
            return;
        }
        self.releases += 1;
        if entry.id.is_none() {
            self.free.push(slot);
            return;
        }
        entry.older = self.newest;
        entry.newer = NONE;
        match self.newest {
            NONE => self.oldest = slot,
            newest => self.entries[newest as usize].newer = slot,
        }
        self.newest = slot;
        self.cached += 1;
    }

    /// Puts content in without keeping a reference (most recently used), or makes it so. False when there is no room.
    #[cfg(test)]
    pub(crate) fn insert(&mut self, id: u64) -> bool {
        let Some(slot) = self.acquire(id).or_else(|| self.allocate()) else { return false };
        self.name(slot, id);
        self.release(slot);
        true
    }

    /// Sees that the next allocation finds room without evicting anything by itself: where it must, the least recently
    /// used block goes that nobody references and whose lease is over.
    pub fn make_room(&mut self, now: Tick) -> Room {
        if !self.free.is_empty() || self.entries.len() < self.capacity {
            return Room::Free;
        }
        let mut slot = self.oldest;
        while slot != NONE && self.entries[slot as usize].leased > now {
            slot = self.entries[slot as usize].newer;
        }
        if slot == NONE {
            return Room::None;
        }
        let id = self.entries[slot as usize].id;
        id.map_or(Room::None, |id| {
            self.forget(id);
            Room::Evicted(id)
        })
    }

    /// Protects a block from [`make_room`](Self::make_room) until then, and makes it the most recently used.
    pub fn lease(&mut self, id: u64, until: Tick) {
        if let Some(slot) = self.acquire(id) {
            let entry = &mut self.entries[slot as usize];
            entry.leased = entry.leased.max(until);
            self.release(slot);
        }
    }

    /// A block's content is gone. Its room is free at once, or when the last reference goes.
    pub fn forget(&mut self, id: u64) {
        let Some(slot) = self.by_id.remove(&id) else { return };
        let entry = &mut self.entries[slot as usize];
        entry.id = None;
        if entry.refs == 0 {
            self.unlink(slot);
            self.free.push(slot);
            self.releases += 1;
        }
    }

    fn unlink(&mut self, slot: Slot) {
        let Entry { older, newer, .. } = self.entries[slot as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        self.cached -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_least_recently_used_goes_first_and_references_hold() {
        let mut pool = BlockPool::new(2);
        assert!(pool.insert(1) && pool.insert(2));
        assert!(pool.insert(1), "touching");
        assert!(pool.insert(3));
        assert_eq!((pool.contains(1), pool.contains(2), pool.contains(3)), (true, false, true));
        let held = pool.acquire(1).expect("cached");
        assert!(pool.insert(4));
        assert!(pool.contains(1) && !pool.contains(3));
        let other = pool.acquire(4).expect("cached");
        assert_eq!((pool.available(), pool.allocate()), (0, None));
        pool.release(held);
        pool.release(other);
        assert_eq!(pool.match_prefix(&[4, 1, 9]), 2);
    }

    #[test]
    fn leases_hold_until_they_end_and_forgotten_blocks_leave_room() {
        let mut pool = BlockPool::new(2);
        assert_eq!(pool.make_room(Tick(0)), Room::Free);
        assert!(pool.insert(1) && pool.insert(2));
        pool.lease(1, Tick(10));
        // 2 is the least recently used now; then only 1 is left, leased until 10.
        assert_eq!(pool.make_room(Tick(0)), Room::Evicted(2));
        assert!(pool.insert(3));
        pool.lease(3, Tick(20));
        assert_eq!((pool.make_room(Tick(9)), pool.contains(1)), (Room::None, true));
        assert_eq!(pool.make_room(Tick(10)), Room::Evicted(1));
        let held = pool.acquire(3).expect("leased");
        pool.forget(3);
        assert_eq!((pool.contains(3), pool.in_use(), pool.available()), (false, 1, 1));
        pool.release(held);
        assert_eq!((pool.in_use(), pool.available()), (0, 2));
    }

    /// The same cache as a plain list, oldest first.
    fn reference(list: &mut Vec<u64>, capacity: usize, id: u64) {
        list.retain(|&known| known != id);
        list.push(id);
        if list.len() > capacity {
            list.remove(0);
        }
    }

    proptest! {
        #[test]
        fn it_is_an_lru(ids in prop::collection::vec(0u64..12, 0..200), capacity in 1usize..8) {
            let mut pool = BlockPool::new(capacity);
            let mut list = Vec::new();
            for id in ids {
                pool.insert(id);
                reference(&mut list, capacity, id);
                for known in 0..12 {
                    prop_assert_eq!(pool.contains(known), list.contains(&known));
                }
                prop_assert_eq!(pool.in_use(), 0);
            }
        }
    }
}
