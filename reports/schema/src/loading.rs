//! How prefixes were loaded from the target, and whether that paid.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BreakEven, Distribution, Latency, Quantiles, supported};

/// Loads of prefixes from the tiers below host memory, and what deciding for or against them cost.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Loading {
    /// `none` (prefill begins when the whole prefix is there) or `layer-wise`.
    pub overlap: String,
    /// Reads of each object of a block: one, or one per group of layers.
    pub reads_per_object: u32,
    /// Loads that ended in the window with every block they asked for.
    pub loads: u64,
    /// Loads given up because they took longer than allowed, or because the GPU was free (best effort).
    pub given_up: u64,
    /// Bytes that came after their load had been given up: on the wire, and of no use.
    pub late_bytes: u64,
    /// From the decision to load to the landing of the last block: TTFT waits for the slowest of N reads.
    pub last_block: Distribution,
    /// From the decision to load to the landing of the median block.
    pub median_block: Latency,
    /// Landing of the last block ÷ landing of the median block, loads of at least two blocks.
    pub straggler_ratio: Ratios,
    /// What the target did for one worker, by reads that the worker had in flight.
    pub concurrency: Vec<Concurrency>,
    /// Break-even curves after cached prefixes of other lengths than zero.
    pub break_even: Vec<BreakEvenCurve>,
    /// Bandwidth per worker above which loading k tokens lets a saturated worker serve more requests than computing
    /// them: loading frees the GPU, so this lies below the bandwidth at which a single request is served sooner.
    pub throughput_break_even: Vec<BreakEven>,
    /// Requests that lay on the wrong side of break-even, judged afterwards.
    pub break_even_wrong: BreakEvenWrong,
}

/// Break-even after `cached_tokens`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct BreakEvenCurve {
    /// Tokens of the prompt that are in GPU memory already.
    pub cached_tokens: u64,
    /// Bandwidth at which loading so many more tokens takes as long as computing them.
    pub points: Vec<BreakEven>,
}

/// What the target did while a worker had about so many reads in flight.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Concurrency {
    /// Reads in flight: this many, and fewer than twice as many.
    pub reads_in_flight: u32,
    /// Reads that were sent so.
    pub reads: u64,
    /// Mean latency to the first byte of late.
    pub first_byte_ns: Option<f64>,
    /// Bytes per second that landed of late, after the first byte.
    pub bytes_per_s: Option<f64>,
}

/// Decisions between loading and computing, held against what happened.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BreakEvenWrong {
    /// Requests that loaded from the target.
    pub loaded: u64,
    /// Of those, requests whose load took longer than computing the same tokens would have by the model.
    pub loaded_slower: u64,
    /// Time to first token those lost, in seconds.
    pub loaded_slower_ttft_s: f64,
    /// Requests that computed what the target held.
    pub computed: u64,
    /// Of those, requests that would have loaded faster, by what the target's reads showed by then.
    pub computed_slower: u64,
    /// Time to first token those lost, in seconds.
    pub computed_slower_ttft_s: f64,
    /// GPU time those spent on what could have been loaded, in worker-seconds.
    pub computed_slower_gpu_s: f64,
}

/// Summary of ratios. A percentile is given only where the sample supports it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Ratios {
    /// Samples.
    pub count: u64,
    /// Smallest.
    pub min_ratio: Option<f64>,
    /// Mean.
    pub mean_ratio: Option<f64>,
    /// Median.
    pub p50_ratio: Option<f64>,
    /// 90th percentile.
    pub p90_ratio: Option<f64>,
    /// 99th percentile.
    pub p99_ratio: Option<f64>,
    /// 99.9th percentile.
    pub p999_ratio: Option<f64>,
    /// Largest.
    pub max_ratio: Option<f64>,
}

impl Ratios {
    /// Summarizes a histogram of ratios times `unit`.
    pub fn of(samples: &impl Quantiles, unit: f64) -> Self {
        let count = samples.count();
        if count == 0 {
            return Self::default();
        }
        let ratio = |value: u64| value as f64 / unit;
        let at = |q: f64| supported(count, q).then(|| ratio(samples.at(q)));
        Self {
            count,
            min_ratio: Some(ratio(samples.min())),
            mean_ratio: Some(samples.mean() / unit),
            p50_ratio: at(0.5),
            p90_ratio: at(0.9),
            p99_ratio: at(0.99),
            p999_ratio: at(0.999),
            max_ratio: Some(ratio(samples.max())),
        }
    }
}
