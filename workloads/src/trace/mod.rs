//! Request traces: readers of the formats in use, prefix analysis, synthesis, cutting and converting.
//!
//! Every reader yields [`Record`]s; a [`Trace`] holds them compactly: one flat list of block ids and one of prompt
//! parts, with a range of each per request.

mod blocks;
mod csv;
mod info;
mod jsonl;
mod lru;
mod read;
mod spread;
mod synth;
mod weka;
mod write;

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

pub(crate) use blocks::chain;
pub use info::{ComponentInfo, LruInfo, TokenInfo, TraceInfo, info};
pub use read::{Options, Records, TraceError, records, records_from};
pub use spread::{Spread, SpreadError};
pub use synth::{Kind, Retrieval, Synth, SynthError};
pub use write::write_mooncake;

/// Tokens of a block in Mooncake's published traces, and the default where a file does not say.
pub const MOONCAKE_BLOCK_TOKENS: u32 = 512;

/// A trace format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Mooncake (FAST'25): JSONL with `timestamp` in ms and the ids of 512-token blocks; also what we write.
    Mooncake,
    /// Alibaba Bailian: JSONL with `chat_id`, `timestamp` in s and the ids of 16-token blocks.
    Bailian,
    /// RAGPulse: JSONL with ids by component of the prompt, and a file of token lengths for each component beside it.
    Ragpulse,
    /// WEKA kv-cache-tester: one JSON document for each conversation.
    Weka,
    /// Azure LLM inference 2023: CSV of arrivals and token counts.
    Azure,
    /// BurstGPT: CSV of arrivals and token counts.
    Burstgpt,
    /// Mooncake's lines with AIPerf's session fields. A line's `input_length` is taken as its whole prompt; history that
    /// AIPerf itself would add when it replays a session is not.
    Aiperf,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 7] =
        [Self::Mooncake, Self::Bailian, Self::Ragpulse, Self::Weka, Self::Azure, Self::Burstgpt, Self::Aiperf];

    /// The name used on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mooncake => "mooncake",
            Self::Bailian => "bailian",
            Self::Ragpulse => "ragpulse",
            Self::Weka => "weka",
            Self::Azure => "azure",
            Self::Burstgpt => "burstgpt",
            Self::Aiperf => "aiperf",
        }
    }

    /// Tokens of a block where the file itself does not say; none where blocks have no fixed size or are absent.
    #[must_use]
    pub const fn block_tokens(self) -> Option<u32> {
        match self {
            Self::Mooncake | Self::Aiperf => Some(MOONCAKE_BLOCK_TOKENS),
            Self::Bailian => Some(16),
            Self::Weka => Some(64),
            Self::Ragpulse | Self::Azure | Self::Burstgpt => None,
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A component of a RAG prompt; the order is the order of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Component {
    /// System prompt.
    SysPrompt,
    /// A retrieved passage.
    Passage,
    /// Earlier turns.
    History,
    /// A web search result.
    WebSearch,
    /// What the user asks.
    UserInput,
}

impl Component {
    /// Every component, in the order of the prompt.
    pub const ALL: [Self; 5] = [Self::SysPrompt, Self::Passage, Self::History, Self::WebSearch, Self::UserInput];

    /// RAGPulse's name of the component in `hash_ids`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SysPrompt => "sys_prompt",
            Self::Passage => "passages_ids",
            Self::History => "history",
            Self::WebSearch => "web_search",
            Self::UserInput => "user_input",
        }
    }
}

/// A piece of a RAG prompt with an identity of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Part {
    /// What it is.
    pub component: Component,
    /// Identity among its component.
    pub id: u64,
    /// Its length.
    pub tokens: u32,
}

/// One request as a reader yields it, before it has a place in a [`Trace`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    /// Time stamp in ns of the trace's own clock; none for a turn that only says how long after the turn before.
    pub stamp_ns: Option<i64>,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Tokens generated.
    pub output_tokens: u32,
    /// Block ids of the prompt from its start; empty where the format has none.
    pub blocks: Vec<u64>,
    /// Parts of a RAG prompt; empty where the format has none.
    pub parts: Vec<Part>,
    /// Tokens of a block, where the record itself says.
    pub block_tokens: Option<u32>,
    /// Name of its conversation.
    pub session: Option<Box<str>>,
    /// Turn within the conversation, from one, where given.
    pub turn: Option<u32>,
    /// Time between the end of the turn before and this one, where given.
    pub think_time: Option<Duration>,
    /// Identity that later records may name as their parent.
    pub key: Option<u64>,
    /// The request whose answer this one follows.
    pub parent: Option<u64>,
}

