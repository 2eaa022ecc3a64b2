//! The page of a plan and of a sweep: the same looks as a report, one file that needs nothing else.

use std::fmt::Write as _;
use std::io::{self, Write};

use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::{CapacityPlan, GridPoint, Sweep, SweepChart, Tool};

use super::axis::{Axis, Scale, Unit};
use super::chart::{Chart, Series};
use super::curves::{abscissas, slot, solid, values};
use super::escape::Text;
use super::{DARK, SCRIPT, STYLE};
use crate::figures::{DASH, number, or_dash, percent, rate, size};

/// Colors of curves in turn.
const SLOTS: [u8; 8] =
    [slot::BLUE, slot::VERMILION, slot::GREEN, slot::PURPLE, slot::AMBER, slot::SKY, slot::GRAY, slot::DARK];

/// Writes the page of a plan.
///
/// # Errors
/// Those of `to`.
pub fn render(plan: &CapacityPlan, to: &mut impl Write) -> io::Result<()> {
    let title = format!("Storage for {} on {} × {}", plan.model, plan.workers * plan.tp, plan.gpu.to_uppercase());
    to.write_all(page(&title, &plan.tool, |page| body(page, plan)).as_bytes())
}

/// Writes the page of a sweep.
///
/// # Errors
/// Those of `to`.
pub fn render_sweep(sweep: &Sweep, to: &mut impl Write) -> io::Result<()> {
    let draw = |page: &mut String| {
        page.push_str(r#"<section><div class="charts">"#);
        for (i, chart) in sweep.charts.iter().enumerate() {
            swept(i, sweep, chart).figure(page);
        }
        page.push_str("</div>");
        let head: Vec<String> = sweep.columns.iter().map(|column| heading(column)).collect();
        let cell = |column: &String, value: &Option<f64>| {
            let word = sweep.words.get(column).zip(*value).and_then(|(words, value)| words.get(value as usize));
            word.cloned().unwrap_or_else(|| show(column, *value))
        };
        let rows: Vec<Vec<String>> =
            sweep.rows.iter().map(|row| sweep.columns.iter().zip(row).map(|(c, v)| cell(c, v)).collect()).collect();
        table(page, "All virtual runs", &head, &rows);
        page.push_str("</section>");
    };
    to.write_all(page(&sweep.title, &sweep.tool, draw).as_bytes())
}

fn page(title: &str, tool: &Tool, body: impl FnOnce(&mut String)) -> String {
    let mut page = String::with_capacity(128 * 1024);
    let _ = write!(
        page,
        concat!(
            "<!DOCTYPE html>\n",
            r#"<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>"#,
            r#"<meta name="color-scheme" content="light dark"/><title>gpufeed plan: {0}</title>"#,
            "<style>{1}\n@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{2}}}}}\n@media screen{{:root[data-theme=dark]{{{2}}}}}</style></head><body>",
            r##"<a class="skip" href="#main">Skip to the plan</a><header><div class="bar-top"><p class="mark">gpufeed</p>"##,
            r#"<button type="button" id="theme" hidden="">Theme</button></div></header><main id="main"><section class="top"><p class="fine">plan, in virtual time</p><h1>{0}</h1>"#,
            r#"<p><span class="chip none">estimated</span></p></section>"#
        ),
        Text(title),
        STYLE,
        DARK
    );
    body(&mut page);
    let _ = write!(
        page,
        r#"</main><footer><p>Written by {} {} ({}).</p></footer><div id="tip" role="status" hidden=""></div><script>{SCRIPT}</script></body></html>"#,
        Text(&tool.name),
        Text(&tool.version),
        Text(&tool.commit)
    );
    page.push('\n');
    page
}

fn table(page: &mut String, caption: &str, head: &[String], rows: &[Vec<String>]) {
    let _ = write!(
        page,
        r#"<div class="scroll" tabindex="0" role="group" aria-label="{0}"><table><caption>{0}</caption><thead><tr>"#,
        Text(caption)
    );
    for (i, name) in head.iter().enumerate() {
        // Over names that begin at the left.
        let looks = if i == 0 { r#" style="text-align:left""# } else { "" };
        let _ = write!(page, r#"<th scope="col"{looks}>{}</th>"#, Text(name));
    }
    page.push_str("</tr></thead><tbody>");
    for row in rows {
        page.push_str("<tr>");
        for (i, cell) in row.iter().enumerate() {
            let _ = match i {
                0 => write!(page, r#"<th scope="row">{}</th>"#, Text(cell)),
                _ => write!(page, r#"<td data-name="{}">{}</td>"#, Text(&head[i]), Text(cell)),
            };
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div>");
}

fn tile(page: &mut String, name: &str, value: &str, aside: &str) {
    let _ = write!(
        page,
        r#"<div class="tile"><dt>{}</dt><dd><strong>{}</strong><span>{}</span></dd></div>"#,
        Text(name),
        Text(value),
        Text(aside)
    );
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn body(page: &mut String, plan: &CapacityPlan) {
    let (demand, required) = (&plan.demand, &plan.required);
    page.push_str(r#"<section><dl class="tiles">"#);
    let share = percent(required.goodput_ratio);
    tile(
        page,
        "Read",
        &or_dash(required.read_bytes_per_s, rate),
        &format!("the least for {share} of ideal goodput; {} asked for on average", rate(demand.read.mean_bytes_per_s)),
    );
    tile(
        page,
        "Write",
        &or_dash(required.write_bytes_per_s, rate),
        &format!("{} asked for on average", rate(demand.write.mean_bytes_per_s)),
    );
    let unknown = required.read_bytes_per_s.is_none() && required.write_bytes_per_s.is_none();
    let any = if unknown { DASH } else { "any" };
    let latency = required.first_byte_p99_ns.map_or(any.to_owned(), |ns| show_nanos(ns as f64));
    tile(page, "First byte, p99", &latency, "the most that is allowed");
    tile(page, "Shared capacity", &size(plan.working_set.shared_tier_bytes), "for 99% of all prefix hits");
    if let Some(nodes) = &plan.nodes {
        let aside = format!("limited by {}; {} of ideal goodput", nodes.limited_by, percent(nodes.goodput_ratio));
        tile(page, "Storage nodes", &nodes.count.to_string(), &aside);
    }
    page.push_str("</dl>");
    for note in &plan.notes {
        let _ = write!(page, r#"<p class="fine">{}.</p>"#, Text(note));
    }
    let head = strings(&[
        "storage",
        "requests/s in SLO",
        "in SLO",
        "TTFT p50",
        "tokens/s",
        "useful",
        "most requests/s in SLO",
        "$ per M tokens",
        "$ at that",
    ]);
    let rows: Vec<Vec<String>> = plan
        .storages
        .iter()
        .map(|line| {
            let figures = &line.figures;
            vec![
                line.name.replace('_', " "),
                number(figures.goodput_per_s),
                percent(line.slo_ratio),
                or_dash(figures.ttft.summary.p50_ns.map(|ns| ns as f64), show_nanos),
                number(figures.output_tokens_per_s),
                or_dash(figures.gpu.useful_ratio, percent),
                or_dash(line.most_requests_per_s, number),
                or_dash(line.dollars_per_million_output_tokens, number),
                or_dash(line.dollars_per_million_output_tokens_at_most, number),
            ]
        })
        .collect();
    table(page, "The same trace on other storage", &head, &rows);
    page.push_str("</section>");
    if !plan.grid.is_empty() {
        page.push_str(r#"<section><h2>Over bandwidth and latency</h2><div class="charts">"#);
        let by_bandwidth = |id: &str, title: &str, unit: Unit, name: &'static str, y: fn(&GridPoint) -> Option<f64>| {
            curves(&plan.grid, id, title, unit, name, y)
        };
        by_bandwidth("tokens", "Output tokens/s", Unit::PerSecond, "output tokens/s", |p| Some(p.output_tokens_per_s))
            .figure(page);
        by_bandwidth("useful", "Useful share of GPU time", Unit::Ratio, "useful", |p| p.useful_ratio).figure(page);
        by_bandwidth("goodput", "Requests/s inside the SLO", Unit::PerSecond, "requests/s", |p| Some(p.goodput_per_s))
            .figure(page);
        by_bandwidth("ttft", "Time to first token, p50", Unit::Nanos, "TTFT", |p| p.ttft_p50_ns.map(|ns| ns as f64))
            .figure(page);
        page.push_str("</div></section>");
    }
    page.push_str(r#"<section><h2>How large a cache has to be</h2><div class="charts">"#);
    working_set(plan).figure(page);
    page.push_str("</div>");
    let tiers: Vec<Vec<String>> = plan
        .working_set
        .points
        .iter()
        .map(|p| (format!("{} of all hits", percent(p.share_ratio)), p.bytes, p.hit_ratio))
        .chain(plan.working_set.tiers.iter().map(|t| (format!("as {} is", t.tier), t.bytes, t.hit_ratio)))
        .map(|(name, bytes, ratio)| vec![name, size(bytes), percent(ratio)])
        .collect();
    table(
        page,
        "Prefix hits by size of one cache for all workers",
        &strings(&["cache", "size", "prefix hits"]),
        &tiers,
    );
    page.push_str(r#"</section><section><h2>How these figures are defined</h2><dl class="words">"#);
    for (word, meaning) in &plan.definitions {
        let _ = write!(page, "<div><dt>{}</dt><dd>{}.</dd></div>", Text(word), Text(meaning));
    }
    let _ = write!(
        page,
        "</dl><p class=\"fine\">Prices: {} a GPU-hour, {} a TB-month. {}.</p>",
        Text(plan.prices.gpu_dollars_per_hour.map_or(DASH.to_owned(), |d| format!("${d}"))),
        Text(format!("${}", plan.prices.storage_dollars_per_tb_month)),
        Text(&plan.prices.source)
    );
    let rows: Vec<Vec<String>> = plan.inputs.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
    table(page, "Inputs of the model", &strings(&["input", "value"]), &rows);
    page.push_str("</section>");
}

/// One curve for each latency of the grid.
fn curves(
    grid: &[GridPoint],
    id: &str,
    title: &str,
    unit: Unit,
    y_name: &'static str,
    y: fn(&GridPoint) -> Option<f64>,
) -> Chart {
    let mut latencies: Vec<u64> = grid.iter().map(|point| point.latency_ns).collect();
    latencies.sort_unstable();
    latencies.dedup();
    let series: Vec<Series> = latencies
        .iter()
        .enumerate()
        .map(|(i, latency)| {
            let points = grid.iter().filter(|p| p.latency_ns == *latency).map(|p| (p.read_bytes_per_s, y(p))).collect();
            let name = format!("first byte after {}", show_nanos(*latency as f64));
            Series { dashed: i >= SLOTS.len(), ..solid(name, SLOTS[i % SLOTS.len()], points) }
        })
        .collect();
    let scale = if unit == Unit::Nanos { Scale::Log } else { Scale::Linear };
    Chart {
        id: format!("grid-{id}"),
        title: title.to_owned(),
        note: "Reads and writes scaled together around what is required.".to_owned(),
        x: Axis::over(Scale::Log, Unit::BytesPerSecond, abscissas(&series)),
        x_name: "bandwidth of reads",
        y: Axis::over(scale, unit, values(&series)),
        y_name,
        series,
        stacked: false,
    }
}

fn working_set(plan: &CapacityPlan) -> Chart {
    let set = &plan.working_set;
    // Tiers are caches too: where all hits come at one size, theirs is the other end of the line.
    let tiers = set.tiers.iter().filter(|tier| tier.bytes > 0).map(|tier| (tier.bytes, tier.hit_ratio));
    let mut sizes: Vec<(u64, f64)> = set.points.iter().map(|p| (p.bytes, p.hit_ratio)).chain(tiers).collect();
    sizes.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    sizes.dedup_by_key(|(bytes, _)| *bytes);
    let points = sizes.into_iter().map(|(bytes, hits)| (bytes as f64, Some(hits))).collect();
    let series = vec![Series { shaded: true, ..solid("prefix hits", slot::BLUE, points) }];
    Chart {
        id: "working-set".to_owned(),
        title: "Prefix hits by size of cache".to_owned(),
        note: "One LRU cache for all workers.".to_owned(),
        x: Axis::over(Scale::Log, Unit::Count, abscissas(&series)),
        x_name: "bytes of the cache",
        y: Axis::over(Scale::Linear, Unit::Ratio, values(&series)),
        y_name: "prefix hits",
        series,
        stacked: false,
    }
}

/// A column's name for people, whose cells carry their units.
#[must_use]
pub fn heading(column: &str) -> String {
    let name = column.strip_suffix("_ns").or_else(|| column.strip_suffix("_ratio")).unwrap_or(column);
    match name {
        "tokens_per_s_per_user" | "tokens_per_s_per_gpu" => axis_name(name).to_owned(),
        "goodput_per_s" => "in SLO/s".to_owned(),
        "g2_bytes" => "host memory".to_owned(),
        _ => {
            let name = name.strip_suffix("_bytes").unwrap_or(name);
            name.replace("_per_", "/").replace('_', " ").replace("ttft", "TTFT")
        }
    }
}

fn unit(column: &str) -> Unit {
    match column {
        name if name.ends_with("_ns") => Unit::Nanos,
        name if name.ends_with("_bytes_per_s") => Unit::BytesPerSecond,
        name if name.ends_with("_ratio") => Unit::Ratio,
        name if name.ends_with("_per_s") || name.contains("_per_s_") => Unit::PerSecond,
        _ => Unit::Count,
    }
}

/// Whole numbers as such.
fn counted(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1000.0 { value.to_string() } else { number(value) }
}

fn show(column: &str, value: Option<f64>) -> String {
    or_dash(value, |value| match column {
        name if name.ends_with("_bytes") => size(value as u64),
        // The heading says that it is a rate.
        name if matches!(unit(name), Unit::Count | Unit::PerSecond) => counted(value),
        name => unit(name).show(value),
    })
}

/// Axis titles live as long as the program, so those of columns that sweeps have are known here.
fn axis_name(column: &str) -> &'static str {
    match column {
        "ttft_p50_ns" => "TTFT p50",
        "ttft_mean_ns" => "mean TTFT",
        "output_tokens_per_s" => "output tokens/s",
        "token_hit_ratio" => "prompt tokens not prefilled",
        "tokens_per_s_per_user" => "tokens/s per user",
        "tokens_per_s_per_gpu" => "tokens/s per GPU",
        "goodput_per_s" => "requests/s inside the SLO",
        "context_tokens" => "tokens of the prompt",
        "block_tokens" => "tokens of a block",
        "g2_bytes" => "host memory per worker, bytes",
        "in_flight" => "objects in flight per worker",
        "rate_scale" => "arrivals, times the trace's",
        _ => "",
    }
}

/// With a capital at its start.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn swept(index: usize, sweep: &Sweep, chart: &SweepChart) -> Chart {
    let at = |name: &String| sweep.columns.iter().position(|column| column == name);
    let fixed = |row: &&Vec<Option<f64>>| {
        chart.fixed.iter().all(|(name, value)| at(name).is_none_or(|i| row[i] == Some(*value)))
    };
    let rows: Vec<&Vec<Option<f64>>> = sweep.rows.iter().filter(fixed).collect();
    let by = chart.by.as_ref().and_then(&at);
    let mut kinds: Vec<f64> = rows.iter().filter_map(|row| by.map_or(Some(0.0), |by| row[by])).collect();
    kinds.sort_by(f64::total_cmp);
    kinds.dedup();
    let (x, y) = (at(&chart.x).unwrap_or(0), at(&chart.y).unwrap_or(0));
    let name = |kind: f64| match &chart.by {
        None => axis_name(&chart.y).to_owned(),
        Some(by) => {
            let word = sweep.words.get(by).and_then(|words| words.get(kind as usize)).cloned();
            word.unwrap_or_else(|| {
                format!("{} {}", by.trim_end_matches("_ratio").replace('_', " "), show(by, Some(kind)))
            })
        }
    };
    let series: Vec<Series> = kinds
        .iter()
        .enumerate()
        .map(|(i, kind)| {
            let own = rows.iter().filter(|row| by.is_none_or(|by| row[by] == Some(*kind)));
            // A logarithmic axis has no zero: what is there without the setting is in the table.
            let points = own.filter_map(|row| Some((row[x].filter(|x| *x > 0.0)?, row[y]))).collect();
            solid(name(*kind), SLOTS[i % SLOTS.len()], points)
        })
        .collect();
    let y_unit = unit(&chart.y);
    let scale = if y_unit == Unit::Nanos { Scale::Log } else { Scale::Linear };
    let held: Vec<String> =
        chart.fixed.iter().map(|(n, v)| format!("{} {}", n.replace('_', " "), counted(*v))).collect();
    let over = axis_name(&chart.x);
    Chart {
        id: format!("sweep-{index}"),
        title: sentence(&format!("{} over {over}", axis_name(&chart.y))),
        note: held.join(", "),
        x: Axis::over(Scale::Log, unit(&chart.x), abscissas(&series)),
        x_name: over,
        y: Axis::over(scale, y_unit, values(&series)),
        y_name: axis_name(&chart.y),
        series,
        stacked: false,
    }
}
