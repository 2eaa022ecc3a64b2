//! What a trace holds: lengths, and how much of its prompts a prefix cache would have had.
//!
//! The count: requests in file order, one at a time. A prefix hit is every id from position 0 up to the first one
//! absent from the cache; looking up does not touch recency; then all ids of the request are touched or inserted in
//! order, evicting the least recently used at once. The partial last block counts; output makes no blocks.

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::lru::Lru;
use super::{Format, Trace};

/// What [`info`] finds. Block figures are null where the trace has no block ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceInfo {
    /// Format of the file.
    pub format: Format,
    /// Number of requests.
    pub requests: u64,
    /// Conversations, where the trace tells them.
    pub sessions: Option<u64>,
    /// First to last arrival.
    pub duration_s: f64,
    /// Tokens of a block; null where blocks have no one size or are absent.
    pub block_tokens: Option<u32>,
    /// Prompt lengths.
    pub input_tokens: TokenInfo,
    /// Lengths of answers.
    pub output_tokens: TokenInfo,
    /// Ids of all prompts.
    pub blocks_total: Option<u64>,
    /// Distinct ids.
    pub blocks_unique: Option<u64>,
    /// Ids that an infinite cache would have had, from the start of the prompt to the first miss.
    pub prefix_hit_blocks: Option<u64>,
    /// `prefix_hit_blocks / blocks_total`.
    pub prefix_hit_ratio: Option<f64>,
    /// Tokens of those blocks, at most the prompt's, ÷ prompt tokens. For prompts given by parts: tokens of the parts
    /// hit ÷ tokens of all parts.
    pub token_hit_ratio: Option<f64>,
    /// Hits of caches of limited size.
    pub lru: Option<Vec<LruInfo>>,
    /// Reuse by part of the prompt; only where the trace has parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub components: Option<ComponentInfo>,
}

/// Lengths in tokens; null without requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Mean.
    pub mean: Option<f64>,
    /// Median; of an even number of lengths, the mean of the middle two.
    pub median: Option<f64>,
    /// Largest.
    pub max: Option<u32>,
}

/// Prefix hits of an LRU cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LruInfo {
    /// Blocks it holds.
    pub capacity_blocks: u64,
    /// Prefix hits.
    pub hit_blocks: u64,
    /// Hits ÷ ids of all prompts.
    pub hit_ratio: f64,
}

/// Reuse of parts by an infinite cache, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ComponentInfo {
    /// Tokens of all parts.
    pub tokens: u64,
    /// Tokens of parts hit from the start of the prompt to the first miss ÷ tokens.
    pub prefix_token_hit_ratio: f64,
    /// Tokens of parts seen before at any position of any prompt ÷ tokens.
    pub any_position_token_hit_ratio: f64,
}

impl TokenInfo {
    fn of(mut lengths: Vec<u32>) -> Self {
        lengths.sort_unstable();
        let n = lengths.len();
        if n == 0 {
            return Self { mean: None, median: None, max: None };
        }
        let sum: u64 = lengths.iter().copied().map(u64::from).sum();
        let middle = f64::from(lengths[(n - 1) / 2]).midpoint(f64::from(lengths[n / 2]));
        Self { mean: Some(sum as f64 / n as f64), median: Some(middle), max: lengths.last().copied() }
    }
}

/// Ids as small integers in order of appearance, with the ids' ranges by request.
struct Dense {
    ids: Vec<u32>,
    ends: Vec<usize>,
    unique: u32,
}

impl Dense {
    fn of<K: std::hash::Hash + Eq>(requests: impl Iterator<Item = impl Iterator<Item = K>>) -> Self {
        let mut seen: FxHashMap<K, u32> = FxHashMap::default();
        let mut dense = Self { ids: Vec::new(), ends: Vec::new(), unique: 0 };
        for request in requests {
            for key in request {
                let next = seen.len() as u32;
                dense.ids.push(*seen.entry(key).or_insert(next));
            }
            dense.ends.push(dense.ids.len());
        }
        dense.unique = seen.len() as u32;
        dense
    }

