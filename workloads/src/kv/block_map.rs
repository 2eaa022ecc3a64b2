//! A map from block identities to a few bytes each, for hundreds of millions of blocks.
//!
//! A general hash map doubles: just after it has grown it is less than half full, and while it grows both copies stand
//! in memory. Here hashes and values lie in arrays of their own without padding, the fill stays between
//! [`FULL`] ÷ [`GROWTH`] and [`FULL`], and the map is cut into shards that grow one at a time, so that the peak is
//! hardly above the rest. Places are in order of hashes (ordered linear probing: Amble and Knuth, "Ordered hash tables",
//! 1974), so that a block that is not there is missed as soon as one that is there would be found.

/// Shards of a map that has outgrown its first; a power of two.
const SHARDS: usize = 16;
const SHARD_BITS: u32 = SHARDS.trailing_zeros();
/// Blocks from which a map is cut into shards.
const WHOLE: usize = 1 << 14;
/// Most of a shard's places that are taken.
const FULL: f64 = 0.85;
/// What a shard's places grow by.
const GROWTH: f64 = 1.2;
/// Places past the last home, for what is pushed on; a run that reaches their end makes the shard grow.
const MARGIN: usize = 64;
/// Marks a free place, and is larger than any other hash. The block of that hash, if there is one, lives by itself.
const FREE: u64 = u64::MAX;

const MULTIPLIERS: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// Spreads identities evenly, one to one (the finalizer of SplitMix64), so that hashes alone need be kept.
const fn spread(id: u64) -> u64 {
    let id = (id ^ (id >> 30)).wrapping_mul(MULTIPLIERS[0]);
    let id = (id ^ (id >> 27)).wrapping_mul(MULTIPLIERS[1]);
    id ^ (id >> 31)
}

/// The identity of a hash.
const fn gather(hash: u64) -> u64 {
    /// Inverse modulo 2⁶⁴ of an odd number, by Newton's iteration: each step doubles the bits that are right.
    const fn inverse(odd: u64) -> u64 {
        let mut x = odd;
        let mut step = 0;
        while step < 5 {
            x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
            step += 1;
        }
        x
    }
    let hash = hash ^ (hash >> 31) ^ (hash >> 62);
    let hash = hash.wrapping_mul(inverse(MULTIPLIERS[1]));
    let hash = hash ^ (hash >> 27) ^ (hash >> 54);
    let hash = hash.wrapping_mul(inverse(MULTIPLIERS[0]));
    hash ^ (hash >> 30) ^ (hash >> 60)
}

/// Blocks by identity.
#[derive(Debug, Clone)]
pub(super) struct BlockMap<V> {
    shards: Vec<Shard<V>>,
    /// The block whose hash marks free places.
    odd: Option<V>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Shard<V> {
    /// Ascending but for the free places; the last one is always free.
    hashes: Vec<u64>,
    values: Vec<V>,
    /// Places that are homes.
    homes: usize,
    /// Bits that all hashes of the shard have in common.
    common_bits: u32,
    taken: usize,
}

impl<V> Default for BlockMap<V> {
    fn default() -> Self {
        Self { shards: vec![Shard::new(0)], odd: None, len: 0 }
    }
}

impl<V> Shard<V> {
    const fn new(common_bits: u32) -> Self {
        Self { hashes: Vec::new(), values: Vec::new(), homes: 0, common_bits, taken: 0 }
    }
}

impl<V: Copy + Default> BlockMap<V> {
    /// Blocks in the map.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    fn shard(&self, hash: u64) -> usize {
        if self.shards.len() == 1 { 0 } else { (hash >> (64 - SHARD_BITS)) as usize }
    }

    pub(super) fn contains_key(&self, id: &u64) -> bool {
        let hash = spread(*id);
        if hash == FREE { self.odd.is_some() } else { self.shards[self.shard(hash)].find(hash).is_ok() }
    }

