//! Line formats: Mooncake with AIPerf's session fields and our own, Bailian, RAGPulse.

use std::io::{BufRead, Read};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::read::{LINE_BYTES_MAX, PartTokens};
use super::{Component, Format, Part, Record, TraceError};

/// Nanoseconds of a millisecond.
const MS: i64 = 1_000_000;
/// Nanoseconds of a second.
pub(super) const S: i64 = 1_000_000_000;

/// Parses each line that is not blank; an error names file and line, after which there is nothing more.
pub(super) struct Lines<R, P> {
    file: Arc<str>,
    input: R,
    parse: P,
    line: u64,
    buf: Vec<u8>,
    over: bool,
}

impl<R: BufRead, P> Lines<R, P> {
    pub(super) fn new(file: Arc<str>, input: R, parse: P) -> Self {
        Self { file, input, parse, line: 0, buf: Vec::new(), over: false }
    }
}

impl<R: BufRead, T, P: FnMut(&[u8]) -> Result<T, String>> Iterator for Lines<R, P> {
    type Item = Result<T, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.over {
            self.buf.clear();
            self.line += 1;
            let read = self.input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.buf);
            let (file, line) = (|| self.file.to_string(), self.line);
            let result = match read {
                Err(source) => Err(TraceError::Read { file: file(), line, source }),
                Ok(0) => break,
                Ok(read) if read as u64 == LINE_BYTES_MAX => {
                    let what = format!("it is longer than {} MiB", LINE_BYTES_MAX >> 20);
                    Err(TraceError::Line { file: file(), line, what })
                }
                Ok(_) => {
                    let text = self.buf.trim_ascii();
                    let text = if line == 1 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) } else { text };
                    if text.is_empty() {
                        continue;
                    }
                    (self.parse)(text).map_err(|what| TraceError::Line { file: file(), line, what })
                }
            };
            self.over = result.is_err();
            return Some(result);
        }
        self.over = true;
        None
    }
}

/// A JSON error without the line it counts itself: within one line of a file it is always the first.
fn json<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| error.to_string().replace(" at line 1 column", " at column"))
}

/// A time as traces write it: a whole number, a fraction, or text of either.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a time must be a number")]
pub(super) enum Stamp {
    Whole(i64),
    Fraction(f64),
    Text(String),
}

impl Stamp {
    /// In nanoseconds, where one is `unit` of them.
    pub(super) fn nanos(&self, unit: i64) -> Result<i64, String> {
        let beyond = || format!("time {self} is out of range");
        match self {
            Self::Whole(whole) => whole.checked_mul(unit).ok_or_else(beyond),
            Self::Fraction(value) => {
                let nanos = (value * unit as f64).round();
                // Casting saturates; a time within a year of either end is none either.
                (nanos.abs() < 9.2e18).then_some(nanos as i64).ok_or_else(beyond)
            }
            Self::Text(text) => decimal(text.trim(), unit).ok_or_else(|| format!("time `{text}` is not a number")),
        }
    }

    /// In nanoseconds, as a span of time.
    pub(super) fn span(&self, unit: i64) -> Result<Duration, String> {
        let nanos = u64::try_from(self.nanos(unit)?).map_err(|_| format!("a span of {self} is negative"))?;
        Ok(Duration::from_nanos(nanos))
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(value) => value.fmt(f),
            Self::Fraction(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

/// Reads decimal text exactly to the nanosecond; digits beyond are cut off. Other notations go by way of `f64`.
pub(super) fn decimal(text: &str, unit: i64) -> Option<i64> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !plain(whole) || !plain(fraction) {
        return Stamp::Fraction(text.parse().ok()?).nanos(unit).ok();
    }
    let mut nanos = whole.parse::<i64>().ok()?.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        nanos = nanos.checked_add(i64::from(digit - b'0') * place)?;
    }
    Some(if negative { -nanos } else { nanos })
}

/// A number of tokens: whole and of a size a prompt can have.
pub(super) fn tokens<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let count = u64::deserialize(from)?;
    u32::try_from(count)
        .map_err(|_| serde::de::Error::custom(format!("{count} tokens are more than a prompt can have")))
}

