//! When throughput stops growing: a verdict on each level that depends on the others.

use serde::{Deserialize, Serialize};

use super::Vote;

/// What a level reached in one run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The level.
    pub at: f64,
    /// Its throughput, in any unit per second.
    pub per_s: f64,
}

/// Verdicts on runs in their order: a level passes while some higher level reaches at least `1 + growth_ratio` times its
/// throughput, and the highest while it reaches that many times the most below it. The lowest level that fails is then
/// where throughput stopped growing. A level of several runs counts by their median.
#[must_use]
pub fn growing(figures: &[Figure], growth_ratio: f64) -> Vec<Vote> {
    let mut levels: Vec<f64> = figures.iter().map(|figure| figure.at).collect();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    let reached: Vec<f64> = levels.iter().map(|at| median(figures, *at)).collect();
    let most = |part: &[f64]| part.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let grows = |i: usize| match &reached[i + 1..] {
        // Alone there is nothing to have grown from: go on.
        [] => i == 0 || reached[i] >= (1.0 + growth_ratio) * most(&reached[..i]),
        higher => most(higher) >= (1.0 + growth_ratio) * reached[i],
    };
    let verdicts: Vec<bool> = (0..levels.len()).map(grows).collect();
    let of = |figure: &Figure| {
        let level = levels.iter().position(|at| *at == figure.at);
        Vote { at: figure.at, passed: level.is_some_and(|level| verdicts[level]) }
    };
    figures.iter().map(of).collect()
}

/// The median of a level's runs.
fn median(figures: &[Figure], at: f64) -> f64 {
    let mut all: Vec<f64> = figures.iter().filter(|figure| figure.at == at).map(|figure| figure.per_s).collect();
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    match all.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => all[middle],
        _ => f64::midpoint(all[middle - 1], all[middle]),
    }
}
