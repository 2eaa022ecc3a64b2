//! Loading a prefix: what the tiers hold of it, whether loading pays, and the reads themselves.

use std::ops::Range;

use crate::inference::{Begin, Job, Phase, Reason, Slot};
use crate::kv::exchange::{Answer, Landed as Exchanged};
use crate::kv::spec::{Exists, LoadPolicy};
use crate::kv::tiers::{Tiers, Wake};
use crate::op::{ErrorKind, Outcome, Tick};

/// Where a block comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Host memory, pinned there until it is copied.
    G2(Slot),
    /// The target.
    G4,
}

/// Why the blocks of a job that tiers held are computed nevertheless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) blocks: Range<usize>,
    pub(super) reason: Reason,
}

/// A job that waits for its prefix.
#[derive(Debug)]
pub(super) struct Load {
    worker: u32,
    /// First block that is not in GPU memory, and the end of what may be loaded.
    from: usize,
    limit: usize,
    /// Blocks still asked for.
    outstanding: u32,
    /// While looking up: which blocks the target says it has.
    present: Vec<bool>,
    /// While loading: where each block from `from` on comes from.
    sources: Vec<Source>,
    /// First block that failed, and why.
    failed: Option<(usize, Reason)>,
    /// When the last copy to GPU memory ends.
    copied: Tick,
}

/// What a landed read or question means for its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Landed {
    /// More is to come.
    Waiting,
    /// The look-up is over: load.
    Loading,
    /// Everything came from the target; the copy to GPU memory is under way.
    Copying,
    /// The first so many blocks are in GPU memory.
    Ready(usize),
}

impl Tiers {
    /// A job has its memory: what else of its prefix can be had?
    pub(super) fn begin_load(&mut self, at: Tick, worker: u32, job: &Job, matched: usize, limit: usize) -> Begin {
        self.verdicts.remove(&job.id);
        let mut load = Load {
            worker,
            from: matched,
            limit,
            outstanding: 0,
            present: Vec::new(),
            sources: Vec::new(),
            failed: None,
            copied: at,
        };
        if self.spec.shared_tier && self.spec.exists == Exists::Stat && !self.stopped {
            let ask = self.ask(job, &mut load);
            if ask {
                self.loads.insert(job.id, load);
                self.pump(at, worker);
                return Begin::Wait(Phase::Lookup);
            }
        }
        let shared = self.spec.shared_tier;
        match self.start_load(at, job.id, &job.blocks, load, |tiers, _, id| shared && tiers.stored.contains_key(&id)) {
            Landed::Ready(_) | Landed::Waiting => Begin::Prefill,
            Landed::Copying => Begin::Wait(Phase::Copy),
            Landed::Loading => Begin::Wait(Phase::Load),
        }
    }

    /// Queues a question for each block of the prefix that is not in host memory.
    fn ask(&mut self, job: &Job, load: &mut Load) -> bool {
        load.present = vec![false; load.limit - load.from];
        for index in load.from..load.limit {
            if !self.locals[load.worker as usize].g2.contains(job.blocks[index]) {
                self.target.look_up(load.worker, job.id, index as u32, job.blocks[index]);
                load.outstanding += 1;
            }
        }
        load.outstanding > 0
    }

    /// Decides what to load, and queues it. `Ready` or `Waiting` if there is nothing to wait for.
    fn start_load(
        &mut self,
        at: Tick,
        job: u32,
        ids: &[u64],
        mut load: Load,
        on_target: impl Fn(&Self, usize, u64) -> bool,
    ) -> Landed {
        let (from, limit, worker) = (load.from, load.limit, load.worker);
        let local = |tiers: &Self, id| tiers.locals[worker as usize].g2.contains(id);
        let found = (from..limit).take_while(|&i| local(self, ids[i]) || on_target(self, i, ids[i])).count();
        self.note_found(job, from + found);
        let remote = (from..from + found).filter(|&i| !local(self, ids[i])).count();
        let first_remote = (from..from + found).position(|i| !local(self, ids[i])).unwrap_or(found);
        let worth = remote == 0 || self.pays(worker, from, found, remote);
        let take = if worth { found } else { first_remote };
        if take < found {
            self.verdicts.insert(job, Verdict { blocks: from + take..from + found, reason: Reason::Chosen });
        }
        if take == 0 || self.stopped {
            return Landed::Ready(from);
        }
        for (i, &id) in ids.iter().enumerate().take(from + take).skip(from) {
            let source = self.locals[worker as usize].g2.acquire(id).map_or(Source::G4, Source::G2);
            load.sources.push(source);
            if source == Source::G4 {
                self.target.fetch(worker, job, i as u32, id);
                load.outstanding += 1;
            } else {
                load.copied = self.copy_in(at, worker);
            }
        }
        let (copied, waits) = (load.copied, load.outstanding > 0);
        self.loads.insert(job, load);
        if waits {
            self.pump(at, worker);
            return Landed::Loading;
        }
        self.wakes.push((copied.max(at), Wake::LoadCopied { worker, job }));
        Landed::Copying
    }

    fn note_found(&mut self, job: u32, found: usize) {
        let request = &self.requests.list()[job as usize];
        let prompt_blocks = u64::from(request.prompt_blocks);
        if !std::mem::replace(&mut self.looked_up[job as usize], true) {
            let arrived = self.arrival(job as usize);
            self.metrics.looked_up(arrived, prompt_blocks, (found as u64).min(prompt_blocks));
        }
    }

