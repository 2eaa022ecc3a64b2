//! Loading a prefix: what the tiers hold of it, whether loading pays, and the reads themselves.

use std::ops::Range;

use crate::inference::{Begin, Job, Phase, Reason, Slot};
use crate::kv::exchange::{Answer, Landed as Exchanged};
use crate::kv::hindsight::Choice;
use crate::kv::spec::{Exists, LoadWait, Overlap};
use crate::kv::tiers::{Tier, Tiers, Wake};
use crate::op::{ErrorKind, Tick};

/// Which tier a block comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Host memory (G2).
    Host,
    /// The node's drive (G3).
    Drive,
    /// The target (G4).
    Target,
}

/// A block that is being loaded, pinned where it comes from and where it goes by until it is in GPU memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    place: Place,
    /// Its room in host memory: where it is, or where it is staged.
    host: Option<Slot>,
    /// Its place on the drive.
    drive: Option<Slot>,
    /// Groups of layers of it that have not been read.
    left: u16,
    /// Whether it has been read.
    arrived: bool,
}

/// Blocks a job got from each tier below GPU memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Got {
    pub(super) g2: u64,
    pub(super) g3: u64,
    pub(super) g4: u64,
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
    /// Blocks, or groups of layers of blocks, still asked for.
    outstanding: u32,
    /// While looking up: which blocks the target says it has.
    present: Vec<bool>,
    /// While loading: where each block from `from` on comes from.
    sources: Vec<Source>,
    /// First block that failed, and why.
    failed: Option<(usize, Reason)>,
    /// When the last copy to GPU memory ends.
    copied: Tick,
    /// When the reads were queued: a client that polls does so from then on.
    begun: Tick,
    /// When each group of layers is in GPU memory, as far as it has come; empty if blocks come whole.
    layers: Vec<Tick>,
    /// When it will be given up.
    deadline: Option<Tick>,
    /// When blocks from the target had come.
    landings: Vec<Tick>,
    /// Why it loads what the target holds, if it does.
    choice: Option<Choice>,
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
    /// The first so many blocks come layer by layer: prefill need not wait.
    Overlapping(usize),
}

impl Load {
    /// The host memory of a worker is gone, and what was pinned there with it.
    pub(super) fn forget_host(&mut self, worker: u32) {
        if self.worker == worker {
            self.sources.iter_mut().for_each(|source| source.host = None);
        }
    }
}

impl Tiers {
    /// A job has its memory: what else of its prefix can be had?
    pub(super) fn begin_load(&mut self, at: Tick, worker: u32, job: &Job, matched: usize, limit: usize) -> Begin {
        self.verdicts.remove(&job.id);
        self.foregone.remove(&job.id);
        self.target.learn(&job.blocks);
        if !self.looked_up[job.id as usize] {
            let prompt_blocks = self.requests.list()[job.id as usize].prompt_blocks as usize;
            self.see(at, worker, &job.blocks[..prompt_blocks]);
        }
        let mut load = Load {
            worker,
            from: matched,
            limit,
            outstanding: 0,
            present: Vec::new(),
            sources: Vec::new(),
            failed: None,
            copied: at,
            begun: at,
            layers: Vec::new(),
            deadline: None,
            landings: Vec::new(),
            choice: None,
        };
        if self.spec.shared_tier && self.spec.exists == Exists::Stat && !self.stopped {
            let ask = self.ask(job, &mut load);
            if ask {
                self.loads.insert(job.id, load);
                self.pump(at, worker);
                return Begin::Wait(Phase::Lookup);
            }
        }
        let (shared, from, present) = (self.spec.shared_tier, load.from, std::mem::take(&mut load.present));
        let on_target = |tiers: &Self, index: usize, id| match present.get(index - from) {
            Some(known) => *known,
            None => shared && tiers.shared.contains(id),
        };
        match self.start_load(at, job.id, &job.blocks, load, on_target) {
            Landed::Ready(_) | Landed::Waiting => Begin::Prefill,
            Landed::Copying => Begin::Wait(Phase::Copy),
            Landed::Loading => Begin::Wait(Phase::Load),
            Landed::Overlapping(blocks) => Begin::Overlap(blocks),
        }
    }

