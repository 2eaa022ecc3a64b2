//! Makes multi-turn, agentic and RAG traces from named parameters, so that a run needs no download.
//!
//! Sessions arrive as a Poisson process. Each begins with one of a few shared system prompts, chosen by Zipf
//! popularity; every turn adds what the user (or a tool) says and, after it, the answer. With retrieval, a prompt is
//! rather put together from system prompt, fresh passages, the conversation so far and the question. Block ids are
//! those an engine's prefix cache would give: equal where all that precedes is equal, numbered by first appearance.

use std::str::FromStr;
use std::time::Duration;

use rand_distr::{Distribution, Exp1, Zipf};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::random::Random;

use super::{Component, Format, MOONCAKE_BLOCK_TOKENS, Part, Record, Spread, Trace, TraceError, chain};

/// A family of traces; each has its preset parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// People in conversation.
    MultiTurn,
    /// Coding agents: large system prompts, many quick turns.
    Agentic,
    /// Questions answered from retrieved passages.
    Rag,
}

impl FromStr for Kind {
    type Err = SynthError;

    fn from_str(text: &str) -> Result<Self, SynthError> {
        match text {
            "multi-turn" => Ok(Self::MultiTurn),
            "agentic" => Ok(Self::Agentic),
            "rag" => Ok(Self::Rag),
            other => {
                Err(SynthError(format!("no kind of trace is called `{other}`; there are multi-turn, agentic and rag")))
            }
        }
    }
}

/// Parameters that make no trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SynthError(String);

/// Parameters of a synthetic trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Synth {
    /// Seed of everything random.
    pub seed: u64,
    /// Number of conversations.
    pub sessions: u32,
    /// Conversations that begin per second, a Poisson process.
    pub sessions_per_s: f64,
    /// Turns of a conversation.
    pub turns: Spread,
    /// Distinct system prompts.
    pub system_prompts: u32,
    /// Tokens of a system prompt.
    pub system_prompt_tokens: Spread,
    /// Zipf exponent of the system prompts' popularity; zero for equal shares.
    pub system_prompt_zipf: f64,
    /// Tokens that the user or a tool adds at each turn.
    pub input_tokens: Spread,
    /// Tokens of each answer.
    pub output_tokens: Spread,
    /// Seconds from the end of an answer to the next turn.
    pub think_time_s: Spread,
    /// Seconds per output token assumed for the time stamps of later turns.
    pub token_time_s: f64,
    /// A conversation ends rather than exceed this prompt.
    pub context_tokens_max: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Retrieval, for RAG.
    pub retrieval: Option<Retrieval>,
}

/// Where passages come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retrieval {
    /// Passages there are.
    pub passages: u32,
    /// Different passages fetched for each query.
    pub passages_per_query: u32,
    /// Tokens of a passage.
    pub passage_tokens: Spread,
    /// Zipf exponent of the passages' popularity; passage 0 is the most popular.
    pub passage_zipf: f64,
}

/// Most passages: their lengths are kept in memory.
const PASSAGES_MAX: u32 = 1 << 26;

/// A turn before it has its place.
struct Turn {
    at_ms: u64,
    session: u32,
    turn: u32,
    input_tokens: u32,
    output_tokens: u32,
    think_time: Option<Duration>,
    /// Identities of its blocks, before they are numbered.
    blocks: Vec<u64>,
    parts: Vec<Part>,
}

impl Synth {
    /// The preset of a kind.
    #[must_use]
    pub fn preset(kind: Kind) -> Self {
        let multi_turn = Self {
            seed: 1,
            sessions: 200,
            sessions_per_s: 0.5,
            turns: Spread::Geometric(4.0),
            system_prompts: 8,
            system_prompt_tokens: Spread::Fixed(1024.0),
            system_prompt_zipf: 1.0,
            input_tokens: Spread::LogNormal(300.0, 1.0),
            output_tokens: Spread::LogNormal(250.0, 0.7),
            think_time_s: Spread::Exponential(15.0),
            token_time_s: 0.02,
            context_tokens_max: 128 * 1024,
            block_tokens: MOONCAKE_BLOCK_TOKENS,
            retrieval: None,
        };
        match kind {
            Kind::MultiTurn => multi_turn,
            Kind::Agentic => Self {
                sessions: 50,
                sessions_per_s: 0.1,
                turns: Spread::Geometric(20.0),
                system_prompts: 4,
                system_prompt_tokens: Spread::Fixed(14_336.0),
                input_tokens: Spread::LogNormal(600.0, 1.2),
                output_tokens: Spread::LogNormal(200.0, 0.8),
                think_time_s: Spread::Exponential(3.0),
                ..multi_turn
            },
            Kind::Rag => Self {
                sessions: 400,
                sessions_per_s: 1.0,
                turns: Spread::Geometric(1.5),
                system_prompts: 3,
                system_prompt_tokens: Spread::Fixed(1024.0),
                input_tokens: Spread::Exponential(20.0),
                output_tokens: Spread::LogNormal(220.0, 0.7),
                retrieval: Some(Retrieval {
                    passages: 8192,
                    passages_per_query: 6,
                    passage_tokens: Spread::LogNormal(240.0, 0.5),
                    passage_zipf: 0.9,
                }),
                ..multi_turn
            },
        }
    }

