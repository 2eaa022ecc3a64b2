//! WEKA kv-cache-tester: one JSON document per conversation, with the requests of sub-agents inside it.
//!
//! Conversations have no clock in common: each starts at zero. Hash ids are local to a conversation unless it says
//! otherwise. A sub-agent's `t` is when it ended (its start, `t − duration_ms`, is when the request before it was
//! answered), and times within count from its start.

use std::io::BufRead;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use serde::Deserialize;

use super::jsonl::{S, Stamp, tokens};
use super::{Record, TraceError};

#[derive(Deserialize)]
struct Document {
    id: Option<Box<str>>,
    block_size: Option<u32>,
    hash_id_scope: Option<Box<str>>,
    requests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a request must have t, in, out and hash_ids, or be a subagent with requests")]
enum Entry {
    Subagent { t: Stamp, agent_id: Option<Box<str>>, duration_ms: Option<Stamp>, requests: Vec<Turn> },
    Turn(Turn),
}

#[derive(Deserialize)]
struct Turn {
    t: Stamp,
    #[serde(rename = "in", deserialize_with = "tokens")]
    input: u32,
    #[serde(rename = "out", deserialize_with = "tokens")]
    output: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
    think_time: Option<Stamp>,
}

/// A document to read, with the name errors call it by.
type Source = Result<(Arc<str>, Box<dyn BufRead>), TraceError>;

/// Records of conversations, one document at a time.
pub(super) struct Conversations<I> {
    sources: I,
    records: std::vec::IntoIter<Record>,
    /// Ids of documents whose scope is not local.
    shared: FxHashMap<u64, u64>,
    next_id: u64,
    next_key: u64,
    documents: u64,
    over: bool,
}

impl<I: Iterator<Item = Source>> Conversations<I> {
    pub(super) fn new(sources: I) -> Self {
        Self {
            sources,
            records: Vec::new().into_iter(),
            shared: FxHashMap::default(),
            next_id: 0,
            next_key: 0,
            documents: 0,
            over: false,
        }
    }

    fn document(&mut self, file: &str, mut input: impl BufRead) -> Result<Vec<Record>, TraceError> {
        let name = || file.to_owned();
        let mut text = Vec::new();
        input.read_to_end(&mut text).map_err(|source| TraceError::Read { file: name(), line: 1, source })?;
        let document: Document = serde_json::from_slice(&text).map_err(|error| {
            let what = error.to_string();
            let what = what.rsplit_once(" at line ").map_or(&*what, |(what, _)| what).to_owned();
            TraceError::Line { file: name(), line: error.line() as u64, what }
        })?;
        drop(text);
        let malformed = |what: String| TraceError::Line { file: name(), line: 1, what };
        if document.block_size == Some(0) {
            return Err(malformed("block_size is zero".to_owned()));
        }
        self.place(document).map_err(malformed)
    }

    fn place(&mut self, document: Document) -> Result<Vec<Record>, String> {
        self.documents += 1;
        let name = document.id.unwrap_or_else(|| format!("conversation {}", self.documents).into());
        let local = document.hash_id_scope.as_deref().is_none_or(|scope| scope == "local");
        let mut own = FxHashMap::default();
        let mut records = Vec::new();
        let mut parent = None;
        let mut main_turn = 0;
        for (i, entry) in document.requests.into_iter().enumerate() {
            let whose = |what| format!("request {i}: {what}");
            let place = Place { name: &name, block_tokens: document.block_size, start: 0, turn: main_turn + 1, parent };
            let ids = if local { &mut own } else { &mut self.shared };
            match entry {
                Entry::Turn(turn) => {
                    main_turn += 1;
                    parent = Some(self.next_key);
                    records.push(place.record(turn, ids, &mut self.next_id, &mut self.next_key).map_err(whose)?);
                }
                Entry::Subagent { t, agent_id, duration_ms, requests } => {
                    let length = duration_ms.map(|ms| ms.nanos(S / 1000)).transpose().map_err(whose)?.unwrap_or(0);
                    let start = t.nanos(S).map_err(whose)?.saturating_sub(length).max(0);
                    let agent = agent_id.unwrap_or_else(|| i.to_string().into());
                    let name = format!("{name}/{agent}");
                    let mut place = Place { name: &name, start, turn: 1, ..place };
                    for turn in requests {
                        let key = self.next_key;
                        let record = place.record(turn, ids, &mut self.next_id, &mut self.next_key);
                        records.push(record.map_err(whose)?);
                        place.parent = Some(key);
                        place.turn += 1;
                    }
                }
            }
        }
        Ok(records)
    }
}

/// Where a turn stands.
struct Place<'a> {
    name: &'a str,
    block_tokens: Option<u32>,
    start: i64,
    turn: u32,
    parent: Option<u64>,
}

impl Place<'_> {
    fn record(
        &self,
        turn: Turn,
        ids: &mut FxHashMap<u64, u64>,
        next_id: &mut u64,
        next_key: &mut u64,
    ) -> Result<Record, String> {
        let mut global = |local| {
            *ids.entry(local).or_insert_with(|| {
                *next_id += 1;
                *next_id - 1
            })
        };
        let think = turn.think_time.map(|time| time.nanos(S)).transpose()?;
        *next_key += 1;
        Ok(Record {
            stamp_ns: Some(turn.t.nanos(S)?.saturating_add(self.start)),
            input_tokens: turn.input,
            output_tokens: turn.output,
            blocks: turn.hash_ids.into_iter().map(&mut global).collect(),
            block_tokens: self.block_tokens,
            session: Some(self.name.into()),
            turn: Some(self.turn),
            // Measured times can come out a hair below zero.
            think_time: think.map(|ns| Duration::from_nanos(u64::try_from(ns).unwrap_or(0))),
            key: Some(*next_key - 1),
            parent: self.parent,
            ..Record::default()
        })
    }
}

impl<I: Iterator<Item = Source>> Iterator for Conversations<I> {
    type Item = Result<Record, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.over {
            if let Some(record) = self.records.next() {
                return Some(Ok(record));
            }
            let read = match self.sources.next() {
                None => break,
                Some(source) => source.and_then(|(file, input)| self.document(&file, input)),
            };
            match read {
                Ok(records) => self.records = records.into_iter(),
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            }
        }
        self.over = true;
        None
    }
}
