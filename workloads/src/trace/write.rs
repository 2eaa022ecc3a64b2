//! Writes any trace as Mooncake's JSONL, with what that format lacks as further keys.
//!
//! `timestamp` is in milliseconds, with a fraction where the arrival has one. Further keys, each written only where
//! there is something to say: `block_size` (tokens of a block, where not 512), `session`, `turn`, `think_time_ms`, and
//! `parts` (the parts of a RAG prompt as lists of `[id, tokens]` by RAGPulse's component names).

use std::io::{self, Write};

use serde::Serialize;

use super::{Component, MOONCAKE_BLOCK_TOKENS, Trace};

#[derive(Serialize)]
struct Line<'a> {
    timestamp: Millis,
    input_length: u32,
    output_length: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash_ids: Option<&'a [u64]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    turn: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    think_time_ms: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Parts>,
}

#[derive(Serialize, Default)]
struct Parts {
    sys_prompt: Vec<(u64, u32)>,
    passages_ids: Vec<(u64, u32)>,
    history: Vec<(u64, u32)>,
    web_search: Vec<(u64, u32)>,
    user_input: Vec<(u64, u32)>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Millis {
    Whole(u64),
    Fraction(f64),
}

impl Millis {
    fn of(duration: std::time::Duration) -> Self {
        let nanos = duration.as_nanos();
        match u64::try_from(nanos / 1_000_000) {
            Ok(whole) if nanos.is_multiple_of(1_000_000) => Self::Whole(whole),
            _ => Self::Fraction(nanos as f64 / 1e6),
        }
    }
}

/// Writes a trace as Mooncake's JSONL, in its order. Parts without block ids get ids of 512-token blocks chained from
/// them; a trace without either has no `hash_ids`.
///
/// # Errors
/// Those of the output.
pub fn write_mooncake(trace: &Trace, out: &mut impl Write) -> io::Result<()> {
    let derived = !trace.has_blocks() && trace.has_parts();
    let block_tokens =
        if derived { MOONCAKE_BLOCK_TOKENS } else { trace.block_tokens.unwrap_or(MOONCAKE_BLOCK_TOKENS) };
    let mut ids = Vec::new();
    for (i, request) in trace.requests().iter().enumerate() {
        ids.clear();
        if derived {
            trace.prompt_blocks(i, block_tokens, &mut ids);
        } else {
            ids.extend_from_slice(trace.blocks(request));
        }
        let parts = trace.has_parts().then(|| {
            let mut parts = Parts::default();
            for part in trace.parts(request) {
                let list = match part.component {
                    Component::SysPrompt => &mut parts.sys_prompt,
                    Component::Passage => &mut parts.passages_ids,
                    Component::History => &mut parts.history,
                    Component::WebSearch => &mut parts.web_search,
                    Component::UserInput => &mut parts.user_input,
                };
                list.push((part.id, part.tokens));
            }
            parts
        });
        let line = Line {
            timestamp: Millis::of(request.at),
            input_length: request.input_tokens,
            output_length: request.output_tokens,
            hash_ids: (derived || trace.has_blocks()).then_some(&ids),
            block_size: (block_tokens != MOONCAKE_BLOCK_TOKENS).then_some(block_tokens),
            session: request.session,
            turn: request.session.map(|_| request.turn),
            think_time_ms: request.think_time.map(Millis::of),
            parts,
        };
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
