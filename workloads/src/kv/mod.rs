//! KV-cache offload: a trace drives emulated inference workers whose prefixes spill to host memory and to the target.
//!
//! For a request: route it, match its prefix in GPU memory (G1), host memory (G2) and on the target (G4, real reads),
//! load or compute again, prefill the rest, decode, and offload new full blocks behind the GPU's back. GPUs are
//! emulated (crate module `inference`), storage is real.

mod baseline;
mod exchange;
mod loads;
mod metrics;
mod offload;
mod requests;
mod route;
mod spec;
mod tiers;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use gpufeed_profiles::units::{Bytes, BytesPerSec, FlopsPerSec};
use gpufeed_schema::{BreakEven, ClosedOrOpen, Kv as KvSection, Section};

pub use baseline::{BaselineKind, Window, baseline, fill_baselines, headline, useful_ratio};
pub use requests::{Request, Requests};
pub use route::{Candidate, route};
pub use spec::{Exists, KvError, KvSpec, LoadPolicy, OutputBlocks, Routing};

use crate::inference::{CostModel, Job, Limits, Peaks, Phase, Worker, summarize};
use crate::kv::exchange::Asked;
use crate::kv::loads::Landed;
use crate::kv::metrics::Metrics;
use crate::kv::tiers::{Tiers, Wake};
use crate::machine::{Actions, Dataset, Event, Machine, Workload};
use crate::op::{KeyStyle, Names, Op, Outcome, Space, Tick};

/// The KV-cache workload: one machine with all its workers, since they share routing and tiers.
#[derive(Debug)]
pub struct Kv {
    workers: Vec<Worker>,
    /// The wake each worker has been promised.
    promised: Vec<Option<Tick>>,
    /// Prompt tokens and requests routed to each worker that it has not been given yet.
    on_the_way: Vec<(u64, u64)>,
    tiers: Tiers,
    next: usize,
    window: Option<Tick>,
}

impl Kv {
    /// A run of `requests` on workers of `cost`.
    ///
    /// # Errors
    /// When a knob is out of range, the model does not fit, or there is nothing to replay.
    pub fn new(spec: KvSpec, cost: CostModel, requests: Arc<Requests>) -> Result<Self, KvError> {
        spec.check()?;
        if requests.list().is_empty() {
            return Err(KvError::EmptyTrace);
        }
        let block_tokens = requests.block_tokens();
        let room = cost.hbm_blocks(spec.gpu_memory_utilization, spec.max_num_batched_tokens, block_tokens);
        let hbm_blocks = spec.g1_blocks.unwrap_or(room);
        if hbm_blocks == 0 {
            return Err(KvError::ModelTooBig {
                model: spec.model,
                gpu: spec.gpu,
                tp: cost.tp,
                weights: Bytes(cost.weight_bytes_per_rank as u64),
                memory: Bytes(cost.hbm_bytes as u64),
            });
        }
        let limits = Limits {
            max_num_batched_tokens: spec.max_num_batched_tokens,
            max_num_seqs: spec.max_num_seqs as usize,
            block_tokens,
            hbm_blocks: hbm_blocks.min(1 << 31) as usize,
            time_scale: spec.time_scale,
        };
        let cost = Arc::new(cost);
        let workers: Vec<Worker> =
            (0..spec.workers).map(|index| Worker::new(index, Arc::clone(&cost), limits, Tick::ZERO)).collect();
        Ok(Self {
            promised: vec![None; workers.len()],
            on_the_way: vec![(0, 0); workers.len()],
            workers,
            tiers: Tiers::new(spec, cost, requests),
            next: 0,
            window: None,
        })
    }

    /// Bytes of one object on the target.
    #[must_use]
    pub const fn object_bytes(&self) -> u64 {
        self.tiers.target.shape().object_bytes
    }

    /// Blocks not written because a worker's queue of writes was full.
    #[must_use]
    pub const fn skipped_blocks(&self) -> u64 {
        self.tiers.metrics.skipped_blocks
    }

