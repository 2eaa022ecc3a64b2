//! Loads as they turned out: when their last block came, how far behind the median, and whether loading or computing was
//! the right choice.

use gpufeed_schema::{BreakEvenWrong, Distribution, Latency, Loading, Ratios};

use crate::inference::Samples;
use crate::kv::estimate::Queued;
use crate::op::Tick;

/// Ratios are kept as whole thousandths.
const RATIO_UNIT: f64 = 1000.0;

/// A choice between loading blocks and computing them, to be judged when it is known what it cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub(super) made: Tick,
    /// What computing those blocks takes by the model.
    pub(super) compute_ns: f64,
    /// What its first chunk takes, which a layer-wise load hides behind.
    pub(super) chunk_ns: f64,
    /// What loading reads from the drive and from the target.
    pub(super) near: Queued,
    pub(super) far: Queued,
    /// What else a load takes: the copy to GPU memory.
    pub(super) copy_ns: f64,
}

/// What of a load of `load_ns` in `parts` equal parts delays a chunk of `chunk_ns` that computes meanwhile:
/// `l₁ + Σ max(cᵢ, lᵢ₊₁) + c_L − Σ cᵢ` (design §5) with equal layers. With one part, all of it.
pub(super) fn exposed_ns(load_ns: f64, chunk_ns: f64, parts: u32) -> f64 {
    let n = f64::from(parts.max(1));
    let (l, c) = (load_ns / n, chunk_ns / n);
    l + (n - 1.0) * (l - c).max(0.0)
}

/// Loads of the measured window.
#[derive(Debug)]
pub(super) struct Hindsight {
    loads: u64,
    given_up: u64,
    late_bytes: u64,
    last_block: Samples,
    median_block: Samples,
    straggler: Samples,
    wrong: BreakEvenWrong,
    scale: f64,
}

impl Hindsight {
    /// Times are reported divided by `time_scale`.
    pub(super) fn new(time_scale: f64) -> Self {
        Self {
            loads: 0,
            given_up: 0,
            late_bytes: 0,
            last_block: Samples::new(time_scale),
            median_block: Samples::new(time_scale),
            straggler: Samples::new(1.0),
            wrong: BreakEvenWrong::default(),
            scale: time_scale,
        }
    }

    /// A load begun at `begun` is complete; its blocks landed at these moments.
    pub(super) fn complete(&mut self, begun: Tick, landings: &mut [Tick]) {
        if landings.is_empty() {
            return;
        }
        landings.sort_unstable();
        let took = |index: usize| landings[index].0.saturating_sub(begun.0);
        let last = took(landings.len() - 1);
        let median = (took((landings.len() - 1) / 2) + took(landings.len() / 2)) / 2;
        self.loads += 1;
        self.last_block.record(last, 1);
        self.median_block.record(median, 1);
        if landings.len() > 1 && median > 0 {
            self.straggler.record((last as f64 / median as f64 * RATIO_UNIT).round() as u64, 1);
        }
    }

    pub(super) const fn given_up(&mut self) {
        self.given_up += 1;
    }

    /// Bytes that came for a load that had been given up.
    pub(super) const fn late(&mut self, bytes: u64) {
        self.late_bytes += bytes;
    }

    /// A request loaded, and waited `waited_ns` for it.
    pub(super) fn loaded(&mut self, choice: &Choice, waited_ns: f64) {
        self.wrong.loaded += 1;
        let lost = waited_ns - choice.compute_ns;
        if lost > 0.0 {
            self.wrong.loaded_slower += 1;
            self.wrong.loaded_slower_ttft_s += lost / self.scale / 1e9;
        }
    }

    /// A request computed what it could have loaded in `load_ns`, by what is known now.
    pub(super) fn computed(&mut self, choice: &Choice, load_ns: f64) {
        self.wrong.computed += 1;
        let lost = choice.compute_ns - load_ns;
        if lost > 0.0 {
            self.wrong.computed_slower += 1;
            self.wrong.computed_slower_ttft_s += lost / self.scale / 1e9;
            self.wrong.computed_slower_gpu_s += choice.compute_ns / self.scale / 1e9;
        }
    }

    /// Its part of the report.
    pub(super) fn section(&self) -> Loading {
        Loading {
            loads: self.loads,
            given_up: self.given_up,
            late_bytes: self.late_bytes,
            last_block: Distribution::of(&self.last_block),
            median_block: Latency::of(&self.median_block),
            straggler_ratio: Ratios::of(&self.straggler, RATIO_UNIT),
            break_even_wrong: self.wrong,
            ..Loading::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICE: Choice = Choice {
        made: Tick(0),
        compute_ns: 3e9,
        chunk_ns: 0.0,
        near: Queued { objects: 0, waiting: 0, in_flight: 0, object_bytes: 0.0 },
        far: Queued { objects: 4, waiting: 0, in_flight: 0, object_bytes: 1.0 },
        copy_ns: 0.0,
    };

    #[test]
    fn the_last_block_is_held_against_the_median() {
        let mut book = Hindsight::new(2.0);
        book.complete(Tick(100), &mut [900, 300, 200, 500].map(Tick));
        book.complete(Tick(100), &mut [700].map(Tick));
        book.complete(Tick(100), &mut []);
        let section = book.section();
        assert_eq!((section.loads, section.last_block.summary.count, section.straggler_ratio.count), (2, 2, 1));
        assert_eq!(section.last_block.summary.max_ns, Some(400));
        assert_eq!((section.median_block.min_ns, section.median_block.max_ns), (Some(150), Some(300)));
        let ratio = section.straggler_ratio.max_ratio.expect("a sample");
        assert!((ratio - 800.0 / 300.0).abs() < 2e-3 * ratio, "{ratio}");
    }

    #[test]
    fn both_wrong_sides_are_told_apart() {
        let mut book = Hindsight::new(2.0);
        book.loaded(&CHOICE, 2.9e9);
        book.loaded(&CHOICE, 4e9);
        book.computed(&CHOICE, 3.1e9);
        book.computed(&CHOICE, 1e9);
        let expected = BreakEvenWrong {
            loaded: 2,
            loaded_slower: 1,
            loaded_slower_ttft_s: 0.5,
            computed: 2,
            computed_slower: 1,
            computed_slower_ttft_s: 1.0,
            computed_slower_gpu_s: 1.5,
        };
        assert_eq!(book.section().break_even_wrong, expected);
    }

    #[test]
    fn layers_hide_what_the_chunk_takes() {
        // In one part nothing is hidden.
        assert_eq!(exposed_ns(100.0, 1000.0, 1), 100.0);
        // Ten layers of 10 behind layers of 100: the first alone shows.
        assert_eq!(exposed_ns(100.0, 1000.0, 10), 10.0);
        // Ten layers of 10 behind layers of 4: 10 + 9 · 6.
        assert_eq!(exposed_ns(100.0, 40.0, 10), 64.0);
        assert_eq!(exposed_ns(0.0, 40.0, 10), 0.0);
        // Nothing to compute meanwhile: the load itself.
        assert_eq!(exposed_ns(100.0, 0.0, 10), 100.0);
    }
}