fn some_tokens<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    tokens(from).map(Some)
}

/// A session name or number.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a session must be text or a whole number")]
enum Name {
    Number(i64),
    Text(Box<str>),
}

impl From<Name> for Box<str> {
    fn from(name: Name) -> Self {
        match name {
            Name::Number(number) => number.to_string().into(),
            Name::Text(text) => text,
        }
    }
}

/// What tells line formats apart.
#[derive(Deserialize)]
struct Head {
    hash_ids: Option<serde_json::Value>,
    chat_id: Option<serde::de::IgnoredAny>,
    session_id: Option<serde::de::IgnoredAny>,
    delay: Option<serde::de::IgnoredAny>,
    requests: Option<serde::de::IgnoredAny>,
}

/// The format of JSON that begins with `line`: a whole object, or the beginning of a document on several lines.
pub(super) fn detect(line: &[u8]) -> Option<Format> {
    if line.first() != Some(&b'{') {
        return None;
    }
    let holds = |key: &[u8]| line.windows(key.len()).any(|window| window == key);
    Some(match serde_json::from_slice::<Head>(line) {
        Ok(head) if head.requests.is_some() => Format::Weka,
        Ok(head) if head.hash_ids.as_ref().is_some_and(serde_json::Value::is_object) => Format::Ragpulse,
        Ok(head) if head.chat_id.is_some() => Format::Bailian,
        Ok(head) if head.session_id.is_some() || head.delay.is_some() => Format::Aiperf,
        Ok(_) if holds(b"\"input_length\"") => Format::Mooncake,
        Ok(_) => return None,
        // A broken line of a known format is read as such, so that the error says what is wrong with it.
        Err(_) if holds(b"\"chat_id\"") => Format::Bailian,
        Err(_) if holds(b"\"sys_prompt\"") => Format::Ragpulse,
        Err(_) if holds(b"\"timestamp\"") || holds(b"\"input_length\"") => Format::Mooncake,
        Err(_) if line == b"{" || holds(b"\"requests\"") || holds(b"\"hash_id_scope\"") => Format::Weka,
        Err(_) => return None,
    })
}

/// A part as we write it ourselves: id and tokens.
type WrittenPart = (u64, u32);

#[derive(Deserialize, Default)]
#[serde(default)]
struct WrittenParts {
    sys_prompt: Vec<WrittenPart>,
    passages_ids: Vec<WrittenPart>,
    history: Vec<WrittenPart>,
    web_search: Vec<WrittenPart>,
    user_input: Vec<WrittenPart>,
}

#[derive(Deserialize)]
struct MooncakeLine {
    timestamp: Option<Stamp>,
    #[serde(default, deserialize_with = "some_tokens")]
    input_length: Option<u32>,
    #[serde(default, deserialize_with = "tokens")]
    output_length: u32,
    #[serde(default)]
    hash_ids: Option<Vec<u64>>,
    // AIPerf: names the conversation, milliseconds after the turn before.
    session_id: Option<Name>,
    delay: Option<Stamp>,
    // Ours: see `write`.
    session: Option<Name>,
    turn: Option<u32>,
    think_time_ms: Option<Stamp>,
    block_size: Option<u32>,
    parts: Option<WrittenParts>,
}

pub(super) fn mooncake(line: &[u8]) -> Result<Record, String> {
    let line: MooncakeLine = json(line)?;
    let Some(input_tokens) = line.input_length else {
        return Err("it has no input_length, and text cannot be counted in tokens here".to_owned());
    };
    let mut parts = Vec::new();
    if let Some(written) = line.parts {
        let WrittenParts { sys_prompt, passages_ids, history, web_search, user_input } = written;
        for (component, list) in
            Component::ALL.into_iter().zip([sys_prompt, passages_ids, history, web_search, user_input])
        {
            parts.extend(list.into_iter().map(|(id, tokens)| Part { component, id, tokens }));
        }
    }
    if line.block_size == Some(0) {
        return Err("block_size is zero".to_owned());
    }
    let pause = line.think_time_ms.or(line.delay);
    Ok(Record {
        stamp_ns: line.timestamp.map(|stamp| stamp.nanos(MS)).transpose()?,
        input_tokens,
        output_tokens: line.output_length,
        blocks: line.hash_ids.unwrap_or_default(),
        parts,
        block_tokens: line.block_size,
        session: line.session.or(line.session_id).map(Into::into),
        turn: line.turn,
        think_time: pause.map(|pause| pause.span(MS)).transpose()?,
        key: None,
        parent: None,
    })
}

