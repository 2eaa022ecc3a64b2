//! `gpufeed trace`: look at, make, convert and cut request traces.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use gpufeed_profiles::units::{show_duration, three_digits};
use gpufeed_workloads::trace::{Synth, Trace, TraceInfo, info, write_mooncake};

use crate::args::TraceCommand;
use crate::exit::{OrUsage, usage};
use crate::output;

/// Runs one of the trace commands.
///
/// # Errors
/// When the trace cannot be read or written, or a parameter is unknown.
pub(crate) fn run(command: TraceCommand) -> anyhow::Result<()> {
    match command {
        TraceCommand::Info { file, lru, json } => {
            if lru.contains(&0) {
                return Err(usage("a cache of 0 blocks holds nothing: give --lru capacities of at least 1"));
            }
            let info = info(&load(&file)?, &lru);
            output::result(&if json { to_json(&info)? } else { to_text(&info) })
        }
        TraceCommand::Synth { kind, set, .. } if set.iter().any(|change| change == "help") => {
            output::result(&parameters(&Synth::preset(kind.parse().or_usage()?))?)
        }
        TraceCommand::Synth { kind, set, seed, out } => write(&synth(&kind, &set, seed)?, out),
        TraceCommand::Convert { file, out } => write(&load(&file)?, out),
        TraceCommand::Window { file, from, to, out } => write(&cut(&load(&file)?, from, to)?, out),
    }
}

/// Reads a trace.
///
/// # Errors
/// One sentence with file and line.
pub(crate) fn load(file: &Path) -> anyhow::Result<Trace> {
    Trace::load(file).or_usage()
}

/// The requests from `from` to before `to`.
///
/// # Errors
/// When none is left.
pub(crate) fn cut(trace: &Trace, from: Duration, to: Duration) -> anyhow::Result<Trace> {
    let window = trace.window(from, to);
    if window.requests().is_empty() {
        return Err(usage(format!(
            "no request lies between {} and {}: the trace lasts {}",
            show_duration(from),
            show_duration(to),
            show_duration(trace.duration())
        )));
    }
    Ok(window)
}

/// Makes a trace from a preset and changes to it.
///
/// # Errors
/// When the preset or a parameter is unknown.
pub(crate) fn synth(kind: &str, set: &[String], seed: u64) -> anyhow::Result<Trace> {
    let mut synth = Synth::preset(kind.parse().or_usage()?);
    synth.seed = seed;
    for change in set {
        let (name, value) = change
            .split_once('=')
            .ok_or_else(|| usage(format!("`--set {change}` names no value: write it like sessions=200")))?;
        synth.set(name.trim(), value.trim()).or_usage()?;
    }
    synth.trace().or_usage()
}

/// Every parameter of a preset with its value, as `--set` takes them.
fn parameters(synth: &Synth) -> anyhow::Result<String> {
    fn lines(name: &str, value: &serde_json::Value, text: &mut String) {
        match value {
            serde_json::Value::Object(parts) => {
                for (part, value) in parts {
                    let name = if name.is_empty() { part.clone() } else { format!("{name}.{part}") };
                    lines(&name, value, text);
                }
            }
            serde_json::Value::Null => {}
            value => text.push_str(&format!("{name}={value}\n")),
        }
    }
    let mut text = String::new();
    lines("", &serde_json::to_value(synth)?, &mut text);
    Ok(text)
}

fn write(trace: &Trace, out: Option<PathBuf>) -> anyhow::Result<()> {
    let Some(path) = out else {
        let mut out = BufWriter::new(io::stdout().lock());
        return match write_mooncake(trace, &mut out).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("cannot write the trace to standard output"),
        };
    };
    let cannot = || format!("cannot write {}", path.display());
    let mut file = BufWriter::new(File::create(&path).with_context(cannot)?);
    write_mooncake(trace, &mut file).and_then(|()| file.flush()).with_context(cannot)
}

fn to_json(info: &TraceInfo) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(info).context("cannot write the figures as JSON")? + "\n")
}

fn to_text(info: &TraceInfo) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| text.push_str(&format!("{name:<24}{value}\n"));
    row("format", info.format.to_string());
    row("requests", info.requests.to_string());
    row("duration", show_duration(Duration::from_secs_f64(info.duration_s)));
    let tokens = |t: &gpufeed_workloads::trace::TokenInfo| {
        let known = |value: Option<f64>| value.map_or("–".to_owned(), three_digits);
        format!("mean {} · median {} · max {}", known(t.mean), known(t.median), known(t.max.map(f64::from)))
    };
    row("input tokens", tokens(&info.input_tokens));
    row("output tokens", tokens(&info.output_tokens));
    let ratio = |r: f64| format!("{:.2}%", r * 100.0);
    match info.blocks_total {
        None => row("blocks", "none in this format: it has no block ids".to_owned()),
        Some(total) => {
            let sized = info.block_tokens.map(|tokens| format!(" of {tokens} tokens")).unwrap_or_default();
            row("blocks", format!("{total}{sized}, {} unique", info.blocks_unique.unwrap_or(0)));
            row(
                "prefix hits",
                format!(
                    "{} blocks ({} of blocks, {} of tokens) with an infinite cache",
                    info.prefix_hit_blocks.unwrap_or(0),
                    info.prefix_hit_ratio.map_or("–".to_owned(), ratio),
                    info.token_hit_ratio.map_or("–".to_owned(), ratio)
                ),
            );
        }
    }
    for lru in info.lru.iter().flatten() {
        row(
            &format!("LRU of {} blocks", lru.capacity_blocks),
            format!("{} hit blocks ({})", lru.hit_blocks, ratio(lru.hit_ratio)),
        );
    }
    if let Some(parts) = &info.components {
        row("prefix token hits", format!("{} over component lengths", ratio(parts.prefix_token_hit_ratio)));
        row("any-position token hits", ratio(parts.any_position_token_hit_ratio));
    }
    text
}
