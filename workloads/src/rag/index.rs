//! A synthetic IVF index: lists of vectors of uneven lengths, packed into segment objects.
//!
//! The vectors are not real; what matters to storage is: which byte ranges a query reads. A passage's vector lies in a
//! list by hash, so popular passages make popular lists, and a query always probes the lists of the passages it finds.

use crate::random::{Random, mix2, normal_quantile};

/// Shape of an index.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexPlan {
    /// Vectors in the index.
    pub vectors: u64,
    /// Dimensions of a vector, four bytes each.
    pub dims: u32,
    /// Posting lists (`nlist`).
    pub lists: u32,
    /// Lists read for each query (`nprobe`).
    pub nprobe: u32,
    /// Standard deviation of the logarithm of list lengths; zero makes all equal.
    pub skew: f64,
    /// Consecutive lists in one segment object.
    pub lists_per_object: u32,
    /// A list is read in ranges of at most this.
    pub range_bytes_max: u64,
}

impl Default for IndexPlan {
    /// 128 Ki vectors of 768 dimensions in 512 lists: 384 MiB, of which a query reads about 6.
    fn default() -> Self {
        Self {
            vectors: 128 << 10,
            dims: 768,
            lists: 512,
            nprobe: 8,
            skew: 0.5,
            lists_per_object: 16,
            range_bytes_max: 8 << 20,
        }
    }
}

/// A range of a segment object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Number of the segment.
    pub object: u64,
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// The index laid out.
#[derive(Debug, Clone, PartialEq)]
pub struct Ivf {
    plan: IndexPlan,
    seed: u64,
    /// First vector of each list, and the number of all at the end.
    starts: Vec<u64>,
}

impl Ivf {
    /// Lays an index out; list lengths follow from `seed` and add up to the vectors exactly.
    #[must_use]
    pub fn new(plan: &IndexPlan, seed: u64) -> Self {
        let mut random = Random::stream(seed, 0x1f);
        let mut sums = vec![0.0];
        let mut sum = 0.0;
        for _ in 0..plan.lists.max(1) {
            sum += (plan.skew * normal_quantile(random.unit())).exp();
            sums.push(sum);
        }
        let mut starts: Vec<u64> = sums.iter().map(|s| (s / sum * plan.vectors as f64).round() as u64).collect();
        if let Some(last) = starts.last_mut() {
            *last = plan.vectors;
        }
        Self { plan: plan.clone(), seed, starts }
    }

    const fn vector_bytes(&self) -> u64 {
        self.plan.dims as u64 * 4
    }