    pub(super) fn get(&self, id: &u64) -> Option<&V> {
        let hash = spread(*id);
        if hash == FREE {
            return self.odd.as_ref();
        }
        let shard = &self.shards[self.shard(hash)];
        shard.find(hash).ok().map(|place| &shard.values[place])
    }

    pub(super) fn get_mut(&mut self, id: &u64) -> Option<&mut V> {
        let hash = spread(*id);
        if hash == FREE {
            return self.odd.as_mut();
        }
        let at = self.shard(hash);
        let shard = &mut self.shards[at];
        shard.find(hash).ok().map(|place| &mut shard.values[place])
    }

    /// Puts a block in; returns what it replaces.
    pub(super) fn insert(&mut self, id: u64, value: V) -> Option<V> {
        let hash = spread(id);
        let old = if hash == FREE {
            self.odd.replace(value)
        } else {
            let at = self.shard(hash);
            self.shards[at].insert(hash, value)
        };
        self.len += usize::from(old.is_none());
        if self.len > WHOLE && self.shards.len() == 1 {
            self.cut();
        }
        old
    }

    /// Takes a block out.
    pub(super) fn remove(&mut self, id: &u64) -> Option<V> {
        let hash = spread(*id);
        let old = if hash == FREE {
            self.odd.take()
        } else {
            let at = self.shard(hash);
            self.shards[at].remove(hash)
        };
        self.len -= usize::from(old.is_some());
        old
    }

    /// All blocks, in an order that depends on nothing but which they are.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        let placed = self.shards.iter().flat_map(|shard| shard.hashes.iter().zip(&shard.values));
        let placed = placed.filter(|(hash, _)| **hash != FREE).map(|(hash, value)| (gather(*hash), value));
        placed.chain(self.odd.iter().map(|value| (gather(FREE), value)))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let placed = self.shards.iter_mut().flat_map(|shard| shard.hashes.iter().zip(&mut shard.values));
        let placed = placed.filter(|(hash, _)| **hash != FREE).map(|(_, value)| value);
        placed.chain(&mut self.odd)
    }

    fn cut(&mut self) {
        let shards = (0..SHARDS).map(|_| Shard::new(SHARD_BITS)).collect();
        for whole in std::mem::replace(&mut self.shards, shards) {
            for (hash, value) in whole.hashes.into_iter().zip(whole.values).filter(|(hash, _)| *hash != FREE) {
                let at = self.shard(hash);
                self.shards[at].insert(hash, value);
            }
        }
    }
}

impl<V: Copy + Default> Shard<V> {
    /// The place a hash asks for: hashes in order ask for places in order.
    fn home(&self, hash: u64) -> usize {
        let own = hash << self.common_bits;
        ((u128::from(own) * self.homes as u128) >> 64) as usize
    }

    /// Where the block is, or else where it would go.
    fn find(&self, hash: u64) -> Result<usize, usize> {
        let home = self.home(hash);
        // A shard without places has no last one that is free.
        let after = self.hashes.get(home..).unwrap_or_default().iter().position(|there| *there >= hash);
        match after {
            Some(more) if self.hashes[home + more] == hash => Ok(home + more),
            Some(more) => Err(home + more),
            None => Err(home),
        }
    }

    fn insert(&mut self, hash: u64, value: V) -> Option<V> {
        if let Ok(place) = self.find(hash) {
            return Some(std::mem::replace(&mut self.values[place], value));
        }
        while (self.taken + 1) as f64 > FULL * self.homes as f64 || !self.place(hash, value) {
            self.grow();
        }
        self.taken += 1;
        None
    }

    /// Puts a new hash in its place and pushes those after it on; false if the last free place would be taken.
    fn place(&mut self, hash: u64, value: V) -> bool {
        let Err(place) = self.find(hash) else { return false };
        let Some(free) = self.hashes[place..].iter().position(|there| *there == FREE).map(|more| place + more) else {
            return false;
        };
        if free + 1 >= self.hashes.len() {
            return false;
        }
        self.hashes.copy_within(place..free, place + 1);
        self.values.copy_within(place..free, place + 1);
        (self.hashes[place], self.values[place]) = (hash, value);
        true
    }

