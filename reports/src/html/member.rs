//! The charts of one member.

use std::fmt::Write as _;

use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::{ClosedOrOpen, Latency, Member, Operation, Point, Rag, Series as Steps, Training};

use super::axis::{Axis, Scale, Unit};
use super::chart::{Chart, Series, bar};
use super::curves::{ladder, over_time, percentiles, slot, solid};
use super::escape::Text;
use super::gpu::{keys, partition, partition_over_time, stacked_bar};
use super::{kv, tables};
use crate::figures::{DASH, count, goal, machine, nanos, number, or_dash, percent, rate, share, typical};
use crate::verdict::{headline, left_out, stalled};

/// Most operations that get curves of their own; the table has them all.
const MOST_CURVES: usize = 3;

/// Writes a member's section, with at most `most_points` points for each curve over time.
pub(super) fn section(page: &mut String, index: usize, member: &Member, most_points: usize, single: bool) {
    let id = format!("m{index}");
    let _ = write!(page, r#"<section class="member" id="{id}"><h2>{}</h2>"#, Text(title(&member.name)));
    // One member's headline stands at the top of the page already.
    if !single {
        let _ = write!(page, r#"<p class="lead">{}.</p>"#, Text(capitalized(&headline(member))));
    }
    let _ = write!(page, r#"<p class="fine">{}</p>"#, Text(conditions(member)));
    if let Some(training) = &member.training {
        of_training(page, &id, training, most_points);
    }
    if let Some(run) = &member.kv {
        kv::of_kv(page, &id, member.duration_s, run, most_points);
    }
    if let Some(rag) = &member.rag {
        of_rag(page, &id, member.duration_s, rag, most_points);
    }
    if let Some(checkpoint) = member.checkpoint.as_ref().filter(|c| c.write.is_some() || c.read.is_some()) {
        tables::checkpoint(page, checkpoint);
    }
    page.push_str("<h3>Storage</h3>");
    if member.operations.is_empty() {
        page.push_str(r#"<p class="fine">No operation was issued.</p>"#);
    } else {
        tables::operations(page, &member.operations);
    }
    page.push_str(r#"<div class="charts">"#);
    latency_by_percentile(&id, &member.operations).figure(page);
    for chart in in_time(&id, &member.series, most_points) {
        chart.figure(page);
    }
    page.push_str("</div></section>");
}

/// A sentence with a capital first letter.
pub(super) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A member's name as a title.
pub(super) fn title(name: &str) -> String {
    match name {
        "kv" => "KV cache".to_owned(),
        "rag" => "RAG".to_owned(),
        "ops" => "Plain load".to_owned(),
        other => match other.strip_prefix("ops-").and_then(|rest| rest.rsplit_once("-x")) {
            Some((size, depth)) => format!("{size} at depth {depth}"),
            None => capitalized(other),
        },
    }
}

fn conditions(member: &Member) -> String {
    let load = match member.load {
        ClosedOrOpen::Closed if member.training.is_some() => {
            "closed loop: loaders read ahead as far as their queues allow".to_owned()
        }
        ClosedOrOpen::Closed => "closed loop: an operation starts when one ends".to_owned(),
        ClosedOrOpen::Open { offered_per_s: Some(offered) } => {
            format!("open loop: {} per second offered, whatever the target does", number(offered))
        }
        ClosedOrOpen::Open { offered_per_s: None } => "open loop: the trace decides when work arrives".to_owned(),
    };
    format!("Measured for {} s; {load}.", number(member.duration_s))
}

pub(super) fn latency_by_percentile(id: &str, operations: &[Operation]) -> Chart {
    let mut busiest: Vec<&Operation> = operations.iter().filter(|o| o.count > 0).collect();
    busiest.sort_by_key(|o| std::cmp::Reverse(o.count));
    let slots = [slot::BLUE, slot::VERMILION, slot::GREEN];
    let mut series = Vec::new();
    for (operation, slot) in busiest.iter().take(MOST_CURVES).zip(slots) {
        // The same operation on two targets, or by two carriers, is told apart by how it travelled.
        let alone = operations.iter().filter(|other| other.op == operation.op && other.count > 0).count() == 1;
        let name = if alone { operation.op.clone() } else { format!("{} by {}", operation.op, operation.carrier) };
        series.push(solid(format!("{name} service"), slot, ladder(&operation.service_time)));
        let response = solid(format!("{name} response"), slot, ladder(&operation.response_time));
        series.push(Series { dashed: true, ..response });
    }
    series.retain(shows_median);
    let mut note =
        "Service time runs from the actual send, response time from the intended start; a curve ends where fewer than \
         ten samples lie beyond."
            .to_owned();
    if busiest.len() > MOST_CURVES {
        let _ = write!(note, " The {MOST_CURVES} most frequent operations.");
    }
    percentiles(format!("{id}-latency"), "Latency by percentile", note, "latency", series)
}

/// Several steps as one.
struct Merged {
    t_s: f64,
    span_s: f64,
    ops: f64,
    bytes: f64,
    errors: f64,
    in_flight: f64,
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
    max_ns: Option<u64>,
}

/// At most `most_points` steps, and how many of the original each covers. Counts add up; of latencies the highest
/// stays, since percentiles of steps cannot be merged.
fn merged(steps: &Steps, most_points: usize) -> (Vec<Merged>, usize) {
    let group = steps.points.len().div_ceil(most_points).max(1);
    let merge = |points: &[Point]| Merged {
        t_s: points[0].t_s,
        span_s: steps.step_s * points.len() as f64,
        ops: points.iter().map(|p| p.ops as f64).sum(),
        bytes: points.iter().map(|p| p.bytes as f64).sum(),
        errors: points.iter().map(|p| p.errors as f64).sum(),
        in_flight: points[points.len() - 1].in_flight as f64,
        p50_ns: points.iter().filter_map(|p| p.p50_ns).max(),
        p99_ns: points.iter().filter_map(|p| p.p99_ns).max(),
        max_ns: points.iter().filter_map(|p| p.max_ns).max(),
    };
    (steps.points.chunks(group).map(merge).collect(), group)
}

fn in_time(id: &str, steps: &Steps, most_points: usize) -> Vec<Chart> {
    let (points, group) = merged(steps, most_points);
    if points.len() < 2 || steps.step_s <= 0.0 {
        return Vec::new();
    }
    let span = format!("Steps of {}", show_nanos(steps.step_s * group as f64 * 1e9));
    // A step stands in its middle.
    let at = |p: &Merged| p.t_s + p.span_s / 2.0;
    let end = points.iter().map(|p| p.t_s + p.span_s).fold(0.0, f64::max);
    let curve = |figure: &dyn Fn(&Merged) -> Option<f64>| points.iter().map(|p| (at(p), figure(p))).collect::<Vec<_>>();
    let moves = points.iter().any(|p| p.bytes > 0.0);
    let (title, unit, y_name) = if moves {
        ("Throughput over time", Unit::BytesPerSecond, "payload per second")
    } else {
        ("Operations over time", Unit::PerSecond, "operations per second")
    };
    let through = curve(&|p| Some(if moves { p.bytes } else { p.ops } / p.span_s));
    let through = Series { shaded: true, ..solid("throughput", slot::BLUE, through) };
    let mut charts = vec![over_time(
        format!("{id}-throughput"),
        title,
        format!("{span}, by completion."),
        Scale::Linear,
        unit,
        y_name,
        vec![through],
    )];
    let highest = if group > 1 { "; of each, the highest percentile within" } else { "" };
    let mut latency = vec![
        solid("p50", slot::BLUE, curve(&|p| p.p50_ns.map(|v| v as f64))),
        solid("p99", slot::AMBER, curve(&|p| p.p99_ns.map(|v| v as f64))),
        solid("longest", slot::VERMILION, curve(&|p| p.max_ns.map(|v| v as f64))),
    ];
    latency[2].dashed = true;
    latency.retain(|s| s.points.iter().any(|(_, y)| y.is_some()));
    let few = if latency.len() < 3 { "; a percentile only where a step has operations enough" } else { "" };
    charts.push(over_time(
        format!("{id}-latency-time"),
        "Response time over time",
        format!("{span}{highest}{few}."),
        Scale::Log,
        Unit::Nanos,
        "response time",
        latency,
    ));
    let failed = points.iter().map(|p| p.errors).sum::<f64>();
    let mut flight = vec![solid("in flight", slot::BLUE, curve(&|p| Some(p.in_flight)))];
    if failed > 0.0 {
        flight.push(solid("errors in the step", slot::VERMILION, curve(&|p| Some(p.errors))));
    }
    let note = match failed {
        0.0 => format!("{span}. No operation failed."),
        n => format!("{span}. {} operations failed.", count(n as u64)),
    };
    let (title, y_name) = ("Operations in flight", "operations");
    charts.push(over_time(format!("{id}-flight"), title, note, Scale::Linear, Unit::Count, y_name, flight));
    for chart in &mut charts {
        chart.x = Axis::fixed(Unit::Seconds, 0.0, end);
    }
    charts
}

pub(super) fn tile(page: &mut String, name: &str, value: &str, aside: &str) {
    let _ = write!(
        page,
        r#"<div class="tile"><dt>{}</dt><dd><strong>{}</strong><span>{}</span></dd></div>"#,
        Text(name),
        Text(value),
        Text(aside)
    );
}

/// The highest figure of a latency that the sample supports.
pub(super) fn typical_tile(page: &mut String, what: &str, latency: &Latency, aside: &str) {
    let (name, value) = typical(latency);
    tile(page, &format!("{what}, {name}"), &or_dash(value, show_nanos), aside);
}

fn of_training(page: &mut String, id: &str, training: &Training, most_points: usize) {
    page.push_str(r#"<dl class="tiles">"#);
    let threshold = goal(training.au_threshold_ratio);
    let judged = match training.passed {
        Some(true) => format!("by MLPerf's rule; passes the {threshold} threshold"),
        Some(false) => format!("by MLPerf's rule; misses the {threshold} threshold"),
        None => "too short to judge".to_owned(),
    };
    tile(page, "Accelerator utilization", &share(training.au_ratio), &judged);
    tile(
        page,
        "Samples",
        &format!("{}/s", number(training.samples_per_s)),
        &format!("{} on {} × {} (emulated)", training.model, training.accelerators, machine(&training.accelerator)),
    );
    tile(
        page,
        "Read",
        &rate(training.bytes_per_s),
        &format!("{} would keep all of them busy all the time", rate(training.needed_bytes_per_s)),
    );
    let total = training.compute_s + training.stall_s;
    let idle = stalled(training);
    tile(
        page,
        "Stalled, waiting for data",
        &share(idle),
        &format!("of {} accelerator-seconds, all steps", number(total)),
    );
    page.push_str("</dl>");
    // Where the run passes, its headline says so.
    if let Some(why) = left_out(training).filter(|_| training.passed != Some(true)) {
        let _ = write!(
            page,
            r#"<p class="fine">Utilization and stall do not add up to 100%: {}. Over all steps the accelerators computed {} of the time.</p>"#,
            Text(why),
            Text(share(idle.map(|idle| 1.0 - idle)))
        );
    }
    if let Some(au) = training.au_ratio {
        page.push_str(r#"<div class="scroll" tabindex="0" role="group" aria-label="Shares of time"><table class="bars"><caption>Accelerator utilization against its threshold</caption><tbody>"#);
        let _ = write!(
            page,
            r#"<tr><th scope="row">{}</th><td class="wide-cell">"#,
            Text(format!("{} × {} (emulated)", training.accelerators, machine(&training.accelerator)))
        );
        let label = format!("{} of the time computing, {threshold} needed", percent(au));
        let slot = if training.passed == Some(false) { slot::VERMILION } else { slot::GREEN };
        bar(page, &label, &[(slot, 0.0, au), (slot::GRAY, au, 1.0)], Some(training.au_threshold_ratio));
        let _ = write!(
            page,
            "</td><td>{}</td></tr></tbody></table></div>",
            Text(format!("{}, needs {threshold}", percent(au)))
        );
    }
    page.push_str(r#"<div class="charts">"#);
    accelerators_over_time(id, training, most_points).figure(page);
    let mut steps = vec![solid("step", slot::BLUE, ladder(&training.step_time))];
    steps.retain(shows_median);
    let note = "One step of all accelerators in lock-step, from batch to batch.".to_owned();
    percentiles(format!("{id}-steps"), "Step time by percentile", note, "step time", steps).figure(page);
    page.push_str("</div>");
    if training.epochs.len() > 1 {
        tables::epochs(page, &training.epochs);
    }
}

/// Whether a curve over percentiles reaches the median: less of one says nothing.
pub(super) fn shows_median(series: &Series) -> bool {
    series.points.len() > 1 && series.points.last().is_some_and(|(quantile, _)| *quantile >= 0.499)
}

pub(super) fn accelerators_over_time(id: &str, training: &Training, most_points: usize) -> Chart {
    let group = training.timeline.len().div_ceil(most_points).max(1);
    let step_s = training.timeline.get(1).map_or(1.0, |p| p.t_s);
    let computing: Vec<(f64, Option<f64>)> = training
        .timeline
        .chunks(group)
        .map(|c| {
            let share = c.iter().map(|p| p.compute_ratio).sum::<f64>() / c.len() as f64;
            (c[0].t_s + step_s * c.len() as f64 / 2.0, Some(share))
        })
        .collect();
    let end = training.timeline.last().map_or(1.0, |p| p.t_s + step_s);
    let limit = [0.0, end].map(|t| (t, Some(training.au_threshold_ratio))).to_vec();
    let busy = Series { shaded: true, ..solid("computing", slot::GREEN, computing) };
    let threshold = Series { dashed: true, ..solid("threshold", slot::VERMILION, limit) };
    let note = "Share of accelerator time spent computing; the rest waits for data or for the slowest peer.".to_owned();
    let mut chart = over_time(
        format!("{id}-au"),
        "Accelerators over time",
        note,
        Scale::Linear,
        Unit::Ratio,
        "computing",
        vec![busy, threshold],
    );
    chart.x = Axis::fixed(Unit::Seconds, 0.0, end);
    chart.y = Axis::fixed(Unit::Ratio, 0.0, 1.0);
    chart
}

fn of_rag(page: &mut String, id: &str, duration_s: f64, rag: &Rag, most_points: usize) {
    page.push_str(r#"<dl class="tiles">"#);
    let aside = format!("{} of {} completed", count(rag.completed), count(rag.queries));
    tile(page, "Queries", &format!("{}/s", number(rag.queries_per_s)), &aside);
    let (retrieve, ttft) = (&rag.retrieve.summary, &rag.ttft.summary);
    let p50 = |latency: &Latency| match (latency.p99_ns, latency.p50_ns) {
        (Some(_), p50) => format!("p50 {}", nanos(p50)),
        (None, _) => format!("p99 {DASH}: too few queries"),
    };
    typical_tile(page, "Retrieve", retrieve, &p50(retrieve));
    typical_tile(page, "Time to first token", ttft, &p50(ttft));
    let recall = rag.recall_ratio.map_or_else(
        || "recall not measured: the index holds no real vectors".to_owned(),
        |r| format!("recall {}", percent(r)),
    );
    tile(page, "Retrieve share of TTFT", &share(rag.retrieve_share_ratio), &recall);
    page.push_str("</dl>");
    if let Some(ratio) = rag.retrieve_share_ratio.filter(|r| r.is_finite()) {
        page.push_str("<h3>Time to first token</h3>");
        let parts = [("retrieve", slot::VERMILION, ratio), ("queue and prefill", slot::BLUE, (1.0 - ratio).max(0.0))];
        stacked_bar(page, &parts);
        keys(page, &parts);
    }
    partition(page, &[("this run", &rag.gpu)]);
    page.push_str(r#"<div class="charts">"#);
    let mut series = vec![
        solid("retrieve", slot::VERMILION, ladder(&rag.retrieve)),
        solid("first token", slot::BLUE, ladder(&rag.ttft)),
    ];
    series[0].dashed = true;
    series.retain(shows_median);
    let note = "From a query's arrival to all its passages fetched, and to its first token.".to_owned();
    percentiles(format!("{id}-rag"), "Retrieve and first token by percentile", note, "latency", series).figure(page);
    partition_over_time(id, duration_s, &rag.timeline, None, most_points).figure(page);
    page.push_str("</div>");
    tables::rag_details(page, rag);
    tables::inputs(page, &rag.inputs);
}
