//! Plans and sweeps as tables for people.

use std::fmt::Write as _;

use gpufeed_profiles::units::{Bytes, BytesPerSec, show_nanos, three_digits};
use gpufeed_reports::html::capacity::heading;
use gpufeed_schema::{CapacityPlan, Sweep};

const DASH: &str = "–";

fn or_dash(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.filter(|value| value.is_finite()).map_or_else(|| DASH.to_owned(), show)
}

fn rate(bytes_per_s: f64) -> String {
    BytesPerSec(bytes_per_s).to_string()
}

fn percent(ratio: f64) -> String {
    format!("{}%", three_digits(ratio * 100.0))
}

/// Columns as wide as their widest cell, the first to the left, the others to the right.
fn table(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| wide(column).unwrap_or(0)).collect();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            let _ = if column == 0 { write!(text, "{cell}{pad}") } else { write!(text, "  {pad}{cell}") };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
}

/// A plan.
pub(super) fn plan(plan: &CapacityPlan) -> String {
    let mut text = String::new();
    let dash = || DASH.to_owned();
    let _ = writeln!(
        text,
        "{} on {} × {} of {} ({}), {} requests of {} in {} s\n",
        plan.model,
        plan.workers,
        plan.tp,
        plan.gpu,
        match plan.workers * plan.tp {
            1 => "1 GPU".to_owned(),
            gpus => format!("{gpus} GPUs"),
        },
        plan.requests,
        plan.trace,
        three_digits(plan.duration_s)
    );
    let (demand, required) = (&plan.demand, &plan.required);
    let mut rows = vec![["", "mean", "p99 of 1 s", "busiest 1 s", "least that will do"].map(str::to_owned).to_vec()];
    for (name, demand, least) in
        [("read", demand.read, required.read_bytes_per_s), ("write", demand.write, required.write_bytes_per_s)]
    {
        rows.push(vec![
            name.to_owned(),
            rate(demand.mean_bytes_per_s),
            or_dash(demand.p99_window_bytes_per_s, rate),
            rate(demand.max_window_bytes_per_s),
            or_dash(least, rate),
        ]);
    }
    table(&mut text, &rows);
    let latency = match required.first_byte_p99_ns {
        Some(ns) => format!("at most {}", show_nanos(ns as f64)),
        None if required.read_bytes_per_s.is_none() && required.write_bytes_per_s.is_none() => dash(),
        None => "no limit".to_owned(),
    };
    let _ = writeln!(text, "first byte p99    {latency}");
    let _ = writeln!(text, "shared capacity   {}", Bytes(plan.working_set.shared_tier_bytes));
    if let Some(ratio) = required.together_goodput_ratio {
        let _ = writeln!(text, "all at once       {} of ideal goodput", percent(ratio));
    }
    if let Some(nodes) = &plan.nodes {
        let _ = writeln!(
            text,
            "nodes             {} (read {}, write {}, capacity {}; limited by {}), {} of ideal goodput",
            nodes.count,
            nodes.for_read,
            nodes.for_write,
            nodes.for_capacity.map_or_else(dash, |nodes| nodes.to_string()),
            nodes.limited_by,
            percent(nodes.goodput_ratio)
        );
    }
    text.push('\n');
    let head = ["", "in SLO/s", "in SLO", "TTFT p50", "tokens/s", "useful", "most in SLO/s", "$/M tokens", "$ at that"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for line in &plan.storages {
        let figures = &line.figures;
        rows.push(vec![
            line.name.replace('_', " "),
            three_digits(figures.goodput_per_s),
            percent(line.slo_ratio),
            or_dash(figures.ttft.summary.p50_ns.map(|ns| ns as f64), show_nanos),
            three_digits(figures.output_tokens_per_s),
            or_dash(figures.gpu.useful_ratio, percent),
            or_dash(line.most_requests_per_s, three_digits),
            or_dash(line.dollars_per_million_output_tokens, three_digits),
            or_dash(line.dollars_per_million_output_tokens_at_most, three_digits),
        ]);
    }
    table(&mut text, &rows);
    text.push('\n');
    let set = &plan.working_set;
    let mut rows = vec![["cache of all workers", "size", "prefix hits"].map(str::to_owned).to_vec()];
    for point in &set.points {
        let share = format!("{} of all hits", percent(point.share_ratio));
        rows.push(vec![share, Bytes(point.bytes).to_string(), percent(point.hit_ratio)]);
    }
    for tier in &set.tiers {
        rows.push(vec![format!("as {} is", tier.tier), Bytes(tier.bytes).to_string(), percent(tier.hit_ratio)]);
    }
    table(&mut text, &rows);
    text.push('\n');
    for note in &plan.notes {
        let _ = writeln!(text, "{note}");
    }
    let _ = writeln!(text, "{} virtual runs in {} s", plan.virtual_runs, three_digits(plan.elapsed_s));
    text
}

/// A value of a sweep as its column's unit has it.
fn cell(column: &str, value: Option<f64>) -> String {
    or_dash(value, |value| match column {
        name if name.ends_with("_ns") => show_nanos(value),
        name if name.ends_with("_bytes_per_s") => rate(value),
        name if name.ends_with("_bytes") => Bytes(value as u64).to_string(),
        name if name.ends_with("_ratio") => percent(value),
        _ if value.fract() == 0.0 && value.abs() < 1e9 => format!("{value}"),
        _ => three_digits(value),
    })
}

fn words(sweep: &Sweep, column: &str, value: Option<f64>) -> String {
    let word = sweep.words.get(column).zip(value).and_then(|(words, value)| words.get(value as usize));
    word.cloned().unwrap_or_else(|| cell(column, value))
}

/// A sweep.
pub(super) fn sweep(sweep: &Sweep) -> String {
    let mut text = format!("{}\n\n", sweep.title);
    let mut rows = vec![sweep.columns.iter().map(|column| heading(column)).collect::<Vec<_>>()];
    for row in &sweep.rows {
        rows.push(sweep.columns.iter().zip(row).map(|(column, value)| words(sweep, column, *value)).collect());
    }
    table(&mut text, &rows);
    text
}

/// A sweep as CSV: plain numbers under the names of the columns.
pub(super) fn csv(sweep: &Sweep) -> String {
    let mut text = sweep.columns.join(",") + "\n";
    for row in &sweep.rows {
        let cells: Vec<String> = sweep
            .columns
            .iter()
            .zip(row)
            .map(|(column, value)| match (sweep.words.get(column), value) {
                (Some(words), Some(value)) => words.get(*value as usize).cloned().unwrap_or_default(),
                (_, value) => value.map(|value| value.to_string()).unwrap_or_default(),
            })
            .collect();
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}
