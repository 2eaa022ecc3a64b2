//! What the workers can do without any cache outside GPU memory: the yardstick of offered load.

use std::sync::Arc;

use gpufeed_schema::GpuTime;

use crate::inference::CostModel;
use crate::kv::{BaselineKind, KvError, KvSpec, Requests, Window, baseline};

/// Arrivals so fast that every worker has work from the start.
const AT_ONCE: f64 = 1e6;

/// Requests per second that the workers can complete without any cache outside GPU memory: all requests come at once,
/// and the time in which a worker has nothing left to do does not count. With pools of their own for prefill and decode,
/// the slower of the two decides.
///
/// # Errors
/// As [`crate::kv::Kv::new`].
pub fn capacity_per_s(spec: &KvSpec, cost: &CostModel, requests: &Arc<Requests>) -> Result<f64, KvError> {
    let spec = KvSpec { rate_scale: AT_ONCE, sessions: false, outages: Vec::new(), ..spec.clone() };
    let section = baseline(&spec, cost, requests, BaselineKind::NoCache, Window::default())?;
    // Worker-seconds of work that one request takes, by pool; each pool has so many workers for them.
    let per_s = |gpu: &GpuTime, workers: u32| {
        let at_work_s = (gpu.total_ns - gpu.no_work_ns) as f64 / 1e9;
        f64::from(workers) * section.completed as f64 / at_work_s
    };
    let pools = section.gpu_pools.iter().map(|pool| per_s(&pool.gpu, pool.workers));
    let slowest = pools.min_by(f64::total_cmp);
    Ok(slowest.unwrap_or_else(|| per_s(&section.gpu, section.workers)))
}
