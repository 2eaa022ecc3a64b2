//! `gpufeed plan`: what storage N GPUs need, single predictions for scripts, and how well the predictions hold.

pub(crate) mod args;
mod case;
mod demand;
mod plan;
mod predict;
mod require;
mod storage;
pub(crate) mod sweep;
#[cfg(test)]
mod tests;
mod text;
mod validate;

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::args::{PlanArgs, PlanCommand};
use crate::exit::Exit;

/// Does what was asked for: one prediction, the validation, or the plan itself.
///
/// # Errors
/// When a model, GPU or engine is not known, or a flag makes no sense.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<Exit> {
    match &args.command {
        Some(PlanCommand::Ttft(args)) => predict::ttft(args),
        Some(PlanCommand::Itl(args)) => predict::itl(args),
        Some(PlanCommand::Sweep(args)) => sweep::run(args),
        None if args.validate => validate::run(args.format),
        None => plan::run(args),
    }
}

/// Writes what was found into a directory: as JSON, as a page and, where it is one table, as CSV.
fn write(
    dir: &Path,
    stem: &str,
    found: &impl Serialize,
    page: impl Fn(&mut Vec<u8>) -> std::io::Result<()>,
    csv: Option<String>,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let to = |end: &str, bytes: &[u8]| {
        let path = dir.join(format!("{stem}.{end}"));
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    to("json", (serde_json::to_string_pretty(found)? + "\n").as_bytes())?;
    let mut html = Vec::new();
    page(&mut html)?;
    to("html", &html)?;
    csv.map_or(Ok(()), |csv| to("csv", csv.as_bytes()))
}
