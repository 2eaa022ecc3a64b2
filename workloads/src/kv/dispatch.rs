//! From arrival to a worker: open loop by the trace's times, or conversations whose turns wait for each other; who gets
//! what is the router's choice.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::inference::{Host as _, Job, Moved};
use crate::kv::spec::KvSpec;
use crate::kv::tiers::Wake;
use crate::kv::{Candidate, Kv, Requests, route};
use crate::machine::Actions;
use crate::op::Tick;

/// What is on its way to workers.
#[derive(Debug)]
pub(super) struct Dispatch {
    /// The next request that comes when the trace says.
    next: usize,
    /// Requests that have come, and that will.
    arrived: usize,
    all: usize,
    /// Turns of the router, for round robin.
    turn: u64,
    /// For each request, the turns of its conversation that wait for its end; empty unless they do.
    followers: FxHashMap<u32, Vec<u32>>,
    /// Prompt tokens and requests routed to each worker that it has not been given yet.
    on_the_way: Vec<(u64, u64)>,
    /// Requests that have been on a worker and go to another.
    moved: FxHashMap<u32, Moved>,
    /// Requests that wait for a worker to be back.
    stranded: VecDeque<u32>,
}

impl Dispatch {
    pub(super) fn new(spec: &KvSpec, requests: &Requests) -> Self {
        let mut followers: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
        if spec.sessions {
            for (index, request) in requests.list().iter().enumerate() {
                if let Some(turn) = request.after {
                    followers.entry(turn.request).or_default().push(index as u32);
                }
            }
        }
        Self {
            next: 0,
            arrived: 0,
            all: requests.list().len(),
            turn: 0,
            followers,
            on_the_way: vec![(0, 0); spec.workers as usize],
            moved: FxHashMap::default(),
            stranded: VecDeque::new(),
        }
    }

    /// Requests that have come.
    pub(super) const fn arrived(&self) -> usize {
        self.arrived
    }

    /// Whether every request has come.
    pub(super) const fn all_arrived(&self) -> bool {
        self.arrived == self.all
    }
}

impl Kv {
    /// The next request of the trace comes.
    pub(super) fn arrive(&mut self, out: &mut Actions) {
        let index = self.dispatch.next;
        let list = Arc::clone(&self.tiers.requests);
        let closed = self.tiers.spec.sessions;
        let comes = |next: &usize| !closed || list.list()[*next].after.is_none();
        self.dispatch.next = (index + 1..list.list().len()).find(comes).unwrap_or(list.list().len());
        self.begin(self.tiers.arrival(index), index as u32);
        if self.dispatch.next < list.list().len() {
            out.wake(self.tiers.arrival(self.dispatch.next), Wake::Arrival.tag());
        }
    }

    /// Request `index` comes at `at`.
    pub(super) fn begin(&mut self, at: Tick, index: u32) {
        self.dispatch.arrived += 1;
        self.tiers.metrics.arrived(at, index);
        self.tiers.unfinished += 1;
        self.dispatch(at, index);
    }

    /// Request `index` has ended at `at`: the turns that follow come after their think time.
    pub(super) fn ended(&mut self, at: Tick, index: u32) {
        self.tiers.outbox.starts.remove(&index);
        let Some(followers) = self.dispatch.followers.remove(&index) else { return };
        for follower in followers {
            let think_ns = self.tiers.requests.list()[follower as usize].after.map_or(0, |turn| turn.think_ns);
            let start = Tick(at.0 + (think_ns as f64 * self.tiers.spec.time_scale).round() as u64);
            self.tiers.outbox.starts.insert(follower, start);
            self.tiers.wakes.push((start, Wake::Turn { request: follower }));
        }
    }

    /// A request that was on a worker at `at` goes to another.
    pub(super) fn redirect(&mut self, at: Tick, moved: Moved) {
        let id = moved.job().id;
        self.tiers.forget_job(id);
        self.tiers.metrics.moved(at);
        let lost = self.tiers.outbox.lost.entry(id).or_default();
        *lost = moved.lost_tokens().max(*lost);
        self.dispatch.moved.insert(id, moved);
        self.dispatch(at, id);
    }

    /// Chooses a worker for a request; it is there when its host time is over.
    fn dispatch(&mut self, at: Tick, id: u32) {
        let host_ns = self.host_ns(id);
        if let Some(worker) = self.hand_out(at, id) {
            if let Some(moved) = self.dispatch.moved.get_mut(&id) {
                moved.prepare(at);
            }
            self.tiers.wakes.push((Tick(at.0 + host_ns), Wake::Ready { worker: worker as u32, request: id }));
        }
    }

