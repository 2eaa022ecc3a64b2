//! GPUs and inference engines: peaks, what of them is achievable, links, and host overheads.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::{Profile, Sources};
use crate::dtype::Dtype;
use crate::units::{self, Bytes, BytesPerSec, FlopsPerSec};

/// A figure that depends on the number format.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByDtype<T> {
    /// For 16-bit formats.
    pub bf16: T,
    /// For 8-bit formats; none where the hardware computes them in 16 bits.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub fp8: Option<T>,
}

const fn none<T>() -> Option<T> {
    None
}

impl<T: Copy> ByDtype<T> {
    /// The figure for `dtype`. Weights are widened to 16 bits on the way where the hardware has nothing narrower, and
    /// those of four bits everywhere, since no achieved 4-bit rate is known here.
    #[must_use]
    pub fn of(&self, dtype: Dtype) -> T {
        match dtype {
            Dtype::Fp8 | Dtype::Int8 => self.fp8.unwrap_or(self.bf16),
            Dtype::Mxfp4 | Dtype::Bf16 | Dtype::Fp16 | Dtype::Fp32 => self.bf16,
        }
    }
}

/// One GPU. Rates are of one GPU, links per direction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Name; of the file if it is not given.
    #[serde(default)]
    pub name: String,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Memory.
    pub hbm_bytes: Bytes,
    /// Memory a process can have, where that is known to be less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usable_hbm_bytes: Option<Bytes>,
    /// Peak bandwidth of memory.
    pub hbm_bytes_per_s: BytesPerSec,
    /// To the other GPUs of a worker: NVLink, Infinity Fabric or PCIe.
    pub peer_bytes_per_s: BytesPerSec,
    /// To host memory, as achieved.
    pub host_link_bytes_per_s: BytesPerSec,
    /// Of the network adapter that serves it.
    pub nic_bytes_per_s: BytesPerSec,
    /// Latency of one small all-reduce, without its hops.
    #[serde(with = "units::duration")]
    pub all_reduce_latency: Duration,
    /// Time of each of the 2·(TP − 1) hops of a small all-reduce; next to nothing through a switch.
    #[serde(default, with = "units::duration")]
    pub all_reduce_hop: Duration,
    /// Dense peak rates.
    pub peak: ByDtype<FlopsPerSec>,
    /// Share of the peak that large GEMMs reach, counting the parameters of [`crate::Model::gemm_params_active`].
    pub gemm_ratio: ByDtype<f64>,
    /// Share of the peak that prefill attention reaches, by causal pairs.
    pub attention_ratio: ByDtype<f64>,
    /// Share of memory bandwidth that reading the KV cache reaches, by the cache's format.
    pub kv_read_ratio: ByDtype<f64>,
    /// Share by which a large batch reads its KV cache more slowly than a single sequence, by the cache's format.
    #[serde(default)]
    pub kv_batch_loss_ratio: ByDtype<f64>,
    /// Share of memory bandwidth that reading weights reaches.
    pub weight_read_ratio: f64,
    /// Share of memory bandwidth that norms and element-wise work reach.
    pub hbm_stream_ratio: f64,
    /// `e`: share of the peer link that large all-reduces reach.
    pub peer_ratio: f64,
    /// Sources of the figures.
    #[serde(default)]
    pub sources: Sources,
}

impl Gpu {
    /// `r_gemm`: achievable rate of large GEMMs in `dtype`.
    #[must_use]
    pub fn gemm_rate(&self, dtype: Dtype) -> FlopsPerSec {
        FlopsPerSec(self.peak.of(dtype).0 * self.ratio(&self.gemm_ratio, dtype))
    }

    /// `r_attn`: achievable rate of prefill attention in `dtype`.
    #[must_use]
    pub fn attention_rate(&self, dtype: Dtype) -> FlopsPerSec {
        FlopsPerSec(self.peak.of(dtype).0 * self.ratio(&self.attention_ratio, dtype))
    }

    /// A share of the 8-bit peak means nothing where there is no 8-bit peak.
    fn ratio(&self, ratios: &ByDtype<f64>, dtype: Dtype) -> f64 {
        if self.peak.fp8.is_some() { ratios.of(dtype) } else { ratios.bf16 }
    }

    /// `bw_w`: achievable bandwidth of reading weights.
    #[must_use]
    pub fn weight_read(&self) -> BytesPerSec {
        BytesPerSec(self.hbm_bytes_per_s.0 * self.weight_read_ratio)
    }

    /// `bw_kv`: achievable bandwidth of reading a KV cache in `dtype`.
    #[must_use]
    pub fn kv_read(&self, dtype: Dtype) -> BytesPerSec {
        BytesPerSec(self.hbm_bytes_per_s.0 * self.kv_read_ratio.of(dtype))
    }

    /// `bw`: achievable bandwidth of norms and element-wise work.
    #[must_use]
    pub fn hbm_stream(&self) -> BytesPerSec {
        BytesPerSec(self.hbm_bytes_per_s.0 * self.hbm_stream_ratio)
    }

    /// `α`: latency of one small all-reduce over `tp` GPUs.
    #[must_use]
    pub fn all_reduce_time(&self, tp: u32) -> Duration {
        self.all_reduce_latency + self.all_reduce_hop * (2 * tp.saturating_sub(1))
    }

    /// `e·NVLink`: achievable bandwidth of large all-reduces.
    #[must_use]
    pub fn peer_rate(&self) -> BytesPerSec {
        BytesPerSec(self.peer_bytes_per_s.0 * self.peer_ratio)
    }

