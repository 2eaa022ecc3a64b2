//! From what the user typed to a search: its levels, what a level has to do, and the ordinary run that tries one.

use std::path::PathBuf;
use std::time::Duration;

use gpufeed_profiles::units::{parse_duration, show_duration};
use gpufeed_workloads::kv::KvSpec;
use gpufeed_workloads::search::{Domain, Search, SearchError, Spec};
use serde::Serialize;

use super::args::{KneeArgs, KvSearch, OpsSearch, RagSearch, SearchWorkload, TrainingSearch};
use crate::args::{KvArgs, OpsArgs, RagArgs, RunFormat, SharedArgs, TrainingArgs, WorkloadArgs};
use crate::exit::usage;
use crate::plan::{MemberPlan, Plan, SpecPlan};
use crate::resolve::resolve;

/// Length of each probe unless told otherwise.
const PROBE: Duration = Duration::from_secs(10);

/// What a level has to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "metric")]
pub(super) enum Criterion {
    /// Accelerator utilization at or above this.
    Au { threshold_ratio: f64 },
    /// At least this share of the requests offered meets every objective.
    Goodput { share_ratio: f64, slo_ttft_ns: u64 },
    /// p99 of response time at or below this.
    P99 { slo_ns: u64 },
    /// Some higher level reaches this much more.
    Throughput { growth_ratio: f64 },
}

/// The parameter that is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Parameter {
    /// Emulated accelerators.
    Accelerators,
    /// Arrivals this many times as fast as in the trace.
    RateScale,
    /// Queries per second.
    QueryRate,
    /// Clients of a closed loop.
    Depth,
    /// Operations per second of an open loop.
    Rate,
}

impl Parameter {
    /// Its name in reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Accelerators => "accelerators",
            Self::RateScale => "rate_scale",
            Self::QueryRate | Self::Rate => "rate",
            Self::Depth => "depth",
        }
    }

    /// What its levels count.
    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Accelerators => "accelerators",
            Self::RateScale => "times the trace",
            Self::QueryRate => "queries/s",
            Self::Depth => "clients",
            Self::Rate => "operations/s",
        }
    }
}

/// The run whose level is raised, as typed.
#[derive(Debug)]
enum Probe {
    Training(TrainingArgs),
    Kv(Box<KvArgs>),
    Rag(RagArgs),
    Depth(OpsArgs),
    Rate(OpsArgs),
}

/// A search, resolved, and what is done with its report.
#[derive(Debug)]
pub(super) struct Request {
    probe: Probe,
    /// What is raised.
    pub parameter: Parameter,
    /// What a level has to do.
    pub criterion: Criterion,
    /// Levels and how hard to search.
    pub spec: Spec,
    /// The same, as the machine that searches.
    pub search: Search,
    /// Whether other storage is searched in virtual time.
    pub virtual_baselines: bool,
    /// Where it is kept, if said.
    pub out: Option<PathBuf>,
    /// Whether it must be there already.
    pub resume: bool,
    /// What standard output gets.
    pub format: RunFormat,
    /// Whether progress is hidden.
    pub quiet: bool,
    /// Whether it is only printed.
    pub dry_run: bool,
    /// Whether the data stays on the target afterwards.
    pub keep_data: bool,
}

/// What `--dry-run` prints, and what makes a search the same as another.
#[derive(Debug, Serialize)]
pub(super) struct Resolved<'a> {
    workload: &'static str,
    parameter: Parameter,
    virtual_baselines: bool,
    spec: &'a Spec,
    criterion: &'a Criterion,
    /// The run at the lowest level.
    plan: Plan,
}

/// Levels of a search unless told otherwise.
struct Levels {
    least: f64,
    most: f64,
    start: f64,
    whole: bool,
}

/// Chooses every default.
///
/// # Errors
/// One sentence of usage: what makes no sense, and the way out.
pub(super) fn request(workload: SearchWorkload) -> anyhow::Result<Request> {
    match workload {
        SearchWorkload::Training(args) => training(args),
        SearchWorkload::Kv(args) => kv(*args),
        SearchWorkload::Rag(args) => rag(args),
        SearchWorkload::Ops(args) => ops(args),
    }
}

