//! Predictions beside published figures: every row, whether it has to hold, and why not where it has not.

use std::fmt::Write as _;

use gpufeed_profiles::{Covers, Deployment, Overrides, Published, engine, gpu, model, published};
use gpufeed_workloads::inference::cost::MooncakeEq2;
use serde::Serialize;

use crate::args::PlanFormat;
use crate::capacity::predict::{Load, Request, Served};
use crate::exit::{Exit, OrUsage};
use crate::output;

/// Prints every row; the status says whether all that have to hold do.
///
/// # Errors
/// When standard output cannot be written to.
pub(super) fn run(format: PlanFormat) -> anyhow::Result<Exit> {
    let rows = rows(&published(), &[])?;
    output::result(&match format {
        PlanFormat::Text => text(&rows),
        PlanFormat::Json => {
            let document = serde_json::json!({"passed": passed(&rows), "rows": rows});
            serde_json::to_string_pretty(&document)? + "\n"
        }
        PlanFormat::Html => return Err(crate::exit::usage("the validation has no page: use --format text or json")),
    })?;
    Ok(if passed(&rows) { Exit::Passed } else { Exit::Missed })
}

fn passed(rows: &[Row]) -> bool {
    rows.iter().all(|row| !row.gated || row.met == Some(true))
}

/// One published figure and its prediction.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    id: String,
    /// `cold TTFT`, `reuse TTFT`, `ITL at 1000`, …
    what: String,
    unit: &'static str,
    /// None where there is nothing to predict from.
    predicted: Option<f64>,
    published: Option<f64>,
    /// Predicted ÷ published − 1.
    error_ratio: Option<f64>,
    /// In words.
    tolerance: String,
    /// Inside the tolerance.
    met: Option<bool>,
    /// Has to be.
    gated: bool,
    /// Why it has not to be.
    ungated_because: Option<String>,
    extrapolated: bool,
    source: String,
}

/// How near a prediction has to be: within either.
#[derive(Debug, Clone, Copy)]
struct Tolerance {
    ratio: f64,
    or_ms: Option<f64>,
}

impl Tolerance {
    /// TTFT without reuse: 10% from 8,000 tokens, 20% or 15 ms below.
    const fn cold(context: u64) -> Self {
        if context >= 8000 { Self { ratio: 0.10, or_ms: None } } else { Self { ratio: 0.20, or_ms: Some(15.0) } }
    }

    /// TTFT with reuse: 10% or 10 ms.
    const REUSE: Self = Self { ratio: 0.10, or_ms: Some(10.0) };

    const fn ratio(ratio: f64) -> Self {
        Self { ratio, or_ms: None }
    }

    fn holds(self, predicted: f64, published: f64) -> bool {
        let off = (predicted - published).abs();
        off <= self.ratio * published || self.or_ms.is_some_and(|ms| off <= ms)
    }

    fn words(self) -> String {
        let ratio = format!("{}%", (self.ratio * 1000.0).round() / 10.0);
        self.or_ms.map_or_else(|| ratio.clone(), |ms| format!("{ratio} or {ms:.0} ms"))
    }
}

impl Row {
    fn new(id: &str, what: String, unit: &'static str, predicted: f64, published: f64, tolerance: Tolerance) -> Self {
        Self {
            id: id.to_owned(),
            what,
            unit,
            predicted: Some(predicted),
            published: Some(published),
            error_ratio: Some(predicted / published - 1.0),
            tolerance: tolerance.words(),
            met: Some(tolerance.holds(predicted, published)),
            gated: true,
            ungated_because: None,
            extrapolated: false,
            source: String::new(),
        }
    }

    fn unless(mut self, ungated: Option<&String>) -> Self {
        self.gated = ungated.is_none();
        self.ungated_because = ungated.cloned();
        self
    }

    fn from(mut self, source: &str, extrapolated: bool) -> Self {
        source.clone_into(&mut self.source);
        self.extrapolated = extrapolated;
        self
    }
}

fn served(deployment: &Deployment, set: &[&str]) -> anyhow::Result<Served> {
    let set = Overrides::parse(set).or_usage()?;
    let model = model(&deployment.model, &set).or_usage()?;
    let gpu = gpu(&deployment.gpu, &set).or_usage()?;
    let engine = engine(&deployment.engine, &set).or_usage()?;
    Ok(Served::new(&model, &gpu, engine, deployment.tp, deployment.weights_dtype, deployment.kv_dtype, false))
}