/// One request of a [`Trace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Arrival, from the earliest request of the trace.
    pub at: Duration,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Tokens generated.
    pub output_tokens: u32,
    /// Conversation, numbered from zero in order of appearance.
    pub session: Option<u32>,
    /// Index of the request whose answer this one follows.
    pub parent: Option<u32>,
    /// Turn within the conversation, from one.
    pub turn: u32,
    /// Time between the end of the turn before and this one.
    pub think_time: Option<Duration>,
    blocks: Range<usize>,
    parts: Range<usize>,
}

/// Requests in the order of their file (which is not always that of their arrival).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Where it came from.
    pub format: Format,
    /// Tokens of a block; none where the trace has no blocks of one size.
    pub block_tokens: Option<u32>,
    requests: Vec<Request>,
    blocks: Vec<u64>,
    parts: Vec<Part>,
    sessions: u32,
}

impl Trace {
    /// Reads a trace file, or a folder of WEKA conversations or of RAGPulse's files. The format is told by content.
    ///
    /// # Errors
    /// Names the file, the line and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, TraceError> {
        Self::load_with(path, &Options::default())
    }

    /// [`Trace::load`] with the format or the size of blocks given.
    ///
    /// # Errors
    /// As [`Trace::load`].
    pub fn load_with(path: &Path, options: &Options) -> Result<Self, TraceError> {
        let (format, records) = records(path, options)?;
        let trace = Self::from_records(format, records, options.block_tokens)?;
        if trace.requests.is_empty() {
            return Err(TraceError::Empty { file: path.display().to_string() });
        }
        Ok(trace)
    }

    /// Gathers records. `block_tokens` overrides what records and format say.
    ///
    /// # Errors
    /// The first error among the records.
    pub fn from_records(
        format: Format,
        records: impl IntoIterator<Item = Result<Record, TraceError>>,
        block_tokens: Option<u32>,
    ) -> Result<Self, TraceError> {
        let mut gather = Gather::default();
        for record in records {
            gather.push(record?);
        }
        Ok(gather.finish(format, block_tokens))
    }

    /// The requests, in file order.
    #[must_use]
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// Block ids of a request of this trace, from the start of its prompt.
    ///
    /// # Panics
    /// When the request is of another trace.
    #[must_use]
    pub fn blocks(&self, request: &Request) -> &[u64] {
        &self.blocks[request.blocks.clone()]
    }

    /// Parts of the RAG prompt of a request of this trace, in the order of the prompt.
    ///
    /// # Panics
    /// When the request is of another trace.
    #[must_use]
    pub fn parts(&self, request: &Request) -> &[Part] {
        &self.parts[request.parts.clone()]
    }

    /// Whether any request has block ids.
    #[must_use]
    pub fn has_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Whether any request has parts.
    #[must_use]
    pub fn has_parts(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Number of conversations; requests without one count as none.
    #[must_use]
    pub fn sessions(&self) -> u32 {
        self.sessions
    }

    /// Time from the first to the last arrival.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.requests.iter().map(|r| r.at).max().unwrap_or_default()
    }

    /// Indices of the requests by arrival; those that arrive together keep their file order.
    #[must_use]
    pub fn by_arrival(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.requests.len() as u32).collect();
        order.sort_by_key(|&i| self.requests[i as usize].at);
        order
    }

    /// The requests that arrive in `from..to`, in file order, their time counted from `from`. A turn whose parent is
    /// left out has none.
    #[must_use]
    pub fn window(&self, from: Duration, to: Duration) -> Self {
        let mut cut = Self { requests: Vec::new(), blocks: Vec::new(), parts: Vec::new(), sessions: 0, ..*self };
        let mut place: FxHashMap<u32, u32> = FxHashMap::default();
        let mut sessions: FxHashMap<u32, u32> = FxHashMap::default();
        for (i, request) in self.requests.iter().enumerate().filter(|(_, r)| (from..to).contains(&r.at)) {
            place.insert(i as u32, cut.requests.len() as u32);
            let (block, part) = (cut.blocks.len(), cut.parts.len());
            cut.blocks.extend_from_slice(self.blocks(request));
            cut.parts.extend_from_slice(self.parts(request));
            let next = sessions.len() as u32;
            cut.requests.push(Request {
                at: request.at - from,
                session: request.session.map(|session| *sessions.entry(session).or_insert(next)),
                blocks: block..cut.blocks.len(),
                parts: part..cut.parts.len(),
                ..request.clone()
            });
        }
        for request in &mut cut.requests {
            request.parent = request.parent.and_then(|parent| place.get(&parent).copied());
        }
        cut.sessions = sessions.len() as u32;
        cut
    }
}

