//! What the workers can do without any cache outside GPU memory: the yardstick of offered load.

use std::sync::Arc;

use gpufeed_schema::{GpuTime, Kv as KvSection};

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
    let window_s = section.gpu.total_ns as f64 / f64::from(section.workers) / 1e9;
    Ok(section.completed as f64 / busiest_ratio(&section) / window_s)
}

/// Offered load ÷ what the workers can do without a tier: requests per second that arrive within `window`, or over the
/// whole trace, ÷ [`capacity_per_s`]. Above one the queue grows as long as the run. In a closed loop nothing is offered.
///
/// # Errors
/// As [`crate::kv::Kv::new`].
pub(super) fn load_ratio(
    spec: &KvSpec,
    cost: &CostModel,
    requests: &Arc<Requests>,
    window: Window,
) -> Result<Option<f64>, KvError> {
    let span_s = requests.span_ns() as f64 / 1e9 / spec.rate_scale;
    let (from_s, length_s) = match window.length {
        Some(length) => (window.warm_up.as_secs_f64(), length.as_secs_f64()),
        None => (0.0, span_s),
    };
    if spec.sessions || length_s <= 0.0 {
        return Ok(None);
    }
    let arrivals = requests.list().iter().map(|request| request.at_ns as f64 / 1e9 / spec.rate_scale);
    let offered = arrivals.filter(|at_s| (from_s..=from_s + length_s).contains(at_s)).count();
    let capacity_per_s = capacity_per_s(spec, cost, requests)?;
    Ok((offered > 0 && capacity_per_s > 0.0).then(|| offered as f64 / length_s / capacity_per_s))
}

/// Share of its time in which the busiest pool of workers is not without work.
fn busiest_ratio(section: &KvSection) -> f64 {
    let at_work = |gpu: &GpuTime| (gpu.total_ns - gpu.no_work_ns) as f64 / gpu.total_ns.max(1) as f64;
    let pools = section.gpu_pools.iter().map(|pool| at_work(&pool.gpu));
    pools.max_by(f64::total_cmp).unwrap_or_else(|| at_work(&section.gpu))
}
