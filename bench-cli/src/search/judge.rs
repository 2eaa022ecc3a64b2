//! From what a run reports to the figures of a level, and whether they pass.

use anyhow::anyhow;
use gpufeed_schema::{
    Distribution, Kv, Latency, Member, RunReport, SearchFigures, SearchProbe, Validity, ValidityStatus,
};
use gpufeed_workloads::search::{Figure, Vote, growing};

use super::plan::Criterion;
use crate::exit::undecided;

/// Name, behind the member's, of the check that fails when so many operations failed that the figures speak of those.
const MOSTLY_FAILED: &str = "failed-operations";

/// What a run's offered load was, where its report does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Offered {
    /// Requests or queries per second, in the emulated GPUs' time.
    pub(super) per_s: Option<f64>,
    /// By which emulated times are stretched.
    pub(super) time_scale: f64,
}

/// The probe a report is of. `passed` is final except for throughput, which [`votes`] judges among all.
///
/// # Errors
/// When the run is too short to tell, or its report is not of use.
pub(super) fn probe(
    level: f64,
    report: &RunReport,
    criterion: Criterion,
    offered: Offered,
    directory: String,
) -> anyhow::Result<SearchProbe> {
    let member = report.members.first().ok_or_else(|| anyhow!("the run at {level} measured nothing"))?;
    let bad = |check: &&Validity| check.status == ValidityStatus::Fail;
    let failure = report.validity.iter().find(bad);
    if let Some(check) = failure.filter(|check| !check.check.ends_with(MOSTLY_FAILED)) {
        return Err(anyhow!("the run at {level} cannot be judged: {}", check.detail));
    }
    let figures = figures(member, criterion, offered);
    let passed = match failure {
        // Figures of the few operations that went through say nothing good of a level.
        Some(_) => false,
        None => passes(&figures, member, criterion)
            .map_err(|why| undecided(format!("the run at {level} cannot tell: {why}")))?,
    };
    Ok(SearchProbe {
        level,
        directory: Some(directory),
        passed,
        verdict: Some(report.verdict),
        verdict_detail: Some(report.verdict_detail.clone()),
        failure: failure.map(|check| check.detail.clone()),
        figures,
    })
}

/// The same for a run in virtual time.
pub(super) fn virtual_probe(level: f64, kv: &Kv, share_ratio: f64, offered_per_s: Option<f64>) -> SearchProbe {
    let seconds = kv.gpu.total_ns as f64 / f64::from(kv.workers.max(1)) / 1e9;
    let figures = of_kv(kv, seconds, offered_per_s);
    SearchProbe {
        level,
        directory: None,
        passed: figures.goodput_ratio.is_some_and(|ratio| ratio >= share_ratio),
        verdict: None,
        verdict_detail: None,
        failure: None,
        figures,
    }
}

fn figures(member: &Member, criterion: Criterion, offered: Offered) -> SearchFigures {
    let sum = |figure: fn(&gpufeed_schema::Operation) -> f64| Some(member.operations.iter().map(figure).sum::<f64>());
    let all = SearchFigures {
        ops_per_s: sum(|operation| operation.ops_per_s),
        bytes_per_s: sum(|operation| operation.bytes_per_s),
        ..SearchFigures::default()
    };
    match (&member.training, &member.kv, &member.rag, criterion) {
        (Some(training), ..) => {
            SearchFigures { au_ratio: training.au_ratio, samples_per_s: Some(training.samples_per_s), ..all }
        }
        (_, Some(kv), ..) => {
            let of_kv = of_kv(kv, member.duration_s / offered.time_scale, offered.per_s);
            SearchFigures { ops_per_s: all.ops_per_s, bytes_per_s: all.bytes_per_s, ..of_kv }
        }
        (_, _, Some(rag), Criterion::Goodput { slo_ttft_ns, .. }) => {
            let served = rag.completed as f64 / rag.queries.max(1) as f64;
            let goodput_ratio = (rag.queries > 0).then(|| served * within(&rag.ttft, slo_ttft_ns).0);
            SearchFigures {
                goodput_ratio,
                offered_per_s: offered.per_s,
                goodput_per_s: goodput_ratio.zip(offered.per_s).map(|(ratio, offered)| ratio * offered),
                p99_ns: rag.ttft.summary.p99_ns,
                ..all
            }
        }
        _ => SearchFigures { p99_ns: slowest(member).and_then(|latency| latency.p99_ns), ..all },
    }
}

