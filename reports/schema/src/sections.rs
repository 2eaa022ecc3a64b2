//! What each kind of machine says of itself.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::latency::{Distribution, Latency};
use crate::loading::Loading;
use crate::tier_flow::TierFlow;

/// A machine's own section of the report.
#[derive(Debug, Clone, PartialEq)]
pub enum Section {
    /// Plain load has none: `operations[]` say it all.
    None,
    /// Training reads.
    Training(Box<Training>),
    /// Checkpoints.
    Checkpoint(Box<Checkpoint>),
    /// KV-cache offload.
    Kv(Box<Kv>),
    /// Retrieval-augmented generation.
    Rag(Box<Rag>),
}

/// Emulated accelerators reading training data.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Training {
    /// Profile: `unet3d`, `resnet50`, …
    pub model: String,
    /// Emulated accelerators.
    pub accelerators: u32,
    /// Their kind: `h100`, …
    pub accelerator: String,
    /// Accelerator utilization by MLPerf's current rules: measured compute over running time, first step excluded.
    /// Null when no epoch had two steps.
    pub au_ratio: Option<f64>,
    /// The same by the v1.0 rules: nominal compute over running time.
    pub au_v1_ratio: Option<f64>,
    /// What the workload asks for.
    pub au_threshold_ratio: f64,
    /// Whether `au_ratio` reaches it; null with it.
    pub passed: Option<bool>,
    /// Samples consumed per second.
    pub samples_per_s: f64,
    /// Payload bytes consumed per second.
    pub bytes_per_s: f64,
    /// Rate at which all accelerators would be busy all the time.
    pub needed_bytes_per_s: f64,
    /// Accelerator-seconds of compute in the window.
    pub compute_s: f64,
    /// Accelerator-seconds spent waiting for data or for the slowest peer.
    pub stall_s: f64,
    /// Duration of steps.
    pub step_time: Distribution,
    /// Reads that failed; the sample counts as read by policy.
    pub failed_reads: u64,
    /// Each epoch.
    pub epochs: Vec<Epoch>,
    /// Utilization over time.
    pub timeline: Vec<TrainingPoint>,
}

/// One pass over the data.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Epoch {
    /// From zero.
    pub epoch: u32,
    /// Steps completed by each accelerator.
    pub steps: u64,
    /// Its utilization; null with fewer than two steps.
    pub au_ratio: Option<f64>,
    /// Its length.
    pub duration_s: f64,
    /// Samples per second, first step included.
    pub samples_per_s: f64,
    /// Whether all its steps ran.
    pub complete: bool,
}

/// Utilization in one step of time.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TrainingPoint {
    /// Start of the step, since the start of the window.
    pub t_s: f64,
    /// Compute in the step ÷ (accelerators · step).
    pub compute_ratio: f64,
}

/// Checkpoints written and read back.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Checkpoint {
    /// Writes.
    pub write: Option<CheckpointPart>,
    /// Reads.
    pub read: Option<CheckpointPart>,
}

/// One direction of checkpoints.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CheckpointPart {
    /// How many.
    pub count: u64,
    /// Bytes of each.
    pub bytes: u64,
    /// Slowest rank, mean over checkpoints.
    pub duration_s: f64,
    /// Bytes of a rank over its time, slowest rank, times ranks.
    pub bytes_per_s: f64,
}

