//! An LRU set over small integers: a list threaded through two arrays.

const NONE: u32 = u32::MAX;

/// The most recently used of `0..ids`, at most `capacity` of them.
pub(super) struct Lru {
    /// Neighbor towards the most recent, by id.
    newer: Vec<u32>,
    /// Neighbor towards the least recent, by id.
    older: Vec<u32>,
    present: Vec<bool>,
    newest: u32,
    oldest: u32,
    len: u64,
    capacity: u64,
}

impl Lru {
    pub(super) fn new(ids: usize, capacity: u64) -> Self {
        Self {
            newer: vec![NONE; ids],
            older: vec![NONE; ids],
            present: vec![false; ids],
            newest: NONE,
            oldest: NONE,
            len: 0,
            capacity,
        }
    }

    /// Whether `id` is held. Does not touch it.
    pub(super) fn contains(&self, id: u32) -> bool {
        self.present[id as usize]
    }

    /// Makes `id` the most recent, inserting it where it is not held; evicts the least recent when over capacity.
    pub(super) fn touch(&mut self, id: u32) {
        if self.capacity == 0 || self.newest == id {
            return;
        }
        if self.present[id as usize] {
            self.unlink(id);
        } else if self.len == self.capacity {
            let evicted = self.oldest;
            self.unlink(evicted);
            self.present[evicted as usize] = false;
        } else {
            self.len += 1;
        }
        self.present[id as usize] = true;
        self.older[id as usize] = self.newest;
        self.newer[id as usize] = NONE;
        match self.newest {
            NONE => self.oldest = id,
            newest => self.newer[newest as usize] = id,
        }
        self.newest = id;
    }

    fn unlink(&mut self, id: u32) {
        let (newer, older) = (self.newer[id as usize], self.older[id as usize]);
        match newer {
            NONE => self.newest = older,
            newer => self.older[newer as usize] = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.newer[older as usize] = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a list kept in order of use.
        #[test]
        fn holds_what_a_plain_list_would(touches in prop::collection::vec(0u32..12, 0..200), capacity in 0u64..14) {
            let mut lru = Lru::new(12, capacity);
            let mut list: Vec<u32> = Vec::new();
            for id in touches {
                lru.touch(id);
                list.retain(|&held| held != id);
                list.push(id);
                if list.len() as u64 > capacity {
                    list.remove(0);
                }
                for id in 0..12 {
                    prop_assert_eq!(lru.contains(id), list.contains(&id));
                }
            }
        }
    }
}