    fn requests(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(&start, &end)| &self.ids[start..end])
    }

    /// Prefix hits of each request. Ids are numbered in order of appearance, so an infinite cache holds exactly those
    /// below the number of distinct ids so far.
    fn infinite(&self) -> impl Iterator<Item = usize> {
        let mut known = 0;
        self.requests().map(move |ids| {
            let hits = ids.iter().take_while(|&&id| id < known).count();
            known = ids.iter().fold(known, |known, &id| known.max(id + 1));
            hits
        })
    }

    fn limited(&self, capacity: u64) -> u64 {
        let mut cache = Lru::new(self.unique as usize, capacity);
        let mut hits = 0;
        for ids in self.requests() {
            hits += ids.iter().take_while(|&&id| cache.contains(id)).count() as u64;
            ids.iter().for_each(|&id| cache.touch(id));
        }
        hits
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Counts what a trace holds, with a cache of each of the `lru` sizes in blocks.
#[must_use]
pub fn info(trace: &Trace, lru: &[u64]) -> TraceInfo {
    let requests = trace.requests();
    let components = trace.has_parts().then(|| components(trace));
    let dense = if trace.has_blocks() {
        Some(Dense::of(requests.iter().map(|r| trace.blocks(r).iter().copied())))
    } else if trace.has_parts() {
        Some(Dense::of(requests.iter().map(|r| trace.parts(r).iter().map(|part| (part.component, part.id)))))
    } else {
        None
    };
    let total = dense.as_ref().map(|dense| dense.ids.len() as u64);
    let hits: Option<Vec<usize>> = dense.as_ref().map(|dense| dense.infinite().collect());
    let hit_blocks = hits.as_ref().map(|hits| hits.iter().sum::<usize>() as u64);
    let token_hit_ratio = match (&hits, trace.block_tokens) {
        (Some(hits), Some(block)) if trace.has_blocks() => {
            let tokens = |(r, &hits): (&super::Request, &usize)| {
                (hits as u64).saturating_mul(u64::from(block)).min(u64::from(r.input_tokens))
            };
            let hit: u64 = requests.iter().zip(hits).map(tokens).sum();
            ratio(hit, requests.iter().map(|r| u64::from(r.input_tokens)).sum())
        }
        _ => components.map(|components| components.prefix_token_hit_ratio),
    };
    TraceInfo {
        format: trace.format,
        requests: requests.len() as u64,
        sessions: (trace.sessions() > 0).then(|| u64::from(trace.sessions())),
        duration_s: trace.duration().as_nanos() as f64 / 1e9,
        block_tokens: trace.block_tokens,
        input_tokens: TokenInfo::of(requests.iter().map(|r| r.input_tokens).collect()),
        output_tokens: TokenInfo::of(requests.iter().map(|r| r.output_tokens).collect()),
        blocks_total: total,
        blocks_unique: dense.as_ref().map(|dense| u64::from(dense.unique)),
        prefix_hit_blocks: hit_blocks,
        prefix_hit_ratio: hit_blocks.zip(total).and_then(|(hits, total)| ratio(hits, total)),
        token_hit_ratio,
        lru: dense.as_ref().zip(total).map(|(dense, total)| {
            let of = |&capacity_blocks: &u64| {
                let hit_blocks = dense.limited(capacity_blocks);
                LruInfo { capacity_blocks, hit_blocks, hit_ratio: ratio(hit_blocks, total).unwrap_or(0.0) }
            };
            lru.iter().map(of).collect()
        }),
        components,
    }
}

fn components(trace: &Trace) -> ComponentInfo {
    let mut seen = rustc_hash::FxHashSet::default();
    let (mut tokens, mut prefix, mut anywhere) = (0, 0, 0);
    for request in trace.requests() {
        let parts = trace.parts(request);
        let mut unbroken = true;
        for part in parts {
            let length = u64::from(part.tokens);
            let hit = seen.contains(&(part.component, part.id));
            unbroken &= hit;
            tokens += length;
            anywhere += if hit { length } else { 0 };
            prefix += if unbroken { length } else { 0 };
        }
        seen.extend(parts.iter().map(|part| (part.component, part.id)));
    }
    ComponentInfo {
        tokens,
        prefix_token_hit_ratio: ratio(prefix, tokens).unwrap_or(0.0),
        any_position_token_hit_ratio: ratio(anywhere, tokens).unwrap_or(0.0),
    }
}
