//! What `gpufeed plan` found: the storage that GPUs need, in virtual time.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Baseline, Slo, Tool};

/// `schema_version` of plans and sweeps written by this crate.
pub const CAPACITY_VERSION: &str = "1.0";

/// The storage that GPUs of a kind need for a trace inside an SLO. Everything is estimated in virtual time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CapacityPlan {
    /// Version of this format.
    pub schema_version: String,
    /// What wrote it.
    pub tool: Tool,
    /// Model served.
    pub model: String,
    /// GPU it is served on.
    pub gpu: String,
    /// GPUs per worker.
    pub tp: u32,
    /// Workers.
    pub workers: u32,
    /// The trace, in words.
    pub trace: String,
    /// Requests of it.
    pub requests: u64,
    /// First to last arrival.
    pub duration_s: f64,
    /// The objectives.
    pub slo: Slo,
    /// What ideal storage is asked for.
    pub demand: Demand,
    /// What storage must at least do.
    pub required: Required,
    /// The same trace on each kind of storage.
    pub storages: Vec<StorageLine>,
    /// Prefix hits by size of cache.
    pub working_set: WorkingSetCurve,
    /// Storage nodes, where their figures were given.
    pub nodes: Option<Nodes>,
    /// Figures over bandwidth and latency.
    pub grid: Vec<GridPoint>,
    /// Prices that `dollars_*` figures are made of.
    pub prices: Prices,
    /// Virtual runs it took.
    pub virtual_runs: u64,
    /// How long they took.
    pub elapsed_s: f64,
    /// How figures are defined.
    pub definitions: BTreeMap<String, String>,
    /// What to know when reading this.
    pub notes: Vec<String>,
    /// Inputs of the model.
    pub inputs: BTreeMap<String, String>,
}

/// Payload asked of ideal storage, over windows of one second of virtual time, first to last request.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Demand {
    /// Read.
    pub read: DemandRate,
    /// Written.
    pub write: DemandRate,
}

/// Payload over windows of one second.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DemandRate {
    /// In all.
    pub bytes: u64,
    /// Mean over all windows.
    pub mean_bytes_per_s: f64,
    /// 99th percentile of windows; null where there are too few.
    pub p99_window_bytes_per_s: Option<f64>,
    /// Busiest window.
    pub max_window_bytes_per_s: f64,
}

/// The least that storage must do for `goodput_ratio` of the requests that ideal storage serves inside the SLO.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Required {
    /// The share that defines it.
    pub goodput_ratio: f64,
    /// Whether local tiers alone reach that share: then nothing is required of shared storage.
    pub local_is_enough: bool,
    /// Reads, with writes and latency no limit; null where no rate was found, zero where none is needed.
    pub read_bytes_per_s: Option<f64>,
    /// Writes, with reads and latency no limit.
    pub write_bytes_per_s: Option<f64>,
    /// Most p99 of the first byte of reads and look-ups, with bandwidth no limit; null where every latency tried will do.
    pub first_byte_p99_ns: Option<u64>,
    /// Share that storage of the required bandwidth and half that latency reaches with all three limits at once.
    pub together_goodput_ratio: Option<f64>,
}

/// The trace on one kind of storage.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct StorageLine {
    /// `no_cache`, `local`, `ideal_storage`, `given` or `nodes`.
    pub name: String,
    /// At the arrivals of the trace.
    pub figures: Baseline,
    /// Requests inside the SLO ÷ requests.
    pub slo_ratio: f64,
    /// Most requests per second, as multiples of the trace, of which the defined share stays inside the SLO; null where none
    /// does.
    pub most_requests_per_s: Option<f64>,
    /// Output tokens per second there.
    pub most_output_tokens_per_s: Option<f64>,
    /// Dollars per million output tokens at the arrivals of the trace: GPUs and storage ÷ tokens.
    pub dollars_per_million_output_tokens: Option<f64>,
    /// The same at the most requests per second inside the SLO.
    pub dollars_per_million_output_tokens_at_most: Option<f64>,
}