    /// One block on the host link towards the GPU, first come first served; returns when it is there.
    fn copy_in(&mut self, at: Tick, worker: u32) -> Tick {
        let link = &mut self.locals[worker as usize].in_free;
        *link = Tick(at.0.max(link.0) + (self.block_copy_ns.round() as u64).max(1));
        *link
    }

    /// Load or recompute (design §5): loading k tokens after p takes t₀ + k·s/B + t_copy, computing them T_pre(p, k).
    /// `t₀ + k·s/B` is taken from the reads of late: their mean duration, and as many rounds of them as the worker's
    /// queue and limit make.
    fn pays(&self, worker: u32, from: usize, blocks: usize, remote: usize) -> bool {
        match self.spec.load {
            LoadPolicy::Always => return true,
            LoadPolicy::Never => return false,
            LoadPolicy::BreakEven => {}
        }
        let ahead = self.target.reads_waiting(worker);
        let objects = (remote * usize::from(self.target.shape().ranks) + ahead) as f64;
        let load_ns = self.read_ns * (objects / f64::from(self.spec.get_in_flight)).ceil();
        let copy_ns = self.block_copy_ns * blocks as f64;
        let tokens = self.requests.block_tokens();
        let (cached, more) = (from as u64 * tokens, blocks as u64 * tokens);
        let compute_ns = self.cost.prefill_ns(cached, more, self.spec.max_num_batched_tokens) * self.spec.time_scale;
        load_ns + copy_ns < compute_ns
    }

    /// A question was answered.
    pub(super) fn look_up_landed(&mut self, now: Tick, job: u32, index: u32, landed: &Exchanged) -> Landed {
        let Some(answer) = landed.block else { return Landed::Waiting };
        let Some(load) = self.loads.get_mut(&job) else { return Landed::Waiting };
        load.outstanding -= 1;
        load.present[index as usize - load.from] = answer == Answer::Good;
        if load.outstanding > 0 {
            return Landed::Waiting;
        }
        let Some(mut load) = self.loads.remove(&job) else { return Landed::Waiting };
        let present = std::mem::take(&mut load.present);
        let from = load.from;
        load.copied = now;
        let requests = std::sync::Arc::clone(&self.requests);
        let ids = requests.blocks(&requests.list()[job as usize]);
        self.start_load(now, job, ids, load, |_, index, _| present[index - from])
    }

    /// A read came back.
    pub(super) fn fetch_landed(
        &mut self,
        now: Tick,
        job: u32,
        index: u32,
        landed: &Exchanged,
        outcome: &Outcome,
    ) -> Landed {
        let Some(load) = self.loads.get_mut(&job) else { return Landed::Waiting };
        let (worker, id, at) = (load.worker, landed.id, index as usize);
        load.outstanding -= u32::from(landed.block.is_some());
        if landed.data && outcome.result.is_ok() {
            let took = outcome.service_time().as_nanos() as f64;
            self.read_ns += if self.read_ns == 0.0 { took } else { (took - self.read_ns) / 16.0 };
            self.metrics.first_byte(outcome.first_byte.since(outcome.sent).as_nanos() as u64);
        }
        if let Some(Answer::Failed(kind)) = landed.object {
            let reason = match kind {
                ErrorKind::Timeout => Reason::TimedOut,
                ErrorKind::NotFound => Reason::Lost,
                _ => Reason::Failed,
            };
            if load.failed.is_none_or(|(first, _)| at < first) {
                load.failed = Some((at, reason));
            }
            if kind == ErrorKind::NotFound {
                self.stored.remove(&id);
            }
            // Blocks after a failed one are of no use: reads not yet sent are not sent.
            let withdrawn = self.target.withdraw(worker, job, index);
            if let Some(load) = self.loads.get_mut(&job) {
                load.outstanding -= withdrawn;
            }
        } else if landed.block == Some(Answer::Good) {
            // It may be there from an earlier run.
            self.stored.insert(id, true);
            let copied = self.copy_in(now, worker);
            self.locals[worker as usize].g2.insert(id);
            if let Some(load) = self.loads.get_mut(&job) {
                load.copied = copied;
            }
        }
        self.settle_load(now, worker, job)
    }

    fn settle_load(&mut self, now: Tick, worker: u32, job: u32) -> Landed {
        let Some(load) = self.loads.get(&job).filter(|load| load.outstanding == 0) else { return Landed::Waiting };
        if load.copied > now {
            self.wakes.push((load.copied, Wake::LoadCopied { worker, job }));
            return Landed::Copying;
        }
        Landed::Ready(self.finish_load(now, job))
    }

    /// The copies are done: gives host memory back; returns the blocks that are in GPU memory now.
    pub(super) fn finish_load(&mut self, now: Tick, job: u32) -> usize {
        let Some(load) = self.loads.remove(&job) else { return 0 };
        let end = load.from + load.sources.len();
        let good = load.failed.map_or(end, |(first, _)| first);
        if let Some((first, reason)) = load.failed {
            self.verdicts.insert(job, Verdict { blocks: first..end, reason });
        }
        let mut got = (0, 0);
        for (index, source) in (load.from..).zip(&load.sources) {
            if let Source::G2(slot) = source {
                self.locals[load.worker as usize].g2.release(*slot);
            }
            if index < good {
                match source {
                    Source::G2(_) => got.0 += 1,
                    Source::G4 => got.1 += 1,
                }
            }
        }
        if self.metrics.counts(now) {
            self.metrics.loaded_blocks += got.1;
        }
        self.got.insert(job, got);
        good
    }
}
