//! The top of a report as one SVG file, for a README: verdict, headline figures and two charts. Text and paths only.

use std::fmt::Write as _;
use std::io::Write;

use gpufeed_schema::RunReport;

use super::chart::{Chart, MOST_POINTS};
use super::escape::Text;
use super::gpu::partition_over_time;
use super::member::{accelerators_over_time, latency_by_percentile, title};
use super::{DARK, STYLE, key_figure, started};
use crate::verdict::sentence;

const WIDTH: u32 = 1200;
const EDGE: u32 = 36;
/// Most members with a card.
const MOST_CARDS: usize = 4;

/// Rules of its own, beside the colors and charts of the page's.
const RULES: &str = concat!(
    "svg{font-family:system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif}text{fill:var(--ink)}",
    ".paper{fill:var(--bg);stroke:var(--rule)}.box{fill:var(--card);stroke:var(--rule)}",
    ".h1{font-size:25px;font-weight:650}.h3{font-size:15px;font-weight:650}.big{font-size:30px;font-weight:650}",
    ".name{font-size:14px;font-weight:600}.soft{font-size:13px;fill:var(--soft)}",
    ".good{font-size:13px;font-weight:600;fill:var(--good)}.bad{font-size:13px;font-weight:600;fill:var(--bad)}"
);

/// Writes the picture. Nothing in it comes from anywhere but the report.
///
/// # Errors
/// Those of `to`.
pub fn render(report: &RunReport, to: &mut impl Write) -> std::io::Result<()> {
    to.write_all(picture(report).as_bytes())
}

fn picture(report: &RunReport) -> String {
    let mut body = String::new();
    let run = &report.run;
    let mut y = 44;
    let mut from = format!("gpufeed run {} on {}, {}", run.workload, run.target, started(&run.started_at));
    if report.members.iter().any(|m| m.training.is_some() || m.kv.is_some() || m.rag.is_some()) {
        from.push_str(" · storage measured, accelerators emulated");
    }
    if run.scaled {
        from.push_str(" · scaled");
    }
    text(&mut body, "soft", EDGE, y, &from);
    let verdict = sentence(report);
    let (first, rest) = verdict.split_once("; ").unwrap_or((&verdict, ""));
    y += 8;
    for line in lines(first, 80) {
        y += 32;
        text(&mut body, "h1", EDGE, y, &line);
    }
    if !rest.is_empty() {
        y += 28;
        text(&mut body, "soft", EDGE, y, &format!("{}.", super::member::capitalized(rest)));
    }
    y += 24;
    cards(&mut body, report, y);
    y += 118 + 40;
    let charts = charts(report);
    for (i, chart) in charts.iter().enumerate() {
        let x = EDGE + i as u32 * (WIDTH / 2 - EDGE / 2);
        text(&mut body, "h3", x, y, &chart.title);
        legend(&mut body, chart, x, y + 24);
        let (drawing, (width, height)) = chart.wide();
        let _ = write!(
            body,
            r#"<svg x="{x}" y="{}" width="{width}" height="{height}" viewBox="0 0 {width} {height}">{drawing}</svg>"#,
            y + 34
        );
    }
    if let Some(height) = charts.iter().map(|c| c.wide().1.1).max() {
        y += 34 + height;
    }
    let height = y + 28;
    let colors = STYLE.split("\n*{").next().unwrap_or_default();
    let of_charts = STYLE.lines().filter(|l| l.starts_with("svg ") || l.starts_with(".c0{"));
    let of_charts: String = of_charts.collect();
    format!(
        concat!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" aria-label="{2}">"#,
            "<style>{3}@media (prefers-color-scheme:dark){{:root{{{4}}}}}{5}{6}</style>",
            r#"<rect class="paper" x="0.5" y="0.5" width="{7}" height="{8}" rx="10"/>{9}</svg>"#,
            "\n"
        ),
        WIDTH,
        height,
        Text(&verdict),
        colors,
        DARK,
        of_charts,
        RULES,
        WIDTH - 1,
        height - 1,
        body
    )
}

fn text(body: &mut String, class: &str, x: u32, y: u32, words: &str) {
    let _ = write!(body, r#"<text class="{class}" x="{x}" y="{y}">{}</text>"#, Text(words));
}

/// Words in lines of at most `most` letters; a longer word has a line of its own.
fn lines(words: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn cards(body: &mut String, report: &RunReport, y: u32) {
    let members: Vec<_> = report.members.iter().take(MOST_CARDS).collect();
    let n = members.len().max(1) as u32;
    let width = (WIDTH - 2 * EDGE - 16 * (n - 1)) / n;
    for (i, member) in members.into_iter().enumerate() {
        let x = EDGE + i as u32 * (width + 16);
        let (value, name, passed) = key_figure(member);
        let _ = write!(body, r#"<rect class="box" x="{x}" y="{y}" width="{width}" height="118" rx="10"/>"#);
        text(body, "name", x + 18, y + 30, &title(&member.name));
        match passed {
            Some(true) => text(body, "good", x + width - 56, y + 30, "pass"),
            Some(false) => text(body, "bad", x + width - 56, y + 30, "fail"),
            None => {}
        }
        text(body, "big", x + 18, y + 70, &value);
        text(body, "soft", x + 18, y + 98, &name);
    }
}

/// What GPUs did over time, and latency by percentile of the busiest member; what there is of them.
fn charts(report: &RunReport) -> Vec<Chart> {
    let members = &report.members;
    let gpus = members.iter().find_map(|m| {
        let timeline = m.kv.as_ref().map(|kv| &kv.timeline).or_else(|| m.rag.as_ref().map(|rag| &rag.timeline))?;
        let chart = partition_over_time("gpu", m.duration_s, timeline, None, MOST_POINTS / 2);
        Some(Chart { title: format!("{}: {}", title(&m.name), chart.title), ..chart })
    });
    let accelerators =
        || members.iter().find_map(|m| Some(accelerators_over_time("au", m.training.as_ref()?, MOST_POINTS)));
    let samples = |m: &&gpufeed_schema::Member| m.operations.iter().map(|o| o.count).sum::<u64>();
    let latency = members.iter().max_by_key(samples).map(|m| {
        let chart = latency_by_percentile("latency", &m.operations);
        Chart { title: format!("{}: {}", title(&m.name), chart.title.to_lowercase()), ..chart }
    });
    let left = gpus.filter(|chart| !chart.is_empty()).or_else(accelerators);
    [left, latency].into_iter().flatten().filter(|chart| !chart.is_empty()).collect()
}

fn legend(body: &mut String, chart: &Chart, x: u32, y: u32) {
    let mut x = x;
    for series in &chart.series {
        let (slot, dash) = (series.slot, if series.dashed { " dash" } else { "" });
        let _ = if chart.stacked {
            write!(body, r#"<rect class="solid c{slot}" x="{x}" y="{}" width="12" height="12" rx="3"/>"#, y - 10)
        } else {
            write!(body, r#"<path class="line{dash} c{slot}" d="M{x} {0}h22"/>"#, y - 4)
        };
        let gap = if chart.stacked { 18 } else { 28 };
        text(body, "soft", x + gap, y, &series.name);
        x += gap + 8 * series.name.chars().count() as u32 + 14;
    }
}
