//! What a KV-cache run is made of, as written in `plan.toml`.

use std::time::Duration;

use gpufeed_profiles::units::{self, Bytes, BytesPerSec};
use serde::{Deserialize, Serialize};

use crate::kv::client::RequestShape;
use crate::kv::estimate::Prior;
use crate::kv::exchange::Layered;
use crate::kv::topology::{Outage, RouterWeights, Topology};

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

impl Routing {
    /// The name used in plans and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastLoaded => "least-loaded",
            Self::KvAware => "kv-aware",
        }
    }
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

/// Whether prefill begins before the whole prefix is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// It waits for the whole prefix; other requests go on meanwhile.
    #[default]
    None,
    /// It begins at once and waits, in each layer, for that layer's part of the prefix; the whole batch waits with it.
    LayerWise,
}

impl Overlap {
    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::LayerWise => "layer-wise",
        }
    }
}

/// How long a request waits for its prefix; the values are those of SGLang HiCache's prefetch policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadWait {
    /// Until it is complete, or for as long as `load_timeout` says.
    #[default]
    WaitComplete,
    /// Until the GPU could compute it: to the end of the iteration in progress, not at all on an idle worker.
    BestEffort,
    /// For as long as `load_timeout` says.
    Timeout,
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

/// When blocks are written below host memory. Host memory itself gets every new block at once: writes pass through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WritePolicy {
    /// To the local drive and to the target, as soon as they are computed.
    #[default]
    WriteThrough,
    /// The same, but only blocks that enough prompts have contained.
    WriteThroughSelective,
    /// When they leave the tier above: host memory for the drive, the drive for the target. Where there is no tier above,
    /// as soon as they are computed.
    WriteBack,
}

