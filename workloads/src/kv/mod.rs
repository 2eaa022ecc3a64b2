//! KV-cache offload: a trace drives emulated inference workers whose prefixes spill to host memory and to the target.
//!
//! For a request: route it, match its prefix in GPU memory (G1), host memory (G2), on the local drive (G3) and on the
//! target (G4), both by real reads, load or compute again, prefill the rest, decode, and offload new full blocks behind
//! the GPU's back. GPUs are emulated (crate module `inference`), storage is real.

mod baseline;
mod block_map;
mod capacity;
mod choice;
mod client;
mod dispatch;
mod drive;
mod estimate;
mod exchange;
mod failover;
mod handover;
mod hindsight;
mod loads;
mod metrics;
mod offload;
mod outbox;
mod play;
mod requests;
mod route;
mod shared;
mod spec;
mod tiers;
mod topology;
mod working_set;
mod writes;

#[cfg(test)]
mod accounting_tests;
#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod loading_tests;
#[cfg(test)]
mod scale_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tier_tests;
#[cfg(test)]
mod topology_tests;

use std::sync::Arc;

use gpufeed_profiles::units::{Bytes, BytesPerSec, FlopsPerSec};
use gpufeed_schema::{ClosedOrOpen, GpuPool, Kv as KvSection, Section, TransferRates};

pub use baseline::{
    BaselineKind, Window, baseline, fill_baselines, fill_target_model, headline, of_kind, useful_ratio,
};
pub use capacity::capacity_per_s;
pub use client::RequestShape;
pub use play::{Counted, Moved, play};
pub use requests::{Request, Requests, Turn};
pub use route::{Candidate, route};
pub use spec::{Exists, KvError, KvSpec, LoadPolicy, LoadWait, OutputBlocks, Overlap, QueueFull, Routing, WritePolicy};
pub use topology::{Outage, RouterWeights, Topology};
pub use working_set::WorkingSet;

use crate::inference::{CostModel, Limits, Peaks, Phase, Worker, summarize};
use crate::kv::dispatch::Dispatch;
use crate::kv::exchange::Asked;
use crate::kv::handover::Handovers;
use crate::kv::loads::Landed;
use crate::kv::metrics::Metrics;
use crate::kv::tiers::{Tier, Tiers, Wake};
use crate::machine::{Actions, Dataset, Event, Machine, Workload};
use crate::op::{KeyStyle, Names, Op, Outcome, Space, Tick, Verb};
use crate::storage::Measurements;