    fn arrive(&mut self, out: &mut Actions) {
        let index = self.next;
        self.next += 1;
        let arrived = self.tiers.arrival(index);
        let requests = Arc::clone(&self.tiers.requests);
        let request = &requests.list()[index];
        self.tiers.metrics.arrived(arrived, index as u32);
        self.tiers.unfinished += 1;
        let ids = &requests.blocks(request)[..request.prompt_blocks as usize];
        let worker = self.route(index as u64, ids, request.input_tokens.div_ceil(requests.block_tokens()));
        self.on_the_way[worker].0 += request.input_tokens;
        self.on_the_way[worker].1 += 1;
        let host_ns = self.tiers.cost.request_ns(request.input_tokens) * self.tiers.spec.time_scale;
        let ready = Tick(arrived.0 + host_ns.round() as u64);
        out.wake(ready, Wake::Ready { worker: worker as u32, request: index as u32 }.tag());
        if self.next < requests.list().len() {
            out.wake(self.tiers.arrival(self.next), Wake::Arrival.tag());
        }
    }

    fn route(&self, turn: u64, ids: &[u64], prompt_blocks: u64) -> usize {
        let block_tokens = self.tiers.requests.block_tokens();
        route(self.tiers.spec.routing, turn, prompt_blocks, self.workers.len(), |i| {
            let worker = &self.workers[i];
            let matched = self.tiers.local_match(i, ids, worker.pool().match_prefix(ids));
            let (tokens, jobs) = self.on_the_way[i];
            Candidate {
                matched_blocks: matched as u64,
                queued_blocks: (worker.queued_tokens() + tokens).div_ceil(block_tokens),
                active_blocks: worker.pool().in_use() as u64,
                jobs: worker.jobs() as u64 + jobs,
            }
        })
    }

    fn ready(&mut self, at: Tick, worker: usize, index: u32) {
        let requests = Arc::clone(&self.tiers.requests);
        let request = &requests.list()[index as usize];
        self.on_the_way[worker].0 -= request.input_tokens;
        self.on_the_way[worker].1 -= 1;
        let job = Job {
            id: index,
            arrived: self.tiers.arrival(index as usize),
            prompt_tokens: request.input_tokens,
            output_tokens: request.output_tokens,
            blocks: requests.blocks(request).to_vec(),
        };
        self.workers[worker].enqueue(at, at, job, &mut self.tiers);
    }

    /// A wake is due. The model's time is `at`, however late it comes.
    fn due(&mut self, at: Tick, wake: Wake, out: &mut Actions) {
        match wake {
            Wake::Arrival => self.arrive(out),
            Wake::Ready { worker, request } => self.ready(at, worker as usize, request),
            Wake::Worker { worker } => {
                if self.promised[worker as usize] == Some(at) {
                    self.promised[worker as usize] = None;
                }
                self.workers[worker as usize].advance(at, &mut self.tiers);
            }
            Wake::LoadCopied { worker, job } => {
                let blocks = self.tiers.finish_load(at, job);
                self.workers[worker as usize].loaded(at, job, blocks, &mut self.tiers);
            }
            Wake::OffloadCopied { copy } => {
                if let Some(copied) = self.tiers.offload_copied(at, copy) {
                    // Tails go first when room is needed, so they are given back first.
                    let slots = copied.blocks.iter().rev().map(|block| block.0);
                    self.workers[copied.worker as usize].unpin(at, slots, &mut self.tiers);
                }
            }
        }
    }

    fn done(&mut self, now: Tick, tag: u64, op: &Op, outcome: &Outcome) {
        debug_assert!(op.key.space == 0, "an operation of another machine");
        let Some(exchanged) = self.tiers.target.landed(tag, outcome) else { return };
        self.tiers.metrics.wire(op, outcome, exchanged.data);
        let worker = exchanged.worker;
        if !self.tiers.stopped {
            // What the worker did before this moment comes first.
            self.workers[worker as usize].advance(now, &mut self.tiers);
        }
        let (job, landed) = match exchanged.asked {
            Asked::LookUp { job, index } => (job, self.tiers.look_up_landed(now, job, index, &exchanged)),
            Asked::Fetch { job, index } => (job, self.tiers.fetch_landed(now, job, index, &exchanged, outcome)),
            Asked::Store { .. } => {
                self.tiers.store_landed(&exchanged);
                (0, Landed::Waiting)
            }
        };
        if self.tiers.stopped {
            return;
        }
        let at = &mut self.workers[worker as usize];
        match landed {
            Landed::Waiting => {}
            Landed::Loading => at.phase(now, job, Phase::Load),
            Landed::Copying => at.phase(now, job, Phase::Copy),
            Landed::Ready(blocks) => at.loaded(now, job, blocks, &mut self.tiers),
        }
        self.tiers.pump(now, worker);
    }