/// What happens to a new block when its worker's queue of writes is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueFull {
    /// It is not written, and counted.
    #[default]
    Skip,
    /// It stays in GPU memory until there is room in the queue, so that requests may have to wait for memory.
    Stall,
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
    /// Local drive for KV (G3) of each node; zero for none.
    pub g3_bytes: Bytes,
    /// Workers of one node, which share its drive; zero for all of them.
    pub g3_workers: u32,
    /// Blocks each worker reads from the drive at once, and writes to it.
    pub g3_in_flight: u32,
    /// Whether workers share a tier on the target (G4).
    pub shared_tier: bool,
    /// What that tier may hold; unbounded if not given, no such tier if zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub g4_bytes: Option<Bytes>,
    /// Share of that above which its least recently used blocks are deleted.
    pub g4_evict_above_ratio: f64,
    /// Share of it that one eviction frees.
    pub g4_evict_ratio: f64,
    /// When blocks are written below host memory.
    pub write_policy: WritePolicy,
    /// Prompts that must have contained a block before it is written selectively.
    pub write_after_seen: u32,
    /// What happens to a new block when its worker's queue of writes is full.
    pub queue_full: QueueFull,
    /// Shortest hit on drive and target that is worth loading.
    pub min_hit_tokens: u64,
    /// How long a look-up or a load protects a block from eviction, in every bounded tier below GPU memory.
    #[serde(with = "units::duration")]
    pub lease: Duration,
    /// Whether a load must have room in host memory before it begins, rather than in passing buffers.
    pub stage_in_host_memory: bool,
    /// Whether blocks loaded from below are kept in host memory (in the drive where there is no host memory).
    pub promote: bool,
    /// Whether to load what the target holds.
    pub load: LoadPolicy,
    /// Whether prefill begins before the whole prefix is loaded.
    pub overlap: Overlap,
    /// Layers each read brings where it does.
    pub layers_per_read: u32,
    /// How long a request waits for its prefix.
    pub load_wait: LoadWait,
    /// A load that takes longer is given up, and what has not come is computed; zero for no limit.
    #[serde(with = "units::duration")]
    pub load_timeout: Duration,
    /// Latency to the first byte expected of the target before the first read; zero for the best there can be.
    #[serde(with = "units::duration")]
    pub expected_latency: Duration,
    /// Bandwidth a worker is expected to get from the target before the first read; the best there can be if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_bytes_per_s: Option<BytesPerSec>,
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
    /// Tokens of a block; a trace with blocks of another size is cut anew.
    pub block_tokens: u32,
    /// GPU and host-link times are multiplied by this, gaps between arrivals too; results are divided by it.
    pub time_scale: f64,
    /// Arrivals come this many times as fast.
    pub rate_scale: f64,
    /// For traces without block ids: this share of each prompt is a prefix that others have too; zero for none.
    pub prefix_share: f64,
    /// How many such prefixes there are.
    pub prefix_groups: u32,
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
    /// What the client does beyond HEAD, GET and PUT of one object per block.
    pub shape: RequestShape,
    /// Who prefills and who decodes.
    pub topology: Topology,
    /// The first so many workers prefill, the others decode (disaggregated).
    pub prefill_workers: u32,
    /// Of a worker's network, each way: what KV transfers between pools go at.
    pub transfer_bytes_per_s: BytesPerSec,
    /// Whether a turn of a conversation begins when the turn before has ended and its think time is over, rather than
    /// when the trace says.
    pub sessions: bool,
    /// What counts in KV-aware routing.
    pub router: RouterWeights,
    /// Workers that die.
    pub outages: Vec<Outage>,
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
            g3_bytes: Bytes(0),
            g3_workers: 0,
            g3_in_flight: 8,
            shared_tier: true,
            g4_bytes: None,
            g4_evict_above_ratio: 0.9,
            g4_evict_ratio: 0.05,
            write_policy: WritePolicy::default(),
            write_after_seen: 2,
            queue_full: QueueFull::default(),
            min_hit_tokens: 0,
            lease: Duration::ZERO,
            stage_in_host_memory: false,
            promote: true,
            load: LoadPolicy::default(),
            overlap: Overlap::default(),
            layers_per_read: 1,
            load_wait: LoadWait::default(),
            load_timeout: Duration::ZERO,
            expected_latency: Duration::ZERO,
            expected_bytes_per_s: None,
            exists: Exists::default(),
            get_in_flight: 16,
            put_in_flight: 16,
            put_queue_blocks: 128,
            per_rank: false,
            output_blocks: OutputBlocks::default(),
            block_tokens: 512,
            time_scale: 1.0,
            rate_scale: 1.0,
            prefix_share: 0.0,
            prefix_groups: 100,
            bytes_scale: 1.0,
            slo_ttft: Duration::from_secs(2),
            slo_tpot: Duration::from_millis(100),
            prefix: "kv/".to_owned(),
            shape: RequestShape::default(),
            topology: Topology::default(),
            prefill_workers: 0,
            transfer_bytes_per_s: BytesPerSec(50e9),
            sessions: false,
            router: RouterWeights::default(),
            outages: Vec::new(),
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
    /// How a model of `layers` layers is loaded, if not whole.
    pub(super) fn layered(&self, layers: u32) -> Option<Layered> {
        let layers_per_read = self.layers_per_read.clamp(1, layers.max(1));
        (self.overlap == Overlap::LayerWise).then_some(Layered { layers, layers_per_read })
    }

    /// What is expected of the target before the first read.
    pub(super) fn prior(&self) -> Prior {
        Prior {
            first_byte_ns: self.expected_latency.as_nanos() as f64,
            ns_per_byte: self.expected_bytes_per_s.map_or(0.0, |rate| 1e9 / rate.0),
        }
    }

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
            ("g3_in_flight", u64::from(self.g3_in_flight)),
            ("write_after_seen", u64::from(self.write_after_seen)),
            ("put_queue_blocks", u64::from(self.put_queue_blocks)),
            ("prefix_groups", u64::from(self.prefix_groups)),
            ("block_tokens", u64::from(self.block_tokens)),
            ("layers_per_read", u64::from(self.layers_per_read)),
            ("g1_blocks", self.g1_blocks.unwrap_or(1)),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(KvError::Knob { name, value: "0".to_owned(), must: "at least 1" });
            }
        }
        if self.load_wait == LoadWait::Timeout && self.load_timeout.is_zero() {
            let must = "above 0 where `load_wait` is `timeout`";
            return Err(KvError::Knob { name: "load_timeout", value: "0".to_owned(), must });
        }
        if self.load_wait == LoadWait::BestEffort && self.overlap == Overlap::LayerWise {
            let must =
                "`wait-complete` or `timeout` where `overlap` is `layer-wise`: its loads never hold a request up";
            return Err(KvError::Knob { name: "load_wait", value: "`best-effort`".to_owned(), must });
        }
        let unmet = |rate: &BytesPerSec| !(rate.0 > 0.0 && rate.0.is_finite());
        if let Some(rate) = self.expected_bytes_per_s.filter(unmet) {
            let (name, value) = ("expected_bytes_per_s", rate.0.to_string());
            return Err(KvError::Knob { name, value, must: "above 0; leave it out to expect the best" });
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
            ("g4_evict_above_ratio", self.g4_evict_above_ratio, 1.0),
            ("g4_evict_ratio", self.g4_evict_ratio, 1.0),
        ];
        for (name, value, most) in scales {
            if !(value > 0.0 && value <= most) {
                let must = if most == 1.0 { "above 0 and at most 1" } else { "above 0 and at most a million" };
                return Err(KvError::Knob { name, value: value.to_string(), must });
            }
        }
        if !(0.0..=1.0).contains(&self.prefix_share) {
            let value = self.prefix_share.to_string();
            return Err(KvError::Knob { name: "prefix_share", value, must: "from 0 to 1" });
        }
        self.check_topology()
    }
}
