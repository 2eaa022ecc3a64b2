//! The same trace on other storage, in virtual time: the same machine, driven by a heap.

use std::sync::Arc;
use std::time::Duration;

use gpufeed_profiles::units::Bytes;
use gpufeed_schema::{Baseline, Kv as KvSection};

use crate::inference::CostModel;
use crate::kv::capacity::load_ratio;
use crate::kv::spec::{Exists, KvError, KvSpec, LoadPolicy, LoadWait, Overlap};
use crate::kv::{Kv, RequestShape, Requests, play};
use crate::op::Tick;
use crate::storage::{Instant, Storage};

/// What the measured run is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaselineKind {
    /// No cache outside GPU memory.
    NoCache,
    /// Local tiers, no shared one.
    Local,
    /// Infinite, instant shared storage; the host link and GPU memory stay what they are.
    IdealStorage,
}

/// Which part of a run is measured, in the trace's own time (a scaled run's times divided by its scale).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// From the start of the trace to the start of the measurement.
    pub warm_up: Duration,
    /// Length of the measurement; none for until every request is served.
    pub length: Option<Duration>,
}

/// The run on storage of the given kind, at its own pace.
#[must_use]
pub fn of_kind(spec: &KvSpec, kind: BaselineKind) -> KvSpec {
    let mut spec = KvSpec { time_scale: 1.0, ..spec.clone() };
    match kind {
        BaselineKind::NoCache => {
            spec.shared_tier = false;
            spec.g2_bytes = Bytes(0);
            spec.g3_bytes = Bytes(0);
        }
        BaselineKind::Local => spec.shared_tier = false,
        BaselineKind::IdealStorage => {
            spec.shared_tier = true;
            spec.g4_bytes = None;
            spec.exists = Exists::Index;
            spec.shape = RequestShape::default();
            spec.load = LoadPolicy::BreakEven;
            // Nothing to hide and nothing to give up, at many times fewer reads.
            spec.overlap = Overlap::None;
            (spec.load_wait, spec.load_timeout) = (LoadWait::WaitComplete, Duration::ZERO);
            (spec.expected_latency, spec.expected_bytes_per_s) = (Duration::ZERO, None);
        }
    }
    spec
}

/// Plays `requests` on storage of the given kind over the same window as the run itself. Time is not scaled: results compare with scaled ones, which are divided by their scale.
///
/// # Errors
/// As [`Kv::new`].
pub fn baseline(
    spec: &KvSpec,
    cost: &CostModel,
    requests: &Arc<Requests>,
    kind: BaselineKind,
    window: Window,
) -> Result<KvSection, KvError> {
    let spec = of_kind(spec, kind);
    let mut machine = Kv::new(spec, cost.clone(), Arc::clone(requests))?;
    let measure = Tick::ZERO + window.warm_up;
    let end = play(&mut machine, Instant, measure, window.length.map(|length| measure + length));
    Ok(machine.report((measure.min(end), end)))
}

/// The figures of a section that a baseline shows.
#[must_use]
pub fn headline(section: &KvSection) -> Baseline {
    Baseline {
        completed: section.completed,
        ttft: section.ttft.clone(),
        ttft_parts: section.ttft_parts,
        output_tokens_per_s: section.output_tokens_per_s,
        goodput_per_s: section.goodput_per_s,
        token_hit_ratio: section.token_hit_ratio,
        gpu: section.gpu,
    }
}

/// Fills in the three virtual baselines of a measured section, the `useful_ratio` they allow, and `load_ratio`.
///
/// # Errors
/// As [`Kv::new`].
pub fn fill_baselines(
    section: &mut KvSection,
    spec: &KvSpec,
    cost: &CostModel,
    requests: &Arc<Requests>,
    window: Window,
) -> Result<(), KvError> {
    let run = |kind| baseline(spec, cost, requests, kind, window);
    let (no_cache, local, ideal) =
        (run(BaselineKind::NoCache)?, run(BaselineKind::Local)?, run(BaselineKind::IdealStorage)?);
    section.gpu.useful_ratio = useful_ratio(section, &ideal);
    section.load_ratio = load_ratio(spec, &no_cache);
    let mut lines = [&no_cache, &local, &ideal].map(headline);
    for (line, section) in lines.iter_mut().zip([&no_cache, &local, &ideal]) {
        line.gpu.useful_ratio = useful_ratio(section, &ideal);
    }
    let [no_cache, local, ideal] = lines;
    section.baselines.no_cache = Some(no_cache);
    section.baselines.local = Some(local);
    section.baselines.ideal_storage = Some(ideal);
    Ok(())
}

/// Fills in the fourth baseline: the run itself in virtual time, on `storage` as it was measured of the target. What it
/// says otherwise than the run is what the model leaves out. Only after [`fill_baselines`], for its `useful_ratio`.
///
/// Times stay scaled as in the run, since what was measured of the target is: `window` is of the clock of the run.
///
/// # Errors
/// As [`Kv::new`].
pub fn fill_target_model<S: Storage>(
    section: &mut KvSection,
    spec: &KvSpec,
    cost: &CostModel,
    requests: &Arc<Requests>,
    window: Window,
    storage: S,
) -> Result<(), KvError> {
    let mut machine = Kv::new(spec.clone(), cost.clone(), Arc::clone(requests))?;
    let measure = Tick::ZERO + window.warm_up;
    let end = play(&mut machine, storage, measure, window.length.map(|length| measure + length));
    let model = machine.report((measure.min(end), end));
    let mut line = headline(&model);
    // The work of both is that of the same requests: what of the run's busy time is useful is known.
    line.gpu.useful_ratio = scaled_useful(section, &model);
    section.baselines.target_model = Some(line);
    Ok(())
}

/// `useful` of `other` by that of `section`, whose ideal busy time per token served it shares.
fn scaled_useful(section: &KvSection, other: &KvSection) -> Option<f64> {
    let served = |s: &KvSection| (s.input_tokens_per_s + s.output_tokens_per_s) * s.gpu.total_ns as f64;
    let at_work = |s: &KvSection| (s.gpu.total_ns - s.gpu.no_work_ns - s.gpu.down_ns) as f64;
    let useful = section.gpu.useful_ratio?;
    let (served, at_work) = (served(other) / served(section), at_work(other) / at_work(section));
    (served.is_finite() && at_work > 0.0).then_some(useful * served / at_work)
}

/// `useful`: busy seconds that ideal storage needs for the same completed work ÷ (worker-seconds − no work − down).
///
/// Work is the tokens served (prompts of completed requests, and output): where the two runs did not complete the same,
/// ideal storage's busy time is taken in proportion.
#[must_use]
pub fn useful_ratio(section: &KvSection, ideal: &KvSection) -> Option<f64> {
    let per_s = |s: &KvSection| s.input_tokens_per_s + s.output_tokens_per_s;
    let work = |s: &KvSection| per_s(s) * s.gpu.total_ns as f64 / f64::from(s.workers.max(1));
    let at_work = section.gpu.total_ns - section.gpu.no_work_ns - section.gpu.down_ns;
    if work(ideal) <= 0.0 || at_work == 0 {
        return None;
    }
    let busy = (ideal.gpu.prefill_ns + ideal.gpu.recompute_ns + ideal.gpu.decode_ns) as f64;
    Some(busy * (work(section) / work(ideal)) / at_work as f64)
}
