//! What workers say about requests that go on elsewhere, kept until the machine can act upon it.

use rustc_hash::FxHashMap;

use crate::inference::{Job, Moved};
use crate::kv::tiers::Tiers;
use crate::op::Tick;

/// Told to the host of the workers while they step.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Prompts computed on a worker that does not decode.
    pub(super) prefilled: Vec<(Tick, u32, Moved)>,
    /// Jobs that have memory on the worker that decodes them, and the tokens to bring there.
    pub(super) reserved: Vec<(Tick, u32, u32, u64)>,
    /// Requests that ended, well or not.
    pub(super) ended: Vec<(Tick, u32)>,
    /// When turns of conversations that have not ended began, or will.
    pub(super) starts: FxHashMap<u32, Tick>,
    /// Tokens lost by requests that have moved and not begun again.
    pub(super) lost: FxHashMap<u32, u64>,
}

impl Outbox {
    /// Whether there is nothing to act upon.
    pub(super) const fn is_empty(&self) -> bool {
        self.prefilled.is_empty() && self.reserved.is_empty() && self.ended.is_empty()
    }
}

impl Tiers {
    /// A job begins its prefill with `cached` tokens in GPU memory, `loaded` of them from the target. If it lost tokens
    /// with a worker, this is what became of them.
    pub(super) fn resumed(&mut self, at: Tick, job: &Job, cached: u64, loaded: u64) {
        let Some(lost) = self.outbox.lost.remove(&job.id) else { return };
        if !self.metrics.counts(at) {
            return;
        }
        let had = cached.min(lost);
        let loaded = loaded.min(had);
        let failover = &mut self.metrics.failover;
        failover.lost_tokens += lost;
        failover.loaded_tokens += loaded;
        failover.found_tokens += had - loaded;
        failover.recomputed_tokens += lost - had;
    }

    /// Forgets what a job that leaves its worker was waiting for.
    pub(super) fn forget_job(&mut self, job: u32) {
        self.drop_load(job);
        self.verdicts.remove(&job);
        self.foregone.remove(&job);
        self.got.remove(&job);
    }
}
