//! A knee search as tables, for a terminal and for a pull request.

use std::fmt::Write as _;

use gpufeed_schema::{SearchFigures, SearchLevel, SearchReport, SearchedStorage};

use crate::figures::{DASH, nanos, number, percent, rate};

/// A level, without zeros that say nothing.
#[must_use]
pub fn level(value: f64) -> String {
    format!("{value}")
}

/// A storage by the name people read.
#[must_use]
pub fn storage_name(storage: &str) -> &str {
    match storage {
        "target" => "the target",
        "no_cache" => "no cache",
        "local" => "local tiers only",
        "ideal_storage" => "ideal storage",
        other => other,
    }
}

/// A kind of figure: its name, and how a level shows it.
type Column = (&'static str, fn(&SearchFigures) -> Option<String>);

const COLUMNS: [Column; 8] = [
    ("AU", |f| f.au_ratio.map(percent)),
    ("good", |f| f.goodput_ratio.map(percent)),
    ("good/s", |f| f.goodput_per_s.map(number)),
    ("offered/s", |f| f.offered_per_s.map(number)),
    ("p99", |f| f.p99_ns.map(|ns| nanos(Some(ns)))),
    ("samples/s", |f| f.samples_per_s.map(number)),
    ("ops/s", |f| f.ops_per_s.map(number)),
    ("bytes/s", |f| f.bytes_per_s.map(rate)),
];

/// The figures of one run in words: `AU 93.1%, ops/s 412`.
#[must_use]
pub fn figures(figures: &SearchFigures) -> String {
    let shown = COLUMNS.iter().filter_map(|(name, show)| Some(format!("{name} {}", show(figures)?)));
    shown.collect::<Vec<_>>().join(", ")
}

/// The columns that any level of any storage fills.
fn columns(report: &SearchReport) -> Vec<Column> {
    let levels = || report.storages.iter().flat_map(|storage| &storage.levels);
    COLUMNS.into_iter().filter(|(_, show)| levels().any(|level| show(&level.figures).is_some())).collect()
}

/// How a level stands: `pass`, `fail`, `even`, with its runs where there were several.
fn stands(level: &SearchLevel) -> String {
    let word = match level.passed.cmp(&level.failed) {
        std::cmp::Ordering::Greater => "pass",
        std::cmp::Ordering::Less => "fail",
        std::cmp::Ordering::Equal => "even",
    };
    match level.passed + level.failed {
        1 => word.to_owned(),
        runs => format!("{word} {} of {runs}", level.passed.max(level.failed)),
    }
}

fn rows(report: &SearchReport, storage: &SearchedStorage, columns: &[Column]) -> Vec<Vec<String>> {
    let row = |level: &SearchLevel| {
        let mut row = vec![self::level(level.level), stands(level)];
        row.extend(columns.iter().map(|(_, show)| show(&level.figures).unwrap_or_else(|| DASH.to_owned())));
        row.push(if Some(level.level) == storage.knee { "knee".to_owned() } else { String::new() });
        row
    };
    let mut head = vec![report.parameter.unit.clone(), "runs".to_owned()];
    head.extend(columns.iter().map(|(name, _)| (*name).to_owned()));
    head.push(String::new());
    std::iter::once(head).chain(storage.levels.iter().map(row)).collect()
}

/// What each storage's knee is, side by side, where there are several.
fn side_by_side(report: &SearchReport) -> Vec<Vec<String>> {
    if report.storages.len() < 2 {
        return Vec::new();
    }
    let shown = |value: Option<f64>| value.map_or_else(|| DASH.to_owned(), number);
    let row = |storage: &SearchedStorage| {
        let clock = if storage.virtual_time { "virtual" } else { "measured" };
        let at_least = if storage.status == gpufeed_schema::SearchStatus::AboveHighest { "at least " } else { "" };
        vec![
            storage_name(&storage.storage).to_owned(),
            clock.to_owned(),
            format!("{at_least}{}", storage.knee.map_or_else(|| DASH.to_owned(), level)),
            shown(storage.knee_per_s),
        ]
    };
    let head = ["storage", "time", &report.parameter.unit, "good/s"].map(str::to_owned).to_vec();
    std::iter::once(head).chain(report.storages.iter().map(row)).collect()
}

/// Columns of text, as wide as they need to be, the first to the left.
fn aligned(text: &mut String, rows: &[Vec<String>]) {
    let count = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    for (i, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
        if i == 0 {
            let _ = writeln!(text, "{}", "─".repeat(widths.iter().sum::<usize>() + 2 * count.saturating_sub(1)));
        }
    }
}

/// The search as text: what was found, side by side, then each curve.
#[must_use]
pub fn text(report: &SearchReport) -> String {
    let mut text = format!("{}\n", report.summary);
    let _ = writeln!(
        text,
        "search {} on {}; a level passes with {}",
        report.workload, report.target, report.criterion.text
    );
    let several = side_by_side(report);
    if !several.is_empty() {
        text.push('\n');
        aligned(&mut text, &several);
    }
    let columns = columns(report);
    for storage in report.storages.iter().filter(|storage| !storage.levels.is_empty()) {
        text.push('\n');
        if report.storages.len() > 1 {
            let clock = if storage.virtual_time { ", in virtual time" } else { "" };
            let _ = writeln!(text, "{}{clock}", storage_name(&storage.storage));
        }
        aligned(&mut text, &rows(report, storage, &columns));
    }
    if !report.notes.is_empty() {
        text.push('\n');
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// The search for a pull request.
#[must_use]
pub fn markdown(report: &SearchReport) -> String {
    let plain = |text: &str| text.replace('|', "\\|").replace('<', "&lt;");
    let mut page = format!("**{}**\n", plain(&report.summary));
    let mut table = |title: &str, rows: &[Vec<String>]| {
        let Some((head, body)) = rows.split_first() else { return };
        let line =
            |row: &[String]| format!("| {} |\n", row.iter().map(|cell| plain(cell)).collect::<Vec<_>>().join(" | "));
        let _ =
            write!(page, "\n{}{}", if title.is_empty() { String::new() } else { format!("{title}\n\n") }, line(head));
        let _ = writeln!(page, "|{}", "---|".repeat(head.len()));
        for row in body {
            page.push_str(&line(row));
        }
    };
    table("", &side_by_side(report));
    let columns = columns(report);
    for storage in report.storages.iter().filter(|storage| !storage.levels.is_empty()) {
        table(storage_name(&storage.storage), &rows(report, storage, &columns));
    }
    for note in &report.notes {
        let _ = write!(page, "\n- {}", plain(note));
    }
    page.push('\n');
    page
}
