//! What a search found, in sentences.

use gpufeed_profiles::units::three_digits;
use gpufeed_reports::search::{level, storage_name};
use gpufeed_schema::{SearchFigures, SearchLevel, SearchProbe, SearchReport, SearchStatus, SearchedStorage};
use gpufeed_workloads::search::{Level, curve};

use super::judge::votes;
use super::plan::Criterion;

/// How many times its objective a trace should last at the knee: a shorter one is over before a queue can show.
const TIMES_OBJECTIVE: f64 = 10.0;

/// Fills in what is said of the search as a whole.
pub(super) fn conclude(report: &mut SearchReport, criterion: Criterion) {
    for storage in &mut report.storages {
        // What an interrupted search knows is a curve too.
        if storage.status == SearchStatus::Unfinished {
            storage.levels = levels(&storage.probes, &curve(&votes(&storage.probes, criterion)));
        }
    }
    let Some(target) = report.storages.first() else { return };
    report.status = target.status;
    report.summary = summary(report, target, criterion);
    report.notes = notes(report, target, criterion);
}

fn summary(report: &SearchReport, target: &SearchedStorage, criterion: Criterion) -> String {
    let unit = &report.parameter.unit;
    let named = |at: Option<f64>| at.map_or_else(String::new, |at| format!("{} {unit}", level(at)));
    let text = &report.criterion.text;
    let throughput = matches!(criterion, Criterion::Throughput { .. });
    match target.status {
        SearchStatus::Unfinished => {
            format!("Unfinished after {} probes: run the same search again to go on", target.probes.len())
        }
        SearchStatus::Found if throughput => {
            let below =
                target.neighbor.map_or_else(String::new, |below| format!("; it still grows at {}", level(below)));
            format!("Throughput stops growing at {}{}{below}", named(target.knee), per_s(target))
        }
        SearchStatus::Found => {
            let above = target.neighbor.map_or_else(String::new, |above| format!("; {} does not", level(above)));
            format!("{}{} is the most with {text}{above}", named(target.knee), per_s(target))
        }
        SearchStatus::AboveHighest if throughput => {
            format!("Throughput still grows at {}: raise --max", named(Some(report.parameter.most)))
        }
        SearchStatus::AboveHighest => {
            format!("Even {} passes, the highest level that was allowed: raise --max", named(target.knee))
        }
        SearchStatus::BelowLowest => {
            format!("Not even {} passes, the lowest level: {text} is not reached", named(Some(report.parameter.least)))
        }
        SearchStatus::ClientLimited => {
            let knee = target
                .knee
                .map_or_else(|| "below the lowest level".to_owned(), |knee| format!("at {}", named(Some(knee))));
            format!(
                "The knee {knee} is this client's, not the storage's: what failed above it was client-limited; use more or faster client cores"
            )
        }
        SearchStatus::OutOfProbes => {
            let range = match (target.knee, target.neighbor) {
                (Some(a), Some(b)) => format!("between {} and {}", level(a.min(b)), named(Some(a.max(b)))),
                (Some(a), None) => format!("above {}", named(Some(a))),
                (None, Some(b)) => format!("below {}", named(Some(b))),
                (None, None) => "anywhere".to_owned(),
            };
            format!("Out of probes: the knee lies {range}; raise --most-probes")
        }
    }
}

/// What the storage does at its knee, in parentheses.
fn per_s(storage: &SearchedStorage) -> String {
    let at = storage.levels.iter().find(|level| Some(level.level) == storage.knee);
    let Some((value, figures)) = storage.knee_per_s.zip(at.map(|level| &level.figures)) else { return String::new() };
    let what = match figures {
        SearchFigures { goodput_per_s: Some(_), .. } => "per second inside the objectives",
        SearchFigures { samples_per_s: Some(_), .. } => "samples per second",
        _ => "operations per second",
    };
    format!(" ({} {what})", three_digits(value))
}

fn notes(report: &SearchReport, target: &SearchedStorage, criterion: Criterion) -> Vec<String> {
    let mut notes = Vec::new();
    let decisive = target.probes.iter().rev().find(|probe| Some(probe.level) == target.knee.or(target.neighbor));
    notes.extend(decisive.and_then(|probe| probe.verdict_detail.clone()));
    if let Criterion::Goodput { slo_ttft_ns, .. } = criterion {
        let objective_s = slo_ttft_ns as f64 / 1e9;
        for storage in &report.storages {
            let span_s = storage.knee.and_then(|knee| span_s(report, knee));
            if let Some(span_s) = span_s.filter(|span_s| *span_s < TIMES_OBJECTIVE * objective_s) {
                notes.push(format!(
                    "at its knee the load on {} lasts {} s, {} times the objective: a queue has little time to show, and the knee may lie lower; replay more",
                    storage_name(&storage.storage),
                    three_digits(span_s),
                    three_digits(span_s / objective_s)
                ));
            }
        }
    }
    if report.workload == "kv" && report.storages.len() == 1 {
        notes.push(
            "--virtual searches the same trace also without a cache, with local tiers only and on ideal storage"
                .to_owned(),
        );
    }
    let failed = report.storages.iter().flat_map(|storage| &storage.probes).filter_map(|probe| {
        probe.failure.as_ref().map(|why| format!("at {} {}: {why}", level(probe.level), report.parameter.unit))
    });
    notes.extend(failed);
    notes
}

/// How long arrivals last at a level, in the emulated GPUs' time, where a trace says.
fn span_s(report: &SearchReport, knee: f64) -> Option<f64> {
    report.trace_span_s.map(|span_s| span_s / knee)
}

/// The curve: verdicts of each level with the medians of its runs.
pub(super) fn levels(probes: &[SearchProbe], curve: &[Level]) -> Vec<SearchLevel> {
    let of = |level: &Level| {
        let runs = || probes.iter().filter(|probe| probe.level == level.at).map(|probe| &probe.figures);
        let median = |figure: fn(&SearchFigures) -> Option<f64>| {
            let mut values: Vec<f64> = runs().filter_map(figure).collect();
            values.sort_by(f64::total_cmp);
            let middle = values.len() / 2;
            match values.len() {
                0 => None,
                n if n % 2 == 1 => Some(values[middle]),
                _ => Some(f64::midpoint(values[middle - 1], values[middle])),
            }
        };
        SearchLevel {
            level: level.at,
            passed: level.passed,
            failed: level.failed,
            figures: SearchFigures {
                au_ratio: median(|f| f.au_ratio),
                goodput_ratio: median(|f| f.goodput_ratio),
                goodput_per_s: median(|f| f.goodput_per_s),
                offered_per_s: median(|f| f.offered_per_s),
                p99_ns: median(|f| f.p99_ns.map(|ns| ns as f64)).map(|ns| ns.round() as u64),
                ops_per_s: median(|f| f.ops_per_s),
                bytes_per_s: median(|f| f.bytes_per_s),
                samples_per_s: median(|f| f.samples_per_s),
            },
        }
    };
    curve.iter().map(of).collect()
}