/// Inference workers with a KV cache that spills to storage. GPU times are an estimate by the model of the design, §5.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Kv {
    /// Model served.
    pub model: String,
    /// GPU it is served on (emulated).
    pub gpu_kind: String,
    /// GPUs per worker.
    pub tp: u32,
    /// Workers.
    pub workers: u32,
    /// Tokens of a KV block.
    pub block_tokens: u64,
    /// Bytes of a KV block, all ranks.
    pub block_bytes: u64,
    /// Requests that arrived in the window.
    pub requests: u64,
    /// Of those, completed.
    pub completed: u64,
    /// Of those, failed.
    pub failed: u64,
    /// Of those, neither by the end of the drain.
    pub unfinished: u64,
    /// Blocks found in any tier ÷ blocks of all prompts.
    pub prefix_hit_ratio: Option<f64>,
    /// Tokens not prefilled ÷ prompt tokens.
    pub token_hit_ratio: Option<f64>,
    /// Tokens by the tier they were found in.
    pub hits_by_tier: TierTokens,
    /// Arrival to first token.
    pub ttft: Distribution,
    /// Where that time went.
    pub ttft_parts: TtftParts,
    /// Mean time per output token of a request after the first.
    pub tpot: Latency,
    /// Single gaps between tokens.
    pub itl: Latency,
    /// Arrival to last token.
    pub e2e: Distribution,
    /// Requests per second that met every objective.
    pub goodput_per_s: f64,
    /// The objectives.
    pub slo: Slo,
    /// Prompt tokens of completed requests per second.
    pub input_tokens_per_s: f64,
    /// Output tokens per second.
    pub output_tokens_per_s: f64,
    /// Tokens loaded from the target.
    pub loaded_tokens: u64,
    /// Tokens prefilled that some worker had prefilled before, by reason.
    pub recomputed_tokens: BTreeMap<String, u64>,
    /// Bytes read from the target.
    pub loaded_bytes: u64,
    /// Bytes written to the target.
    pub stored_bytes: u64,
    /// What operations carried, counted block by block: what the operations of the report are held against.
    #[serde(default)]
    pub wire: KvWire,
    /// How fast the target moved payload while it moved any.
    #[serde(default)]
    pub transfer: TransferRates,
    /// Blocks written to the target and never read.
    pub never_read_blocks: u64,
    /// What moved between the tiers.
    #[serde(default)]
    pub tier_flow: TierFlow,
    /// What the GPUs did.
    pub gpu: GpuTime,
    /// What they did over time.
    pub timeline: Vec<GpuPoint>,
    /// What the GPUs of each pool did, where some workers prefill and others decode.
    #[serde(default)]
    pub gpu_pools: Vec<GpuPool>,
    /// KV cache that went from the workers that prefill to those that decode.
    #[serde(default)]
    pub transferred_bytes: u64,
    /// What became of the requests of workers that died; null if none was to die.
    #[serde(default)]
    pub failover: Option<Failover>,
    /// Routing × shared tier, where it was asked for.
    #[serde(default)]
    pub matrix: Vec<MatrixCell>,
    /// Bandwidth at which loading k tokens costs what computing them does.
    pub break_even: Vec<BreakEven>,
    /// Loads from the target, and whether they paid.
    #[serde(default)]
    pub load: Loading,
    /// The same trace on other storage, in virtual time.
    pub baselines: Baselines,
    /// Offered load ÷ capacity without the tier; above one, TTFT grows with the length of the run.
    pub load_ratio: Option<f64>,
    /// Inputs of the GPU model, with their sources.
    pub inputs: BTreeMap<String, String>,
}

/// Tokens by tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TierTokens {
    /// GPU memory.
    pub g1: u64,
    /// Host memory.
    pub g2: u64,
    /// Local drive.
    pub g3: u64,
    /// The target.
    pub g4: u64,
    /// Nowhere.
    pub miss: u64,
}

/// Objects and bytes of the target's operations that were intended to start in the window, as the machine counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct KvWire {
    /// Bytes of a block's object.
    pub object_bytes: u64,
    /// Objects of blocks read.
    pub objects_read: u64,
    /// Objects of blocks written.
    pub objects_written: u64,
    /// Bytes read that belong to no block (markers, metadata).
    pub beside_read_bytes: u64,
    /// Bytes written that belong to no block.
    pub beside_written_bytes: u64,
    /// Reads of groups of layers of blocks' objects (layer-wise loading), which are not among `objects_read`.
    #[serde(default)]
    pub layer_reads: u64,
    /// Bytes those asked for.
    #[serde(default)]
    pub layer_read_bytes: u64,
}

