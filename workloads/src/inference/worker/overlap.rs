//! First chunks that compute while their prefix still comes in, layer by layer.
//!
//! An engine that loads layer-wise starts a request's first chunk at once and waits, in each layer, for that layer's
//! part of the prefix. The wait stalls every request of the batch, since they share the iteration. Later chunks find all
//! layers there.

use crate::inference::sequence::Sequence;
use crate::inference::worker::Worker;
use crate::inference::{Batch, Host, Phase};
use crate::op::Tick;

/// When the last of the layers is computed: `eᵢ = max(eᵢ₋₁, landedᵢ) + cᵢ`, where `e₀` is `start`, `landed` says when each
/// layer is there, and `cᵢ` are equal parts of `compute_ns`.
///
/// With layers that take `lᵢ` one after the other this is design §5's `l₁ + Σ max(cᵢ, lᵢ₊₁) + c_L` wherever the loader is
/// never more than one layer ahead; where it is, it ends earlier.
#[must_use]
pub fn overlapped_end(start: Tick, compute_ns: u64, landed: &[Tick]) -> Tick {
    let layers = landed.len() as u128;
    let until = |layer: u128| (u128::from(compute_ns) * layer).checked_div(layers).unwrap_or(0) as u64;
    let mut end = start.0;
    for (layer, at) in (0u128..).zip(landed) {
        end = end.max(at.0) + (until(layer + 1) - until(layer));
    }
    if landed.is_empty() { Tick(start.0 + compute_ns) } else { Tick(end) }
}

/// A prefix on its way.
#[derive(Debug)]
struct Coming {
    job: u32,
    /// The blocks that come.
    from: usize,
    to: usize,
    /// When each layer is there, once that is known, and the first block that did not come.
    came: Option<(Vec<Tick>, usize)>,
}

/// What a worker knows of prefixes that come layer by layer.
#[derive(Debug, Default)]
pub(super) struct Overlaps {
    coming: Vec<Coming>,
    /// Start of an iteration whose end is not known, because layers are on their way.
    open: Option<Tick>,
    /// What the iteration in progress waits beyond its own time.
    exposed_ns: u64,
}

impl Overlaps {
    pub(super) const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) const fn exposed_ns(&self) -> u64 {
        self.exposed_ns
    }

    /// Requests of which layers still come, and how many of those are `running`.
    pub(super) fn still_coming(&self, running: &[Sequence]) -> (usize, usize) {
        let mut counts = (0, 0);
        for coming in self.coming.iter().filter(|coming| coming.came.is_none()) {
            counts.0 += 1;
            counts.1 += usize::from(running.iter().any(|sequence| sequence.job.id == coming.job));
        }
        counts
    }

    pub(super) fn awaits(&self, job: u32) -> bool {
        self.coming.iter().any(|coming| coming.job == job)
    }
}

impl Worker {
    /// The blocks of job `id` up to `blocks` have begun to come, layer by layer: it need not wait any longer before its
    /// prefill. [`Worker::layers_landed`] follows.
    pub fn overlap(&mut self, now: Tick, id: u32, blocks: usize, host: &mut impl Host) {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        let Some(at) = self.loading.iter().position(|sequence| sequence.job.id == id) else { return };
        let mut sequence = self.loading.remove(at);
        sequence.enter(Phase::Queue, now);
        self.expect_layers(&mut sequence, blocks);
        self.loaded.push_back(sequence);
        self.book_gauge(now);
        self.wake_up(now, host);
    }

    /// When the iteration in progress at `now` ends; none if there is none, or if that is not known yet.
    #[must_use]
    pub fn iteration_end(&self, now: Tick) -> Option<Tick> {
        self.run.ends.iter().find(|end| **end > now.0).map(|end| Tick(*end))
    }

    pub(super) fn expect_layers(&mut self, sequence: &mut Sequence, blocks: usize) {
        let from = (sequence.computed / self.limits.block_tokens) as usize;
        self.overlaps.coming.push(Coming { job: sequence.job.id, from, to: blocks, came: None });
        sequence.computed = sequence.computed.max(blocks as u64 * self.limits.block_tokens);
    }

