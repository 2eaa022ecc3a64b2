//! The requests of a run in order of arrival, with the identities of their full blocks.

use std::borrow::Cow;
use std::ops::Range;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand_distr::{Distribution as _, Zipf};
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
    /// The turn of the conversation that it follows, where the trace tells.
    pub after: Option<Turn>,
    /// Full blocks of the prompt and of the answer as far as it is known.
    all_blocks: u32,
    /// Its place in the trace.
    index: u32,
    ids: Range<usize>,
}

/// What a turn of a conversation waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Index of the turn before.
    pub request: u32,
    /// From its end to the start of this one. Where a trace has no think times: the gap between their arrivals.
    pub think_ns: u64,
}

/// All requests of a run.
///
/// Identities are kept as the trace has them; those of blocks of another size are derived when they are asked for, so
/// that small blocks take no memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Requests {
    list: Vec<Request>,
    ids: Vec<u64>,
    block_tokens: u64,
    trace_tokens: Option<u64>,
    prefixes: Option<Prefixes>,
}

/// Prefixes made up for a trace that has no block ids.
#[derive(Debug, Clone, PartialEq)]
struct Prefixes {
    /// Share of each prompt that is its prefix.
    share: f64,
    count: u32,
    /// Which prefix each request has, by its place in the trace.
    of: Vec<u32>,
}

/// Shares are never NaN.
impl Eq for Prefixes {}

impl Requests {
    /// The requests of a trace by arrival, in blocks of `block_tokens`, whatever the size of the trace's blocks. A trace
    /// without block ids gets blocks that nobody shares.
    #[must_use]
    pub fn from_trace(trace: &Trace, output: OutputBlocks, block_tokens: u32) -> Self {
        let block_tokens = u64::from(block_tokens.max(1));
        let trace_tokens = trace.block_tokens.filter(|_| trace.has_blocks()).map(|tokens| u64::from(tokens.max(1)));
        let tokens = trace_tokens.unwrap_or(block_tokens);
        let continued = continuations(trace, output, tokens, trace_tokens.is_none());
        let before = turns_before(trace, tokens, trace_tokens.is_none());
        let mut places = FxHashMap::default();
        let mut all = Self { list: Vec::new(), ids: Vec::new(), block_tokens, trace_tokens, prefixes: None };
        for index in trace.by_arrival() {
            let request = &trace.requests()[index as usize];
            let (input, output) = (u64::from(request.input_tokens).max(1), u64::from(request.output_tokens).max(1));
            let from = all.ids.len();
            // Tokens of which the identities tell what they are.
            let mut known = input;
            if trace_tokens.is_some() {
                let ids = trace.blocks(request);
                let full = (input / tokens) as usize;
                if let Some(&next) = continued.get(&index).filter(|_| full <= ids.len()) {
                    let next = &trace.requests()[next as usize];
                    // The last token's KV is never computed: it is sampled, not fed back.
                    known = (input + output - 1).min(u64::from(next.input_tokens));
                    all.ids.extend_from_slice(&ids[..full]);
                    all.ids.extend(trace.blocks(next).get(full..).unwrap_or_default());
                } else {
                    all.ids.extend_from_slice(ids);
                }
                // An identity of a block that is not full tells what is in it only where blocks are cut to pieces.
                let used = if tokens == block_tokens { known / tokens } else { known.div_ceil(tokens) } as usize;
                all.ids.truncate(from + used);
                known = known.min((all.ids.len() - from) as u64 * tokens);
            }
            places.insert(index, all.list.len() as u32);
            all.list.push(Request {
                at_ns: u64::try_from(request.at.as_nanos()).unwrap_or(u64::MAX),
                input_tokens: input,
                output_tokens: output,
                prompt_blocks: (known.min(input) / block_tokens) as u32,
                after: turn_before(trace, &before, index, &places),
                all_blocks: (known / block_tokens) as u32,
                index,
                ids: from..all.ids.len(),
            });
        }
        all
    }

