//! Reads `report.json`, refusing what it cannot mean.

use gpufeed_schema::{RunReport, SCHEMA_VERSION};
use serde::Deserialize;

/// Text that is not a report this version can read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not JSON at all: cut short, or edited by hand.
    #[error("the report is not valid JSON at line {line}, column {column}: {}", if *.cut_short { "it ends too early; write it again" } else { "it was edited or damaged" })]
    Json {
        /// Line of the mistake, from one.
        line: usize,
        /// Column of the mistake, from one.
        column: usize,
        /// Whether the text just ends.
        cut_short: bool,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// JSON, but without `schema_version`, so not one of ours.
    #[error("this JSON is not a gpufeed report: it has no `schema_version` of the form major.minor")]
    NotAReport,
    /// Written by a later major version.
    #[error("the report has schema version {found}, this gpufeed reads up to {major}.x; use a newer gpufeed")]
    Newer {
        /// Its version.
        found: String,
        /// Ours.
        major: u64,
    },
    /// Written by an earlier major version.
    #[error("the report has schema version {found}, this gpufeed reads {major}.x; use the gpufeed that wrote it")]
    Older {
        /// Its version.
        found: String,
        /// Ours.
        major: u64,
    },
    /// A report, but a key is missing or has the wrong type.
    #[error("the report does not fit its schema at line {line}, column {column}: {what}")]
    Shape {
        /// Line of the mistake, from one.
        line: usize,
        /// Column of the mistake, from one.
        column: usize,
        /// Which key, and what is wrong with it.
        what: String,
    },
}

/// What is read first, to know whether the rest can be.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    schema_version: serde_json::Value,
}

fn version(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Reads a report. Keys added by a later minor version are ignored.
///
/// # Errors
/// When the text is not JSON, not a report, of another major version, or lacks a key.
pub fn report(text: &str) -> Result<RunReport, ReadError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let envelope: Envelope = serde_json::from_str(text).map_err(|source| {
        if source.is_data() {
            return ReadError::NotAReport;
        }
        ReadError::Json { line: source.line(), column: source.column(), cut_short: source.is_eof(), source }
    })?;
    let found = envelope.schema_version.as_str().unwrap_or_default().to_owned();
    let (major, _) = version(&found).ok_or(ReadError::NotAReport)?;
    let ours = version(SCHEMA_VERSION).map_or(0, |(major, _)| major);
    if major > ours {
        return Err(ReadError::Newer { found, major: ours });
    }
    if major < ours {
        return Err(ReadError::Older { found, major: ours });
    }
    serde_json::from_str(text).map_err(|source| {
        let whole = source.to_string();
        let what = whole.split(" at line ").next().unwrap_or(&whole).to_owned();
        ReadError::Shape { line: source.line(), column: source.column(), what }
    })
}
