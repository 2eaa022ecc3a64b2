//! Load or recompute, and what became of it.

use gpufeed_schema::{BreakEven, BreakEvenCurve, Loading};

use crate::kv::hindsight::{Choice, exposed_ns};
use crate::kv::loads::Place;
use crate::kv::spec::{LoadPolicy, Overlap};
use crate::kv::tiers::Tiers;
use crate::op::Tick;

/// Tokens of the curves: doublings of a block up to this.
const LONGEST_CURVE: u64 = 131_072;
/// Loads declined for each one that is tried all the same.
const TRIAL: u32 = 64;
/// Cached prefixes that curves are given for, beside none.
const CURVES: [u64; 3] = [8192, 32_768, 131_072];

impl Tiers {
    /// Whether blocks at these places, after `from` blocks, are worth loading (design §5): loading k tokens after p takes
    /// t₀ + k·s/B(concurrency) + t_copy, computing them T_pre(p, k). Drive and target are read at the same time.
    ///
    /// Estimates come from reads, and who reads nothing never learns that a slow target has recovered: once in
    /// [`TRIAL`] times that computing looks better, what was learned is forgotten and the load is tried.
    pub(super) fn pays(&mut self, at: Tick, worker: u32, job: u32, from: usize, places: &[Place]) -> bool {
        let remote = places.iter().filter(|place| **place != Place::Host).count() as u64;
        if remote == 0 {
            return true;
        }
        if remote * self.requests.block_tokens() < self.spec.min_hit_tokens {
            return false;
        }
        match self.spec.load {
            LoadPolicy::Always => true,
            LoadPolicy::Never => false,
            LoadPolicy::BreakEven => {
                let choice = self.choice(at, worker, job, from, places);
                let pays = self.expected_ns(&choice) < choice.compute_ns;
                self.declined += u32::from(!pays);
                let trial = !pays && self.declined.is_multiple_of(TRIAL);
                if trial {
                    self.target.forget();
                    self.drives.exchange.forget();
                }
                pays || trial
            }
        }
    }

    /// What the choice between loading and computing these blocks rests on.
    pub(super) fn choice(&self, at: Tick, worker: u32, job: u32, from: usize, places: &[Place]) -> Choice {
        let count = |wanted| places.iter().filter(|place| **place == wanted).count();
        let (tokens, scale) = (self.requests.block_tokens(), self.spec.time_scale);
        let (cached, more) = (from as u64 * tokens, places.len() as u64 * tokens);
        let batch = self.spec.max_num_batched_tokens;
        let chunk = self.requests.list()[job as usize].input_tokens.saturating_sub(cached + more).clamp(1, batch);
        let chunk_ns = match self.spec.overlap {
            Overlap::None => 0.0,
            Overlap::LayerWise => self.cost.prefill_ns(cached + more, chunk, chunk) * scale,
        };
        Choice {
            made: at,
            compute_ns: self.cost.prefill_ns(cached, more, batch) * scale,
            chunk_ns,
            near: self.drives.exchange.queued(worker, count(Place::Drive)),
            far: self.target.queued(worker, count(Place::Target)),
            copy_ns: self.block_copy_ns * places.len() as f64,
        }
    }

    /// How long a load is expected to delay its request, by what the reads of late show.
    pub(super) fn expected_ns(&self, choice: &Choice) -> f64 {
        let load_ns = self.drives.exchange.load_ns(&choice.near).max(self.target.load_ns(&choice.far));
        self.delay_ns(load_ns + choice.copy_ns, choice)
    }

    /// What of a load of `load_ns` its request waits for.
    pub(super) fn delay_ns(&self, load_ns: f64, choice: &Choice) -> f64 {
        exposed_ns(load_ns, choice.chunk_ns, u32::from(self.target.parts()))
    }

    /// When each layer is there, from when each group of them is.
    pub(super) fn per_layer(&self, parts: &[Tick]) -> Vec<Tick> {
        let (layers, last) = (self.cost.layers as usize, parts.last().copied().unwrap_or_default());
        let per_read = self.spec.layers_per_read.max(1) as usize;
        (0..layers).map(|layer| parts.get(layer / per_read).copied().unwrap_or(last)).collect()
    }

    /// A prompt is computed: if it could have been loaded, was that the right choice, by what is known now?
    pub(super) fn judge_computed(&mut self, at: Tick, job: u32) {
        if let Some(choice) = self.foregone.remove(&job)
            && self.metrics.counts(choice.made)
            && self.metrics.counts(at)
        {
            let load_ns = self.expected_ns(&choice);
            self.metrics.hindsight.computed(&choice, load_ns);
        }
    }

    /// `B*(k)` after `cached` tokens, by the latency to the first byte that reads showed: like all results divided by the
    /// time scale, as the choice was between that latency and GPU times multiplied by it.
    pub(super) fn break_even(&self, cached: u64) -> Vec<BreakEven> {
        let first_byte_ns = self.target.estimate().first_byte_ns(1) / self.spec.time_scale;
        let batch = self.spec.max_num_batched_tokens;
        self.curve(|tokens| self.cost.break_even_bytes_per_s(cached, tokens, batch, first_byte_ns))
    }

    /// Bandwidth from which a saturated worker serves more requests by loading k tokens than by computing them.
    ///
    /// A worker that computes serves one request in `T_pre(0, k + b)`, where the last block `b` is computed either way;
    /// one that loads, one in `k·s/B` if that is longer than the tail takes, since other requests use the GPU meanwhile
    /// and latency delays but does not occupy. So `B = k·s / T_pre(0, k + b)`, unless the host link itself is slower.
    fn throughput_break_even(&self) -> Vec<BreakEven> {
        let (batch, block) = (self.spec.max_num_batched_tokens, self.requests.block_tokens());
        self.curve(|tokens| {
            let bytes = self.cost.kv_bytes_per_token * tokens as f64;
            let compute_ns = self.cost.prefill_ns(0, tokens + block, batch);
            (self.cost.copy_ns(bytes) < compute_ns).then(|| bytes / compute_ns * 1e9)
        })
    }

    fn curve(&self, bytes_per_s: impl Fn(u64) -> Option<f64>) -> Vec<BreakEven> {
        let block = self.requests.block_tokens();
        let sizes = std::iter::successors(Some(block), |tokens| Some(tokens * 2));
        let sizes = sizes.take_while(|&tokens| tokens <= LONGEST_CURVE.max(block));
        sizes.map(|tokens| BreakEven { tokens, bytes_per_s: bytes_per_s(tokens) }).collect()
    }

    /// The report's section on loads.
    pub(super) fn loading(&self) -> Loading {
        let curve = |&cached_tokens: &u64| BreakEvenCurve { cached_tokens, points: self.break_even(cached_tokens) };
        Loading {
            overlap: self.spec.overlap.name().to_owned(),
            reads_per_object: u32::from(self.target.parts()),
            concurrency: self.target.estimate().seen(),
            break_even: CURVES.iter().map(curve).collect(),
            throughput_break_even: self.throughput_break_even(),
            ..self.metrics.hindsight.section()
        }
    }
}
