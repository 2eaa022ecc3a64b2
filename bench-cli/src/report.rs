//! `gpufeed report`: a report rendered again.

use std::fs;
use std::path::Path;

use gpufeed_reports::{csv, html, markdown, read, terminal};
use gpufeed_schema::{RunReport, json_schema};

use crate::args::{ReportArgs, ReportFormat};
use crate::exit::usage;
use crate::output;

/// Renders a report.
///
/// # Errors
/// When the report cannot be read, or is none.
pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    if args.schema {
        return output::result(&(serde_json::to_string_pretty(&json_schema())? + "\n"));
    }
    let path = args.report.as_deref().ok_or_else(|| usage("name a report directory or a report.json"))?;
    let report = load(path)?;
    let text = match args.format {
        ReportFormat::Text => terminal::render(&report, terminal_style(args.out.is_none())),
        ReportFormat::Html => written(|to| html::render(&report, to))?,
        ReportFormat::Csv => written(|to| csv::render(&report, to))?,
        ReportFormat::Markdown => markdown::render(&report),
        ReportFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    output::result_to(args.out.as_deref(), &text)
}

/// How tables are written on standard output or into a file.
pub(crate) fn terminal_style(on_terminal: bool) -> terminal::Style {
    terminal::Style { color: on_terminal && output::colors(), ascii: false }
}

fn written(render: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> anyhow::Result<String> {
    let mut text = Vec::new();
    render(&mut text)?;
    Ok(String::from_utf8(text)?)
}

/// Reads `report.json`, or the one in a directory.
///
/// # Errors
/// One sentence with the file.
pub(crate) fn load(path: &Path) -> anyhow::Result<RunReport> {
    let file = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
    let text = fs::read_to_string(&file).map_err(|error| usage(format!("cannot read {}: {error}", file.display())))?;
    read::report(&text).map_err(|error| usage(format!("{}: {error}", file.display())))
}
