//! What is counted between Measure and Stop, and how it becomes the report's section.

use std::collections::BTreeMap;

use gpufeed_schema::{Distribution, Failover, Kv as Section, KvWire, Latency, Slo, TierFlow, TierTokens, TtftParts};
use rustc_hash::FxHashSet;

use crate::inference::{Job, Parts, Phase, Reason, Samples};
use crate::kv::hindsight::Hindsight;
use crate::kv::spec::KvSpec;
use crate::op::{Op, Outcome, Tick, Verb};

/// Counters of the measured window. A request belongs to it by its arrival, work by when it was done, and bytes on the
/// wire by the intended start of their operation, as the report's operations do.
#[derive(Debug)]
pub(super) struct Metrics {
    from: Tick,
    /// When the window was cut.
    until: Option<Tick>,
    pub(super) requests: u64,
    completed: u64,
    failed: u64,
    /// Requests of the window that are under way: counted by themselves, so that a request lost or ended twice shows.
    open: FxHashSet<u32>,
    good: u64,
    slo: (u64, u64),
    ttft: Samples,
    parts: [Samples; 6],
    tpot: Samples,
    itl: Samples,
    e2e: Samples,
    input_tokens: u64,
    output_tokens: u64,
    prompt_tokens: u64,
    prompt_blocks: u64,
    found_blocks: u64,
    hits: TierTokens,
    pub(super) loaded_blocks: u64,
    recomputed: [u64; Reason::ALL.len()],
    loaded_bytes: u64,
    stored_bytes: u64,
    wire: KvWire,
    pub(super) failover: Failover,
    pub(super) transferred_bytes: u64,
    /// What moved between the tiers.
    pub(super) flow: TierFlow,
    pub(super) skipped_blocks: u64,
    pub(super) unwritten_blocks: u64,
    pub(super) hindsight: Hindsight,
}

impl Metrics {
    pub(super) fn new(spec: &KvSpec, from: Tick) -> Self {
        let samples = || Samples::new(spec.time_scale);
        let objective = |duration: std::time::Duration| match duration.as_nanos() as f64 * spec.time_scale {
            0.0 => u64::MAX,
            ns => ns as u64,
        };
        Self {
            from,
            until: None,
            requests: 0,
            completed: 0,
            failed: 0,
            open: FxHashSet::default(),
            good: 0,
            slo: (objective(spec.slo_ttft), objective(spec.slo_tpot)),
            ttft: samples(),
            parts: std::array::from_fn(|_| samples()),
            tpot: samples(),
            itl: samples(),
            e2e: samples(),
            input_tokens: 0,
            output_tokens: 0,
            prompt_tokens: 0,
            prompt_blocks: 0,
            found_blocks: 0,
            hits: TierTokens::default(),
            loaded_blocks: 0,
            recomputed: [0; Reason::ALL.len()],
            loaded_bytes: 0,
            stored_bytes: 0,
            wire: KvWire::default(),
            failover: Failover::default(),
            transferred_bytes: 0,
            flow: TierFlow::default(),
            skipped_blocks: 0,
            unwritten_blocks: 0,
            hindsight: Hindsight::new(spec.time_scale),
        }
    }

    pub(super) fn stop(&mut self, at: Tick) {
        self.until = self.until.or(Some(at));
    }

    /// Whether work done at `at` counts.
    pub(super) fn counts(&self, at: Tick) -> bool {
        self.until.is_none() && at >= self.from
    }

    /// An operation came back; `data` if it carried a block's own bytes, `layers` if only some layers of them. It is one of the window's by its intended start,
    /// whenever it ends.
    pub(super) fn wire(&mut self, op: &Op, outcome: &Outcome, data: bool, layers: bool) {
        let within = outcome.intended >= self.from && self.until.is_none_or(|until| outcome.intended < until);
        if !within || outcome.result.is_err() {
            return;
        }
        let (objects, bytes, beside) = match op.verb {
            Verb::Get => (&mut self.wire.objects_read, &mut self.loaded_bytes, &mut self.wire.beside_read_bytes),
            Verb::Put | Verb::Multipart => {
                (&mut self.wire.objects_written, &mut self.stored_bytes, &mut self.wire.beside_written_bytes)
            }
            Verb::Stat | Verb::List | Verb::Delete => return,
        };
        if layers {
            *bytes += outcome.bytes;
            self.wire.layer_reads += 1;
            self.wire.layer_read_bytes += op.bytes;
        } else if data {
            *objects += 1;
            *bytes += outcome.bytes;
        } else {
            *beside += outcome.bytes;
        }
    }

    /// The same of an operation on a drive.
    pub(super) fn drive(&mut self, op: &Op, outcome: &Outcome, data: bool) {
        let within = outcome.intended >= self.from && self.until.is_none_or(|until| outcome.intended < until);
        if within && data && outcome.result.is_ok() {
            let reads = op.verb == Verb::Get;
            let bytes = if reads { &mut self.flow.g3_read_bytes } else { &mut self.flow.g3_written_bytes };
            *bytes += outcome.bytes;
        }
    }

    fn belongs(&self, job: &Job) -> bool {
        self.until.is_none() && job.arrived >= self.from
    }

