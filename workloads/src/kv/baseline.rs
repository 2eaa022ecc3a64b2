//! The same trace on other storage, in virtual time: the same machine, driven by a heap.

use std::sync::Arc;
use std::time::Duration;

use gpufeed_profiles::units::Bytes;
use gpufeed_schema::{Baseline, GpuTime, Kv as KvSection};

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
        input_tokens_per_s: section.input_tokens_per_s,
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
    section.load_ratio = load_ratio(spec, cost, requests, window)?;
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
    line.gpu.useful_ratio = section.baselines.ideal_storage.as_ref().and_then(|ideal| {
        let (input, output) = (ideal.input_tokens_per_s, ideal.output_tokens_per_s);
        Served::of(&model).useful(&Served::new(input, output, &ideal.gpu, model.workers))
    });
    section.baselines.target_model = Some(line);
    Ok(())
}

/// Work done in a window and the time it took: of a run, or of one of its baselines.
struct Served<'a> {
    /// Prompt tokens of completed requests, and output tokens, each worker's share.
    input: f64,
    output: f64,
    gpu: &'a GpuTime,
}

impl<'a> Served<'a> {
    fn new(input_per_s: f64, output_per_s: f64, gpu: &'a GpuTime, workers: u32) -> Self {
        let window_s = gpu.total_ns as f64 / f64::from(workers.max(1)) / 1e9;
        Self { input: input_per_s * window_s, output: output_per_s * window_s, gpu }
    }

    fn of(section: &'a KvSection) -> Self {
        Self::new(section.input_tokens_per_s, section.output_tokens_per_s, &section.gpu, section.workers)
    }

    /// See [`useful_ratio`].
    fn useful(&self, ideal: &Self) -> Option<f64> {
        let at_work = self.gpu.total_ns - self.gpu.no_work_ns - self.gpu.down_ns;
        // Time without tokens to count it by says nothing of the time that other tokens take.
        let share = |ns: u64, done: f64, ideal: f64| match ns {
            0 => Some(0.0),
            ns => (ideal > 0.0).then(|| ns as f64 * (done / ideal)),
        };
        let prefill = share(ideal.gpu.prefill_ns + ideal.gpu.recompute_ns, self.input, ideal.input)?;
        let decode = share(ideal.gpu.decode_ns, self.output, ideal.output)?;
        (at_work > 0 && ideal.input + ideal.output > 0.0).then(|| (prefill + decode) / at_work as f64)
    }
}

/// `useful`: busy seconds that ideal storage needs for the same completed work ÷ (worker-seconds − no work − down).
///
/// Where the two runs did not complete the same, as where a window cuts them at different places, ideal storage's prefill
/// is taken in proportion to the prompts of completed requests, and its decode in proportion to the output tokens: a
/// prompt token takes a small part of what an output token does. None where ideal storage completed no such work.
#[must_use]
pub fn useful_ratio(section: &KvSection, ideal: &KvSection) -> Option<f64> {
    Served::of(section).useful(&Served::of(ideal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(input_per_s: f64, output_per_s: f64, [prefill_ns, decode_ns, no_work_ns]: [u64; 3]) -> KvSection {
        let total_ns = prefill_ns + decode_ns + no_work_ns;
        let gpu = GpuTime { total_ns, prefill_ns, decode_ns, no_work_ns, ..GpuTime::default() };
        KvSection {
            input_tokens_per_s: input_per_s,
            output_tokens_per_s: output_per_s,
            workers: 2,
            gpu,
            ..Default::default()
        }
    }

    /// Prompts and answers that a window cut apart are each weighed by the time they take.
    #[test]
    fn useful_weighs_prompts_and_answers_by_their_time() {
        let ideal = served(9000.0, 100.0, [2_000_000_000, 6_000_000_000, 2_000_000_000]);
        let close = |section: KvSection, expected: f64| {
            let found = useful_ratio(&section, &ideal).expect("work was done");
            assert!((found - expected).abs() < 1e-12, "{found} instead of {expected}");
        };
        close(ideal.clone(), 1.0);
        // In the same window of 5 s: a third of the prompts and half of the answers, in 9 s of work.
        close(served(3000.0, 50.0, [4_000_000_000, 5_000_000_000, 1_000_000_000]), (2.0 / 3.0 + 3.0) / 9.0);
        // In a window twice as long, at half the rates: the same tokens.
        close(served(4500.0, 50.0, [10_000_000_000, 10_000_000_000, 0]), 8.0 / 20.0);
        // All of the prompts and no answer yet.
        close(served(9000.0, 0.0, [4_000_000_000, 0, 6_000_000_000]), 0.5);
        let nothing = served(0.0, 100.0, [2_000_000_000, 6_000_000_000, 0]);
        assert_eq!(useful_ratio(&ideal, &nothing), None, "ideal storage's prefill is of prompts it did not complete");
    }
}