const fn load(deployment: &Deployment) -> Load {
    Load { bytes_per_s: deployment.store.bytes_per_s, first_byte: deployment.store.first_byte }
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// All rows, with figures of GPUs and engines changed by `set`.
fn rows(published: &Published, set: &[&str]) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let at = |id: &str| published.deployment(id).expect("rows name deployments, as a test of the data checks");
    for row in &published.ttft {
        let deployment = at(&row.deployment);
        let served = served(deployment, set)?;
        let source = format!("{}; store: {}", deployment.source, deployment.store.source);
        let (cold, cached) = (Request { context: row.context, cached: 0 }, row.cached.unwrap_or(row.context));
        let predicted = ms(served.ttft(cold, None).ns());
        rows.push(
            Row::new(&row.id, "cold TTFT".to_owned(), "ms", predicted, row.cold_s * 1e3, Tolerance::cold(row.context))
                .unless(row.cold_ungated.as_ref())
                .from(&deployment.source, served.extrapolated(published, Covers::Cold).is_some()),
        );
        let predicted = ms(served.ttft(Request { cached, ..cold }, Some(load(deployment))).ns());
        rows.push(
            Row::new(&row.id, "reuse TTFT".to_owned(), "ms", predicted, row.reuse_s * 1e3, Tolerance::REUSE)
                .unless(row.reuse_ungated.as_ref())
                .from(&source, served.extrapolated(published, Covers::Reuse).is_some()),
        );
    }
    for row in &published.ratio {
        let deployment = at(&row.deployment);
        let served = served(deployment, set)?;
        let cold = Request { context: row.context, cached: 0 };
        let reuse = served.ttft(Request { cached: row.cached, ..cold }, Some(load(deployment))).ns();
        let predicted = reuse as f64 / served.ttft(cold, None).ns() as f64;
        let what = "reuse ÷ cold TTFT".to_owned();
        rows.push(
            Row::new(&row.id, what, "ratio", predicted, row.reuse_over_cold, Tolerance::ratio(0.30))
                .unless(Some(&row.ungated))
                .from(&deployment.source, served.extrapolated(published, Covers::Reuse).is_some()),
        );
    }
    for note in &published.note {
        rows.push(Row {
            id: note.id.clone(),
            what: note.text.clone(),
            unit: "",
            predicted: None,
            published: None,
            error_ratio: None,
            tolerance: String::new(),
            met: None,
            gated: false,
            ungated_because: Some(note.ungated.clone()),
            extrapolated: true,
            source: note.source.clone(),
        });
    }
    for row in &published.itl {
        let all: Vec<&str> = row.set.iter().map(String::as_str).chain(set.iter().copied()).collect();
        let set = Overrides::parse(&all).or_usage()?;
        let model = model(&row.model, &set).or_usage()?;
        let (gpu, engine) = (gpu(&row.gpu, &set).or_usage()?, engine(&row.engine, &set).or_usage()?);
        let kv = row.kv_dtype.unwrap_or(model.kv_dtype);
        let served = Served::new(&model, &gpu, engine, row.tp, model.weight_dtype, kv, !row.set.is_empty());
        let extrapolated = served.extrapolated(published, Covers::Itl).is_some();
        for context in &row.contexts {
            let predicted = ms(served.itl(row.batch, *context).ns());
            let what = format!("ITL, batch {}, {context} tokens", row.batch);
            let tolerance = Tolerance::ratio(row.within_ratio);
            rows.push(
                Row::new(&row.id, what, "ms", predicted, row.at_ms(*context), tolerance)
                    .unless(row.ungated.as_ref())
                    .from(&row.source, extrapolated),
            );
        }
    }
    for row in &published.eq2 {
        let equation = MooncakeEq2 {
            flops_per_s: row.flops_per_s.0,
            attention: 4.0,
            linear: 22.0,
            dimension: 8192.0,
            gqa: 8.0,
            element_bytes: 2.0,
            prefix_tokens: 8192.0,
        };
        let predicted = equation.min_bytes_per_s() / 1e9;
        let what = format!("least load bandwidth (the paper prints {:.0})", row.paper_gigabytes_per_s);
        rows.push(
            Row::new(&row.id, what, "GB/s", predicted, row.gigabytes_per_s, Tolerance::ratio(0.001))
                .from(&row.source, false),
        );
    }
    Ok(rows)
}

