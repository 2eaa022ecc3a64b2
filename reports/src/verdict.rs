//! What limited a run, and one sentence for each member of it.

use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::{ClosedOrOpen, Kv, Member, Operation, Rag, RunReport, Training, Verdict};

use crate::figures::{count, errors, goal, machine, nanos, number, percent, rate, times, typical_words};

/// Share of its CPU from which a client counts as the limit.
const CPU_LIMIT: f64 = 0.90;
/// Share of time spent waiting for a processor from which a client counts as the limit.
const RUN_WAIT_LIMIT: f64 = 0.10;
/// Share of time taken by the hypervisor from which a client counts as the limit.
const STEAL_LIMIT: f64 = 0.05;
/// Share of its calibrated ceiling from which a client counts as the limit.
const CEILING_LIMIT: f64 = 0.80;
/// Share of the offered load from which the storage kept up.
const KEPT_UP: f64 = 0.98;
/// Schedule slip below which no client is blamed, in nanoseconds: the slip an unsaturated client is allowed at p99.
const SLIP_FLOOR_NS: f64 = 2e6;
/// Relative difference up to which two times are called the same.
const SAME: f64 = 0.02;
/// Difference from which utilization and time not spent waiting need explaining side by side.
const LEFT_OUT: f64 = 0.03;
/// Slip from which a client is blamed, as a share of the service time it distorts.
const SLIP_SHARE: f64 = 0.10;

/// What the verdict is decided by (design §3, rule 7).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Inputs {
    /// Server and client shared this machine.
    pub self_test: bool,
    /// CPU seconds per core and second of the busiest client's measuring cores.
    pub cpu_ratio: f64,
    /// Share of time runnable but waiting for a processor.
    pub run_wait_ratio: Option<f64>,
    /// Share of time taken by the hypervisor.
    pub steal_ratio: Option<f64>,
    /// Payload moved per second.
    pub bytes_per_s: f64,
    /// What this client can move when the target costs nothing.
    pub ceiling_bytes_per_s: Option<f64>,
    /// Operations per second.
    pub ops_per_s: f64,
    /// What this client can issue when the target costs nothing.
    pub ceiling_ops_per_s: Option<f64>,
    /// How load was offered.
    pub load: ClosedOrOpen,
    /// Load offered per second where a model or a trace decides; any unit, the same as `achieved_per_s`. An open loop's
    /// own rate serves where this is `None`.
    pub offered_per_s: Option<f64>,
    /// Load achieved per second.
    pub achieved_per_s: f64,
    /// 99th percentile of schedule slip.
    pub slip_p99_ns: Option<u64>,
    /// Median service time, which the slip is held against.
    pub service_p50_ns: Option<u64>,
}

impl Inputs {
    fn offered(&self) -> Option<f64> {
        let of_loop = match self.load {
            ClosedOrOpen::Open { offered_per_s } => offered_per_s,
            ClosedOrOpen::Closed => None,
        };
        self.offered_per_s.or(of_loop).filter(|offered| *offered > 0.0)
    }

    fn kept_up(&self) -> bool {
        self.offered().is_some_and(|offered| self.achieved_per_s >= KEPT_UP * offered)
    }

