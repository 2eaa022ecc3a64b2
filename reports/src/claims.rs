//! Holds vendors' claims against what a run measured.

use gpufeed_schema::{Claim, ClaimStatus, RunReport};

use crate::metric::Metrics;

/// What would meet a claim.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// The measured figure must be at least this.
    AtLeast(f64),
    /// The measured figure must be at most this.
    AtMost(f64),
}

/// A claim in a form that can be checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name in the profiles.
    pub id: String,
    /// The claim in words.
    pub text: String,
    /// Who says so, and where.
    pub source: String,
    /// Path of the figure that speaks to it (see [`crate::metric`]), where a run can measure it.
    pub metric: Option<String>,
    /// Path of a figure to divide by, for claims of the form "n times".
    pub relative_to: Option<String>,
    /// What would meet it.
    pub bound: Bound,
}

/// Checks each claim against the report, in the order given.
#[must_use]
pub fn check(report: &RunReport, rules: &[Rule]) -> Vec<Claim> {
    let metrics = Metrics::of(report);
    let measure = |rule: &Rule| {
        let value = metrics.number(rule.metric.as_deref()?)?;
        match &rule.relative_to {
            None => Some(value),
            Some(path) => metrics.number(path).filter(|base| *base != 0.0).map(|base| value / base),
        }
    };
    rules
        .iter()
        .map(|rule| {
            let measured = measure(rule);
            let (threshold, met) = match rule.bound {
                Bound::AtLeast(bound) => (bound, measured.map(|m| m >= bound)),
                Bound::AtMost(bound) => (bound, measured.map(|m| m <= bound)),
            };
            let status = match met {
                Some(true) => ClaimStatus::Met,
                Some(false) => ClaimStatus::Missed,
                None => ClaimStatus::NotMeasurable,
            };
            Claim {
                id: rule.id.clone(),
                text: rule.text.clone(),
                source: rule.source.clone(),
                measured,
                threshold,
                status,
            }
        })
        .collect()
}
