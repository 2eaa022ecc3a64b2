//! The requests of a run in order of arrival, with the identities of their full blocks.

use std::ops::Range;

use rustc_hash::{FxHashMap, FxHashSet};
use xxhash_rust::xxh3::Xxh3;

use crate::kv::spec::OutputBlocks;
use crate::random::mix2;
use crate::trace::Trace;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Arrival, from the start of the trace.
    pub at_ns: u64,
    /// Prompt tokens, at least one.
    pub input_tokens: u64,
    /// Output tokens, at least one.
    pub output_tokens: u64,
    /// Full blocks of the prompt; those after them in the list are of the answer.
    pub prompt_blocks: u32,
    blocks: Range<usize>,
}

/// All requests of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Requests {
    list: Vec<Request>,
    blocks: Vec<u64>,
    block_tokens: u64,
    synthetic: bool,
}

impl Requests {
    /// The requests of a trace by arrival. A trace without block ids gets blocks of `block_tokens` that nobody shares.
    #[must_use]
    pub fn from_trace(trace: &Trace, output: OutputBlocks, block_tokens: u32) -> Self {
        let synthetic = !trace.has_blocks() || trace.block_tokens.is_none();
        let tokens = u64::from(trace.block_tokens.filter(|_| !synthetic).unwrap_or(block_tokens).max(1));
        let continued = continuations(trace, output, tokens, synthetic);
        let mut all = Self { list: Vec::new(), blocks: Vec::new(), block_tokens: tokens, synthetic };
        for index in trace.by_arrival() {
            let request = &trace.requests()[index as usize];
            let (input, output) = (u64::from(request.input_tokens).max(1), u64::from(request.output_tokens).max(1));
            let from = all.blocks.len();
            let full = (input / tokens) as usize;
            let mut prompt_blocks = full;
            if synthetic {
                all.blocks.extend((0..full as u64).map(|i| mix2(u64::from(index) + 1, i)));
            } else {
                let ids = trace.blocks(request);
                prompt_blocks = full.min(ids.len());
                all.blocks.extend_from_slice(&ids[..prompt_blocks]);
                if let Some(&next) = continued.get(&index).filter(|_| prompt_blocks == full) {
                    let next = &trace.requests()[next as usize];
                    let ids = trace.blocks(next);
                    // The last token's KV is never computed: it is sampled, not fed back.
                    let known = ((input + output - 1) / tokens).min(u64::from(next.input_tokens) / tokens) as usize;
                    all.blocks.extend_from_slice(ids.get(full..known.min(ids.len())).unwrap_or_default());
                }
            }
            let at_ns = u64::try_from(request.at.as_nanos()).unwrap_or(u64::MAX);
            let (prompt_blocks, blocks) = (prompt_blocks as u32, from..all.blocks.len());
            all.list.push(Request { at_ns, input_tokens: input, output_tokens: output, prompt_blocks, blocks });
        }
        all
    }

    /// The requests, by arrival.
    #[must_use]
    pub fn list(&self) -> &[Request] {
        &self.list
    }

    /// Identities of the full blocks of a request: of its prompt, then of its answer as far as they are known.
    #[must_use]
    pub fn blocks(&self, request: &Request) -> &[u64] {
        &self.blocks[request.blocks.clone()]
    }

    /// Tokens of a block.
    #[must_use]
    pub const fn block_tokens(&self) -> u64 {
        self.block_tokens
    }

    /// Whether the trace had no block ids, so that no request shares anything with another.
    #[must_use]
    pub const fn synthetic(&self) -> bool {
        self.synthetic
    }

    /// Time from the first arrival to the last, in nanoseconds.
    #[must_use]
    pub fn span_ns(&self) -> u64 {
        self.list.last().map_or(0, |last| last.at_ns)
    }

    /// Hash of the first 65,536 requests.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&self.block_tokens.to_le_bytes());
        for request in self.list.iter().take(65_536) {
            for word in [request.at_ns, request.input_tokens, request.output_tokens] {
                hash.update(&word.to_le_bytes());
            }
            for id in self.blocks(request) {
                hash.update(&id.to_le_bytes());
            }
        }
        hash.digest()
    }
}

/// For each request, the later one whose prompt contains its answer: the one that names it as its parent; or, where a
/// trace has no parents, the first that holds the last full block of its prompt, if that block was new then (a shared
/// system prompt says nothing) and the later prompt is long enough for the answer.
fn continuations(trace: &Trace, output: OutputBlocks, tokens: u64, synthetic: bool) -> FxHashMap<u32, u32> {
    let mut found = FxHashMap::default();
    if output == OutputBlocks::None || synthetic {
        return found;
    }
    let requests = trace.requests();
    let holds = |earlier: u32, later: u32| {
        let (earlier, later) = (&requests[earlier as usize], &requests[later as usize]);
        let full = earlier.input_tokens as usize / tokens as usize;
        let (a, b) = (trace.blocks(earlier), trace.blocks(later));
        full <= a.len() && b.len() > full && a[..full] == b[..full] && later.input_tokens >= earlier.input_tokens
    };
    if requests.iter().any(|request| request.parent.is_some()) {
        for (later, request) in requests.iter().enumerate() {
            if let Some(parent) = request.parent.filter(|&parent| holds(parent, later as u32)) {
                found.entry(parent).or_insert(later as u32);
            }
        }
        return found;
    }
    // The last full block of a prompt, where the prompt was the first to have it.
    let mut open: FxHashMap<u64, u32> = FxHashMap::default();
    let mut seen: FxHashSet<u64> = FxHashSet::default();
    for index in trace.by_arrival() {
        let request = &requests[index as usize];
        let ids = trace.blocks(request);
        for id in ids {
            if let Some(&earlier) = open.get(id) {
                let before = &requests[earlier as usize];
                let whole = u64::from(before.input_tokens) + u64::from(before.output_tokens);
                if u64::from(request.input_tokens) >= whole && holds(earlier, index) {
                    found.entry(earlier).or_insert(index);
                    open.remove(id);
                }
            }
        }
        let last = (u64::from(request.input_tokens) / tokens).checked_sub(1).and_then(|i| ids.get(i as usize));
        if let Some(&last) = last.filter(|last| !seen.contains(last)) {
            open.insert(last, index);
        }
        seen.extend(ids);
    }
    found
}