    /// The larger of the two shares of the calibrated ceiling, with what it is a share of.
    fn ceiling(&self) -> Option<(f64, String)> {
        let bytes = self
            .ceiling_bytes_per_s
            .filter(|c| *c > 0.0)
            .map(|c| (self.bytes_per_s / c, format!("{} of the {} it can move", rate(self.bytes_per_s), rate(c))));
        let ops = self
            .ceiling_ops_per_s
            .filter(|c| *c > 0.0)
            .map(|c| (self.ops_per_s / c, format!("{}/s of the {}/s it can issue", number(self.ops_per_s), number(c))));
        [bytes, ops].into_iter().flatten().max_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// Why this client may have been the limit, each as a clause after "this client"; none if it was not.
    fn client_limits(&self) -> Vec<String> {
        let mut limits = Vec::new();
        if self.cpu_ratio >= CPU_LIMIT {
            limits.push(format!("used {} of its CPU", percent(self.cpu_ratio)));
        }
        if let Some(wait) = self.run_wait_ratio.filter(|r| *r >= RUN_WAIT_LIMIT) {
            limits.push(format!("waited for a processor {} of the time", percent(wait)));
        }
        if let Some(steal) = self.steal_ratio.filter(|r| *r >= STEAL_LIMIT) {
            limits.push(format!("lost {} of the time to its hypervisor", percent(steal)));
        }
        if let Some((_, what)) = self.ceiling().filter(|(share, _)| *share >= CEILING_LIMIT) {
            limits.push(format!("reached {what}"));
        }
        // Closed loops have no schedule to slip from. An open loop that is offered more than the storage serves slips as
        // well once all lanes are busy; the other checks have to tell that apart, so slip speaks only where load was met.
        if let (ClosedOrOpen::Open { .. }, Some(slip)) = (self.load, self.slip_p99_ns) {
            let allowed = (self.service_p50_ns.unwrap_or(0) as f64 * SLIP_SHARE).max(SLIP_FLOOR_NS);
            if self.kept_up() && slip as f64 > allowed {
                limits.push(format!("sent operations {} late at p99", show_nanos(slip as f64)));
            }
        }
        limits
    }
}

fn listed(clauses: &[String]) -> String {
    match clauses {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

/// Decides what limited a run and says so in one sentence that begins with the verdict's name.
#[must_use]
pub fn verdict(inputs: &Inputs) -> (Verdict, String) {
    let limits = inputs.client_limits();
    if inputs.self_test {
        let aside = match limits.as_slice() {
            [] => format!("the client used {} of its CPU", percent(inputs.cpu_ratio)),
            limits => format!("this client {}", listed(limits)),
        };
        let text =
            "Self-test: server and client shared this machine, so the figures test the tool, not a storage product";
        return (Verdict::SelfTest, format!("{text}; {aside}"));
    }
    if !limits.is_empty() {
        let text = "Client-limited: the storage may be faster than these figures, because this client";
        return (Verdict::ClientLimited, format!("{text} {}", listed(&limits)));
    }
    if inputs.kept_up() {
        let asked = number(inputs.offered().unwrap_or_default());
        let text = "Schedule-limited: the storage kept up with all that was asked of it";
        let achieved = number(inputs.achieved_per_s);
        return (Verdict::ScheduleLimited, format!("{text}, {achieved} of {asked} per second"));
    }
    let ceiling = inputs.ceiling().map(|(share, _)| format!(" and {} of what it can reach", percent(share)));
    let text = "Storage-limited: the figures are the storage's own; this client used";
    let cpu = percent(inputs.cpu_ratio);
    (Verdict::StorageLimited, format!("{text} {cpu} of its CPU{}", ceiling.unwrap_or_default()))
}

/// The report's first line: its verdict as a sentence that begins with the verdict's name, ends without a full stop, and
/// says first if the run was cut short.
#[must_use]
pub fn sentence(report: &RunReport) -> String {
    let name = report.verdict.name();
    let detail = report.verdict_detail.trim().trim_end_matches('.');
    let named = detail.get(..name.len()).is_some_and(|head| head.eq_ignore_ascii_case(name));
    let mut sentence = match (named, detail.is_empty()) {
        (true, _) => detail.to_owned(),
        (false, true) => name.to_owned(),
        (false, false) => format!("{name}: {detail}"),
    };
    if let Some(first) = sentence.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    if report.interrupted { format!("Interrupted, results are partial. {sentence}") } else { sentence }
}

/// A member's verdict in one sentence with its figures: its own where the run wrote one.
#[must_use]
pub fn headline(member: &Member) -> String {
    if !member.verdict.trim().is_empty() {
        return member.verdict.trim().trim_end_matches('.').to_owned();
    }
    if let Some(training) = &member.training {
        return of_training(training);
    }
    if let Some(kv) = &member.kv {
        return of_kv(kv);
    }
    if let Some(rag) = &member.rag {
        return of_rag(rag);
    }
    if let Some(checkpoint) = &member.checkpoint {
        let part = |name: &str, part: &Option<gpufeed_schema::CheckpointPart>| {
            part.as_ref().map(|p| format!("{name} at {}, {} s each", rate(p.bytes_per_s), number(p.duration_s)))
        };
        let parts: Vec<String> =
            [part("written", &checkpoint.write), part("restored", &checkpoint.read)].into_iter().flatten().collect();
        if !parts.is_empty() {
            return format!("checkpoints {}", listed(&parts));
        }
    }
    of_operations(&member.operations)
}

/// Share of all accelerator time spent waiting.
pub(crate) fn stalled(training: &Training) -> Option<f64> {
    let total = training.compute_s + training.stall_s;
    (total > 0.0).then(|| training.stall_s / total)
}

/// Why utilization and waiting do not add up to one, where a reader would expect it: the rule leaves out each epoch's
/// first step, which waits for data the longest.
pub(crate) fn left_out(training: &Training) -> Option<String> {
    let (au, stalled) = (training.au_ratio?, stalled(training)?);
    if 1.0 - stalled >= au - LEFT_OUT {
        return None;
    }
    let steps = training.epochs.iter().map(|e| e.steps).max().filter(|steps| *steps > 0)?;
    let steps = match steps {
        1 => "1 step".to_owned(),
        steps => format!("{} steps", count(steps)),
    };
    Some(format!(
        "the rule leaves out each epoch's first step, which waits longest, and epochs here have at most {steps}"
    ))
}

fn of_training(training: &Training) -> String {
    let who = format!("{} emulated {}", training.accelerators, machine(&training.accelerator));
    let (model, read) = (&training.model, rate(training.bytes_per_s));
    let needed = rate(training.needed_bytes_per_s);
    let threshold = goal(training.au_threshold_ratio);
    let them = if training.accelerators == 1 { "it" } else { "them" };
    let they = if training.accelerators == 1 { "it" } else { "they" };
    let waited = stalled(training).map(|s| format!("waited {} of all time", percent(s)));
    match (training.au_ratio, training.passed) {
        (Some(au), Some(true)) => match (left_out(training), waited) {
            (Some(why), Some(waited)) => format!(
                "{who} on {model} {} MLPerf's rule, {} utilization with {threshold} needed, yet {waited}: {why}",
                if training.accelerators == 1 { "passes" } else { "pass" },
                percent(au)
            ),
            _ => format!(
                "storage keeps {who} fed on {model}: {} utilization, {threshold} needed, reading {read}",
                percent(au)
            ),
        },
        (Some(au), _) => {
            let waited = waited.map_or_else(String::new, |waited| format!(", {they} {waited}"));
            format!(
                "storage starves {who} on {model}: {} utilization, {threshold} needed{waited}; storage gave {read} of the \
                 {needed} that would keep {them} busy",
                percent(au)
            )
        }
        (None, _) => format!("{who} on {model} ran too short to judge, no epoch had two steps; storage gave {read}"),
    }
}

fn of_kv(kv: &Kv) -> String {
    let ttft = kv.ttft.summary;
    let mut clauses = Vec::new();
    // Compared at the highest percentile both sides support.
    let against = |base: &gpufeed_schema::Latency| {
        let of = |l: &gpufeed_schema::Latency| [l.p99_ns.map(|v| v as f64), l.p50_ns.map(|v| v as f64), l.mean_ns];
        let mut pairs = of(&ttft).into_iter().zip(of(base));
        pairs.find_map(|(a, b)| Some((a?, b?))).filter(|(a, b)| *a > 0.0 && *b > 0.0)
    };
    clauses.push(match ttft.count {
        1.. => format!("TTFT {}", typical_words(&ttft)),
        0 => "no request got its first token in the window".to_owned(),
    });
    if let Some((ours, theirs)) = kv.baselines.no_cache.as_ref().and_then(|b| against(&b.ttft.summary)) {
        clauses.push(if (theirs / ours - 1.0).abs() < SAME {
            "the same as recomputing".to_owned()
        } else if theirs > ours {
            format!("{} shorter than recomputing", times(theirs / ours))
        } else {
            format!("{} longer than recomputing", times(ours / theirs))
        });
    }
    if let Some((ours, theirs)) = kv.baselines.ideal_storage.as_ref().and_then(|b| against(&b.ttft.summary)) {
        clauses.push(if (ours / theirs - 1.0).abs() < SAME {
            "the same as on ideal storage".to_owned()
        } else {
            format!("{} that of ideal storage", times(ours / theirs))
        });
    }
    let mut text = clauses.join(", ");
    if kv.gpu.total_ns > 0 {
        let useful =
            kv.gpu.useful_ratio.map_or_else(String::new, |u| format!("useful {} of the time and ", percent(u)));
        let stalled = percent(kv.gpu.storage_stall_ratio);
        text.push_str(&format!("; emulated GPUs {useful}stalled on storage {stalled}"));
    }
    text.push_str(&left_over(kv.failed, kv.unfinished, ["request", "requests"]));
    text.push_str(&overload(kv));
    text
}

/// Share of its time that a pool works at least which has no rest once its first requests are there.
const NEVER_IDLE: f64 = 0.95;
/// Requests in ÷ requests completed from which a queue builds up, rather than some being under way at the end.
const BACKLOG: f64 = 1.05;

/// Whether requests came faster than they can be served: then no TTFT is a figure of the storage alone.
fn overload(kv: &Kv) -> String {
    let at_work = |gpu: &gpufeed_schema::GpuTime| 1.0 - gpu.no_work_ratio - gpu.down_ratio;
    let pools = kv.gpu_pools.iter().map(|pool| at_work(&pool.gpu));
    let busiest = pools.max_by(f64::total_cmp).unwrap_or_else(|| at_work(&kv.gpu));
    let grows = "grows with the length of the run";
    if kv.gpu.total_ns > 0
        && busiest > NEVER_IDLE
        && kv.unfinished > 0
        && kv.requests as f64 > BACKLOG * kv.completed as f64
    {
        return format!("; offered load exceeds what the workers can do on this storage, so TTFT {grows}");
    }
    match kv.load_ratio.filter(|load| *load > 1.0) {
        Some(load) if kv.baselines.no_cache.is_some() => {
            format!("; offered load is {load:.2} of the capacity without the tier, so TTFT of recomputing {grows}")
        }
        _ => String::new(),
    }
}

fn of_rag(rag: &Rag) -> String {
    let mut text = match rag.retrieve_share_ratio {
        Some(share) => format!("retrieval takes {} of the time to first token", percent(share)),
        None => format!("{} queries per second", number(rag.queries_per_s)),
    };
    let (retrieve, ttft) = (rag.retrieve.summary.p50_ns, rag.ttft.summary.p50_ns);
    if retrieve.is_some() && ttft.is_some() {
        text.push_str(&format!(", {} of {} at p50", nanos(retrieve), nanos(ttft)));
    }
    if let Some(recall) = rag.recall_ratio {
        text.push_str(&format!(", recall {}", percent(recall)));
    }
    text.push_str(&left_over(rag.failed, rag.unfinished, ["query", "queries"]));
    text
}

/// `what`: one of them, and several.
fn left_over(failed: u64, unfinished: u64, what: [&str; 2]) -> String {
    let of = |n: u64| format!("{} {}", count(n), what[usize::from(n != 1)]);
    match (failed, unfinished) {
        (0, 0) => String::new(),
        (failed, 0) => format!("; {} failed", of(failed)),
        (0, unfinished) => format!("; {} unfinished at the end", of(unfinished)),
        (failed, unfinished) => format!("; {} failed, {} unfinished at the end", of(failed), count(unfinished)),
    }
}

fn of_operations(operations: &[Operation]) -> String {
    let parts: Vec<String> = operations
        .iter()
        .map(|o| {
            let bytes = if o.bytes_per_s > 0.0 { format!(", {}", rate(o.bytes_per_s)) } else { String::new() };
            let time = match o.response_time.summary.count {
                1.. => format!(", {}", typical_words(&o.response_time.summary)),
                0 => String::new(),
            };
            let failed = match errors(o) {
                0 => String::new(),
                n => format!(", {} failed", count(n)),
            };
            format!("{} {}/s{bytes}{time}{failed}", o.op, number(o.ops_per_s))
        })
        .collect();
    if parts.is_empty() { "no operation completed".to_owned() } else { parts.join("; ") }
}