/// The KV-cache workload: one machine with all its workers, since they share routing and tiers.
#[derive(Debug)]
pub struct Kv {
    workers: Vec<Worker>,
    /// The wake each worker has been promised.
    promised: Vec<Option<Tick>>,
    dispatch: Dispatch,
    handovers: Handovers,
    tiers: Tiers,
    /// What was learned of the target in the window.
    measured: Measurements,
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
        let prefill_only = if spec.topology == Topology::Disaggregated { spec.pools().0 } else { 0..0 };
        let worker = |index| {
            let worker = Worker::new(index, Arc::clone(&cost), limits, Tick::ZERO);
            if prefill_only.contains(&(index as usize)) { worker.prefill_only() } else { worker }
        };
        let workers: Vec<Worker> = (0..spec.workers).map(worker).collect();
        Ok(Self {
            promised: vec![None; workers.len()],
            dispatch: Dispatch::new(&spec, &requests),
            handovers: Handovers::new(&spec, &cost),
            workers,
            tiers: Tiers::new(spec, cost, requests),
            measured: Measurements::default(),
            window: None,
        })
    }

    /// Bytes of one object on the target.
    #[must_use]
    pub const fn object_bytes(&self) -> u64 {
        self.tiers.target.shape().object_bytes
    }

    /// The key space of the local drives, the last one, if there are any: its operations are for another target.
    #[must_use]
    pub fn drive_space(&self) -> Option<u16> {
        self.tiers.drives.exist().then_some(client::SPACES)
    }

    /// Blocks not written because a worker's queue of writes was full.
    #[must_use]
    pub const fn skipped_blocks(&self) -> u64 {
        self.tiers.metrics.skipped_blocks
    }

    /// A wake is due. The model's time is `at`, however late it comes.
    fn due(&mut self, at: Tick, wake: Wake, out: &mut Actions) {
        match wake {
            Wake::Arrival => self.arrive(out),
            Wake::Turn { request } => self.begin(at, request),
            Wake::Ready { worker, request } => self.ready(at, worker as usize, request),
            Wake::Down { outage } => self.down(at, outage as usize),
            Wake::Back { outage } => self.back(at, outage as usize),
            Wake::Transferred { request } => self.transferred(at, request),
            Wake::Worker { worker } => {
                if self.promised[worker as usize] == Some(at) {
                    self.promised[worker as usize] = None;
                }
                self.workers[worker as usize].advance(at, &mut self.tiers);
            }
            Wake::LoadCopied { worker, job } if self.tiers.load_copied(at, worker, job) => {
                let blocks = self.tiers.finish_load(at, job);
                self.in_gpu_memory(at, worker, job, blocks);
            }
            Wake::LoadCopied { .. } => {}
            Wake::LoadOverdue { worker, job } => {
                self.workers[worker as usize].advance(at, &mut self.tiers);
                let landed = self.tiers.load_overdue(at, worker, job);
                self.hand_on(at, worker, job, landed);
                self.tiers.pump(at, worker);
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
        if op.key.space < tiers::TARGET_SPACES {
            self.measured.see(op, outcome);
        }
        let Some((tier, exchanged)) = self.tiers.landed(tag, outcome) else { return };
        match tier {
            Tier::G3 => self.tiers.metrics.drive(op, outcome, exchanged.data),
            Tier::G4 => self.tiers.metrics.wire(op, outcome, exchanged.data, exchanged.part.is_some()),
        }
        let worker = exchanged.worker;
        if !self.tiers.stopped {
            // What the worker did before this moment comes first.
            self.workers[worker as usize].advance(now, &mut self.tiers);
        }
        let (job, landed) = match exchanged.asked {
            Asked::LookUp { job, index } => (job, self.tiers.look_up_landed(now, job, index, &exchanged)),
            Asked::Fetch { job, index } => (job, self.tiers.fetch_landed(now, tier, job, index, &exchanged)),
            Asked::Store { .. } | Asked::Carry | Asked::Remove => {
                self.tiers.write_landed(now, tier, &exchanged);
                (0, Landed::Waiting)
            }
            Asked::Abandoned { .. } => {
                if exchanged.data && tier == Tier::G4 && op.verb == Verb::Get && self.tiers.metrics.counts(now) {
                    self.tiers.metrics.hindsight.late(outcome.bytes);
                }
                (0, Landed::Waiting)
            }
        };
        if self.tiers.stopped {
            return;
        }
        self.hand_on(now, worker, job, landed);
        self.tiers.resume_stalled(now, worker);
        self.tiers.pump(now, worker);
    }

    /// Tells a worker what has become of a job that waits for its prefix.
    fn hand_on(&mut self, now: Tick, worker: u32, job: u32, landed: Landed) {
        let at = &mut self.workers[worker as usize];
        match landed {
            Landed::Waiting => {}
            Landed::Loading => at.phase(now, job, Phase::Load),
            Landed::Copying => at.phase(now, job, Phase::Copy),
            Landed::Overlapping(blocks) => at.overlap(now, job, blocks, &mut self.tiers),
            Landed::Ready(blocks) => self.in_gpu_memory(now, worker, job, blocks),
        }
    }

    /// The first `blocks` blocks of a job are in GPU memory, or will be at moments that are known.
    fn in_gpu_memory(&mut self, now: Tick, worker: u32, job: u32, blocks: usize) {
        let at = &mut self.workers[worker as usize];
        match self.tiers.layers.remove(&job) {
            Some(parts) => {
                let landed = self.tiers.per_layer(&parts);
                at.layers_landed(now, job, blocks, landed, &mut self.tiers);
            }
            None => at.loaded(now, job, blocks, &mut self.tiers),
        }
    }

    /// Hands on what the tiers want done, and promises each worker its next wake.
    fn flush(&mut self, now: Tick, out: &mut Actions) {
        self.act();
        self.rewrite(now);
        let served = self.dispatch.all_arrived() && self.tiers.unfinished == 0;
        if served {
            // Nobody is left to read what still waits to be written.
            self.tiers.drop_writes(now);
            self.rewrite(now);
        }
        for (worker, job) in std::mem::take(&mut self.tiers.hurried) {
            // Just before the iteration ends, so that what came by then is in the next one.
            let end = self.workers[worker as usize].iteration_end(now);
            self.tiers.hurry(end.map_or(now, |end| Tick(end.0 - 1).max(now)), worker, job);
        }
        self.tiers.close_copy();
        self.tiers.submits().for_each(|submit| out.submit(submit));
        self.tiers.wakes.drain(..).for_each(|(at, wake)| out.wake(at, wake.tag()));
        for (index, worker) in self.workers.iter().enumerate() {
            let due = worker.due();
            if due.is_some() && due != self.promised[index] {
                self.promised[index] = due;
                out.wake(due.unwrap_or_default(), Wake::Worker { worker: index as u32 }.tag());
            }
        }
        if served && self.tiers.quiet() {
            out.finish();
        }
    }

    /// Offloads again what has now been seen often enough, and gives back what the queue of writes has taken.
    fn rewrite(&mut self, now: Tick) {
        for (worker, id) in std::mem::take(&mut self.tiers.rewrites) {
            if let Some(slot) = self.workers[worker as usize].hold(id)
                && !self.tiers.offload(now, worker, id, slot)
            {
                self.tiers.unpins.push((worker, slot));
            }
        }
        while let Some((worker, slot)) = self.tiers.unpins.pop() {
            self.workers[worker as usize].unpin(now, [slot], &mut self.tiers);
        }
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
            ("local drive per node (G3)", spec.g3_bytes.to_string()),
            ("shared tier (G4)", shared_tier(spec)),
            ("writes", word(&spec.write_policy)),
            ("routing", spec.routing.name().to_owned()),
            ("load or recompute", word(&spec.load)),
            ("reads in flight per worker", spec.get_in_flight.to_string()),
            ("writes in flight per worker", spec.put_in_flight.to_string()),
            ("object", Bytes(self.tiers.target.shape().object_bytes).to_string()),
            ("blocks not written, queue full", self.tiers.metrics.skipped_blocks.to_string()),
            ("blocks not written, run over", self.tiers.metrics.unwritten_blocks.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        inputs.extend(spec.topology_inputs(requests));
        inputs.insert("blocks".to_owned(), requests.blocks_in_words());
        if !spec.shape.client.is_empty() {
            inputs.insert("client".to_owned(), spec.shape.client.clone());
        }
        if self.tiers.drives.exist() {
            inputs.insert("local drive in baselines".to_owned(), "of the same size, but instant".to_owned());
        }
        let spared = self.tiers.target.spared();
        for (why, blocks) in [("they were there", spared.present), ("another writer had them", spared.locked)] {
            if blocks > 0 {
                inputs.insert(format!("blocks not written, {why}"), blocks.to_string());
            }
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
        let sum = |workers: &[Worker], end| {
            summarize(workers.iter().map(|w| w.closed_ledger(end)), (window.0, end), peaks, spec.time_scale)
        };
        let end = self.booked(window.1);
        let (gpu, timeline) = sum(&self.workers, end);
        let pool = |(name, workers): (&str, std::ops::Range<usize>)| GpuPool {
            name: name.to_owned(),
            workers: workers.len() as u32,
            gpu: sum(&self.workers[workers], end).0,
        };
        let (prefill, decode) = spec.pools();
        let pools = [("prefill", prefill), ("decode", decode)];
        KvSection {
            tp: cost.tp,
            transfer: TransferRates {
                read_bytes_per_s: self.measured.reads.bytes_per_s(),
                write_bytes_per_s: self.measured.writes.bytes_per_s(),
            },
            block_tokens: self.tiers.requests.block_tokens(),
            block_bytes: cost.block_bytes(self.tiers.requests.block_tokens()),
            loaded_tokens: self.tiers.metrics.loaded_blocks * self.tiers.requests.block_tokens(),
            never_read_blocks: self.tiers.shared.never_read(),
            gpu,
            timeline,
            gpu_pools: match spec.topology {
                Topology::Aggregated => Vec::new(),
                Topology::Disaggregated => pools.map(pool).into(),
            },
            break_even: self.tiers.break_even(0),
            load: self.tiers.loading(),
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
                self.schedule_outages(out);
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
            self.flush(now, out);
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
        self.measured = Measurements::default();
        self.tiers.metrics = Metrics::new(&self.tiers.spec, now);
        self.tiers.target.count_anew();
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
        let prefix = &self.tiers.spec.prefix;
        let mut spaces = client::spaces(&self.tiers.spec, self.tiers.cost.tp).to_vec();
        if self.tiers.drives.exist() {
            debug_assert_eq!(spaces.len(), usize::from(client::SPACES), "those of the drives come last");
            spaces.push(Space { before: format!("{prefix}g3/"), after: String::new(), style: KeyStyle::RankHash });
        }
        Names { spaces }
    }

    fn dataset(&self) -> Dataset {
        Dataset::default()
    }

    fn lanes(&self) -> usize {
        let spec = &self.tiers.spec;
        let target = if spec.shared_tier { spec.get_in_flight + spec.put_in_flight } else { 0 };
        let drive = if self.tiers.drives.exist() { 2 * spec.g3_in_flight } else { 0 };
        (spec.workers as usize * (target as usize + drive as usize)).max(1)
    }

    fn plan_hash(&self) -> u64 {
        let spec = serde_json::to_vec(&self.tiers.spec).unwrap_or_default();
        crate::random::mix2(self.tiers.requests.hash(), xxhash_rust::xxh3::xxh3_64(&spec))
    }

    fn issues_by_plan(&self) -> bool {
        false
    }

    fn load(&self) -> ClosedOrOpen {
        if self.tiers.spec.sessions { ClosedOrOpen::Closed } else { ClosedOrOpen::Open { offered_per_s: None } }
    }

    fn progress(&self) -> Option<f64> {
        let total = self.tiers.requests.list().len() as f64;
        Some((self.dispatch.arrived() as f64 - self.tiers.unfinished as f64).max(0.0) / total)
    }

    fn section(&self, measured: (Tick, Tick)) -> Section {
        Section::Kv(Box::new(self.report(measured)))
    }
}

/// A knob's value as plans write it.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// What the shared tier may hold, in words.
fn shared_tier(spec: &KvSpec) -> String {
    match spec.g4_bytes {
        _ if !spec.shared_tier => "none".to_owned(),
        Some(bytes) => bytes.to_string(),
        None => "unbounded".to_owned(),
    }
}