/// Requests inside the objectives are a share of those that arrived; that share of the offered rate is the goodput, so
/// that the time a run takes to drain does not count against it.
fn of_kv(kv: &Kv, seconds: f64, offered_per_s: Option<f64>) -> SearchFigures {
    // A count that went through a division and back.
    let good = (kv.goodput_per_s * seconds).round();
    let ratio = (kv.requests > 0).then(|| good / kv.requests as f64);
    SearchFigures {
        goodput_ratio: ratio,
        goodput_per_s: ratio.zip(offered_per_s).map(|(ratio, offered)| ratio * offered),
        offered_per_s,
        p99_ns: kv.ttft.summary.p99_ns,
        ..SearchFigures::default()
    }
}

/// The response time with the highest tail among the verbs.
fn slowest(member: &Member) -> Option<&Latency> {
    let times = member.operations.iter().map(|operation| &operation.response_time.summary);
    times.filter(|latency| latency.count > 0).max_by_key(|latency| (latency.p99_ns, latency.max_ns))
}

/// Share of samples known to be at most `bound_ns`, and whether more may be: the ladder ends before the largest.
fn within(times: &Distribution, bound_ns: u64) -> (f64, bool) {
    if times.summary.max_ns.is_some_and(|most| most <= bound_ns) {
        return (1.0, false);
    }
    let known = times.ladder.iter().filter(|step| step.value_ns <= bound_ns).map(|step| step.quantile_ratio);
    let ends = times.ladder.last().is_none_or(|step| step.value_ns <= bound_ns);
    (known.fold(0.0, f64::max), ends)
}

/// Whether a level passes, or why nobody can tell.
fn passes(figures: &SearchFigures, member: &Member, criterion: Criterion) -> Result<bool, String> {
    match criterion {
        Criterion::Au { threshold_ratio } => match figures.au_ratio {
            Some(ratio) => Ok(ratio >= threshold_ratio),
            None => Err("no epoch had two steps; give a longer --duration".to_owned()),
        },
        Criterion::Goodput { share_ratio, slo_ttft_ns } => {
            let ratio = figures.goodput_ratio.ok_or("no request arrived; give a longer --duration or trace")?;
            let open = member.rag.as_ref().is_some_and(|rag| within(&rag.ttft, slo_ttft_ns).1);
            match ratio >= share_ratio {
                false if open && could_reach(member, share_ratio) => {
                    Err("too few queries for the share asked for; give a longer --duration".to_owned())
                }
                passed => Ok(passed),
            }
        }
        Criterion::P99 { slo_ns } => {
            let latency = slowest(member).ok_or("nothing was done; give a longer --duration")?;
            let over = |value: Option<u64>| value.is_some_and(|value| value > slo_ns);
            match latency.p99_ns {
                Some(p99) => Ok(p99 <= slo_ns),
                // What holds for all holds for 99%, and what does not for 90% does not either.
                None if latency.max_ns.is_some_and(|most| most <= slo_ns) => Ok(true),
                None if over(latency.min_ns) || over(latency.p50_ns) || over(latency.p90_ns) => Ok(false),
                None => {
                    Err(format!("its {} operations are too few for a p99; give a longer --duration", latency.count))
                }
            }
        }
        Criterion::Throughput { .. } => Ok(true),
    }
}

/// Whether enough queries were answered at all.
fn could_reach(member: &Member, share_ratio: f64) -> bool {
    member.rag.as_ref().is_some_and(|rag| rag.completed as f64 >= share_ratio * rag.queries as f64)
}