    /// Where the trace has no block ids: lets the first `share` (0..=1) of each prompt be one of `count` prefixes, the k-th
    /// of them drawn in proportion to 1/k (Zipf). Nothing changes where the trace has ids, or without a share.
    #[must_use]
    pub fn with_prefixes(mut self, share: f64, count: u32) -> Self {
        if let Some(draw) = Zipf::new(f64::from(count), 1.0).ok().filter(|_| share > 0.0 && self.synthetic()) {
            // Always the same: which request has which prefix is part of the workload, as it is in a trace with ids.
            let mut random = SmallRng::seed_from_u64(u64::from(count));
            let places = self.list.iter().map(|request| request.index + 1).max().unwrap_or(0);
            let of = (0..places).map(|_| draw.sample(&mut random) as u32).collect();
            self.prefixes = Some(Prefixes { share: share.min(1.0), count, of });
        }
        self
    }

    /// The requests, by arrival.
    #[must_use]
    pub fn list(&self) -> &[Request] {
        &self.list
    }

    /// Identities of the full blocks of a request: of its prompt, then of its answer as far as they are known.
    #[must_use]
    pub fn blocks(&self, request: &Request) -> Cow<'_, [u64]> {
        let count = u64::from(request.all_blocks);
        let ids = &self.ids[request.ids.clone()];
        match self.trace_tokens {
            None => {
                let own = u64::from(request.index) + 1;
                let shared = self.prefixes.as_ref().map_or((0, own), |prefixes| {
                    let tokens = (request.input_tokens as f64 * prefixes.share) as u64;
                    (tokens / self.block_tokens, u64::MAX - u64::from(prefixes.of[request.index as usize]))
                });
                Cow::Owned((0..count).map(|i| mix2(if i < shared.0 { shared.1 } else { own }, i)).collect())
            }
            Some(tokens) if tokens == self.block_tokens => Cow::Borrowed(ids),
            Some(tokens) => Cow::Owned((0..count).map(|i| derived(ids, tokens, self.block_tokens, i)).collect()),
        }
    }

    /// Tokens of a block.
    #[must_use]
    pub const fn block_tokens(&self) -> u64 {
        self.block_tokens
    }

    /// Tokens of a block of the trace, if it has any.
    #[must_use]
    pub const fn trace_block_tokens(&self) -> Option<u64> {
        self.trace_tokens
    }

    /// Sizes of blocks, here and in the trace, for the report.
    #[must_use]
    pub fn blocks_in_words(&self) -> String {
        let tokens = self.block_tokens;
        match (self.trace_tokens, &self.prefixes) {
            (None, None) => format!("{tokens} tokens, made up: the trace has no block ids, so nothing is shared"),
            (None, Some(prefixes)) => format!(
                "{tokens} tokens, made up: the trace has no block ids; the first {}% of each prompt is one of {} prefixes, the k-th in proportion to 1/k",
                (prefixes.share * 100.0).round(),
                prefixes.count
            ),
            (Some(trace), _) if trace == tokens => format!("{tokens} tokens, as in the trace"),
            (Some(trace), _) => format!("{tokens} tokens, derived: the trace has blocks of {trace}"),
        }
    }

    /// Whether no request shares anything with another, since the trace has no block ids and no prefixes were made up.
    #[must_use]
    pub const fn shares_nothing(&self) -> bool {
        self.synthetic() && self.prefixes.is_none()
    }

    /// Whether the trace had no block ids.
    #[must_use]
    pub const fn synthetic(&self) -> bool {
        self.trace_tokens.is_none()
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
            for id in self.blocks(request).iter() {
                hash.update(&id.to_le_bytes());
            }
        }
        hash.digest()
    }
}

/// Identity of the i-th block of `block` tokens of a prompt whose blocks of `trace` tokens have these `ids`: of which of
/// them it is made, and where in the first it begins. Two prompts have the same derived block where they have the same
/// blocks of the trace under it; a block of the trace counts as a whole even if the derived one ends in its midst.
fn derived(ids: &[u64], trace: u64, block: u64, i: u64) -> u64 {
    let (start, end) = (i * block, (i + 1) * block);
    let (first, last) = ((start / trace) as usize, ((end - 1) / trace) as usize);
    ids[first + 1..=last].iter().fold(mix2(ids[first], start % trace + 1), |hash, &id| mix2(hash, id))
}

