//! The tiers outside GPU memory, seen from the workers: host memory and links of each, one index of the target.

use std::sync::Arc;

use gpufeed_schema::TierTokens;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::inference::{Begin, BlockPool, CostModel, Host, Job, Parts, Reason, Slot};
use crate::kv::exchange::{Exchange, Shape};
use crate::kv::loads::{Load, Verdict};
use crate::kv::metrics::Metrics;
use crate::kv::requests::Requests;
use crate::kv::spec::KvSpec;
use crate::op::Tick;

/// What belongs to one worker.
#[derive(Debug)]
pub(super) struct Local {
    /// Host memory.
    pub(super) g2: BlockPool,
    /// When its link to GPU memory is free again, each way.
    pub(super) in_free: Tick,
    pub(super) out_free: Tick,
}

/// Blocks on their way from GPU to host memory.
#[derive(Debug)]
pub(super) struct Copying {
    pub(super) worker: u32,
    pub(super) blocks: Vec<(Slot, u64)>,
}

/// What a wake is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    Arrival,
    Ready { worker: u32, request: u32 },
    Worker { worker: u32 },
    LoadCopied { worker: u32, job: u32 },
    OffloadCopied { copy: u32 },
}

impl Wake {
    pub(super) fn tag(self) -> u64 {
        let (kind, worker, number) = match self {
            Self::Arrival => (0u64, 0, 0),
            Self::Ready { worker, request } => (1, worker, request),
            Self::Worker { worker } => (2, worker, 0),
            Self::LoadCopied { worker, job } => (3, worker, job),
            Self::OffloadCopied { copy } => (4, 0, copy),
        };
        kind << 56 | u64::from(worker) << 32 | u64::from(number)
    }

    pub(super) fn of(tag: u64) -> Self {
        let (worker, number) = ((tag >> 32) as u32 & 0xff_ffff, tag as u32);
        match tag >> 56 {
            0 => Self::Arrival,
            1 => Self::Ready { worker, request: number },
            2 => Self::Worker { worker },
            3 => Self::LoadCopied { worker, job: number },
            _ => Self::OffloadCopied { copy: number },
        }
    }
}

/// Everything outside the workers; their host.
#[derive(Debug)]
pub(super) struct Tiers {
    pub(super) spec: KvSpec,
    pub(super) cost: Arc<CostModel>,
    pub(super) requests: Arc<Requests>,
    /// When the trace begins.
    pub(super) origin: Tick,
    /// Which requests have been looked up once.
    pub(super) looked_up: Vec<bool>,
    /// Time of one block on a worker's host link.
    pub(super) block_copy_ns: f64,
    pub(super) locals: Vec<Local>,
    /// Blocks on the target, and whether anyone has read them.
    pub(super) stored: FxHashMap<u64, bool>,
    /// Blocks being written.
    pub(super) writing: FxHashSet<u64>,
    /// What is asked of the target.
    pub(super) target: Exchange,
    /// The worker that computed a block last.
    computed: FxHashMap<u64, u32>,
    pub(super) loads: FxHashMap<u32, Load>,
    pub(super) verdicts: FxHashMap<u32, Verdict>,
    /// Blocks a job got from host memory and from the target.
    pub(super) got: FxHashMap<u32, (u64, u64)>,
    pub(super) copies: Vec<Option<Copying>>,
    pub(super) open_copy: Option<(Tick, Copying)>,
    pub(super) metrics: Metrics,
    /// Mean duration of a read of late (exponential, 1/16), zero before the first.
    pub(super) read_ns: f64,
    pub(super) unfinished: u64,
    pub(super) stopped: bool,
    pub(super) wakes: Vec<(Tick, Wake)>,
}

impl Tiers {
    pub(super) fn new(spec: KvSpec, cost: Arc<CostModel>, requests: Arc<Requests>) -> Self {
        let block_bytes = cost.block_bytes(requests.block_tokens());
        let ranks = if spec.per_rank { cost.tp.clamp(1, 1024) as u16 } else { 1 };
        let rank_bytes = if spec.per_rank {
            cost.kv_bytes_per_token_rank * requests.block_tokens() as f64
        } else {
            block_bytes as f64
        };
        let g2_blocks = (spec.g2_bytes.0 / block_bytes.max(1)) as usize;
        let local = |_| Local { g2: BlockPool::new(g2_blocks), in_free: Tick::ZERO, out_free: Tick::ZERO };
        let shape = Shape {
            ranks,
            object_bytes: ((rank_bytes * spec.bytes_scale).round() as u64).max(1),
            read_limit: spec.get_in_flight,
            write_limit: spec.put_in_flight,
        };
        let resident = cost.kv_bytes_per_token_rank * f64::from(cost.tp) * requests.block_tokens() as f64;
        Self {
            origin: Tick::ZERO,
            looked_up: vec![false; requests.list().len()],
            block_copy_ns: cost.copy_ns(resident) * spec.time_scale,
            locals: (0..spec.workers).map(local).collect(),
            stored: FxHashMap::default(),
            writing: FxHashSet::default(),
            target: Exchange::new(shape, spec.workers),
            computed: FxHashMap::default(),
            loads: FxHashMap::default(),
            verdicts: FxHashMap::default(),
            got: FxHashMap::default(),
            copies: Vec::new(),
            open_copy: None,
            metrics: Metrics::new(&spec, Tick::ZERO),
            read_ns: 0.0,
            unfinished: 0,
            stopped: false,
            wakes: Vec::new(),
            spec,
            cost,
            requests,
        }
    }

