//! The knee of a load: the highest level that still passes, found by climbing, bisecting and asking again.
//!
//! A search is a pure function of the verdicts so far: [`Search::next`] says what to try, or what was found. Nothing
//! else is its state, so one that was interrupted goes on from the verdicts that were kept.
//!
//! It climbs by doubling until a level fails, halves the gap between the highest that passes and the lowest that fails,
//! and then asks both again, since a single verdict on a busy machine may be wrong: what the majority of up to
//! [`Spec::confirmations`] runs says stands. A level that turns out otherwise moves the bracket, and the search goes on.
//! As long as less than half of any level's runs lie, the knee is the one that truth would have given.

mod growth;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use growth::{Figure, growing};

/// Significant digits of levels between the ends of a real domain, so that they read and write back the same.
const DIGITS: i32 = 5;
/// Finest resolution of a real domain: [`DIGITS`] tell its levels apart.
const FINEST: f64 = 1e-3;
/// Largest whole level: the integers that a double holds exactly.
const MOST_WHOLE: f64 = 9_007_199_254_740_992.0;

/// The levels a search may try.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// Lowest level, above zero.
    pub least: f64,
    /// Highest level.
    pub most: f64,
    /// Whether levels are whole numbers: accelerators, clients.
    pub whole: bool,
    /// Where to stop: the level that fails lies at most this share above the one that passes. `None` is exact, for
    /// whole numbers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution_ratio: Option<f64>,
}

/// What to search, and how hard.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The levels.
    pub domain: Domain,
    /// The first to try.
    pub start: f64,
    /// Most runs of one level; odd, so that they have a majority.
    pub confirmations: u32,
    /// Most runs in all.
    pub most_probes: u32,
}

/// A search that makes no sense, in one sentence.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SearchError {
    /// No level.
    #[error("a search from {least} to {most} has no level: its end must not be below its start")]
    Empty {
        /// Lowest.
        least: f64,
        /// Highest.
        most: f64,
    },
    /// A level out of range.
    #[error("a search cannot try {0}: levels are above zero and finite")]
    Level(f64),
    /// A fraction of an accelerator.
    #[error("a search over whole numbers cannot try {0}")]
    Fraction(f64),
    /// Never done.
    #[error("a resolution of {0} cannot be searched to: it must be at least 0.001 and at most 1")]
    Resolution(f64),
    /// A real domain without resolution.
    #[error("a search over fractions has no end without a resolution")]
    NoResolution,
    /// No majority.
    #[error("{0} confirmations have no majority: ask for an odd number such as 3")]
    Confirmations(u32),
    /// Nothing to do.
    #[error("a search of no probes finds nothing: allow at least 1")]
    NoProbes,
}

/// The verdict on one run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// Level that was run.
    pub at: f64,
    /// Whether it passed.
    pub passed: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Run this level.
    Probe(f64),
    /// Nothing more.
    Done(Found),
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// How it ended.
    pub end: End,
    /// Highest level that passes, if any does.
    pub knee: Option<f64>,
    /// Lowest level above it that does not, if any.
    pub above: Option<f64>,
    /// All levels, from the lowest.
    pub curve: Vec<Level>,
}

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Knee and upper neighbor are confirmed.
    Found,
    /// Even the highest level passes: the knee lies above it.
    AtMost,
    /// Not even the lowest level passes.
    NotEvenLeast,
    /// Out of probes before that.
    OutOfProbes,
}

/// One level and its verdicts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// The level.
    pub at: f64,
    /// Runs that passed.
    pub passed: u32,
    /// Runs that did not.
    pub failed: u32,
}

impl Level {
    /// What most runs say; `None` where they are even.
    #[must_use]
    pub const fn stands(&self) -> Option<bool> {
        match self.passed {
            passed if passed > self.failed => Some(true),
            passed if passed < self.failed => Some(false),
            _ => None,
        }
    }

    /// Whether more runs could not change that.
    const fn settled(&self, confirmations: u32) -> bool {
        self.passed > confirmations / 2 || self.failed > confirmations / 2
    }
}

impl Domain {
    /// Twice the level, as far as there is.
    fn above(&self, level: f64) -> f64 {
        (2.0 * level).min(self.most)
    }

    /// Half the level, as far as there is.
    fn below(&self, level: f64) -> f64 {
        let half = if self.whole { (level / 2.0).floor() } else { rounded(level / 2.0) };
        half.max(self.least)
    }