    /// Memory a process can have.
    #[must_use]
    pub fn usable_hbm(&self) -> Bytes {
        self.usable_hbm_bytes.unwrap_or(self.hbm_bytes)
    }
}

impl Profile for Gpu {
    const KIND: &'static str = "gpu";
    const DATA: &'static str = include_str!("../data/gpus.toml");

    fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), String> {
        for (what, rate) in [
            ("hbm_bytes", self.hbm_bytes.0 as f64),
            ("hbm_bytes_per_s", self.hbm_bytes_per_s.0),
            ("peer_bytes_per_s", self.peer_bytes_per_s.0),
            ("host_link_bytes_per_s", self.host_link_bytes_per_s.0),
            ("nic_bytes_per_s", self.nic_bytes_per_s.0),
            ("peak.bf16", self.peak.bf16.0),
            ("peak.fp8", self.peak.fp8.map_or(1.0, |peak| peak.0)),
        ] {
            if !(rate.is_finite() && rate > 0.0) {
                return Err(format!("{what} must be more than zero"));
            }
        }
        if self.usable_hbm() > self.hbm_bytes {
            return Err("usable_hbm_bytes is more than hbm_bytes".to_owned());
        }
        for (what, ratio) in [
            ("gemm_ratio.bf16", self.gemm_ratio.bf16),
            ("gemm_ratio.fp8", self.gemm_ratio.fp8.unwrap_or(1.0)),
            ("attention_ratio.bf16", self.attention_ratio.bf16),
            ("attention_ratio.fp8", self.attention_ratio.fp8.unwrap_or(1.0)),
            ("kv_read_ratio.bf16", self.kv_read_ratio.bf16),
            ("kv_read_ratio.fp8", self.kv_read_ratio.fp8.unwrap_or(1.0)),
            ("weight_read_ratio", self.weight_read_ratio),
            ("hbm_stream_ratio", self.hbm_stream_ratio),
            ("peer_ratio", self.peer_ratio),
        ] {
            ratio_above_zero(what, ratio)?;
        }
        for loss in [self.kv_batch_loss_ratio.bf16, self.kv_batch_loss_ratio.fp8.unwrap_or_default()] {
            not_negative("kv_batch_loss_ratio", loss)?;
        }
        Ok(())
    }
}

fn not_negative(what: &str, value: f64) -> Result<(), String> {
    if value.is_finite() && value >= 0.0 { Ok(()) } else { Err(format!("{what} must not be negative")) }
}

pub(crate) fn ratio_above_zero(what: &str, ratio: f64) -> Result<(), String> {
    if ratio > 0.0 && ratio <= 1.0 { Ok(()) } else { Err(format!("{what} must be more than 0 and at most 1")) }
}

/// An inference engine: what it costs beside the model's own work, and its usual settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Name; of the file if it is not given.
    #[serde(default)]
    pub name: String,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// `t_request`: host time of a request before it can be scheduled.
    #[serde(with = "units::duration")]
    pub request_time: Duration,
    /// `τ_token`: host time per prompt token before the request can be scheduled.
    #[serde(with = "units::duration")]
    pub token_time: Duration,
    /// `t_step`: host time of an iteration.
    #[serde(with = "units::duration")]
    pub step_time: Duration,
    /// `t_launch`: host time to launch one layer.
    #[serde(with = "units::duration")]
    pub launch_time: Duration,
    /// `τ_seq`: host time per sequence of the batch.
    #[serde(with = "units::duration")]
    pub sequence_time: Duration,
    /// Least GPU time of a layer's kernels, whatever their sizes.
    #[serde(default, with = "units::duration")]
    pub layer_time: Duration,
    /// The same of a layer's mixture of experts: routing, sorting, grouped GEMMs.
    #[serde(default, with = "units::duration")]
    pub expert_time: Duration,
    /// `λ`: share of the shorter of a GEMM's two times, compute and memory, that does not hide behind the longer.
    #[serde(default)]
    pub roofline_loss_ratio: f64,
    /// `κ`: passes over N·hidden elements of two bytes per layer, by norms and element-wise work.
    pub elementwise_passes: f64,
    /// Vectors of `hidden` elements of two bytes held per batched token.
    pub activation_vectors: f64,
    /// Context, graphs and communication buffers on one rank.
    pub reserved_bytes: Bytes,
    /// Share of a GPU's memory the engine takes.
    pub hbm_utilization_ratio: f64,
    /// Most tokens of an iteration: the prefill chunk.
    pub max_batched_tokens: u64,
    /// Most sequences of an iteration.
    pub max_sequences: u64,
    /// Tokens of a block in GPU memory.
    pub block_tokens: u64,
    /// Sources of the figures.
    #[serde(default)]
    pub sources: Sources,
}

impl Profile for Engine {
    const KIND: &'static str = "engine";
    const DATA: &'static str = include_str!("../data/engines.toml");

    fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), String> {
        ratio_above_zero("hbm_utilization_ratio", self.hbm_utilization_ratio)?;
        for (what, value) in [
            ("elementwise_passes", self.elementwise_passes),
            ("activation_vectors", self.activation_vectors),
            ("roofline_loss_ratio", self.roofline_loss_ratio),
        ] {
            not_negative(what, value)?;
        }
        for (what, value) in [
            ("max_batched_tokens", self.max_batched_tokens),
            ("max_sequences", self.max_sequences),
            ("block_tokens", self.block_tokens),
        ] {
            if value == 0 {
                return Err(format!("{what} must be more than zero"));
            }
        }
        Ok(())
    }
}