fn training(TrainingSearch { mut run, knee }: TrainingSearch) -> anyhow::Result<Request> {
    metric(&knee, &["au"])?;
    if run.accelerators != 1 {
        return Err(searched("--accelerators"));
    }
    if run.epochs.is_none() {
        run.shared.duration.get_or_insert(PROBE);
    }
    let levels = Levels { least: 1.0, most: 1024.0, start: 1.0, whole: true };
    // The threshold is the profile's, which an ordinary run resolves.
    let probe = Probe::Training(run.clone());
    let threshold_ratio = match &probe.at(knee.min.unwrap_or(levels.least))?.members.first() {
        Some(MemberPlan { spec: SpecPlan::Training(spec), .. }) => spec.au_threshold_ratio,
        _ => return Err(anyhow::anyhow!("a training run has no training member")),
    };
    finish(probe, Parameter::Accelerators, Criterion::Au { threshold_ratio }, &levels, &knee, run.shared)
}

fn kv(KvSearch { mut run, knee, share, virtual_baselines }: KvSearch) -> anyhow::Result<Request> {
    metric(&knee, &["goodput"])?;
    if run.inference.rate_scale != 1.0 {
        return Err(searched("--rate-scale"));
    }
    if run.inference.trace.is_some() && run.shared.duration.is_some() {
        return Err(usage(
            "a probe of `search kv` serves its whole trace, so that no request is cut off: cut the trace with --window instead of --duration",
        ));
    }
    run.no_baselines = true;
    let slo = run.inference.slo_ttft.unwrap_or(KvSpec::default().slo_ttft);
    let criterion = Criterion::Goodput { share_ratio: ratio("--share", &share)?, slo_ttft_ns: nanos(slo) };
    let levels = Levels { least: 0.125, most: 64.0, start: 1.0, whole: false };
    let shared = run.shared.clone();
    let request = finish(Probe::Kv(Box::new(run)), Parameter::RateScale, criterion, &levels, &knee, shared)?;
    Ok(Request { virtual_baselines, ..request })
}

fn rag(RagSearch { mut run, knee, share }: RagSearch) -> anyhow::Result<Request> {
    metric(&knee, &["goodput"])?;
    if run.rate.is_some() {
        return Err(searched("--rate"));
    }
    if run.inference.rate_scale != 1.0 {
        return Err(searched("--rate-scale"));
    }
    run.shared.duration.get_or_insert(PROBE);
    let slo = run.inference.slo_ttft.unwrap_or(KvSpec::default().slo_ttft);
    let criterion = Criterion::Goodput { share_ratio: ratio("--share", &share)?, slo_ttft_ns: nanos(slo) };
    let start = 4.0 * f64::from(run.inference.workers.max(1));
    let levels = Levels { least: 0.5, most: 10_000.0, start, whole: false };
    let shared = run.shared.clone();
    finish(Probe::Rag(run), Parameter::QueryRate, criterion, &levels, &knee, shared)
}

fn ops(OpsSearch { mut run, knee, over, slo, growth }: OpsSearch) -> anyhow::Result<Request> {
    let named = metric(&knee, &["p99", "throughput"])?;
    let criterion = match (named, &slo) {
        (Some("p99") | None, Some(slo)) => {
            let time = parse_duration(slo).ok().filter(|time| !time.is_zero());
            let time = time.ok_or_else(|| usage(format!("--slo {slo} is no time above zero: write it like 10ms")))?;
            Criterion::P99 { slo_ns: nanos(time) }
        }
        (Some("p99"), None) => return Err(usage("--metric p99 needs its bound: give --slo, e.g. --slo 10ms")),
        (Some(_), Some(_)) => return Err(usage("--slo bounds p99: leave it out for --metric throughput")),
        _ => Criterion::Throughput { growth_ratio: ratio("--growth", &growth)? },
    };
    if run.size.contains(',') && !run.size.contains('(') {
        return Err(usage(format!("--size {} is a sweep: a search has one size", run.size)));
    }
    if run.count.is_none() {
        run.shared.duration.get_or_insert(PROBE);
    }
    let (parameter, levels) = match over.as_str() {
        "depth" if run.rate.is_some() => return Err(usage("--rate is an open loop: search it with --over rate")),
        "depth" if run.depth.is_some() => return Err(searched("--depth")),
        "depth" => (Parameter::Depth, Levels { least: 1.0, most: 4096.0, start: 1.0, whole: true }),
        "rate" if run.rate.is_some() => return Err(searched("--rate")),
        "rate" => (Parameter::Rate, Levels { least: 1.0, most: 1e6, start: 100.0, whole: false }),
        other => return Err(usage(format!("--over {other} is not searched: it is depth or rate"))),
    };
    let shared = run.shared.clone();
    let probe = if parameter == Parameter::Rate { Probe::Rate(run) } else { Probe::Depth(run) };
    finish(probe, parameter, criterion, &levels, &knee, shared)
}

