//! The tiers outside GPU memory, seen from the workers: host memory and links of each, one index of the target.

use std::collections::VecDeque;
use std::sync::Arc;

use gpufeed_schema::TierTokens;
use rustc_hash::FxHashMap;

use crate::inference::{Begin, BlockPool, CostModel, Host, Job, Moved, Parts, Reason, Slot};
use crate::kv::block_map::BlockMap;
use crate::kv::client::SPACES;
use crate::kv::drive::Drives;
use crate::kv::exchange::{Exchange, Landed, Shape};
use crate::kv::hindsight::Choice;
use crate::kv::loads::{Got, Load, Verdict};
use crate::kv::metrics::Metrics;
use crate::kv::outbox::Outbox;
use crate::kv::requests::Requests;
use crate::kv::shared::{Bound, SharedIndex};
use crate::kv::spec::KvSpec;
use crate::machine::Submit;
use crate::op::{Outcome, Tick};

/// What belongs to one worker.
#[derive(Debug)]
pub(super) struct Local {
    /// Host memory.
    pub(super) g2: BlockPool,
    /// When its link to GPU memory is free again, each way.
    pub(super) in_free: Tick,
    pub(super) out_free: Tick,
    /// Blocks that stay in GPU memory until there is room in the queue of writes.
    pub(super) stalled: VecDeque<(Slot, u64)>,
}

/// A tier that answers by operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// The node's drive.
    G3,
    /// The target.
    G4,
}

/// Key spaces of the target; that of the drives comes after them.
pub(super) const TARGET_SPACES: u16 = crate::kv::client::SPACES;

/// In place of a worker's number, which is always below it: who computed the block last has died.
const LOST: u16 = u16::MAX;

/// Marks the operations on drives among the tags.
const G3_TAG: u64 = 1 << 40;

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
    Ready {
        worker: u32,
        request: u32,
    },
    Worker {
        worker: u32,
    },
    LoadCopied {
        worker: u32,
        job: u32,
    },
    /// A load has taken as long as it may.
    LoadOverdue {
        worker: u32,
        job: u32,
    },
    OffloadCopied {
        copy: u32,
    },
    /// A turn of a conversation begins.
    Turn {
        request: u32,
    },
    /// A worker dies, or is back.
    Down {
        outage: u32,
    },
    Back {
        outage: u32,
    },
    /// A KV cache is where it is decoded.
    Transferred {
        request: u32,
    },
}

