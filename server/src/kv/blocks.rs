//! Which blocks may go when room is needed: those written over the KV wire, the one longest unused first, unless leased.
//!
//! Objects that came over S3 are somebody's data and stay. A read over the KV wire counts as a use; one over S3 does not.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashlink::LinkedHashMap;
use rustc_hash::FxBuildHasher;

use crate::store::{Precondition, Store, StoreError};

/// Locks; a power of two.
const SHARDS: usize = 16;

/// Bucket and key.
type Name = (Box<str>, Box<str>);
/// The block longest unused comes first.
type Shard = LinkedHashMap<Name, Block, FxBuildHasher>;

#[derive(Debug, Clone, Copy)]
struct Block {
    bytes: u64,
    /// When it was last used, counted in uses of any block.
    used: u64,
    leased_until: Option<Instant>,
}

/// What may be evicted, over all cores.
#[derive(Debug)]
pub(crate) struct Blocks {
    shards: [Mutex<Shard>; SHARDS],
    uses: AtomicU64,
    lease: Duration,
    evicted: AtomicU64,
}

/// A panic elsewhere while a lock was held leaves a whole list behind: every change is one insert or one remove.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Blocks {
    /// None yet; leases last `lease`.
    pub(crate) fn new(lease: Duration) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            uses: AtomicU64::new(0),
            lease,
            evicted: AtomicU64::new(0),
        }
    }

    /// How long a lease lasts.
    pub(crate) const fn lease(&self) -> Duration {
        self.lease
    }

    /// Blocks evicted so far.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Relaxed)
    }

    fn shard(&self, key: &str) -> MutexGuard<'_, Shard> {
        // The upper bits are the well mixed ones.
        let shard = (FxBuildHasher.hash_one(key) >> 32) as usize % SHARDS;
        lock(&self.shards[shard])
    }

    /// A block has been written.
    pub(crate) fn written(&self, bucket: &str, key: &str, bytes: u64) {
        let used = self.uses.fetch_add(1, Relaxed);
        self.shard(key).insert((bucket.into(), key.into()), Block { bytes, used, leased_until: None });
    }

    /// A block was found; with `lease` it stays for that long.
    pub(crate) fn used(&self, bucket: &str, key: &str, lease: bool) {
        let used = self.uses.fetch_add(1, Relaxed);
        let mut shard = self.shard(key);
        let name: Name = (bucket.into(), key.into());
        if let Some(block) = shard.to_back(&name) {
            block.used = used;
            if lease {
                block.leased_until = Some(Instant::now() + self.lease);
            }
        }
    }

    /// A block is gone.
    pub(crate) fn gone(&self, bucket: &str, key: &str) {
        self.shard(key).remove(&(Box::from(bucket), Box::from(key)));
    }

    /// The block longest unused among those without a lease, taken out of the list.
    fn oldest(&self, now: Instant) -> Option<(Name, u64)> {
        let free = |block: &Block| block.leased_until.is_none_or(|until| until <= now);
        loop {
            let first = |shard: &Mutex<Shard>| lock(shard).values().find(|block| free(block)).map(|block| block.used);
            let (shard, used) =
                self.shards.iter().filter_map(|shard| Some((shard, first(shard)?))).min_by_key(|(_, used)| *used)?;
            let mut shard = lock(shard);
            let name = shard.iter().find(|(_, block)| block.used == used && free(block)).map(|(name, _)| name.clone());
            // Used meanwhile by another core: look again.
            let Some(name) = name else { continue };
            return shard.remove(&name).map(|block| (name, block.bytes));
        }
    }

    /// Makes room for `bytes` in `store`, as far as there is something to evict.
    ///
    /// # Errors
    /// [`StoreError::Full`] when all that is left is leased or not ours to evict.
    pub(crate) async fn make_room<S: Store>(&self, store: &S, bytes: u64) -> Result<(), StoreError> {
        loop {
            let (used, capacity) = store.room();
            if used.saturating_add(bytes) <= capacity {
                return Ok(());
            }
            let Some(((bucket, key), _)) = self.oldest(Instant::now()) else {
                return Err(StoreError::Full { needed: bytes, used, capacity });
            };
            match store.delete(&bucket, &key, &Precondition::default()).await {
                Ok(_) => self.evicted.fetch_add(1, Relaxed),
                // The bucket is gone, and the block with it.
                Err(_) => continue,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_first_unless_it_is_leased() {
        let blocks = Blocks::new(Duration::from_secs(10));
        for key in ["a", "b", "c", "d"] {
            blocks.written("blocks", key, 1);
        }
        blocks.used("blocks", "a", false);
        blocks.used("blocks", "b", true);
        let now = Instant::now();
        let order = |now| std::iter::from_fn(|| Some(blocks.oldest(now)?.0.1.into_string())).collect::<Vec<_>>();
        assert_eq!(order(now), ["c", "d", "a"]);
        assert_eq!(order(now + Duration::from_secs(11)), ["b"]);
        blocks.written("blocks", "e", 1);
        blocks.gone("blocks", "e");
        assert!(blocks.oldest(now).is_none());
    }
}
