//! Versioned report types; serde only.
//!
//! Adding a key raises the minor version, renaming or removing one the major version. Key names carry units: `_ns`,
//! `_s`, `_bytes`, `_bytes_per_s`, `_ratio` (0..1), `_per_s`. A percentile the sample does not support is null.

mod capacity;
mod latency;
mod loading;
mod member;
mod search;
mod sections;
mod tier_flow;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use capacity::*;
pub use latency::{Distribution, LadderStep, Latency, Quantiles, supported};
pub use loading::{BreakEvenCurve, BreakEvenWrong, Concurrency, Loading, Ratios};
pub use member::{ClosedOrOpen, Member, Operation, Point, Series};
pub use search::*;
pub use sections::*;
pub use tier_flow::TierFlow;

/// `schema_version` of reports written by this crate.
///
/// 1.1 added to `kv`: `wire`, `transfer`, `tier_flow`, `gpu_pools`, `transferred_bytes`, `failover`, `matrix`, `load`,
/// `ttft_parts.transfer`, and in baselines `ttft_parts` and `input_tokens_per_s`. A report of 1.0 reads as having none.
pub const SCHEMA_VERSION: &str = "1.1";

/// Everything one run found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunReport {
    /// Version of this format, `major.minor`.
    pub schema_version: String,
    /// What wrote it.
    pub tool: Tool,
    /// Whether the run was cut short (Ctrl-C, a target that died): results are partial.
    pub interrupted: bool,
    /// What limited the run.
    pub verdict: Verdict,
    /// The verdict in one sentence, with its figures.
    pub verdict_detail: String,
    /// Machines that took part.
    pub hosts: Vec<Host>,
    /// Client processes: whether they were the limit.
    pub clients: Vec<Client>,
    /// What was run.
    pub run: Run,
    /// One for a plain run, one per workload of `quick` and `mixed`.
    pub members: Vec<Member>,
    /// How members disturbed each other.
    #[serde(default)]
    pub interference: Vec<Interference>,
    /// Vendor claims held against the measurement.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// Whether the measurement itself can be trusted.
    pub validity: Vec<Validity>,
    /// The resolved plan, as in `plan.toml`, without secrets.
    pub plan: serde_json::Value,
}

/// The program that wrote a report.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Tool {
    /// `gpufeed`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Commit it was built from, `unknown` outside a checkout.
    pub commit: String,
}

/// What limited a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The storage: its figures are what was measured.
    StorageLimited,
    /// This client machine: the storage may be faster.
    ClientLimited,
    /// The schedule: the storage kept up with all that was asked of it.
    ScheduleLimited,
    /// Server and client shared a machine: the figures test the tool, not a storage product.
    SelfTest,
}

impl Verdict {
    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::StorageLimited => "storage-limited",
            Self::ClientLimited => "client-limited",
            Self::ScheduleLimited => "schedule-limited",
            Self::SelfTest => "self-test",
        }
    }
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// Processor name.
    pub cpu_model: String,
    /// Logical processors usable by the run.
    pub cores: u32,
    /// Physical memory.
    pub memory_bytes: u64,
    /// Anything else worth keeping: governor, virtualization.
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
}

/// A client process and how near its own limits it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Client {
    /// `client`, or `embedded-server` for the child process.
    pub role: String,
    /// Cores it could use.
    pub cores: u32,
    /// CPU seconds used in the measured window per core and second.
    pub cpu_ratio: f64,
    /// Time spent runnable but waiting for a processor, per core and second. Null where the kernel does not say.
    pub run_wait_ratio: Option<f64>,
    /// Time the hypervisor took from this machine in the window.
    pub steal_ratio: Option<f64>,
    /// What this client can move when the target costs nothing (loopback or null), by calibration.
    pub ceiling_bytes_per_s: Option<f64>,
    /// What this client can issue when the target costs nothing, by calibration.
    pub ceiling_ops_per_s: Option<f64>,
    /// Most memory resident.
    pub peak_memory_bytes: Option<u64>,
}

/// What was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// `quick`, `ops`, `training`, `kv`, `rag`, …
    pub workload: String,
    /// The target as given, without secrets.
    pub target: String,
    /// `s3-raw`, `s3-aws-sdk`, `file`, `mem`.
    pub transport: String,
    /// Seed of everything random.
    pub seed: u64,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// Length of the measured window, summed over members that ran one after the other.
    pub duration_s: f64,
    /// Length of the warm-up before it, likewise.
    pub warm_up_s: f64,
    /// Whether time, bytes or model were scaled down; `scaling` says how.
    pub scaled: bool,
    /// In words, what was scaled and what that does to the figures; empty if nothing.
    #[serde(default)]
    pub scaling: Vec<String>,
    /// Hash of what was generated: each stream's first 65,536 logical operations.
    pub plan_hash: String,
    /// Hash of what was issued, null where timing may change it.
    pub issued_hash: Option<String>,
}

/// How one member disturbed another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interference {
    /// The member disturbed.
    pub member: String,
    /// Which figure.
    pub metric: String,
    /// Its value alone.
    pub alone: f64,
    /// Its value with the others running.
    pub mixed: f64,
    /// `mixed / alone`.
    pub ratio: f64,
}

/// A vendor's claim and what this run says of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    /// Name in `profiles/data/claims`.
    pub id: String,
    /// The claim in words.
    pub text: String,
    /// Who says so, and where.
    pub source: String,
    /// What was measured, null if nothing of the kind was.
    pub measured: Option<f64>,
    /// What would meet the claim.
    pub threshold: f64,
    /// Unit of both: `ns`, `bytes/s`, `ratio`, `times`, …
    #[serde(default)]
    pub unit: String,
    /// The outcome.
    pub status: ClaimStatus,
    /// Under which conditions the claim was made, or why it could not be decided.
    #[serde(default)]
    pub note: Option<String>,
}

/// Outcome of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClaimStatus {
    /// Measured, and at least as good.
    Met,
    /// Measured, and not as good.
    Missed,
    /// This run cannot say.
    NotMeasurable,
}

/// One check of the measurement itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Validity {
    /// Short name: `schedule-slip`, `verification`, `steady-state`, …
    pub check: String,
    /// How it went.
    pub status: ValidityStatus,
    /// One sentence with figures.
    pub detail: String,
}

impl Validity {
    /// A check with its outcome and its sentence.
    pub fn new(check: impl Into<String>, status: ValidityStatus, detail: impl Into<String>) -> Self {
        Self { check: check.into(), status, detail: detail.into() }
    }
}

/// Outcome of a validity check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ValidityStatus {
    /// Holds.
    Ok,
    /// Worth knowing.
    Note,
    /// The figures are doubtful.
    Warn,
    /// The figures are wrong.
    Fail,
}

/// The JSON Schema of [`RunReport`].
#[must_use]
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(RunReport).to_value()
}