    /// Host time of a request before it can be scheduled, in nanoseconds.
    fn host_ns(&self, id: u32) -> u64 {
        let prompt = self.tiers.requests.list()[id as usize].input_tokens;
        let tokens = self.dispatch.moved.get(&id).map_or(prompt, Moved::tokens);
        (self.tiers.cost.request_ns(tokens) * self.tiers.spec.time_scale).round() as u64
    }

    /// The worker that takes a request. Without any, the request waits for one to be back, or fails if none will be.
    fn hand_out(&mut self, at: Tick, id: u32) -> Option<usize> {
        let requests = Arc::clone(&self.tiers.requests);
        let request = &requests.list()[id as usize];
        let ids = &requests.blocks(request)[..request.prompt_blocks as usize];
        let pool = self.tiers.spec.pools().0;
        let turn = self.dispatch.turn;
        // The same for every worker.
        let shared = self.tiers.shared_match(ids);
        let chosen = self.route(&pool, turn, request.input_tokens.div_ceil(requests.block_tokens()), |kv, i| {
            let worker = &kv.workers[i];
            let matched = kv.tiers.tier_match(i, ids, worker.pool().match_prefix(ids), shared);
            let (tokens, jobs) = kv.dispatch.on_the_way[i];
            Candidate {
                matched_blocks: matched,
                queued_blocks: (worker.queued_tokens() + tokens).div_ceil(requests.block_tokens()),
                active_blocks: worker.pool().in_use() as u64,
                jobs: worker.jobs() as u64 + jobs,
            }
        });
        if let Some(worker) = chosen {
            self.dispatch.turn += 1;
            self.dispatch.on_the_way[worker].0 += request.input_tokens;
            self.dispatch.on_the_way[worker].1 += 1;
        } else if self.comes_back(at, &pool) {
            self.dispatch.stranded.push_back(id);
        } else {
            self.give_up(at, id);
        }
        chosen
    }

    /// The router's choice among the workers of a pool that are up.
    pub(super) fn route(
        &self,
        pool: &Range<usize>,
        turn: u64,
        prompt_blocks: u64,
        candidate: impl Fn(&Self, usize) -> Candidate,
    ) -> Option<usize> {
        let up: Vec<usize> = pool.clone().filter(|&worker| !self.workers[worker].is_down()).collect();
        let spec = &self.tiers.spec;
        route(spec.routing, &spec.router, turn, prompt_blocks, &up, |worker| candidate(self, worker))
    }

    /// A request's host time is over: the worker takes it, or another one if that has died meanwhile.
    pub(super) fn ready(&mut self, at: Tick, worker: usize, id: u32) {
        let prompt = self.tiers.requests.list()[id as usize].input_tokens;
        self.dispatch.on_the_way[worker].0 -= prompt;
        self.dispatch.on_the_way[worker].1 -= 1;
        if self.workers[worker].is_down() {
            if let Some(other) = self.hand_out(at, id) {
                self.tiers.wakes.push((at, Wake::Ready { worker: other as u32, request: id }));
            }
        } else if let Some(moved) = self.dispatch.moved.remove(&id) {
            self.workers[worker].resume(at, moved, &mut self.tiers);
        } else {
            let job = self.job(id);
            let ready = at.min(Tick(job.arrived.0 + self.host_ns(id)));
            self.workers[worker].enqueue(at, ready, job, &mut self.tiers);
        }
    }

    fn job(&self, id: u32) -> Job {
        let requests = &self.tiers.requests;
        let request = &requests.list()[id as usize];
        Job {
            id,
            arrived: self.tiers.arrival(id as usize),
            prompt_tokens: request.input_tokens,
            output_tokens: request.output_tokens,
            blocks: requests.blocks(request).to_vec(),
        }
    }

    /// No worker is left for a request: it fails.
    pub(super) fn give_up(&mut self, at: Tick, id: u32) {
        let job = self.dispatch.moved.remove(&id).map_or_else(|| self.job(id), |moved| moved.job().clone());
        self.tiers.forget_job(id);
        self.tiers.outbox.lost.remove(&id);
        self.tiers.metrics.gave_up(at);
        self.tiers.refused(at, 0, &job);
    }

    /// Requests that waited for a worker look for one again.
    pub(super) fn find_workers(&mut self, at: Tick) {
        for id in std::mem::take(&mut self.dispatch.stranded) {
            self.dispatch(at, id);
        }
    }

    /// Acts upon what workers said since the last time.
    pub(super) fn act(&mut self) {
        while !self.tiers.outbox.is_empty() {
            for (at, worker, moved) in std::mem::take(&mut self.tiers.outbox.prefilled) {
                self.send(at, worker, moved);
            }
            for (at, worker, job, tokens) in std::mem::take(&mut self.tiers.outbox.reserved) {
                self.transfer(at, worker, job, tokens);
            }
            for (at, job) in std::mem::take(&mut self.tiers.outbox.ended) {
                self.ended(at, job);
            }
        }
    }
}