    /// Sets a parameter by name, as in `sessions=100` or `retrieval.passages=1000`.
    ///
    /// # Errors
    /// Names the parameters there are, or says why the value is none.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SynthError> {
        let mut all = serde_json::to_value(&*self).map_err(|error| SynthError(error.to_string()))?;
        let mut place = &mut all;
        for step in name.split('.') {
            let names = || place.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>().join(", "));
            let names = names().unwrap_or_default();
            place = place
                .get_mut(step)
                .ok_or_else(|| SynthError(format!("no parameter is called `{name}`; there are {names}")))?;
        }
        *place = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        *self = serde_json::from_value(all).map_err(|error| SynthError(format!("{name}={value}: {error}")))?;
        Ok(())
    }

    fn check(&self) -> Result<(), SynthError> {
        let wrong = |what: &str| Err(SynthError(what.to_owned()));
        if self.sessions == 0 || self.system_prompts == 0 || self.block_tokens == 0 || self.context_tokens_max == 0 {
            return wrong("sessions, system_prompts, block_tokens and context_tokens_max must be at least 1");
        }
        if !(self.sessions_per_s.is_finite() && self.sessions_per_s > 0.0) {
            return wrong("sessions_per_s must be more than 0");
        }
        let times = [self.token_time_s, self.system_prompt_zipf];
        if times.iter().any(|value| !value.is_finite() || *value < 0.0) {
            return wrong("token_time_s and system_prompt_zipf must not be negative");
        }
        match &self.retrieval {
            Some(r) if r.passages > PASSAGES_MAX => wrong("retrieval.passages must be at most 67108864"),
            Some(r) if r.passages == 0 || r.passages_per_query > r.passages => {
                wrong("retrieval.passages_per_query must be at most retrieval.passages, of which there must be one")
            }
            Some(r) if !r.passage_zipf.is_finite() || r.passage_zipf < 0.0 => {
                wrong("retrieval.passage_zipf must not be negative")
            }
            _ => Ok(()),
        }
    }

    /// Makes the trace. The same parameters make the same trace.
    ///
    /// # Errors
    /// When the parameters make none; says which.
    pub fn trace(&self) -> Result<Trace, SynthError> {
        self.check()?;
        let zipf = |n: u32, exponent: f64| {
            Zipf::new(f64::from(n), exponent).map_err(|error| SynthError(format!("popularity: {error}")))
        };
        let mut rng = Random::stream(self.seed, 0);
        let prompts: Vec<u32> =
            (0..self.system_prompts).map(|_| self.system_prompt_tokens.sample_count(&mut rng)).collect();
        let passages: Vec<u32> = self.retrieval.iter().fold(Vec::new(), |_, retrieval| {
            (0..retrieval.passages).map(|_| retrieval.passage_tokens.sample_count(&mut rng)).collect()
        });
        let prompt_choice = zipf(self.system_prompts, self.system_prompt_zipf)?;
        let passage_choice = match &self.retrieval {
            Some(retrieval) => Some((retrieval, zipf(retrieval.passages, retrieval.passage_zipf)?)),
            None => None,
        };
        let mut turns = Vec::new();
        let mut begins_s = 0.0;
        for session in 0..self.sessions {
            let gap: f64 = Exp1.sample(&mut rng);
            begins_s += gap / self.sessions_per_s;
            // Each session has a generator of its own: a longer one does not change those after it.
            let mut rng = Random::stream(self.seed, 1 + u64::from(session));
            let prompt = prompt_choice.sample(&mut rng) as usize - 1;
            let count = self.turns.sample_count(&mut rng);
            let mut talk = Talk { synth: self, session, rng, at_s: begins_s, think_time: None };
            let system = Part { component: Component::SysPrompt, id: prompt as u64, tokens: prompts[prompt] };
            match &passage_choice {
                None => talk.converse(count, system, &mut turns),
                Some((retrieval, choice)) => talk.ask(count, system, retrieval, *choice, &passages, &mut turns),
            }
        }
        turns.sort_by_key(|turn| (turn.at_ms, turn.session));
        let trace = Trace::from_records(Format::Mooncake, self.number(turns), Some(self.block_tokens));
        trace.map_err(|error| SynthError(error.to_string()))
    }

    /// Records with block ids numbered by first appearance.
    fn number(&self, turns: Vec<Turn>) -> impl Iterator<Item = Result<Record, TraceError>> {
        let mut numbers: FxHashMap<u64, u64> = FxHashMap::default();
        let block_tokens = self.block_tokens;
        turns.into_iter().map(move |turn| {
            let mut number = |id: &u64| {
                let next = numbers.len() as u64;
                *numbers.entry(*id).or_insert(next)
            };
            Ok(Record {
                stamp_ns: Some(i64::try_from(turn.at_ms.saturating_mul(1_000_000)).unwrap_or(i64::MAX)),
                input_tokens: turn.input_tokens,
                output_tokens: turn.output_tokens,
                blocks: turn.blocks.iter().map(&mut number).collect(),
                parts: turn.parts,
                block_tokens: Some(block_tokens),
                session: Some(turn.session.to_string().into()),
                turn: Some(turn.turn),
                think_time: turn.think_time,
                ..Record::default()
            })
        })
    }
}

