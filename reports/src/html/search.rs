//! A knee search as one HTML file that needs nothing else.

use std::fmt::Write as _;

use gpufeed_schema::{SearchFigures, SearchReport, SearchStatus, SearchedStorage};

use super::axis::{Axis, Scale, Unit};
use super::chart::{Chart, Series};
use super::curves::slot;
use super::escape::Text;
use super::member::capitalized;
use super::{DARK, SCRIPT, STYLE, started};
use crate::figures::{DASH, number};
use crate::search::{figures, level, storage_name};

/// Color of each storage's curve.
fn color(storage: &str) -> u8 {
    match storage {
        "no_cache" => slot::VERMILION,
        "local" => slot::AMBER,
        "ideal_storage" => slot::GREEN,
        _ => slot::BLUE,
    }
}

/// The page.
#[must_use]
pub fn page(report: &SearchReport) -> String {
    let mut page = String::with_capacity(64 * 1024);
    let _ = write!(
        page,
        concat!(
            "<!DOCTYPE html>\n",
            r#"<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>"#,
            r#"<meta name="color-scheme" content="light dark"/><title>gpufeed search {} on {}</title>"#
        ),
        Text(&report.workload),
        Text(&report.target)
    );
    let _ = write!(
        page,
        "<style>{STYLE}\n@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{DARK}}}}}\n@media screen{{:root[data-theme=dark]{{{DARK}}}}}</style></head><body>"
    );
    page.push_str(r##"<a class="skip" href="#main">Skip to the report</a><header><div class="bar-top"><p class="mark">gpufeed</p><nav aria-label="Sections"><a href="#curve">Curve</a><a href="#probes">Probes</a><a href="#plan">Plan</a></nav><button type="button" id="theme" hidden="">Theme</button></div></header><main id="main">"##);
    top(&mut page, report);
    page.push_str(r#"<section id="curve"><h2>Curve</h2>"#);
    if let Some(chart) = chart(report) {
        chart.figure(&mut page);
    } else {
        page.push_str(r#"<p class="fine">A curve needs two levels.</p>"#);
    }
    page.push_str("</section>");
    probes(&mut page, report);
    let plan = serde_json::to_string_pretty(&report.plan).unwrap_or_default();
    let _ = write!(
        page,
        r#"<section id="plan"><h2>Plan</h2><details><summary>The run at the lowest level, every default resolved</summary><pre tabindex="0"><code>{}</code></pre></details></section>"#,
        Text(plan)
    );
    let _ = write!(
        page,
        r#"</main><footer><p>Written by {} {} ({}), search schema {}.</p></footer><div id="tip" role="status" hidden=""></div><script>{SCRIPT}</script></body></html>"#,
        Text(&report.tool.name),
        Text(&report.tool.version),
        Text(&report.tool.commit),
        Text(&report.schema_version)
    );
    page.push('\n');
    page
}

fn top(page: &mut String, report: &SearchReport) {
    let (class, chip) = match report.status {
        SearchStatus::Found => ("good", "found"),
        SearchStatus::Unfinished => ("bad", "unfinished"),
        SearchStatus::AboveHighest => ("warn", "above the highest level"),
        SearchStatus::BelowLowest => ("bad", "below the lowest level"),
        SearchStatus::ClientLimited => ("warn", "client-limited"),
        SearchStatus::OutOfProbes => ("warn", "out of probes"),
    };
    let _ = write!(
        page,
        r#"<section class="top"><p class="fine">search {} on <code>{}</code>, {}</p><h1>{}.</h1><p class="lead">A level passes with {}.</p><p><span class="chip {class}">{chip}</span>"#,
        Text(&report.workload),
        Text(&report.target),
        Text(started(&report.started_at)),
        Text(&report.summary),
        Text(&report.criterion.text)
    );
    if report.workload != "ops" {
        page.push_str(r#"<span class="chip none">accelerators emulated</span>"#);
    }
    page.push_str("</p>");
    if report.storages.len() > 1 {
        let _ = write!(
            page,
            r#"<div class="scroll" tabindex="0" role="group" aria-label="Knees"><table><caption>Knees, side by side</caption><thead><tr><th scope="col">storage</th><th scope="col">time</th><th scope="col">{}</th><th scope="col">per second</th></tr></thead><tbody>"#,
            Text(&report.parameter.unit)
        );
        for storage in &report.storages {
            let _ = write!(
                page,
                r#"<tr><th scope="row">{}</th><td class="text">{}</td><td>{}</td><td>{}</td></tr>"#,
                Text(storage_name(&storage.storage)),
                if storage.virtual_time { "virtual" } else { "measured" },
                Text(knee(storage)),
                Text(storage.knee_per_s.map_or_else(|| DASH.to_owned(), number))
            );
        }
        page.push_str("</tbody></table></div>");
    }
    for note in &report.notes {
        let _ = write!(page, r#"<p class="fine">{}.</p>"#, Text(capitalized(note.trim_end_matches('.'))));
    }
    page.push_str("</section>");
}

/// A storage's knee in words.
fn knee(storage: &SearchedStorage) -> String {
    match (storage.status, storage.knee) {
        (SearchStatus::AboveHighest, Some(at)) => format!("at least {}", level(at)),
        (SearchStatus::BelowLowest, _) => "below the lowest".to_owned(),
        (_, Some(at)) => level(at),
        (_, None) => DASH.to_owned(),
    }
}

/// A kind of curve: what its axis is called, its unit, and its figure.
type Kind = (&'static str, Unit, fn(&SearchFigures) -> Option<f64>);

/// What decides, against what is raised.
fn chart(report: &SearchReport) -> Option<Chart> {
    let (y_name, unit, figure): Kind = match report.criterion.metric.as_str() {
        "au" => ("accelerator utilization", Unit::Ratio, |f| f.au_ratio),
        "goodput" => ("share inside the objectives", Unit::Ratio, |f| f.goodput_ratio),
        "p99" => ("p99 of response time", Unit::Nanos, |f| f.p99_ns.map(|ns| ns as f64)),
        _ => ("operations per second", Unit::PerSecond, |f| f.ops_per_s),
    };
    let (x_name, x_unit) = match report.parameter.name.as_str() {
        "accelerators" => ("accelerators", Unit::Count),
        "rate_scale" => ("times the trace", Unit::Count),
        "rate" => ("offered", Unit::PerSecond),
        _ => ("clients", Unit::Count),
    };
    let curve = |storage: &SearchedStorage| Series {
        name: storage_name(&storage.storage).to_owned(),
        slot: color(&storage.storage),
        dashed: storage.virtual_time,
        shaded: false,
        points: storage.levels.iter().map(|level| (level.level, figure(&level.figures))).collect(),
    };
    let mut series: Vec<Series> = report.storages.iter().map(curve).filter(|s| s.points.len() > 1).collect();
    let xs: Vec<f64> = series.iter().flat_map(|s| s.points.iter().map(|(x, _)| *x)).collect();
    let ends = [xs.iter().copied().fold(f64::INFINITY, f64::min), xs.iter().copied().fold(f64::NEG_INFINITY, f64::max)];
    let bound = match report.criterion.metric.as_str() {
        "p99" => report.criterion.threshold_ns.map(|ns| ns as f64),
        "throughput" => None,
        _ => report.criterion.threshold_ratio,
    };
    if series.is_empty() {
        return None;
    }
    if let Some(bound) = bound {
        let points = ends.map(|x| (x, Some(bound))).to_vec();
        let name = "what a level has to do".to_owned();
        series.push(Series { name, slot: slot::PURPLE, dashed: true, shaded: false, points });
    }
    let ys: Vec<f64> = series.iter().flat_map(|s| s.points.iter().filter_map(|(_, y)| *y)).collect();
    let y = match unit {
        Unit::Ratio => Axis::fixed(unit, 0.0, 1.0),
        Unit::Nanos => Axis::over(Scale::Log, unit, ys),
        _ => Axis::over(Scale::Linear, unit, ys),
    };
    Some(Chart {
        id: "knee".to_owned(),
        title: capitalized(y_name),
        note: report.summary.clone(),
        x: Axis::over(Scale::Log, x_unit, xs),
        x_name,
        y,
        y_name,
        series,
        stacked: false,
    })
}

fn probes(page: &mut String, report: &SearchReport) {
    page.push_str(r#"<section id="probes"><h2>Probes</h2><p class="fine">Each on the measured target is an ordinary run with a report of its own.</p>"#);
    for storage in report.storages.iter().filter(|storage| !storage.probes.is_empty()) {
        let name = storage_name(&storage.storage);
        let _ = write!(
            page,
            r#"<div class="scroll" tabindex="0" role="group" aria-label="{0}"><table><caption>{1}</caption><thead><tr><th scope="col">probe</th><th scope="col">{2}</th><th scope="col">verdict</th><th scope="col">figures</th></tr></thead><tbody>"#,
            Text(name),
            Text(capitalized(name)),
            Text(&report.parameter.unit)
        );
        for (i, probe) in storage.probes.iter().enumerate() {
            let passed = if probe.passed { "passes" } else { "does not pass" };
            let number = i + 1;
            let place = match &probe.directory {
                Some(directory) => format!(r#"<a href="{0}/report.html">{number}</a>"#, Text(directory)),
                None => number.to_string(),
            };
            let _ = write!(
                page,
                r#"<tr><th scope="row">{place}</th><td>{}</td><td class="text">{passed}</td><td class="text">{}</td></tr>"#,
                Text(level(probe.level)),
                Text(figures(&probe.figures))
            );
        }
        page.push_str("</tbody></table></div>");
    }
    page.push_str("</section>");
}
