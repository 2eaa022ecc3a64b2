//! Whether a model leaves room for a KV cache on its GPUs, and what would.

use gpufeed_profiles::units::Bytes;
use gpufeed_profiles::{Dtype, Engine, Gpu, Model};
use gpufeed_workloads::inference::CostModel;
use gpufeed_workloads::kv::KvSpec;

use crate::exit::usage;

/// Numbers of GPUs that are tried.
const TRIED: [u32; 6] = [1, 2, 4, 8, 16, 32];

/// What an engine may use of GPU memory, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Share of it that the engine may use.
    pub(crate) utilization_ratio: f64,
    /// Most tokens of one iteration.
    pub(crate) batched_tokens: u64,
    /// Tokens of a block.
    pub(crate) block_tokens: u64,
}

impl Memory {
    /// Of a KV-cache run.
    pub(crate) fn of(spec: &KvSpec) -> Self {
        Self {
            utilization_ratio: spec.gpu_memory_utilization,
            batched_tokens: spec.max_num_batched_tokens,
            block_tokens: u64::from(spec.block_tokens),
        }
    }
}

/// Refuses a model that leaves no room, and says what would fit.
///
/// # Errors
/// When not one block fits beside the weights.
pub(crate) fn check(memory: Memory, cost: &CostModel, model: &Model, gpu: &Gpu, engine: &Engine) -> anyhow::Result<()> {
    let room =
        |cost: &CostModel| cost.hbm_blocks(memory.utilization_ratio, memory.batched_tokens, memory.block_tokens) > 0;
    // Also where the number of blocks is given: the weights must fit all the same.
    if room(cost) {
        return Ok(());
    }
    let least_tp = |weights| {
        TRIED.into_iter().find(|&tp| room(&CostModel::from_profiles(model, gpu, engine, tp, weights, model.kv_dtype)))
    };
    let mut ways: Vec<String> = least_tp(model.weight_dtype).map(|tp| format!("--tp {tp}")).into_iter().collect();
    if model.weight_dtype.bytes() > 1.0 {
        let fp8 = least_tp(Dtype::Fp8).filter(|fp8| *fp8 < least_tp(model.weight_dtype).unwrap_or(u32::MAX));
        ways.extend(fp8.map(|tp| format!("8-bit weights (--set model.weight_dtype=fp8) with --tp {tp}")));
    }
    let ways = if ways.is_empty() {
        format!("no number of these GPUs up to {} would do", TRIED[TRIED.len() - 1])
    } else {
        format!("{} would fit", ways.join(", or "))
    };
    Err(usage(format!(
        "{} does not fit {} × {}: {} of weights on each GPU of {}; {ways}",
        model.name,
        gpu.name,
        cost.tp,
        Bytes(cost.weight_bytes_per_rank as u64),
        Bytes(cost.hbm_bytes as u64)
    )))
}
