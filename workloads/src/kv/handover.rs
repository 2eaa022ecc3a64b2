//! KV caches on their way from the workers that prefill to those that decode.
//!
//! GPU memory is reserved where it goes before it goes; then it takes its turn on two links, out of the one worker and
//! into the other, each first come first served.

use rustc_hash::FxHashMap;

use crate::inference::{CostModel, Moved};
use crate::kv::spec::KvSpec;
use crate::kv::tiers::Wake;
use crate::kv::{Candidate, Kv};
use crate::op::Tick;

/// One KV cache on its way.
#[derive(Debug, Clone, Copy)]
struct Handover {
    from: u32,
    to: u32,
    /// When it is there, once it has begun.
    end: Option<Tick>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Handovers {
    /// Bytes of a token on all ranks, and the time one byte takes on a worker's link.
    token_bytes: f64,
    byte_ns: f64,
    /// When each worker's link is free again, in and out.
    links: Vec<(Tick, Tick)>,
    under_way: FxHashMap<u32, Handover>,
    /// Computed, with no worker to decode it.
    homeless: Vec<(u32, Moved)>,
    turn: u64,
}

impl Handovers {
    pub(super) fn new(spec: &KvSpec, cost: &CostModel) -> Self {
        Self {
            // Each rank sends what it holds: heads that are replicated travel as often as they are held.
            token_bytes: cost.kv_bytes_per_token_rank * f64::from(cost.tp),
            byte_ns: 1e9 / spec.transfer_bytes_per_s.0 * spec.time_scale,
            links: vec![(Tick::ZERO, Tick::ZERO); spec.workers as usize],
            under_way: FxHashMap::default(),
            homeless: Vec::new(),
            turn: 0,
        }
    }

    /// A transfer will not come to its end: the links are free again, unless others queue behind it.
    fn call_off(&mut self, at: Tick, handover: Handover) {
        let Some(end) = handover.end else { return };
        let (out, into) = (handover.from as usize, handover.to as usize);
        if self.links[out].1 == end {
            self.links[out].1 = at;
        }
        if self.links[into].0 == end {
            self.links[into].0 = at;
        }
    }
}

impl Kv {
    /// A prompt is computed on worker `from`: chooses who decodes it.
    pub(super) fn send(&mut self, at: Tick, from: u32, moved: Moved) {
        let block_tokens = self.tiers.requests.block_tokens();
        let pool = self.tiers.spec.pools().1;
        let blocks = &moved.job().blocks;
        let chosen = self.route(&pool, self.handovers.turn, moved.tokens().div_ceil(block_tokens), |kv, i| {
            let worker = &kv.workers[i];
            Candidate {
                // Only what is in GPU memory spares the transfer.
                matched_blocks: [worker.pool().match_prefix(blocks) as u64, 0, 0, 0],
                queued_blocks: (worker.queued_tokens() + worker.expected_tokens()).div_ceil(block_tokens),
                active_blocks: worker.pool().in_use() as u64,
                jobs: worker.jobs() as u64,
            }
        });
        let id = moved.job().id;
        if let Some(to) = chosen {
            self.handovers.turn += 1;
            self.handovers.under_way.insert(id, Handover { from, to: to as u32, end: None });
            self.workers[to].expect(at, moved, &mut self.tiers);
        } else if self.comes_back(at, &pool) {
            self.handovers.homeless.push((from, moved));
        } else {
            self.workers[from as usize].handed_over(at, id, &mut self.tiers);
            self.give_up(at, id);
        }
    }

    /// Worker `to` has memory for a job: its KV cache goes there, `tokens` of it.
    pub(super) fn transfer(&mut self, at: Tick, to: u32, id: u32, tokens: u64) {
        let Some(handover) = self.handovers.under_way.get_mut(&id) else { return };
        let bytes = self.handovers.token_bytes * tokens as f64;
        let mut end = at;
        if tokens > 0 {
            let (out, into) = (self.handovers.links[handover.from as usize].1, self.handovers.links[to as usize].0);
            end = Tick(at.max(out).max(into).0 + (bytes * self.handovers.byte_ns).round() as u64);
            self.handovers.links[handover.from as usize].1 = end;
            self.handovers.links[to as usize].0 = end;
        }
        handover.end = Some(end);
        if self.tiers.metrics.counts(at) {
            self.tiers.metrics.transferred_bytes += bytes.round() as u64;
        }
        self.tiers.wakes.push((end, Wake::Transferred { request: id }));
    }

    /// A KV cache is where it is decoded, unless it was called off.
    pub(super) fn transferred(&mut self, at: Tick, id: u32) {
        if self.handovers.under_way.get(&id).is_none_or(|handover| handover.end != Some(at)) {
            return;
        }
        let Some(Handover { from, to, .. }) = self.handovers.under_way.remove(&id) else { return };
        self.workers[to as usize].arrived(at, id, &mut self.tiers);
        self.workers[from as usize].handed_over(at, id, &mut self.tiers);
    }

    /// The worker that held the KV cache of job `id` has died before it was handed over.
    pub(super) fn recall(&mut self, at: Tick, id: u32) -> Option<Moved> {
        let mut moved = match self.handovers.under_way.remove(&id) {
            Some(handover) => {
                self.handovers.call_off(at, handover);
                self.workers[handover.to as usize].forget(at, id, &mut self.tiers)
            }
            None => {
                let waits = self.handovers.homeless.iter().position(|(_, moved)| moved.job().id == id);
                waits.map(|at| self.handovers.homeless.remove(at).1)
            }
        }?;
        moved.lose(at, self.tiers.requests.block_tokens());
        Some(moved)
    }

    /// The worker that was to decode a job has died before its KV cache came: another one is chosen.
    pub(super) fn resend(&mut self, at: Tick, moved: Moved) {
        if let Some(handover) = self.handovers.under_way.remove(&moved.job().id) {
            self.handovers.call_off(at, handover);
            self.send(at, handover.from, moved);
        }
    }

    /// Jobs that waited for a worker to decode them look for one again.
    pub(super) fn find_decoders(&mut self, at: Tick) {
        for (from, moved) in std::mem::take(&mut self.handovers.homeless) {
            self.send(at, from, moved);
        }
    }
}