    pub(super) fn arrived(&mut self, at: Tick, request: u32) {
        if self.counts(at) {
            self.requests += 1;
            self.open.insert(request);
        }
    }

    pub(super) fn refused(&mut self, job: &Job) {
        if self.belongs(job) {
            self.failed += 1;
            self.open.remove(&job.id);
        }
    }

    /// `found` of a prompt's blocks lie in some tier.
    pub(super) fn looked_up(&mut self, arrived: Tick, prompt_blocks: u64, found: u64) {
        if self.counts(arrived) {
            self.prompt_blocks += prompt_blocks;
            self.found_blocks += found;
        }
    }

    /// A prompt's tokens by the tier they came from; what is left is computed.
    pub(super) fn prefill(&mut self, job: &Job, hits: TierTokens) {
        if self.belongs(job) {
            self.prompt_tokens += job.prompt_tokens;
            self.hits.g1 += hits.g1;
            self.hits.g2 += hits.g2;
            self.hits.g3 += hits.g3;
            self.hits.g4 += hits.g4;
            self.hits.miss += hits.miss;
        }
    }

    pub(super) fn recomputed(&mut self, at: Tick, reason: Reason, tokens: u64) {
        if self.counts(at) {
            self.recomputed[reason as usize] += tokens;
        }
    }

    pub(super) fn tokens(&mut self, at: Tick, count: u64) {
        if self.counts(at) {
            self.output_tokens += count;
        }
    }

    pub(super) fn gap(&mut self, at: Tick, gap_ns: u64, count: u64) {
        if self.counts(at) {
            self.itl.record(gap_ns, count);
        }
    }

    pub(super) fn first_token(&mut self, at: Tick, job: &Job, parts: &Parts) {
        debug_assert_eq!(parts.total(), at.0 - job.arrived.0, "the parts of a TTFT sum to it");
        if self.belongs(job) {
            self.ttft.record(at.0 - job.arrived.0, 1);
            for (samples, ns) in self.parts.iter_mut().zip(parts.0) {
                samples.record(ns, 1);
            }
        }
    }

    pub(super) fn finished(&mut self, at: Tick, job: &Job, first: Tick) {
        if self.counts(at) {
            self.input_tokens += job.prompt_tokens;
        }
        if !self.belongs(job) {
            return;
        }
        self.completed += 1;
        self.open.remove(&job.id);
        self.e2e.record(at.0 - job.arrived.0, 1);
        let tpot = (job.output_tokens > 1).then(|| (at.0 - first.0) / (job.output_tokens - 1));
        if let Some(tpot) = tpot {
            self.tpot.record(tpot, 1);
        }
        let met = first.0 - job.arrived.0 <= self.slo.0 && tpot.is_none_or(|tpot| tpot <= self.slo.1);
        self.good += u64::from(met);
    }

    /// The section, without what only the machine knows (GPU time, break-even, baselines).
    pub(super) fn section(&self, spec: &KvSpec, window: (Tick, Tick), object_bytes: u64) -> Section {
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let window_s = window.1.since(window.0).as_secs_f64() / spec.time_scale;
        let per_s = |count: u64| if window_s > 0.0 { count as f64 / window_s } else { 0.0 };
        let part = |phase: Phase| Latency::of(&self.parts[phase as usize]);
        let recomputed: BTreeMap<String, u64> =
            Reason::ALL.iter().map(|&reason| (reason.name().to_owned(), self.recomputed[reason as usize])).collect();
        let objective = |duration: std::time::Duration| (!duration.is_zero()).then_some(duration.as_nanos() as u64);
        Section {
            model: spec.model.clone(),
            gpu_kind: spec.gpu.clone(),
            workers: spec.workers,
            requests: self.requests,
            completed: self.completed,
            failed: self.failed,
            unfinished: self.open.len() as u64,
            prefix_hit_ratio: ratio(self.found_blocks, self.prompt_blocks),
            token_hit_ratio: ratio(self.prompt_tokens - self.hits.miss, self.prompt_tokens),
            hits_by_tier: self.hits,
            ttft: Distribution::of(&self.ttft),
            ttft_parts: TtftParts {
                queue: part(Phase::Queue),
                lookup: part(Phase::Lookup),
                load: part(Phase::Load),
                copy: part(Phase::Copy),
                prefill: part(Phase::Prefill),
                transfer: part(Phase::Transfer),
            },
            tpot: Latency::of(&self.tpot),
            itl: Latency::of(&self.itl),
            e2e: Distribution::of(&self.e2e),
            goodput_per_s: per_s(self.good),
            slo: Slo { ttft_ns: objective(spec.slo_ttft), tpot_ns: objective(spec.slo_tpot) },
            input_tokens_per_s: per_s(self.input_tokens),
            output_tokens_per_s: per_s(self.output_tokens),
            recomputed_tokens: recomputed,
            failover: (!spec.outages.is_empty()).then_some(self.failover),
            transferred_bytes: self.transferred_bytes,
            loaded_bytes: self.loaded_bytes,
            stored_bytes: self.stored_bytes,
            tier_flow: TierFlow { skipped_blocks: self.skipped_blocks, ..self.flow },
            wire: KvWire { object_bytes, ..self.wire },
            ..Section::default()
        }
    }
}
