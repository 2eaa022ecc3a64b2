//! What a KV-cache run is made of, as written in `plan.toml`.

use std::time::Duration;

use gpufeed_profiles::units::{self, Bytes};
use serde::{Deserialize, Serialize};

/// Which worker gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// One after the other.
    RoundRobin,
    /// The one with the fewest unfinished requests.
    LeastLoaded,
    /// The one with the least prefill to do after what it has cached, plus what it decodes.
    #[default]
    KvAware,
}

/// Whether to load what the target holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadPolicy {
    /// Whatever it costs.
    Always,
    /// Never: compute it again.
    Never,
    /// Where it is expected to take less time than computing.
    #[default]
    BreakEven,
}

/// How a worker learns what the target holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exists {
    /// From an index of completed writes that all workers share.
    #[default]
    Index,
    /// By asking the target for every block of the prompt that is not at hand.
    Stat,
}

/// Whether answers are cached too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputBlocks {
    /// Their block ids are taken from the later request that continues them, where there is one.
    #[default]
    Infer,
    /// Answers are not cached.
    None,
}

/// A KV-cache run, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KvSpec {
    /// Model served, for the report.
    pub model: String,
    /// GPU it is served on (emulated), for the report.
    pub gpu: String,
    /// Emulated workers, each of the cost model's `tp` GPUs.
    pub workers: u32,
    /// Which worker gets a request.
    pub routing: Routing,
    /// Most tokens of one iteration.
    pub max_num_batched_tokens: u64,
    /// Most sequences that run at once on a worker.
    pub max_num_seqs: u32,
    /// Share of GPU memory the engine may use.
    pub gpu_memory_utilization: f64,
    /// KV blocks in GPU memory (G1) of each worker, instead of what the model leaves there.
    pub g1_blocks: Option<u64>,
    /// Host memory for KV (G2) of each worker; zero for none.
    pub g2_bytes: Bytes,
    /// Whether workers share a tier on the target (G4).
    pub shared_tier: bool,
    /// Whether to load what the target holds.
    pub load: LoadPolicy,
    /// How a worker learns what the target holds.
    pub exists: Exists,
    /// Objects each worker reads or asks for at once.
    pub get_in_flight: u32,
    /// Objects each worker writes at once.
    pub put_in_flight: u32,
    /// Blocks each worker holds for writing; more are not written, and counted.
    pub put_queue_blocks: u32,
    /// Whether each rank has an object of its own for a block.
    pub per_rank: bool,
    /// Whether answers are cached too.
    pub output_blocks: OutputBlocks,
    /// Tokens of a block, where the trace has none.
    pub block_tokens: u32,
    /// GPU and host-link times are multiplied by this, gaps between arrivals too; results are divided by it.
    pub time_scale: f64,
    /// Arrivals come this many times as fast.
    pub rate_scale: f64,
    /// Objects are this share of a block's size. Only for shaped embedded targets: it makes storage look faster.
    pub bytes_scale: f64,
    /// Objective for time to first token; zero for none.
    #[serde(with = "units::duration")]
    pub slo_ttft: Duration,
    /// Objective for mean time per output token; zero for none.
    #[serde(with = "units::duration")]
    pub slo_tpot: Duration,
    /// Text before block keys.
    pub prefix: String,
}

impl Default for KvSpec {
    fn default() -> Self {
        Self {
            model: String::new(),
            gpu: String::new(),
            workers: 4,
            routing: Routing::default(),
            max_num_batched_tokens: 8192,
            max_num_seqs: 256,
            gpu_memory_utilization: 0.9,
            g1_blocks: None,
            g2_bytes: Bytes(64 << 30),
            shared_tier: true,
            load: LoadPolicy::default(),
            exists: Exists::default(),
            get_in_flight: 16,
            put_in_flight: 16,
            put_queue_blocks: 128,
            per_rank: false,
            output_blocks: OutputBlocks::default(),
            block_tokens: 512,
            time_scale: 1.0,
            rate_scale: 1.0,
            bytes_scale: 1.0,
            slo_ttft: Duration::from_secs(2),
            slo_tpot: Duration::from_millis(100),
            prefix: "kv/".to_owned(),
        }
    }
}

/// A run that makes no sense, in one sentence.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KvError {
    /// A knob out of its range.
    #[error("`{name}` is {value}; it must be {must}")]
    Knob {
        /// Which.
        name: &'static str,
        /// As given.
        value: String,
        /// What is allowed.
        must: &'static str,
    },
    /// No room for a cache.
    #[error(
        "{model} leaves no GPU memory for a KV cache on {gpu} × {tp}: {weights} of weights per GPU, {memory} of memory; \
         use more GPUs per worker, a smaller dtype or a GPU with more memory"
    )]
    ModelTooBig {
        /// Model served.
        model: String,
        /// GPU it is to be served on.
        gpu: String,
        /// GPUs per worker.
        tp: u32,
        /// Weights on one GPU.
        weights: Bytes,
        /// Memory of one GPU.
        memory: Bytes,
    },
    /// Nothing to replay.
    #[error("the trace has no requests to replay")]
    EmptyTrace,
}

impl KvSpec {
    /// Checks every knob for its range.
    ///
    /// # Errors
    /// Names the first that is out of range.
    pub fn check(&self) -> Result<(), KvError> {
        let positive = [
            ("workers", u64::from(self.workers)),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_num_seqs", u64::from(self.max_num_seqs)),
            ("get_in_flight", u64::from(self.get_in_flight)),
            ("put_in_flight", u64::from(self.put_in_flight)),
            ("put_queue_blocks", u64::from(self.put_queue_blocks)),
            ("block_tokens", u64::from(self.block_tokens)),
            ("g1_blocks", self.g1_blocks.unwrap_or(1)),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(KvError::Knob { name, value: "0".to_owned(), must: "at least 1" });
            }
        }
        let most = [("workers", u64::from(self.workers), 65_535), ("g1_blocks", self.g1_blocks.unwrap_or(1), 1 << 31)];
        for (name, value, most) in most {
            if value > most {
                return Err(KvError::Knob { name, value: value.to_string(), must: "smaller" });
            }
        }
        let scales = [
            ("time_scale", self.time_scale, 1e6),
            ("rate_scale", self.rate_scale, 1e6),
            ("bytes_scale", self.bytes_scale, 1.0),
            ("gpu_memory_utilization", self.gpu_memory_utilization, 1.0),
        ];
        for (name, value, most) in scales {
            if !(value > 0.0 && value <= most) {
                let must = if most == 1.0 { "above 0 and at most 1" } else { "above 0 and at most a million" };
                return Err(KvError::Knob { name, value: value.to_string(), must });
            }
        }
        Ok(())
    }
}
