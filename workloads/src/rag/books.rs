//! What a RAG run counts: queries from arrival to last token.

use rustc_hash::FxHashMap;

use crate::inference::{Host, Job, Parts, Reason, Samples, Slot};
use crate::op::Tick;

/// How far a query is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its question is being embedded.
    Embed,
    /// Its posting lists are being read.
    Postings,
    /// What they gave is being ranked.
    Rerank,
    /// Its passages are being fetched.
    Passages,
    /// Its prompt is being made, queued, prefilled or answered.
    Generate,
    /// It failed; reads in flight still come back.
    Failed,
}

/// A query in flight.
#[derive(Debug, Clone)]
pub(super) struct Query {
    /// Its number since the start of the run.
    pub(super) number: u64,
    /// Intended arrival.
    pub(super) arrived: Tick,
    pub(super) worker: u32,
    pub(super) stage: Stage,
    /// Reads in flight.
    pub(super) pending: u32,
    /// End of the stage so far.
    pub(super) reached: Tick,
    /// Arrival to all passages fetched.
    pub(super) retrieve_ns: u64,
}

/// Block ids remembered per generation; two generations are kept.
const GENERATION: usize = 1 << 20;

/// Counters of the measured window, and the queries in flight.
#[derive(Debug)]
pub(super) struct Books {
    queries: Vec<Option<Query>>,
    free: Vec<u32>,
    /// Queries of each worker that are not over.
    pub(super) load: Vec<u32>,
    from: Tick,
    until: Option<Tick>,
    pub(super) arrived: u64,
    pub(super) completed: u64,
    pub(super) failed: u64,
    /// Completions inside the window, whenever they arrived.
    pub(super) completed_within: u64,
    pub(super) retrieve: Samples,
    pub(super) ttft: Samples,
    pub(super) e2e: Samples,
    pub(super) retrieve_sum_ns: u128,
    pub(super) ttft_sum_ns: u128,
    pub(super) posting_bytes: u64,
    pub(super) passage_bytes: u64,
    /// All since the start of the run.
    pub(super) over: u64,
    /// Which worker computed a block last: what tells a recomputation from a first prefill. Two generations, so that
    /// memory stays bounded in a run of any length; a block not computed for over a million others counts as new.
    computed: [FxHashMap<u64, u32>; 2],
}

impl Books {
    pub(super) fn new(workers: usize, time_scale: f64) -> Self {
        Self {
            queries: Vec::new(),
            free: Vec::new(),
            load: vec![0; workers],
            from: Tick::ZERO,
            until: None,
            arrived: 0,
            completed: 0,
            failed: 0,
            completed_within: 0,
            retrieve: Samples::new(time_scale),
            ttft: Samples::new(time_scale),
            e2e: Samples::new(time_scale),
            retrieve_sum_ns: 0,
            ttft_sum_ns: 0,
            posting_bytes: 0,
            passage_bytes: 0,
            over: 0,
            computed: Default::default(),
        }
    }

    /// Counting begins at `at`.
    pub(super) fn measure(&mut self, at: Tick) {
        self.from = at;
        (self.arrived, self.completed, self.failed, self.completed_within) = (0, 0, 0, 0);
        (self.posting_bytes, self.passage_bytes) = (0, 0);
        (self.retrieve_sum_ns, self.ttft_sum_ns) = (0, 0);
        [&mut self.retrieve, &mut self.ttft, &mut self.e2e].into_iter().for_each(Samples::clear);
    }

    /// What is intended from `at` on is not counted.
    pub(super) fn stop(&mut self, at: Tick) {
        self.until = Some(at);
        // Arrivals of this very moment may have been seen before the stop.
        let beyond = self.queries.iter().flatten().filter(|query| query.arrived >= at).count() as u64;
        self.arrived = self.arrived.saturating_sub(beyond);
    }

    /// Whether something intended at `at` counts.
    pub(super) fn counts(&self, at: Tick) -> bool {
        at >= self.from && self.until.is_none_or(|until| at < until)
    }

    pub(super) fn open(&mut self, query: Query) -> u32 {
        self.load[query.worker as usize] += 1;
        self.arrived += u64::from(self.counts(query.arrived));
        match self.free.pop() {
            Some(slot) => {
                self.queries[slot as usize] = Some(query);
                slot
            }
            None => {
                self.queries.push(Some(query));
                (self.queries.len() - 1) as u32
            }
        }
    }

    pub(super) fn query(&mut self, slot: u32) -> Option<&mut Query> {
        self.queries.get_mut(slot as usize)?.as_mut()
    }

    /// Queries that are not over, failed ones with reads in flight included.
    pub(super) fn live(&self) -> usize {
        self.queries.len() - self.free.len()
    }

    /// The query failed; its place is free once nothing is in flight.
    pub(super) fn fail(&mut self, slot: u32) {
        let Some(query) = self.query(slot) else { return };
        let (first, arrived, worker) = (query.stage != Stage::Failed, query.arrived, query.worker);
        query.stage = Stage::Failed;
        let idle = query.pending == 0;
        if first {
            self.load[worker as usize] -= 1;
            self.failed += u64::from(self.counts(arrived));
            self.over += 1;
        }
        if idle {
            self.queries[slot as usize] = None;
            self.free.push(slot);
        }
    }

    /// All passages of the query are there.
    pub(super) fn retrieved(&mut self, slot: u32) {
        let Some(query) = self.query(slot) else { return };
        let (arrived, ns) = (query.arrived, query.reached.0.saturating_sub(query.arrived.0));
        query.retrieve_ns = ns;
        if self.counts(arrived) {
            self.retrieve.record(ns, 1);
        }
    }

    fn computed_by(&self, block: u64) -> Option<u32> {
        self.computed.iter().find_map(|generation| generation.get(&block).copied())
    }
}

impl Host for Books {
    fn recompute(&mut self, worker: u32, job: &Job, index: usize) -> Option<Reason> {
        let last = self.computed_by(job.blocks[index])?;
        Some(if last == worker { Reason::Evicted } else { Reason::Elsewhere })
    }

    fn completed(&mut self, _: Tick, worker: u32, job: &Job, index: usize, _: Slot) -> bool {
        if self.computed[0].len() >= GENERATION {
            let full = std::mem::take(&mut self.computed[0]);
            self.computed[1] = full;
        }
        self.computed[0].insert(job.blocks[index], worker);
        false
    }

    fn first_token(&mut self, at: Tick, _: u32, job: &Job, _: &Parts) {
        let Some(query) = self.query(job.id) else { return };
        let (arrived, retrieve_ns) = (query.arrived, query.retrieve_ns);
        if self.counts(arrived) {
            let ttft_ns = at.0.saturating_sub(arrived.0);
            self.ttft.record(ttft_ns, 1);
            self.retrieve_sum_ns += u128::from(retrieve_ns);
            self.ttft_sum_ns += u128::from(ttft_ns);
        }
    }

    fn finished(&mut self, at: Tick, worker: u32, job: &Job, _: Tick) {
        let Some(query) = self.query(job.id) else { return };
        let arrived = query.arrived;
        if self.counts(arrived) {
            self.completed += 1;
            self.e2e.record(at.0.saturating_sub(arrived.0), 1);
        }
        let within = at >= self.from && self.until.is_none_or(|until| at <= until);
        self.completed_within += u64::from(within);
        self.over += 1;
        self.load[worker as usize] -= 1;
        self.queries[job.id as usize] = None;
        self.free.push(job.id);
    }

    fn refused(&mut self, _: Tick, _: u32, job: &Job) {
        self.fail(job.id);
    }
}