/// Payload ÷ time in which at least one body was on its way (reads from their first byte, writes from their sending): what
/// a target can do up to the concurrency it was asked with, however seldom it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TransferRates {
    /// Of reads; null without any.
    pub read_bytes_per_s: Option<f64>,
    /// Of writes; null without any.
    pub write_bytes_per_s: Option<f64>,
}

/// TTFT as a waterfall; the parts of one request sum to its TTFT.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TtftParts {
    /// Waiting for a slot and for other requests' work.
    pub queue: Latency,
    /// Asking the tiers.
    pub lookup: Latency,
    /// Loading from the target.
    pub load: Latency,
    /// Host memory to GPU memory.
    pub copy: Latency,
    /// Prefill.
    pub prefill: Latency,
    /// From the worker that prefilled to the one that decodes.
    #[serde(default)]
    pub transfer: Latency,
}

/// Service-level objectives.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Slo {
    /// Most TTFT.
    pub ttft_ns: Option<u64>,
    /// Most TPOT.
    pub tpot_ns: Option<u64>,
}

/// GPU time: the first seven ratios are a partition of worker-seconds; `*_ns` are its exact cells.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct GpuTime {
    /// Worker-nanoseconds in the window: workers · window.
    pub total_ns: u64,
    /// Cell: prefill of blocks nobody had computed.
    pub prefill_ns: u64,
    /// Cell: prefill of blocks that had been computed before.
    pub recompute_ns: u64,
    /// Cell: decode.
    pub decode_ns: u64,
    /// Cell: waiting for look-ups, loads or pinned blocks.
    pub storage_stall_ns: u64,
    /// Cell: waiting for transfer between pools.
    pub transfer_stall_ns: u64,
    /// Cell: nothing to do.
    pub no_work_ns: u64,
    /// Cell: not there.
    pub down_ns: u64,
    /// Prefill cell ÷ total.
    pub prefill_ratio: f64,
    /// Recompute cell ÷ total.
    pub recompute_ratio: f64,
    /// Decode cell ÷ total.
    pub decode_ratio: f64,
    /// Storage stall cell ÷ total.
    pub storage_stall_ratio: f64,
    /// Transfer stall cell ÷ total.
    pub transfer_stall_ratio: f64,
    /// No-work cell ÷ total.
    pub no_work_ratio: f64,
    /// Down cell ÷ total.
    pub down_ratio: f64,
    /// 1 − stalls − no work − down.
    pub busy_ratio: f64,
    /// Busy seconds ideal storage needs for the same completed work ÷ (worker-seconds − no work − down). Null without
    /// that baseline.
    pub useful_ratio: Option<f64>,
    /// recompute ÷ (prefill + recompute + decode).
    pub recompute_tax_ratio: f64,
    /// ∫ loading requests ÷ (loading + running requests).
    pub storage_starved_ratio: f64,
    /// Sequences per iteration, weighted by time.
    pub mean_batch: f64,
    /// Model FLOPs ÷ (busy time · peak).
    pub mfu_ratio: f64,
    /// Model bytes ÷ (busy time · peak bandwidth).
    pub mbu_ratio: f64,
}

/// The partition in one step of time.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct GpuPoint {
    /// Start of the step, since the start of the window.
    pub t_s: f64,
    /// Share of prefill.
    pub prefill_ratio: f64,
    /// Share of recompute.
    pub recompute_ratio: f64,
    /// Share of decode.
    pub decode_ratio: f64,
    /// Share of storage stall.
    pub storage_stall_ratio: f64,
    /// Share of transfer stall.
    pub transfer_stall_ratio: f64,
    /// Share without work.
    pub no_work_ratio: f64,
    /// Share down.
    pub down_ratio: f64,
}

/// Workers of one kind.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct GpuPool {
    /// `prefill` or `decode`.
    pub name: String,
    /// Workers in it.
    pub workers: u32,
    /// What their GPUs did.
    pub gpu: GpuTime,
}