/// Puts records in place: numbers sessions, finds parents, sets the clock to the earliest arrival.
#[derive(Default)]
struct Gather {
    requests: Vec<Request>,
    /// Time stamps; none for those that follow their parent by their think time.
    stamps: Vec<Option<i64>>,
    blocks: Vec<u64>,
    parts: Vec<Part>,
    sessions: FxHashMap<Box<str>, u32>,
    keys: FxHashMap<u64, u32>,
    parent_keys: Vec<Option<u64>>,
    explicit_turns: bool,
    block_tokens: Option<u32>,
}

impl Gather {
    fn push(&mut self, record: Record) {
        let index = self.requests.len() as u32;
        let (block, part) = (self.blocks.len(), self.parts.len());
        self.blocks.extend_from_slice(&record.blocks);
        self.parts.extend_from_slice(&record.parts);
        let next = self.sessions.len() as u32;
        let session = record.session.map(|name| *self.sessions.entry(name).or_insert(next));
        if let Some(key) = record.key {
            self.keys.insert(key, index);
        }
        self.explicit_turns |= record.turn.is_some();
        self.block_tokens = self.block_tokens.or(record.block_tokens);
        self.stamps.push(record.stamp_ns);
        self.parent_keys.push(record.parent);
        self.requests.push(Request {
            at: Duration::ZERO,
            input_tokens: record.input_tokens,
            output_tokens: record.output_tokens,
            session,
            parent: None,
            turn: record.turn.unwrap_or(1),
            think_time: record.think_time,
            blocks: block..self.blocks.len(),
            parts: part..self.parts.len(),
        });
    }

    fn finish(mut self, format: Format, block_tokens: Option<u32>) -> Trace {
        self.chain_by_key();
        self.chain_by_session();
        self.set_clock();
        let block_tokens = block_tokens.or(self.block_tokens).or_else(|| {
            let usual = format.block_tokens()?;
            (!self.blocks.is_empty()).then(|| blocks::infer_block_tokens(&self.requests, usual))
        });
        // Sessions that only keys tell (Bailian) were numbered in `chain_by_key`.
        let sessions = self.requests.iter().filter_map(|r| r.session).max().map_or(0, |last| last + 1);
        let Self { requests, blocks, parts, .. } = self;
        Trace { format, block_tokens, requests, blocks, parts, sessions }
    }

    /// Parents named by key. Those without a session of their own share that of their root.
    fn chain_by_key(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        for i in 0..self.requests.len() {
            let parent = self.parent_keys[i].and_then(|key| self.keys.get(&key).copied());
            // Only an earlier request can be followed; anything else would be a cycle.
            self.requests[i].parent = parent.filter(|&parent| parent < i as u32);
        }
        let mut next = self.sessions.len() as u32;
        for i in 0..self.requests.len() {
            if self.requests[i].session.is_none() {
                let inherited = self.requests[i].parent.and_then(|parent| self.requests[parent as usize].session);
                self.requests[i].session = Some(inherited.unwrap_or_else(|| {
                    next += 1;
                    next - 1
                }));
            }
        }
    }

    /// Where only a session is known, each request follows the one before it in time.
    fn chain_by_session(&mut self) {
        if !self.keys.is_empty() {
            return;
        }
        let mut order: Vec<u32> = (0..self.requests.len() as u32).collect();
        if self.stamps.iter().all(Option::is_some) {
            order.sort_by_key(|&i| self.stamps[i as usize]);
        }
        let mut last: FxHashMap<u32, (u32, u32)> = FxHashMap::default();
        for i in order {
            let request = &mut self.requests[i as usize];
            let Some(session) = request.session else { continue };
            let before = last.get(&session).copied();
            request.parent = before.map(|(parent, _)| parent);
            if !self.explicit_turns {
                request.turn = before.map_or(1, |(_, turn)| turn + 1);
            }
            let turn = request.turn;
            last.insert(session, (i, turn));
        }
    }

    /// Counts time from the earliest stamp. A turn without a stamp comes its think time after its parent: the earliest
    /// it could, were answers instant.
    fn set_clock(&mut self) {
        let origin = self.stamps.iter().flatten().min().copied().unwrap_or(0);
        for i in 0..self.requests.len() {
            let request = &self.requests[i];
            self.requests[i].at = match self.stamps[i] {
                Some(stamp) => Duration::from_nanos(stamp.abs_diff(origin)),
                None => {
                    let parent = request.parent.map_or(Duration::ZERO, |parent| self.requests[parent as usize].at);
                    parent.saturating_add(request.think_time.unwrap_or_default())
                }
            };
        }
    }
}

#[cfg(test)]
mod tests;