#[derive(Deserialize)]
struct BailianLine {
    chat_id: i64,
    parent_chat_id: Option<i64>,
    timestamp: Stamp,
    #[serde(deserialize_with = "tokens")]
    input_length: u32,
    #[serde(deserialize_with = "tokens")]
    output_length: u32,
    turn: Option<u32>,
    hash_ids: Vec<u64>,
}

pub(super) fn bailian(line: &[u8]) -> Result<Record, String> {
    let line: BailianLine = json(line)?;
    // Chats without a parent say −1.
    let key = |id: i64| u64::try_from(id).ok();
    Ok(Record {
        stamp_ns: Some(line.timestamp.nanos(S)?),
        input_tokens: line.input_length,
        output_tokens: line.output_length,
        blocks: line.hash_ids,
        turn: line.turn,
        key: Some(key(line.chat_id).ok_or("chat_id is negative")?),
        parent: line.parent_chat_id.and_then(key),
        ..Record::default()
    })
}

#[derive(Deserialize)]
struct RagpulseIds {
    #[serde(default)]
    sys_prompt: Vec<u64>,
    #[serde(default)]
    passages_ids: Vec<u64>,
    #[serde(default)]
    history: Vec<u64>,
    #[serde(default)]
    web_search: Vec<u64>,
    #[serde(default)]
    user_input: Vec<u64>,
}

#[derive(Deserialize)]
struct RagpulseLine {
    timestamp: Stamp,
    #[serde(deserialize_with = "tokens")]
    input_length: u32,
    #[serde(deserialize_with = "tokens")]
    output_length: u32,
    hash_ids: RagpulseIds,
    session_id: Option<Name>,
}

pub(super) fn ragpulse(line: &[u8], lengths: &PartTokens) -> Result<Record, String> {
    let line: RagpulseLine = json(line)?;
    let RagpulseIds { sys_prompt, passages_ids, history, web_search, user_input } = &line.hash_ids;
    let mut parts = Vec::new();
    for (component, ids) in Component::ALL.into_iter().zip([sys_prompt, passages_ids, history, web_search, user_input])
    {
        for &id in ids {
            let tokens = *lengths.get(&(component, id)).ok_or_else(|| {
                let name = component.name();
                format!(
                    "{name} {id} has no token length in the component files (1_sys_prompt.jsonl, …) beside the trace"
                )
            })?;
            parts.push(Part { component, id, tokens });
        }
    }
    Ok(Record {
        stamp_ns: Some(line.timestamp.nanos(S)?),
        input_tokens: line.input_length,
        output_tokens: line.output_length,
        parts,
        session: line.session_id.map(Into::into),
        ..Record::default()
    })
}

#[derive(Deserialize)]
struct PartLine {
    sys_prompt_id: Option<u64>,
    passage_id: Option<u64>,
    history_id: Option<u64>,
    web_search_id: Option<u64>,
    user_input_id: Option<u64>,
    #[serde(deserialize_with = "tokens")]
    token_length: u32,
}

/// A line of a RAGPulse component file.
pub(super) fn part_length(line: &[u8]) -> Result<(Component, u64, u32), String> {
    let line: PartLine = json(line)?;
    let ids = [line.sys_prompt_id, line.passage_id, line.history_id, line.web_search_id, line.user_input_id];
    let mut named = Component::ALL.into_iter().zip(ids).filter_map(|(component, id)| Some((component, id?)));
    let (component, id) = named.next().ok_or("it has no id of a component")?;
    Ok((component, id, line.token_length))
}
