//! Holds vendors' claims against what a run measured.

use gpufeed_schema::{Claim, ClaimStatus, RunReport, Verdict};

/// Checks each claim against the report, in the order given. A claim is about a storage product, so a self-test decides
/// none, and a run that its client limited can bear a claim out but not refute it; such claims keep what was measured
/// and say why they were not decided.
#[must_use]
pub fn check(report: &RunReport, claims: &[gpufeed_profiles::Claim]) -> Vec<Claim> {
    let figures = serde_json::to_value(report).unwrap_or_default();
    claims.iter().map(|claim| one(report.verdict, &figures, claim)).collect()
}

fn one(verdict: Verdict, figures: &serde_json::Value, claim: &gpufeed_profiles::Claim) -> Claim {
    let measured = claim.measure(figures).filter(|value| value.is_finite());
    let undecided = |why: &str| (ClaimStatus::NotMeasurable, Some(why.to_owned()));
    let (status, note) = match (measured.map(|value| claim.met(value)), verdict, &claim.needs) {
        (None, _, Some(needs)) => undecided(&format!("needs {needs}")),
        (None, _, None) => undecided("this run has no such figure"),
        (Some(_), Verdict::SelfTest, _) => undecided("a self-test measures no storage product"),
        (Some(false), Verdict::ClientLimited, _) => undecided("the client was the limit, the storage may be faster"),
        (Some(true), ..) => (ClaimStatus::Met, claim.condition.clone()),
        (Some(false), ..) => (ClaimStatus::Missed, claim.condition.clone()),
    };
    Claim {
        id: claim.id.clone(),
        text: claim.text.clone(),
        source: claim.source.clone(),
        measured,
        threshold: claim.threshold(measured),
        unit: claim.unit.clone(),
        status,
        note,
    }
}

/// A figure of a claim in its unit.
pub(crate) fn figure(value: f64, unit: &str) -> String {
    use crate::figures::{number, or_dash, percent, rate, size};
    or_dash(Some(value), |v| match unit {
        "ns" => gpufeed_profiles::units::show_nanos(v),
        "ratio" => percent(v),
        "times" => crate::figures::times(v),
        "bytes/s" => rate(v),
        "bytes" => size(v.max(0.0) as u64),
        "" => number(v),
        other => format!("{} {other}", number(v)),
    })
}