fn finish(
    probe: Probe,
    parameter: Parameter,
    criterion: Criterion,
    levels: &Levels,
    knee: &KneeArgs,
    shared: SharedArgs,
) -> anyhow::Result<Request> {
    let resolution_ratio = match &knee.resolution {
        Some(text) => Some(ratio("--resolution", text)?),
        None if levels.whole => None,
        None => Some(0.05),
    };
    let least = knee.min.unwrap_or(levels.least);
    let most = knee.max.unwrap_or_else(|| levels.most.max(least));
    let spec = Spec {
        domain: Domain { least, most, whole: levels.whole, resolution_ratio },
        start: knee.start.unwrap_or_else(|| levels.start.max(least).min(most)),
        confirmations: knee.confirmations,
        most_probes: knee.most_probes,
    };
    let search = Search::new(spec).map_err(|error| in_flags(error, &spec))?;
    let request = Request {
        probe,
        parameter,
        criterion,
        spec,
        search,
        virtual_baselines: false,
        out: shared.out,
        resume: knee.resume,
        format: shared.format,
        quiet: shared.quiet,
        dry_run: shared.dry_run,
        keep_data: shared.keep_data,
    };
    // What makes no run makes no search, and is said before anything is done.
    request.at(least)?;
    Ok(request)
}

/// A search that makes no sense, in the user's words.
fn in_flags(error: SearchError, spec: &Spec) -> anyhow::Error {
    let Domain { least, most, .. } = spec.domain;
    usage(match error {
        SearchError::Empty { .. } => format!("--max {most} is below --min {least}: there is no level to search"),
        SearchError::Level(level) => format!("a level of {level} cannot be run: --min, --max and --start are above 0"),
        SearchError::Fraction(level) => format!("{level} is no whole number: --min, --max and --start count things"),
        SearchError::Resolution(ratio) => format!(
            "a resolution of {} cannot be searched to: give --resolution from 0.1% to 100%",
            gpufeed_profiles::units::three_digits(ratio)
        ),
        SearchError::Confirmations(n) => {
            format!("{n} confirmations have no majority: give --confirmations an odd number such as 3")
        }
        SearchError::NoProbes => "a search without probes finds nothing: give --most-probes at least 1".to_owned(),
        SearchError::NoResolution => error.to_string(),
    })
}

/// The metric by name, if one was given that there is.
fn metric<'a>(knee: &'a KneeArgs, known: &[&str]) -> anyhow::Result<Option<&'a str>> {
    match knee.metric.as_deref() {
        Some(name) if !known.contains(&name) => {
            Err(usage(format!("--metric {name} is unknown here: it is {}", known.join(" or "))))
        }
        name => Ok(name),
    }
}

fn searched(flag: &str) -> anyhow::Error {
    usage(format!("{flag} is what is searched: bound it with --min and --max instead"))
}