/// For each turn of a conversation, the one before it: its parent if the trace names parents, else the turn before of
/// the same session, else, in a trace without sessions, the request whose prompt and answer its prompt contains.
fn turns_before(trace: &Trace, tokens: u64, synthetic: bool) -> FxHashMap<u32, u32> {
    let requests = trace.requests();
    let mut before = FxHashMap::default();
    let mut last: FxHashMap<u32, u32> = FxHashMap::default();
    for index in trace.by_arrival() {
        let request = &requests[index as usize];
        let previous = request.session.and_then(|session| last.insert(session, index));
        before.extend(request.parent.or(previous).map(|previous| (index, previous)));
    }
    if last.is_empty() && before.is_empty() {
        let continued = continuations(trace, OutputBlocks::Infer, tokens, synthetic);
        before.extend(continued.into_iter().map(|(earlier, later)| (later, earlier)));
    }
    before
}

/// What request `index` waits for, if that is among those `placed` already, which came before.
fn turn_before(trace: &Trace, before: &FxHashMap<u32, u32>, index: u32, placed: &FxHashMap<u32, u32>) -> Option<Turn> {
    let previous = before.get(&index)?;
    let (earlier, later) = (&trace.requests()[*previous as usize], &trace.requests()[index as usize]);
    let think = later.think_time.unwrap_or_else(|| later.at.saturating_sub(earlier.at));
    Some(Turn { request: *placed.get(previous)?, think_ns: u64::try_from(think.as_nanos()).unwrap_or(u64::MAX) })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::{Format, Record};

    /// Requests of (arrival, prompt tokens, output tokens, ids), in blocks of `tokens`.
    fn trace(tokens: u32, list: &[(u64, u32, u32, Vec<u64>)]) -> Trace {
        let records = list.iter().map(|(at, input, output, ids)| {
            Ok(Record {
                stamp_ns: Some(*at as i64),
                input_tokens: *input,
                output_tokens: *output,
                blocks: ids.clone(),
                ..Record::default()
            })
        });
        Trace::from_records(Format::Mooncake, records, Some(tokens)).expect("valid records")
    }

    fn blocks(requests: &Requests, i: usize) -> Vec<u64> {
        requests.blocks(&requests.list()[i]).into_owned()
    }

    fn prefix(a: &[u64], b: &[u64]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn blocks_of_the_traces_size_keep_their_identities() {
        let list = [(0, 1200, 1, vec![1, 2, 3]), (1, 1024, 1, vec![1, 2])];
        let requests = Requests::from_trace(&trace(512, &list), OutputBlocks::None, 512);
        assert_eq!((blocks(&requests, 0), blocks(&requests, 1)), (vec![1, 2], vec![1, 2]));
        assert_eq!(requests.blocks_in_words(), "512 tokens, as in the trace");
    }

    #[test]
    fn prefixes_are_made_up_on_request_only_and_shared_by_popularity() {
        let list: Vec<_> = (0..4000).map(|i| (i, 1600, 1, Vec::new())).collect();
        let bare = || Requests::from_trace(&trace(16, &list), OutputBlocks::None, 16);
        assert!(bare().shares_nothing() && bare().with_prefixes(0.0, 10).shares_nothing());
        let shared = bare().with_prefixes(0.5, 4);
        assert!(!shared.shares_nothing() && shared.synthetic());
        assert_eq!(shared, bare().with_prefixes(0.5, 4));
        // Half of each prompt is one of four prefixes, popular as 1 : 1/2 : 1/3 : 1/4; the rest is the prompt's own.
        let mut counts: FxHashMap<Vec<u64>, u32> = FxHashMap::default();
        let mut own: FxHashSet<u64> = FxHashSet::default();
        for i in 0..list.len() {
            let ids = blocks(&shared, i);
            assert_eq!(ids.len(), 100);
            *counts.entry(ids[..50].to_vec()).or_default() += 1;
            own.extend(&ids[50..]);
        }
        assert_eq!(own.len(), 50 * list.len());
        let mut counts: Vec<u32> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(counts.len(), 4);
        for (k, count) in (1..).zip(counts) {
            // Four standard deviations of a binomial count.
            let share = 1.0 / (f64::from(k) * 25.0 / 12.0);
            let expected = 4000.0 * share;
            assert!((f64::from(count) - expected).abs() < 4.0 * (expected * (1.0 - share)).sqrt(), "{k}: {count}");
        }
        // A trace with ids keeps them.
        let ids = || Requests::from_trace(&trace(512, &[(0, 1200, 1, vec![1, 2, 3])]), OutputBlocks::None, 512);
        assert_eq!(ids().with_prefixes(0.5, 4), ids());
    }

    #[test]
    fn small_blocks_cut_those_of_the_trace_to_pieces() {
        // The third prompt differs from the first in its last block, which is not full.
        let list = [(0, 1200, 1, vec![1, 2, 3]), (1, 1024, 1, vec![1, 2]), (2, 1200, 1, vec![1, 2, 4])];
        let requests = Requests::from_trace(&trace(512, &list), OutputBlocks::None, 16);
        let [first, second, third] = [0, 1, 2].map(|i| blocks(&requests, i));
        assert_eq!((first.len(), second.len(), third.len()), (75, 64, 75), "⌊1200 / 16⌋: the rest is never stored");
        assert_eq!((prefix(&first, &second), prefix(&first, &third)), (64, 64));
        assert_eq!(first.iter().collect::<FxHashSet<_>>().len(), 75, "each piece is another block");
        assert_eq!(requests.list()[0].prompt_blocks, 75);
        assert_eq!(requests.blocks_in_words(), "16 tokens, derived: the trace has blocks of 512");
    }

    #[test]
    fn large_blocks_join_those_of_the_trace() {
        let list = [(0, 160, 1, (1..=10).collect()), (1, 160, 1, vec![1, 2, 3, 4, 5, 6, 7, 18, 19, 20])];
        let requests = Requests::from_trace(&trace(16, &list), OutputBlocks::None, 64);
        let (first, second) = (blocks(&requests, 0), blocks(&requests, 1));
        assert_eq!((first.len(), second.len(), prefix(&first, &second)), (2, 2, 1), "four to one, and 32 tokens left");
    }

    #[test]
    fn answers_are_known_to_the_piece() {
        // The second prompt is the first's 600 tokens, its answer of 301, and more: 900 tokens were computed.
        let list = [(0, 600, 301, vec![1, 2]), (1, 1536, 1, vec![1, 3, 4])];
        for (size, prompt, all) in [(512, 1, 1), (100, 6, 9), (16, 37, 56)] {
            let requests = Requests::from_trace(&trace(512, &list), OutputBlocks::Infer, size);
            let (first, second) = (blocks(&requests, 0), blocks(&requests, 1));
            assert_eq!((requests.list()[0].prompt_blocks, first.len()), (prompt, all), "blocks of {size}");
            if 512 % size == 0 {
                assert_eq!(prefix(&first, &second), all, "blocks of {size}");
            }
        }
    }

    proptest! {
        /// However blocks are cut: two prompts share what they share in the trace, rounded down to whole blocks.
        #[test]
        fn shared_prefixes_stay_shared(
            shared in 0usize..12, own in 1usize..6, of_trace in 1u32..70, of_client in 1u32..140,
        ) {
            let ids = |talk: u64| -> Vec<u64> {
                (0..shared as u64).chain((0..own as u64).map(|i| talk * 1000 + i)).collect()
            };
            let tokens = (shared + own) as u32 * of_trace;
            let list = [(0, tokens, 1, ids(1)), (1, tokens, 1, ids(2))];
            let requests = Requests::from_trace(&trace(of_trace, &list), OutputBlocks::None, of_client);
            let (first, second) = (blocks(&requests, 0), blocks(&requests, 1));
            prop_assert_eq!(first.len() as u32, tokens / of_client);
            let whole = shared as u32 * of_trace / of_client;
            prop_assert_eq!(prefix(&first, &second) as u32, whole);
        }
    }
}