fn text(rows: &[Row]) -> String {
    let mut text = String::new();
    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{:<22}{:<42}{:>10}{:>10}  {:<6}{:>7}  {:<13}verdict",
        "row", "what", "predicted", "published", "unit", "error", "within"
    );
    for row in rows {
        let error = row.error_ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{:+.1}%", ratio * 100.0));
        let verdict = match (row.gated, row.met) {
            (true, Some(true)) => "holds".to_owned(),
            (true, _) => "MISSED".to_owned(),
            (false, met) => {
                let inside = met.map_or("", |met| if met { "inside; " } else { "outside; " });
                format!("not gated: {inside}{}", row.ungated_because.as_deref().unwrap_or_default())
            }
        };
        let mark = if row.extrapolated && row.predicted.is_some() { " (extrapolated)" } else { "" };
        let _ = writeln!(
            text,
            "{:<22}{:<42}{:>10}{:>10}  {:<6}{error:>7}  {:<13}{verdict}{mark}",
            row.id,
            row.what.chars().take(41).collect::<String>(),
            number(row.predicted),
            number(row.published),
            row.unit,
            row.tolerance,
        );
    }
    let gated = rows.iter().filter(|row| row.gated).count();
    let holding = rows.iter().filter(|row| row.gated && row.met == Some(true)).count();
    let _ = writeln!(text, "\n{holding} of {gated} gated rows hold; {} are printed without a gate", rows.len() - gated);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(set: &[&str]) -> Vec<Row> {
        rows(&published(), set).expect("rows")
    }

    #[test]
    fn every_gated_row_holds() {
        let rows = all(&[]);
        let missed: Vec<_> = rows.iter().filter(|row| row.gated && row.met != Some(true)).collect();
        assert!(missed.is_empty(), "{missed:#?}");
    }

    #[test]
    fn the_rows_that_have_to_hold_are_gated_and_the_others_say_why_not() {
        let rows = all(&[]);
        let gated = |what: &str| -> Vec<String> {
            rows.iter().filter(|row| row.gated && row.what == what).map(|row| row.id.clone()).collect()
        };
        let fitted = ["V10", "V30", "V50", "V70", "V100", "W50", "W1000", "W8000", "W32000"];
        assert_eq!(gated("cold TTFT"), [&fitted[..], &["A2500"]].concat());
        assert_eq!(gated("reuse TTFT"), [&fitted[..], &["D235k", "A2500"]].concat());
        for id in ["D4k", "PF", "MK128", "OC64"] {
            let found: Vec<_> = rows.iter().filter(|row| row.id == id).collect();
            assert!(!found.is_empty() && found.iter().all(|row| !row.gated && row.ungated_because.is_some()), "{id}");
        }
        assert!(rows.iter().filter(|row| row.gated).all(|row| !row.extrapolated || row.unit == "GB/s"));
        assert!(rows.iter().all(|row| row.source.len() > 8), "a source for each");
    }

    #[test]
    fn mooncakes_equation_gives_the_papers_figures() {
        let rows = all(&[]);
        let eq2 = |id: &str| rows.iter().find(|row| row.id == id).and_then(|row| row.predicted).expect("a figure");
        assert!((eq2("Eq2-A800") - 5.86).abs() < 0.005 && (eq2("Eq2-A800").round() - 6.0).abs() < 1e-9);
        assert!((eq2("Eq2-H800") - 18.57).abs() < 0.005 && (eq2("Eq2-H800").round() - 19.0).abs() < 1e-9);
    }

    #[test]
    fn a_wrong_efficiency_misses() {
        let missed = |set: &str, id: &str| {
            let rows = all(&[set]);
            assert!(!passed(&rows), "{set}");
            assert!(rows.iter().any(|row| row.id.starts_with(id) && row.gated && row.met == Some(false)), "{set}");
        };
        missed("gpu.weight_read_ratio=0.6", "ITL-bf16");
        missed("gpu.kv_read_ratio.fp8=0.6", "ITL-fp8");
        missed("gpu.gemm_ratio.bf16=0.45", "V30");
        missed("gpu.gemm_ratio.fp8=0.30", "W8000");
        missed("engine.request_time=80ms", "A2500");
    }

    #[test]
    fn tolerances_are_the_stated_ones() {
        assert!(Tolerance::cold(8000).holds(109.9, 100.0) && !Tolerance::cold(8000).holds(110.1, 100.0));
        assert!(Tolerance::cold(7999).holds(24.9, 10.0) && !Tolerance::cold(7999).holds(25.1, 10.0));
        assert!(Tolerance::cold(7999).holds(119.0, 100.0) && !Tolerance::cold(7999).holds(121.0, 100.0));
        assert!(Tolerance::REUSE.holds(49.9, 40.0) && !Tolerance::REUSE.holds(50.1, 40.0));
    }

    #[test]
    fn most_deployments_without_a_fit_come_within_what_is_aimed_at() {
        // Not a gate on others' runs, but on ours: the two that do not are known and say why.
        let outside: Vec<String> = all(&[])
            .into_iter()
            .filter(|row| row.unit == "ms" && row.what.starts_with("ITL") && row.met == Some(false))
            .map(|row| row.id)
            .collect();
        assert!(
            outside.iter().all(|id| ["MI300X-oss120b-c64", "A100-QwQ32B-TP2"].contains(&id.as_str())),
            "{outside:?}"
        );
    }
}