/// A share such as `5%` or `0.05`.
fn ratio(flag: &str, text: &str) -> anyhow::Result<f64> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let ratio = match text.strip_suffix('%') {
        Some(percent) => number(percent).map(|percent| percent / 100.0),
        None => number(text),
    };
    let zero = if flag == "--resolution" { "is never reached" } else { "decides nothing" };
    match ratio {
        Some(0.0) => Err(usage(format!("{flag} {text} {zero}: it must be above 0 and at most 100%"))),
        Some(ratio) if ratio > 0.0 && ratio <= 1.0 => Ok(ratio),
        _ => Err(usage(format!("{flag} {text} is no share above 0 and at most 100%: write it like 5% or 0.05"))),
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Probe {
    const fn workload(&self) -> &'static str {
        match self {
            Self::Training(_) => "training",
            Self::Kv(_) => "kv",
            Self::Rag(_) => "rag",
            Self::Depth(_) | Self::Rate(_) => "ops",
        }
    }

    /// The ordinary run that tries a level.
    fn at(&self, level: f64) -> anyhow::Result<Plan> {
        let count = level as u32;
        let workload = match self {
            Self::Training(args) => WorkloadArgs::Training(TrainingArgs { accelerators: count, ..args.clone() }),
            Self::Kv(args) => {
                let mut args = KvArgs::clone(args);
                args.inference.rate_scale = level;
                WorkloadArgs::Kv(Box::new(args))
            }
            Self::Rag(args) => WorkloadArgs::Rag(RagArgs { rate: Some(level), ..args.clone() }),
            Self::Depth(args) => WorkloadArgs::Ops(OpsArgs { depth: Some(vec![count]), ..args.clone() }),
            Self::Rate(args) => WorkloadArgs::Ops(OpsArgs { rate: Some(level), ..args.clone() }),
        };
        let mut plan = resolve(workload)?.plan;
        for member in &mut plan.members {
            match &mut member.spec {
                // All of the trace is served: a window's end would cut requests off, and count them as lost.
                SpecPlan::Kv(_) => member.duration = None,
                SpecPlan::Rag(rag) => {
                    let seconds = member.duration.take().unwrap_or(PROBE).as_secs_f64();
                    rag.spec.queries.get_or_insert((level * seconds / rag.spec.time_scale).ceil() as u64);
                }
                SpecPlan::Training(_) | SpecPlan::Ops(_) => {}
            }
        }
        // Blocks of one probe would be hits of the next; other data sets are the same for all.
        let shared_data = !matches!(self, Self::Kv(_));
        (plan.run.reuse, plan.run.keep_data) = (shared_data || plan.run.reuse, shared_data || plan.run.keep_data);
        Ok(plan)
    }
}

impl Request {
    /// The workload's name.
    pub(super) const fn workload(&self) -> &'static str {
        self.probe.workload()
    }

    /// The ordinary run that tries a level.
    ///
    /// # Errors
    /// When the level makes no run.
    pub(super) fn at(&self, level: f64) -> anyhow::Result<Plan> {
        self.probe.at(level)
    }

    /// Everything that decides what is found.
    ///
    /// # Errors
    /// As [`Self::at`].
    pub(super) fn resolved(&self) -> anyhow::Result<Resolved<'_>> {
        Ok(Resolved {
            workload: self.workload(),
            parameter: self.parameter,
            virtual_baselines: self.virtual_baselines,
            spec: &self.spec,
            criterion: &self.criterion,
            plan: self.at(self.spec.domain.least)?,
        })
    }
}

impl Criterion {
    /// Its name in reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Au { .. } => "au",
            Self::Goodput { .. } => "goodput",
            Self::P99 { .. } => "p99",
            Self::Throughput { .. } => "throughput",
        }
    }

    /// What a level does that passes.
    pub(super) fn words(self) -> String {
        let percent = |ratio: f64| format!("{}%", (ratio * 1e4).round() / 100.0);
        let time = |ns: u64| show_duration(Duration::from_nanos(ns));
        match self {
            Self::Au { threshold_ratio } => format!("accelerator utilization of at least {}", percent(threshold_ratio)),
            Self::Goodput { share_ratio, slo_ttft_ns } => format!(
                "at least {} of what is offered inside its objectives, a first token within {} among them",
                percent(share_ratio),
                time(slo_ttft_ns)
            ),
            Self::P99 { slo_ns } => format!("p99 of response time at most {}", time(slo_ns)),
            Self::Throughput { growth_ratio } => {
                format!("throughput that still grows, by at least {} to some higher level", percent(growth_ratio))
            }
        }
    }
}