    /// Hands on what the tiers want done, and promises each worker its next wake.
    fn flush(&mut self, out: &mut Actions) {
        self.tiers.close_copy();
        self.tiers.target.submits().for_each(|submit| out.submit(submit));
        self.tiers.wakes.drain(..).for_each(|(at, wake)| out.wake(at, wake.tag()));
        for (index, worker) in self.workers.iter().enumerate() {
            let due = worker.due();
            if due.is_some() && due != self.promised[index] {
                self.promised[index] = due;
                out.wake(due.unwrap_or_default(), Wake::Worker { worker: index as u32 }.tag());
            }
        }
        let served = self.next >= self.tiers.requests.list().len() && self.tiers.unfinished == 0;
        if served {
            // Nobody is left to read what still waits to be written.
            self.tiers.drop_writes();
        }
        if served && self.tiers.quiet() {
            out.finish();
        }
    }

    fn break_even(&self) -> Vec<BreakEven> {
        let (cost, spec) = (&self.tiers.cost, &self.tiers.spec);
        let first_byte_ns = self.tiers.metrics.mean_first_byte_ns();
        let block = self.tiers.requests.block_tokens();
        let sizes =
            std::iter::successors(Some(block), |tokens| Some(tokens * 2)).take_while(|&k| k <= 131_072.max(block));
        sizes
            .map(|tokens| BreakEven {
                tokens,
                bytes_per_s: cost.break_even_bytes_per_s(0, tokens, spec.max_num_batched_tokens, first_byte_ns),
            })
            .collect()
    }