    /// The level in the middle, unless the two are near enough.
    fn between(&self, low: f64, high: f64) -> Option<f64> {
        if self.resolution_ratio.is_some_and(|resolution| high <= low * (1.0 + resolution)) {
            return None;
        }
        // By ratio where levels are real, since the resolution is one; in even halves where every level counts.
        let middle = if self.whole { ((low + high) / 2.0).floor() } else { rounded((low * high).sqrt()) };
        (middle > low && middle < high).then_some(middle)
    }
}

/// With [`DIGITS`] significant digits.
fn rounded(value: f64) -> f64 {
    let unit = 10f64.powi(DIGITS - 1 - value.log10().floor() as i32);
    // Divided by a power of ten rather than multiplied by a fraction, so that the nearest decimal comes out.
    (value * unit).round() / unit
}

/// The search for a knee.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Search {
    spec: Spec,
}

impl Search {
    /// A search.
    ///
    /// # Errors
    /// When it has no levels, no majority or no end.
    pub fn new(spec: Spec) -> Result<Self, SearchError> {
        let Domain { least, most, whole, resolution_ratio } = spec.domain;
        for level in [least, most, spec.start] {
            if !(level > 0.0 && level.is_finite()) {
                return Err(SearchError::Level(level));
            }
            if whole && (level.fract() != 0.0 || level > MOST_WHOLE) {
                return Err(SearchError::Fraction(level));
            }
        }
        if most < least {
            return Err(SearchError::Empty { least, most });
        }
        match resolution_ratio {
            Some(ratio) if !(FINEST..=1.0).contains(&ratio) => return Err(SearchError::Resolution(ratio)),
            None if !whole => return Err(SearchError::NoResolution),
            _ => {}
        }
        if spec.confirmations.is_multiple_of(2) {
            return Err(SearchError::Confirmations(spec.confirmations));
        }
        if spec.most_probes == 0 {
            return Err(SearchError::NoProbes);
        }
        Ok(Self { spec: Spec { start: spec.start.clamp(least, most), ..spec } })
    }

    /// What to do after these verdicts, in any order.
    #[must_use]
    pub fn next(&self, votes: &[Vote]) -> Next {
        let curve = curve(votes);
        let (knee, above) = bracket(&curve);
        let end = match self.step(&curve, knee, above) {
            Ok(level) if votes.len() < self.spec.most_probes as usize => return Next::Probe(level),
            Ok(_) => End::OutOfProbes,
            Err(end) => end,
        };
        let at = |level: Option<&Level>| level.map(|level| level.at);
        Next::Done(Found { end, knee: at(knee), above: at(above), curve: curve.clone() })
    }

    /// The next level, or how the search ends without one.
    fn step(&self, curve: &[Level], knee: Option<&Level>, above: Option<&Level>) -> Result<f64, End> {
        let Spec { domain, start, confirmations, .. } = self.spec;
        if let Some(even) = curve.iter().find(|level| level.stands().is_none()) {
            return Ok(even.at);
        }
        let open = |level: &Level| !level.settled(confirmations);
        match (knee, above) {
            (None, None) => Ok(start),
            (None, Some(above)) if above.at > domain.least => Ok(domain.below(above.at)),
            (None, Some(above)) if open(above) => Ok(above.at),
            (None, Some(_)) => Err(End::NotEvenLeast),
            (Some(knee), None) if knee.at < domain.most => Ok(domain.above(knee.at)),
            (Some(knee), None) if open(knee) => Ok(knee.at),
            (Some(_), None) => Err(End::AtMost),
            (Some(knee), Some(above)) => match domain.between(knee.at, above.at) {
                Some(middle) => Ok(middle),
                None if open(knee) => Ok(knee.at),
                None if open(above) => Ok(above.at),
                None => Err(End::Found),
            },
        }
    }
}

/// The levels of some verdicts, from the lowest.
#[must_use]
pub fn curve(votes: &[Vote]) -> Vec<Level> {
    let mut votes = votes.to_vec();
    votes.sort_by(|a, b| a.at.total_cmp(&b.at));
    let mut levels: Vec<Level> = Vec::new();
    for same in votes.chunk_by(|a, b| a.at == b.at) {
        let passed = same.iter().filter(|vote| vote.passed).count() as u32;
        levels.push(Level { at: same[0].at, passed, failed: same.len() as u32 - passed });
    }
    levels
}

/// The highest level that passes below the lowest that does not, and the latter.
fn bracket(curve: &[Level]) -> (Option<&Level>, Option<&Level>) {
    let above = curve.iter().position(|level| level.stands() == Some(false));
    let below = &curve[..above.unwrap_or(curve.len())];
    let knee = below.iter().rev().find(|level| level.stands() == Some(true));
    (knee, above.map(|index| &curve[index]))
}
