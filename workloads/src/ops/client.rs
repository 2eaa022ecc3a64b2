//! One client of plain load: a stream of operations that depends on its number and the seed alone.

use std::collections::VecDeque;

use rand_distr::{Distribution, Zipf};

use super::spec::{OpsSpec, Popularity, share};
use crate::op::{Key, Op, Verb};
use crate::random::{Permutation, Random};

/// What all clients of a core share; read only.
#[derive(Debug)]
pub(super) struct Draw {
    spec: OpsSpec,
    /// Running sums of the weights, by verb.
    sums: [u64; 6],
    zipf: Option<(Zipf<f64>, Permutation)>,
}

impl Draw {
    pub(super) fn new(spec: OpsSpec) -> Self {
        let mut sum = 0;
        let sums = Verb::ALL.map(|verb| {
            sum += u64::from(spec.mix.weight(verb));
            sum
        });
        let zipf = match spec.popularity {
            Popularity::Uniform => None,
            // Only an exponent below zero or an empty set is refused, and checked specifications have neither.
            Popularity::Zipf(exponent) => Zipf::new(spec.objects.max(1) as f64, exponent)
                .ok()
                .map(|zipf| (zipf, Permutation::new(spec.objects.max(1), spec.seed))),
        };
        Self { spec, sums, zipf }
    }

    pub(super) const fn spec(&self) -> &OpsSpec {
        &self.spec
    }

    fn verb(&self, random: &mut Random) -> Verb {
        let at = random.below(self.sums[5]);
        let index = self.sums.iter().position(|&sum| at < sum).unwrap_or(5);
        Verb::ALL[index]
    }

    fn of_set(&self, random: &mut Random) -> Key {
        let i = match &self.zipf {
            None => random.below(self.spec.objects),
            Some((zipf, places)) => places.at((zipf.sample(random) as u64).clamp(1, self.spec.objects) - 1),
        };
        self.spec.set_key(i)
    }
}

/// Objects a client may delete, oldest first, as runs of consecutive numbers, so that memory stays flat however many
/// there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    runs: VecDeque<(u64, u64)>,
}

impl Pool {
    /// The first `count` objects.
    fn ready(count: u64) -> Self {
        let mut runs = VecDeque::with_capacity(64);
        if count > 0 {
            runs.push_back((0, count));
        }
        Self { runs }
    }

    pub(super) fn add(&mut self, i: u64) {
        // Writes mostly end in order, and neighbors that do not are swapped, so the youngest two runs are enough to
        // look at.
        if let Some((first, end)) = self.runs.back_mut() {
            if *end == i {
                *end += 1;
                return;
            }
            if *first == i + 1 {
                *first = i;
                let joined = *first;
                let end = *end;
                let before = self.runs.len().checked_sub(2).and_then(|at| self.runs.get_mut(at));
                if let Some(before) = before
                    && before.1 == joined
                {
                    before.1 = end;
                    self.runs.pop_back();
                }
                return;
            }
        }
        self.runs.push_back((i, i + 1));
    }

    fn oldest(&mut self) -> Option<u64> {
        let (first, end) = self.runs.front_mut()?;
        let i = *first;
        *first += 1;
        if first == end {
            self.runs.pop_front();
        }
        Some(i)
    }
}

/// One client.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) index: u16,
    random: Random,
    pub(super) pool: Pool,
    /// Number of its next new object.
    next_new: u64,
    /// Operations it may still start.
    pub(super) left: u64,
}

impl Client {
    pub(super) fn new(spec: &OpsSpec, index: u32) -> Self {
        let ready = spec.ready(index);
        Self {
            index: index as u16,
            random: Random::stream(spec.seed ^ 0x0c11_e475, u64::from(index)),
            pool: Pool::ready(ready),
            next_new: ready,
            left: spec.count.map_or(u64::MAX, |count| share(count, index, spec.load.clients())),
        }
    }

    /// The next operation; none when the client's share of the count is used up or nothing is left to delete in a load
    /// without writes.
    pub(super) fn next(&mut self, draw: &Draw) -> Option<Op> {
        if self.left == 0 {
            return None;
        }
        let spec = draw.spec();
        let mut verb = draw.verb(&mut self.random);
        let mut oldest = None;
        if verb == Verb::Delete {
            oldest = self.pool.oldest();
            if oldest.is_none() {
                // Where writes will bring more, one of them takes the place of the delete; else the client is done.
                if !spec.writes() {
                    self.left = 0;
                    return None;
                }
                verb = if spec.mix.put > 0 { Verb::Put } else { Verb::Multipart };
            }
        }
        self.left -= 1;
        Some(match verb {
            Verb::Get => {
                let key = draw.of_set(&mut self.random);
                let bytes = spec.size(key);
                match spec.range_bytes {
                    Some(range) if range.0 < bytes => {
                        let at = self.random.below(bytes / range.0);
                        Op::get_range(key, at * range.0, range.0)
                    }
                    _ => Op::get(key, bytes),
                }
            }
            Verb::Stat => Op::stat(draw.of_set(&mut self.random)),
            Verb::List => Op::list(draw.of_set(&mut self.random).space, spec.list_keys),
            Verb::Delete => Op::delete(spec.new_key(self.index, oldest.unwrap_or_default())),
            Verb::Put | Verb::Multipart => {
                let key = if spec.overwrite {
                    draw.of_set(&mut self.random)
                } else {
                    self.next_new += 1;
                    spec.new_key(self.index, self.next_new - 1)
                };
                let bytes = spec.size(key);
                match verb {
                    Verb::Multipart => Op::multipart(key, bytes, spec.part_bytes.0.max(1)),
                    _ => Op::put(key, bytes),
                }
            }
        })
    }

    /// Takes note of an operation that succeeded.
    pub(super) fn succeeded(&mut self, op: &Op, new_space: u16) {
        if op.verb.writes() && op.key.space == new_space {
            self.pool.add(op.key.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain set: nothing is handed out twice or invented, and what is added comes out.
        #[test]
        fn a_pool_hands_out_each_object_once(ready in 0u64..5, picks in prop::collection::vec((any::<bool>(), 0usize..4), 0..300)) {
            let mut pool = Pool::ready(ready);
            let mut there: BTreeSet<u64> = (0..ready).collect();
            let (mut next, mut writing) = (ready, Vec::new());
            for (add, which) in picks {
                if add {
                    // Up to four writes in flight, which end in any order.
                    while writing.len() < 4 {
                        writing.push(next);
                        next += 1;
                    }
                    let done = writing.remove(which);
                    pool.add(done);
                    there.insert(done);
                } else {
                    match pool.oldest() {
                        None => prop_assert!(there.is_empty()),
                        Some(i) => prop_assert!(there.remove(&i)),
                    }
                }
            }
            while let Some(i) = pool.oldest() {
                prop_assert!(there.remove(&i));
            }
            prop_assert!(there.is_empty());
        }
    }

    #[test]
    fn a_pool_filled_in_order_is_one_run() {
        let mut pool = Pool::ready(16);
        (16..100_000).for_each(|i| pool.add(i));
        // Swapped neighbors do not leave pieces behind.
        for i in (100_000..200_000).step_by(2) {
            pool.add(i + 1);
            pool.add(i);
        }
        assert_eq!(pool.runs, [(0, 200_000)]);
    }
}