/// The verdicts on all probes so far.
pub(super) fn votes(probes: &[SearchProbe], criterion: Criterion) -> Vec<Vote> {
    match criterion {
        Criterion::Throughput { growth_ratio } => {
            let figure = |probe: &SearchProbe| Figure {
                at: probe.level,
                per_s: probe.figures.ops_per_s.filter(|_| probe.failure.is_none()).unwrap_or(0.0),
            };
            growing(&probes.iter().map(figure).collect::<Vec<_>>(), growth_ratio)
        }
        _ => probes.iter().map(|probe| Vote { at: probe.level, passed: probe.passed }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use gpufeed_schema::{LadderStep, Operation, Rag, Training};

    use super::*;

    const UNSCALED: Offered = Offered { per_s: None, time_scale: 1.0 };

    fn ops(latency: Latency) -> Member {
        let time = Distribution { summary: latency, ladder: Vec::new() };
        let operation = Operation {
            op: "get".to_owned(),
            transport: "mem".to_owned(),
            carrier: "none".to_owned(),
            count: latency.count,
            errors: std::collections::BTreeMap::new(),
            attempts: latency.count,
            bytes: 0,
            bytes_per_s: 0.0,
            ops_per_s: 0.0,
            service_time: time.clone(),
            response_time: time,
            schedule_slip: Latency::default(),
            first_byte: Latency::default(),
        };
        Member { operations: vec![operation], ..Member::default() }
    }

    fn judged(member: &Member, criterion: Criterion) -> Result<bool, String> {
        passes(&figures(member, criterion, UNSCALED), member, criterion)
    }

    #[test]
    fn p99_is_told_from_what_the_sample_supports() {
        let slo = Criterion::P99 { slo_ns: 100 };
        let of = |count, p90, p99, most| {
            let latency = Latency { count, p90_ns: p90, p99_ns: p99, max_ns: Some(most), ..Latency::default() };
            judged(&ops(latency), slo)
        };
        assert_eq!(of(5000, Some(50), Some(100), 900), Ok(true));
        assert_eq!(of(5000, Some(50), Some(101), 900), Ok(false));
        // 200 operations have no p99: only what is sure is said.
        assert_eq!(of(200, Some(50), None, 100), Ok(true));
        assert_eq!(of(200, Some(101), None, 900), Ok(false));
        let all_over = Latency { count: 3, min_ns: Some(101), max_ns: Some(900), ..Latency::default() };
        assert_eq!(judged(&ops(all_over), slo), Ok(false));
        assert!(of(200, Some(50), None, 101).is_err_and(|why| why.contains("200 operations")));
        assert!(judged(&Member::default(), slo).is_err());
    }

    #[test]
    fn utilization_at_the_threshold_passes() {
        let of = |au_ratio| {
            let training = Training { au_ratio, ..Training::default() };
            let member = Member { training: Some(training), ..Member::default() };
            judged(&member, Criterion::Au { threshold_ratio: 0.9 })
        };
        assert_eq!((of(Some(0.9)), of(Some(0.899))), (Ok(true), Ok(false)));
        assert!(of(None).is_err_and(|why| why.contains("two steps")));
    }

    #[test]
    fn goodput_of_queries_counts_what_never_came() {
        let criterion = Criterion::Goodput { share_ratio: 0.95, slo_ttft_ns: 100 };
        let step = |quantile_ratio, value_ns| LadderStep { quantile_ratio, value_ns };
        let of = |completed, ladder: Vec<LadderStep>, most| {
            let summary = Latency { count: completed, max_ns: Some(most), ..Latency::default() };
            let ttft = Distribution { summary, ladder };
            let rag = Rag { queries: 1000, completed, ttft, ..Rag::default() };
            judged(&Member { rag: Some(rag), ..Member::default() }, criterion)
        };
        assert_eq!(of(1000, vec![step(0.5, 50), step(0.95, 100), step(0.975, 101)], 200), Ok(true));
        assert_eq!(of(1000, vec![step(0.5, 50), step(0.95, 101)], 200), Ok(false));
        assert_eq!(of(960, vec![step(0.5, 50)], 100), Ok(true), "all that came were in time");
        assert_eq!(of(940, vec![step(0.5, 50)], 100), Ok(false), "too many never came");
        assert!(of(1000, vec![step(0.5, 50), step(0.9, 60)], 200).is_err(), "the ladder ends too early to tell");
    }

    #[test]
    fn goodput_is_a_share_of_what_was_offered() {
        // 80 of 100 good within 20 s; the trace offered 10/s.
        let kv = Kv { requests: 100, goodput_per_s: 4.0, ..Kv::default() };
        let figures = of_kv(&kv, 20.0, Some(10.0));
        assert_eq!((figures.goodput_ratio, figures.goodput_per_s), (Some(0.8), Some(8.0)));
        assert_eq!(of_kv(&Kv::default(), 20.0, Some(10.0)).goodput_ratio, None);
    }

    #[test]
    fn a_level_whose_operations_fail_has_no_throughput() {
        let of = |level, ops_per_s, failure: Option<&str>| SearchProbe {
            level,
            directory: None,
            passed: true,
            verdict: None,
            verdict_detail: None,
            failure: failure.map(str::to_owned),
            figures: SearchFigures { ops_per_s: Some(ops_per_s), ..SearchFigures::default() },
        };
        let probes = [of(1.0, 100.0, None), of(2.0, 190.0, None), of(4.0, 300.0, Some("all failed"))];
        let passed: Vec<bool> =
            votes(&probes, Criterion::Throughput { growth_ratio: 0.05 }).iter().map(|vote| vote.passed).collect();
        assert_eq!(passed, [true, false, false]);
    }
}
