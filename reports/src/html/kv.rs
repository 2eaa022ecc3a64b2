//! A KV run: its figures against the baselines, where time to first token and GPU time go, and where loading pays.

use std::fmt::Write as _;

use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::{Baseline, Kv, Latency, TtftParts};

use super::axis::{Axis, Scale, Unit};
use super::chart::{Chart, Series, bar};
use super::curves::{abscissas, ladder, percentiles, slot, solid, values};
use super::escape::Text;
use super::gpu::{keys, partition, partition_over_time, stacked_bar};
use super::member::{shows_median, tile, typical_tile};
use super::tables;
use crate::figures::{count, nanos, number, percent, rate, share, size};
use crate::kv::wrong_side;

fn baselines(kv: &Kv) -> Vec<(&'static str, u8, &Baseline)> {
    let all = [
        ("no cache", slot::VERMILION, &kv.baselines.no_cache),
        ("local tiers only", slot::AMBER, &kv.baselines.local),
        ("ideal storage", slot::GREEN, &kv.baselines.ideal_storage),
        ("this target, modeled", slot::PURPLE, &kv.baselines.target_model),
    ];
    all.into_iter().filter_map(|(name, slot, b)| b.as_ref().map(|b| (name, slot, b))).collect()
}

pub(super) fn of_kv(page: &mut String, id: &str, duration_s: f64, kv: &Kv, most_points: usize) {
    page.push_str(r#"<dl class="tiles">"#);
    let ttft = &kv.ttft.summary;
    let of = format!("of {} of {} requests; p50 {}", count(ttft.count), count(kv.requests), nanos(ttft.p50_ns));
    typical_tile(page, "Time to first token", ttft, &of);
    let slo = if kv.slo.ttft_ns.is_some() || kv.slo.tpot_ns.is_some() {
        format!("{} requests/s inside the SLO", number(kv.goodput_per_s))
    } else {
        format!("{} input tokens/s", number(kv.input_tokens_per_s))
    };
    tile(page, "Output tokens", &format!("{}/s", number(kv.output_tokens_per_s)), &slo);
    let aside = format!("{} loaded from the target", size(kv.loaded_bytes));
    tile(page, "Prompt tokens not prefilled", &share(kv.token_hit_ratio), &aside);
    if kv.gpu.total_ns > 0 {
        let aside = format!("stalled on storage {}", percent(kv.gpu.storage_stall_ratio));
        match kv.gpu.useful_ratio {
            Some(useful) => tile(page, "GPU useful", &percent(useful), &aside),
            None => tile(page, "GPU busy", &percent(kv.gpu.busy_ratio), &aside),
        }
    }
    page.push_str("</dl>");
    let others = baselines(kv);
    let mut rows = vec![("this run", &kv.gpu)];
    rows.extend(others.iter().map(|(name, _, b)| (*name, &b.gpu)));
    partition(page, &rows);
    tables::baselines(page, kv, &others);
    super::matrix::topology(page, kv);

    page.push_str(r#"<div class="charts">"#);
    partition_over_time(id, duration_s, &kv.timeline, Some(&kv.gpu), most_points).figure(page);
    let mut series = vec![solid("this run", slot::BLUE, ladder(&kv.ttft))];
    for (name, slot, baseline) in &others {
        series.push(Series { dashed: true, ..solid(*name, *slot, ladder(&baseline.ttft)) });
    }
    series.retain(shows_median);
    let (title, note) = match others.is_empty() {
        true => ("Time to first token by percentile", String::new()),
        false => (
            "Time to first token against the baselines",
            "Dashed: the same trace on other storage, in virtual time.".to_owned(),
        ),
    };
    percentiles(format!("{id}-ttft"), title, note, "TTFT", series).figure(page);
    waterfall(page, kv, &others);
    break_even(id, kv).figure(page);
    page.push_str("</div>");

    let tiers = kv.hits_by_tier;
    let all = (tiers.g1 + tiers.g2 + tiers.g3 + tiers.g4 + tiers.miss) as f64;
    if all > 0.0 {
        let parts: Vec<(&str, u8, f64)> = [
            ("GPU memory", slot::BLUE, tiers.g1),
            ("host memory", slot::SKY, tiers.g2),
            ("local drive", slot::PURPLE, tiers.g3),
            ("target", slot::GREEN, tiers.g4),
            ("nowhere, so prefilled", slot::GRAY, tiers.miss),
        ]
        .into_iter()
        .map(|(name, slot, tokens)| (name, slot, tokens as f64 / all))
        .filter(|(name, _, share)| *share > 0.0 || *name == "target")
        .collect();
        page.push_str("<h3>Where prompt tokens were found</h3>");
        stacked_bar(page, &parts);
        keys(page, &parts);
    }
    tables::kv_details(page, kv);
    tables::inputs(page, &kv.inputs);
}

/// Bandwidth of the run's loads from the target: bytes ÷ time from decision to last block, or, where that is not known,
/// time that requests waited for them.
fn load_bytes_per_s(kv: &Kv) -> Option<f64> {
    let took_s = |latency: &Latency| mean_ns(latency) * latency.count as f64 / 1e9;
    let took_s = [&kv.load.last_block.summary, &kv.ttft_parts.load].map(took_s).into_iter().find(|s| *s > 0.0)?;
    // Bytes of the model's blocks, as the curve has them, where a run's objects are scaled down.
    let bytes = kv.loaded_tokens as f64 * kv.block_bytes as f64 / kv.block_tokens.max(1) as f64;
    (bytes > 0.0).then_some(bytes / took_s)
}

fn break_even(id: &str, kv: &Kv) -> Chart {
    let points: Vec<(f64, Option<f64>)> =
        kv.break_even.iter().map(|b| (b.tokens as f64, b.bytes_per_s.filter(|v| *v > 0.0))).collect();
    let mut series = vec![Series { shaded: true, ..solid("break-even", slot::BLUE, points) }];
    let mut note =
        "Above the curve one load of so many tokens beats computing them; in the shaded part, or where there is no \
                curve, computing wins."
            .to_owned();
    if let Some(achieved) = load_bytes_per_s(kv).filter(|_| kv.break_even.len() > 1) {
        let line = kv.break_even.iter().map(|b| (b.tokens as f64, Some(achieved))).collect();
        series.push(Series { dashed: true, ..solid("achieved by this run", slot::VERMILION, line) });
        let _ = write!(
            note,
            " Dashed: the {} that this run's loads achieved, one request's load as a whole.",
            rate(achieved)
        );
    }
    if let Some(text) = wrong_side(kv) {
        let _ = write!(note, " {text}.");
    }
    let x = Axis::over(Scale::Log, Unit::Count, abscissas(&series));
    let y = Axis::over(Scale::Log, Unit::BytesPerSecond, values(&series));
    Chart {
        id: format!("{id}-break-even"),
        title: "Load or recompute".to_owned(),
        note,
        x,
        x_name: "tokens loaded after an empty prefix",
        y,
        y_name: "bandwidth of the load",
        series,
        stacked: false,
    }
}

/// Parts of a mean time one after the other, with their percentiles beside.
fn steps(page: &mut String, title: &str, note: &str, parts: &[(&str, u8, &Latency)]) {
    let means: Vec<f64> = parts.iter().map(|(_, _, l)| l.mean_ns.filter(|m| m.is_finite()).unwrap_or(0.0)).collect();
    let whole: f64 = means.iter().sum();
    if whole <= 0.0 {
        return;
    }
    let _ = write!(
        page,
        concat!(
            r#"<figure><figcaption><h3>{0}</h3><p>{1}</p></figcaption><table class="bars"><caption class="unseen">{0}</caption>"#,
            r#"<thead><tr><th scope="col">part</th><th scope="col" class="wide-cell">of the mean</th><th scope="col">mean</th>"#,
            r#"<th scope="col">p50</th><th scope="col">p99</th></tr></thead><tbody>"#
        ),
        Text(title),
        Text(note)
    );
    let mut from = 0.0;
    for ((name, slot, latency), mean) in parts.iter().zip(&means) {
        let _ = write!(page, r#"<tr><th scope="row">{}</th><td class="wide-cell">"#, Text(name));
        let to = from + mean / whole;
        bar(page, &format!("{name} {}", percent(mean / whole)), &[(*slot, from, to)], None);
        let _ = write!(
            page,
            r#"</td><td data-name="mean">{}</td><td data-name="p50">{}</td><td data-name="p99">{}</td></tr>"#,
            Text(show_nanos(*mean)),
            Text(nanos(latency.p50_ns)),
            Text(nanos(latency.p99_ns))
        );
        from = to;
    }
    page.push_str("</tbody></table></figure>");
}

/// The parts of time to first token in the order in which a request goes through them.
fn parts(parts: &TtftParts) -> [(&'static str, u8, &Latency); 6] {
    [
        ("queue", slot::GRAY, &parts.queue),
        ("look-up", slot::PURPLE, &parts.lookup),
        ("load", slot::VERMILION, &parts.load),
        ("copy", slot::SKY, &parts.copy),
        ("prefill", slot::BLUE, &parts.prefill),
        ("transfer", slot::AMBER, &parts.transfer),
    ]
}

fn mean_ns(latency: &Latency) -> f64 {
    latency.mean_ns.filter(|mean| mean.is_finite() && *mean > 0.0).unwrap_or(0.0)
}

fn waterfall(page: &mut String, kv: &Kv, others: &[(&'static str, u8, &Baseline)]) {
    against_baselines(page, kv, others);
    let mut parts = parts(&kv.ttft_parts).to_vec();
    // Only pools that prefill for others have a transfer.
    parts.retain(|(name, _, latency)| *name != "transfer" || mean_ns(latency) > 0.0);
    let note = "The parts of each request add up to its TTFT; percentiles of parts do not add up.";
    steps(page, "Where time to first token goes", note, &parts);
}

/// Mean time to first token of this run and of the baselines, each as its parts one after the other, on one scale.
fn against_baselines(page: &mut String, kv: &Kv, others: &[(&'static str, u8, &Baseline)]) {
    let mut rows = vec![("this run", &kv.ttft_parts)];
    rows.extend(others.iter().map(|(name, _, baseline)| (*name, &baseline.ttft_parts)));
    let whole = |row: &TtftParts| parts(row).iter().map(|(_, _, latency)| mean_ns(latency)).sum::<f64>();
    rows.retain(|(_, row)| whole(row) > 0.0);
    let longest = rows.iter().map(|(_, row)| whole(row)).fold(0.0, f64::max);
    if rows.len() < 2 || longest <= 0.0 {
        return;
    }
    page.push_str(concat!(
        r#"<figure><figcaption><h3>Mean time to first token, part by part</h3><p>Each bar is as long as its mean, and its "#,
        r#"parts add up to it exactly; the same trace on other storage below.</p></figcaption><table class="bars">"#,
        r#"<caption class="unseen">Mean time to first token, part by part</caption><thead><tr><th scope="col">storage</th>"#,
        r#"<th scope="col" class="wide-cell">parts of the mean</th><th scope="col">mean</th></tr></thead><tbody>"#
    ));
    for (name, row) in &rows {
        let _ = write!(page, r#"<tr><th scope="row">{}</th><td class="wide-cell">"#, Text(name));
        let mut from = 0.0;
        let mut places = Vec::new();
        let mut label = Vec::new();
        for (part, slot, latency) in parts(row) {
            let to = from + mean_ns(latency) / longest;
            if to > from {
                places.push((slot, from, to));
                label.push(format!("{part} {}", show_nanos(mean_ns(latency))));
            }
            from = to;
        }
        bar(page, &label.join(", "), &places, None);
        let _ = write!(page, r#"</td><td data-name="mean">{}</td></tr>"#, Text(show_nanos(whole(row))));
    }
    page.push_str(r#"</tbody></table><ul class="keys">"#);
    for (i, (name, slot, _)) in parts(&kv.ttft_parts).iter().enumerate() {
        if rows.iter().any(|(_, row)| mean_ns(parts(row)[i].2) > 0.0) {
            let _ = write!(page, r#"<li class="key"><span class="swatch c{slot}"></span>{}</li>"#, Text(name));
        }
    }
    page.push_str("</ul></figure>");
}
