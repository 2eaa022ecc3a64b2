//! What a knee search found out: `search.json`, which is also what an interrupted search goes on from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Host, Tool, Verdict};

/// `schema_version` of searches written by this crate.
pub const SEARCH_SCHEMA_VERSION: &str = "1.0";

/// Everything one search found out so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchReport {
    /// Version of this format, `major.minor`.
    pub schema_version: String,
    /// What wrote it.
    pub tool: Tool,
    /// Machine of the client.
    pub host: Host,
    /// What was found, on the measured target.
    pub status: SearchStatus,
    /// The same in one sentence.
    pub summary: String,
    /// `training`, `kv`, `rag`, `ops`.
    pub workload: String,
    /// The target as the user named it.
    pub target: String,
    /// Seed of everything random.
    pub seed: u64,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// What is raised.
    pub parameter: SearchParameter,
    /// What a level has to do to pass.
    pub criterion: SearchCriterion,
    /// Most runs of one level: the majority stands.
    pub confirmations: u32,
    /// Most runs of one storage.
    pub most_probes: u32,
    /// The measured target first, then other storage in virtual time.
    pub storages: Vec<SearchedStorage>,
    /// Length of the trace as it is, from its first arrival to its last; null without one.
    #[serde(default)]
    pub trace_span_s: Option<f64>,
    /// What the reader should know.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Hash of all that was asked, 16 hexadecimal digits: a search goes on only in a directory of its own.
    pub search_hash: String,
    /// The plan of a probe at the lowest level, without secrets.
    pub plan: serde_json::Value,
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SearchStatus {
    /// Not done: run it again with the same arguments to go on.
    Unfinished,
    /// The knee.
    Found,
    /// Even the highest level passes.
    AboveHighest,
    /// Not even the lowest level passes.
    BelowLowest,
    /// What failed above the knee was limited by this client: the knee is the client's.
    ClientLimited,
    /// Out of probes.
    OutOfProbes,
}

/// What is raised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchParameter {
    /// `accelerators`, `rate_scale`, `rate`, `depth`.
    pub name: String,
    /// What its levels count: `accelerators`, `times the trace`, `queries/s`, `clients`, `operations/s`.
    pub unit: String,
    /// Lowest level.
    pub least: f64,
    /// Highest level.
    pub most: f64,
    /// First level tried.
    pub start: f64,
    /// Most that the failing level may lie above the knee, as a share of it; null for exact.
    pub resolution_ratio: Option<f64>,
}

/// What a level has to do to pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchCriterion {
    /// `au`, `goodput`, `p99`, `throughput`.
    pub metric: String,
    /// In words, with its figures.
    pub text: String,
    /// Bound of a ratio.
    pub threshold_ratio: Option<f64>,
    /// Bound of a latency.
    pub threshold_ns: Option<u64>,
}

/// The search on one storage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchedStorage {
    /// `target`, `no_cache`, `local`, `ideal_storage`.
    pub storage: String,
    /// Whether in virtual time.
    pub virtual_time: bool,
    /// What was found.
    pub status: SearchStatus,
    /// The level found, in the parameter's unit.
    pub knee: Option<f64>,
    /// Lowest level above it that does not pass; for `throughput`, the highest below it that still grows.
    pub neighbor: Option<f64>,
    /// What the storage does at the knee, per second: requests inside the objectives, queries, samples or operations.
    pub knee_per_s: Option<f64>,
    /// All levels, from the lowest.
    pub levels: Vec<SearchLevel>,
    /// All runs, in order.
    pub probes: Vec<SearchProbe>,
}

/// One level of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchLevel {
    /// The level.
    pub level: f64,
    /// Runs that passed.
    pub passed: u32,
    /// Runs that did not.
    pub failed: u32,
    /// Medians over its runs.
    pub figures: SearchFigures,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchProbe {
    /// The level.
    pub level: f64,
    /// Its report directory, within that of the search; null in virtual time.
    pub directory: Option<String>,
    /// Whether it passed, by all that was known at the end.
    pub passed: bool,
    /// What limited it; null in virtual time.
    pub verdict: Option<Verdict>,
    /// The same in a sentence.
    #[serde(default)]
    pub verdict_detail: Option<String>,
    /// Why it did not pass although its figures would.
    #[serde(default)]
    pub failure: Option<String>,
    /// What it measured.
    pub figures: SearchFigures,
}

/// Figures of a run; which of them there are depends on the workload.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SearchFigures {
    /// Accelerator utilization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub au_ratio: Option<f64>,
    /// Requests that met every objective ÷ requests offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput_ratio: Option<f64>,
    /// Requests per second that met every objective: their share of those offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput_per_s: Option<f64>,
    /// Requests or queries offered per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_per_s: Option<f64>,
    /// p99 of what the objective is on: TTFT, or response time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ns: Option<u64>,
    /// Operations per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_per_s: Option<f64>,
    /// Bytes per second read and written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<f64>,
    /// Samples per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples_per_s: Option<f64>,
}

/// The JSON Schema of [`SearchReport`].
#[must_use]
pub fn search_json_schema() -> serde_json::Value {
    schemars::schema_for!(SearchReport).to_value()
}
