//! What a plan and its trace make of each query: reads, sizes, prompt. Nothing here changes during a run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::{INDEX, Ivf, PASSAGES, QueryArrivals, RagError, RagPlan};
use crate::inference::Job;
use crate::op::{Key, Op, Tick};
use crate::random::{mix, mix2};
use crate::schedule::Schedule;
use crate::trace::{Component, Part, chain};

/// Plan, index and passages.
#[derive(Debug)]
pub(super) struct Corpus {
    pub(super) plan: RagPlan,
    pub(super) ivf: Ivf,
    /// Requests of the trace by arrival.
    pub(super) order: Vec<u32>,
    /// Object number of each passage, in order of passage ids.
    passages: FxHashMap<u64, u32>,
    pub(super) sizes: Arc<[u64]>,
}

impl Corpus {
    pub(super) fn new(plan: RagPlan) -> Result<Self, RagError> {
        let need = |holds: bool, what, must| if holds { Ok(()) } else { Err(RagError::Value { what, must }) };
        need(plan.workers > 0, "the number of workers", "at least 1")?;
        need(plan.lanes > 0, "the number of lanes", "at least 1")?;
        need(plan.index.vectors > 0 && plan.index.dims > 0, "the index's vectors and dimensions", "at least 1")?;
        need((1..=plan.index.lists).contains(&plan.index.nprobe), "nprobe", "at least 1 and at most the lists")?;
        need(plan.bytes_per_token > 0.0 && plan.bytes_per_token < 1e6, "bytes per token", "above 0 and below 1e6")?;
        need(plan.limits.block_tokens > 0, "the tokens of a block", "at least 1")?;
        need(plan.limits.time_scale > 0.0 && plan.limits.time_scale < 1e9, "the time scale", "above 0")?;
        match plan.arrivals {
            QueryArrivals::Trace { speed } => need(speed > 0.0 && speed.is_finite(), "the speed", "above 0")?,
            QueryArrivals::Poisson { rate_per_s } => {
                need(rate_per_s > 0.0 && rate_per_s <= 1e9, "the rate", "above 0 and at most 1e9 per second")?;
            }
        }
        let mut tokens: BTreeMap<u64, u32> = BTreeMap::new();
        for request in plan.trace.requests() {
            for part in plan.trace.parts(request).iter().filter(|part| part.component == Component::Passage) {
                tokens.entry(part.id).or_insert(part.tokens);
            }
        }
        if tokens.is_empty() {
            return Err(RagError::NoPassages);
        }
        let bytes = |&tokens: &u32| ((f64::from(tokens) * plan.bytes_per_token).round() as u64).max(1);
        Ok(Self {
            ivf: Ivf::new(&plan.index, plan.seed),
            order: plan.trace.by_arrival(),
            passages: tokens.keys().enumerate().map(|(i, &id)| (id, i as u32)).collect(),
            sizes: tokens.values().map(bytes).collect(),
            plan,
        })
    }

    /// The request of the trace that query `number` repeats, and how often that has been before.
    pub(super) fn place(&self, number: u64) -> (usize, u64) {
        let n = self.order.len() as u64;
        (self.order[(number % n) as usize] as usize, number / n)
    }

    pub(super) fn parts(&self, number: u64) -> &[Part] {
        self.plan.trace.parts(&self.plan.trace.requests()[self.place(number).0])
    }

    pub(super) fn passages(&self, number: u64) -> impl Iterator<Item = u64> + '_ {
        self.parts(number).iter().filter(|part| part.component == Component::Passage).map(|part| part.id)
    }

    /// The reads of posting lists of query `number`.
    pub(super) fn postings(&self, number: u64, lists: &mut Vec<u32>, mut each: impl FnMut(Op)) {
        self.ivf.probe(number, self.passages(number), lists);
        for range in lists.iter().flat_map(|&list| self.ivf.ranges(list)) {
            each(Op::get_range(
                Key { space: INDEX, rank: 0, id: range.object, ..Key::ZERO },
                range.offset,
                range.bytes,
            ));
        }
    }

    /// The fetches of passages of query `number`.
    pub(super) fn fetches(&self, number: u64, mut each: impl FnMut(Op)) {
        for passage in self.passages(number) {
            let object = self.passages[&passage];
            let key = Key { space: PASSAGES, rank: 0, id: u64::from(object), ..Key::ZERO };
            each(Op::get(key, self.sizes[object as usize]));
        }
    }

    /// What the inference worker is asked to do for query `number`.
    pub(super) fn job(&self, slot: u32, number: u64, arrived: Tick) -> Job {
        let (index, again) = self.place(number);
        let request = &self.plan.trace.requests()[index];
        let segments = self.parts(number).iter().map(|part| {
            let asked_anew = matches!(part.component, Component::UserInput | Component::History);
            let id = mix2(part.id, part.component as u64);
            (if asked_anew { mix2(id, again) } else { mix(id) }, part.tokens)
        });
        let mut blocks = Vec::new();
        let block_tokens = u32::try_from(self.plan.limits.block_tokens).unwrap_or(u32::MAX);
        chain(segments, block_tokens, &mut blocks);
        let tokens: u64 = self.parts(number).iter().map(|part| u64::from(part.tokens)).sum();
        // Only whole blocks have an identity that others can share.
        blocks.truncate((tokens / self.plan.limits.block_tokens) as usize);
        Job {
            id: slot,
            arrived,
            // What the prompt has besides its parts (a template) comes at its end.
            prompt_tokens: tokens.max(u64::from(request.input_tokens)).max(1),
            output_tokens: u64::from(request.output_tokens).max(1),
            blocks,
        }
    }

    pub(super) fn schedule(&self, start: Tick) -> Schedule {
        let scale = self.plan.limits.time_scale;
        match self.plan.arrivals {
            QueryArrivals::Trace { speed } => {
                let requests = self.plan.trace.requests();
                let stamps: Arc<[Duration]> = self.order.iter().map(|&i| requests[i as usize].at).collect();
                Schedule::stamps(start, stamps, speed / scale)
            }
            QueryArrivals::Poisson { rate_per_s } => Schedule::poisson(start, rate_per_s / scale, self.plan.seed, 0),
        }
    }

    /// Queries there will be, if that is known.
    pub(super) fn bound(&self) -> Option<u64> {
        let trace = matches!(self.plan.arrivals, QueryArrivals::Trace { .. }).then_some(self.order.len() as u64);
        match (trace, self.plan.queries) {
            (Some(trace), Some(queries)) => Some(trace.min(queries)),
            (one, other) => one.or(other),
        }
    }

    pub(super) fn stretched(&self, time: Duration) -> Duration {
        Duration::from_nanos((time.as_nanos() as f64 * self.plan.limits.time_scale).round() as u64)
    }
}
