//! Payload bytes from object name and seed: incompressible, different in every object, addressable at any offset.
//!
//! A table of random words, fixed by the seed, is laid over each 4 KiB page of an object and combined with two words
//! hashed from the object's name and the page number. Filling and checking therefore run at memory speed, a ranged read
//! can be checked without the bytes before it, and no two pages are alike, within an object or across objects, for
//! deduplicating or compressing storage to profit from.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;
/// Words of the table. Pages start at a hashed word of it, so that pages differ by more than a mask.
const TABLE: usize = 16 * WORDS;

/// Where a payload differs from what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} is not what was written")]
pub struct Mismatch {
    /// Offset in the object of the first wrong byte.
    pub offset: u64,
}

/// The payloads of all objects of a run.
#[derive(Debug, Clone)]
pub struct Payloads {
    seed: u64,
    table: Arc<[u64; TABLE + WORDS]>,
}

/// The payload of one object.
#[derive(Debug, Clone)]
pub struct Payload {
    all: Payloads,
    name: u64,
}

/// One step of SplitMix64 (Steele, Lea, Flood 2014): a bijection that passes as random.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Payloads {
    /// The payloads of `seed`. The table is 68 KiB, so it stays in cache.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut table = [0; TABLE + WORDS];
        for (i, word) in table[..TABLE].iter_mut().enumerate() {
            *word = mix(mix(seed) ^ i as u64);
        }
        table.copy_within(..WORDS, TABLE);
        Self { seed, table: Arc::new(table) }
    }

    /// The payload of the object called `name` (its whole key within the bucket or directory).
    #[must_use]
    pub fn of(&self, name: &str) -> Payload {
        Payload { all: self.clone(), name: xxh3_64_with_seed(name.as_bytes(), self.seed) }
    }
}

impl Payload {
    /// The page's words: a run of the table and a mask.
    fn page(&self, page: u64) -> (&[u64; WORDS], u64) {
        let hash = mix(self.name ^ mix(page));
        let start = hash as usize % TABLE;
        let words = self.all.table[start..start + WORDS].first_chunk().expect("a page of words after every start");
        (words, mix(hash))
    }

    /// Writes bytes `offset..offset + out.len()` of the object.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        self.each_page(offset, out.len(), |page, range, within| {
            let (words, mask) = self.page(page);
            let out = &mut out[range];
            if within == 0 && out.len() == PAGE {
                for (chunk, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                    *chunk = (word ^ mask).to_le_bytes();
                }
            } else {
                for (i, byte) in (within..).zip(out) {
                    *byte = (words[i / 8] ^ mask).to_le_bytes()[i % 8];
                }
            }
        });
    }

    /// Checks bytes `offset..offset + data.len()` of the object.
    ///
    /// # Errors
    /// The first byte that differs.
    pub fn verify(&self, offset: u64, data: &[u8]) -> Result<(), Mismatch> {
        let mut wrong = None;
        self.each_page(offset, data.len(), |page, range, within| {
            let (words, mask) = self.page(page);
            let start = range.start;
            let data = &data[range];
            let same = if within == 0 && data.len() == PAGE {
                let chunks = data.as_chunks::<8>().0.iter();
                chunks.zip(words).fold(0, |acc, (chunk, word)| acc | (u64::from_le_bytes(*chunk) ^ word ^ mask)) == 0
            } else {
                (within..).zip(data).all(|(i, byte)| (words[i / 8] ^ mask).to_le_bytes()[i % 8] == *byte)
            };
            if !same && wrong.is_none() {
                let differs = |(i, byte): &(usize, &u8)| (words[i / 8] ^ mask).to_le_bytes()[i % 8] != **byte;
                let (at, _) = (within..).zip(data).find(differs).expect("a differing byte");
                wrong = Some(Mismatch { offset: offset + (start + at - within) as u64 });
            }
        });
        wrong.map_or(Ok(()), Err)
    }

    /// Cuts `len` bytes from `offset` at page boundaries: page number, range within the bytes, offset within the page.
    fn each_page(&self, offset: u64, len: usize, mut piece: impl FnMut(u64, std::ops::Range<usize>, usize)) {
        let mut at = 0;
        while at < len {
            let position = offset + at as u64;
            let within = (position % PAGE as u64) as usize;
            let end = len.min(at + PAGE - within);
            piece(position / PAGE as u64, at..end, within);
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages_differ_within_and_across_objects() {
        let payloads = Payloads::new(42);
        let mut pages = std::collections::HashSet::new();
        for name in ["a", "b"] {
            let mut bytes = vec![0; 64 * PAGE];
            payloads.of(name).fill(0, &mut bytes);
            pages.extend(bytes.chunks(PAGE).map(<[u8]>::to_vec));
        }
        assert_eq!(pages.len(), 128);
        assert_ne!(Payloads::new(1).of("a").page(0).1, payloads.of("a").page(0).1);
    }

    #[test]
    fn bytes_are_uniform() {
        let mut bytes = vec![0; 1 << 20];
        Payloads::new(7).of("x").fill(0, &mut bytes);
        let mut counts = [0u32; 256];
        bytes.iter().for_each(|b| counts[usize::from(*b)] += 1);
        // Chi-square with 255 degrees of freedom: 5 standard deviations above the mean are 368.
        let expected = bytes.len() as f64 / 256.0;
        let chi: f64 = counts.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
        assert!(chi < 368.0, "{chi}");
    }

    proptest! {
        #[test]
        fn any_range_is_a_slice_of_the_whole(offset in 0usize..20_000, len in 0usize..20_000, seed: u64) {
            let payload = Payloads::new(seed).of("train/img_0001.npz");
            let mut whole = vec![0; 40_000];
            payload.fill(0, &mut whole);
            let mut part = vec![0; len];
            payload.fill(offset as u64, &mut part);
            prop_assert_eq!(&part, &whole[offset..offset + len]);
            prop_assert_eq!(payload.verify(offset as u64, &part), Ok(()));
        }

        #[test]
        fn any_flipped_bit_is_found(offset in 0u64..20_000, len in 1usize..20_000, at: prop::sample::Index, bit in 0u8..8) {
            let payload = Payloads::new(9).of("k");
            let mut data = vec![0; len];
            payload.fill(offset, &mut data);
            let at = at.index(len);
            data[at] ^= 1 << bit;
            prop_assert_eq!(payload.verify(offset, &data), Err(Mismatch { offset: offset + at as u64 }));
        }
    }
}