impl Wake {
    pub(super) fn tag(self) -> u64 {
        let (kind, worker, number) = match self {
            Self::Arrival => (0u64, 0, 0),
            Self::Ready { worker, request } => (1, worker, request),
            Self::Worker { worker } => (2, worker, 0),
            Self::LoadCopied { worker, job } => (3, worker, job),
            Self::LoadOverdue { worker, job } => (96, worker, job),
            Self::OffloadCopied { copy } => (4, 0, copy),
            Self::Turn { request } => (64, 0, request),
            Self::Down { outage } => (65, 0, outage),
            Self::Back { outage } => (66, 0, outage),
            Self::Transferred { request } => (67, 0, request),
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
            96 => Self::LoadOverdue { worker, job: number },
            64 => Self::Turn { request: number },
            65 => Self::Down { outage: number },
            66 => Self::Back { outage: number },
            67 => Self::Transferred { request: number },
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
    /// Loads that looked worse than computing.
    pub(super) declined: u32,
    /// Which requests have been looked up once.
    pub(super) looked_up: Vec<bool>,
    /// Time of one block on a worker's host link.
    pub(super) block_copy_ns: f64,
    pub(super) locals: Vec<Local>,
    /// Local drives.
    pub(super) drives: Drives,
    /// What the target holds.
    pub(super) shared: SharedIndex,
    /// What is asked of the target.
    pub(super) target: Exchange,
    /// How long a look-up or a load protects a block, in the model's time.
    pub(super) lease_ns: u64,
    /// Prompts that contained each block; kept where writes are selective.
    pub(super) seen: BlockMap<u32>,
    /// Blocks to be offloaded again from GPU memory, and slots there to be given back: for the machine to act upon.
    pub(super) rewrites: Vec<(u32, u64)>,
    pub(super) unpins: Vec<(u32, Slot)>,
    /// The worker that computed a block last, or [`LOST`] if that has died since.
    computed: BlockMap<u16>,
    pub(super) loads: FxHashMap<u32, Load>,
    pub(super) verdicts: FxHashMap<u32, Verdict>,
    /// What jobs compute though the target holds it.
    pub(super) foregone: FxHashMap<u32, Choice>,
    /// When each group of layers of a job that came layer by layer is in GPU memory, until its worker is told.
    pub(super) layers: FxHashMap<u32, Vec<Tick>>,
    /// Loads just begun that may not hold their worker up.
    pub(super) hurried: Vec<(u32, u32)>,
    /// Blocks a job got from each tier.
    pub(super) got: FxHashMap<u32, Got>,
    pub(super) copies: Vec<Option<Copying>>,
    pub(super) open_copy: Option<(Tick, Copying)>,
    pub(super) metrics: Metrics,
    pub(super) unfinished: u64,
    pub(super) stopped: bool,
    /// Everybody is served: nothing waits to be written any more.
    pub(super) over: bool,
    pub(super) wakes: Vec<(Tick, Wake)>,
    /// What workers say about requests that go on elsewhere, for the machine to act upon.
    pub(super) outbox: Outbox,
}

impl Tiers {
    pub(super) fn new(mut spec: KvSpec, cost: Arc<CostModel>, requests: Arc<Requests>) -> Self {
        let block_bytes = cost.block_bytes(requests.block_tokens());
        let ranks = if spec.per_rank { cost.tp.clamp(1, 1024) as u16 } else { 1 };
        let rank_bytes = if spec.per_rank {
            cost.kv_bytes_per_token_rank * requests.block_tokens() as f64
        } else {
            block_bytes as f64
        };
        let g2_blocks = (spec.g2_bytes.0 / block_bytes.max(1)) as usize;
        let local = |_| Local {
            g2: BlockPool::new(g2_blocks),
            in_free: Tick::ZERO,
            out_free: Tick::ZERO,
            stalled: VecDeque::new(),
        };
        let shape = Shape {
            space: 0,
            workers_of_place: 0,
            ranks,
            object_bytes: ((rank_bytes * spec.bytes_scale).round() as u64).max(1),
            read_limit: spec.get_in_flight,
            write_limit: spec.put_in_flight,
        };
        let stored_bytes = shape.object_bytes * u64::from(ranks);
        let bound = spec.g4_bytes.map(|bytes| Bound {
            blocks: bytes.0 / stored_bytes,
            above_ratio: spec.g4_evict_above_ratio,
            frees_ratio: spec.g4_evict_ratio,
        });
        spec.shared_tier &= bound.is_none_or(|bound| bound.blocks > 0);
        let lease_ns = (spec.lease.as_nanos() as f64 * spec.time_scale).round() as u64;
        let drives = Drives::new(
            (spec.g3_bytes.0 / stored_bytes) as usize,
            spec.workers,
            spec.g3_workers,
            Shape { space: SPACES, read_limit: spec.g3_in_flight, write_limit: spec.g3_in_flight, ..shape },
            spec.layered(cost.layers),
        );
        let resident = cost.kv_bytes_per_token_rank * f64::from(cost.tp) * requests.block_tokens() as f64;
        Self {
            origin: Tick::ZERO,
            declined: 0,
            looked_up: vec![false; requests.list().len()],
            block_copy_ns: cost.copy_ns(resident) * spec.time_scale,
            locals: (0..spec.workers).map(local).collect(),
            drives,
            shared: SharedIndex::new(bound, lease_ns),
            lease_ns,
            seen: BlockMap::default(),
            rewrites: Vec::new(),
            unpins: Vec::new(),
            target: Exchange::new(shape, spec.workers)
                .speaking(spec.shape.clone())
                .reading(spec.layered(cost.layers), spec.prior()),
            computed: BlockMap::default(),
            loads: FxHashMap::default(),
            verdicts: FxHashMap::default(),
            foregone: FxHashMap::default(),
            layers: FxHashMap::default(),
            hurried: Vec::new(),
            got: FxHashMap::default(),
            copies: Vec::new(),
            open_copy: None,
            metrics: Metrics::new(&spec, Tick::ZERO),
            unfinished: 0,
            stopped: false,
            over: false,
            wakes: Vec::new(),
            outbox: Outbox::default(),
            spec,
            cost,
            requests,
        }
    }

    /// When a request arrives: an absolute deadline.
    pub(super) fn arrival(&self, request: usize) -> Tick {
        if let Some(start) = self.outbox.starts.get(&(request as u32)) {
            return *start;
        }
        let at_ns = self.requests.list()[request].at_ns;
        let factor = self.spec.time_scale / self.spec.rate_scale;
        Tick(self.origin.0 + if factor == 1.0 { at_ns } else { (at_ns as f64 * factor).round() as u64 })
    }

    /// Sends what may be sent.
    pub(super) fn pump(&mut self, now: Tick, worker: u32) {
        if !self.stopped {
            self.target.pump(now, worker);
            self.drives.exchange.pump(now, worker);
        }
    }

    /// The operations to submit.
    pub(super) fn submits(&mut self) -> impl Iterator<Item = Submit> {
        let near = self.drives.exchange.submits().map(|submit| Submit { tag: submit.tag | G3_TAG, ..submit });
        self.target.submits().chain(near)
    }

    /// Takes an operation out of flight.
    pub(super) fn landed(&mut self, tag: u64, outcome: &Outcome) -> Option<(Tier, Landed)> {
        if tag & G3_TAG == 0 {
            Some((Tier::G4, self.target.landed(tag, outcome)?))
        } else {
            Some((Tier::G3, self.drives.exchange.landed(tag ^ G3_TAG, outcome)?))
        }
    }

    /// Whether no operation is in flight.
    pub(super) fn none_in_flight(&self) -> bool {
        self.target.none_in_flight() && self.drives.exchange.none_in_flight()
    }

    /// Whether nothing is in flight, queued or being copied.
    pub(super) fn quiet(&self) -> bool {
        let quiet = self.target.quiet() && self.drives.exchange.quiet();
        quiet && self.copies.iter().all(Option::is_none) && self.open_copy.is_none()
    }

    /// What a worker computed last went with it, unless it lies in a tier.
    pub(super) fn lose_computed(&mut self, worker: u32) {
        self.computed.values_mut().filter(|by| u32::from(**by) == worker).for_each(|by| *by = LOST);
    }

    /// Blocks of `ids` that `worker` has in host memory, after `held` that it has in GPU memory.
    pub(super) fn local_match(&self, worker: usize, ids: &[u64], held: usize) -> usize {
        held + self.locals[worker].g2.match_prefix(&ids[held..])
    }
}

#[cfg(test)]
impl Tiers {
    /// Entries of every table that has them for jobs.
    pub(super) fn kept_for_jobs(&self) -> usize {
        let loads = self.loads.len() + self.verdicts.len() + self.foregone.len() + self.layers.len();
        loads + self.got.len() + self.outbox.lost.len() + self.outbox.starts.len()
    }
}

impl Host for Tiers {
    fn begin(&mut self, at: Tick, worker: u32, job: &Job, matched: usize, limit: usize) -> Begin {
        self.begin_load(at, worker, job, matched, limit)
    }

    fn recompute(&mut self, worker: u32, job: &Job, index: usize) -> Option<Reason> {
        let id = job.blocks[index];
        let by = *self.computed.get(&id)?;
        if let Some(verdict) = self.verdicts.get(&job.id) {
            if verdict.blocks.contains(&index) {
                return Some(verdict.reason);
            }
            // All of the prompt was to be had; its last block would have been computed whatever was decided.
            if index == verdict.blocks.end && index as u64 == (job.prompt_tokens - 1) / self.requests.block_tokens() {
                return Some(Reason::Tail);
            }
        }
        let near = self.locals[worker as usize].g2.contains(id) || self.drives.contains(worker, id);
        let here = near || self.shared.contains(id);
        Some(if here {
            Reason::Hole
        } else if by == LOST && !self.shared.writes(id) {
            Reason::WorkerLost
        } else if by != worker as u16 || self.shared.writes(id) {
            Reason::Elsewhere
        } else {
            Reason::Evicted
        })
    }

    fn prefill(&mut self, at: Tick, _: u32, job: &Job, cached: u64, again: bool) {
        let Got { g2, g3, g4 } = self.got.remove(&job.id).unwrap_or_default();
        self.resumed(at, job, cached, g4 * self.requests.block_tokens());
        if !again {
            let tokens = self.requests.block_tokens();
            let (g2, g3, g4) = (g2 * tokens, g3 * tokens, g4 * tokens);
            let g1 = cached.saturating_sub(g2 + g3 + g4);
            let hits = TierTokens { g1, g2, g3, g4, miss: job.prompt_tokens.saturating_sub(cached) };
            self.metrics.prefill(job, hits);
        }
    }

    fn recomputed(&mut self, at: Tick, reason: Reason, tokens: u64) {
        self.metrics.recomputed(at, reason, tokens);
    }

    fn completed(&mut self, at: Tick, worker: u32, job: &Job, index: usize, slot: Slot) -> bool {
        let id = job.blocks[index];
        self.computed.insert(id, worker as u16);
        self.offload(at, worker, id, slot)
    }

    fn tokens(&mut self, at: Tick, count: u64) {
        self.metrics.tokens(at, count);
    }

    fn gap(&mut self, at: Tick, gap_ns: u64, count: u64) {
        self.metrics.gap(at, gap_ns, count);
    }

    fn first_token(&mut self, at: Tick, _: u32, job: &Job, parts: &Parts) {
        self.judge_computed(at, job.id);
        self.metrics.first_token(at, job, parts);
    }

    fn prefilled(&mut self, at: Tick, worker: u32, moved: Moved) {
        self.outbox.prefilled.push((at, worker, moved));
    }

    fn reserved(&mut self, at: Tick, worker: u32, job: &Job, tokens: u64) {
        self.outbox.reserved.push((at, worker, job.id, tokens));
    }

    fn finished(&mut self, at: Tick, _: u32, job: &Job, first: Tick) {
        self.unfinished -= 1;
        self.outbox.ended.push((at, job.id));
        self.verdicts.remove(&job.id);
        // Chosen after a preemption, with the first token long out.
        self.foregone.remove(&job.id);
        self.metrics.finished(at, job, first);
    }

    fn refused(&mut self, at: Tick, _: u32, job: &Job) {
        self.unfinished -= 1;
        self.outbox.ended.push((at, job.id));
        self.metrics.refused(job);
    }
}