    /// It is known when each layer of job `id`'s prefix is in GPU memory (`landed`, in the order of the layers; some may
    /// still be ahead), and that only its first `blocks` blocks are whole.
    pub fn layers_landed(&mut self, now: Tick, id: u32, blocks: usize, landed: Vec<Tick>, host: &mut impl Host) {
        let now = self.hear(now);
        self.advance(now, host);
        self.settle(now);
        let Some(index) = self.overlaps.coming.iter().position(|coming| coming.job == id) else { return };
        self.overlaps.coming[index].came = Some((landed, blocks));
        let queued = self.loaded.iter().position(|sequence| sequence.job.id == id);
        if let Some(at) = queued.filter(|_| blocks < self.overlaps.coming[index].to) {
            // Not begun, so nothing is lost but what did not come.
            let coming = self.overlaps.coming.swap_remove(index);
            let block_tokens = self.limits.block_tokens;
            let sequence = &mut self.loaded[at];
            for block in coming.from..blocks {
                self.pool.name(sequence.slots[block], sequence.job.blocks[block]);
            }
            sequence.computed = blocks.max(coming.from) as u64 * block_tokens;
        }
        self.book_gauge(now);
        self.close_if_known();
    }

    /// Begins an iteration whose first chunks wait for layers; false if there are none.
    pub(super) fn start_overlapped(&mut self, now: Tick) -> bool {
        let overlaps = &mut self.overlaps;
        if overlaps.coming.is_empty() || !self.running.iter().any(|s| s.chunk > 0 && overlaps.awaits(s.job.id)) {
            return false;
        }
        overlaps.open = Some(now);
        self.close_if_known();
        true
    }

    /// Ends the open iteration's uncertainty, if every layer it waits for is known.
    fn close_if_known(&mut self) {
        let running = &self.running;
        let in_iteration = |job: u32| running.iter().any(|s| s.job.id == job && s.chunk > 0);
        let known = self.overlaps.coming.iter().all(|coming| coming.came.is_some() || !in_iteration(coming.job));
        if known {
            self.close_open(Tick::ZERO);
        }
    }

    /// Ends the open iteration as if layers that are not there yet came at `rest`.
    pub(super) fn close_open(&mut self, rest: Tick) {
        let Some(start) = self.overlaps.open.take() else { return };
        let mut landed = vec![start; self.cost.layers.max(1) as usize];
        for coming in &self.overlaps.coming {
            if !self.running.iter().any(|s| s.job.id == coming.job && s.chunk > 0) {
                continue;
            }
            match &coming.came {
                Some((layers, _)) => landed.iter_mut().zip(layers).for_each(|(at, layer)| *at = (*at).max(*layer)),
                None => landed.iter_mut().for_each(|at| *at = (*at).max(rest)),
            }
        }
        let compute_ns = self.duration_ns(&self.run.batch);
        let end = overlapped_end(start, compute_ns, &landed);
        self.overlaps.exposed_ns = end.0 - start.0 - compute_ns;
        self.run.ends.push(end.0);
    }

    /// Time of one iteration on this worker's clock.
    pub(super) fn duration_ns(&self, shape: &Batch) -> u64 {
        ((self.cost.iteration_ns(shape) * self.limits.time_scale).round() as u64).max(1)
    }

    /// The iteration is over: what came is in GPU memory; what did not takes the chunk computed after it with it.
    pub(super) fn settle_layers(&mut self, end: Tick, host: &mut impl Host) {
        if self.overlaps.coming.is_empty() {
            return;
        }
        let exposed_ns = std::mem::take(&mut self.overlaps.exposed_ns);
        let mut running = std::mem::take(&mut self.running);
        for sequence in running.iter_mut().filter(|sequence| sequence.chunk > 0) {
            let job = sequence.job.id;
            let Some(index) = self.overlaps.coming.iter().position(|coming| coming.job == job) else { continue };
            let Coming { from, to, came, .. } = self.overlaps.coming.swap_remove(index);
            let good = came.map_or(from, |(_, good)| good.clamp(from, to));
            for block in from..good {
                self.pool.name(sequence.slots[block], sequence.job.blocks[block]);
            }
            sequence.waited_for_layers(exposed_ns);
            let cached = good as u64 * self.limits.block_tokens;
            host.prefill(end, self.index, &sequence.job, cached, sequence.preempted);
            if good < to {
                sequence.computed = cached;
                sequence.chunk = 0;
                self.find_reasons(sequence, host);
            }
        }
        self.running = running;
    }
}