/// Requests that went on elsewhere because their worker died. Their lost tokens are those of prompt and answer that were
/// in the dead worker's GPU memory; each was loaded, found or computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Failover {
    /// Times a worker died.
    pub workers_lost: u64,
    /// Requests that moved, begun or not.
    pub moved_requests: u64,
    /// Requests that failed because no worker was left for them.
    pub failed_requests: u64,
    /// Tokens lost by requests that have gone on.
    pub lost_tokens: u64,
    /// Of those, loaded from the shared tier: what sharing saved.
    pub loaded_tokens: u64,
    /// Of those, found in the memory of the worker that took over.
    pub found_tokens: u64,
    /// Of those, computed again.
    pub recomputed_tokens: u64,
}

/// One way to serve the same trace: a routing policy with or without the shared tier.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MatrixCell {
    /// `round-robin`, `least-loaded` or `kv-aware`.
    pub routing: String,
    /// Whether workers shared the target.
    pub shared_tier: bool,
    /// `measured`: the target was used; `model`: virtual time, for what does not use the target.
    pub source: String,
    /// Its figures.
    pub figures: Baseline,
}

/// One point of the break-even curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BreakEven {
    /// Tokens loaded after an empty prefix.
    pub tokens: u64,
    /// Bandwidth at which both cost the same; null where recomputing always wins.
    pub bytes_per_s: Option<f64>,
}

/// The same work on other storage, in virtual time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Baselines {
    /// No cache outside GPU memory.
    pub no_cache: Option<Baseline>,
    /// Local tiers, no shared one.
    pub local: Option<Baseline>,
    /// Infinite, instant shared storage.
    pub ideal_storage: Option<Baseline>,
    /// The target as measured, in virtual time: how far model and reality differ.
    pub target_model: Option<Baseline>,
}

/// Headline figures of one baseline.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Baseline {
    /// Requests completed.
    pub completed: u64,
    /// Arrival to first token.
    pub ttft: Distribution,
    /// Where that time went.
    #[serde(default)]
    pub ttft_parts: TtftParts,
    /// Prompt tokens of completed requests per second.
    #[serde(default)]
    pub input_tokens_per_s: f64,
    /// Output tokens per second.
    pub output_tokens_per_s: f64,
    /// Requests per second that met every objective.
    pub goodput_per_s: f64,
    /// Tokens not prefilled ÷ prompt tokens.
    pub token_hit_ratio: Option<f64>,
    /// What the GPUs did.
    pub gpu: GpuTime,
}

/// Retrieval-augmented generation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Rag {
    /// Queries that arrived in the window.
    pub queries: u64,
    /// Of those, completed.
    pub completed: u64,
    /// Of those, failed.
    pub failed: u64,
    /// Of those, neither by the end of the drain.
    pub unfinished: u64,
    /// Share of the true nearest neighbors found; null where vectors are not real.
    pub recall_ratio: Option<f64>,
    /// Arrival to all passages fetched.
    pub retrieve: Distribution,
    /// Arrival to first token.
    pub ttft: Distribution,
    /// Arrival to last token.
    pub e2e: Latency,
    /// Σ retrieve ÷ Σ TTFT.
    pub retrieve_share_ratio: Option<f64>,
    /// Completed queries per second.
    pub queries_per_s: f64,
    /// Posting-list bytes read.
    pub posting_bytes: u64,
    /// Passage bytes read.
    pub passage_bytes: u64,
    /// Index building.
    pub ingest: Option<Ingest>,
    /// What the GPUs did.
    pub gpu: GpuTime,
    /// What they did over time.
    #[serde(default)]
    pub timeline: Vec<GpuPoint>,
    /// Inputs of the GPU model, with their sources.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
}

/// Index building.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Ingest {
    /// Documents.
    pub documents: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Its length.
    pub duration_s: f64,
    /// Bytes written ÷ bytes of text and vectors.
    pub write_amplification: f64,
}
