//! How large a cache has to be: prefix hits of an LRU cache of every size at once, from stack distances.
//!
//! Mattson et al., IBM Systems Journal 9 (1970): an LRU cache of C blocks holds a block if and only if fewer than C other
//! blocks were used since its last use. A prefix hit needs all blocks before it too, so a block's distance is the largest
//! of its prompt up to it. Requests come one at a time in order of arrival, as in `gpufeed trace info`; answers that a
//! later turn continues are used like prompts.

use rustc_hash::FxHashMap;

use crate::kv::requests::Requests;

/// Prefix hits by size of the cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkingSet {
    /// Least blocks with which each block that can be hit is, ascending.
    distances: Vec<u64>,
    /// Full blocks of all prompts.
    pub prompt_blocks: u64,
    /// Different blocks used.
    pub unique_blocks: u64,
}

/// Counts marks in a range of positions, each in logarithmic time (Fenwick 1994).
struct Marks(Vec<u32>);

impl Marks {
    fn add(&mut self, at: usize, by: i32) {
        let mut i = at + 1;
        while i < self.0.len() {
            self.0[i] = self.0[i].wrapping_add_signed(by);
            i += i & i.wrapping_neg();
        }
    }

    /// Marks at positions before `end`.
    fn before(&self, end: usize) -> u64 {
        let (mut i, mut sum) = (end, 0u64);
        while i > 0 {
            sum += u64::from(self.0[i]);
            i -= i & i.wrapping_neg();
        }
        sum
    }
}

impl WorkingSet {
    /// Of requests in order of arrival.
    #[must_use]
    pub fn of(requests: &Requests) -> Self {
        let uses: usize = requests.list().iter().map(|request| requests.blocks(request).len()).sum();
        let mut marks = Marks(vec![0; uses + 1]);
        let mut last: FxHashMap<u64, usize> = FxHashMap::default();
        let mut set = Self::default();
        let mut position = 0;
        for request in requests.list() {
            let blocks = requests.blocks(request);
            let prompt = &blocks[..request.prompt_blocks as usize];
            set.prompt_blocks += prompt.len() as u64;
            let mut farthest = 0;
            for id in prompt {
                let Some(&before) = last.get(id) else { break };
                // Blocks used since then, and itself.
                farthest = farthest.max(last.len() as u64 - marks.before(before));
                set.distances.push(farthest);
            }
            for &id in blocks.iter() {
                if let Some(before) = last.insert(id, position) {
                    marks.add(before, -1);
                }
                marks.add(position, 1);
                position += 1;
            }
        }
        set.distances.sort_unstable();
        set.unique_blocks = last.len() as u64;
        set
    }

    /// Prefix hits of a cache of `blocks`.
    #[must_use]
    pub fn hits(&self, blocks: u64) -> u64 {
        self.distances.partition_point(|distance| *distance <= blocks) as u64
    }

    /// Hits of a cache of `blocks` ÷ blocks of all prompts; zero without prompts.
    #[must_use]
    pub fn hit_ratio(&self, blocks: u64) -> f64 {
        self.hits(blocks) as f64 / self.prompt_blocks.max(1) as f64
    }

    /// Hits of an infinite cache ÷ blocks of all prompts.
    #[must_use]
    pub fn most_hit_ratio(&self) -> f64 {
        self.distances.len() as f64 / self.prompt_blocks.max(1) as f64
    }

    /// Blocks of the smallest cache with `share` (0..=1) of the hits of an infinite one; zero where there are none.
    #[must_use]
    pub fn blocks_for(&self, share: f64) -> u64 {
        let needed = (share.clamp(0.0, 1.0) * self.distances.len() as f64).ceil() as usize;
        needed.checked_sub(1).and_then(|i| self.distances.get(i)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kv::OutputBlocks;
    use crate::trace::{Format, Record, Trace};

    fn requests(prompts: &[Vec<u64>]) -> Requests {
        let record = |(i, ids): (usize, &Vec<u64>)| Record {
            stamp_ns: Some(i as i64 * 1_000_000_000),
            input_tokens: 16 * ids.len() as u32,
            output_tokens: 1,
            blocks: ids.clone(),
            ..Record::default()
        };
        let trace = Trace::from_records(Format::Mooncake, prompts.iter().enumerate().map(record).map(Ok), Some(16))
            .expect("no errors among them");
        Requests::from_trace(&trace, OutputBlocks::None, 16)
    }

    proptest! {
        /// Against an LRU list of each size.
        #[test]
        fn every_size_is_counted_at_once(
            prompts in prop::collection::vec(prop::collection::vec(0u64..14, 1..8), 1..40),
            size in 1u64..16,
        ) {
            // A prompt names a block once.
            let prompts: Vec<Vec<u64>> = prompts
                .into_iter()
                .map(|mut ids| {
                    let mut seen = std::collections::BTreeSet::new();
                    ids.retain(|id| seen.insert(*id));
                    ids
                })
                .collect();
            let (mut list, mut hits): (Vec<u64>, u64) = (Vec::new(), 0);
            for prompt in &prompts {
                hits += prompt.iter().take_while(|id| list.contains(id)).count() as u64;
                for id in prompt {
                    list.retain(|held| held != id);
                    list.push(*id);
                    if list.len() as u64 > size {
                        list.remove(0);
                    }
                }
            }
            let set = WorkingSet::of(&requests(&prompts));
            prop_assert_eq!(set.hits(size), hits);
            prop_assert_eq!(set.prompt_blocks, prompts.iter().map(|p| p.len() as u64).sum::<u64>());
            let all = set.blocks_for(1.0);
            prop_assert_eq!(set.hits(all), set.hits(u64::MAX));
            prop_assert!(all == 0 || set.hits(all - 1) < set.hits(u64::MAX));
        }
    }
}