    /// Bytes of each segment object.
    pub fn objects(&self) -> impl Iterator<Item = u64> + '_ {
        let lists = self.starts.len() - 1;
        let per = self.plan.lists_per_object.max(1) as usize;
        (0..lists)
            .step_by(per)
            .map(move |first| (self.starts[(first + per).min(lists)] - self.starts[first]) * self.vector_bytes())
    }

    /// Bytes of a list.
    #[must_use]
    pub fn list_bytes(&self, list: u32) -> u64 {
        (self.starts[list as usize + 1] - self.starts[list as usize]) * self.vector_bytes()
    }

    /// The list that holds a vector.
    fn list_of(&self, vector: u64) -> u32 {
        (self.starts.partition_point(|&start| start <= vector) - 1) as u32
    }

    /// The lists that query number `query` probes to find `passages`, distinct, into `lists`: theirs, and as many
    /// others as `nprobe` leaves room for, a list in proportion to its length.
    pub fn probe(&self, query: u64, passages: impl Iterator<Item = u64>, lists: &mut Vec<u32>) {
        lists.clear();
        if self.plan.vectors == 0 {
            return;
        }
        let wanted = self.plan.nprobe.min(self.plan.lists) as usize;
        let found = passages.map(|passage| mix2(self.seed ^ 0x9a55, passage) % self.plan.vectors);
        let mut random = Random::stream(self.seed ^ 0x9e7b, query);
        let near = std::iter::repeat_with(|| random.below(self.plan.vectors)).take(16 * wanted);
        for list in found.chain(near).map(|vector| self.list_of(vector)) {
            if lists.len() >= wanted {
                return;
            }
            if !lists.contains(&list) {
                lists.push(list);
            }
        }
        // Few lists hold nearly all vectors: the next ones by number will do.
        let mut next = lists.first().copied().unwrap_or(0);
        while lists.len() < wanted {
            next = (next + 1) % self.plan.lists;
            if !lists.contains(&next) {
                lists.push(next);
            }
        }
    }

    /// The ranges that a list is read in; none for an empty list.
    pub fn ranges(&self, list: u32) -> impl Iterator<Item = Range> + '_ {
        let per = self.plan.lists_per_object.max(1);
        let object = list / per;
        let base = (self.starts[list as usize] - self.starts[(object * per) as usize]) * self.vector_bytes();
        let whole = self.list_bytes(list);
        let most = self.plan.range_bytes_max.max(1);
        (0..whole.div_ceil(most)).map(move |i| {
            let from = i * most;
            Range { object: u64::from(object), offset: base + from, bytes: most.min(whole - from) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lists_tile_the_objects(
            vectors in 0u64..100_000, lists in 1u32..300, per in 1u32..40, skew in 0.0..2.0f64, most in 1u64..100_000, seed: u64,
        ) {
            let plan = IndexPlan {
                vectors, lists, lists_per_object: per, skew, range_bytes_max: most, dims: 3, ..IndexPlan::default()
            };
            let ivf = Ivf::new(&plan, seed);
            let objects: Vec<u64> = ivf.objects().collect();
            prop_assert_eq!(objects.iter().sum::<u64>(), vectors * 12);
            let mut read = vec![0; objects.len()];
            for list in 0..lists {
                for range in ivf.ranges(list) {
                    // Each range begins where the one before ended: no gap, no overlap.
                    prop_assert_eq!(range.offset, read[range.object as usize]);
                    prop_assert!(range.bytes > 0 && range.bytes <= most);
                    read[range.object as usize] += range.bytes;
                }
            }
            prop_assert_eq!(read, objects);
        }

        #[test]
        fn probes_are_distinct_and_cover_the_passages(nprobe in 1u32..40, lists in 1u32..60, query: u64, ids in prop::collection::vec(0u64..99, 0..9)) {
            let plan = IndexPlan { vectors: 5000, lists, nprobe, ..IndexPlan::default() };
            let ivf = Ivf::new(&plan, 7);
            let mut probed = Vec::new();
            ivf.probe(query, ids.iter().copied(), &mut probed);
            prop_assert_eq!(probed.len() as u32, nprobe.min(lists));
            let mut distinct = probed.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), probed.len());
            if nprobe as usize >= ids.len() {
                let mut one = Vec::new();
                for id in ids {
                    Ivf { plan: IndexPlan { nprobe: 1, ..plan.clone() }, ..ivf.clone() }.probe(0, [id].into_iter(), &mut one);
                    prop_assert!(probed.contains(&one[0]));
                }
            }
        }
    }

    #[test]
    fn lists_are_probed_by_their_length() {
        let ivf = Ivf::new(&IndexPlan { vectors: 10_000, lists: 10, nprobe: 1, skew: 1.0, ..IndexPlan::default() }, 3);
        let mut counts = [0u32; 10];
        let mut probed = Vec::new();
        for query in 0..50_000 {
            ivf.probe(query, std::iter::empty(), &mut probed);
            counts[probed[0] as usize] += 1;
        }
        for (list, &count) in counts.iter().enumerate() {
            let expected = ivf.list_bytes(list as u32) as f64 / (10_000.0 * 768.0 * 4.0);
            let error = (expected * (1.0 - expected) / 50_000.0).sqrt();
            assert!((f64::from(count) / 50_000.0 - expected).abs() < 5.0 * error + 1e-9, "{list}: {count}");
        }
    }
}
