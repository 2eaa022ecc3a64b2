//! The partition of GPU time: bars, and a stack over time.

use std::fmt::Write as _;

use gpufeed_schema::{GpuPoint, GpuTime};

use super::axis::{Axis, Scale, Unit};
use super::chart::{Chart, Series, bar};
use super::curves::{over_time, slot, solid, values};
use super::escape::Text;
use crate::figures::{number, percent, share};

/// A run that took so many times longer than its GPUs' time line had its time scaled.
const SCALED: f64 = 1.2;

/// One cell's share of a step.
type Share = fn(&GpuPoint) -> f64;

/// The cells of the partition: name, color, share.
fn cells(gpu: &GpuTime) -> [(&'static str, u8, f64); 7] {
    [
        ("prefill", slot::BLUE, gpu.prefill_ratio),
        ("decode", slot::GREEN, gpu.decode_ratio),
        ("recompute", slot::AMBER, gpu.recompute_ratio),
        ("storage stall", slot::VERMILION, gpu.storage_stall_ratio),
        ("transfer stall", slot::PURPLE, gpu.transfer_stall_ratio),
        ("no work", slot::GRAY, gpu.no_work_ratio),
        ("down", slot::DARK, gpu.down_ratio),
    ]
}

/// Bars of the partition, one for each way the same work was done.
pub(super) fn partition(page: &mut String, rows: &[(&str, &GpuTime)]) {
    let rows: Vec<_> = rows.iter().filter(|(_, gpu)| gpu.total_ns > 0).collect();
    if rows.is_empty() {
        return;
    }
    let of_use = rows.iter().any(|(_, gpu)| gpu.useful_ratio.is_some());
    page.push_str(concat!(
        r#"<h3>Where GPU time goes</h3><p class="fine">Emulated GPUs; their times are estimates of the model whose inputs "#,
        r#"are listed below. "#
    ));
    page.push_str(if of_use {
        "<em>Useful</em> is the busy time ideal storage would need for the same completed work, of the time with work to \
         do; <em>busy</em> counts recomputing as work, so a starved GPU can look busy."
    } else {
        "<em>Busy</em> is all but stalls and no work."
    });
    page.push_str(concat!(
        r#"</p><div class="scroll" tabindex="0" role="group" aria-label="Shares of time"><table class="bars"><caption class="unseen">Partition of GPU time</caption><thead><tr><th scope="col">storage</th>"#,
        r#"<th scope="col" class="wide-cell">share of GPU time</th>"#
    ));
    page.push_str(if of_use { r#"<th scope="col">useful</th>"# } else { "" });
    page.push_str(r#"<th scope="col">busy</th></tr></thead><tbody>"#);
    let used: Vec<bool> = (0..7).map(|i| rows.iter().any(|(_, gpu)| cells(gpu)[i].2 > 0.0)).collect();
    for (name, gpu) in &rows {
        let _ = write!(page, r#"<tr><th scope="row">{}</th><td class="wide-cell">"#, Text(name));
        stacked_bar(page, &cells(gpu));
        page.push_str("</td>");
        if of_use {
            let _ = write!(page, r#"<td data-name="useful">{}</td>"#, Text(share(gpu.useful_ratio)));
        }
        let _ = write!(page, r#"<td data-name="busy">{}</td></tr>"#, Text(percent(gpu.busy_ratio)));
    }
    page.push_str("</tbody></table></div>");
    let legend: Vec<_> =
        cells(rows[0].1).into_iter().zip(used).filter(|(_, used)| *used).map(|(cell, _)| cell).collect();
    keys(page, &legend);
}

/// Parts of a whole as one bar.
pub(super) fn stacked_bar(page: &mut String, parts: &[(&str, u8, f64)]) {
    let mut from = 0.0;
    let mut places = Vec::with_capacity(parts.len());
    for (_, slot, ratio) in parts {
        places.push((*slot, from, from + ratio.max(0.0)));
        from += ratio.max(0.0);
    }
    let shown = parts.iter().filter(|(_, _, ratio)| *ratio > 0.0);
    let label = shown.map(|(name, _, ratio)| format!("{name} {}", percent(*ratio))).collect::<Vec<_>>().join(", ");
    bar(page, &label, &places, None);
}

/// Names and shares of the parts of the first bar.
pub(super) fn keys(page: &mut String, parts: &[(&str, u8, f64)]) {
    page.push_str(r#"<ul class="keys">"#);
    for (name, slot, ratio) in parts {
        let _ = write!(
            page,
            r#"<li class="key"><span class="swatch c{slot}"></span>{} <b>{}</b></li>"#,
            Text(name),
            Text(percent(*ratio))
        );
    }
    page.push_str("</ul>");
}

/// The partition in each step; `gpu` adds what all that busy time was good for.
pub(super) fn partition_over_time(
    id: &str,
    duration_s: f64,
    timeline: &[GpuPoint],
    gpu: Option<&GpuTime>,
    most_points: usize,
) -> Chart {
    let group = timeline.len().div_ceil(most_points).max(1);
    let step_s = timeline.get(1).map_or(1.0, |p| p.t_s - timeline[0].t_s);
    let end = timeline.last().map_or(1.0, |p| p.t_s + step_s);
    let figures: [(&str, u8, Share); 7] = [
        ("prefill", slot::BLUE, |p| p.prefill_ratio),
        ("decode", slot::GREEN, |p| p.decode_ratio),
        ("recompute", slot::AMBER, |p| p.recompute_ratio),
        ("storage stall", slot::VERMILION, |p| p.storage_stall_ratio),
        ("transfer stall", slot::PURPLE, |p| p.transfer_stall_ratio),
        ("no work", slot::GRAY, |p| p.no_work_ratio),
        ("down", slot::DARK, |p| p.down_ratio),
    ];
    let series: Vec<Series> = figures
        .into_iter()
        .map(|(name, slot, figure)| {
            // Steps are equally long, so the mean of their shares is the share of their sum.
            let mean = |c: &[GpuPoint]| (c[0].t_s, Some(c.iter().map(figure).sum::<f64>() / c.len() as f64));
            let mut points: Vec<_> = timeline.chunks(group).map(mean).collect();
            // The last step reaches to the end of the window.
            points.extend(points.last().map(|(_, share)| (end, *share)));
            solid(name, slot, points)
        })
        .filter(|s| values(std::slice::from_ref(s)).any(|v| v > 0.0))
        .collect();
    let mut note = "Share of all workers' time in each step.".to_owned();
    if let Some((gpu, useful)) = gpu.and_then(|gpu| Some((gpu, gpu.useful_ratio?))) {
        let _ = write!(
            note,
            " Over the whole run the GPUs were busy {} of the time; of the time with work to do, {} was useful.",
            percent(gpu.busy_ratio),
            percent(useful)
        );
    }
    if end * SCALED < duration_s {
        let _ = write!(note, " Seconds of the emulated GPUs; the run took {} s.", number(duration_s));
    }
    let (scale, unit) = (Scale::Linear, Unit::Ratio);
    let mut chart = over_time(format!("{id}-gpu"), "GPU time over time", note, scale, unit, "GPU time", series);
    chart.x = Axis::fixed(Unit::Seconds, 0.0, end);
    chart.y = Axis::fixed(Unit::Ratio, 0.0, 1.0);
    chart.stacked = true;
    chart
}