    fn inputs(&self) -> std::collections::BTreeMap<String, String> {
        let (cost, spec, requests) = (&self.tiers.cost, &self.tiers.spec, &self.tiers.requests);
        let rate = |bytes_per_s: f64| BytesPerSec(bytes_per_s).to_string();
        let us = |ns: f64| gpufeed_profiles::units::show_nanos(ns);
        let hbm_blocks = self.workers.first().map_or(0, |worker| worker.pool().capacity());
        let mut inputs: std::collections::BTreeMap<String, String> = [
            ("gemm rate per GPU", FlopsPerSec(cost.gemm_flops_per_s).to_string()),
            ("attention rate per GPU", FlopsPerSec(cost.attention_flops_per_s).to_string()),
            ("weight bandwidth per GPU", rate(cost.weight_bytes_per_s)),
            ("KV bandwidth per GPU", rate(cost.kv_bytes_per_s)),
            ("host link per GPU", rate(cost.host_link_bytes_per_s)),
            ("host time per iteration", us(cost.step_ns)),
            ("host time per request", us(cost.request_ns)),
            ("KV bytes per token", Bytes(cost.kv_bytes_per_token as u64).to_string()),
            ("GPU memory blocks per worker (G1)", hbm_blocks.to_string()),
            ("host memory per worker (G2)", spec.g2_bytes.to_string()),
            ("routing", format!("{:?}", spec.routing)),
            ("load or recompute", format!("{:?}", spec.load)),
            ("reads in flight per worker", spec.get_in_flight.to_string()),
            ("writes in flight per worker", spec.put_in_flight.to_string()),
            ("object", Bytes(self.tiers.target.shape().object_bytes).to_string()),
            ("blocks not written, queue full", self.tiers.metrics.skipped_blocks.to_string()),
            ("blocks not written, run over", self.tiers.metrics.unwritten_blocks.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        if requests.synthetic() {
            let note = format!(
                "{} tokens, made up: the trace has no block ids, so nothing is shared",
                requests.block_tokens()
            );
            inputs.insert("blocks".to_owned(), note);
        }
        inputs
    }

    /// [`Workload::section`] by its own type.
    #[must_use]
    pub fn report(&self, measured: (Tick, Tick)) -> KvSection {
        let (cost, spec) = (&self.tiers.cost, &self.tiers.spec);
        let peaks = Peaks {
            flops_per_s: cost.peak_flops_per_s * f64::from(cost.tp),
            bytes_per_s: cost.peak_hbm_bytes_per_s * f64::from(cost.tp),
        };
        let from = self.window.unwrap_or(measured.0);
        let window = (from, measured.1);
        let (gpu, timeline) =
            summarize(self.workers.iter().map(|w| w.ledger().clone()), window, peaks, spec.time_scale);
        KvSection {
            tp: cost.tp,
            block_tokens: self.tiers.requests.block_tokens(),
            block_bytes: cost.block_bytes(self.tiers.requests.block_tokens()),
            loaded_tokens: self.tiers.metrics.loaded_blocks * self.tiers.requests.block_tokens(),
            never_read_blocks: self.tiers.stored.values().filter(|read| !**read).count() as u64,
            gpu,
            timeline,
            break_even: self.break_even(),
            inputs: self.inputs(),
            ..self.tiers.metrics.section(spec, window, self.tiers.target.shape().object_bytes)
        }
    }
}

impl Machine for Kv {
    fn step(&mut self, now: Tick, event: Event<'_>, out: &mut Actions) {
        match event {
            Event::Start => {
                self.tiers.origin = now;
                self.measure(now);
                out.wake(self.tiers.arrival(0), Wake::Arrival.tag());
            }
            Event::Measure => self.measure(now),
            Event::Due { .. } if self.tiers.stopped => {}
            Event::Due { at, tag } => self.due(at, Wake::of(tag), out),
            Event::Done { tag, op, outcome } => self.done(now, tag, op, outcome),
            Event::Stop => {
                for worker in &mut self.workers {
                    worker.advance(now, &mut self.tiers);
                    worker.stop(now);
                }
                self.tiers.stopped = true;
                self.tiers.metrics.stop(now);
            }
        }
        if !self.tiers.stopped {
            self.flush(out);
        } else if self.tiers.none_in_flight() {
            // Wakes still promised, the next arrival among them, are for nothing now.
            out.finish();
        }
    }
}

impl Kv {
    /// What counts starts at `now`.
    fn measure(&mut self, now: Tick) {
        for worker in &mut self.workers {
            worker.advance(now, &mut self.tiers);
            worker.measure(now);
        }
        self.window = Some(now);
        self.tiers.metrics = Metrics::new(&self.tiers.spec, now);
    }
}

#[cfg(test)]
impl Kv {
    /// Whether the run was stopped rather than finished.
    fn window_was_cut(&self) -> bool {
        self.tiers.stopped
    }
}

impl Workload for Kv {
    fn names(&self) -> Names {
        let style = if self.tiers.spec.per_rank { KeyStyle::RankHash } else { KeyStyle::Hash };
        Names { spaces: vec![Space { before: self.tiers.spec.prefix.clone(), after: String::new(), style }] }
    }

    fn dataset(&self) -> Dataset {
        Dataset::default()
    }

    fn lanes(&self) -> usize {
        let spec = &self.tiers.spec;
        if !spec.shared_tier {
            return 1;
        }
        spec.workers as usize * (spec.get_in_flight as usize + spec.put_in_flight as usize)
    }

    fn plan_hash(&self) -> u64 {
        let spec = serde_json::to_vec(&self.tiers.spec).unwrap_or_default();
        crate::random::mix2(self.tiers.requests.hash(), xxhash_rust::xxh3::xxh3_64(&spec))
    }

    fn issues_by_plan(&self) -> bool {
        false
    }

    fn load(&self) -> ClosedOrOpen {
        ClosedOrOpen::Open { offered_per_s: None }
    }

    fn progress(&self) -> Option<f64> {
        let total = self.tiers.requests.list().len() as f64;
        Some((self.next as f64 - self.tiers.unfinished as f64).max(0.0) / total)
    }

    fn section(&self, measured: (Tick, Tick)) -> Section {
        Section::Kv(Box::new(self.report(measured)))
    }
}