    /// When a request arrives: an absolute deadline.
    pub(super) fn arrival(&self, request: usize) -> Tick {
        let at_ns = self.requests.list()[request].at_ns;
        let factor = self.spec.time_scale / self.spec.rate_scale;
        Tick(self.origin.0 + if factor == 1.0 { at_ns } else { (at_ns as f64 * factor).round() as u64 })
    }

    /// Sends what may be sent.
    pub(super) fn pump(&mut self, now: Tick, worker: u32) {
        if !self.stopped {
            self.target.pump(now, worker);
        }
    }

    /// Whether no operation is in flight.
    pub(super) fn none_in_flight(&self) -> bool {
        self.target.none_in_flight()
    }

    /// Whether nothing is in flight, queued or being copied.
    pub(super) fn quiet(&self) -> bool {
        self.target.quiet() && self.copies.iter().all(Option::is_none) && self.open_copy.is_none()
    }

    /// Blocks of `ids` that `worker` has in host memory, after `held` that it has in GPU memory.
    pub(super) fn local_match(&self, worker: usize, ids: &[u64], held: usize) -> usize {
        held + self.locals[worker].g2.match_prefix(&ids[held..])
    }
}

impl Host for Tiers {
    fn begin(&mut self, at: Tick, worker: u32, job: &Job, matched: usize, limit: usize) -> Begin {
        self.begin_load(at, worker, job, matched, limit)
    }

    fn recompute(&mut self, worker: u32, job: &Job, index: usize) -> Option<Reason> {
        let id = job.blocks[index];
        let by = *self.computed.get(&id)?;
        if let Some(verdict) = self.verdicts.get(&job.id).filter(|verdict| verdict.blocks.contains(&index)) {
            return Some(verdict.reason);
        }
        let here = self.locals[worker as usize].g2.contains(id) || self.stored.contains_key(&id);
        Some(if here {
            Reason::Hole
        } else if by != worker || self.writing.contains(&id) {
            Reason::Elsewhere
        } else {
            Reason::Evicted
        })
    }

    fn prefill(&mut self, _: Tick, _: u32, job: &Job, cached: u64, again: bool) {
        let (g2, g4) = self.got.remove(&job.id).unwrap_or_default();
        if !again {
            let tokens = self.requests.block_tokens();
            let (g2, g4) = (g2 * tokens, g4 * tokens);
            let g1 = cached.saturating_sub(g2 + g4);
            let hits = TierTokens { g1, g2, g4, miss: job.prompt_tokens.saturating_sub(cached), ..Default::default() };
            self.metrics.prefill(job, hits);
        }
    }

    fn recomputed(&mut self, at: Tick, reason: Reason, tokens: u64) {
        self.metrics.recomputed(at, reason, tokens);
    }

    fn completed(&mut self, at: Tick, worker: u32, job: &Job, index: usize, slot: Slot) -> bool {
        let id = job.blocks[index];
        self.computed.insert(id, worker);
        self.offload(at, worker, id, slot)
    }

    fn tokens(&mut self, at: Tick, count: u64) {
        self.metrics.tokens(at, count);
    }

    fn gap(&mut self, at: Tick, gap_ns: u64, count: u64) {
        self.metrics.gap(at, gap_ns, count);
    }

    fn first_token(&mut self, at: Tick, _: u32, job: &Job, parts: &Parts) {
        self.metrics.first_token(at, job, parts);
    }

    fn finished(&mut self, at: Tick, _: u32, job: &Job, first: Tick) {
        self.unfinished -= 1;
        self.verdicts.remove(&job.id);
        self.metrics.finished(at, job, first);
    }

    fn refused(&mut self, _: Tick, _: u32, job: &Job) {
        self.unfinished -= 1;
        self.metrics.refused(job);
    }
}
