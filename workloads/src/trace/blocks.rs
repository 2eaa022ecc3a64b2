//! Block ids where a trace has none of the size wanted: chained from what the prompt is made of.

use crate::random::mix;

use super::{MOONCAKE_BLOCK_TOKENS, Request, Trace};

/// Ids of the blocks of `block_tokens` that cover `segments` (identity, tokens) laid end to end. An id depends on all
/// that precedes and fills its block, so equal ids mean equal prefixes; the last block may be partial.
pub(crate) fn chain(segments: impl IntoIterator<Item = (u64, u32)>, block_tokens: u32, out: &mut Vec<u64>) {
    let block_tokens = block_tokens.max(1);
    let mut hash = 0;
    let mut filled = 0;
    for (id, tokens) in segments {
        let mut offset = 0;
        while offset < tokens {
            let piece = (tokens - offset).min(block_tokens - filled);
            hash = mix(hash ^ mix(id ^ mix(u64::from(offset) << 32 | u64::from(piece))));
            offset += piece;
            filled += piece;
            if filled == block_tokens {
                out.push(hash);
                filled = 0;
            }
        }
    }
    if filled > 0 {
        out.push(hash);
    }
}

/// The block size that most requests agree with, by the number of their ids: each covers its prompt with whole blocks,
/// the last perhaps partial or left out. `usual` wins where at least half of them agree with it.
pub(super) fn infer_block_tokens(requests: &[Request], usual: u32) -> u32 {
    let votes = |size: u32| {
        let agrees = |r: &&Request| {
            let (n, tokens) = (r.blocks.len() as u64, u64::from(r.input_tokens));
            n > 0 && (n == tokens.div_ceil(u64::from(size)) || n == tokens / u64::from(size))
        };
        requests.iter().filter(agrees).count()
    };
    let voters = requests.iter().filter(|r| !r.blocks.is_empty()).count();
    if 2 * votes(usual) >= voters {
        return usual;
    }
    let best = (0..17).map(|bits| 1u32 << bits).max_by_key(|&size| (votes(size), size == MOONCAKE_BLOCK_TOKENS));
    best.filter(|&size| votes(size) > votes(usual)).unwrap_or(usual)
}

impl Trace {
    /// Appends the ids of the blocks of `block_tokens` that a request's prompt fills: the trace's own ids where they
    /// have that size; otherwise ids chained from its parts or its own ids; from nothing but the request's place where
    /// it has neither, so that no two requests share any. The last block may be partial.
    ///
    /// # Panics
    /// When `index` is not a request of this trace.
    pub fn prompt_blocks(&self, index: usize, block_tokens: u32, out: &mut Vec<u64>) {
        let request = &self.requests[index];
        let (blocks, parts) = (self.blocks(request), self.parts(request));
        if !parts.is_empty() && (blocks.is_empty() || self.block_tokens != Some(block_tokens)) {
            let segments = parts.iter().map(|part| (mix(part.id) ^ mix(!(part.component as u64)), part.tokens));
            chain(segments, block_tokens, out);
        } else if blocks.is_empty() {
            chain([(mix(!(index as u64)), request.input_tokens)], block_tokens, out);
        } else if self.block_tokens == Some(block_tokens) {
            out.extend_from_slice(blocks);
        } else {
            let own = self.block_tokens.unwrap_or(MOONCAKE_BLOCK_TOKENS);
            let mut left = request.input_tokens;
            let segments = blocks.iter().map(|&id| {
                let tokens = left.min(own);
                left -= tokens;
                (id, tokens)
            });
            chain(segments, block_tokens, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chained(segments: &[(u64, u32)], block_tokens: u32) -> Vec<u64> {
        let mut out = Vec::new();
        chain(segments.iter().copied(), block_tokens, &mut out);
        out
    }

    #[test]
    fn a_shared_prefix_shares_its_whole_blocks_and_no_other() {
        let a = chained(&[(1, 100), (2, 60)], 32);
        let b = chained(&[(1, 100), (3, 60)], 32);
        assert_eq!((a.len(), b.len()), (5, 5));
        assert_eq!(a[..3], b[..3]);
        assert!(a[3..].iter().all(|id| !b.contains(id)));
    }

    proptest! {
        #[test]
        fn blocks_cover_the_prompt(segments in prop::collection::vec((0u64..9, 0u32..2000), 0..9), size in 1u32..700) {
            let tokens: u64 = segments.iter().map(|s| u64::from(s.1)).sum();
            let ids = chained(&segments, size);
            prop_assert_eq!(ids.len() as u64, tokens.div_ceil(u64::from(size)));
            let distinct: std::collections::HashSet<_> = ids.iter().collect();
            prop_assert_eq!(distinct.len(), ids.len());
        }
    }
}