/// Prefix hits of one LRU cache for all workers, by its size.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct WorkingSetCurve {
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Blocks of all prompts.
    pub prompt_blocks: u64,
    /// Different blocks.
    pub unique_blocks: u64,
    /// Hits of an infinite cache ÷ blocks of all prompts.
    pub most_hit_ratio: f64,
    /// Bytes for shares of those hits, ascending.
    pub points: Vec<WorkingSetPoint>,
    /// The tiers there are, with what they would hit.
    pub tiers: Vec<TierCapacity>,
    /// Capacity the shared tier needs: for 99% of all hits.
    pub shared_tier_bytes: u64,
}

/// One size of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct WorkingSetPoint {
    /// Hits ÷ those of an infinite cache.
    pub share_ratio: f64,
    /// Hits ÷ blocks of all prompts.
    pub hit_ratio: f64,
    /// Least size with that.
    pub bytes: u64,
}

/// A tier of the workers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TierCapacity {
    /// `g1` or `g2`.
    pub tier: String,
    /// On all workers together.
    pub bytes: u64,
    /// Hits of one cache of that size; of separate ones on each worker it is the upper bound.
    pub hit_ratio: f64,
}

/// Storage nodes needed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Nodes {
    /// How many.
    pub count: u64,
    /// What decides: `read`, `write`, `capacity` or `one`.
    pub limited_by: String,
    /// Nodes for the required reads.
    pub for_read: u64,
    /// Nodes for the required writes.
    pub for_write: u64,
    /// Nodes for the capacity; null where a node's was not given.
    pub for_capacity: Option<u64>,
    /// Whether a node's latency is within what is allowed; more nodes do not change it. Null where none was given.
    pub latency_is_enough: Option<bool>,
    /// p99 of a node's first byte.
    pub latency_p99_ns: Option<u64>,
    /// Share of ideal storage's goodput that so many nodes reach, all limits at once.
    pub goodput_ratio: f64,
}

/// Figures at one bandwidth and latency.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct GridPoint {
    /// Bandwidth of reads; of writes in the proportion that is required.
    pub read_bytes_per_s: f64,
    /// Bandwidth of writes.
    pub write_bytes_per_s: f64,
    /// Latency to the first byte.
    pub latency_ns: u64,
    /// Output tokens per second.
    pub output_tokens_per_s: f64,
    /// Busy seconds ideal storage needs ÷ (worker-seconds − no work).
    pub useful_ratio: Option<f64>,
    /// Requests per second inside the SLO.
    pub goodput_per_s: f64,
    /// Median time to first token.
    pub ttft_p50_ns: Option<u64>,
}

/// What the dollars are made of.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Prices {
    /// Of one GPU; null where it is not known.
    pub gpu_dollars_per_hour: Option<f64>,
    /// Of a decimal terabyte of shared storage.
    pub storage_dollars_per_tb_month: f64,
    /// Capacity that is paid for.
    pub storage_bytes: u64,
    /// Where the prices come from.
    pub source: String,
}

/// A table of virtual runs: one row for each, its settings first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Sweep {
    /// Version of this format.
    pub schema_version: String,
    /// What wrote it.
    pub tool: Tool,
    /// `ttft`, `throughput`, `block-size`, `in-flight` or `g2`.
    pub name: String,
    /// What is swept, in a sentence.
    pub title: String,
    /// Names of the columns, with units.
    pub columns: Vec<String>,
    /// How many of them are settings.
    pub settings: usize,
    /// Values; null where the sample does not support one.
    pub rows: Vec<Vec<Option<f64>>>,
    /// Words for the values of a setting that has no numbers, by column.
    pub words: BTreeMap<String, Vec<String>>,
    /// What to chart.
    pub charts: Vec<SweepChart>,
    /// Inputs of the model.
    pub inputs: BTreeMap<String, String>,
}

/// A chart of a sweep.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SweepChart {
    /// Column on the horizontal axis.
    pub x: String,
    /// Column on the vertical axis.
    pub y: String,
    /// Column that tells curves apart.
    pub by: Option<String>,
    /// Columns held at one value.
    pub fixed: Vec<(String, f64)>,
}