/// One conversation in the making.
struct Talk<'a> {
    synth: &'a Synth,
    session: u32,
    rng: Random,
    at_s: f64,
    think_time: Option<Duration>,
}

/// Identity of a segment that no other conversation has.
fn own(session: u32, turn: u32, what: u64) -> u64 {
    1 << 63 | u64::from(session) << 31 | u64::from(turn) << 2 | what
}

impl Talk<'_> {
    /// The turn at this time; afterwards it is the time of the next one. Time stamps are whole milliseconds, as in
    /// Mooncake's own traces.
    fn turn(&mut self, turn: u32, output_tokens: u32, segments: &[(u64, u32)], parts: Vec<Part>) -> Turn {
        let at_ms = (self.at_s * 1e3).round() as u64;
        let input_tokens = segments.iter().map(|segment| segment.1).sum();
        let mut blocks = Vec::new();
        chain(segments.iter().copied(), self.synth.block_tokens, &mut blocks);
        let think_ms = (self.synth.think_time_s.sample(&mut self.rng) * 1e3).round();
        self.at_s += f64::from(output_tokens) * self.synth.token_time_s + think_ms / 1e3;
        let next = Some(Duration::from_millis(think_ms as u64));
        let think_time = std::mem::replace(&mut self.think_time, next);
        Turn { at_ms, session: self.session, turn, input_tokens, output_tokens, think_time, blocks, parts }
    }

    /// Every prompt is the one before with its answer and something new.
    fn converse(&mut self, count: u32, system: Part, turns: &mut Vec<Turn>) {
        let most = self.synth.context_tokens_max;
        let mut prompt = vec![(system.id, system.tokens.min(most))];
        let mut length = system.tokens.min(most);
        for turn in 1..=count {
            let input = self.synth.input_tokens.sample_count(&mut self.rng);
            let output = self.synth.output_tokens.sample_count(&mut self.rng);
            if turn > 1 && length.saturating_add(input) > most {
                break;
            }
            let input = input.min(most - length);
            prompt.push((own(self.session, turn, 0), input));
            turns.push(self.turn(turn, output, &prompt, Vec::new()));
            prompt.push((own(self.session, turn, 1), output));
            length = length.saturating_add(input).saturating_add(output);
        }
    }

    /// Every prompt is system prompt, fresh passages, the conversation so far, and the question.
    fn ask(
        &mut self,
        count: u32,
        system: Part,
        retrieval: &Retrieval,
        choice: Zipf<f64>,
        passages: &[u32],
        turns: &mut Vec<Turn>,
    ) {
        let mut history: Vec<Part> = Vec::new();
        for turn in 1..=count {
            let input = self.synth.input_tokens.sample_count(&mut self.rng);
            let output = self.synth.output_tokens.sample_count(&mut self.rng);
            let mut parts = vec![system];
            let mut tries = 0;
            while parts.len() <= retrieval.passages_per_query as usize {
                // A steep distribution rarely draws its tail: after many draws the next free passage will do.
                let mut id = choice.sample(&mut self.rng) as u64 - 1;
                tries += 1;
                while tries > 64 * retrieval.passages_per_query && parts[1..].iter().any(|part| part.id == id) {
                    id = (id + 1) % passages.len() as u64;
                }
                if parts[1..].iter().all(|part| part.id != id) {
                    parts.push(Part { component: Component::Passage, id, tokens: passages[id as usize] });
                }
            }
            parts.extend_from_slice(&history);
            parts.push(Part { component: Component::UserInput, id: own(self.session, turn, 0), tokens: input });
            let length: u64 = parts.iter().map(|part| u64::from(part.tokens)).sum();
            if length > u64::from(self.synth.context_tokens_max) {
                break;
            }
            let segments: Vec<_> =
                parts.iter().map(|part| (part.id << 3 ^ part.component as u64, part.tokens)).collect();
            turns.push(self.turn(turn, output, &segments, parts));
            let tokens = input.saturating_add(output);
            history.push(Part { component: Component::History, id: own(self.session, turn, 1), tokens });
        }
    }
}