    /// Queues a question for each block of the prefix that is not on this node.
    fn ask(&mut self, job: &Job, load: &mut Load) -> bool {
        load.present = vec![false; load.limit - load.from];
        for index in load.from..load.limit {
            let (worker, id) = (load.worker, job.blocks[index]);
            if !self.locals[worker as usize].g2.contains(id) && !self.drives.contains(worker, id) {
                if self.target.knows(worker, id) {
                    load.present[index - load.from] = true;
                } else {
                    self.target.look_up(worker, job.id, index as u32, id);
                    load.outstanding += 1;
                }
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
        let places: Vec<Place> =
            (from..limit).map_while(|i| self.place(worker, ids[i], |tiers| on_target(tiers, i, ids[i]))).collect();
        let found = places.len();
        self.note_found(job, from + found);
        self.lease(at, worker, &ids[from..from + found]);
        // All of it; what this node has; what is in its host memory.
        let until = |stop: fn(Place) -> bool| places.iter().position(|place| stop(*place)).unwrap_or(found);
        let cuts = [found, until(|place| place == Place::Target), until(|place| place != Place::Host)];
        let take = cuts.into_iter().find(|&cut| self.pays(at, worker, job, from, &places[..cut])).unwrap_or(0);
        let sources = if self.stopped { Vec::new() } else { self.sources(at, worker, &ids[from..], &places[..take]) };
        let take = sources.len();
        if take < found {
            self.verdicts.insert(job, Verdict { blocks: from + take..from + found, reason: Reason::Chosen });
            if places[take..].contains(&Place::Target) {
                let choice = self.choice(at, worker, job, from + take, &places[take..]);
                self.foregone.insert(job, choice);
            }
        }
        if take == 0 {
            return Landed::Ready(from);
        }
        load.sources = sources;
        load.begun = at;
        self.ask_for(at, job, ids, &mut load);
        if load.sources.iter().any(|source| source.place == Place::Target) {
            load.choice = Some(self.choice(at, worker, job, from, &places[..take]));
        }
        let (copied, waits, layered) = (load.copied, load.outstanding > 0, !load.layers.is_empty());
        if waits && !self.spec.load_timeout.is_zero() {
            let deadline = at + self.spec.load_timeout.mul_f64(self.spec.time_scale);
            load.deadline = Some(deadline);
            self.wakes.push((deadline, Wake::LoadOverdue { worker, job }));
        }
        self.loads.insert(job, load);
        if waits && self.spec.load_wait == LoadWait::BestEffort {
            self.hurried.push((worker, job));
        }
        if waits {
            self.pump(at, worker);
        } else {
            self.wakes.push((copied.max(at), Wake::LoadCopied { worker, job }));
        }
        match (layered, waits) {
            (true, _) => Landed::Overlapping(from + take),
            (false, true) => Landed::Loading,
            (false, false) => Landed::Copying,
        }
    }

    /// Queues the copies and reads of a load.
    fn ask_for(&mut self, at: Tick, job: u32, ids: &[u64], load: &mut Load) {
        let worker = load.worker;
        let parts = match self.spec.overlap {
            Overlap::None => 1,
            Overlap::LayerWise => self.target.parts(),
        };
        let (mut near, mut far, mut here) = (Vec::new(), Vec::new(), 0);
        for (i, source) in (load.from..).zip(&mut load.sources) {
            source.left = parts;
            match source.place {
                Place::Host => here += 1,
                Place::Drive => near.push((i as u32, ids[i])),
                Place::Target => {
                    self.shared.begin_read(ids[i]);
                    far.push((i as u32, ids[i]));
                }
            }
        }
        load.outstanding = (near.len() + far.len()) as u32 * u32::from(parts);
        if self.spec.overlap == Overlap::LayerWise {
            load.layers = vec![at; usize::from(parts)];
            self.drives.exchange.fetch_layers(worker, job, &near);
            self.target.fetch_layers(worker, job, &far);
        } else {
            near.iter().for_each(|&(index, id)| self.drives.exchange.fetch(worker, job, index, id));
            far.iter().for_each(|&(index, id)| self.target.fetch(worker, job, index, id));
        }
        for part in 0..parts {
            for _ in 0..here {
                load.copied = self.copy_in(at, worker, parts);
                load.layers.get_mut(usize::from(part)).into_iter().for_each(|there| *there = load.copied);
            }
        }
    }

    /// The nearest tier below GPU memory that holds a block.
    fn place(&self, worker: u32, id: u64, on_target: impl Fn(&Self) -> bool) -> Option<Place> {
        if self.locals[worker as usize].g2.contains(id) {
            Some(Place::Host)
        } else if self.drives.contains(worker, id) {
            Some(Place::Drive)
        } else {
            // What is about to be deleted may still answer a question.
            (on_target(self) && !self.shared.deletes(id)).then_some(Place::Target)
        }
    }

    /// Pins what is to be loaded, as far as there is room to stage it.
    fn sources(&mut self, at: Tick, worker: u32, ids: &[u64], places: &[Place]) -> Vec<Source> {
        let mut sources = Vec::with_capacity(places.len());
        for (&place, &id) in places.iter().zip(ids) {
            let host = self.locals[worker as usize].g2.acquire(id);
            let drive = if place == Place::Drive { self.drives.pin(worker, id) } else { None };
            sources.push(Source { place, host, drive, left: 0, arrived: place == Place::Host });
        }
        if self.spec.stage_in_host_memory && self.locals[worker as usize].g2.capacity() > 0 {
            for i in 0..sources.len() {
                if sources[i].host.is_none() {
                    sources[i].host = self.host_room(at, worker);
                    if sources[i].host.is_none() {
                        for source in sources.split_off(i) {
                            self.unpin_source(worker, &source);
                        }
                        break;
                    }
                }
            }
        }
        sources
    }

    fn unpin_source(&mut self, worker: u32, source: &Source) {
        if let Some(slot) = source.host {
            self.locals[worker as usize].g2.release(slot);
        }
        if let Some(slot) = source.drive {
            self.drives.unpin(worker, slot);
        }
    }

    /// A block is in GPU memory, or will not come.
    fn let_go(&mut self, worker: u32, source: &Source, id: u64) {
        self.unpin_source(worker, source);
        if source.place == Place::Target && !source.arrived {
            self.shared.unread(id);
        }
    }

    /// Blocks that were found are protected for a while, wherever they are.
    fn lease(&mut self, at: Tick, worker: u32, ids: &[u64]) {
        for &id in ids {
            self.shared.looked_up(id, at);
        }
        if self.lease_ns > 0 {
            let until = Tick(at.0.saturating_add(self.lease_ns));
            for &id in ids {
                self.locals[worker as usize].g2.lease(id, until);
                self.drives.lease(worker, id, until);
            }
        }
    }

    fn note_found(&mut self, job: u32, found: usize) {
        let request = &self.requests.list()[job as usize];
        let prompt_blocks = u64::from(request.prompt_blocks);
        if !std::mem::replace(&mut self.looked_up[job as usize], true) {
            let arrived = self.arrival(job as usize);
            self.metrics.looked_up(arrived, prompt_blocks, (found as u64).min(prompt_blocks));
        }
    }

    /// One of `parts` of a block on the host link towards the GPU, first come first served; returns when it is there.
    fn copy_in(&mut self, at: Tick, worker: u32, parts: u16) -> Tick {
        let link = &mut self.locals[worker as usize].in_free;
        *link = Tick(at.0.max(link.0) + ((self.block_copy_ns / f64::from(parts)).round() as u64).max(1));
        *link
    }

    /// A question was answered.
    pub(super) fn look_up_landed(&mut self, now: Tick, job: u32, index: u32, landed: &Exchanged) -> Landed {
        let Some(load) = self.loads.get_mut(&job) else { return Landed::Waiting };
        load.outstanding -= landed.unasked;
        if let Some(answer) = landed.block {
            load.outstanding -= 1;
            load.present[index as usize - load.from] = answer.is_there();
        }
        if load.outstanding > 0 {
            return Landed::Waiting;
        }
        let Some(mut load) = self.loads.remove(&job) else { return Landed::Waiting };
        let present = std::mem::take(&mut load.present);
        let from = load.from;
        load.copied = now;
        let requests = std::sync::Arc::clone(&self.requests);
        let ids = requests.blocks(&requests.list()[job as usize]);
        self.start_load(now, job, &ids, load, |_, index, _| present[index - from])
    }

    /// A read came back.
    pub(super) fn fetch_landed(&mut self, now: Tick, tier: Tier, job: u32, index: u32, landed: &Exchanged) -> Landed {
        let Some(load) = self.loads.get_mut(&job) else { return Landed::Waiting };
        let (worker, id, at) = (load.worker, landed.id, index as usize);
        load.outstanding -= u32::from(landed.block.is_some());
        if let Some(Answer::Failed(kind)) = landed.object {
            let reason = match kind {
                ErrorKind::Timeout => Reason::TimedOut,
                ErrorKind::NotFound => Reason::Lost,
                _ => Reason::Failed,
            };
            if load.failed.is_none_or(|(first, _)| at < first) {
                load.failed = Some((at, reason));
            }
            // What will not come is known not to come now.
            load.layers.iter_mut().for_each(|there| *there = (*there).max(now));
            if kind == ErrorKind::NotFound {
                self.lost(tier, worker, id);
            }
            // Blocks after a failed one are of no use: reads not yet sent are not sent.
            let withdrawn =
                self.target.withdraw(worker, job, index) + self.drives.exchange.withdraw(worker, job, index);
            if let Some(load) = self.loads.get_mut(&job) {
                load.outstanding -= withdrawn;
            }
        } else if landed.block == Some(Answer::Good) {
            let parts = landed.part.map_or(1, |_| self.target.parts());
            let source = &mut load.sources[at - load.from];
            source.left -= 1;
            source.arrived = source.left == 0;
            let (staged, whole) = (source.host, source.arrived);
            if whole && tier == Tier::G4 {
                load.landings.push(now);
                self.shared.has_read(id, now);
            }
            match staged.filter(|_| whole) {
                // Another load may have brought it meanwhile; then this one's copy goes when it is in GPU memory.
                Some(slot) => drop(self.locals[worker as usize].g2.name(slot, id)),
                None if whole => self.promote(now, tier, worker, id),
                None => {}
            }
            let copied = self.copy_in(now, worker, parts);
            if let Some(load) = self.loads.get_mut(&job) {
                load.copied = copied;
                if let Some(there) = landed.part.and_then(|part| load.layers.get_mut(usize::from(part))) {
                    *there = (*there).max(copied);
                }
            }
        }
        self.settle_load(now, worker, job)
    }

    fn settle_load(&mut self, now: Tick, worker: u32, job: u32) -> Landed {
        let Some(load) = self.loads.get(&job).filter(|load| load.outstanding == 0) else { return Landed::Waiting };
        let noticed = load.copied.max(self.polled(load.begun, now));
        if noticed > now {
            if let Some(load) = self.loads.get_mut(&job) {
                load.layers.iter_mut().next_back().into_iter().for_each(|there| *there = (*there).max(noticed));
            }
            self.wakes.push((noticed, Wake::LoadCopied { worker, job }));
            return Landed::Copying;
        }
        Landed::Ready(self.finish_load(now, job))
    }

    /// When the client looks next whether a load is complete, from `now` on.
    fn polled(&self, begun: Tick, now: Tick) -> Tick {
        let poll_ns = (self.spec.shape.poll.as_nanos() as f64 * self.spec.time_scale).round() as u64;
        if poll_ns == 0 { now } else { Tick(begun.0 + (now.0 - begun.0).div_ceil(poll_ns) * poll_ns) }
    }

    /// Whether what a job on `worker` waits for is all in GPU memory at `now`: a wake may be of a load that a worker
    /// took with it when it died.
    pub(super) fn load_copied(&self, now: Tick, worker: u32, job: u32) -> bool {
        self.loads.get(&job).is_some_and(|load| load.worker == worker && load.outstanding == 0 && load.copied <= now)
    }

    /// A load may take no longer than until `at`.
    pub(super) fn hurry(&mut self, at: Tick, worker: u32, job: u32) {
        if let Some(load) = self.loads.get_mut(&job).filter(|load| load.worker == worker && load.outstanding > 0) {
            let deadline = load.deadline.map_or(at, |deadline| deadline.min(at));
            load.deadline = Some(deadline);
            self.wakes.push((deadline, Wake::LoadOverdue { worker, job }));
        }
    }

    /// A load has taken as long as it may: what has come is used as far as it goes without a hole, the rest is computed.
    /// Reads in flight will come for nobody.
    pub(super) fn load_overdue(&mut self, at: Tick, worker: u32, job: u32) -> Landed {
        let Some(load) = self.loads.get_mut(&job) else { return Landed::Waiting };
        if load.worker != worker || load.deadline != Some(at) || load.outstanding == 0 {
            return Landed::Waiting;
        }
        let missing = (load.from..).zip(&load.sources).find(|(_, source)| !source.arrived).map(|(index, _)| index);
        if let Some(first) = missing.filter(|&first| load.failed.is_none_or(|(failed, _)| first < failed)) {
            load.failed = Some((first, Reason::TimedOut));
        }
        load.outstanding = 0;
        load.layers.iter_mut().for_each(|there| *there = (*there).max(at));
        self.target.give_up(worker, job);
        self.drives.exchange.give_up(worker, job);
        if self.metrics.counts(at) {
            self.metrics.hindsight.given_up();
        }
        self.settle_load(at, worker, job)
    }

    /// A job gives up what it waits for.
    pub(super) fn drop_load(&mut self, job: u32) {
        let Some(load) = self.loads.remove(&job) else { return };
        let requests = std::sync::Arc::clone(&self.requests);
        let ids = &requests.blocks(&requests.list()[job as usize])[load.from..];
        for (source, id) in load.sources.iter().zip(ids) {
            self.let_go(load.worker, source, *id);
        }
    }

    /// The copies are done: gives host memory back; returns the blocks that are in GPU memory now.
    pub(super) fn finish_load(&mut self, now: Tick, job: u32) -> usize {
        let Some(mut load) = self.loads.remove(&job) else { return 0 };
        if self.metrics.counts(now) && self.metrics.counts(load.begun) {
            if let Some(choice) = load.choice {
                let took = now.since(load.begun).as_nanos() as f64;
                let delay_ns = self.delay_ns(took, &choice);
                self.metrics.hindsight.loaded(&choice, delay_ns);
            }
            if load.failed.is_none() {
                self.metrics.hindsight.complete(load.begun, &mut load.landings);
            }
        }
        if !load.layers.is_empty() {
            self.layers.insert(job, std::mem::take(&mut load.layers));
        }
        let end = load.from + load.sources.len();
        let good = load.failed.map_or(end, |(first, _)| first);
        if let Some((first, reason)) = load.failed {
            self.verdicts.insert(job, Verdict { blocks: first..end, reason });
        }
        let requests = std::sync::Arc::clone(&self.requests);
        let ids = requests.blocks(&requests.list()[job as usize]);
        let mut got = Got::default();
        for (index, source) in (load.from..).zip(&load.sources) {
            self.let_go(load.worker, source, ids[index]);
            if index < good {
                match source.place {
                    Place::Host => got.g2 += 1,
                    Place::Drive => got.g3 += 1,
                    Place::Target => got.g4 += 1,
                }
            }
        }
        if self.metrics.counts(now) {
            self.metrics.loaded_blocks += got.g4;
        }
        self.got.insert(job, got);
        good
    }
}