    fn grow(&mut self) {
        let homes = ((self.homes as f64 * GROWTH) as usize).max(self.homes + 8);
        let mut grown = Self { homes, taken: self.taken, ..Self::new(self.common_bits) };
        let margin = MARGIN.max(homes / 64);
        (grown.hashes, grown.values) = (vec![FREE; homes + margin], vec![V::default(); homes + margin]);
        // In order, each goes to its home or right behind the one before.
        let mut next = 0;
        for (hash, value) in self.hashes.iter().zip(&self.values).filter(|(hash, _)| **hash != FREE) {
            let place = grown.home(*hash).max(next);
            if place + 1 >= grown.hashes.len() {
                grown.hashes.resize(place + MARGIN, FREE);
                grown.values.resize(place + MARGIN, V::default());
            }
            (grown.hashes[place], grown.values[place]) = (*hash, *value);
            next = place + 1;
        }
        *self = grown;
    }

    fn remove(&mut self, hash: u64) -> Option<V> {
        let place = self.find(hash).ok()?;
        let value = self.values[place];
        // What follows without a gap moves up, as far as it is not at home.
        let mut end = place + 1;
        while self.hashes[end] != FREE && self.home(self.hashes[end]) < end {
            end += 1;
        }
        self.hashes.copy_within(place + 1..end, place);
        self.values.copy_within(place + 1..end, place);
        self.hashes[end - 1] = FREE;
        self.taken -= 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    impl<V> BlockMap<V> {
        /// Bytes of its arrays.
        fn bytes(&self) -> usize {
            let each = |shard: &Shard<V>| shard.hashes.capacity() * 8 + shard.values.capacity() * size_of::<V>();
            self.shards.iter().map(each).sum()
        }
    }

    proptest! {
        #[test]
        fn hashes_give_identities_back(id: u64) {
            prop_assert_eq!(gather(spread(id)), id);
        }

        /// Whatever is put in, replaced, changed and taken out: the same as an ordered map says.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u8..5, 0u64..300, any::<u32>()), 1..3000), sparse: bool) {
            let (mut map, mut truth) = (BlockMap::<u32>::default(), BTreeMap::new());
            for (step, id, value) in steps {
                // The last is the one whose hash marks free places.
                let id = if id == 299 { gather(FREE) } else if sparse { id << 40 } else { id };
                match step {
                    0..3 => prop_assert_eq!(map.insert(id, value), truth.insert(id, value)),
                    3 => prop_assert_eq!(map.remove(&id), truth.remove(&id)),
                    _ => {
                        let (a, b) = (map.get_mut(&id), truth.get_mut(&id));
                        prop_assert_eq!(&a, &b);
                        if let (Some(a), Some(b)) = (a, b) {
                            (*a, *b) = (value, value);
                        }
                    }
                }
                prop_assert_eq!(map.len(), truth.len());
                prop_assert_eq!(map.contains_key(&id), truth.contains_key(&id));
            }
            for (id, value) in &truth {
                prop_assert_eq!(map.get(id), Some(value));
            }
            let mut all: Vec<(u64, u32)> = map.iter().map(|(id, value)| (id, *value)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, truth.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn many_blocks_take_few_bytes_and_come_out_again() {
        let mut map = BlockMap::<u32>::default();
        for id in 0..400_000u64 {
            assert_eq!(map.insert(id * 7, id as u32), None);
            // Past the first few, a block never takes more than 12 bytes at the lowest fill.
            assert!(id < 50_000 || map.bytes() as f64 <= (id + 1) as f64 * 12.0 * GROWTH / FULL * 1.03, "{id}");
        }
        assert!((0..400_000u64).all(|id| map.get(&(id * 7)) == Some(&(id as u32))));
        assert!((0..400_000u64).step_by(2).all(|id| map.remove(&(id * 7)) == Some(id as u32)));
        assert_eq!(map.len(), 200_000);
        assert!((0..400_000u64).all(|id| map.contains_key(&(id * 7)) == (id % 2 == 1)));
    }
}
